//! The REST interface as its users see it: a real service on a real Postgres, real children.

#[path = "../support/fake.rs"]
mod fake;
#[path = "../support/listener.rs"]
mod listener;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/queue.rs"]
mod queue;
#[path = "../support/service.rs"]
mod service;

mod access;
mod answers;
mod cli;
mod commands;
mod compatibility;
mod conditional;
mod contract;
mod datasets;
mod events;
mod gpus;
mod idempotency;
mod leases;
mod limits;
mod operations;
mod prescriptions;
mod problems;
mod retention;
mod revisions;
mod studies;
mod transport;
mod waiting;
