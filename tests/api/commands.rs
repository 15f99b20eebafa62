//! The commands `token` and `serve` as the processes they are.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use trialhead::access::TokenText;

use crate::postgres::{ServerDirectory, TestDatabase, execute};
use crate::service::{Answer, PATIENCE, digits, http_client};

/// The program with nothing but these variables.
fn program(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trialhead"));
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("NO_COLOR", "1")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command
}

pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    program(arguments, variables).output().expect("it runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).expect("text")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

/// A running `trialhead serve`; killed when dropped.
pub struct Serving {
    child: Child,
    pub base: String,
    lines: mpsc::Receiver<String>,
}

impl Serving {
    pub fn start(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = program(arguments, variables)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let read = BufReader::new(child.stderr.take().expect("piped")).lines();
        let (said, lines) = mpsc::channel();
        // Somebody must read on, or the service would wait for its own log.
        std::thread::spawn(move || {
            for line in read.map_while(Result::ok) {
                if said.send(line).is_err() {
                    break;
                }
            }
        });
        let mut before = String::new();
        let base = loop {
            let line = lines
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("it ended before it served: {before}"));
            if let Some((_, rest)) = line.split_once("serving on ") {
                let address = rest.split(';').next().unwrap_or_default();
                break address.replace("0.0.0.0", "127.0.0.1");
            }
            before.push_str(&line);
            before.push('\n');
        };
        Self { child, base, lines }
    }

    pub async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        let mut request = http_client().get(format!("{}{path}", self.base));
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Answer::of(request).await
    }

    /// Ends it and gives what it has logged since it served.
    pub fn stop(mut self) -> String {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, Signal::SIGTERM).expect("it is there");
        self.child.wait().expect("it ends");
        self.lines.iter().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_token_is_made_listed_and_revoked_on_the_command_line() {
    let database = TestDatabase::create().await;
    let variables = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_LOG__FILTER", "trace"),
    ];
    let made = run(
        &[
            "token",
            "create",
            "--name",
            "nightly build",
            "--scope",
            "write",
            "--scope",
            "read",
            "--project",
            "vision",
            "--expires-in-days",
            "30",
        ],
        &variables,
    );
    // The token alone on stdout, and nowhere else.
    let token = stdout(&made).strip_suffix('\n').expect("a line").to_owned();
    let text = TokenText::parse(&token).expect("a token");
    let secret = &token[token.len() - 43..];
    let said = stderr(&made);
    assert!(!said.contains(secret), "{said}");
    assert!(said.contains(&text.id().to_string()), "{said}");
    assert!(said.contains("not shown again"), "{said}");

    let listed = run(&["token", "list"], &variables);
    let table = stdout(&listed);
    let line = table.lines().nth(1).expect("a line");
    for part in [
        &text.id().to_string(),
        "nightly build",
        "read,write",
        "vision",
        "live",
    ] {
        assert!(line.contains(part), "{part} in {table}");
    }
    let as_json = run(&["token", "list", "--json"], &variables);
    let list: Value = serde_json::from_str(&stdout(&as_json)).expect("JSON");
    assert_eq!(list.as_array().expect("a list").len(), 1);
    assert_eq!(list[0]["id"], text.id().to_string());
    assert_eq!(list[0]["scopes"], serde_json::json!(["read", "write"]));
    assert_eq!(list[0]["last_used_at"], Value::Null);
    assert!(list[0]["expires_at"].is_string());
    for output in [&listed, &as_json] {
        let all = format!("{}{}", stdout(output), stderr(output));
        assert!(!all.contains(secret));
    }

    let id = text.id().to_string();
    assert!(run(&["token", "revoke", &id], &variables).status.success());
    let table = stdout(&run(&["token", "list"], &variables));
    assert!(table.contains("revoked"), "{table}");
    // Again is fine; another is not.
    assert!(run(&["token", "revoke", &id], &variables).status.success());
    let unknown = run(
        &["token", "revoke", &uuid::Uuid::now_v7().to_string()],
        &variables,
    );
    assert_eq!(unknown.status.code(), Some(1));
    assert!(stderr(&unknown).contains("there is no token"));

    for (bad, why) in [
        (&["--name", "x"][..], "--scope"),
        (&["--name", "x", "--scope", "root"], "root"),
        (&["--name", "", "--scope", "read"], "name"),
        (&["--name", "anonymous", "--scope", "read"], "anonymous"),
        (
            &["--name", "x", "--scope", "read", "--project", "a/b"],
            "project",
        ),
        (
            &["--name", "x", "--scope", "read", "--expires-in-days", "0"],
            "3650",
        ),
    ] {
        let refused = run(&[&["token", "create"], bad].concat(), &variables);
        assert!(!refused.status.success(), "{bad:?}");
        assert_eq!(refused.stdout, b"", "{bad:?}");
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
}

