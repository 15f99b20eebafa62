//! Advancing a study of many finished probes: reading them, working out what they mean, writing it. Goals: ten
//! times as many probes take at most ten times as long (and a little for noise), and nobody who wants the
//! study's row meanwhile waits for the computation.
//!
//! `cargo bench --profile release --bench advance`

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

use std::time::{Duration, Instant};

use serde_json::json;
use service::TestService;
use tokio_postgres::{Client, NoTls};

const FEW: i64 = 10_000;
const MANY: i64 = 100_000;
const TURNS: usize = 3;

#[tokio::main]
async fn main() {
    let service = TestService::without_workers().await;
    let (client, connection) = tokio_postgres::connect(service.database.url(), NoTls)
        .await
        .expect("connects");
    tokio::spawn(connection);
    let mut ratios = Vec::new();
    for turn in 1..=TURNS {
        let (few, _) = advance(&service, &client, FEW).await;
        let (many, waited) = advance(&service, &client, MANY).await;
        let ratio = many.as_secs_f64() / few.as_secs_f64();
        println!(
            "turn {turn}: {FEW} probes {:.2} s, {MANY} probes {:.2} s, ratio {ratio:.1}; longest wait for the study's row {:.0} ms",
            few.as_secs_f64(),
            many.as_secs_f64(),
            waited.as_secs_f64() * 1e3
        );
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "ten times as many probes: ratio {:.1} (median; {:.1} to {:.1}); goal at most 11",
        ratios[TURNS / 2],
        ratios[0],
        ratios[TURNS - 1]
    );
}

/// Makes a study with so many finished trials, and times how long one advance takes; and how long another
/// transaction waits at most for the study's row meanwhile.
async fn advance(service: &TestService, client: &Client, probes: i64) -> (Duration, Duration) {
    let path = service
        .create(&json!({
            "workload": {
                "dataset": {"builtin": "digits"},
                "target": {"metric": "validation_cross_entropy", "value": 0.2}
            },
            "optimizer": {"family": "sgd"},
            "search": {"ranges": {"learning_rate": {"lower": 0.001, "upper": 1.0}}},
            "device": {"model": "none here", "threads": 2, "memory_budget_bytes": 1_073_741_824_u64},
            "questions": ["critical_batch_size"],
            "reuse": false
        }))
        .await;
    let id: uuid::Uuid = path
        .rsplit('/')
        .next()
        .and_then(|id| id.parse().ok())
        .expect("an id");
    client
        .batch_execute(&fill(id, probes))
        .await
        .expect("filled");
    let started = Instant::now();
    client
        .batch_execute(&format!(
            "UPDATE studies SET evidence_version = evidence_version + 1 WHERE id = '{id}'"
        ))
        .await
        .expect("woken");
    let mut longest = Duration::ZERO;
    loop {
        let asked = Instant::now();
        let row = client
            .query_one(
                &format!(
                    "SELECT advanced_version = evidence_version FROM studies WHERE id = '{id}' FOR UPDATE"
                ),
                &[],
            )
            .await
            .expect("locked and let go");
        longest = longest.max(asked.elapsed());
        if row.get::<_, bool>(0) {
            return (started.elapsed(), longest);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// SQL that gives a study so many finished trials over nine batch sizes, with what they measured; the specs are
/// those of its first probe with another task.
fn fill(study: uuid::Uuid, probes: i64) -> String {
    format!(
        "CREATE TEMP TABLE made AS SELECT gen_random_uuid() AS id, n, 4 * 2 ^ (n % 9) AS batch, p.* FROM \
           (SELECT q.spec, q.project, q.created_by, q.backend, q.device_model FROM study_probes sp JOIN probes q ON q.id = sp.probe \
            WHERE sp.study = '{study}' LIMIT 1) p, generate_series(1, {probes}) n; \
         INSERT INTO probes (id, project, created_by, identity, kind, batch_size, backend, device_model, exclusive, spec, state, attempt, \
            device_secs, ended_at) \
           SELECT id, project, created_by, id::text, 'training', batch, backend, device_model, false, spec || jsonb_build_object( \
             'batch_size', batch::int, 'replicate', 0, \
             'task', '{{\"kind\": \"training\", \"max_steps\": 500, \"evaluation_ratio\": 1.03, \
                \"target\": {{\"metric\": \"validation_cross_entropy\", \"value\": 0.2}}}}'::jsonb, \
             'optimizer', jsonb_build_object('family', 'sgd', 'learning_rate', 0.001 * n, 'weight_decay', 0.0)), \
             'succeeded', 1, 0.1, now() FROM made; \
         INSERT INTO study_probes (study, revision, probe, wave, position, reused, why, open) \
           SELECT '{study}', 1, id, 1 + n / 100, n, false, 'made by a bench', false FROM made; \
         INSERT INTO measurements (probe, attempt, seq, metric, value, unit, elapsed_secs) \
           SELECT id, 1, seq, metric, value, unit, 0.1 FROM made, (VALUES (0, 'steps_to_target', 100.0, 'count'), \
             (1, 'best_evaluation', 0.19, 'metric'), (2, 'steps', 101.0, 'count'), (3, 'last_loss', 0.2, 'loss')) \
             AS figures (seq, metric, value, unit); \
         UPDATE probes SET state = 'succeeded', ended_at = now() WHERE id IN (SELECT probe FROM study_probes WHERE study = '{study}'); \
         DROP TABLE made; ANALYZE probes; ANALYZE study_probes; ANALYZE measurements;"
    )
}
