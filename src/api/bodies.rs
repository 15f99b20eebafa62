//! Bodies that do not come: nobody keeps a place by sending nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures::Stream;
use tokio::time::{Instant, Sleep};

/// A body that is waited for with patience.
#[derive(Clone)]
pub struct Patience(Rc<Waited>);

struct Waited {
    body: RefCell<Payload>,
    is_over: Cell<bool>,
}

impl Patience {
    /// Whether the body was given up. Whoever answers then holds this until the answer is out: a body that is not
    /// dropped is what makes the server close the connection, and not wait for the rest to throw it away.
    pub fn is_over(&self) -> bool {
        self.0.is_over.get()
    }
}

/// From here on the body of the request ends with an error when it brings nothing for so long.
pub fn limit(request: &mut ServiceRequest, patience: Option<Duration>) -> Patience {
    let body = match patience {
        Some(_) => request.take_payload(),
        None => Payload::None,
    };
    let has_body = !matches!(body, Payload::None);
    let waited = Patience(Rc::new(Waited {
        body: RefCell::new(body),
        is_over: Cell::new(false),
    }));
    if let Some(patience) = patience.filter(|_| has_body) {
        let limited = Limited {
            waited: waited.clone(),
            patience,
            sleep: Box::pin(tokio::time::sleep(patience)),
        };
        let payload = Box::pin(limited);
        request.set_payload(Payload::Stream { payload });
    }
    waited
}

struct Limited {
    waited: Patience,
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Stream for Limited {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut *self.waited.0.body.borrow_mut()).poll_next(context);
        if let Poll::Ready(next) = next {
            let deadline = Instant::now() + self.patience;
            self.sleep.as_mut().reset(deadline);
            return Poll::Ready(next);
        }
        ready!(self.sleep.as_mut().poll(context));
        self.waited.0.is_over.set(true);
        Poll::Ready(Some(Err(PayloadError::Io(io::ErrorKind::TimedOut.into()))))
    }
}