#[tokio::test]
async fn serving_beyond_loopback_is_refused_without_a_live_token() {
    let database = TestDatabase::create().await;
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().display().to_string();
    let variables = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
    ];
    let serve = ["serve", "--listen", "0.0.0.0:0", "--workers", "0"];
    let refused = || {
        let output = run(&serve, &variables);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains("trialhead token create --name admin --scope admin"),
            "{said}"
        );
    };
    refused();
    let create = ["token", "create", "--name", "gone", "--scope", "admin"];
    stdout(&run(&create, &variables));
    execute(database.url(), "UPDATE tokens SET revoked_at = now()").await;
    refused();
    let create = [
        "token",
        "create",
        "--name",
        "gone",
        "--scope",
        "admin",
        "--expires-in-days",
        "1",
    ];
    stdout(&run(&create, &variables));
    execute(
        database.url(),
        "UPDATE tokens SET expires_at = now() - interval '1 second'",
    )
    .await;
    refused();

    let create = ["token", "create", "--name", "admin", "--scope", "admin"];
    let token = stdout(&run(&create, &variables));
    let serving = Serving::start(&serve, &variables);
    let answer = serving.get("/v1/studies", None).await;
    answer.problem(401, "token_missing");
    let answer = serving.get("/v1/studies", Some(token.trim())).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    serving.stop();

    // With --insecure nobody is asked.
    execute(database.url(), "DELETE FROM tokens").await;
    let serving = Serving::start(&[&serve[..], &["--insecure"]].concat(), &variables);
    assert_eq!(serving.get("/v1/studies", None).await.status, 200);
}

#[tokio::test]
async fn a_service_that_needs_tokens_says_how_the_first_is_made() {
    let database = TestDatabase::create().await;
    for (rule, listen) in [("required", "127.0.0.1:0"), ("auto", "0.0.0.0:0")] {
        let serve = ["serve", "--listen", listen, "--workers", "0"];
        let variables = [
            ("DATABASE_URL", database.url()),
            ("TRIALHEAD_API__TOKENS", rule),
        ];
        let refused = run(&serve, &variables);
        assert_eq!(refused.status.code(), Some(1));
        let log = stderr(&refused);
        assert!(log.contains("trialhead token create --name"), "{log}");
        assert_eq!(log.contains("listen on 127.0.0.1"), rule == "auto", "{log}");
    }
}

