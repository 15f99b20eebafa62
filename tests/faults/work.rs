//! Workers away from their service: they need only its address, and whatever ends or cuts them off loses
//! nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ends::{SIMULATED, advice, create};
use crate::postgres::TestDatabase;
use crate::proxy::Proxy;
use crate::server::{PATIENCE, ServerProcess, TRAINING, is_running};
use crate::worker::WorkProcess;

fn first(list: &Value) -> Value {
    list["items"][0]["probe"].clone()
}

#[tokio::test]
async fn a_worker_elsewhere_does_a_study_alone_and_leaves_when_told() {
    let database = TestDatabase::create().await;
    let alone = ServerProcess::start(database.url(), "here", &SIMULATED);
    let path = create(&alone).await;
    let study = alone.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let expected = advice(&alone, &path).await;
    drop(alone);

    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    // Nobody can do it yet, and that is told.
    let path = create(&server).await;
    server
        .until(&path, |study| study["waiting_for"].is_string())
        .await;
    let worker = WorkProcess::start(&server.base, "elsewhere", &SIMULATED, home.path());
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    assert_eq!(advice(&server, &path).await, expected);
    let (code, took) = worker.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn a_worker_told_to_stop_hands_its_probe_back_at_no_cost() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    let worker = WorkProcess::start(&server.base, "one", &["sleep"], home.path());
    worker.with_child().await;
    let (code, took) = worker.terminate();
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(5), "{took:?}");
    let list = server.until(&probes, |_| true).await;
    assert_eq!(first(&list)["state"], "queued", "{list}");

    let _worker = WorkProcess::start(&server.base, "another", &SIMULATED, home.path());
    server.ended(&path).await;
    let list = server.until(&probes, |_| true).await;
    let probe = first(&list);
    assert_eq!(
        (&probe["state"], &probe["attempt"]),
        (&json!("succeeded"), &json!(2))
    );
    assert_eq!(
        (&probe["crashes"], &probe["losses"]),
        (&json!(0), &json!(0))
    );
}

