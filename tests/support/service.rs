//! A real service for one test: its own database on the shared throwaway Postgres, a free port, real
//! children. Stopped when the test ends.

use std::time::Duration;

use serde_json::{Value, json};
use trialhead::access::{self, NewToken, Scope};
use trialhead::service::Service;
use trialhead::settings::{Settings, TokenRule};

use super::postgres::TestDatabase;

/// How long a test waits for something that must happen. Times per step are sampled until they are known well enough: on a
/// host that is slow and shared a study of a minute takes six.
pub const PATIENCE: Duration = Duration::from_secs(1200);

/// A running service with a client for it.
pub struct TestService {
    pub http: reqwest::Client,
    pub base: String,
    /// Where the metrics are, when they have a listener of their own.
    pub metrics: Option<String>,
    service: Service,
    pub database: TestDatabase,
    folder: tempfile::TempDir,
}

/// Children that train: the real program.
pub fn trained() -> Vec<String> {
    static PROGRAM: std::sync::LazyLock<std::path::PathBuf> = std::sync::LazyLock::new(|| {
        super::fake::reachable(env!("CARGO_BIN_EXE_trialhead").as_ref(), "program")
    });
    vec![PROGRAM.display().to_string(), "probe".to_owned()]
}

/// The real training runner, which samples times for two seconds at most.
fn trained_briefly() -> Vec<String> {
    [super::fake::executable().display().to_string()]
        .into_iter()
        .chain(["briefly", "2"].map(ToOwned::to_owned))
        .chain(trained())
        .collect()
}

/// The real inspection of uploads.
fn inspected() -> Vec<String> {
    vec![trained()[0].clone(), "inspect".to_owned()]
}

/// Children that allocate 20 MB + 100 kB an example, and tell times of 1 ms + 10 µs an example.
fn simulated() -> Vec<String> {
    let runner = super::fake::executable().display().to_string();
    let arguments = ["simulate", "2e7", "1e5", "1e-3", "1e-5"];
    std::iter::once(runner)
        .chain(arguments.map(ToOwned::to_owned))
        .collect()
}

/// Settings for tests: short times, a free port, simulated children.
pub fn settings(database_url: String, folder: &std::path::Path) -> Settings {
    let mut settings = Settings {
        listen: "127.0.0.1:0".parse().expect("an address"),
        ..Settings::default()
    };
    settings.database.url = Some(database_url);
    settings.database.pool_size = 8;
    settings.pool.child_command = Some(simulated());
    settings.pool.tick_secs = 0.5;
    settings.pool.heartbeat_secs = 0.5;
    settings.pool.lease_secs = 5.0;
    settings.pool.lease_margin_secs = 1.0;
    settings.pool.retry_delay_secs = 0.1;
    settings.api.threads = Some(1);
    settings.api.service_metrics_cache_secs = 0.0;
    // Tests of one binary run side by side; each believes to be alone on its own host.
    settings.pool.host = Some(folder.display().to_string());
    settings.pool.lock_dir = Some(folder.join("locks"));
    settings.data_dir = Some(folder.join("data"));
    settings.datasets.inspect_command = Some(inspected());
    settings
}

async fn token(
    database: &TestDatabase,
    name: &str,
    scopes: &[Scope],
    project: Option<&str>,
) -> String {
    let new = NewToken {
        name: name.to_owned(),
        scopes: scopes.to_vec(),
        project: project.map(ToOwned::to_owned),
        expires_in_days: None,
    };
    let (text, _) = access::create(database.database(), &new)
        .await
        .expect("a token");
    text.reveal()
}

/// A client for plain HTTP; it insists on a TLS provider all the same.
pub fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::new()
}

impl TestService {
    /// A service without workers: nothing runs, so nothing changes by itself.
    pub async fn without_workers() -> Self {
        Self::start(|settings| settings.workers = 0).await
    }

    /// A service with one worker whose probes train for real.
    pub async fn training() -> Self {
        Self::start(|settings| settings.pool.child_command = Some(trained())).await
    }

    /// The same, where times need not be exact: they are rough on a busy host, and a study soon has them.
    pub async fn training_briefly() -> Self {
        Self::start(|settings| settings.pool.child_command = Some(trained_briefly())).await
    }

    /// A service with one worker that runs simulated probes.
    pub async fn with_worker() -> Self {
        Self::start(|_| {}).await
    }

