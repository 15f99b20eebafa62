//! The pool against real processes: children, and the locks between services of one host.

mod child;
#[path = "../support/fake.rs"]
mod fake;
mod host_lock;
mod roles;
mod runner;
