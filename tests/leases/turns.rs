//! Whose turn it is, and who has a device alone.

use std::collections::HashMap;
use std::time::Duration;

use diesel_async::{AsyncConnection, RunQueryDsl, SimpleAsyncConnection};
use trialhead::probe::{Measurement, Outcome, ProbeState, Task};
use trialhead::store::leases::{self, Beat, Claim, Claimed, Completed, Completion, Heartbeat};
use trialhead::store::{self, StoreError, devices, events, studies};
use trialhead::study::StudyId;

use crate::postgres::TestDatabase;
use crate::queue::{
    MODEL, POLICY, asked, assert_sound, claim, claim_as, claim_in, database, device, finish, study,
    study_in,
};

#[tokio::test]
async fn studies_of_one_priority_take_turns_and_a_higher_one_goes_first() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let memory = |_| Task::Memory { steps: 1 };
    let a = study(&database, MODEL, 0, 3, memory).await;
    let b = study(&database, MODEL, 0, 3, memory).await;
    let urgent = study(&database, MODEL, 5, 2, memory).await;
    let device = device(&database, "host", MODEL).await;
    let mut turns: Vec<StudyId> = Vec::new();
    while let Some(claimed) = claim(&database, device, 30.0).await {
        turns.push(claimed.study);
        finish(&database, &claimed).await;
    }
    assert_eq!(turns, [urgent, urgent, a, b, a, b, a, b]);
}

#[tokio::test]
async fn a_claim_passes_over_a_study_that_is_taken_just_now_but_not_for_a_less_urgent_one() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let memory = |_| Task::Memory { steps: 1 };
    let a = study(&database, MODEL, 0, 2, memory).await;
    let b = study(&database, MODEL, 0, 1, memory).await;
    let later = study(&database, MODEL, -1, 1, memory).await;
    let devices = [
        device(&database, "one", MODEL).await,
        device(&database, "two", MODEL).await,
    ];
    let mut conn = database.connection().await.expect("a connection");
    store::begin(&mut conn).await.expect("begins");
    let held = studies::lock(&mut conn, "default", a).await;
    assert!(held.expect("a row").is_some());
    // It is the turn of the study that is held.
    let claimed = tokio::time::timeout(Duration::from_secs(20), claim(&database, devices[0], 30.0));
    let claimed = claimed.await.expect("does not wait").expect("a probe");
    assert_eq!(claimed.study, b);
    // Now only the less urgent one is free.
    let waiting = claim(&database, devices[1], 30.0);
    tokio::pin!(waiting);
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(waited.is_err(), "it took {waited:?}, not waiting for {a}");
    store::finish::<(), StoreError>(&mut conn, Ok(()))
        .await
        .expect("let go");
    let claimed = waiting.await.expect("a probe");
    assert_eq!(claimed.study, a);
    assert_ne!(claimed.study, later);
}

/// More workers than probes: what a claim has found is taken by others all the time, and nobody waits in a ring.
#[tokio::test]
async fn many_claims_of_a_few_probes_never_wait_for_each_other() {
    const ROUNDS: usize = 12;
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let mut devices = Vec::new();
    for number in 0..8 {
        devices.push(device(&database, &format!("host {number}"), MODEL).await);
    }
    for round in 0..ROUNDS {
        for _ in 0..2 {
            study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
        }
        // `claim` panics on an error, a deadlock say.
        let claims = devices.iter().map(|device| claim(&database, *device, 30.0));
        let claimed = futures::future::join_all(claims).await;
        let claimed: Vec<_> = claimed.into_iter().flatten().collect();
        assert_eq!(claimed.len(), 2, "round {round}");
        for claimed in &claimed {
            finish(&database, claimed).await;
        }
    }
}

