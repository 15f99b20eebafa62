//! Studies that are stored together: each gets what is its own, and none fails for another's fault.

use std::sync::Arc;

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use futures::future::join_all;
use tokio::runtime::Handle;
use trialhead::lifecycle::Together;
use trialhead::lifecycle::advance::{Creation, begin_unknown, first_step};
use trialhead::store::StoreError;
use trialhead::store::connection::Database;
use trialhead::store::studies::StudyRow;
use trialhead::study::{StudyId, StudyRequest, resolve};
use uuid::Uuid;

use crate::postgres::TestDatabase;
use crate::queue::{claim_as, database, device, finish};

const ELSEWHERE: &str = "another processor";

/// A study of a project; two with the same seed ask for the same probes.
fn creation(id: Uuid, project: &str, seed: u32) -> Arc<Creation> {
    let body = serde_json::json!({
        "name": format!("{project} {seed}"),
        "seed": seed,
        "workload": {"dataset": {"builtin": "digits"}},
        "device": {"model": ELSEWHERE, "threads": 1, "memory_budget_bytes": 1_u64 << 30}
    });
    let request: StudyRequest = serde_json::from_value(body).expect("a request");
    let definition = resolve(request, None).expect("known");
    let step = first_step(project, StudyId(id), &definition, None).expect("worked out");
    Arc::new(Creation {
        id: StudyId(id),
        project: project.to_owned(),
        created_by: "test".to_owned(),
        definition,
        step,
    })
}

/// What comes of them when all are asked for at once, in their order.
async fn begin_all(
    database: &Database,
    asked: &[Arc<Creation>],
) -> Vec<Result<Option<StudyRow>, StoreError>> {
    let together = Together::on(Handle::current());
    let begun = asked.iter().map(async |it| {
        let begun = together.begin(database, Arc::clone(it)).await?;
        Ok(begun.map(|(row, linked)| {
            assert_eq!((linked.counts.queued, linked.counts.ended()), (1, 0));
            row
        }))
    });
    join_all(begun).await
}

#[derive(diesel::QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

/// What is stored of studies, one line each, sorted: their own, and that of every table that belongs to them.
async fn stored(database: &Database) -> Vec<String> {
    let mut conn = database.connection().await.expect("a connection");
    let query = "\
        SELECT concat_ws(' | ', s.project, s.name, s.state, \
            (SELECT string_agg(r.definition ->> 'name', ',') FROM study_revisions r WHERE r.study = s.id), \
            (SELECT string_agg(e.seq || ' ' || e.kind, ',' ORDER BY e.seq) FROM study_events e WHERE e.study = s.id), \
            s.next_event_seq, \
            (SELECT string_agg(a.topic, ',') FROM recommendations a WHERE a.study = s.id), \
            (SELECT string_agg(l.wave || ' ' || l.position || ' ' || p.project || ' ' || (p.spec ->> 'seed') || ' ' || p.kind, ',') \
                FROM study_probes l JOIN probes p ON p.id = l.probe WHERE l.study = s.id)) AS line \
        FROM studies s ORDER BY line";
    let lines: Vec<Line> = diesel::sql_query(query)
        .load(&mut conn)
        .await
        .expect("reads");
    lines.into_iter().map(|it| it.line).collect()
}

