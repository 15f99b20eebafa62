//! The lease protocol on a real Postgres: who gets which probe, whose writes count, what is never
//! done twice and never lost.

#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/queue.rs"]
mod queue;

mod fencing;

mod studies;

mod together;

mod turns;
