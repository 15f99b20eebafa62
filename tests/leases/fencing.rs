//! Only the holder of the lease writes.

use std::time::Duration;

use diesel_async::{RunQueryDsl, SimpleAsyncConnection};
use trialhead::probe::{FailureReason, InfeasibleReason, Measurement, Outcome, ProbeState, Task};
use trialhead::store::connection::Database;
use trialhead::store::leases::{
    self, Beat, Claim, Claimed, Claiming, Completed, Completion, Heartbeat, RetryPolicy,
};
use trialhead::store::probes::{self, MeasurementFilter};
use trialhead::store::{self, StoreError, events, studies};
use trialhead::study::StudyId;

use crate::postgres::TestDatabase;
use crate::queue::{MODEL, POLICY, asked, assert_sound, claim, database, device, study};

fn completion(claimed: &Claimed, outcome: Outcome) -> Completion {
    Completion {
        fence: claimed.fence(),
        outcome,
        measurements: vec![Measurement {
            seq: 0,
            metric: "peak_memory".into(),
            step: None,
            value: f64::from(claimed.attempt),
            unit: "bytes".into(),
            elapsed_secs: 0.1,
        }],
        stderr_tail: "the end of the log".into(),
        device_secs: 1.5,
    }
}

fn beat<'a>(claimed: &Claimed, progress: Option<(&'a str, f64)>) -> Beat<'a> {
    Beat {
        fence: claimed.fence(),
        lease_secs: 30.0,
        progress,
        measurements: &[],
    }
}

async fn complete(database: &Database, completion: &Completion) -> Completed {
    let mut conn = database.connection().await.expect("a connection");
    leases::complete(&mut conn, completion, POLICY)
        .await
        .expect("completes")
}

async fn state(database: &Database, claimed: &Claimed) -> probes::ProbeRow {
    let mut conn = database.connection().await.expect("a connection");
    probes::find(&mut conn, "default", claimed.probe)
        .await
        .expect("read")
        .expect("there")
}

async fn evidence_version(database: &Database, id: StudyId) -> i64 {
    let mut conn = database.connection().await.expect("a connection");
    studies::find_anywhere(&mut conn, id)
        .await
        .expect("read")
        .expect("there")
        .evidence_version
}

#[tokio::test]
async fn a_completion_is_stored_once_and_makes_the_plan_due() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let id = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claimed = claim(&database, device, 30.0).await.expect("a probe");
    let before = evidence_version(&database, id).await;
    let done = completion(&claimed, Outcome::Succeeded);
    assert_eq!(
        complete(&database, &done).await,
        Completed::Now(ProbeState::Succeeded)
    );
    assert_eq!(
        complete(&database, &done).await,
        Completed::Already(ProbeState::Succeeded)
    );
    assert_eq!(evidence_version(&database, id).await, before + 1);
    let row = state(&database, &claimed).await;
    assert_eq!(row.state, "succeeded");
    assert_eq!(row.stderr_tail.as_deref(), Some("the end of the log"));
    assert_eq!(row.device_secs, 1.5);
    let mut conn = database.connection().await.expect("a connection");
    let study = studies::find_anywhere(&mut conn, id)
        .await
        .expect("read")
        .expect("there");
    let measured = probes::list_measurements(&mut conn, &study, &MeasurementFilter::default(), 10)
        .await
        .expect("read");
    assert_eq!(measured.len(), 1);
    let log = events::list_after(&mut conn, id, 0, 100)
        .await
        .expect("read");
    let ends = log
        .iter()
        .filter(|(_, kind, data)| kind == "probe" && data["state"] != "running")
        .count();
    assert_eq!(ends, 1);
    let numbers: Vec<i64> = log.iter().map(|(seq, _, _)| *seq).collect();
    assert_eq!(numbers, (1..=log.len() as i64).collect::<Vec<_>>());
}