#[test]
fn a_worker_says_at_once_what_its_settings_lack() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let file = folder.path().join("token");
    let token = file.display().to_string();
    let nowhere = "http://127.0.0.1:9";
    // The runner that the flag brings is one.
    let only = ["work", "--runner", "mine=true", "--data-dir", &data];
    let alone = [("TRIALHEAD_POOL__OFFERS_BURN", "false")];
    let log = stderr(&run(&only, &alone));
    assert!(log.contains("no service is named"), "{log}");

    let work = ["work", "--server", nowhere, "--data-dir", &data];
    for (text, why) in [
        ("one\ntwo\n", "several lines"),
        ("", "is empty"),
        ("a\u{1b}b", "characters that no access token has"),
    ] {
        std::fs::write(&file, text).expect("written");
        let with_file = [&work[..], &["--token-file", &token]].concat();
        let refused = run(&with_file, &[]);
        assert_eq!(refused.status.code(), Some(1));
        let log = stderr(&refused);
        assert!(log.contains(&token) && log.contains(why), "{log}");
    }
    let log = stderr(&run(&work, &[("TRIALHEAD_TOKEN", "one\ntwo")]));
    assert!(log.contains("TRIALHEAD_TOKEN holds several lines"), "{log}");

    // Nobody watches: no colours.
    let once = [&work[..], &["--once"]].concat();
    let variables = [("NO_COLOR", ""), ("TRIALHEAD_WORK__ONCE_WAIT_SECS", "0.1")];
    let log = stderr(&run(&once, &variables));
    assert!(log.contains("INFO") && !log.contains('\u{1b}'), "{log:?}");
}

#[test]
fn a_check_of_a_runner_says_what_is_wrong_in_words() {
    let check = |command: &str| {
        let output = run(&["runner", "check", command, "--kinds", "smoke"], &[]);
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stdout).expect("text")
    };
    let told = check("no-such-program-anywhere --x");
    assert!(told.contains("not found"), "{told}");
    let told = check("sh -c 'printf \"\\033[31mred\\007\" >&2; exit 1'");
    assert!(told.contains("red"), "{told}");
    let is_strange = |it: char| it.is_control() && it != '\n';
    assert!(!told.contains(is_strange), "{told:?}");
}

#[tokio::test]
async fn no_log_line_shows_a_secret() {
    let database = TestDatabase::create().await;
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().display().to_string();
    let variables = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
        ("TRIALHEAD_LOG__FILTER", "trace"),
        ("TRIALHEAD_API__TOKENS", "required"),
    ];
    let create = ["token", "create", "--name", "admin", "--scope", "admin"];
    let made = run(&create, &variables);
    let token = stdout(&made).trim().to_owned();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--workers", "0"];
    let serving = Serving::start(&serve, &variables);
    let stranger = TokenText::mint().expect("randomness").reveal();
    let malformed = format!("{stranger}x");
    for _ in 0..3 {
        let answer = serving.get("/v1/studies", Some(&token)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let answer = serving.get("/v1/studies", Some(&stranger)).await;
        answer.problem(401, "token_unknown");
        assert!(!answer.text.contains(&stranger[stranger.len() - 43..]));
        let answer = serving.get("/v1/studies", Some(&malformed)).await;
        answer.problem(401, "token_malformed");
    }
    let log = serving.stop();
    assert!(
        log.contains("/v1/studies"),
        "the log tells of requests: {log}"
    );
    assert!(log.contains("TRACE"), "it tells everything: {log}");
    for secret in [&token, &stranger] {
        let secret = &secret[secret.len() - 43..];
        assert!(!log.contains(secret));
        assert!(!stderr(&made).contains(secret));
    }
}

