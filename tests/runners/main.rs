//! Other people's training programs: the contract from the outside, and whole studies with such a runner.

#[path = "../support/fake.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod fake;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/python.rs"]
mod python;
#[path = "../support/service.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod service;

mod conformance;
mod examples;
mod studies;
mod torch;
