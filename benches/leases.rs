//! Claim and complete, fence and event row included, against bare SQL that reads and writes the same with a statement for
//! each step, in turns on one durable local Postgres. Goal: at least 0.3 of the bare rate.
//!
//! `cargo bench --profile release --bench leases`

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

#[path = "../tests/support/queue.rs"]
mod queue;

use std::time::Instant;

use tokio_postgres::{Client, NoTls, Statement};
use trialhead::probe::{Measurement, Outcome, Task};
use trialhead::store::connection::Database;
use trialhead::store::leases::{self, Completed, Completion};
use trialhead::study::DeviceId;
use uuid::Uuid;

const TURNS: usize = 7;
const PROBES: u32 = 150;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let (folder, server, database) = queue::database_of_its_own().await;
    let device = queue::device(&database, "bench", queue::MODEL).await;
    let bare = Bare::connect(&server.url()).await;
    let mut ratios = Vec::new();
    for turn in 0..=TURNS {
        let ours = through_the_store(&database, device).await;
        let theirs = bare.run(&database, device).await;
        // The first turn warms both up.
        if turn > 0 {
            println!(
                "store {ours:.0}/s, bare SQL {theirs:.0}/s, ratio {:.2}",
                ours / theirs
            );
            ratios.push(ours / theirs);
        }
    }
    ratios.sort_by(f64::total_cmp);
    println!(
        "claim + complete: ratio to bare SQL, median {:.2} ({:.2} to {:.2}) of {TURNS} turns; goal at least 0.3",
        ratios[ratios.len() / 2],
        ratios[0],
        ratios[ratios.len() - 1]
    );
    database.close();
    server.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}

/// Pairs a second through the service's own functions.
async fn through_the_store(database: &Database, device: DeviceId) -> f64 {
    queue::study(database, queue::MODEL, 0, PROBES, |_| Task::Memory {
        steps: 1,
    })
    .await;
    let mut conn = database.connection().await.expect("a connection");
    let since = Instant::now();
    for _ in 0..PROBES {
        let claimed = leases::claim(&mut conn, &queue::asked(device))
            .await
            .expect("claims")
            .claimed()
            .expect("a probe");
        let completion = Completion {
            fence: claimed.fence(),
            outcome: Outcome::Succeeded,
            measurements: vec![Measurement {
                seq: 0,
                metric: "peak_memory".into(),
                step: None,
                value: 1.0,
                unit: "bytes".into(),
                elapsed_secs: 0.1,
            }],
            stderr_tail: String::new(),
            device_secs: 0.1,
        };
        let done = leases::complete(&mut conn, &completion, queue::POLICY)
            .await
            .expect("completes");
        assert!(matches!(done, Completed::Now(_)));
    }
    f64::from(PROBES) / since.elapsed().as_secs_f64()
}

/// The same writes and reads by prepared statements on one plain connection, in the same two
/// transactions.
struct Bare {
    client: Client,
    statements: Vec<Statement>,
}