fn line(project: &str, seed: u32) -> String {
    let name = format!("{project} {seed}");
    format!(
        "{project} | {name} | queued | {name} | 1 recommendations,2 study | 3 | start_from | 0 0 {project} {seed} smoke"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_gets_what_is_its_own() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    // In each of two projects sixty, two of each asking for the same.
    let asked = (0..120).map(|number| {
        let (project, seed) = (["a", "b"][number % 2], (number / 4) as u32);
        creation(Uuid::now_v7(), project, seed)
    });
    let asked: Vec<Arc<Creation>> = asked.collect();
    let begun = begin_all(&database, &asked).await;
    for (creation, begun) in asked.iter().zip(begun) {
        let row = begun.expect("stored").expect("nothing is answered");
        assert_eq!(row.study_id(), creation.id);
        assert_eq!(
            (&row.project, &row.name),
            (&creation.project, &creation.definition.name)
        );
    }
    let mut expected: Vec<String> = asked
        .iter()
        .map(|it| {
            let seed = it.definition.name.split(' ').next_back().expect("a seed");
            line(&it.project, seed.parse().expect("a number"))
        })
        .collect();
    expected.sort();
    assert_eq!(stored(&database).await, expected);
    let mut conn = database.connection().await.expect("a connection");
    let probes: Vec<Line> = diesel::sql_query("SELECT count(*)::text AS line FROM probes")
        .load(&mut conn)
        .await
        .expect("reads");
    assert_eq!(
        probes[0].line, "60",
        "equal studies of a project share a probe"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_one_is_not_the_others_fault() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let taken = Uuid::now_v7();
    let first = [creation(taken, "a", 1000)];
    let begun = begin_all(&database, &first).await.remove(0);
    begun.expect("stored").expect("nothing is answered");
    // Every tenth has the id of a study that is there.
    let is_bad = |seed: usize| seed % 10 == 5;
    let asked: Vec<Arc<Creation>> = (0..60)
        .map(|seed| {
            let id = if is_bad(seed) { taken } else { Uuid::now_v7() };
            creation(id, "a", seed as u32)
        })
        .collect();
    let begun = begin_all(&database, &asked).await;
    for ((seed, creation), begun) in asked.iter().enumerate().zip(begun) {
        if is_bad(seed) {
            begun.expect_err("the id is taken");
        } else {
            let row = begun.expect("stored").expect("nothing is answered");
            assert_eq!(row.study_id(), creation.id);
        }
    }
    assert_eq!(stored(&database).await.len(), 1 + 54);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_one_whose_probe_is_answered_nothing_is_stored() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let first = [creation(Uuid::now_v7(), "a", 7)];
    let begun = begin_all(&database, &first).await.remove(0);
    begun.expect("stored").expect("nothing is answered yet");
    let device = device(&database, "host", ELSEWHERE).await;
    let claimed = claim_as(&database, device, ELSEWHERE, 1 << 33, 30.0).await;
    finish(&database, &claimed.expect("a probe")).await;
    let asked: Vec<Arc<Creation>> = (0..20)
        .map(|seed| creation(Uuid::now_v7(), "a", seed))
        .collect();
    let begun = begin_all(&database, &asked).await;
    for (seed, begun) in begun.into_iter().enumerate() {
        assert_eq!(begun.expect("asked").is_none(), seed == 7, "{seed}");
    }
    assert_eq!(stored(&database).await.len(), 1 + 19);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_goes_away_takes_nobody_along() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let together = Together::on(Handle::current());
    // A lock that all have to wait for.
    let mut conn = database.connection().await.expect("a connection");
    trialhead::store::begin(&mut conn).await.expect("begins");
    diesel::sql_query("LOCK TABLE studies")
        .execute(&mut conn)
        .await
        .expect("locks");
    let began = (0..30).map(|seed| {
        let (together, database) = (together.clone(), database.clone());
        let creation = creation(Uuid::now_v7(), "a", seed);
        tokio::spawn(async move { together.begin(&database, creation).await })
    });
    let tasks: Vec<_> = began.collect();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    for task in tasks.iter().take(10) {
        task.abort();
    }
    let unlocked: Result<(), trialhead::store::StoreError> = Ok(());
    trialhead::store::finish(&mut conn, unlocked)
        .await
        .expect("unlocks");
    for task in tasks.into_iter().skip(10) {
        task.await
            .expect("ran")
            .expect("stored")
            .expect("nothing is answered");
    }
    assert_eq!(
        stored(&database).await.len(),
        30,
        "what was asked for is done"
    );
    // And the next finds the way free.
    let next = creation(Uuid::now_v7(), "a", 100);
    together.begin(&database, next).await.expect("stored");
}

/// Studies of which each statement gets several, in opposite orders.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_that_ask_for_the_same_in_other_orders_do_not_wait_for_each_other() {
    let test = TestDatabase::create().await;
    let database = database(test.url());
    let mut conn = database.connection().await.expect("a connection");
    // Long enough for the other statement to come to its first probe.
    for part in [
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NULL; END $$",
        "CREATE TRIGGER slow AFTER INSERT ON probes FOR EACH ROW EXECUTE FUNCTION slow()",
        "CREATE FUNCTION slow_row() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.3); RETURN NEW; END $$",
        "CREATE TRIGGER slow_row BEFORE INSERT ON probes FOR EACH ROW EXECUTE FUNCTION slow_row()",
    ] {
        diesel::sql_query(part)
            .execute(&mut conn)
            .await
            .expect("made");
    }
    let batch = |seeds: [u32; 4]| seeds.map(|seed| creation(Uuid::now_v7(), "a", seed));
    let (up, down) = (batch([1, 2, 3, 4]), batch([4, 3, 2, 1]));
    let begin = async |creations: &[Arc<Creation>]| {
        let mut conn = database.connection().await.expect("a connection");
        begin_unknown(&mut conn, creations).await
    };
    let (up, down) = tokio::join!(begin(&up), begin(&down));
    for begun in [up, down] {
        assert!(begun.expect("no deadlock").iter().all(Option::is_some));
    }
}