    /// A service with settings of the test's own.
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        Self::start_on(TestDatabase::create().await, change).await
    }

    /// A service without workers that needs tokens, and one that may do everything.
    pub async fn guarded(change: impl FnOnce(&mut Settings)) -> (Self, String) {
        let database = TestDatabase::create().await;
        let admin = token(&database, "admin", &[Scope::Admin], None).await;
        let service = Self::start_on(database, |settings| {
            settings.workers = 0;
            settings.api.tokens = TokenRule::Required;
            settings.api.token_cache_secs = 0.0;
            change(settings);
        })
        .await;
        (service, admin)
    }

    /// A token of this service.
    pub async fn token(&self, name: &str, scopes: &[Scope], project: Option<&str>) -> String {
        token(&self.database, name, scopes, project).await
    }

    /// The same on a database that the test has prepared.
    pub async fn start_on(database: TestDatabase, change: impl FnOnce(&mut Settings)) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut settings = settings(database.url().to_owned(), folder.path());
        change(&mut settings);
        let service = Service::start(settings).await.expect("the service starts");
        Self {
            http: http_client(),
            base: format!("http://{}", service.address),
            metrics: service.metrics_address.map(|it| format!("http://{it}")),
            service,
            database,
            folder,
        }
    }

    /// Stops the service as a signal would, and gives its database.
    pub async fn stop(self) -> TestDatabase {
        self.service.stop().await;
        self.database
    }

    /// Where the service keeps its state.
    pub fn data_dir(&self) -> std::path::PathBuf {
        self.folder.path().join("data")
    }

    /// The body of a path, or the part of it that a Range names.
    pub async fn get_bytes(&self, path: &str, range: Option<&str>) -> Vec<u8> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(range) = range {
            request = request.header("range", range);
        }
        let response = request.send().await.expect("an answer");
        let expected = if range.is_some() { 206 } else { 200 };
        assert_eq!(response.status().as_u16(), expected);
        response.bytes().await.expect("a body").to_vec()
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.http.get(format!("{}{path}", self.base))).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.http.post(format!("{}{path}", self.base)).json(body)).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        Answer::of(self.http.delete(format!("{}{path}", self.base))).await
    }

    /// Creates a study and gives its path.
    pub async fn create(&self, body: &Value) -> String {
        let answer = self.post("/v1/studies", body).await;
        assert_eq!(answer.status, 202, "{}", answer.text);
        answer.header("location").expect("a Location").to_owned()
    }

    /// Waits until a study has ended and gives it.
    pub async fn ended(&self, path: &str) -> Value {
        self.until(path, |study| {
            !matches!(study["state"].as_str(), Some("queued" | "running"))
        })
        .await
    }

    /// Reads a path until what it says is what the test waits for.
    pub async fn until(&self, path: &str, arrived: impl Fn(&Value) -> bool) -> Value {
        let started = std::time::Instant::now();
        loop {
            let answer = self.get(path).await;
            if answer.status == 200 && arrived(&answer.json()) {
                return answer.json();
            }
            assert!(
                started.elapsed() < PATIENCE,
                "{path} did not come to what was waited for: {}",
                answer.text
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What the service answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Answer {
    pub async fn of(request: reqwest::RequestBuilder) -> Self {
        let response = request.send().await.expect("an answer");
        let headers = response.headers().clone();
        let is_stream = headers
            .get("content-type")
            .is_some_and(|kind| kind == "text/event-stream");
        Self {
            status: response.status().as_u16(),
            headers,
            // A stream has no end that one could wait for.
            text: if is_stream {
                String::new()
            } else {
                response.text().await.expect("a body")
            },
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text))
    }

    /// Asserts that the answer is a problem with this status and code, and gives it.
    pub fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{}",
            self.text
        );
        let problem = self.json();
        assert_eq!(problem["status"], json!(status));
        assert_eq!(problem["code"], json!(code), "{}", self.text);
        for member in ["type", "title", "detail"] {
            assert!(problem[member].is_string(), "{member} in {}", self.text);
        }
        problem
    }
}

/// A small real study: a few batch sizes of the digits, done in seconds.
pub fn digits() -> Value {
    json!({
        "name": "digits, three batch sizes",
        "labels": {"team": "vision"},
        "workload": {
            "dataset": {"builtin": "digits"},
            "model": {"family": "mlp", "hidden": [16], "activation": "relu"}
        },
        "optimizer": {"family": "sgd_nesterov"},
        "batch_sizes": {"min": 8, "max": 32},
        "device": {"memory_budget_bytes": 1_073_741_824_u64, "threads": 1},
        "questions": ["feasible_batch_sizes"],
        "seed": 7
    })
}