#[tokio::test]
async fn an_exclusive_probe_is_waited_for_though_its_study_is_taken_just_now() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let device = device(&database, "host", MODEL).await;
    let shared = |_| Task::Smoke { steps: 1 };
    let first = study(&database, MODEL, 0, 1, shared).await;
    let running = claim(&database, device, 30.0).await.expect("a probe");
    assert_eq!(running.study, first);
    let exclusive = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    study(&database, MODEL, 0, 1, shared).await;
    let mut conn = database.connection().await.expect("a connection");
    store::begin(&mut conn).await.expect("begins");
    let held = studies::lock(&mut conn, "default", exclusive).await;
    assert!(held.expect("a row").is_some());
    assert!(
        claim(&database, device, 30.0).await.is_none(),
        "a shared probe started before the exclusive one that waits"
    );
    store::finish::<(), StoreError>(&mut conn, Ok(()))
        .await
        .expect("let go");
    finish(&database, &running).await;
    let claimed = claim(&database, device, 30.0).await.expect("a probe");
    assert_eq!(claimed.study, exclusive);
}

/// What a claim has waited for may have changed what is open.
#[tokio::test]
async fn a_claim_that_has_waited_takes_what_is_open_then() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let device = device(&database, "host", MODEL).await;
    let study = study(&database, MODEL, 0, 2, |number| match number {
        0 => Task::Smoke { steps: 1 },
        _ => Task::Memory { steps: 1 },
    })
    .await;
    let mut conn = database.connection().await.expect("a connection");
    store::begin(&mut conn).await.expect("begins");
    let held = studies::lock(&mut conn, "default", study).await;
    assert!(held.expect("a row").is_some());
    let waiting = claim(&database, device, 30.0);
    tokio::pin!(waiting);
    let waited = tokio::time::timeout(Duration::from_millis(300), &mut waiting).await;
    assert!(waited.is_err(), "{waited:?}");
    // The shared probe goes; what is left needs the device alone.
    let gone = format!(
        "UPDATE probes SET state = 'cancelled', ended_at = now() \
         WHERE NOT exclusive AND id IN (SELECT probe FROM study_probes WHERE study = '{study}')"
    );
    let gone = diesel::sql_query(gone).execute(&mut *conn).await;
    assert_eq!(gone.expect("cancelled"), 1);
    store::finish::<(), StoreError>(&mut conn, Ok(()))
        .await
        .expect("let go");
    let claimed = waiting.await.expect("the other probe");
    assert!(claimed.exclusive);
}

