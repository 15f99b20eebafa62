//! Listeners of one study's events: how long an event takes to reach the last of 500 against the last of 5, in turns on one
//! service, and what memory of the service each listener takes. Goals: at most 5 times, and less than 64 KiB.
//!
//! `cargo bench --profile release --bench listeners`

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../tests/support/queue.rs"]
mod queue;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use reqwest::{Client, Response};
use serde_json::{Value, json};

const FEW: usize = 5;
const MANY: usize = 500;
/// For their memory; the service is told to allow so many.
const MORE: usize = 3000;
const TURNS: usize = 15;
/// Whose memory is looked at.
const SERVICES: usize = 3;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (folder, postgres, database) = queue::database_of_its_own().await;
    let http = Client::new();
    // Memory in services of their own, since what one has once taken it keeps; and from many listeners to more, since the
    // first ones live in what was freed after the start.
    let mut memory = Vec::new();
    for _ in 0..SERVICES {
        let service = Served::start(&postgres.url(), &folder);
        service.is_ready(&http).await;
        let (_, with_many) = service.turn(&http, MANY).await;
        let (_, with_more) = service.turn(&http, MORE).await;
        memory.push((with_more - with_many) / (MORE - MANY) as f64 / 1024.0);
    }
    let service = Served::start(&postgres.url(), &folder);
    service.is_ready(&http).await;
    // The first of everything is slower.
    service.turn(&http, MANY).await;

    let mut times: [Vec<f64>; 2] = Default::default();
    let mut ratios = Vec::new();
    for turn in 0..TURNS {
        let (few, _) = service.turn(&http, FEW).await;
        let (many, _) = service.turn(&http, MANY).await;
        println!(
            "turn {turn}: the last of {FEW} after {:.1} ms, of {MANY} after {:.1} ms",
            few * 1e3,
            many * 1e3
        );
        times[0].push(few);
        times[1].push(many);
        ratios.push(many / few);
    }
    let [few, many] = &mut times;
    println!(
        "an event reaches the last of {FEW} listeners in {:.1} ms, of {MANY} in {:.1} ms (medians of {TURNS} turns)",
        median(few) * 1e3,
        median(many) * 1e3
    );
    println!(
        "{MANY} listeners against {FEW}: median {:.2} ({:.2} to {:.2}); goal at most 5",
        median(&mut ratios),
        ratios[0],
        ratios[TURNS - 1]
    );
    println!(
        "memory a listener: median {:.1} KiB ({:.1} to {:.1}) of {SERVICES} services; goal below 64",
        median(&mut memory),
        memory[0],
        memory[SERVICES - 1]
    );
    drop(service);
    database.close();
    postgres.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

/// Sorts as well.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A running `trialhead serve`, a process of its own so that its memory is its own; killed when dropped.
struct Served {
    child: Child,
    base: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Served {
    fn start(database: &str, folder: &std::path::Path) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = free.local_addr().expect("its number").to_string();
        drop(free);
        let log = std::fs::File::create(folder.join("service.log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_trialhead"))
            .args(["serve", "--workers", "0", "--listen", &address])
            .env("DATABASE_URL", database)
            .env("TRIALHEAD_DATA_DIR", folder.join("served"))
            .env("TRIALHEAD_API__REQUESTS_PER_SEC", "0")
            .env("TRIALHEAD_API__MAX_LISTENERS", MORE.to_string())
            .env("TRIALHEAD_API__MAX_CONNECTIONS", (2 * MORE).to_string())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("starts");
        let base = format!("http://{address}");
        Self { child, base }
    }

    async fn is_ready(&self, http: &Client) {
        let began = Instant::now();
        loop {
            let answer = http.get(format!("{}/readyz", self.base)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "see service.log");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// So many listen to a study; it is cancelled. Seconds until the last has heard of it, and the bytes of memory that
    /// the service had while all of them listened.
    async fn turn(&self, http: &Client, listeners: usize) -> (f64, f64) {
        let body = json!({
            "workload": {"dataset": {"builtin": "digits"}},
            "device": {"model": "none here", "threads": 1, "memory_budget_bytes": 1 << 30},
            "seed": rand::random::<u32>()
        });
        let url = format!("{}/v1/studies", self.base);
        let answer = http.post(url).json(&body).send().await.expect("an answer");
        assert!(answer.status().is_success(), "{}", answer.status());
        let study: Value = answer.json().await.expect("a study");
        let study = format!(
            "{}/v1/studies/{}",
            self.base,
            study["id"].as_str().expect("an id")
        );
        let streams = (0..listeners).map(async |_| {
            let stream = http.get(format!("{study}/events")).send().await;
            let mut stream = stream.expect("an answer");
            assert!(stream.status().is_success(), "{}", stream.status());
            // What was there already.
            hear(&mut stream, "event: study").await;
            stream
        });
        let mut streams = futures::future::join_all(streams).await;
        let memory = self.memory();
        let began = Instant::now();
        let heard = streams.iter_mut().map(async |stream| {
            hear(stream, "\"cancelled\"").await;
        });
        let cancelled = async {
            let answer = http.post(format!("{study}/cancel")).send().await;
            let status = answer.expect("an answer").status();
            assert!(status.is_success(), "{status}");
        };
        futures::join!(cancelled, futures::future::join_all(heard));
        (began.elapsed().as_secs_f64(), memory)
    }

    /// Resident memory, bytes.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("it runs");
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| {
                rest.trim()
                    .trim_end_matches("kB")
                    .trim()
                    .parse::<f64>()
                    .ok()
            });
        kib.expect("its memory") * 1024.0
    }
}

/// Reads a stream until it has said something.
async fn hear(stream: &mut Response, what: &str) {
    let mut text = String::new();
    while !text.contains(what) {
        let chunk = stream.chunk().await.expect("goes on");
        text.push_str(&String::from_utf8_lossy(&chunk.expect("has not ended")));
    }
}