/// Its lease would hold for minutes: what is quick here is not the reaper.
#[tokio::test]
async fn a_killed_worker_that_comes_back_says_at_once_what_it_was_running() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_with_lease(database.url(), 600.0);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    let worker = WorkProcess::start(&server.base, "host", &["sleep"], home.path());
    let child = worker.with_child().await;
    // The journal is written before the child starts.
    worker.kill_9();
    let since = Instant::now();
    while is_running(child) {
        assert!(
            since.elapsed() < Duration::from_secs(5),
            "its child lives on"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let _worker = WorkProcess::start(&server.base, "host", &SIMULATED, home.path());
    let list = server
        .until(&probes, |list| first(list)["state"] == "succeeded")
        .await;
    let probe = first(&list);
    assert!(
        since.elapsed() < Duration::from_secs(60),
        "{:?}",
        since.elapsed()
    );
    // An end without a word is a loss, never taken for a want of memory.
    assert_eq!(
        (&probe["losses"], &probe["crashes"]),
        (&json!(1), &json!(0))
    );
    assert_eq!(probe["attempt"], 2);
}

/// Makes the journal of a killed worker read as if its container, with a limit on memory, were gone.
fn lose_container(home: &Path, host: &str) {
    let folder = home.join(host).join("work/journal/0");
    let mut entries = 0;
    for file in std::fs::read_dir(folder).expect("a journal") {
        let path = file.expect("read").path();
        if path.extension().is_some_and(|end| end == "json") {
            let text = std::fs::read_to_string(&path).expect("text");
            let mut entry: Value = serde_json::from_str(&text).expect("JSON");
            entry["started"]["cgroup"] = json!("another");
            entry["started"]["is_limited"] = json!(true);
            std::fs::write(&path, entry.to_string()).expect("written");
            entries += 1;
        }
    }
    assert_eq!(entries, 1);
}

#[tokio::test]
async fn a_container_killed_for_memory_is_told_after_its_restart_also_when_the_lease_was_lost() {
    for lease_secs in [600.0, 3.0] {
        let database = TestDatabase::create().await;
        let home = tempfile::tempdir().expect("a folder");
        let server = ServerProcess::start_with_lease(database.url(), lease_secs);
        let path = create(&server).await;
        let probes = format!("{path}/probes");
        let worker = WorkProcess::start(&server.base, "host", &["sleep"], home.path());
        worker.with_child().await;
        worker.kill_9();
        lose_container(home.path(), "host");
        if lease_secs < 10.0 {
            server
                .until(&probes, |list| first(list)["state"] == "queued")
                .await;
        }
        // Its children sleep for ever: what ends now was not run again.
        let _worker = WorkProcess::start_with(
            &server.base,
            "host",
            &["sleep"],
            home.path(),
            &[],
            &[("TRIALHEAD_WORK__RESTART_IS_OUT_OF_MEMORY", "true")],
        );
        let list = server
            .until(&probes, |list| first(list)["state"] == "infeasible")
            .await;
        assert_eq!(first(&list)["reason"], "out_of_memory", "{list}");
        assert_eq!(first(&list)["crashes"], 0);
    }
}

#[tokio::test]
async fn a_worker_cut_off_for_longer_than_its_lease_ends_its_child_and_goes_on() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let network = Proxy::start().await;
    network.lead_to(&server.base);
    let path = create(&server).await;
    let probes = format!("{path}/probes");
    let worker = WorkProcess::start(&network.base, "cut off", &["sleep"], home.path());
    worker.with_child().await;
    network.cut();
    let since = Instant::now();
    while !worker.children().is_empty() {
        // The lease is 3 s, the margin 1 s.
        assert!(
            since.elapsed() < Duration::from_secs(4),
            "the child outlived its lease"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    network.lead_to(&server.base);
    let list = server
        .until(&probes, |list| {
            first(list)["attempt"].as_i64() >= Some(2) && first(list)["state"] == "running"
        })
        .await;
    assert_eq!(first(&list)["crashes"], 0, "{list}");
}

#[tokio::test]
async fn a_service_that_stands_still_or_is_cut_off_for_less_than_a_lease_costs_nothing() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let network = Proxy::start().await;
    network.lead_to(&server.base);
    let path = create(&server).await;
    let _worker = WorkProcess::start(&network.base, "host", &SIMULATED, home.path());
    for done in [1, 4, 7, 10] {
        server
            .until(&path, |study| {
                study["progress"]["probes_done"].as_i64() >= Some(done)
                    || study["state"] == "succeeded"
            })
            .await;
        if done % 2 == 0 {
            kill(server.pid(), Signal::SIGSTOP).expect("it runs");
            tokio::time::sleep(Duration::from_millis(800)).await;
            kill(server.pid(), Signal::SIGCONT).expect("it runs");
        } else {
            network.cut();
            tokio::time::sleep(Duration::from_millis(800)).await;
            network.lead_to(&server.base);
        }
    }
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let list = server
        .until(&format!("{path}/probes?page_size=500"), |_| true)
        .await;
    for item in list["items"].as_array().expect("items") {
        let probe = &item["probe"];
        assert_eq!(probe["crashes"], 0, "{probe}");
    }
}

#[tokio::test]
async fn a_data_set_comes_to_a_worker_by_its_content_and_is_kept() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let mut table = String::from("a,b,label\n");
    for row in 0..400 {
        let side = if row % 2 == 0 { 1.0 } else { -1.0 };
        let jitter = f64::from(row % 17) / 10.0;
        let name = if row % 2 == 0 { "up" } else { "down" };
        table.push_str(&format!("{},{},{name}\n", side + jitter, side - jitter));
    }
    let uploaded = server
        .http
        .post(format!("{}/v1/datasets?format=csv", server.base))
        .body(table)
        .send()
        .await
        .expect("an answer");
    let uploaded: Value = uploaded.json().await.expect("JSON");
    let sha256 = uploaded["content_sha256"].as_str().expect("a hash");
    let body = json!({
        "workload": {
            "dataset": {"id": uploaded["id"]},
            "model": {"family": "mlp", "hidden": [8]}
        },
        "batch_sizes": {"min": 8, "max": 16},
        "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
        "questions": ["feasible_batch_sizes"],
    });
    let network = Proxy::start().await;
    network.lead_to(&server.base);
    let _worker = WorkProcess::start(&network.base, "host", TRAINING, home.path());
    let study = server.post("/v1/studies", &body).await;
    let path = format!(
        "/v1/studies/{}",
        study["id"].as_str().unwrap_or_else(|| panic!("{study}"))
    );
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
    let kept = std::fs::read_dir(home.path().join("host").join("work").join("datasets"))
        .expect("a folder");
    let names: Vec<String> = kept
        .map(|entry| {
            entry
                .expect("read")
                .file_name()
                .into_string()
                .expect("text")
        })
        .collect();
    assert_eq!(names, [sha256]);
}

