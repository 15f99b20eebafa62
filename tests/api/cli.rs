//! `trialhead study …` as the process it is, against a real service.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
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

const YAML: &str = "
# What a person writes.
name: digits, first batch size
labels:
  team: vision
workload:
  dataset: {builtin: digits}
  model:
    family: mlp
    hidden: [64]
batch_sizes:
  min: 1
  max: 64
seed: 7
";

const TOML: &str = r#"
# What a person writes.
name = "digits, first batch size"
labels.team = "vision"
seed = 7

[workload.dataset]
builtin = "digits"

[workload.model]
family = "mlp"
hidden = [64]

[batch_sizes]
min = 1
max = 64
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_study_is_the_same_in_yaml_toml_and_json() {
    let service = TestService::without_workers().await;
    let folder = tempfile::tempdir().expect("a folder");
    let json = json!({
        "name": "digits, first batch size", "labels": {"team": "vision"}, "seed": 7,
        "workload": {"dataset": {"builtin": "digits"}, "model": {"family": "mlp", "hidden": [64]}},
        "batch_sizes": {"min": 1, "max": 64},
    });
    let mut definitions = Vec::new();
    for (name, text) in [
        ("study.yaml", YAML),
        ("study.toml", TOML),
        ("study.json", &json.to_string()),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("writes");
        let file = file.display().to_string();
        let made = run(&service.base, None, &["submit", &file, "-o", "json"], "").await;
        code(&made, 0);
        let study: Value = serde_json::from_slice(&made.stdout).expect("JSON");
        let id = study["id"].as_str().expect("an id");
        let definition = service.get(&format!("/v1/studies/{id}/definition")).await;
        definitions.push(definition.json());
    }
    assert_eq!(definitions[0], definitions[1]);
    assert_eq!(definitions[0], definitions[2]);
    assert_eq!(definitions[0]["workload"]["model"]["hidden"], json!([64]));
    // What cannot be read is said with its place.
    for (name, text, place) in [
        ("bad.yaml", "name: [1, 2\nseed: 7\n", "line"),
        ("bad.toml", "name = \"a\"\nseed = = 7\n", "line 2"),
        ("bad.json", "{\"name\": \"a\",\n \"seed\": }", "line 2"),
    ] {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("writes");
        let file = file.display().to_string();
        let refused = run(&service.base, None, &["submit", &file], "").await;
        code(&refused, 2);
        assert!(err(&refused).contains(place), "{refused:?}");
        assert!(err(&refused).contains(name), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_study_without_an_answer_and_a_command_that_fails_have_codes_of_their_own() {
    let service = TestService::start(|settings| {
        let fails = [
            crate::fake::executable().display().to_string(),
            "failed".into(),
        ];
        settings.pool.child_command = Some(fails.to_vec());
    })
    .await;
    let base = &service.base;
    let watched = run(
        base,
        None,
        &["submit", "-", "--watch"],
        &digits().to_string(),
    )
    .await;
    code(&watched, 3);
    let list = run(base, None, &["list", "--state", "failed", "-o", "json"], "").await;
    let list: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    let id = list[0]["id"].as_str().expect("an id");
    let nowhere = ["export", id, "--file", "/nonexistent/folder/all.csv"];
    let failed = run(base, None, &nowhere, "").await;
    code(&failed, 1);
    assert!(err(&failed).contains("/nonexistent/folder"), "{failed:?}");
    let missing = run(base, None, &["submit", "/nonexistent/study.json"], "").await;
    code(&missing, 2);
    assert!(
        err(&missing).contains("/nonexistent/study.json"),
        "{missing:?}"
    );
}

/// More rows than one statement of the export reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_of_many_measurements_is_whole_and_in_order() {
    let service = TestService::with_worker().await;
    let path = service.create(&digits()).await;
    service.ended(&path).await;
    let id = path.rsplit('/').next().expect("an id");
    crate::postgres::execute(
        service.database.url(),
        &format!(
            "INSERT INTO measurements (probe, attempt, seq, metric, value, unit, elapsed_secs)
             SELECT p.id, p.attempt, 100000 + n, 'my_own', n, 'count', n / 1000.0
               FROM (SELECT id, attempt FROM study_probes JOIN probes ON id = probe
                      WHERE study = '{id}' AND state = 'succeeded' ORDER BY id LIMIT 1) p,
                    generate_series(0, 6999) n"
        ),
    )
    .await;
    let csv = run(&service.base, None, &["export", id], "").await;
    code(&csv, 0);
    let text = out(&csv);
    let mut lines = text.lines();
    let header: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let column = |name: &str| header.iter().position(|it| *it == name).expect("a column");
    let (metric, seq) = (column("metric"), column("seq"));
    let rows: Vec<Vec<&str>> = lines.map(|line| line.split(',').collect()).collect();
    let others = rows.iter().filter(|row| row[metric] != "my_own").count();
    assert!(others > 0);
    let seqs: Vec<u64> = rows
        .iter()
        .filter(|row| row[metric] == "my_own")
        .map(|row| row[seq].parse().expect("a number"))
        .collect();
    assert!(seqs.iter().copied().eq(100_000..107_000), "{}", seqs.len());
    let ndjson = run(
        &service.base,
        None,
        &["export", id, "--format", "ndjson"],
        "",
    )
    .await;
    let seqs: Vec<u64> = out(&ndjson)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"))
        .filter(|it| it["metric"] == "my_own")
        .map(|it| it["seq"].as_u64().expect("a number"))
        .collect();
    assert!(seqs.iter().copied().eq(100_000..107_000), "{}", seqs.len());
    assert_eq!(out(&ndjson).lines().count(), rows.len());
}

/// What a command writes to a terminal of 80 columns, which its standard error is.
async fn on_a_terminal(mut command: Command) -> (Output, String) {
    let size = nix::pty::Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = nix::pty::openpty(&size, None).expect("a terminal");
    // What another test starts meanwhile must not hold it open.
    for end in [&pty.master, &pty.slave] {
        let close = FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC);
        fcntl(end, close).expect("a flag");
    }
    command
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::from(pty.slave));
    let mut screen = std::fs::File::from(pty.master);
    let run = move || {
        let child = command.spawn().expect("it starts");
        // The terminal's other end is this process's no more, so that reading ends with the child.
        drop(command);
        let reading = std::thread::spawn(move || {
            let mut shown = Vec::new();
            // The end of a terminal is an error of its own kind.
            let _ = std::io::Read::read_to_end(&mut screen, &mut shown);
            String::from_utf8_lossy(&shown).into_owned()
        });
        let output = child.wait_with_output().expect("it ends");
        (output, reading.join().expect("read"))
    };
    tokio::task::spawn_blocking(run).await.expect("it ran")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_terminal_a_bar_tells_how_far_it_is() {
    let service = TestService::with_worker().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("study.json");
    std::fs::write(&file, digits().to_string()).expect("writes");
    let file = file.display().to_string();
    let (output, screen) = on_a_terminal(study(&service.base, &["submit", &file, "--watch"])).await;
    code(&output, 0);
    // It is drawn over and over, with the probes done, the phase and the device time in it.
    assert!(screen.contains('\u{1b}'), "{screen}");
    assert!(screen.contains(" probes"), "{screen}");
    assert!(screen.contains(" of device time"), "{screen}");
    assert!(screen.contains(" left"), "{screen}");
    // The answer is not mixed with it.
    assert!(!out(&output).contains('\u{1b}'), "{output:?}");
    assert!(out(&output).contains("feasible_batch_sizes"), "{output:?}");
}

#[test]
fn shells_complete_the_commands() {
    let script = |shell: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_trialhead"))
            .args(["completion", shell])
            .output()
            .expect("it runs");
        code(&output, 0);
        out(&output)
    };
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let text = script(shell);
        for word in ["recommendations", "submit", "doctor"] {
            assert!(text.contains(word), "{shell} does not know {word}");
        }
    }
    // And bash does it.
    let asked = r#"
        complete() { function="${*: -2:1}"; }
        eval "$(cat)"
        unset -f complete
        COMP_WORDS=(trialhead study sub) COMP_CWORD=2
        _trialhead trialhead sub study
        printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let mut bash = Command::new("bash")
        .args(["-c", asked])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("bash");
    let mut stdin = bash.stdin.take().expect("piped");
    stdin.write_all(script("bash").as_bytes()).expect("sent");
    drop(stdin);
    let said = bash.wait_with_output().expect("it ends");
    assert_eq!(out(&said).trim(), "submit", "{said:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_finds_each_thing_that_is_wrong() {
    let database = crate::postgres::TestDatabase::create().await;
    let empty = crate::postgres::TestDatabase::create_empty().await;
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let locks = folder.path().join("locks").display().to_string();
    let file = folder.path().join("file");
    std::fs::write(&file, "").expect("writes");
    let file = file.display().to_string();
    let program = crate::service::trained().join(",");
    let well = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
        ("TRIALHEAD_POOL__LOCK_DIR", &locks),
        ("TRIALHEAD_POOL__CHILD_COMMAND", &program),
        ("TRIALHEAD_POOL__DEVICES", "cpu"),
        ("TRIALHEAD_DATABASE__MIGRATE", "check"),
    ];
    for (check, setting, value, mend) in [
        ("migrations", 0, empty.url(), "trialhead migrate"),
        ("data folder", 1, file.as_str(), "TRIALHEAD_DATA_DIR"),
        ("locks", 2, file.as_str(), "pool.lock_dir"),
        ("devices", 4, "cuda", "pool.devices"),
    ] {
        let mut ill = well.to_vec();
        ill[setting].1 = value;
        let output = doctor(&ill, &[]).await;
        code(&output, 1);
        let said = out(&output);
        let problem = format!("PROBLEM  {check}");
        let lines: Vec<&str> = said
            .lines()
            .skip_while(|line| !line.starts_with(&problem))
            .take(3)
            .collect();
        assert!(!lines.is_empty(), "{check} is not found:\n{said}");
        assert!(
            lines.iter().any(|line| line.contains(mend)),
            "{check} does not say what to mend:\n{said}"
        );
    }
}
