//! The guided search for the largest batch size against an exhaustive one, both on real children
//! under a real memory limit, and the peak as a small and a large parent read it.
//!
//! Exhaustive is: double the batch size until it no longer fits, then look at each 1/32 of the last
//! octave from below until four in a row do not fit. Peaks scatter from run to run where the heap
//! fragments, so the answer is a range: all below its lower end fitted, its upper end is the largest
//! that did. The goal is agreement with it within 1/32 of the batch size.
//!
//! `cargo bench --profile release --bench memory_limit [-- MIB...]`
//!
//! On a GPU the same with its backend's feature, `BENCH_BACKEND=cuda`, and budgets that the card has.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

use std::path::Path;

use serde_json::json;
use tokio::sync::watch;
use trialhead::analysis::memory::reserve;
use trialhead::analysis::memory_search::{Search, SearchStep, Seen};
use trialhead::pool::child::{self, ChildConfig, ChosenGpu, Spawner};
use trialhead::probe::{InfeasibleReason, Metric, Outcome, ProbeSpec};
use trialhead::study::{Backend, BatchSize, Bytes, MaxFrom, Resolution};

const BUDGETS_MIB: [u64; 5] = [200, 512, 1024, 2048, 4096];
const MAX_BATCH_SIZE: u64 = 1 << 24;
const STEPS: u64 = 5;
const LARGE_PARENT_BYTES: usize = 500 << 20;
/// Batch sizes in a row that do not fit, after which no larger one is tried.
const UNFIT_IN_A_ROW: usize = 4;
const PARENT_RUNS: usize = 5;

struct Runner {
    backend: Backend,
    spawner: Spawner,
    config: ChildConfig,
    children: usize,
}

#[tokio::main]
async fn main() {
    let folder = std::env::temp_dir().join(format!("trialhead-bench-{}", std::process::id()));
    let mut runner = Runner::new(&folder);
    let asked: Vec<u64> = std::env::args()
        .skip(1)
        .filter_map(|it| it.parse().ok())
        .collect();
    let budgets = if asked.is_empty() {
        BUDGETS_MIB.to_vec()
    } else {
        asked
    };
    println!(
        "{:>12} {:>10} {:>6} {:>22} {:>6}  goal",
        "budget", "guided", "looks", "exhaustive", "looks"
    );
    for budget in budgets.into_iter().map(|mib| Bytes(mib << 20)) {
        let (guided, guided_looks) = runner.guided(budget).await;
        let (all_below, largest, exhaustive_looks) = runner.exhaustive(budget).await;
        let tolerance = (guided / 32).max(1);
        let agrees = guided + tolerance >= all_below && guided <= largest + tolerance;
        println!(
            "{:>12} {guided:>10} {guided_looks:>6} {:>22} {exhaustive_looks:>6}  {}",
            budget.to_string(),
            format!("{all_below} – {largest}"),
            if agrees { "met" } else { "MISSED" }
        );
    }
    let small = runner.median_peak().await;
    let ballast = std::hint::black_box(vec![1_u8; LARGE_PARENT_BYTES]);
    let large = runner.median_peak().await;
    drop(ballast);
    println!(
        "peak read by a small parent {}, by one of 500 MiB more {}: ratio {:.4}",
        Bytes(small as u64),
        Bytes(large as u64),
        large / small
    );
    let _ = std::fs::remove_dir_all(folder);
}

impl Runner {
    fn new(folder: &Path) -> Self {
        // Children of root run as another user, who must be able to reach the program.
        std::fs::create_dir_all(folder).expect("a folder");
        let program = folder.join("trialhead");
        std::fs::copy(env!("CARGO_BIN_EXE_trialhead"), &program).expect("the program is copied");
        let backend = std::env::var("BENCH_BACKEND").unwrap_or_else(|_| "cpu".into());
        let backend: Backend = serde_json::from_value(json!(backend)).expect("a backend");
        Self {
            backend,
            spawner: Spawner::new().expect("a spawner"),
            config: ChildConfig {
                command: Some(vec![program.display().to_string(), "probe".into()]),
                // The first of its backend.
                gpu: backend.is_gpu().then(|| ChosenGpu {
                    backend,
                    hardware: String::new(),
                    cache_dir: None,
                    host_memory_bytes: None,
                }),
                ..ChildConfig::default()
            },
            children: 0,
        }
    }

