//! `docs/operations.md` does what it says: its commands are run as they stand, and it knows every alert.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::commands::Serving;
use crate::postgres::{ServerDirectory, TestDatabase, count, execute};
use crate::service::{Answer, digits, http_client, trained};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    fs::read_to_string(path).expect("the page")
}

const TRIED: [&str; 7] = [
    "doctor",
    "backup",
    "backup of a managed database",
    "restore",
    "restore of a managed database",
    "upgrade",
    "back to an older version",
];

/// The block of commands after a mark.
fn commands(page: &str, mark: &str) -> String {
    assert!(TRIED.contains(&mark));
    let (_, after) = page
        .split_once(&format!("<!-- tried: {mark} -->\n"))
        .unwrap_or_else(|| panic!("no commands are marked {mark}"));
    let (_, block) = after.split_once("```bash\n").expect("a block begins");
    let (block, _) = block.split_once("```").expect("the block ends");
    block.to_owned()
}

#[test]
fn every_block_of_commands_is_tried() {
    let page = page();
    let lines: Vec<&str> = page.lines().map(str::trim).collect();
    let marks: Vec<&str> = lines
        .windows(2)
        .filter(|pair| pair[1] == "```bash")
        .map(|pair| {
            let mark = pair[0].strip_prefix("<!-- tried: ");
            mark.and_then(|it| it.strip_suffix(" -->"))
                .unwrap_or_else(|| panic!("a block is not marked: {pair:?}"))
        })
        .collect();
    assert_eq!(marks, TRIED);
}

/// Postgres' programs are not always on the path: Debian keeps them apart by version.
fn path() -> String {
    let mut path = std::env::var("PATH").unwrap_or_default();
    let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    versions.sort();
    // Dumping wants a program as new as the server: the newest first.
    for folder in versions {
        path = format!("{}:{path}", folder.display());
    }
    let own = Path::new(env!("CARGO_BIN_EXE_trialhead"))
        .parent()
        .expect("a folder");
    format!("{}:{path}", own.display())
}

fn tried(script: &str, variables: &[(&str, &str)]) -> Output {
    Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env_clear()
        .env("PATH", path())
        .envs(variables.iter().copied())
        .output()
        .expect("a shell")
}

