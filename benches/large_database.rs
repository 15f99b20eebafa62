//! Reading from a large database: pages of 50 among 100,000 studies against the same among 100, plain, filtered and deep in
//! the list; and pages of the measurements of a study with 10 million against those of one with 10,000. Goal: the 99th
//! percentile at most twice as long.
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
    add_studies(&client, &seed, FEW).await;
    let small = study_with_measurements(&client, &seed, PROBES[0]).await;
    let few = lists(&service).await;
    let of_few = measurements(&service, &small).await;
    let began = Instant::now();
    add_studies(&client, &seed, MANY).await;
    let large = study_with_measurements(&client, &seed, PROBES[1]).await;
    // The service counts the probes of a study once, when it has ended.
    until_counted(&client, &large).await;
    client
        .batch_execute("VACUUM ANALYZE; CHECKPOINT")
        .await
        .expect("tidied");
    println!("filled in {:.0} s", began.elapsed().as_secs_f64());
    let many = lists(&service).await;
    let of_many = measurements(&service, &large).await;
    for (before, after) in few.iter().chain(&of_few).zip(many.iter().chain(&of_many)) {
        println!(
            "{}: median {:.2} ms, then {:.2} ms; 99% {:.2} ms, then {:.2} ms: ratio {:.2} (goal at most 2)",
            before.what,
            before.median * 1e3,
            after.median * 1e3,
            before.p99 * 1e3,
            after.p99 * 1e3,
            after.p99 / before.p99
        );
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
    what: &'static str,
    median: f64,
    p99: f64,
}

/// Studies like the first, of three states and four workloads, every hundredth with a label of its own.
async fn add_studies(client: &Client, seed: &str, count: i64) {
    client
        .batch_execute(&format!(
            "CREATE TEMP TABLE made AS SELECT n, encode(int8send((extract(epoch FROM now()) * 1000)::bigint - 10000000 + n), 'hex') AS time \
               FROM generate_series(1, {count}) n; \
             INSERT INTO studies (id, project, name, labels, workload, state, ended_because, ended_at, phase, counted, counted_revision, analysis) \
               SELECT (substr(time, 5, 12) || '7' || substr(md5(n::text || '{count}'), 1, 3) || '8' || substr(md5(n::text || 'b{count}'), 1, 15))::uuid, \
                 'default', 'study ' || n, jsonb_build_object('team', 'team ' || n % 7, 'rare', CASE WHEN n % 100 = 0 THEN 'yes' ELSE 'no' END), \
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

async fn lists(service: &TestService) -> Vec<Timed> {
    let mut deep = "/v1/studies?page_size=50".to_owned();
    // Half way down the list of the few, and as many pages down that of the many.
    let page: Value = service.get(&deep).await.json();
    if let Some(token) = page["next_page_token"].as_str() {
        deep.push_str(&format!("&page_token={token}"));
    }
    let mut all = Vec::new();
    for (what, path) in [
        ("a page", "/v1/studies?page_size=50"),
        ("the second page", deep.as_str()),
        ("a page of a state", "/v1/studies?page_size=50&state=failed"),
        (
            "a page of a workload",
            "/v1/studies?page_size=50&workload=digits/cnn",
        ),
        (
            "a page of a label",
            "/v1/studies?page_size=50&label=team:team%203",
        ),
        (
            "a page of a rare label",
            "/v1/studies?page_size=50&label=rare:yes",
        ),
    ] {
        all.push(timed(service, what, path).await);
    }
    all
}

async fn measurements(service: &TestService, study: &str) -> Vec<Timed> {
    let base = format!("/v1/studies/{study}/measurements?page_size=50");
    let mut deep = base.clone();
    for _ in 0..20 {
        let page: Value = service.get(&deep).await.json();
        let token = page["next_page_token"].as_str().expect("more");
        deep = format!("{base}&page_token={token}");
    }
    vec![
        timed(service, "a page of measurements", &base).await,
        timed(service, "the 21st page of measurements", &deep).await,
        timed(
            service,
            "a page of one metric",
            &format!("{base}&metric=time_per_step_median"),
        )
        .await,
    ]
}

async fn timed(service: &TestService, what: &'static str, path: &str) -> Timed {
    let mut secs = Vec::with_capacity(REQUESTS);
    for request in 0..REQUESTS + 20 {
        let began = Instant::now();
        let answer = service.get(path).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        // The first ones find nothing in any cache.
        if request >= 20 {
            secs.push(began.elapsed().as_secs_f64());
        }
    }
    secs.sort_by(f64::total_cmp);
    Timed {
        what,
        median: secs[REQUESTS / 2],
        p99: secs[REQUESTS * 99 / 100],
    }
}
