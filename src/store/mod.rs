//! Postgres: one file per aggregate, the schema, connections, and the managed local server.
//! Functions take a connection, so they compose into transactions.

mod age;
pub mod answers;
pub mod connection;
pub mod datasets;
pub mod devices;
pub mod error;
pub mod events;
mod json;
pub mod kept_answers;
pub mod leases;
pub mod local_server;
pub mod probes;
pub mod recommendations;
pub mod schema;
pub mod server_facts;
pub mod service_metrics;
mod statement;
pub mod studies;
pub mod tokens;
pub mod transaction;
pub mod wake;

pub use error::StoreError;
pub use transaction::{Connection, begin, begin_by_kept_plans, finish};
