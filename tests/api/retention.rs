//! What was kept long enough goes, and nothing else does.

use std::time::{Duration, Instant};

use serde_json::json;
use trialhead::settings::Settings;

use crate::postgres::{TestDatabase, count, execute};
use crate::service::{PATIENCE, TestService, digits};

/// Makes everything of a study older by so many days.
async fn age(database: &TestDatabase, study: &str, days: u32) {
    let id = study.rsplit_once('/').expect("a path").1;
    execute(
        database.url(),
        &format!(
            "UPDATE studies SET ended_at = ended_at - make_interval(days => {days}) WHERE id = '{id}'; \
             UPDATE probes SET ended_at = ended_at - make_interval(days => {days}) \
             WHERE id IN (SELECT probe FROM study_probes WHERE study = '{id}')"
        ),
    )
    .await;
}

#[tokio::test]
async fn studies_are_kept_for_as_long_as_the_setting_says_and_their_probes_for_as_long_as_theirs() {
    let service = TestService::with_worker().await;
    let mut paths = Vec::new();
    for seed in 0..3 {
        let mut body = digits();
        // Probes of its own.
        body["seed"] = json!(seed);
        body["reuse"] = json!(false);
        let path = service.create(&body).await;
        service.ended(&path).await;
        paths.push(path);
    }
    let active = service.create(&digits()).await;
    service
        .http
        .post(format!("{}{active}/cancel", service.base))
        .send()
        .await
        .expect("cancelled");
    let database = service.stop().await;
    age(&database, &paths[0], 100).await;
    age(&database, &paths[1], 40).await;
    age(&database, &paths[2], 20).await;
    let left = async |what: &str| count(database.url(), what).await;
    let measured = left("measurements").await;
    assert!(measured > 0);

    let restart = async |database, change: fn(&mut Settings)| {
        TestService::start_on(database, |settings| {
            settings.workers = 0;
            change(settings);
        })
        .await
    };
    let still = async |service: &TestService| {
        let mut still = Vec::new();
        for path in &paths {
            still.push(service.get(path).await.status == 200);
        }
        still
    };
    // Without the setting for ever.
    let service = restart(database, |_| {}).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(still(&service).await, [true, true, true]);
    let database = service.stop().await;
    let service = restart(database, |settings| {
        settings.retention.study_days = Some(30)
    })
    .await;
    let deadline = Instant::now() + PATIENCE;
    while still(&service).await[..2] != [false, false] {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(still(&service).await, [false, false, true]);
    // The probes of the second are kept for reuse, those of the first are not.
    let url = service.database.url().to_owned();
    let old = "probes WHERE ended_at < now() - interval '90 days'";
    while count(&url, old).await > 0 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let reusable = "probes WHERE ended_at < now() - interval '30 days'";
    assert!(count(&url, reusable).await > 0);
    let now = count(&url, "measurements").await;
    assert!(0 < now && now < measured, "{now} of {measured}");
    assert_eq!(count(&url, "study_revisions").await, 2);
    let list = service.get("/v1/studies").await.json();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
}
