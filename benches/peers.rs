//! Against peers, on one durable local Postgres, in turns: creating studies against MLflow's `log-metric`, measurements sent
//! with heartbeats against its `log-batch` and against COPY into the same table, claims and completions against Optuna's
//! ask and tell. Goals: ten times MLflow's and Optuna's rates, a quarter of COPY's.
//!
//! `cargo bench --profile release --bench peers`
//!
//! Installs MLflow and Optuna (benches/peers/requirements.txt) into a virtual environment under ~/.cache/trialhead.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../tests/support/queue.rs"]
mod queue;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::SinkExt;
use reqwest::Client;
use serde_json::{Value, json};
use tokio_postgres::NoTls;
use trialhead::probe::Task;
use trialhead::service::Service;
use uuid::Uuid;

const TURNS: usize = 5;
const AT_ONCE: usize = 8;
/// For what is stored together when it comes together.
const MANY_AT_ONCE: usize = 32;
/// Whose probes are claimed, in turns.
const STUDIES: u32 = 4;
const LONG: Duration = Duration::from_secs(6);
/// Measurements of a heartbeat, metrics of a `log-batch` (which takes no more).
const BATCH: u64 = 1000;

fn main() {
    let python = python();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run(&python));
}

/// The Python that has the peers.
fn python() -> PathBuf {
    let home = std::env::var("HOME").expect("a home folder");
    let environment = Path::new(&home).join(".cache/trialhead/peers");
    let python = environment.join("bin/python");
    if !python.exists() {
        succeed(
            Command::new("python3")
                .args(["-m", "venv"])
                .arg(&environment),
        );
    }
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/requirements.txt");
    succeed(
        Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements),
    );
    python
}

fn succeed(command: &mut Command) {
    let status = command.status().expect("runs");
    assert!(status.success(), "{command:?}: {status}");
}

