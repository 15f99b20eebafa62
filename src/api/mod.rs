//! The REST interface: one file per resource, problem details for every error, the OpenAPI document
//! generated from the same code that serves. Handlers are three hops: extract, lifecycle or store,
//! respond.

pub mod access;
pub mod answers;
mod bodies;
pub mod catalog;
pub mod conditional;
pub mod datasets;
pub mod devices;
pub mod events;
mod examples;
pub mod health;
pub mod hosts;
pub mod idempotency;
pub mod leases;
mod links;
pub mod measurements;
pub mod metrics;
pub mod openapi;
pub mod operations;
pub mod pagination;
pub mod probes;
pub mod problem;
mod ranges;
pub mod responses;
pub mod revisions;
pub mod server;
pub mod state;
pub mod studies;
mod tls;
pub mod worker;

pub use server::Server;
pub use worker::WorkerServer;