/// A probe that another version wrote must not be held by a worker that never hears of it.
#[tokio::test]
async fn a_probe_that_cannot_be_read_is_held_by_nobody() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let first = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    let spoil = "UPDATE probes SET spec = jsonb_set(spec, '{task}', '{\"kind\": \"of tomorrow\"}')";
    conn.batch_execute(spoil).await.expect("SQL");
    let claiming = asked(device);
    let refused = leases::claim(&mut conn, &claiming).await;
    let refused = refused.expect_err("cannot be read").to_string();
    assert!(refused.contains("of tomorrow"), "{refused}");
    // A worker that has had no answer asks again with the same lease.
    let again = leases::claim(&mut conn, &claiming).await.expect("answers");
    assert!(matches!(again, Claiming::Spent), "{again:?}");
    // The lease may have been given before its holder could say so: it is ended when it is asked for.
    conn.batch_execute("UPDATE probes SET spec = jsonb_set(spec, '{task}', '{\"kind\": \"memory\", \"steps\": 1}')")
        .await
        .expect("SQL");
    let claiming = asked(device);
    let claimed = leases::claim(&mut conn, &claiming).await.expect("claims");
    let claimed = claimed.claimed().expect("the probe again");
    assert_eq!(claimed.attempt, 2);
    conn.batch_execute(spoil).await.expect("SQL");
    assert!(leases::claim(&mut conn, &claiming).await.is_err());
    let row = state(&database, &claimed).await;
    assert_eq!(
        (row.state.as_str(), row.crashes, row.losses),
        ("queued", 0, 2)
    );
    let last = Claim {
        retries: RetryPolicy {
            max_losses: 3,
            ..POLICY
        },
        ..asked(device)
    };
    assert!(leases::claim(&mut conn, &last).await.is_err());
    // It was tried as often as any other that is lost, and its study goes on without it.
    let row = state(&database, &claimed).await;
    assert_eq!(row.state, "failed");
    assert_eq!(row.reason.as_deref(), Some("lost"));
    assert!(
        row.detail
            .is_some_and(|detail| detail.contains("of tomorrow"))
    );
    assert_eq!(evidence_version(&database, first).await, 2);
    assert_sound(&database).await;
}

/// Until a session of this database waits for a row.
async fn somebody_waits(conn: &mut store::Connection) {
    #[derive(diesel::QueryableByName)]
    struct Waiting {
        #[diesel(sql_type = diesel::sql_types::BigInt)]
        sessions: i64,
    }
    for _ in 0..6000 {
        let waiting: Waiting = diesel::sql_query(
            "SELECT count(*) AS sessions FROM pg_stat_activity \
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .get_result(conn)
        .await
        .expect("counted");
        if waiting.sessions > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nobody waits");
}

/// A completion that has taken a probe takes no study after it that somebody has: whoever has it may want the probe.
#[tokio::test]
async fn a_completion_does_not_wait_for_a_study_that_came_while_it_waited() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let first = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claimed = claim(&database, device, 30.0).await.expect("a probe");
    let second = study(&database, MODEL, 0, 0, |_| Task::Memory { steps: 1 }).await;
    let (mut holds_first, mut holds_second, mut conn) = (
        database.connection().await.expect("a connection"),
        database.connection().await.expect("a connection"),
        database.connection().await.expect("a connection"),
    );
    store::begin(&mut holds_first).await.expect("begins");
    let held = studies::lock(&mut holds_first, "default", first).await;
    assert!(held.expect("read").is_some());
    let done = completion(&claimed, Outcome::Succeeded);
    let completing = complete(&database, &done);
    tokio::pin!(completing);
    tokio::select! {
        completed = &mut completing => panic!("{completed:?}"),
        () = somebody_waits(&mut conn) => {}
    }
    // Another study wants the same probe now, and somebody has that study.
    conn.batch_execute(&format!(
        "INSERT INTO study_probes (study, revision, wave, position, probe, reused, open, why) \
         VALUES ('{second}', 1, 0, 0, '{}', false, true, 'wanted, too')",
        claimed.probe
    ))
    .await
    .expect("linked");
    store::begin(&mut holds_second).await.expect("begins");
    let held = studies::lock(&mut holds_second, "default", second).await;
    assert!(held.expect("read").is_some());
    store::finish::<(), StoreError>(&mut holds_first, Ok(()))
        .await
        .expect("let go");
    let completed = tokio::time::timeout(Duration::from_secs(10), completing).await;
    assert_eq!(
        completed.expect("waits for nobody"),
        Completed::Now(ProbeState::Succeeded)
    );
    store::finish::<(), StoreError>(&mut holds_second, Ok(()))
        .await
        .expect("let go");
    assert_eq!(evidence_version(&database, first).await, 2);
    // The other is found among those that wait for nothing.
    assert_eq!(evidence_version(&database, second).await, 1);
    assert_eq!(studies::nudge_stuck(&mut conn).await.expect("looks"), 1);
    assert_eq!(evidence_version(&database, second).await, 2);
}

#[tokio::test]
async fn late_writes_of_a_lost_lease_change_nothing() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let first = claim(&database, device, 0.0).await.expect("a probe");
    let mut conn = database.connection().await.expect("a connection");
    assert_eq!(leases::reap(&mut conn, POLICY).await.expect("reaps"), 1);
    assert_eq!(leases::reap(&mut conn, POLICY).await.expect("reaps"), 0);
    let second = claim(&database, device, 30.0)
        .await
        .expect("the probe again");
    assert_eq!(second.probe, first.probe);
    assert_eq!(second.attempt, first.attempt + 1);

    assert_eq!(
        leases::heartbeat(&mut conn, beat(&first, None))
            .await
            .expect("answers"),
        Heartbeat::Lost
    );
    let late = completion(&first, Outcome::Succeeded);
    assert_eq!(complete(&database, &late).await, Completed::Fenced);
    assert_eq!(state(&database, &second).await.state, "running");

    assert_eq!(
        leases::heartbeat(&mut conn, beat(&second, Some(("sampling", 0.5))))
            .await
            .expect("answers"),
        Heartbeat::Held {
            cancel_requested: false
        }
    );
    assert_eq!(state(&database, &second).await.progress_fraction, Some(0.5));
    let done = completion(&second, Outcome::Succeeded);
    assert_eq!(
        complete(&database, &done).await,
        Completed::Now(ProbeState::Succeeded)
    );
    assert_eq!(complete(&database, &late).await, Completed::Fenced);
    assert_eq!(state(&database, &second).await.losses, 1);
}