    async fn look(&mut self, batch_size: u64, limit: Bytes) -> Seen {
        let spec: ProbeSpec = serde_json::from_value(json!({
            "protocol": 1,
            "task": {"kind": "memory", "steps": STEPS},
            "workload": {
                "dataset": {"builtin": "synthetic", "examples": 4096, "features": 64, "classes": 10, "seed": 1},
                "model": {"family": "mlp", "hidden": [64], "activation": "relu", "dropout": 0.0},
                "loss": "cross_entropy"
            },
            "optimizer": {"family": "sgd_nesterov", "learning_rate": 0.001, "momentum": 0.9},
            "device": {"backend": self.backend, "model": "this one", "threads": 2},
            "batch_size": batch_size, "replicate": 0, "seed": 1,
            "limits": {"memory_bytes": limit.0, "wall_secs": 600.0}
        }))
        .expect("a spec");
        let (_control, control) = watch::channel(None);
        let (progress, _progress) = watch::channel(None);
        let report = child::run(&self.spawner, &self.config, &spec, None, control, &progress).await;
        self.children += 1;
        match report.outcome {
            Outcome::Succeeded => report
                .measurements
                .iter()
                .find(|it| it.metric == Metric::PeakMemory.as_str())
                .map_or(Seen::Nothing, |it| Seen::Peak(it.value)),
            Outcome::Infeasible {
                reason: InfeasibleReason::OutOfMemory,
                ..
            } => Seen::OutOfMemory,
            other => panic!("batch size {batch_size}: {other:?}\n{}", report.stderr_tail),
        }
    }

    async fn guided(&mut self, budget: Bytes) -> (u64, usize) {
        let search = Search {
            multiple_of: 1,
            min: BatchSize(1),
            max: BatchSize(MAX_BATCH_SIZE),
            max_from: MaxFrom::Range,
            usable_bytes: budget.as_f64() - reserve(budget).as_f64(),
            resolution: Resolution::OneThirtySecond,
            grid: Vec::new(),
        };
        let mut seen = Vec::new();
        loop {
            match search.next(&seen) {
                SearchStep::Probe(size) => {
                    let sight = self.look(size.0, budget).await;
                    seen.push((size, sight));
                }
                SearchStep::Done(end) => return (end.largest.map_or(0, |it| it.0), seen.len()),
            }
        }
    }

    /// Whether a batch size leaves the reserve free.
    async fn fits(&mut self, batch_size: u64, budget: Bytes) -> bool {
        let usable = budget.as_f64() - reserve(budget).as_f64();
        matches!(self.look(batch_size, budget).await, Seen::Peak(peak) if peak <= usable)
    }

    /// The largest batch size below which everything fits, and the largest that fits at all: where
    /// the heap fragments differently from run to run, these differ.
    async fn exhaustive(&mut self, budget: Bytes) -> (u64, u64, usize) {
        let before = self.children;
        let mut octave = 1;
        while octave < MAX_BATCH_SIZE && self.fits(2 * octave, budget).await {
            octave *= 2;
        }
        let step = (octave / 32).max(1);
        let (mut all_below, mut largest, mut unfit) = (octave, octave, 0);
        let mut next = octave + step;
        while next < 2 * octave && unfit < UNFIT_IN_A_ROW {
            if self.fits(next, budget).await {
                largest = next;
                if all_below == next - step {
                    all_below = next;
                }
                unfit = 0;
            } else {
                unfit += 1;
            }
            next += step;
        }
        (all_below, largest, self.children - before)
    }

    async fn median_peak(&mut self) -> f64 {
        let mut peaks = Vec::new();
        for _ in 0..PARENT_RUNS {
            if let Seen::Peak(peak) = self.look(4096, Bytes(1 << 30)).await {
                peaks.push(peak);
            }
        }
        peaks.sort_by(f64::total_cmp);
        peaks[peaks.len() / 2]
    }
}
