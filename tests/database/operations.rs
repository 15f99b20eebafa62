//! `docs/operations.md` does what it says: its commands are run as they stand, and it knows every alert.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::postgres::{TestDatabase, count};

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
    fs::read_to_string(path).expect("the page")
}

/// The block of commands after a mark.
fn commands(page: &str, mark: &str) -> String {
    let (_, after) = page
        .split_once(&format!("<!-- tried: {mark} -->\n```bash\n"))
        .unwrap_or_else(|| panic!("no commands are marked {mark}"));
    let (block, _) = after.split_once("```").expect("the block ends");
    block.to_owned()
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

fn run(script: &str, variables: &[(&str, &str)]) {
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script])
        .env_clear()
        .env("PATH", path())
        .envs(variables.iter().copied())
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{script}\n{output:?}");
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
    fs::create_dir_all(folder.path().join("data/datasets")).expect("a folder");
    fs::write(folder.path().join("data/datasets/content"), "examples").expect("a file");
    fs::create_dir(folder.path().join("backup")).expect("a folder");
    run(
        &commands(&page, "backup"),
        &[
            ("DATABASE_URL", test.url()),
            ("TRIALHEAD_DATA_DIR", &at("data")),
            ("BACKUP", &at("backup")),
        ],
    );

    let empty = TestDatabase::create_empty().await;
    run(
        &commands(&page, "restore"),
        &[
            ("NEW_DATABASE_URL", empty.url()),
            ("NEW_DATA_DIR", &at("new")),
            ("BACKUP", &at("backup")),
        ],
    );
    assert_eq!(count(empty.url(), "tokens").await, 1);
    let content = fs::read_to_string(folder.path().join("new/datasets/content"));
    assert_eq!(content.expect("restored"), "examples");
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