#[tokio::test]
async fn crashes_count_losses_count_apart_and_a_drain_costs_nothing() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let id = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    let crash = || Outcome::Failed {
        reason: FailureReason::Crashed,
        detail: "signal 11 ended the child".into(),
    };
    for _ in 0..5 {
        let claimed = claim(&database, device, 30.0).await.expect("a probe");
        let back = completion(&claimed, Outcome::HandedBack);
        assert_eq!(
            complete(&database, &back).await,
            Completed::Now(ProbeState::Queued)
        );
    }
    for crashes in 1..=2 {
        let claimed = claim(&database, device, 30.0).await.expect("a probe");
        let end = completion(&claimed, crash());
        assert_eq!(
            complete(&database, &end).await,
            Completed::Now(ProbeState::Queued)
        );
        assert_eq!(state(&database, &claimed).await.crashes, crashes);
        // A loss in between has its own cap.
        claim(&database, device, 0.0).await.expect("a probe");
        assert_eq!(leases::reap(&mut conn, POLICY).await.expect("reaps"), 1);
    }
    let before = evidence_version(&database, id).await;
    let last = claim(&database, device, 30.0).await.expect("a probe");
    let end = completion(&last, crash());
    assert_eq!(
        complete(&database, &end).await,
        Completed::Now(ProbeState::Failed)
    );
    let row = state(&database, &last).await;
    assert_eq!((row.crashes, row.losses), (3, 2));
    assert_eq!(row.reason.as_deref(), Some("crashed"));
    assert_eq!(evidence_version(&database, id).await, before + 1);
    assert!(claim(&database, device, 30.0).await.is_none());
    assert_sound(&database).await;
}

#[tokio::test]
async fn an_infeasible_probe_is_knowledge_and_not_tried_again() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claimed = claim(&database, device, 30.0).await.expect("a probe");
    let end = completion(
        &claimed,
        Outcome::Infeasible {
            reason: InfeasibleReason::OutOfMemory,
            detail: "memory allocation of 8 bytes failed".into(),
        },
    );
    assert_eq!(
        complete(&database, &end).await,
        Completed::Now(ProbeState::Infeasible)
    );
    assert_eq!(
        state(&database, &claimed).await.reason.as_deref(),
        Some("out_of_memory")
    );
    assert_eq!(
        complete(&database, &end).await,
        Completed::Already(ProbeState::Infeasible)
    );
    assert!(claim(&database, device, 30.0).await.is_none());
    assert_sound(&database).await;
}

#[tokio::test]
async fn cancelling_ends_what_only_this_study_wants() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let id = study(&database, MODEL, 0, 3, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let claimed = claim(&database, device, 30.0).await.expect("a probe");
    let mut conn = database.connection().await.expect("a connection");
    studies::set_cancelled(&mut conn, id)
        .await
        .expect("cancelled");
    probes::cancel_unwanted(&mut conn, id)
        .await
        .expect("cancelled");
    assert_eq!(
        leases::heartbeat(&mut conn, beat(&claimed, None))
            .await
            .expect("answers"),
        Heartbeat::Held {
            cancel_requested: true
        }
    );
    let end = completion(&claimed, Outcome::Cancelled);
    assert_eq!(
        complete(&database, &end).await,
        Completed::Now(ProbeState::Cancelled)
    );
    assert!(claim(&database, device, 30.0).await.is_none());
    let progress = studies::progress(&mut conn, &[id.0]).await.expect("read");
    assert_eq!(progress[&id.0].0.cancelled, 3);
    assert_sound(&database).await;
}
