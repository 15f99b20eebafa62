//! The one connection that listens. Notifications are only hints that something was committed: whoever
//! listens looks at the tables, and looks again whenever hints may have been lost, which is what
//! [`ListenEvent::Rescan`] says.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::Stream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_postgres::{AsyncMessage, Client};

use super::{Target, with_causes};

/// Events kept for a listener that is busy; beyond it they become one rescan.
const QUEUE: usize = 1024;
/// How often a silent connection is asked whether it is still there, and how long it may take to answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// The first and the longest pause before connecting again.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// What a listener hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenEvent {
    /// The connection is new, the first one included, or too much came at once: look at everything.
    Rescan,
    /// Somebody notified.
    Notification {
        /// On this channel.
        channel: String,
        /// With this text.
        payload: String,
    },
}

/// Hears notifications, reconnecting whenever the connection is lost; stops when dropped.
#[derive(Debug)]
pub struct Listener {
    mailbox: Arc<Mailbox>,
    task: AbortHandle,
}

impl Listener {
    pub(super) fn start(target: Arc<Target>, channels: &[&str]) -> Self {
        let mailbox = Arc::new(Mailbox::default());
        let channels = channels.iter().map(|name| (*name).to_owned()).collect();
        let task = tokio::spawn(listen(target, channels, Arc::clone(&mailbox)));
        Self {
            mailbox,
            task: task.abort_handle(),
        }
    }

    /// The next event. Nothing is lost if the call is given up before it ends.
    pub async fn next(&mut self) -> ListenEvent {
        loop {
            if let Some(event) = self.mailbox.take() {
                return event;
            }
            self.mailbox.filled.notified().await;
        }
    }

    /// The events as a stream that never ends.
    pub fn into_stream(self) -> impl Stream<Item = ListenEvent> + Send {
        futures::stream::unfold(self, |mut listener| async {
            let event = listener.next().await;
            Some((event, listener))
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug, Default)]
struct Mailbox {
    queue: Mutex<VecDeque<ListenEvent>>,
    filled: Notify,
}

impl Mailbox {
    fn put(&self, event: ListenEvent) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if event == ListenEvent::Rescan || queue.len() >= QUEUE {
            queue.clear();
            queue.push_back(ListenEvent::Rescan);
        } else {
            queue.push_back(event);
        }
        drop(queue);
        self.filled.notify_one();
    }

    fn take(&self) -> Option<ListenEvent> {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    }
}

async fn listen(target: Arc<Target>, channels: Vec<String>, mailbox: Arc<Mailbox>) {
    let mut pause = BACK_OFF.0;
    loop {
        let mut connected = false;
        let Err(why) = session(&target, &channels, &mailbox, &mut connected).await;
        if connected {
            pause = BACK_OFF.0;
        }
        tracing::warn!(
            why,
            ?pause,
            "the listening connection is lost; connecting again"
        );
        sleep(pause).await;
        pause = (pause * 2).min(BACK_OFF.1);
    }
}

/// One connection's life.
async fn session(
    target: &Target,
    channels: &[String],
    mailbox: &Mailbox,
    connected: &mut bool,
) -> Result<Infallible, String> {
    let (client, mut connection) = target.connect().await?;
    // The connection answers only while it is polled, so both run side by side.
    let hear = async {
        loop {
            match poll_fn(|context| connection.poll_message(context)).await {
                Some(Ok(AsyncMessage::Notification(heard))) => {
                    mailbox.put(ListenEvent::Notification {
                        channel: heard.channel().to_owned(),
                        payload: heard.payload().to_owned(),
                    });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return with_causes(&error),
                None => return "the server closed it".to_owned(),
            }
        }
    };
    let speak = async {
        if let Err(error) = subscribe(&client, channels).await {
            return with_causes(&error);
        }
        *connected = true;
        mailbox.put(ListenEvent::Rescan);
        loop {
            sleep(KEEP_ALIVE.0).await;
            match timeout(KEEP_ALIVE.1, client.batch_execute("")).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return with_causes(&error),
                Err(_) => return "the server does not answer".to_owned(),
            }
        }
    };
    tokio::select! {
        why = hear => Err(why),
        why = speak => Err(why),
    }
}

async fn subscribe(client: &Client, channels: &[String]) -> Result<(), tokio_postgres::Error> {
    for channel in channels {
        let quoted = channel.replace('"', "\"\"");
        client
            .batch_execute(&format!("LISTEN \"{quoted}\""))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notification(payload: usize) -> ListenEvent {
        ListenEvent::Notification {
            channel: "c".to_owned(),
            payload: payload.to_string(),
        }
    }

    #[test]
    fn too_much_at_once_becomes_one_rescan() {
        let mailbox = Mailbox::default();
        for number in 0..=QUEUE {
            mailbox.put(notification(number));
        }
        mailbox.put(notification(7));
        assert_eq!(mailbox.take(), Some(ListenEvent::Rescan));
        assert_eq!(mailbox.take(), Some(notification(7)));
        assert_eq!(mailbox.take(), None);
    }
}