/// A request may be given up at any moment, with half of a transaction sent.
#[tokio::test]
async fn a_claim_that_is_given_up_while_it_waits_holds_nothing() {
    #[derive(diesel::QueryableByName)]
    struct Open {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        sessions: i64,
    }
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let device = device(&database, "host", MODEL).await;
    let study = study(&database, MODEL, 0, 3, |_| Task::Smoke { steps: 1 }).await;
    // Its statements are prepared, and it has come to the end once.
    let first = claim(&database, device, 30.0).await.expect("a probe");
    finish(&database, &first).await;
    for step in 1..4 {
        let mut conn = database.connection().await.expect("a connection");
        store::begin(&mut conn).await.expect("begins");
        let held = studies::lock(&mut conn, "default", study).await;
        assert!(held.expect("a row").is_some());
        let waits = Duration::from_millis(step * step * 30 - 29);
        let given_up = tokio::time::timeout(waits, claim(&database, device, 30.0)).await;
        assert!(given_up.is_err(), "{given_up:?}");
        store::finish::<(), StoreError>(&mut conn, Ok(()))
            .await
            .expect("let go");
    }
    let mut conn = database.connection().await.expect("a connection");
    let since = std::time::Instant::now();
    loop {
        let open: Open = diesel::sql_query(
            "SELECT count(*) AS sessions FROM pg_stat_activity \
             WHERE datname = current_database() AND xact_start IS NOT NULL AND pid <> pg_backend_pid()",
        )
        .get_result(&mut *conn)
        .await
        .expect("counted");
        if open.sessions == 0 {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What was given up may have been done all the same, as when an answer is lost: then its lease runs out.
    diesel::sql_query("UPDATE probes SET lease_expires_at = now() WHERE state = 'running'")
        .execute(&mut *conn)
        .await
        .expect("ran out");
    leases::reap(&mut conn, POLICY).await.expect("reaped");
    assert!(claim(&database, device, 30.0).await.is_some());
    assert!(claim(&database, device, 30.0).await.is_some());
    assert_sound(&database).await;
}

/// A statement that fails in the middle of a claim costs neither what it had taken nor its connection.
#[tokio::test]
async fn a_claim_that_fails_rolls_back_and_its_connection_goes_on() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let device = device(&database, "host", MODEL).await;
    let study = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let mut other = database.connection().await.expect("a connection");
    let mut conn = database.connection().await.expect("a connection");
    let server_process = backend(&mut conn).await;
    conn.batch_execute("SET lock_timeout = '50ms'")
        .await
        .expect("set");
    // Its first statement fails, and the one that waits for the study.
    for held in ["devices", "studies"] {
        store::begin(&mut other).await.expect("begins");
        let id = if held == "devices" { device.0 } else { study.0 };
        other
            .batch_execute(&format!(
                "SELECT 1 FROM {held} WHERE id = '{id}' FOR UPDATE"
            ))
            .await
            .expect("held");
        let failed = leases::claim(&mut conn, &asked(device)).await;
        let failed = failed.expect_err("has waited long enough").to_string();
        assert!(failed.contains("lock timeout"), "{held}: {failed}");
        store::finish::<(), StoreError>(&mut other, Ok(()))
            .await
            .expect("let go");
        // Nothing is held by it: an update of both rows need not wait.
        other
            .batch_execute(
                "SET lock_timeout = '1s'; UPDATE devices SET host = host; UPDATE studies SET name = name; RESET lock_timeout",
            )
            .await
            .expect("free");
        assert_eq!(backend(&mut conn).await, server_process);
    }
    let claimed = leases::claim(&mut conn, &asked(device))
        .await
        .expect("claims");
    assert!(claimed.claimed().is_some());
}

/// Which process of Postgres answers.
async fn backend(conn: &mut store::Connection) -> i32 {
    #[derive(diesel::QueryableByName)]
    struct Row {
        #[diesel(sql_type = diesel::sql_types::Integer)]
        pid: i32,
    }
    let row: Row = diesel::sql_query("SELECT pg_backend_pid() AS pid")
        .get_result(conn)
        .await
        .expect("the connection goes on");
    row.pid
}

/// Two claims may fall on the same moment of Postgres' clock: one of them starts the study.
#[tokio::test]
async fn a_study_starts_once() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let mut devices = Vec::new();
    for host in ["one", "two"] {
        devices.push(device(&database, host, MODEL).await);
    }
    let study = study(&database, MODEL, 0, 2, |_| Task::Memory { steps: 1 }).await;
    let mut conn = database.connection().await.expect("a connection");
    store::begin(&mut conn).await.expect("begins");
    for device in devices {
        let claimed = claim_in(&mut conn, device, MODEL, 1 << 33, 30.0).await;
        assert!(claimed.is_some());
    }
    let log = events::list_after(&mut conn, study, 0, 10).await;
    let log: Vec<String> = log
        .expect("read")
        .into_iter()
        .map(|(seq, kind, _)| format!("{seq} {kind}"))
        .collect();
    assert_eq!(log, ["1 study", "2 probe", "3 probe"]);
    store::finish::<(), StoreError>(&mut conn, Ok(()))
        .await
        .expect("committed");
}

