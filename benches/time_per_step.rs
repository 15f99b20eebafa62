//! Time per step as the service measures it against the same loop in a bare burn program.
//!
//! Both run in processes of their own, in alternating pairs, so that a slow minute of the host hits
//! both. The service's side is the real child, `trialhead probe`. The bare side is this program
//! again with [`BARE`] set: nothing of the library, just burn. The goal is a ratio of 1.00 ± 0.03;
//! the absolute times are reported, not judged.
//!
//! Two things that have nothing to do with burn decide such short steps, so the bare process has them
//! as the child has: the C library's allocator keeps freed memory, and the loop runs on a thread of the
//! pool, so that no more threads are awake than there are processors. What the same loop needs on the
//! main thread with glibc's defaults is shown beside it, and judged by nobody: it is what a team can
//! gain.
//!
//! `cargo bench --profile release --bench time_per_step [-- PAIRS]`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Instant;

use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, SgdConfig, momentum::MomentumConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use serde_json::json;

/// Set to `batch size,hidden units` in the child that is the bare program.
const BARE: &str = "TIME_PER_STEP_BARE";

const FEATURES: usize = 64;
const CLASSES: usize = 10;
const EXAMPLES: usize = 1437;
const THREADS: usize = 2;
const SAMPLING_SECS: f64 = 1.0;
const GOAL: f64 = 0.03;

/// What the child asks of glibc's allocator.
const KEEP_FREED_MEMORY: [(&str, &str); 2] = [
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "-1"),
];

fn main() {
    if let Ok(case) = std::env::var(BARE) {
        let (batch_size, hidden) = case.split_once(',').expect("two numbers");
        let (batch_size, hidden) = (
            batch_size.parse().expect("a number"),
            hidden.parse().expect("a number"),
        );
        rayon::ThreadPoolBuilder::new()
            .num_threads(THREADS)
            .build_global()
            .expect("the first pool");
        let time_per_step = if std::env::var_os(KEEP_FREED_MEMORY[0].0).is_some() {
            rayon::scope(|_| bare(batch_size, hidden))
        } else {
            bare(batch_size, hidden)
        };
        println!("{time_per_step}");
        return;
    }
    let pairs = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(15);
    println!("{pairs} pairs; ratio = trialhead probe / bare burn; the goal is 1.00 ± {GOAL}");
    println!(
        "{:>6} {:>6} {:>12} {:>12} {:>7} {:>15}  {:<6} {:>16}",
        "hidden", "batch", "probe", "bare", "ratio", "range", "goal", "as it comes"
    );
    for (batch_size, hidden) in [(16, 64), (64, 64), (256, 64), (1024, 64), (256, 512)] {
        let mut probe_times = Vec::new();
        let mut bare_times = Vec::new();
        let mut default_times = Vec::new();
        let mut ratios = Vec::new();
        for pair in 0..pairs {
            // Who goes first alternates too.
            let (probe, bare) = if pair % 2 == 0 {
                let probe = probe_child(batch_size, hidden);
                (probe, bare_child(batch_size, hidden, &KEEP_FREED_MEMORY))
            } else {
                let bare = bare_child(batch_size, hidden, &KEEP_FREED_MEMORY);
                (probe_child(batch_size, hidden), bare)
            };
            ratios.push(probe / bare);
            probe_times.push(probe);
            bare_times.push(bare);
            if pair % 3 == 0 {
                default_times.push(bare_child(batch_size, hidden, &[]));
            }
        }
        let ratio = median(&mut ratios);
        println!(
            "{hidden:>6} {batch_size:>6} {:>9.1} µs {:>9.1} µs {ratio:>7.3} {:>7.3} – {:<6.3} {:<6} {:>13.1} µs",
            median(&mut probe_times) * 1e6,
            median(&mut bare_times) * 1e6,
            ratios[0],
            ratios[ratios.len() - 1],
            if (ratio - 1.0).abs() <= GOAL {
                "met"
            } else {
                "MISSED"
            },
            median(&mut default_times) * 1e6,
        );
    }
}

