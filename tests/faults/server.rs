//! A service as a process of its own, with simulated children.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use serde_json::Value;

/// How long a test waits for something that must happen.
pub const PATIENCE: Duration = Duration::from_secs(900);

/// Children that train: the real program.
pub const TRAINING: &[&str] = &["probe"];

/// The program, where every user can read it.
pub fn trainer() -> String {
    static PROGRAM: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(|| {
        crate::fake::reachable(env!("CARGO_BIN_EXE_trialhead").as_ref(), "program")
    });
    PROGRAM.display().to_string()
}

/// What children do, as the setting has it.
pub fn command(runner: &[&str]) -> String {
    let program = match runner {
        TRAINING => trainer(),
        _ => crate::fake::executable().display().to_string(),
    };
    std::iter::once(program.as_str())
        .chain(runner.iter().copied())
        .collect::<Vec<_>>()
        .join(",")
}

/// Whether a process runs: one that nobody has reaped does not.
pub fn is_running(pid: Pid) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| Some(!stat.rsplit_once(')')?.1.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

/// The processes that a process has started and not reaped yet.
pub fn children_of(parent: Pid) -> Vec<Pid> {
    let parent = parent.to_string();
    std::fs::read_dir("/proc")
        .expect("Linux")
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // pid (name) state parent …; a name may hold anything, a parenthesis too.
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let state = fields.next()?;
            (fields.next()? == parent && state != "Z").then_some(Pid::from_raw(pid))
        })
        .collect()
}

/// A running `trialhead serve`; killed when dropped.
pub struct ServerProcess {
    child: Child,
    pub base: String,
    pub http: reqwest::Client,
    _folder: tempfile::TempDir,
}

/// A client for plain HTTP that shows a token, if there is one; it insists on a TLS provider all the same.
fn http_client(token: Option<&str>) -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let bearer = format!("Bearer {token}").parse().expect("a header");
        headers.insert(AUTHORIZATION, bearer);
    }
    let http = reqwest::Client::builder().default_headers(headers);
    http.build().expect("a client")
}

impl ServerProcess {
    /// Starts a service on a database, as a host of its own; `runner` is what its children do.
    pub fn start(database_url: &str, host: &str, runner: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let locks = folder.path().join("locks");
        Self::start_with(database_url, host, runner, folder, &locks, (1, 3.0), None)
    }

    /// Starts a service that runs nothing itself.
    pub fn start_without_workers(database_url: &str) -> Self {
        Self::start_with_lease(database_url, 3.0)
    }

    /// The same, with leases that hold so long.
    pub fn start_with_lease(database_url: &str, lease_secs: f64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let locks = folder.path().join("locks");
        let (runner, pool) = (&["noop"], (0, lease_secs));
        Self::start_with(database_url, "no host", runner, folder, &locks, pool, None)
    }

    /// The same where everybody needs an access token; this test's own is `token`.
    pub fn start_guarded(database_url: &str, lease_secs: f64, token: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let locks = folder.path().join("locks");
        let (runner, pool, token) = (&["noop"], (0, lease_secs), Some(token));
        Self::start_with(database_url, "no host", runner, folder, &locks, pool, token)
    }

