//! Whole measurements with known truths, simulated: what share of them comes out right. Each test
//! prints its figures (`--nocapture` shows them). Seeds are fixed, so a figure changes only when a
//! rule does.

#![expect(
    clippy::print_stdout,
    reason = "the figures are what these tests are for"
)]

mod batch_norm;
mod changes;
mod coverage;
mod devices;
mod initial;
mod knees;
mod memory_search;
mod noisy_quadratic;
mod optimizers;
mod quality;
mod studies;
mod time_per_step;
mod training;
mod worlds;
