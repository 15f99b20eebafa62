//! What is kept of a study beside its probes: its counts once it has ended, and what it waits for.

use diesel_async::{AsyncPgConnection, RunQueryDsl};
use trialhead::probe::Task;
use trialhead::store::studies;

use crate::postgres::TestDatabase;
use crate::queue::{MODEL, claim, database, device, finish, study};

const AT_ONCE: i64 = 100;

#[tokio::test]
async fn counts_are_kept_when_nothing_is_open_and_hold_for_their_revision_alone() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let id = study(&database, MODEL, 0, 2, |_| Task::Memory { steps: 1 }).await;
    let device = device(&database, "host", MODEL).await;
    let mut conn = database.connection().await.expect("a connection");
    let finish_one = async || {
        let claimed = claim(&database, device, 30.0).await.expect("a probe");
        finish(&database, &claimed).await;
    };
    let run = async |conn: &mut AsyncPgConnection, statement: String| {
        diesel::sql_query(statement)
            .execute(conn)
            .await
            .expect("runs");
    };
    finish_one().await;
    let end = format!(
        "UPDATE studies SET state = 'succeeded', ended_because = 'answered', ended_at = now() WHERE id = '{}'",
        id.0
    );
    run(&mut conn, end.clone()).await;
    let kept = studies::keep_counts(&mut conn, AT_ONCE)
        .await
        .expect("looks");
    assert_eq!(kept, 0, "one of its probes is open");
    run(
        &mut conn,
        format!(
            "UPDATE studies SET state = 'running', ended_at = NULL WHERE id = '{}'",
            id.0
        ),
    )
    .await;
    finish_one().await;
    run(&mut conn, end).await;
    let kept = studies::keep_counts(&mut conn, AT_ONCE)
        .await
        .expect("looks");
    assert_eq!(kept, 1);
    let again = studies::keep_counts(&mut conn, AT_ONCE)
        .await
        .expect("looks");
    assert_eq!(again, 0);
    // From what is kept: the links are gone.
    run(
        &mut conn,
        format!("DELETE FROM study_probes WHERE study = '{}'", id.0),
    )
    .await;
    let progress = studies::progress(&mut conn, &[id.0]).await.expect("reads");
    assert_eq!(progress[&id.0].0.succeeded, 2);
    // As an older instance revises, which knows nothing of counts.
    run(
        &mut conn,
        format!("UPDATE studies SET revision = 2 WHERE id = '{}'", id.0),
    )
    .await;
    let progress = studies::progress(&mut conn, &[id.0]).await.expect("reads");
    assert!(!progress.contains_key(&id.0), "{progress:?}");
    let kept = studies::keep_counts(&mut conn, AT_ONCE)
        .await
        .expect("looks");
    assert_eq!(kept, 1);
    let progress = studies::progress(&mut conn, &[id.0]).await.expect("reads");
    assert_eq!(progress[&id.0].0.ended(), 0);
}

#[tokio::test]
async fn a_study_whose_last_probe_runs_waits_for_nothing() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let id = study(&database, MODEL, 0, 1, |_| Task::Memory { steps: 1 }).await;
    let mut conn = database.connection().await.expect("a connection");
    let waits = async |conn: &mut AsyncPgConnection| {
        studies::refresh_waiting(conn, 60.0).await.expect("looks");
        let study = studies::find_anywhere(conn, id).await.expect("reads");
        study.expect("is there").waiting_for
    };
    let what = waits(&mut conn).await.expect("nobody is there");
    assert!(what.contains(MODEL), "{what}");
    // A worker comes and takes the probe before anybody has looked again.
    let device = device(&database, "host", MODEL).await;
    let _running = claim(&database, device, 30.0).await.expect("a probe");
    assert_eq!(waits(&mut conn).await, None);
}