/// An instance goes on while a newer one gives a table another column.
#[tokio::test]
async fn devices_are_read_on_after_a_column_was_added() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    for _ in 0..2 {
        let live = devices::live(&mut conn, 60.0).await.expect("read");
        assert_eq!(live.len(), 1);
        let add = "ALTER TABLE devices ADD COLUMN IF NOT EXISTS newer integer";
        diesel::sql_query(add)
            .execute(&mut *conn)
            .await
            .expect("added");
    }
}

/// Before Postgres has looked at a new queue it knows nothing of its size, and must not need to.
#[tokio::test]
async fn a_claim_on_a_new_queue_reads_no_more_than_the_queue() {
    #[derive(diesel::QueryableByName)]
    struct Read {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        probes: i64,
    }
    const OPEN: u32 = 400;
    let test = TestDatabase::create().await;
    let database = database(test.url());
    for _ in 0..2 {
        study(&database, MODEL, 0, OPEN, |_| Task::Smoke { steps: 1 }).await;
    }
    let device = device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    let claimed = conn
        .transaction::<_, diesel::result::Error, _>(async |conn| {
            let claimed = claim_in(conn, device, MODEL, 1 << 33, 30.0).await;
            let read: Read = diesel::sql_query(
                "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) AS probes \
                 FROM pg_stat_xact_user_tables WHERE relname = 'probes'",
            )
            .get_result(conn)
            .await?;
            assert!(read.probes <= 4 * i64::from(OPEN), "{} rows", read.probes);
            Ok(claimed)
        })
        .await
        .expect("a transaction");
    assert!(claimed.is_some());
}

/// How many rows of each table this connection has read.
async fn rows_read(conn: &mut store::Connection) -> HashMap<String, i64> {
    #[derive(diesel::QueryableByName)]
    struct Read {
        #[diesel(sql_type = diesel::sql_types::Text)]
        table: String,
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        rows: i64,
    }
    let read: Vec<Read> = diesel::sql_query(
        "SELECT relname::text AS table, seq_tup_read + coalesce(idx_tup_fetch, 0) AS rows \
         FROM pg_stat_xact_user_tables",
    )
    .load(conn)
    .await
    .expect("read");
    read.into_iter().map(|it| (it.table, it.rows)).collect()
}