fn run(script: &str, variables: &[(&str, &str)]) -> String {
    let output = tried(script, variables);
    assert!(output.status.success(), "{script}\n{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const SERVE: [&str; 5] = ["serve", "--listen", "127.0.0.1:0", "--workers", "0"];

/// Something of everything that a backup has to keep.
struct Kept {
    study: String,
    definition: Value,
    dataset: String,
    content: String,
}

impl Kept {
    async fn made(serving: &Serving) -> Self {
        let http = http_client();
        let created = Answer::of(
            http.post(format!("{}/v1/studies", serving.base))
                .json(&digits()),
        )
        .await;
        assert_eq!(created.status, 202, "{}", created.text);
        let study = created.header("location").expect("a Location").to_owned();
        let url = format!("{}/v1/datasets?format=csv&target=label", serving.base);
        let rows: String = (0..40)
            .map(|row| format!("{row},{}\n", ["x", "y"][row % 2]))
            .collect();
        let uploaded = Answer::of(http.post(url).body(format!("a,label\n{rows}"))).await;
        assert_eq!(uploaded.status, 201, "{}", uploaded.text);
        let dataset = uploaded.header("location").expect("a Location").to_owned();
        let (definition, content) = Self::read(serving, &study, &dataset).await;
        Self {
            study,
            definition,
            dataset,
            content,
        }
    }

    async fn read(serving: &Serving, study: &str, dataset: &str) -> (Value, String) {
        let definition = serving.get(&format!("{study}/definition"), None).await;
        assert_eq!(definition.status, 200, "{}", definition.text);
        let content = serving.get(&format!("{dataset}/content"), None).await;
        assert_eq!(content.status, 200, "{}", content.text);
        (definition.json(), content.text)
    }

    /// It is there, and what is there goes on: the study ends when it is told to.
    async fn is_there(&self, serving: &Serving) {
        let (definition, content) = Self::read(serving, &self.study, &self.dataset).await;
        assert_eq!(
            (definition, &content),
            (self.definition.clone(), &self.content)
        );
        let url = format!("{}{}/cancel", serving.base, self.study);
        let cancelled = Answer::of(http_client().post(url)).await;
        assert_eq!(cancelled.json()["state"], "cancelled", "{}", cancelled.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_is_made_and_restored_by_the_commands_of_the_page() {
    let page = page();
    let test = TestDatabase::create().await;
    let new = trialhead::access::NewToken {
        name: "kept".into(),
        scopes: vec![trialhead::access::Scope::Read],
        project: None,
        expires_in_days: None,
    };
    trialhead::access::create(test.database(), &new)
        .await
        .expect("a token");
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (data, new_data, backup) = (at("data"), at("new"), at("backup"));
    fs::create_dir(&backup).expect("a folder");
    let of = |url, data| [("DATABASE_URL", url), ("TRIALHEAD_DATA_DIR", data)];
    let serving = Serving::start(&SERVE, &of(test.url(), data.as_str()));
    let kept = Kept::made(&serving).await;
    // While everything runs on.
    let mut variables = of(test.url(), data.as_str()).to_vec();
    variables.push(("BACKUP", &backup));
    run(&commands(&page, "backup"), &variables);
    serving.stop();

    let empty = TestDatabase::create_empty().await;
    run(
        &commands(&page, "restore"),
        &[
            ("NEW_DATABASE_URL", empty.url()),
            ("NEW_DATA_DIR", &new_data),
            ("BACKUP", &backup),
        ],
    );
    assert_eq!(count(empty.url(), "tokens").await, 1);
    let serving = Serving::start(&SERVE, &of(empty.url(), new_data.as_str()));
    kept.is_there(&serving).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_managed_database_is_copied_and_put_elsewhere_by_the_commands_of_the_page() {
    let page = page();
    let directory = ServerDirectory::create();
    let elsewhere = ServerDirectory::create();
    let at = |folder: &ServerDirectory, name: &str| folder.path.join(name).display().to_string();
    let (data, backup) = (at(&directory, "data"), at(&directory, "backup"));
    let new_data = at(&elsewhere, "data");
    fs::create_dir(&backup).expect("a folder");
    let serving = Serving::start(&SERVE, &[("TRIALHEAD_DATA_DIR", &data)]);
    let kept = Kept::made(&serving).await;
    serving.stop();
    let variables = [("TRIALHEAD_DATA_DIR", data.as_str()), ("BACKUP", &backup)];
    run(&commands(&page, "backup of a managed database"), &variables);
    fs::remove_dir_all(&data).expect("the disk is lost");
    let variables = [("NEW_DATA_DIR", new_data.as_str()), ("BACKUP", &backup)];
    run(
        &commands(&page, "restore of a managed database"),
        &variables,
    );
    let serving = Serving::start(&SERVE, &[("TRIALHEAD_DATA_DIR", &new_data)]);
    kept.is_there(&serving).await;
    serving.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_go_up_and_back_by_the_commands_of_the_page() {
    let page = page();
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data").display().to_string();
    let locks = folder.path().join("locks").display().to_string();
    let database = TestDatabase::create_empty().await;
    let variables = [
        ("DATABASE_URL", database.url()),
        ("TRIALHEAD_DATA_DIR", &data),
        ("TRIALHEAD_POOL__LOCK_DIR", &locks),
        ("TRIALHEAD_DATABASE__MIGRATE", "check"),
    ];
    // What the database lacks is found, by the check of the page and by a service that may not migrate itself.
    let back = commands(&page, "back to an older version");
    let behind = tried(&back, &variables);
    let said = String::from_utf8_lossy(&behind.stderr).into_owned();
    assert!(
        !behind.status.success() && said.contains("trialhead migrate"),
        "{said}"
    );
    let refused = crate::commands::run(&SERVE, &variables);
    assert!(!refused.status.success());
    assert!(
        crate::commands::stderr(&refused).contains("trialhead migrate"),
        "{refused:?}"
    );
    // Up; and again, by three at once.
    let upgrade = commands(&page, "upgrade");
    run(&upgrade, &variables);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| run(&upgrade, &variables));
        }
    });
    // And once more, by a program that is newer than this one: what it added is nothing that this one looks at.
    for statement in [
        "INSERT INTO __diesel_schema_migrations (version) VALUES ('99991231000000')",
        "ALTER TABLE studies ADD COLUMN of_tomorrow int NOT NULL DEFAULT 7",
        "ALTER TABLE probes ADD COLUMN of_tomorrow text",
        "CREATE TABLE of_tomorrow (study uuid REFERENCES studies ON DELETE CASCADE)",
    ] {
        execute(database.url(), statement).await;
    }
    run(&back, &variables);
    let serving = Serving::start(&SERVE, &variables);
    let kept = Kept::made(&serving).await;
    kept.is_there(&serving).await;
    // The doctor's block, beside the running service. It starts a child as a worker would.
    let program = trained().join(",");
    let mut well = variables.to_vec();
    well.push(("TRIALHEAD_POOL__CHILD_COMMAND", &program));
    let said = run(&commands(&page, "doctor"), &well);
    assert!(
        said.contains("migrations") && !said.contains("PROBLEM"),
        "{said}"
    );
    serving.stop();
}

#[test]
fn every_alert_is_explained() {
    let rules =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s/components/monitoring/prometheusrule.yaml");
    let rules = fs::read_to_string(rules).expect("the rules");
    let page = page();
    let names: Vec<&str> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    assert!(names.len() >= 10, "{names:?}");
    for name in names {
        assert!(
            page.contains(&format!("| `{name}` |")),
            "{name} has no row in docs/operations.md"
        );
    }
}
