//! `trialhead study …` as the process it is, against a real service.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use trialhead::access::Scope;

use crate::service::{TestService, digits};

/// `trialhead study …` against a service.
fn study(base: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trialhead"));
    command
        .arg("study")
        .args(arguments)
        .env_clear()
        .env("TRIALHEAD_SERVER", base);
    command
}

/// Runs the program against a service; what is given goes to its standard input.
async fn run(base: &str, token: Option<&str>, arguments: &[&str], input: &str) -> Output {
    let mut command = study(base, arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(token) = token {
        command.env("TRIALHEAD_TOKEN", token);
    }
    let input = input.to_owned();
    let run = move || {
        let mut child = command.spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("piped");
        // One that has refused its arguments reads nothing.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    tokio::task::spawn_blocking(run).await.expect("it ran")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

#[track_caller]
fn code(output: &Output, expected: i32) {
    assert_eq!(output.status.code(), Some(expected), "{output:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_study_is_submitted_watched_and_read() {
    let service = TestService::with_worker().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("study.yaml");
    // Any JSON is YAML.
    std::fs::write(&file, digits().to_string()).expect("writes");
    let file = file.display().to_string();

    let dry = run(&service.base, None, &["submit", &file, "--dry-run"], "").await;
    code(&dry, 0);
    assert!(out(&dry).contains(" of device time"), "{dry:?}");
    let none = run(&service.base, None, &["list", "--output", "json"], "").await;
    assert_eq!(out(&none).trim(), "[]");

    let watched = run(&service.base, None, &["submit", &file, "--watch"], "").await;
    code(&watched, 0);
    // Advice on standard output; progress, in plain lines, beside it.
    assert!(
        out(&watched).contains("feasible_batch_sizes"),
        "{watched:?}"
    );
    assert!(!out(&watched).contains('\u{1b}'), "{watched:?}");
    assert!(err(&watched).contains(" of device time"), "{watched:?}");
    assert!(!err(&watched).contains('\u{1b}'), "{watched:?}");

    let list = run(&service.base, None, &["list", "--state", "succeeded"], "").await;
    code(&list, 0);
    assert_eq!(out(&list).lines().count(), 2, "{list:?}");
    let json_list = run(
        &service.base,
        None,
        &["list", "-o", "json", "--label", "team:vision"],
        "",
    )
    .await;
    let listed: Value = serde_json::from_slice(&json_list.stdout).expect("JSON");
    let id = listed[0]["id"].as_str().expect("an id").to_owned();

    let shown = run(&service.base, None, &["show", &id, "--watch"], "").await;
    code(&shown, 0);
    assert!(
        out(&shown).contains("every question has its answer"),
        "{shown:?}"
    );

    let advice = run(
        &service.base,
        None,
        &[
            "recommendations",
            &id,
            "--topic",
            "feasible_batch_sizes",
            "-o",
            "json",
        ],
        "",
    )
    .await;
    let advice: Value = serde_json::from_slice(&advice.stdout).expect("JSON");
    assert_eq!(
        advice["items"].as_array().map(Vec::len),
        Some(1),
        "{advice}"
    );

    let export = folder.path().join("all.ndjson");
    let path = export.display().to_string();
    let written = run(
        &service.base,
        None,
        &["export", &id, "--format", "ndjson", "--file", &path],
        "",
    )
    .await;
    code(&written, 0);
    let lines = std::fs::read_to_string(&export).expect("there");
    for line in lines.lines() {
        let one: Value = serde_json::from_str(line).expect("JSON");
        assert!(one["value"].is_number(), "{line}");
    }
    let csv = run(&service.base, None, &["export", &id], "").await;
    assert_eq!(out(&csv).lines().count(), lines.lines().count() + 1);
    assert!(!folder.path().join("all.ndjson.part").exists());

    // `export … | head` is well when head has had enough.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut export = study(&service.base, &["export", &id]);
    export.stdout(writer);
    let status = tokio::task::spawn_blocking(move || export.status());
    let status = status.await.expect("it ran").expect("it starts");
    assert_eq!(status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_tell_scripts_what_came_of_it() {
    let service = TestService::without_workers().await;
    let base = &service.base;
    let invalid = json!({"workload": {"dataset": {"builtin": "digits"}}, "batch_sizes": {"min": 8, "max": 4}});
    let refused = run(base, None, &["submit", "-"], &invalid.to_string()).await;
    code(&refused, 2);
    assert!(
        err(&refused).contains("/batch_sizes/min: must be at most max"),
        "{refused:?}"
    );
    let no_json = run(base, None, &["submit", "-"], "workload: [").await;
    code(&no_json, 2);
    let unknown = "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33";
    code(&run(base, None, &["show", unknown], "").await, 7);
    code(&run(base, None, &["show", "nothing"], "").await, 2);

    // Two submissions with one key are one study.
    let key = ["submit", "-", "--idempotency-key", "the-key", "-o", "json"];
    let first = run(base, None, &key, &digits().to_string()).await;
    let second = run(base, None, &key, &digits().to_string()).await;
    let id = |output: &Output| -> Value {
        let study: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        study["id"].clone()
    };
    assert_eq!(id(&first), id(&second));
    let id = id(&first).as_str().expect("an id").to_owned();

    let watching = {
        let (base, id) = (base.clone(), id.clone());
        tokio::spawn(async move { run(&base, None, &["show", &id, "--watch"], "").await })
    };
    code(&run(base, None, &["cancel", &id], "").await, 0);
    code(&watching.await.expect("it ends"), 4);

    code(&run("http://127.0.0.1:9", None, &["list"], "").await, 5);
    code(&run("ftp://nowhere", None, &["list"], "").await, 2);

    let (guarded, _) = TestService::guarded(|_| {}).await;
    let nobody = run(&guarded.base, None, &["list"], "").await;
    code(&nobody, 6);
    assert!(err(&nobody).contains("TRIALHEAD_TOKEN"), "{nobody:?}");
    let reader = guarded.token("reader", &[Scope::Read], None).await;
    code(&run(&guarded.base, Some(&reader), &["list"], "").await, 0);
    let refused = run(
        &guarded.base,
        Some(&reader),
        &["submit", "-"],
        &digits().to_string(),
    )
    .await;
    code(&refused, 6);
    assert!(!err(&refused).contains(&reader));
}

/// The program with nothing but these variables.
async fn doctor(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trialhead"));
    command
        .arg("doctor")
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs(variables.iter().copied());
    let run = move || command.output().expect("it runs");
    tokio::task::spawn_blocking(run).await.expect("it ran")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_says_what_is_well_and_what_to_mend() {
    let database = crate::postgres::TestDatabase::create().await;
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let locks = folder.path().join("locks").display().to_string();
    let program = serde_json::to_string(&crate::service::trained().join(",")).expect("JSON");
    let program = program.trim_matches('"');
    let well = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
        ("TRIALHEAD_POOL__LOCK_DIR", &locks),
        ("TRIALHEAD_POOL__CHILD_COMMAND", program),
        // What other commands take from the environment is no setting of the service.
        ("TRIALHEAD_SERVER", "http://127.0.0.1:9"),
    ];
    let output = doctor(&well, &["--json"]).await;
    code(&output, 0);
    let findings: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for check in [
        "data folder",
        "database",
        "connections",
        "clock",
        "migrations",
        "tokens",
        "locks",
        "device",
        "probes",
    ] {
        let found = findings
            .as_array()
            .expect("a list")
            .iter()
            .find(|it| it["check"] == check);
        let verdict = found.map(|it| &it["verdict"]);
        assert!(
            verdict.is_some_and(|it| it == "ok" || it == "warning"),
            "{check}: {findings}"
        );
    }

    // Beyond loopback without a token, with a child that cannot be started.
    let mut ill = well.to_vec();
    ill.push(("TRIALHEAD_LISTEN", "0.0.0.0:0"));
    ill[3].1 = "/nonexistent/program";
    let output = doctor(&ill, &[]).await;
    code(&output, 1);
    let said = out(&output);
    assert!(said.contains("-> trialhead token create"), "{said}");
    assert!(
        said.lines().any(|line| line.starts_with("PROBLEM  probes")),
        "{said}"
    );

    // The password of an address that nobody answers at is not told.
    let mut away = well.to_vec();
    away[0].1 = "postgres://somebody:hunter2@127.0.0.1:9/nothing";
    let output = doctor(&away, &[]).await;
    code(&output, 1);
    let said = out(&output) + &err(&output);
    assert!(said.contains("PROBLEM  database"), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}