/// Plans are kept by their connection from when there was next to nothing, and Postgres has not looked at the tables since.
#[tokio::test]
async fn a_plan_that_was_kept_from_an_empty_queue_reads_no_more_of_a_full_one() {
    const MANY: u32 = 400;
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let here = device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    let smoke = |_| Task::Smoke { steps: 1 };
    let ended = |claimed: &Claimed| Completion {
        fence: claimed.fence(),
        outcome: Outcome::Succeeded,
        measurements: vec![Measurement {
            seq: 0,
            metric: "my_own".into(),
            step: None,
            value: 1.0,
            unit: "count".into(),
            elapsed_secs: 0.1,
        }],
        stderr_tail: String::new(),
        device_secs: 0.1,
    };
    fn beat(completion: &Completion) -> Beat<'_> {
        Beat {
            fence: completion.fence,
            lease_secs: 30.0,
            progress: Some(("sampling", 0.5)),
            measurements: &completion.measurements,
        }
    }
    for _ in 0..8 {
        store::begin_by_kept_plans(&mut conn).await.expect("begins");
        let counted = studies::count_active(&mut conn, "default").await;
        counted.expect("counted");
        study_in(&mut conn, MODEL, 0, 1, smoke).await;
        store::finish::<(), StoreError>(&mut conn, Ok(()))
            .await
            .expect("committed");
        let claimed = claim_in(&mut conn, here, MODEL, 1 << 33, 30.0).await;
        let claimed = claimed.expect("a probe");
        let completion = ended(&claimed);
        let held = leases::heartbeat(&mut conn, beat(&completion)).await;
        held.expect("held");
        leases::complete(&mut conn, &completion, POLICY)
            .await
            .expect("completes");
    }
    // Studies with much that is done and much that is open, and others that a claim has no business with.
    for _ in 0..2 {
        study(&database, MODEL, 0, MANY, smoke).await;
        study(&database, "another processor", 0, MANY, smoke).await;
    }
    // And probes that others run, and studies that ended long ago.
    study(&database, "a third processor", 0, MANY, smoke).await;
    for statement in [
        "UPDATE probes SET state = 'succeeded', ended_at = now() WHERE id IN (\
            SELECT probe FROM study_probes WHERE open AND position < 300) AND device_model <> 'a third processor'",
        "UPDATE probes SET state = 'running', lease = gen_random_uuid(), lease_expires_at = now() + interval '1 hour' \
         WHERE device_model = 'a third processor'",
        "UPDATE studies SET state = 'cancelled', ended_at = now() WHERE id IN (\
            SELECT study FROM study_probes JOIN probes ON id = probe WHERE device_model = 'a third processor')",
        "INSERT INTO studies (id, project, created_by, name, labels, workload, priority, state, ended_because, phase, \
            evidence_version, advanced_version, remaining_probes, remaining_device_secs, ended_at) \
         SELECT gen_random_uuid(), project, created_by, name, labels, workload, priority, 'succeeded', 'answered', phase, \
            evidence_version, advanced_version, 0, 0, now() \
         FROM (SELECT * FROM studies LIMIT 1) s, generate_series(1, 400)",
        "INSERT INTO measurements (probe, attempt, seq, metric, value, unit, elapsed_secs) \
         SELECT id, 1, n, 'my_own', 1, 'count', 0 FROM (SELECT id FROM probes LIMIT 100) p, generate_series(10, 29) n",
    ] {
        diesel::sql_query(statement)
            .execute(&mut *conn)
            .await
            .expect("made");
    }
    let waiting = studies::refresh_waiting(&mut conn, 60.0).await;
    assert_eq!(waiting.expect("looks"), 2);
    store::begin_by_kept_plans(&mut conn).await.expect("begins");
    let before = rows_read(&mut conn).await;
    let claimed = claim_in(&mut conn, here, MODEL, 1 << 33, 30.0).await;
    let claimed = claimed.expect("a probe");
    let completion = ended(&claimed);
    let held = leases::heartbeat(&mut conn, beat(&completion)).await;
    assert!(matches!(held.expect("held"), Heartbeat::Held { .. }));
    let counted = studies::count_active(&mut conn, "default").await;
    counted.expect("counted");
    study_in(&mut conn, MODEL, 0, 1, smoke).await;
    let completed = leases::complete(&mut conn, &completion, POLICY).await;
    assert_eq!(
        completed.expect("completes"),
        Completed::Now(ProbeState::Succeeded)
    );
    let after = rows_read(&mut conn).await;
    store::finish::<(), StoreError>(&mut conn, Ok(()))
        .await
        .expect("committed");
    assert!(after["probes"] > before["probes"]);
    for (table, rows) in after {
        let read = rows - before.get(&table).unwrap_or(&0);
        assert!(read <= 40, "{read} rows of {table} were read");
    }
}

#[tokio::test]
async fn an_exclusive_probe_has_its_device_alone() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 3, |_| Task::Memory { steps: 1 }).await;
    let here = device(&database, "here", MODEL).await;
    let there = device(&database, "there", MODEL).await;
    let first = claim(&database, here, 30.0).await.expect("a probe");
    assert!(
        claim(&database, here, 30.0).await.is_none(),
        "the device is taken"
    );
    let second = claim(&database, there, 30.0)
        .await
        .expect("another device is free");
    assert_ne!(first.probe, second.probe);
    finish(&database, &first).await;
    claim(&database, here, 30.0).await.expect("free again");
}