    /// Starts a service that shares its host, and so the folder of its locks, with others.
    pub fn start_beside(database_url: &str, host: &str, runner: &[&str], locks: &Path) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self::start_with(database_url, host, runner, folder, locks, (1, 3.0), None)
    }

    fn start_with(
        database_url: &str,
        host: &str,
        runner: &[&str],
        folder: tempfile::TempDir,
        locks: &Path,
        (workers, lease_secs): (usize, f64),
        token: Option<&str>,
    ) -> Self {
        let tokens = token.map_or("auto", |_| "required");
        let mut child = Command::new(env!("CARGO_BIN_EXE_trialhead"))
            .args(["serve", "--listen", "127.0.0.1:0", "--workers"])
            .arg(workers.to_string())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("DATABASE_URL", database_url)
            .env("TRIALHEAD_DATABASE__POOL_SIZE", "6")
            .env("TRIALHEAD_POOL__HOST", host)
            .env("TRIALHEAD_POOL__LOCK_DIR", locks)
            .env("TRIALHEAD_POOL__CHILD_COMMAND", command(runner))
            .env("TRIALHEAD_DATA_DIR", folder.path().join("data"))
            .env("TRIALHEAD_POOL__TICK_SECS", "0.5")
            .env("TRIALHEAD_POOL__HEARTBEAT_SECS", "0.5")
            .env("TRIALHEAD_POOL__LEASE_SECS", lease_secs.to_string())
            .env("TRIALHEAD_POOL__LEASE_MARGIN_SECS", "1")
            .env("TRIALHEAD_POOL__RETRY_DELAY_SECS", "0.1")
            .env("TRIALHEAD_API__THREADS", "1")
            .env("TRIALHEAD_API__TOKENS", tokens)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut said = String::new();
        let base = loop {
            let line = lines
                .next()
                .unwrap_or_else(|| panic!("it ended before it served: {said}"))
                .expect("text");
            if let Some((_, rest)) = line.split_once("serving on ") {
                break rest.split(';').next().unwrap_or_default().to_owned();
            }
            said.push_str(&line);
            said.push('\n');
        };
        // Somebody must read on, or the service would wait for its own log.
        std::thread::spawn(move || lines.for_each(drop));
        Self {
            child,
            base,
            http: http_client(token),
            _folder: folder,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// The processes it has started and not reaped yet.
    pub fn running_probes(&self) -> Vec<Pid> {
        children_of(self.pid())
    }

    /// The one process of the probe that is claimed: it starts a moment after the claim is seen.
    pub async fn started_probe(&self) -> Pid {
        let since = Instant::now();
        loop {
            match self.running_probes()[..] {
                [] => assert!(since.elapsed() < PATIENCE, "no child was started"),
                [only] => return only,
                ref several => panic!("one exclusive device, several children: {several:?}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it as a power cut would.
    pub fn kill_9(mut self) {
        self.end_9();
    }

    /// The same for one that another takes the place of.
    pub fn end_9(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("it runs");
        self.child.wait().expect("reaped");
    }

    /// Asks it to stop; gives its exit code and how long it took.
    pub fn terminate(mut self) -> (Option<i32>, Duration) {
        let since = Instant::now();
        kill(self.pid(), Signal::SIGTERM).expect("it runs");
        let status = self.child.wait().expect("reaped");
        (status.code(), since.elapsed())
    }

    /// Answers of the service: status, Retry-After, body. None when it cannot be reached.
    pub async fn get(&self, path: &str) -> Option<(u16, bool, Value)> {
        let response = self
            .http
            .get(format!("{}{path}", self.base))
            .send()
            .await
            .ok()?;
        let status = response.status().as_u16();
        let retry = response.headers().contains_key("retry-after");
        Some((status, retry, response.json().await.unwrap_or(Value::Null)))
    }

    pub async fn post(&self, path: &str, body: &Value) -> Value {
        let response = self
            .http
            .post(format!("{}{path}", self.base))
            .json(body)
            .send()
            .await
            .expect("an answer");
        response.json().await.expect("JSON")
    }

    /// A revision of a study's definition, to be sent.
    pub fn revision(&self, path: &str, etag: &str, body: &Value) -> reqwest::RequestBuilder {
        self.http
            .put(format!("{}{path}/definition", self.base))
            .header("if-match", etag)
            .json(body)
    }

    /// Waits until a path says what is waited for.
    pub async fn until(&self, path: &str, arrived: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let answer = self.get(path).await;
            if let Some((200, _, value)) = &answer
                && arrived(value)
            {
                return value.clone();
            }
            assert!(since.elapsed() < PATIENCE, "{path}: {answer:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ended(&self, path: &str) -> Value {
        self.until(path, |study| {
            !matches!(study["state"].as_str(), Some("queued" | "running"))
        })
        .await
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