async fn run(python: &Path) {
    let (folder, postgres, database) = queue::database_of_its_own().await;
    let mut settings = queue::settings_of_its_own(&folder, &postgres);
    settings.api.requests_per_sec = 0.0;
    settings.api.max_active_studies = u64::from(u32::MAX);
    settings.pool.max_events = usize::MAX;
    let service = Service::start(settings).await.expect("serves");
    let base = format!("http://{}", service.address);
    let (client, connection) = tokio_postgres::connect(&postgres.url(), NoTls)
        .await
        .expect("connects");
    tokio::spawn(connection);
    for peer in ["mlflow", "optuna"] {
        let create = format!("CREATE DATABASE {peer}");
        client.batch_execute(&create).await.expect("created");
    }
    let url_of = |name: &str| {
        format!(
            "postgresql+psycopg2://trialhead@/{name}?host={}",
            postgres.socket_directory().display()
        )
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let http = Client::new();
    let mlflow = MlFlow::start(python, &url_of("mlflow"), &folder, &http).await;

    // Neither is timed cold.
    mlflow.log_metric(AT_ONCE).await;
    create_studies(&base, AT_ONCE).await;
    let mut ratios: [Vec<f64>; 6] = Default::default();
    for turn in 0..TURNS {
        put_away(&client).await;
        // Millions of rows were written since the last turn: what is to be done for that is not done while others are timed.
        for name in ["trialhead", "mlflow", "optuna"] {
            vacuum(&postgres.url_of(name)).await;
        }
        let (mut most_created, mut most_logged) = (0.0_f64, 0.0_f64);
        let mut creations = Vec::new();
        for at_once in [AT_ONCE, MANY_AT_ONCE] {
            let metrics = mlflow.log_metric(at_once).await;
            let created = create_studies(&base, at_once).await;
            put_away(&client).await;
            println!(
                "turn {turn}: {at_once} at once: studies created {created:.0}/s, MLflow log-metric {metrics:.0}/s"
            );
            creations.push(created / metrics);
            most_created = most_created.max(created);
            most_logged = most_logged.max(metrics);
        }
        let batched = mlflow.log_batch().await;
        let copied = copy(&database, &postgres.url()).await;
        let sent = heartbeats(&http, &base, &database).await;
        println!(
            "turn {turn}: measurements sent {sent:.0}/s, MLflow log-batch {batched:.0}/s, COPY {copied:.0}/s"
        );
        let (one, several) = (
            ask_and_tell(python, &url_of("optuna"), 1),
            ask_and_tell(python, &url_of("optuna"), AT_ONCE),
        );
        let claimed = claims(&base, &database).await;
        println!(
            "turn {turn}: claims and completions {claimed:.0}/s, Optuna {several:.0}/s in {AT_ONCE} processes, {one:.0}/s in one"
        );
        for (ratios, ratio) in ratios.iter_mut().zip([
            most_created / most_logged,
            creations[0],
            creations[1],
            sent / batched,
            sent / copied,
            claimed / several.max(one),
        ]) {
            ratios.push(ratio);
        }
    }
    for (ratios, (what, goal)) in ratios.iter_mut().zip([
        (
            "studies created against MLflow's log-metric, each at the better of 8 and 32 at once",
            10.0,
        ),
        ("the same, both with 8 at once", 10.0),
        ("the same, both with 32 at once", 10.0),
        ("measurements sent against MLflow's log-batch", 10.0),
        ("measurements sent against COPY", 0.25),
        ("claims and completions against Optuna's ask and tell", 10.0),
    ]) {
        ratios.sort_by(f64::total_cmp);
        println!(
            "{what}: median {:.2} ({:.2} to {:.2}) of {TURNS} turns; goal at least {goal}",
            ratios[TURNS / 2],
            ratios[0],
            ratios[TURNS - 1]
        );
    }
    drop(mlflow);
    service.stop().await;
    database.close();
    postgres.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

/// Thousands of studies that wait for a device or a worker are no part of what comes next.
async fn put_away(client: &tokio_postgres::Client) {
    client
        .batch_execute(
            // A plan kept from when there were no measurements would walk through millions for each probe.
            "SET plan_cache_mode = force_custom_plan; \
             DELETE FROM studies WHERE state IN ('queued', 'running'); \
             DELETE FROM probes p WHERE NOT EXISTS (SELECT 1 FROM study_probes sp WHERE sp.probe = p.id)",
        )
        .await
        .expect("put away");
}

async fn vacuum(url: &str) {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
    tokio::spawn(connection);
    client
        .batch_execute("VACUUM (ANALYZE)")
        .await
        .expect("vacuumed");
}

/// How much is done in a second by several at once; `one` says how much each time did. They have a thread of their own, where none
/// of them wakes another thread: what they cost is not to be measured.
async fn rate<F: Future<Output = u64>>(
    at_once: usize,
    one: impl Fn(Client, usize, u64) -> F + Clone + Send + 'static,
) -> f64 {
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let (http, began) = (Client::new(), Instant::now());
            let tasks = (0..at_once).map(|number| {
                let (one, http) = (one.clone(), http.clone());
                async move {
                    let (mut turn, mut done) = (0, 0);
                    while began.elapsed() < LONG {
                        done += one(http.clone(), number, turn).await;
                        turn += 1;
                    }
                    done
                }
            });
            let done: Vec<u64> = futures::future::join_all(tasks).await;
            done.iter().sum::<u64>() as f64 / began.elapsed().as_secs_f64()
        })
    };
    tokio::task::spawn_blocking(work).await.expect("a rate")
}

/// What is told is read by whoever needs it.
async fn post(http: &Client, url: &str, body: &Value) -> String {
    let answer = http.post(url).json(body).send().await.expect("an answer");
    let status = answer.status();
    let text = answer.text().await.expect("a body");
    assert!(status.is_success(), "{url}: {status} {text}");
    text
}

async fn post_for(http: &Client, url: &str, body: &Value) -> Value {
    serde_json::from_str(&post(http, url, body).await).expect("JSON")
}

/// A running `mlflow server`; ended when dropped.
struct MlFlow {
    child: Child,
    base: String,
    run: String,
}

