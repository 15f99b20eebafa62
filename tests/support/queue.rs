//! Studies with made-up probes, put into the queue past the planner, so that a test chooses what is
//! queued.

use std::sync::LazyLock;

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use trialhead::probe::{
    Limits, Outcome, PROTOCOL, ProbeDevice, ProbeSpec, Task, fingerprint, inputs,
};
use trialhead::settings::Settings;
use trialhead::store;
use trialhead::store::connection::{Database, DatabaseConfig, MigrateMode, migrate};
use trialhead::store::devices::{self, NewDevice};
use trialhead::store::leases::{self, Claim, Claimed, Completion, RetryPolicy};
use trialhead::store::local_server::{LocalServer, LocalServerConfig};
use trialhead::store::probes::{self, NewProbe, WavePlace};
use trialhead::store::studies::{self, NewStudy};
use trialhead::study::defaults;
use trialhead::study::validation::{self, DefinitionLimits};
use trialhead::study::{
    Backend, BatchSize, Bytes, DeviceId, GradientClipping, LeaseId, Optimizer, Schedule,
    StudyDefinition, StudyId,
};
use uuid::Uuid;

pub const MODEL: &str = "a processor for tests";

#[allow(dead_code, reason = "not every test binary needs it")]
pub const POLICY: RetryPolicy = RetryPolicy {
    max_crashes: 3,
    max_losses: 20,
    delay_secs: 0.0,
    max_delay_secs: 0.0,
};

#[allow(dead_code, reason = "not every test binary needs it")]
pub fn database(url: &str) -> Database {
    Database::open(&DatabaseConfig::new(url.to_owned())).expect("a pool")
}

/// A migrated database on a Postgres of its own, in a folder that is to be removed when it has stopped.
#[allow(dead_code, reason = "for benches")]
pub async fn database_of_its_own() -> (std::path::PathBuf, LocalServer, Database) {
    let folder = std::env::temp_dir().join(format!("trialhead-bench-{}", std::process::id()));
    let server = LocalServer::start(LocalServerConfig::new(&folder))
        .await
        .expect("a local Postgres");
    let database = database(&server.url());
    migrate(&database, MigrateMode::Auto)
        .await
        .expect("migrated");
    (folder, server, database)
}

/// Settings of a service without workers on that database.
#[allow(dead_code, reason = "for benches")]
pub fn settings_of_its_own(folder: &std::path::Path, server: &LocalServer) -> Settings {
    let mut settings = Settings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        workers: 0,
        data_dir: Some(folder.join("data")),
        ..Settings::default()
    };
    settings.database.url = Some(server.url());
    settings
}

#[allow(dead_code, reason = "not every bench needs it")]
pub fn definition(priority: i32) -> StudyDefinition {
    let body = serde_json::json!({
        "workload": {"dataset": {"builtin": "digits"}},
        "priority": priority,
        "device": {"model": MODEL, "memory_budget_bytes": 1 << 30, "threads": 1},
    });
    let request = validation::parse(&body, &DefinitionLimits::default()).expect("a definition");
    defaults::resolve(request, None).expect("known")
}

#[allow(dead_code, reason = "not every bench needs it")]
fn spec(definition: &StudyDefinition, model: &str, number: u32, task: Task) -> ProbeSpec {
    ProbeSpec {
        protocol: PROTOCOL,
        runner: Default::default(),
        task,
        workload: definition.workload.clone(),
        optimizer: Optimizer::adam(),
        schedule: Schedule::default(),
        gradient_clipping: GradientClipping::default(),
        device: ProbeDevice {
            backend: Backend::Cpu,
            model: model.to_owned(),
            count: 1,
            threads: 1,
        },
        batch_size: BatchSize(8),
        replicate: number,
        seed: 0,
        limits: Limits {
            memory_bytes: Bytes(1 << 30),
            wall_secs: 60.0,
        },
    }
}

/// A study with `count` probes of a task in its first wave, not due for planning.
#[allow(dead_code, reason = "not every bench needs it")]
pub async fn study(
    database: &Database,
    model: &str,
    priority: i32,
    count: u32,
    task: impl Fn(u32) -> Task,
) -> StudyId {
    let mut conn = database.connection().await.expect("a connection");
    // In one transaction: services that run meanwhile must not plan it before its probes are there.
    store::begin(&mut conn).await.expect("begins");
    let id = study_in(&mut conn, model, priority, count, task).await;
    store::finish::<(), store::StoreError>(&mut conn, Ok(()))
        .await
        .expect("committed");
    id
}