#[tokio::test]
async fn a_transfer_that_breaks_off_goes_on_where_it_was() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let mut table = String::from("a,b,c,d,e,f,g,h,label\n");
    for row in 0..20_000_u32 {
        for column in 1..=8_u32 {
            table.push_str(&format!("{},", f64::from(row * column % 1009) / 7.0));
        }
        table.push_str(if row % 2 == 0 { "up\n" } else { "down\n" });
    }
    let url = format!("{}/v1/datasets?format=csv", server.base);
    let uploaded = server.http.post(url).body(table).send().await;
    let uploaded: Value = uploaded.expect("an answer").json().await.expect("JSON");
    let bytes = uploaded["content_bytes"].as_u64().expect("a size");
    let body = json!({
        "workload": {"dataset": {"id": uploaded["id"]}, "model": {"family": "mlp", "hidden": [8]}},
        "device": {"memory_budget_bytes": 1 << 30, "threads": 1},
        "questions": ["feasible_batch_sizes"],
    });
    let network = Proxy::start().await;
    network.lead_to(&server.base);
    // No connection brings all of it.
    network.break_off_after(bytes / 3);
    let worker = WorkProcess::start(&network.base, "host", &SIMULATED, home.path());
    let study = server.post("/v1/studies", &body).await;
    assert!(study["id"].is_string(), "{study}");
    let sha256 = uploaded["content_sha256"].as_str().expect("a hash");
    let place = home
        .path()
        .join("host")
        .join("work")
        .join("datasets")
        .join(sha256);
    let since = Instant::now();
    while !place.exists() {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "{}",
            worker.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(std::fs::metadata(&place).expect("there").len(), bytes);
    assert!(worker.log().contains("going on"), "{}", worker.log());
}

/// A worker of a user that is not root: its runner is of the same user.
#[tokio::test]
async fn a_runner_of_the_same_user_reads_nothing_of_its_worker() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let path = create(&server).await;
    if nix::unistd::geteuid().is_root() {
        let nobody = trialhead::pool::child::unprivileged_user();
        let host = home.path().join("host");
        std::fs::create_dir(&host).expect("a folder");
        for folder in [home.path(), host.as_path()] {
            std::os::unix::fs::chown(folder, Some(nobody.uid), Some(nobody.gid)).expect("given");
        }
    }
    let token = trialhead::access::NewToken {
        name: "worker".into(),
        scopes: vec![trialhead::access::Scope::Work],
        project: None,
        expires_in_days: None,
    };
    let (token, _) = trialhead::access::create(database.database(), &token)
        .await
        .expect("a token");
    let _worker = WorkProcess::start_unprivileged(
        &server.base,
        "host",
        &["spy"],
        home.path(),
        &[("TRIALHEAD_TOKEN", &token.reveal())],
    );
    let list = server
        .until(&format!("{path}/probes"), |list| {
            first(list)["stderr_tail"].is_string()
        })
        .await;
    let told = first(&list)["stderr_tail"].to_string();
    assert!(!told.contains(&token.reveal()), "{told}");
    for name in ["environ", "mem", "maps"] {
        assert!(told.contains(&format!("{name} is closed")), "{told}");
    }
    assert!(!told.contains("uid 0"), "{told}");
    // What a worker that is closed to others does for its children all the same.
    assert!(told.contains("oom_score_adj 800"), "{told}");
}

