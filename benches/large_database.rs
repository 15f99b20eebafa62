//! Reading from a large database: pages of 50 among 100,000 studies against the same among 100, plain and deep in the list,
//! and full pages of 10 where they are filtered; and pages of the measurements of a study with 10 million against those of one
//! with 10,000. Two services on one Postgres, asked in turns. Goal: the 99th percentile at most twice as long.
//!
//! `cargo bench --profile release --bench large_database`

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

use std::time::Instant;

use serde_json::{Value, json};
use service::TestService;
use tokio_postgres::{Client, NoTls};

const FEW: i64 = 100;
const MANY: i64 = 100_000;
/// Probes of the study with few and with many measurements, and measurements of each.
const PROBES: [i64; 2] = [10, 10_000];
const MEASUREMENTS: i64 = 1000;
const REQUESTS: usize = 500;
/// As the service keeps it of a study without probes.
const NOTHING_COUNTED: &str = r#"{"probes": {"queued": 0, "running": 0, "succeeded": 0, "infeasible": 0, "failed": 0, "cancelled": 0}, "device_secs": 0.0}"#;

#[tokio::main]
async fn main() {
    let began = Instant::now();
    // Every tenth of the few has the label that every hundredth of the many has: enough for a page of it.
    let small = Filled::new(FEW, 10, PROBES[0]).await;
    let large = Filled::new(MANY, 100, PROBES[1]).await;
    println!("filled in {:.0} s", began.elapsed().as_secs_f64());
    for (what, [few, many]) in pages(&small, &large).await {
        let [few, many] = timed([(&small, few.as_str()), (&large, many.as_str())]).await;
        println!(
            "{what}: median {:.2} ms against {:.2} ms, ratio {:.2}; 99% {:.2} ms against {:.2} ms, ratio {:.2} (goal at most 2)",
            many.median * 1e3,
            few.median * 1e3,
            many.median / few.median,
            many.p99 * 1e3,
            few.p99 * 1e3,
            many.p99 / few.p99
        );
    }
}

/// A service with a database that has so much in it.
struct Filled {
    service: TestService,
    /// The study that has measurements.
    measured: String,
}

impl Filled {
    async fn new(studies: i64, rare_every: i64, probes: i64) -> Self {
        let service = TestService::start(|settings| {
            settings.workers = 0;
            settings.api.requests_per_sec = 0.0;
        })
        .await;
        let (client, connection) = tokio_postgres::connect(service.database.url(), NoTls)
            .await
            .expect("connects");
        tokio::spawn(connection);
        let seed = service
            .create(&json!({
                "name": "seed",
                "workload": {"dataset": {"builtin": "digits"}},
                "device": {"model": "none here", "threads": 2, "memory_budget_bytes": 1_073_741_824_u64}
            }))
            .await;
        let seed = seed.rsplit('/').next().expect("an id").to_owned();
        add_studies(&client, &seed, studies, rare_every).await;
        let measured = study_with_measurements(&client, &seed, probes).await;
        // The service counts the probes of a study once, when it has ended.
        until_counted(&client, &measured).await;
        for tidy in ["VACUUM ANALYZE", "CHECKPOINT"] {
            client.batch_execute(tidy).await.expect("tidied");
        }
        Self { service, measured }
    }

    /// The path of the page so many pages after this one.
    async fn deep(&self, path: &str, pages: usize) -> String {
        let mut deep = path.to_owned();
        for _ in 0..pages {
            let page: Value = self.service.get(&deep).await.json();
            let token = page["next_page_token"].as_str().expect("more");
            deep = format!("{path}&page_token={token}");
        }
        deep
    }
}