/// Lines of an object each, with the ids that somebody who looks for a request, a study or a probe has.
#[tokio::test]
async fn log_lines_are_objects_with_the_ids_of_what_they_are_about() {
    let database = TestDatabase::create().await;
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (data, locks) = (at("data"), at("locks"));
    let child = format!(
        "{},simulate,2e7,1e5,1e-3,1e-5",
        crate::fake::executable().display()
    );
    let variables = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
        ("TRIALHEAD_POOL__LOCK_DIR", &locks),
        ("TRIALHEAD_POOL__HOST", &data),
        ("TRIALHEAD_POOL__DEVICES", "cpu"),
        ("TRIALHEAD_POOL__CHILD_COMMAND", &child),
        ("TRIALHEAD_LOG__FORMAT", "json"),
        ("TRIALHEAD_LOG__FILTER", "info,trialhead::api=debug"),
    ];
    let serving = Serving::start(&["serve", "--listen", "127.0.0.1:0"], &variables);
    let http = http_client();
    let post = http
        .post(format!("{}/v1/studies", serving.base))
        .header("x-request-id", "made-by-the-test")
        .json(&digits());
    let study = Answer::of(post).await.json()["id"].clone();
    let path = format!("/v1/studies/{}", study.as_str().expect("an id"));
    let until = Instant::now() + PATIENCE;
    let probe = loop {
        assert!(Instant::now() < until, "no probe succeeded");
        let list = serving.get(&format!("{path}/probes"), None).await.json();
        let items = list["items"].as_array().expect("a list");
        let ended = items.iter().find(|it| it["probe"]["state"] == "succeeded");
        if let Some(ended) = ended {
            break ended["probe"]["id"].clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let named = http
        .get(format!("{}{path}", serving.base))
        .header("x-request-id", "asked-by-the-test");
    assert_eq!(Answer::of(named).await.status, 200);
    let log = serving.stop();
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no object: {line}")))
        .collect();
    assert!(
        lines
            .iter()
            .all(|it| it["timestamp"].is_string() && it["level"].is_string()),
        "{log}"
    );
    // Whatever a request's handler says carries the request's id.
    let created = lines.iter().find(|it| it["message"] == "study created");
    let created = created.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(created["study"], study);
    assert_eq!(created["span"]["request_id"], "made-by-the-test");
    let asked = lines
        .iter()
        .find(|it| it["span"]["request_id"] == "asked-by-the-test");
    let asked = asked.unwrap_or_else(|| panic!("{log}"));
    assert_eq!(
        (&asked["message"], &asked["status"]),
        (&"answered".into(), &200.into())
    );
    // The path names a study, and so does the line.
    let span = &asked["span"];
    assert_eq!(span["path"].as_str(), Some(path.as_str()));
    assert_eq!(span["study"], study);
    let run = lines.iter().filter(|it| it["probe"] == probe);
    let told: Vec<&Value> = run.collect();
    assert!(!told.is_empty(), "{probe} in {log}");
    assert!(told.iter().all(|it| it["study"] == study), "{told:?}");
}

#[tokio::test]
async fn tokens_are_made_before_and_while_a_managed_database_is_served() {
    let directory = ServerDirectory::create();
    let data = directory.path.join("data").display().to_string();
    let variables = [
        ("TRIALHEAD_DATA_DIR", data.as_str()),
        ("TRIALHEAD_API__TOKENS", "required"),
        ("TRIALHEAD_API__TOKEN_CACHE_SECS", "0.2"),
    ];
    let create = |name: &str| {
        let arguments = ["token", "create", "--name", name, "--scope", "read"];
        stdout(&run(&arguments, &variables)).trim().to_owned()
    };
    // Nothing runs: the database is started for the command, and stopped after it.
    let before = create("before");
    let serve = ["serve", "--listen", "127.0.0.1:0", "--workers", "0"];
    let serving = Serving::start(&serve, &variables);
    let meanwhile = create("meanwhile");
    for token in [&before, &meanwhile] {
        let answer = serving.get("/v1/studies", Some(token)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }
    let table = stdout(&run(&["token", "list"], &variables));
    assert!(
        table.contains("before") && table.contains("meanwhile"),
        "{table}"
    );
    let id = TokenText::parse(&before).expect("a token").id().to_string();
    assert!(run(&["token", "revoke", &id], &variables).status.success());
    let revoked = async {
        loop {
            let answer = serving.get("/v1/studies", Some(&before)).await;
            if answer.status != 200 {
                break answer.problem(401, "token_revoked");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, revoked)
        .await
        .expect("it is let in no more");
    // The commands beside it have not disturbed it.
    let answer = serving.get("/v1/studies", Some(&meanwhile)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    serving.stop();
}