#[tokio::test]
async fn a_worker_that_cannot_run_probes_fails_no_study() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let path = create(&server).await;
    let missing = [
        (
            "TRIALHEAD_POOL__CHILD_COMMAND",
            "/nonexistent/program,with,arguments",
        ),
        ("TRIALHEAD_POOL__RETRY_DELAY_SECS", "0.1"),
        ("TRIALHEAD_POOL__MAX_RETRY_DELAY_SECS", "0.4"),
    ];
    let worker =
        WorkProcess::start_with(&server.base, "bad", &["sleep"], home.path(), &[], &missing);
    let probes = format!("{path}/probes");
    let list = server
        .until(&probes, |list| first(list)["attempt"].as_i64() >= Some(5))
        .await;
    let probe = first(&list);
    assert_eq!(
        (&probe["crashes"], &probe["losses"]),
        (&json!(0), &json!(0)),
        "{probe}"
    );
    let log = worker.log();
    assert!(
        log.contains("ERROR") && log.contains("/nonexistent/program"),
        "{log}"
    );
    // And leaves the rest to one that can.
    let _good = WorkProcess::start(&server.base, "good", &SIMULATED, home.path());
    let study = server.ended(&path).await;
    assert_eq!(study["ended_because"], "answered", "{study}");
}

/// The token file is gone for a while: a claim is refused, and so ends the worker, but not what runs beside it.
#[tokio::test]
async fn a_worker_that_is_refused_hands_back_what_the_others_of_its_process_run() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_with_lease(database.url(), 600.0);
    let path = create(&server).await;
    let new = trialhead::access::NewToken {
        name: "worker".into(),
        scopes: vec![trialhead::access::Scope::Work],
        project: None,
        expires_in_days: None,
    };
    let (token, _) = trialhead::access::create(database.database(), &new)
        .await
        .expect("a token");
    let file = home.path().join("token");
    std::fs::write(&file, token.reveal()).expect("written");
    let file_name = file.display().to_string();
    let worker = WorkProcess::start_with(
        &server.base,
        "host",
        &["sleep"],
        home.path(),
        &["--workers", "2", "--token-file", &file_name],
        &[("TRIALHEAD_WORK__WAIT_SECS", "1")],
    );
    let child = worker.with_child().await;
    std::fs::remove_file(&file).expect("removed");
    let since = Instant::now();
    while !worker.log().contains("what the others run is handed back") {
        assert!(
            since.elapsed() < Duration::from_secs(60),
            "{}",
            worker.log()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(
        home.path()
            .join("host")
            .join("work")
            .join("journal/0/stopping")
            .exists(),
        "its end is no want of memory"
    );
    std::fs::write(&file, token.reveal()).expect("written");
    let (code, log) = worker.ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("cannot be read"), "{log}");
    assert!(!is_running(child));
    let list = server.until(&format!("{path}/probes"), |_| true).await;
    let probe = first(&list);
    assert_eq!(
        (&probe["state"], &probe["losses"], &probe["crashes"]),
        (&json!("queued"), &json!(0), &json!(0)),
        "{probe}"
    );
}

#[tokio::test]
async fn once_is_one_probe_and_the_exit_code_tells() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let once = |base: &str, runner: &[&str]| {
        WorkProcess::start_with(
            base,
            "host",
            runner,
            home.path(),
            &["--once"],
            &[("TRIALHEAD_WORK__ONCE_WAIT_SECS", "3")],
        )
    };
    let (code, log) = once(&server.base, &SIMULATED).ended().await;
    assert_eq!(code, Some(3), "nothing is queued: {log}");
    let as_success = [
        ("TRIALHEAD_WORK__ONCE_WAIT_SECS", "1"),
        ("TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE", "0"),
    ];
    let path = home.path();
    let job = WorkProcess::start_with(
        &server.base,
        "host",
        &SIMULATED,
        path,
        &["--once"],
        &as_success,
    );
    let (code, log) = job.ended().await;
    assert_eq!(code, Some(0), "to a Job that is no failure: {log}");

    let path = create(&server).await;
    let (code, log) = once(&server.base, &SIMULATED).ended().await;
    assert_eq!(code, Some(0), "{log}");
    let study = server.until(&path, |_| true).await;
    assert_eq!(study["progress"]["probes_done"], 1, "{study}");
    let (code, log) = once(&server.base, &["exit", "7"]).ended().await;
    assert_eq!(code, Some(4), "it has to be run again: {log}");

    let address = server.base.clone();
    drop(server);
    let (code, log) = once(&address, &SIMULATED).ended().await;
    assert_eq!(code, Some(1), "{log}");
    assert!(
        log.contains(&format!("the service at {address} cannot be reached")),
        "{log}"
    );
}