#[tokio::test]
async fn shared_probes_share_up_to_the_slots_and_a_waiting_exclusive_one_stops_new_ones() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let smoke = |_| Task::Smoke { steps: 1 };
    study(&database, MODEL, 0, 3, smoke).await;
    let device = device(&database, "host", MODEL).await;
    let first = claim(&database, device, 30.0)
        .await
        .expect("the first slot");
    let second = claim(&database, device, 30.0)
        .await
        .expect("the second slot");
    assert!(
        claim(&database, device, 30.0).await.is_none(),
        "two slots are two"
    );
    // An exclusive probe comes first by priority: the third shared one has to wait for it.
    study(&database, MODEL, 1, 1, |_| Task::Memory { steps: 1 }).await;
    finish(&database, &first).await;
    assert!(
        claim(&database, device, 30.0).await.is_none(),
        "the exclusive one waits for the device"
    );
    finish(&database, &second).await;
    let exclusive = claim(&database, device, 30.0)
        .await
        .expect("the device is empty");
    assert!(exclusive.exclusive);
    assert!(claim(&database, device, 30.0).await.is_none());
    finish(&database, &exclusive).await;
    assert!(
        !claim(&database, device, 30.0)
            .await
            .expect("the third shared one")
            .exclusive
    );
}

#[tokio::test]
async fn a_device_gets_only_probes_of_its_model() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    const OTHER: &str = "another processor";
    let memory = 1 << 33;
    let other = device(&database, "host", OTHER).await;
    let claimed = claim_as(&database, other, OTHER, memory, 30.0).await;
    assert!(claimed.is_none());
    // Two workers of one host that see different devices share one row, which says what the last of them has said.
    let shared = device(&database, "host", MODEL).await;
    assert_eq!(shared, other);
    let claimed = claim_as(&database, shared, OTHER, memory, 30.0).await;
    assert!(claimed.is_none(), "a probe for another model");
    let shared = device(&database, "host", OTHER).await;
    let claimed = claim_as(&database, shared, MODEL, memory, 30.0).await;
    assert!(claimed.is_some(), "its own model's");
}

#[tokio::test]
async fn a_device_gets_no_probe_whose_budget_is_above_its_memory() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claimed = claim_as(&database, device, MODEL, (1 << 30) - 1, 30.0).await;
    assert!(claimed.is_none());
    let claimed = claim_as(&database, device, MODEL, 1 << 30, 30.0).await;
    assert!(claimed.is_some());
}

#[tokio::test]
async fn twenty_claims_at_once_give_twenty_different_probes() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    for _ in 0..4 {
        study(&database, MODEL, 0, 5, |_| Task::Memory { steps: 1 }).await;
    }
    let mut devices = Vec::new();
    for number in 0..20 {
        devices.push(device(&database, &format!("host {number}"), MODEL).await);
    }
    let mut claimed = std::collections::BTreeSet::new();
    // A claim may find its candidates just taken by others; the next wake-up tries again.
    for _ in 0..20 {
        let all =
            futures::future::join_all(devices.iter().map(|device| claim(&database, *device, 30.0)))
                .await;
        for one in all.into_iter().flatten() {
            assert!(claimed.insert(one.probe), "claimed twice");
        }
    }
    assert_eq!(claimed.len(), 20);
}

#[tokio::test]
async fn a_probe_of_several_devices_waits_for_a_device_that_is_so_many() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claim = async |count: i32| {
        let mut conn = database.connection().await.expect("a connection");
        let claim = Claim {
            count,
            ..asked(device)
        };
        let claiming = leases::claim(&mut conn, &claim).await.expect("claims");
        claiming.claimed()
    };
    let mut conn = database.connection().await.expect("a connection");
    let changed =
        diesel::sql_query("UPDATE probes SET spec = jsonb_set(spec, '{device,count}', '4')")
            .execute(&mut conn)
            .await;
    assert_eq!(changed.expect("SQL"), 1);
    assert!(claim(1).await.is_none());
    assert!(claim(2).await.is_none());
    let claimed = claim(4).await.expect("four are here");
    assert_eq!(claimed.spec.device.count, 4);
}
