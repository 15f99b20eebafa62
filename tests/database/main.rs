//! The database against real servers: every known trap of the managed one, connections of every kind, and
//! migrations.

#[path = "../support/postgres.rs"]
mod postgres;

mod connections;
mod encrypted;
mod managed;
mod processes;
mod storage;
