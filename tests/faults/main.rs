//! What survives what: real services as processes of their own, ended in every way a process can be.

#![expect(
    clippy::print_stdout,
    reason = "what was found is worth reading beside the verdict"
)]

#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/listener.rs"]
mod listener;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/python.rs"]
mod python;
#[path = "../support/queue.rs"]
mod queue;

mod crowd;
mod ends;
mod events;
mod out_of_memory;
mod proxy;
mod server;
mod storm;
mod timed;
mod together;
mod work;
mod worker;
