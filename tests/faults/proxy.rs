//! A network between workers and their service that can be cut, and that keeps one address for a service
//! that is started again elsewhere.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where connections go; dropping it cuts everything.
pub struct Proxy {
    pub base: String,
    way: Arc<watch::Sender<Option<SocketAddr>>>,
}

impl Proxy {
    /// A network that leads to nobody yet.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (way, route) = watch::channel(None::<SocketAddr>);
        tokio::spawn(async move {
            // The listener ends with the runtime of its test.
            while let Ok((mut here, _)) = listener.accept().await {
                let mut route = route.clone();
                let Some(service) = *route.borrow_and_update() else {
                    continue;
                };
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(service).await else {
                        return;
                    };
                    tokio::select! {
                        _ = copy_bidirectional(&mut here, &mut there) => {}
                        // Another way, or none: what was under way is cut.
                        _ = route.changed() => {}
                    }
                });
            }
        });
        Self {
            base: format!("http://{address}"),
            way: Arc::new(way),
        }
    }

    /// Leads to a service.
    pub fn lead_to(&self, base: &str) {
        let address = base.trim_start_matches("http://").parse();
        self.way.send_replace(Some(address.expect("an address")));
    }

    /// Cuts every connection, and lets none through.
    pub fn cut(&self) {
        self.way.send_replace(None);
    }
}
