//! The hardware part of a study, through the whole service: memory, throughput, bottleneck and gradient
//! accumulation of an MLP on digits, posted several times without reuse, then once beside a process that wants
//! the same processors.
//!
//! Goals: at most 25% of the wall time outside sampling and warm-up; the intervals of the studies overlap and
//! they choose the same batch size, or declare the other a near-tie; the disturbed one says so.
//!
//! `cargo bench --profile release --bench hardware_study [-- STUDIES]`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

#[path = "../tests/support/fake.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod fake;
#[path = "../tests/support/postgres.rs"]
mod postgres;
#[path = "../tests/support/service.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod service;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use service::{TestService, trained};

struct Study {
    wall_secs: f64,
    sampling_secs: f64,
    batch_size: u64,
    near_ties: Vec<u64>,
    grade: String,
    caveats: Vec<String>,
    /// Batch size, lower and upper end of the interval of t.
    intervals: Vec<(u64, f64, f64)>,
}

#[tokio::main]
async fn main() {
    let count = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(3);
    let service = TestService::start(|settings| {
        settings.pool.child_command = Some(trained());
        // As they come: the times that tests use would wake the service more often than a user's does.
        let usual = trialhead::settings::Settings::default().pool;
        settings.pool.tick_secs = usual.tick_secs;
        settings.pool.heartbeat_secs = usual.heartbeat_secs;
        settings.pool.lease_secs = usual.lease_secs;
        settings.pool.lease_margin_secs = usual.lease_margin_secs;
    })
    .await;
    let mut studies = Vec::new();
    for number in 1..=count {
        let study = run(&service, &json!({})).await;
        println!(
            "study {number}: {:.0} s, {:.1}% of them outside sampling and warm-up; batch size {} ({}), near-ties {:?}, {:?}",
            study.wall_secs,
            100.0 * (1.0 - study.sampling_secs / study.wall_secs),
            study.batch_size,
            study.grade,
            study.near_ties,
            study.caveats
        );
        studies.push(study);
    }
    let outside = studies
        .iter()
        .map(|study| 1.0 - study.sampling_secs / study.wall_secs)
        .fold(0.0, f64::max);
    if !studies.is_empty() {
        println!(
            "outside sampling and warm-up: at most {:.1}% ({})",
            outside * 100.0,
            met(outside <= 0.25)
        );
    }
    let agree = |a: &Study, b: &Study| {
        a.batch_size == b.batch_size
            || a.near_ties.contains(&b.batch_size)
            || b.near_ties.contains(&a.batch_size)
    };
    let overlap = |a: &Study, b: &Study| {
        a.intervals
            .iter()
            .zip(&b.intervals)
            .filter(|(a, b)| a.0 == b.0 && a.1 <= b.2 && b.1 <= a.2)
            .count()
    };
    for (index, a) in studies.iter().enumerate() {
        for b in &studies[index + 1..] {
            let apart: f64 = a
                .intervals
                .iter()
                .zip(&b.intervals)
                .map(|(a, b)| ((a.1 + a.2) / (b.1 + b.2)).ln().abs())
                .fold(0.0, f64::max);
            println!(
                "two studies: {} of {} intervals of t overlap, at most {:.1}% apart; same choice or near-tie: {}",
                overlap(a, b),
                a.intervals.len(),
                apart * 100.0,
                met(agree(a, b))
            );
        }
    }
    let stop = Arc::new(AtomicBool::new(false));
    // A single one finds a processor that a small network leaves idle, and then disturbs nothing.
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    // Few batch sizes: every sampling goes on to its cap.
    let few = json!({"grid": {"values": [64, 1024]}});
    let disturbed = run(&service, &few).await;
    stop.store(true, Ordering::Relaxed);
    for thread in busy {
        let _ = thread.join();
    }
    let says_so = disturbed.grade == "low"
        && disturbed
            .caveats
            .iter()
            .any(|code| code == "W_HOST_CONTENDED");
    println!(
        "beside two busy threads: {:.0} s, batch size {}, grade {}, {:?}: {}",
        disturbed.wall_secs,
        disturbed.batch_size,
        disturbed.grade,
        disturbed.caveats,
        met(says_so)
    );
}

fn met(holds: bool) -> &'static str {
    if holds { "met" } else { "MISSED" }
}

async fn run(service: &TestService, batch_sizes: &Value) -> Study {
    let start = Instant::now();
    let path = service
        .create(&json!({
            "workload": {"dataset": {"builtin": "digits"}, "model": {"family": "mlp", "hidden": [64]}},
            "batch_sizes": batch_sizes,
            "device": {"memory_budget_bytes": 2_u64 << 30},
            "questions": [
                "feasible_batch_sizes", "throughput", "bottleneck", "gradient_accumulation", "batch_size"
            ],
            "reuse": false
        }))
        .await;
    loop {
        let study = service.get(&path).await.json();
        if !matches!(study["state"].as_str(), Some("queued" | "running")) {
            assert_eq!(study["state"], "succeeded", "{study}");
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let wall_secs = start.elapsed().as_secs_f64();
    let mut sampling_secs = 0.0;
    for metric in ["sampling_secs", "warm_up_secs"] {
        let measured = service
            .get(&format!(
                "{path}/measurements?metric={metric}&page_size=500"
            ))
            .await
            .json();
        let items = measured["items"].as_array().expect("a page").clone();
        sampling_secs += items
            .iter()
            .filter_map(|item| item["value"].as_f64())
            .sum::<f64>();
    }
    let analysis = service.get(&format!("{path}/analysis")).await.json();
    let advice = service.get(&format!("{path}/recommendations")).await.json();
    let advice: Value = advice["items"]
        .as_array()
        .expect("a list")
        .iter()
        .find(|advice| advice["topic"] == "batch_size")
        .expect("advice")
        .clone();
    let number = |value: &Value| value.as_u64().expect("a number");
    Study {
        wall_secs,
        sampling_secs,
        batch_size: number(&advice["value"]["batch_size"]),
        near_ties: advice["confidence"]["near_ties"]
            .as_array()
            .expect("a list")
            .iter()
            .map(number)
            .collect(),
        grade: advice["confidence"]["grade"]
            .as_str()
            .expect("a grade")
            .to_owned(),
        caveats: advice["caveats"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|caveat| caveat["code"].as_str())
            .map(str::to_owned)
            .collect(),
        intervals: analysis["analysis"]["throughput"]["points"]
            .as_array()
            .expect("points")
            .iter()
            // A disturbed study may have had the time for one round only, and then there is no interval.
            .filter_map(|point| {
                let t = &point["time_per_step_secs"];
                Some((
                    number(&point["batch_size"]),
                    t["ci_lower"].as_f64()?,
                    t["ci_upper"].as_f64()?,
                ))
            })
            .collect(),
    }
}