/// Sorts, and gives the middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn probe_child(batch_size: usize, hidden: usize) -> f64 {
    let spec = json!({
        "protocol": 1,
        "task": {
            "kind": "step_time", "warm_up_steps": 5, "warm_up_secs": 0.5, "block_secs": 0.02,
            "first_look_blocks": 50, "growth": 1.25, "max_blocks": 3000,
            "max_secs": SAMPLING_SECS, "min_steps": 20, "median_half_width": 0.02,
            "mean_half_width": 0.05, "drift": 0.015, "canary_secs": 0.3
        },
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [hidden], "activation": "relu", "dropout": 0.0},
            "loss": "cross_entropy"
        },
        "optimizer": {"family": "sgd_nesterov", "learning_rate": 0.01, "momentum": 0.9},
        "device": {"backend": "cpu", "model": "this one", "threads": THREADS},
        "batch_size": batch_size, "replicate": 0, "seed": 1,
        "limits": {"memory_bytes": 1_u64 << 33, "wall_secs": 600.0}
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_trialhead"))
        .arg("probe")
        .env_remove("TRIALHEAD_EVENTS_FD")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the probe starts");
    let mut stdin = child.stdin.take().expect("is piped");
    stdin
        .write_all(spec.to_string().as_bytes())
        .expect("the probe reads its spec");
    drop(stdin);
    let output = child.wait_with_output().expect("the probe ends");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|event| event["metric"] == "time_per_step_median")
        .and_then(|event| event["value"].as_f64())
        .expect("the probe measured")
}

fn bare_child(batch_size: usize, hidden: usize, allocator: &[(&str, &str)]) -> f64 {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .env(BARE, format!("{batch_size},{hidden}"))
        .envs(allocator.iter().copied())
        .output()
        .expect("the bare program starts");
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("the bare program measured")
}

#[derive(Module, Debug)]
struct Net {
    first: Linear,
    second: Linear,
}

fn linear(inputs: usize, outputs: usize, device: &Device) -> Linear {
    let deviation = (1.0 / inputs as f64).sqrt();
    Linear {
        weight: Param::from_tensor(Tensor::random(
            [inputs, outputs],
            Distribution::Normal(0.0, deviation),
            device,
        )),
        bias: Some(Param::from_tensor(Tensor::zeros([outputs], device))),
    }
}

/// The loop that anybody would write: batches of examples in memory, forward, backward, update. It
/// times blocks of 20 ms for as long as the probe may and gives the median time per step.
fn bare(batch_size: usize, hidden: usize) -> f64 {
    let device = Device::flex().autodiff();
    device.seed(1);
    let mut net = Net {
        first: linear(FEATURES, hidden, &device),
        second: linear(hidden, CLASSES, &device),
    };
    let mut optimizer = SgdConfig::new()
        .with_momentum(Some(
            MomentumConfig::new()
                .with_momentum(0.9)
                .with_dampening(0.0)
                .with_nesterov(true),
        ))
        .init();
    let loss = CrossEntropyLossConfig::new().init(&device);
    let examples: Vec<f32> = (0..EXAMPLES * FEATURES)
        .map(|index| (index * 7919 % 1000) as f32 / 500.0 - 1.0)
        .collect();
    let mut position = 0;
    let mut step = || {
        let mut features = Vec::with_capacity(batch_size * FEATURES);
        let mut labels = Vec::with_capacity(batch_size);
        for _ in 0..batch_size {
            let example = position * 769 % EXAMPLES;
            features.extend_from_slice(&examples[example * FEATURES..(example + 1) * FEATURES]);
            labels.push((example % CLASSES) as i64);
            position += 1;
        }
        let x = Tensor::<2>::from_data(TensorData::new(features, [batch_size, FEATURES]), &device);
        let y = Tensor::<1, Int>::from_data(TensorData::new(labels, [batch_size]), &device);
        let loss = loss.forward(net.second.forward(relu(net.first.forward(x))), y);
        let gradients = GradientsParams::from_grads(loss.backward(), &net);
        net = optimizer.step(0.01, net.clone(), gradients);
    };
    let warm_up = Instant::now();
    let mut steps = 0;
    while warm_up.elapsed().as_secs_f64() < 0.5 || steps < 5 {
        step();
        steps += 1;
    }
    let rough = warm_up.elapsed().as_secs_f64() / f64::from(steps);
    let steps_per_block = ((0.02 / rough).ceil() as u32).max(1);
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed().as_secs_f64() < SAMPLING_SECS {
        let before = Instant::now();
        for _ in 0..steps_per_block {
            step();
        }
        device.sync().expect("the device works");
        times.push(before.elapsed().as_secs_f64() / f64::from(steps_per_block));
    }
    median(&mut times)
}
