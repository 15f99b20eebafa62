//! Trialhead: where a deep-learning project starts.
//!
//! ```text
//! definition → plan → pool → probe → measurements → analysis → recommendation → API
//! ```
//!
//! **Dependency rule** (held by `tests/architecture.rs`): `statistics, catalog ← study ← probe ←
//! analysis ← {plan, recommendation}` are pure and each uses only those to its left. `trainer` alone
//! uses burn; `store` alone uses diesel; `api` alone uses actix and never calls `trainer`;
//! `lifecycle` composes `store` with the pure modules; `pool` starts `trainer` only as another
//! process.

pub mod access;
pub mod analysis;
pub mod api;
pub mod catalog;
pub mod cli;
pub mod client;
pub mod datasets;
pub mod doctor;
pub mod library;
pub mod lifecycle;
pub mod metrics;
pub mod plan;
pub mod pool;
pub mod probe;
pub mod recommendation;
pub mod runners;
pub mod service;
pub mod settings;
pub mod statistics;
pub mod store;
pub mod study;
pub mod telemetry;
pub mod trainer;
pub mod uploads;
pub mod work;
