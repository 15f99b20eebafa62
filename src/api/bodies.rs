//! Bodies that do not come: nobody keeps a place by sending nothing.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::HttpMessage as _;
use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::web::Bytes;
use futures::Stream;
use tokio::time::{Instant, Sleep};

/// Whether a body was given up.
#[derive(Debug, Clone, Default)]
pub struct GivenUp(Rc<Cell<bool>>);

impl GivenUp {
    pub fn is_true(&self) -> bool {
        self.0.get()
    }
}

/// From here on the body of the request ends with an error when it brings nothing for so long.
pub fn limit(request: &mut ServiceRequest, patience: Option<Duration>) -> GivenUp {
    let given_up = GivenUp::default();
    let Some(patience) = patience else {
        return given_up;
    };
    let body: Payload = match request.take_payload() {
        Payload::None => Payload::None,
        body => Payload::Stream {
            payload: Box::pin(Limited {
                body,
                patience,
                sleep: Box::pin(tokio::time::sleep(patience)),
                given_up: given_up.clone(),
            }),
        },
    };
    request.set_payload(body);
    given_up
}

struct Limited {
    body: Payload,
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
    given_up: GivenUp,
}

impl Stream for Limited {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Poll::Ready(next) = Pin::new(&mut self.body).poll_next(context) {
            let deadline = Instant::now() + self.patience;
            self.sleep.as_mut().reset(deadline);
            return Poll::Ready(next);
        }
        std::task::ready!(self.sleep.as_mut().poll(context));
        self.given_up.0.set(true);
        Poll::Ready(Some(Err(PayloadError::Io(io::ErrorKind::TimedOut.into()))))
    }
}
