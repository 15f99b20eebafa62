//! Random MLPs, CNNs and transformers under random memory budgets: search, confirmation, and then a run of 500
//! steps at the batch size that was confirmed. The goals: none runs out of memory, and the memory predicted
//! for the final batch size is off by at most 5% (median).
//!
//! `cargo bench --profile release --bench confirmed_batch_sizes [-- MODELS [FIRST]]`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

#[path = "../tests/support/bottlenecks.rs"]
#[allow(dead_code, reason = "shared with another bench")]
mod bottlenecks;
#[path = "../tests/support/children.rs"]
mod children;
#[path = "../tests/support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod fake;
#[path = "../tests/support/random_studies.rs"]
mod random_studies;

/// Steps of the run that a confirmed batch size must survive.
const LONGER_RUN: u64 = 500;

#[tokio::main]
async fn main() {
    let mut numbers = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let models: u64 = numbers.next().unwrap_or(50);
    let first: u64 = numbers.next().unwrap_or(0);
    let program = fake::reachable(env!("CARGO_BIN_EXE_trialhead").as_ref(), "program");
    let mut errors = Vec::new();
    let mut died = 0;
    for seed in first..first + models {
        let study = random_studies::confirm(&program, seed, LONGER_RUN).await;
        println!(
            "{:>3} {:>10} of {:>9}, {} probes, prediction {}{}  {}",
            seed,
            study.batch_size,
            study.budget.to_string(),
            study.probes,
            study.prediction_error.map_or_else(
                || "none".to_owned(),
                |error| format!("{:+.1}%", error * 100.0)
            ),
            if study.survived {
                String::new()
            } else {
                format!(", DIED LATER: {}", study.ended)
            },
            study.model,
        );
        errors.extend(study.prediction_error.map(f64::abs));
        died += u64::from(!study.survived);
    }
    errors.sort_by(f64::total_cmp);
    let median = errors[errors.len() / 2];
    println!(
        "{models} models: {died} ran out of memory later ({}); prediction error {:.1}% (median of {}), {:.1}% (largest) ({})",
        if died == 0 { "met" } else { "MISSED" },
        median * 100.0,
        errors.len(),
        errors[errors.len() - 1] * 100.0,
        if median <= 0.05 { "met" } else { "MISSED" },
    );
}
