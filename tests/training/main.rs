//! Training to a target, through the API, with real children: is what is found the truth where it is known?

#![expect(
    clippy::print_stdout,
    reason = "what was found is worth reading beside the verdict"
)]

#[path = "../support/fake.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod fake;
#[path = "../support/postgres.rs"]
mod postgres;
#[path = "../support/service.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod service;

mod digits;
mod initial;
mod noisy_quadratic;
mod optimizers;
mod quality;
mod targets;