impl Drop for MlFlow {
    fn drop(&mut self) {
        let group = nix::unistd::Pid::from_raw(-i32::try_from(self.child.id()).expect("a pid"));
        let _ = nix::sys::signal::kill(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl MlFlow {
    async fn start(python: &Path, url: &str, folder: &Path, http: &Client) -> Self {
        use std::os::unix::process::CommandExt;
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("its number").port().to_string();
        drop(free);
        let log = std::fs::File::create(folder.join("mlflow.log")).expect("a log");
        let child = Command::new(python)
            .args(["-m", "mlflow", "server", "--host", "127.0.0.1", "--port"])
            .args([&port, "--backend-store-uri", url])
            .arg("--default-artifact-root")
            .arg(folder.join("artifacts"))
            .stdout(Stdio::null())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("starts");
        let base = format!("http://127.0.0.1:{port}/api/2.0/mlflow");
        let began = Instant::now();
        while http
            .get(format!("http://127.0.0.1:{port}/health"))
            .send()
            .await
            .is_err()
        {
            assert!(began.elapsed() < Duration::from_secs(180), "see mlflow.log");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let experiment = post_for(
            http,
            &format!("{base}/experiments/create"),
            &json!({"name": "bench"}),
        )
        .await;
        let run = json!({"experiment_id": experiment["experiment_id"], "start_time": 0});
        let run = post_for(http, &format!("{base}/runs/create"), &run).await;
        let run = run["run"]["info"]["run_id"]
            .as_str()
            .expect("an id")
            .to_owned();
        Self { child, base, run }
    }

    async fn log_metric(&self, at_once: usize) -> f64 {
        let (url, run) = (format!("{}/runs/log-metric", self.base), self.run.clone());
        rate(at_once, move |http, number, turn| {
            let url = url.clone();
            let body = json!({"run_id": run, "key": format!("m{number}"), "value": 0.5, "timestamp": turn, "step": turn});
            async move {
                post(&http, &url, &body).await;
                1
            }
        })
        .await
    }

    async fn log_batch(&self) -> f64 {
        let (url, run) = (format!("{}/runs/log-batch", self.base), self.run.clone());
        // Under other names than before: MLflow refuses a row that it has, and then writes all of them one by one.
        let turns = Uuid::now_v7();
        rate(AT_ONCE, move |http, number, turn| {
            let url = url.clone();
            let key = format!("{turns} {number}");
            let metrics: Vec<Value> = (0..BATCH)
                .map(|row| json!({"key": key, "value": 0.5, "timestamp": turn, "step": turn * BATCH + row}))
                .collect();
            let body = json!({"run_id": run, "metrics": metrics});
            async move {
                post(&http, &url, &body).await;
                BATCH
            }
        })
        .await
    }
}

async fn create_studies(base: &str, at_once: usize) -> f64 {
    let url = format!("{base}/v1/studies");
    let body = json!({
        "workload": {"dataset": {"builtin": "digits"}},
        "device": {"model": "none here", "threads": 1, "memory_budget_bytes": 1 << 30}
    });
    rate(at_once, move |http, _, _| {
        let (url, mut body) = (url.clone(), body.clone());
        // Different ones: equal studies share their probes, and wait for each other's.
        body["seed"] = json!(rand::random::<u32>());
        async move {
            post(&http, &url, &body).await;
            1
        }
    })
    .await
}

fn claim_of(number: usize) -> Value {
    json!({
        "lease_id": Uuid::now_v7(),
        "worker": format!("worker {number}"),
        "protocol": trialhead::probe::PROTOCOL,
        "device": {
            "host": format!("host {number}"), "hardware": "cpu", "backend": "cpu", "model": queue::MODEL,
            "threads": 2, "memory_bytes": 1_u64 << 33, "available_bytes": 1_u64 << 33, "slots": 1
        },
        "runners": ["burn"],
        "wait_secs": 20.0
    })
}

/// A probe that was claimed.
#[derive(serde::Deserialize)]
struct Claimed {
    probe_id: Uuid,
    attempt: i32,
}

/// Claims a probe; its lease, and what later requests must name.
async fn claim(http: &Client, base: &str, number: usize) -> (String, Value) {
    let request = claim_of(number);
    let lease = request["lease_id"].as_str().expect("an id").to_owned();
    let claimed = post(http, &format!("{base}/v1/leases"), &request).await;
    let Claimed { probe_id, attempt } = serde_json::from_str(&claimed).expect("a probe");
    let probe = json!({"probe_id": probe_id, "attempt": attempt});
    (format!("{base}/v1/leases/{lease}"), probe)
}

fn measurement(seq: u64) -> Value {
    json!({"seq": seq, "metric": "block_time_per_step", "step": seq, "value": 0.5, "unit": "s", "elapsed_secs": 0.1})
}

fn completion(mut probe: Value) -> Value {
    probe["outcome"] = json!({"outcome": "succeeded"});
    probe["measurements"] = json!([{"seq": 0, "metric": "peak_memory", "value": 1.0, "unit": "bytes", "elapsed_secs": 0.1}]);
    probe["device_secs"] = json!(0.1);
    probe
}

async fn heartbeats(
    http: &Client,
    base: &str,
    database: &trialhead::store::connection::Database,
) -> f64 {
    queue::study(
        database,
        queue::MODEL,
        0,
        u32::try_from(AT_ONCE).expect("few"),
        |_| Task::Memory { steps: 1 },
    )
    .await;
    let mut leases = Vec::new();
    for number in 0..AT_ONCE {
        leases.push(claim(http, base, number).await);
    }
    let leases = Arc::new(leases);
    let beaten = Arc::clone(&leases);
    let sent = rate(AT_ONCE, move |http, number, turn| {
        let (lease, mut body) = beaten[number].clone();
        let rows: Vec<Value> = (0..BATCH)
            .map(|row| measurement(1 + turn * BATCH + row))
            .collect();
        body["measurements"] = json!(rows);
        async move {
            post(&http, &format!("{lease}/heartbeat"), &body).await;
            BATCH
        }
    })
    .await;
    for (lease, probe) in leases.iter() {
        post(
            http,
            &format!("{lease}/complete"),
            &completion(probe.clone()),
        )
        .await;
    }
    sent
}

/// The same rows by COPY, as many connections at once, each batch a transaction.
async fn copy(database: &trialhead::store::connection::Database, url: &str) -> f64 {
    let study = queue::study(
        database,
        queue::MODEL,
        0,
        u32::try_from(AT_ONCE).expect("few"),
        |_| Task::Memory { steps: 1 },
    )
    .await;
    let mut clients = Vec::new();
    for number in 0..AT_ONCE {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
        tokio::spawn(connection);
        let probe = format!(
            "SELECT probe::text FROM study_probes WHERE study = '{}' ORDER BY position OFFSET {number} LIMIT 1",
            study.0
        );
        let row = client.query_one(&probe, &[]).await.expect("a probe");
        clients.push((client, row.get::<_, String>(0)));
    }
    let clients = Arc::new(clients);
    let copying = Arc::clone(&clients);
    let copied = rate(AT_ONCE, move |_, number, turn| {
        let clients = Arc::clone(&copying);
        async move {
            let (client, probe) = &clients[number];
            let rows: String = (0..BATCH)
                .map(|row| {
                    let seq = turn * BATCH + row;
                    format!("{probe}\t1\t{seq}\tblock_time_per_step\t{seq}\t0.5\ts\t0.1\n")
                })
                .collect();
            let sink = client
                .copy_in("COPY measurements (probe, attempt, seq, metric, step, value, unit, elapsed_secs) FROM STDIN")
                .await
                .expect("begins");
            futures::pin_mut!(sink);
            sink.send(actix_web::web::Bytes::from(rows)).await.expect("sent");
            sink.finish().await.expect("copied");
            BATCH
        }
    })
    .await;
    let cancel = format!(
        "UPDATE probes SET state = 'cancelled', ended_at = now() WHERE id IN (SELECT probe FROM study_probes WHERE study = '{}')",
        study.0
    );
    clients[0].0.batch_execute(&cancel).await.expect("put away");
    copied
}

async fn claims(base: &str, database: &trialhead::store::connection::Database) -> f64 {
    for _ in 0..STUDIES {
        queue::study(database, queue::MODEL, 0, 1500, |_| Task::Memory {
            steps: 1,
        })
        .await;
    }
    let base = base.to_owned();
    rate(AT_ONCE, move |http, number, _| {
        let base = base.clone();
        async move {
            let (lease, probe) = claim(&http, &base, number).await;
            post(&http, &format!("{lease}/complete"), &completion(probe)).await;
            1
        }
    })
    .await
}

/// Trials a second.
fn ask_and_tell(python: &Path, url: &str, processes: usize) -> f64 {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/ask_and_tell.py");
    let output = Command::new(python)
        .arg(script)
        .args([url, &processes.to_string(), &LONG.as_secs().to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .expect("a rate")
}