/// The same in a transaction of the caller's.
#[allow(dead_code, reason = "not every bench needs it")]
pub async fn study_in(
    conn: &mut store::Connection,
    model: &str,
    priority: i32,
    count: u32,
    task: impl Fn(u32) -> Task,
) -> StudyId {
    let definition = definition(priority);
    let id = StudyId(Uuid::now_v7());
    let advanced = studies::Advanced {
        version: 1,
        phase: "testing",
        waiting_for: None,
        wave: None,
        remaining_probes: 0,
        remaining_device_secs: 0.0,
        analysis: &trialhead::analysis::Analysis::default(),
        ended: None,
    };
    let new = NewStudy {
        id,
        project: "default",
        created_by: "test",
        definition: &definition,
        advanced,
        log: Vec::new(),
        advices: &[],
        wave: &[],
    };
    studies::insert(conn, &new).await.expect("inserted");
    let wave: Vec<NewProbe> = (0..count)
        .map(|number| {
            let spec = spec(&definition, model, number, task(number));
            NewProbe {
                identity: fingerprint::identity("default", Some(id), &spec).expect("hashes"),
                inputs: inputs::inputs("default", Some(id), &spec).expect("hashes"),
                course: inputs::course("default", Some(id), &spec).expect("hashes"),
                spec,
                why: "a test wants it".into(),
                prediction: None,
            }
        })
        .collect();
    let place = WavePlace {
        project: "default",
        created_by: "test",
        study: id,
        revision: 1,
        wave: 0,
    };
    probes::link_wave(conn, place, &wave).await.expect("linked");
    id
}

#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn device(database: &Database, host: &str, model: &str) -> DeviceId {
    let mut conn = database.connection().await.expect("a connection");
    let new = NewDevice {
        driver: None,
        host,
        hardware: "cpu",
        backend: "cpu",
        model,
        threads: 2,
        memory_bytes: 1 << 33,
        available_bytes: 1 << 33,
        slots: 2,
        count: 1,
        runners: &["burn".to_owned()],
    };
    devices::register(&mut conn, &new, 0.0)
        .await
        .expect("registered")
}

#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn claim(database: &Database, device: DeviceId, lease_secs: f64) -> Option<Claimed> {
    claim_as(database, device, MODEL, 1 << 33, lease_secs).await
}

/// A claim of a worker whose device is this one as it sees it, whatever the row says.
#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn claim_as(
    database: &Database,
    device: DeviceId,
    model: &str,
    memory_bytes: i64,
    lease_secs: f64,
) -> Option<Claimed> {
    let mut conn = database.connection().await.expect("a connection");
    claim_in(&mut conn, device, model, memory_bytes, lease_secs).await
}

/// The same on a connection, in whatever transaction it is in.
#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn claim_in(
    conn: &mut AsyncPgConnection,
    device: DeviceId,
    model: &str,
    memory_bytes: i64,
    lease_secs: f64,
) -> Option<Claimed> {
    let claim = Claim {
        model,
        memory_bytes,
        lease_secs,
        ..asked(device)
    };
    let claiming = leases::claim(conn, &claim).await.expect("claims");
    claiming.claimed()
}

/// What a worker asks with for a device, with a new lease.
#[allow(dead_code, reason = "not every test binary needs it")]
pub fn asked(device: DeviceId) -> Claim<'static> {
    static RUNNERS: LazyLock<[String; 1]> = LazyLock::new(|| ["burn".to_owned()]);
    Claim {
        lease: LeaseId(Uuid::now_v7()),
        worker: "a worker",
        device,
        backend: "cpu",
        model: MODEL,
        memory_bytes: 1 << 33,
        project: None,
        runners: &*RUNNERS,
        count: 1,
        lease_secs: 30.0,
        retries: POLICY,
    }
}

/// Ends a claimed probe well, without a figure.
#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn finish(database: &Database, claimed: &Claimed) {
    let mut conn = database.connection().await.expect("a connection");
    let completion = Completion {
        fence: claimed.fence(),
        outcome: Outcome::Succeeded,
        measurements: Vec::new(),
        stderr_tail: String::new(),
        device_secs: 0.0,
    };
    leases::complete(&mut conn, &completion, POLICY)
        .await
        .expect("completes");
}

/// What a row may be is not checked by Postgres: each state is one that there is, what runs has a lease that runs out, and
/// what has ended says when.
#[allow(dead_code, reason = "not every test binary needs it")]
pub async fn assert_sound(database: &Database) {
    #[derive(diesel::QueryableByName)]
    struct Unsound {
        #[diesel(sql_type = diesel::sql_types::Text)]
        row: String,
    }
    let mut conn = database.connection().await.expect("a connection");
    let unsound: Vec<Unsound> = diesel::sql_query(
        "SELECT to_jsonb(p)::text AS row FROM probes p \
         WHERE state NOT IN ('queued', 'running', 'succeeded', 'infeasible', 'failed', 'cancelled') \
            OR (state = 'running') <> (lease_expires_at IS NOT NULL) \
            OR (state IN ('queued', 'running')) <> (ended_at IS NULL) \
         UNION ALL SELECT to_jsonb(s)::text FROM studies s \
         WHERE state NOT IN ('queued', 'running', 'succeeded', 'failed', 'cancelled') \
            OR (state IN ('queued', 'running')) <> (ended_at IS NULL)",
    )
    .load(&mut *conn)
    .await
    .expect("read");
    let unsound: Vec<String> = unsound.into_iter().map(|it| it.row).collect();
    assert!(unsound.is_empty(), "{unsound:?}");
}