async fn until_counted(client: &Client, study: &str) {
    let counted = format!("SELECT counted_revision = revision FROM studies WHERE id = '{study}'");
    while !client
        .query_one(&counted, &[])
        .await
        .expect("read")
        .get::<_, Option<bool>>(0)
        .unwrap_or(false)
    {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
}

struct Timed {
    median: f64,
    p99: f64,
}

/// Studies like the first, of three states and four workloads, some with a label that is rare.
async fn add_studies(client: &Client, seed: &str, count: i64, rare_every: i64) {
    client
        .batch_execute(&format!(
            "CREATE TEMP TABLE made AS SELECT n, encode(int8send((extract(epoch FROM now()) * 1000)::bigint - 10000000 + n), 'hex') AS time \
               FROM generate_series(1, {count}) n; \
             INSERT INTO studies (id, project, name, labels, workload, state, ended_because, ended_at, phase, counted, counted_revision, analysis) \
               SELECT (substr(time, 5, 12) || '7' || substr(md5(n::text || '{count}'), 1, 3) || '8' || substr(md5(n::text || 'b{count}'), 1, 15))::uuid, \
                 'default', 'study ' || n, jsonb_build_object('team', 'team ' || n % 7, 'rare', CASE WHEN n % {rare_every} = 0 THEN 'yes' ELSE 'no' END), \
                 'digits/' || (ARRAY['mlp', 'cnn', 'rnn', 'resnet'])[1 + n % 4], \
                 (ARRAY['succeeded', 'failed', 'cancelled'])[1 + n % 3], 'answered', now(), '', counted, 1, analysis \
               FROM made, (SELECT analysis, '{NOTHING_COUNTED}'::jsonb AS counted FROM studies WHERE id = '{seed}') s; \
             INSERT INTO study_revisions (study, revision, definition) \
               SELECT s.id, 1, r.definition FROM studies s, study_revisions r \
               WHERE r.study = '{seed}' AND r.revision = 1 AND s.name LIKE 'study %' \
               ON CONFLICT DO NOTHING; \
             DROP TABLE made; ANALYZE studies; ANALYZE study_revisions;"
        ))
        .await
        .expect("filled");
}

/// A study with so many probes and a thousand measurements of each; its id.
async fn study_with_measurements(client: &Client, seed: &str, probes: i64) -> String {
    let study = uuid::Uuid::now_v7();
    client
        .batch_execute(&format!(
            "INSERT INTO studies (id, name, workload, state, ended_because, ended_at) \
               VALUES ('{study}', 'measured', 'digits/mlp', 'succeeded', 'answered', now()); \
             INSERT INTO study_revisions (study, revision, definition) \
               SELECT '{study}', 1, definition FROM study_revisions WHERE study = '{seed}' AND revision = 1; \
             CREATE TEMP TABLE made AS SELECT gen_random_uuid() AS id, n, p.* FROM \
               (SELECT q.spec, q.backend, q.device_model FROM study_probes sp JOIN probes q ON q.id = sp.probe \
                WHERE sp.study = '{seed}' LIMIT 1) p, generate_series(1, {probes}) n; \
             INSERT INTO probes (id, identity, kind, batch_size, backend, device_model, exclusive, spec, state, attempt, device_secs, ended_at) \
               SELECT id, id::text, 'step_time', 16, backend, device_model, true, spec, 'succeeded', 1, 0.1, now() FROM made; \
             INSERT INTO study_probes (study, revision, probe, wave, position, reused, why, open) \
               SELECT '{study}', 1, id, 1 + n / 100, n, false, 'made by a bench', false FROM made; \
             INSERT INTO measurements (probe, attempt, seq, metric, step, value, unit, elapsed_secs) \
               SELECT id, 1, m, CASE m % 10 WHEN 0 THEN 'time_per_step_median' ELSE 'block_time_per_step' END, m, 0.001, 's', 0.1 \
               FROM made, generate_series(1, {MEASUREMENTS}) m; \
             DROP TABLE made; ANALYZE;"
        ))
        .await
        .expect("filled");
    study.to_string()
}

/// The pages that are asked for: of the few, and of the many.
async fn pages(small: &Filled, large: &Filled) -> Vec<(&'static str, [String; 2])> {
    let list = "/v1/studies?page_size=50";
    let narrow = "/v1/studies?page_size=10";
    let both = |path: String| [path.clone(), path];
    let of = |filled: &Filled| format!("/v1/studies/{}/measurements?page_size=50", filled.measured);
    let (of_few, of_many) = (of(small), of(large));
    let metric = "metric=time_per_step_median";
    vec![
        ("a page", both(list.to_owned())),
        (
            "the second page",
            [small.deep(list, 1).await, large.deep(list, 1).await],
        ),
        ("a page of a state", both(format!("{narrow}&state=failed"))),
        (
            "a page of a workload",
            both(format!("{narrow}&workload=digits/cnn")),
        ),
        (
            "a page of a label",
            both(format!("{narrow}&label=team:team%203")),
        ),
        (
            "a page of a rare label",
            both(format!("{narrow}&label=rare:yes")),
        ),
        ("a page of measurements", [of_few.clone(), of_many.clone()]),
        (
            "the 21st page of measurements",
            [
                small.deep(&of_few, 20).await,
                large.deep(&of_many, 20).await,
            ],
        ),
        (
            "a page of one metric",
            [format!("{of_few}&{metric}"), format!("{of_many}&{metric}")],
        ),
    ]
}

/// Asks each for its page, in turns.
async fn timed(asked: [(&Filled, &str); 2]) -> [Timed; 2] {
    let mut secs: [Vec<f64>; 2] = Default::default();
    let mut items = [0, 0];
    for request in 0..REQUESTS + 20 {
        for (place, (filled, path)) in asked.iter().enumerate() {
            let began = Instant::now();
            let answer = filled.service.get(path).await;
            let took = began.elapsed().as_secs_f64();
            assert_eq!(answer.status, 200, "{path}: {}", answer.text);
            // The first ones find nothing in any cache.
            if request >= 20 {
                secs[place].push(took);
            } else {
                items[place] = answer.json()["items"].as_array().expect("items").len();
            }
        }
    }
    assert_eq!(items[0], items[1], "{:?}", asked.map(|(_, path)| path));
    secs.map(|mut secs| {
        secs.sort_by(f64::total_cmp);
        Timed {
            median: secs[REQUESTS / 2],
            p99: secs[REQUESTS * 99 / 100],
        }
    })
}
