//! A network between workers and their service that can be cut, and that keeps one address for a service
//! that is started again elsewhere. It may also break connections off in the middle of what they bring.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Where connections go; dropping it cuts everything.
pub struct Proxy {
    pub base: String,
    way: Arc<watch::Sender<Option<SocketAddr>>>,
    /// Bytes that one connection brings from the service at most.
    brings: Arc<AtomicU64>,
}

impl Proxy {
    /// A network that leads to nobody yet.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (way, route) = watch::channel(None::<SocketAddr>);
        let brings = Arc::new(AtomicU64::new(u64::MAX));
        let limit = Arc::clone(&brings);
        tokio::spawn(async move {
            // The listener ends with the runtime of its test.
            while let Ok((mut here, _)) = listener.accept().await {
                let mut route = route.clone();
                let Some(service) = *route.borrow_and_update() else {
                    continue;
                };
                let limit = limit.load(Ordering::Relaxed);
                tokio::spawn(async move {
                    let Ok(mut there) = TcpStream::connect(service).await else {
                        return;
                    };
                    let (mut asking, mut hearing) = here.split();
                    let (answering, mut asked) = there.split();
                    let mut answers = answering.take(limit);
                    let questions = async {
                        let _ = copy(&mut asking, &mut asked).await;
                        let _ = asked.shutdown().await;
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        () = questions => {}
                        _ = copy(&mut answers, &mut hearing) => {}
                        // Another way, or none: what was under way is cut.
                        _ = route.changed() => {}
                    }
                });
            }
        });
        Self {
            base: format!("http://{address}"),
            way: Arc::new(way),
            brings,
        }
    }

    /// Breaks every new connection off that has brought so many bytes.
    pub fn break_off_after(&self, bytes: u64) {
        self.brings.store(bytes, Ordering::Relaxed);
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