#[tokio::test]
async fn a_worker_tells_at_its_listener_whether_it_is_well_and_nothing_else() {
    let database = TestDatabase::create().await;
    let home = tempfile::tempdir().expect("a folder");
    let server = ServerProcess::start_without_workers(database.url());
    let network = Proxy::start().await;
    let worker = WorkProcess::start_with(
        &network.base,
        "host",
        &SIMULATED,
        home.path(),
        &["--listen", "127.0.0.1:0"],
        // Ready within 1 + 1 + ½ + ½ seconds of an answer.
        &[
            ("TRIALHEAD_WORK__WAIT_SECS", "1"),
            ("TRIALHEAD_WORK__REQUEST_TIMEOUT_SECS", "1"),
        ],
    );
    let since = Instant::now();
    let base = loop {
        let log = worker.log();
        if let Some((_, rest)) = log.split_once("without tokens, on ") {
            break rest.lines().next().expect("a line").trim().to_owned();
        }
        assert!(since.elapsed() < PATIENCE, "{log}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let asked = async |method: reqwest::Method, path: &str| {
        let request = server.http.request(method, format!("{base}{path}"));
        let answer = request.send().await.expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.text().await.expect("text"))
    };
    let get = async |path: &str| asked(reqwest::Method::GET, path).await;
    let until_ready = async |wanted: u16| {
        let since = Instant::now();
        loop {
            let (status, text) = get("/readyz").await;
            if status == wanted {
                return text;
            }
            assert!(since.elapsed() < PATIENCE, "{status} {text}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // Alive at once; ready when the service has answered, and only as long as it does.
    assert_eq!(get("/healthz").await.0, 200);
    let (status, text) = get("/readyz").await;
    assert_eq!(status, 503);
    assert!(text.contains("not answered this worker yet"), "{text}");
    network.lead_to(&server.base);
    until_ready(200).await;
    network.cut();
    let text = until_ready(503).await;
    assert!(text.contains("has not answered this worker for"), "{text}");
    assert_eq!(get("/healthz").await.0, 200);
    network.lead_to(&server.base);
    until_ready(200).await;

    let path = create(&server).await;
    server.ended(&path).await;
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, 200);
    for told in [
        "role=\"work\"",
        "trialhead_probe_duration_seconds_count{kind=\"smoke\",outcome=\"succeeded\"} 1",
    ] {
        assert!(metrics.contains(told), "{told}: {metrics}");
    }
    for path in [
        "/v1/studies",
        "/metrics/service",
        "/docs",
        "/openapi.json",
        "/",
    ] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
    assert_eq!(asked(reqwest::Method::POST, "/healthz").await.0, 405);
}

#[tokio::test]
async fn a_worker_that_is_not_admitted_or_asks_somebody_else_says_so_and_ends() {
    let home = tempfile::tempdir().expect("a folder");
    for (status, expected) in [
        ("401 Unauthorized", "refuses this worker"),
        ("404 Not Found", "no Trialhead service"),
    ] {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let answering = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    return;
                };
                let mut request = [0; 8192];
                let _ = stream.read(&mut request).await;
                let answer =
                    format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let worker = WorkProcess::start_with(
            &base,
            "host",
            &["noop"],
            home.path(),
            &[],
            &[("TRIALHEAD_TOKEN", "hunter2")],
        );
        let (code, log) = worker.ended().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains(expected) && log.contains(&base), "{log}");
        assert!(!log.contains("hunter2"), "{log}");
        answering.abort();
    }
    let (code, log) = WorkProcess::start("localhost", "host", &["noop"], home.path())
        .ended()
        .await;
    assert_eq!(code, Some(1));
    assert!(log.contains("http://HOST:PORT"), "{log}");
}
