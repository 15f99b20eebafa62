//! What the input pipeline costs: steps on an uploaded, memory-mapped data set against the same steps on one
//! batch that was staged on the device before.
//!
//! Three runs of the real child, `trialhead probe`, in turn: the staged batch, one thread that gathers
//! batches ahead, and gathering when the step begins. The goal is a ratio of prefetching to staged of at
//! most 1.05; without prefetching it is reported, not judged.
//!
//! `cargo bench --profile release --bench input_pipeline [-- TURNS]`

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a benchmark reports on stdout and ends when something is wrong"
)]

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::libc;
use serde_json::{Value, json};
use trialhead::datasets::content::{Description, Header, Layout, Moments, Number, Scaling, finish};
use trialhead::datasets::inspect::INPUT_FD;
use trialhead::study::{Contents, Shape, Target};

const EXAMPLES: u64 = 20_000;
const VALIDATION: u64 = 1_000;
const THREADS: u32 = 2;
const BATCH_SIZE: u64 = 128;
const GOAL: f64 = 1.05;

fn main() {
    let turns = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(7);
    println!(
        "{turns} turns at batch size {BATCH_SIZE}; the goal of prefetching / staged is at most {GOAL}"
    );
    println!(
        "{:<22} {:>10} {:>18} {:>7} {:>15}  {:<6} {:>20}",
        "", "staged", "prefetching", "ratio", "range", "goal", "without prefetching"
    );
    let byte_images = images(3, 32, 10);
    let cases = [
        (
            "mlp 512, 3×32×32",
            json!({"family": "mlp", "hidden": [512]}),
            &byte_images,
        ),
        (
            "cnn 16-32, 3×32×32",
            json!({"family": "cnn", "channels": [16, 32]}),
            &byte_images,
        ),
    ];
    for (name, model, (file, contents)) in cases {
        let run = |threads: u32, synthetic: bool| {
            probe(file, &spec(&model, contents, threads, synthetic))
        };
        let (mut staged, mut ahead, mut without) = (Vec::new(), Vec::new(), Vec::new());
        let mut ratios = Vec::new();
        for _ in 0..turns {
            let without_pipeline = run(0, true);
            let prefetching = run(1, false);
            ratios.push(prefetching / without_pipeline);
            staged.push(without_pipeline);
            ahead.push(prefetching);
            without.push(run(0, false));
        }
        let ratio = median(&mut ratios);
        println!(
            "{name:<22} {:>7.2} ms {:>15.2} ms {ratio:>7.3} {:>7.3} – {:<6.3} {:<6} {:>17.2} ms",
            median(&mut staged) * 1e3,
            median(&mut ahead) * 1e3,
            ratios[0],
            ratios[ratios.len() - 1],
            if ratio <= GOAL { "met" } else { "MISSED" },
            median(&mut without) * 1e3,
        );
    }
}

/// Sorts, and gives the middle one.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A stored data set of images of bytes.
fn images(channels: u64, side: u64, classes: u64) -> (File, Contents) {
    let contents = Contents::Examples {
        input: Shape::Image {
            channels,
            height: side,
            width: side,
        },
        target: Target::Classes { count: classes },
        training_examples: EXAMPLES,
        validation_examples: VALIDATION,
    };
    let rows = EXAMPLES + VALIDATION;
    let numbers = rows * channels * side * side;
    let mut layout = Layout::default();
    let inputs = layout.block(Number::U8, numbers);
    let targets = layout.block(Number::U32, rows);
    let mut file = tempfile::tempfile().expect("a file");
    let pixels: Vec<u8> = (0..numbers)
        .map(|index| (index * 7919 % 251) as u8)
        .collect();
    file.write_all_at(&pixels, inputs.offset).expect("writes");
    let labels: Vec<u8> = (0..rows)
        .flat_map(|row| ((row % classes) as u32).to_le_bytes())
        .collect();
    file.write_all_at(&labels, targets.offset).expect("writes");
    let header = Header {
        contents,
        inputs,
        targets: Some(targets),
        scaling: Scaling {
            stride: side * side,
            groups: vec![
                Moments {
                    mean: 125.0,
                    deviation: 72.0,
                };
                channels as usize
            ],
        },
        description: Description::default(),
    };
    finish(&mut file, &layout, &header).expect("writes");
    (file, contents)
}

fn spec(model: &Value, contents: &Contents, threads: u32, synthetic: bool) -> Value {
    json!({
        "protocol": 1,
        "task": {
            "kind": "step_time", "warm_up_steps": 5, "warm_up_secs": 1.0, "block_secs": 0.05,
            "first_look_blocks": 50, "growth": 1.25, "max_blocks": 3000,
            "max_secs": 3.0, "min_steps": 20, "median_half_width": 0.01,
            "mean_half_width": 0.05, "drift": 0.015, "canary_secs": 0.0,
            "batches": if synthetic { "synthetic" } else { "loaded" }
        },
        "workload": {
            "dataset": {
                "id": "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33", "name": "images", "content": "", "contents": contents
            },
            "model": model,
            "loss": "cross_entropy",
            "input_pipeline": {"threads": threads, "prefetch_batches": 4}
        },
        "optimizer": {"family": "sgd_nesterov", "learning_rate": 0.001, "momentum": 0.9},
        "device": {"backend": "cpu", "model": "this one", "threads": THREADS},
        "batch_size": BATCH_SIZE, "replicate": 0, "seed": 1,
        "limits": {"memory_bytes": 1_u64 << 33, "wall_secs": 600.0}
    })
}

/// The median time per step that a probe measures.
fn probe(file: &File, spec: &Value) -> f64 {
    let descriptor = file.as_raw_fd();
    let mut command = Command::new(env!("CARGO_BIN_EXE_trialhead"));
    command
        .arg("probe")
        .env_remove("TRIALHEAD_EVENTS_FD")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    // SAFETY: between fork and exec only one async-signal-safe call is made.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(descriptor, INPUT_FD) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().expect("the probe starts");
    let mut stdin = child.stdin.take().expect("is piped");
    stdin
        .write_all(spec.to_string().as_bytes())
        .expect("the probe reads its spec");
    drop(stdin);
    let output = child.wait_with_output().expect("the probe ends");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|event| event["metric"] == "time_per_step_median")
        .and_then(|event| event["value"].as_f64())
        .unwrap_or_else(|| panic!("the probe measured nothing: {text}"))
}