const STATEMENTS: [&str; 11] = [
    "SELECT model FROM devices WHERE id = $1 FOR UPDATE",
    "SELECT count(*) FROM probes WHERE device = $1 AND state = 'running'",
    "SELECT s.id FROM studies s JOIN LATERAL (SELECT 1 FROM study_probes sp JOIN probes p ON p.id = sp.probe \
       WHERE sp.study = s.id AND sp.wave = s.wave AND sp.open AND p.state = 'queued' ORDER BY sp.position LIMIT 1) q ON true \
       WHERE s.state IN ('queued', 'running') ORDER BY s.priority DESC, s.last_claimed_at NULLS FIRST LIMIT 1",
    "UPDATE studies SET last_claimed_at = clock_timestamp(), state = 'running' WHERE id = $1",
    "UPDATE probes SET state = 'running', attempt = attempt + 1, lease = $1, lease_expires_at = now() + interval '30 s', device = $2, started_at = now() \
       WHERE id = (SELECT p.id FROM study_probes sp JOIN probes p ON p.id = sp.probe WHERE sp.study = $3 AND sp.open AND p.state = 'queued' ORDER BY sp.position LIMIT 1 FOR UPDATE OF p SKIP LOCKED) \
       RETURNING id, spec",
    "SELECT id FROM studies s WHERE state IN ('queued', 'running') AND EXISTS (SELECT 1 FROM study_probes sp WHERE sp.probe = $1 AND sp.study = s.id) ORDER BY id FOR UPDATE",
    "SELECT state, lease, attempt FROM probes WHERE id = $1 FOR UPDATE",
    "INSERT INTO measurements (probe, attempt, seq, metric, value, unit, elapsed_secs) VALUES ($1, 1, 0, 'peak_memory', 1, 'bytes', 0.1)",
    "UPDATE probes SET state = 'succeeded', lease_expires_at = NULL, ended_at = now() WHERE id = $1",
    "UPDATE studies SET evidence_version = evidence_version + 1, next_event_seq = next_event_seq + 1 WHERE id = $1 RETURNING next_event_seq",
    "INSERT INTO study_events (study, seq, kind, data) VALUES ($1, $2, 'probe', '{\"state\": \"succeeded\"}')",
];

impl Bare {
    async fn connect(url: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.expect("connects");
        tokio::spawn(connection);
        let mut statements = Vec::new();
        for statement in STATEMENTS {
            statements.push(client.prepare(statement).await.expect("prepares"));
        }
        Self { client, statements }
    }

    async fn run(&self, database: &Database, device: DeviceId) -> f64 {
        queue::study(database, queue::MODEL, 0, PROBES, |_| Task::Memory {
            steps: 1,
        })
        .await;
        let since = Instant::now();
        for _ in 0..PROBES {
            self.pair(device.0).await.expect("a pair");
        }
        f64::from(PROBES) / since.elapsed().as_secs_f64()
    }

    async fn pair(&self, device: Uuid) -> Result<(), tokio_postgres::Error> {
        let c = &self.client;
        let s = &self.statements;
        let device = Id(device);
        c.batch_execute("BEGIN").await?;
        c.query(&s[0], &[&device]).await?;
        c.query(&s[1], &[&device]).await?;
        let study: Id = c.query_one(&s[2], &[]).await?.get(0);
        c.execute(&s[3], &[&study]).await?;
        let probe: Id = c
            .query_one(&s[4], &[&Id(Uuid::now_v7()), &device, &study])
            .await?
            .get(0);
        c.batch_execute("COMMIT").await?;
        c.batch_execute("BEGIN").await?;
        c.query(&s[5], &[&probe]).await?;
        c.query(&s[6], &[&probe]).await?;
        c.execute(&s[7], &[&probe]).await?;
        c.execute(&s[8], &[&probe]).await?;
        let seq: i64 = c.query_one(&s[9], &[&study]).await?.get(0);
        c.execute(&s[10], &[&study, &(seq - 1)]).await?;
        c.batch_execute("COMMIT").await
    }
}

/// A UUID on the wire.
#[derive(Debug, Clone, Copy)]
struct Id(Uuid);

impl tokio_postgres::types::ToSql for Id {
    fn to_sql(
        &self,
        _: &tokio_postgres::types::Type,
        out: &mut tokio_postgres::types::private::BytesMut,
    ) -> Result<tokio_postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(self.0.as_bytes());
        Ok(tokio_postgres::types::IsNull::No)
    }

    fn accepts(kind: &tokio_postgres::types::Type) -> bool {
        *kind == tokio_postgres::types::Type::UUID
    }

    tokio_postgres::types::to_sql_checked!();
}

impl<'a> tokio_postgres::types::FromSql<'a> for Id {
    fn from_sql(
        _: &tokio_postgres::types::Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(Uuid::from_slice(raw)?))
    }

    fn accepts(kind: &tokio_postgres::types::Type) -> bool {
        *kind == tokio_postgres::types::Type::UUID
    }
}
