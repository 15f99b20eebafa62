//! Python for tests: the interpreter, and the programs at a place that an unprivileged user can reach.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

/// A Python that everybody may run.
static PYTHON: LazyLock<Option<String>> = LazyLock::new(|| {
    let named = std::env::var("TRIALHEAD_TEST_PYTHON").ok();
    let usual = ["/usr/bin/python3", "python3"].map(str::to_owned);
    let mut candidates = named.into_iter().chain(usual);
    candidates.find(|it| runs(it, "import json"))
});

/// The folders `examples/python` and `tests/support`, and the digits.
static PLACE: LazyLock<TempDir> = LazyLock::new(|| {
    let place = tempfile::tempdir().expect("a folder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR"));
    copy(&source.join("examples/python"), place.path());
    for file in ["tests/support/python_runner.py", "src/datasets/digits.npz"] {
        let file = source.join(file);
        let name = file.file_name().expect("a name");
        fs::copy(&file, place.path().join(name)).expect("copies");
    }
    open(place.path());
    place
});

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            fs::create_dir_all(&target).expect("creates");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copies");
        }
    }
}

fn open(folder: &Path) {
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.expect("an entry");
        let mode = if entry.file_type().is_dir() {
            0o755
        } else {
            0o644
        };
        fs::set_permissions(entry.path(), fs::Permissions::from_mode(mode)).expect("sets");
    }
}

fn runs(python: &str, program: &str) -> bool {
    let ended = Command::new(python).args(["-c", program]).output();
    ended.is_ok_and(|it| it.status.success())
}

fn place(name: &str) -> PathBuf {
    PLACE.path().join(name)
}

/// Says loudly that a test was not made.
#[expect(clippy::print_stderr, reason = "a skipped test speaks to people")]
fn skipped(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

/// The command of the runner that needs the standard library only, with a fault or without; none where there is no
/// Python, which is said.
pub fn simulated(test: &str, fault: &str) -> Option<String> {
    let Some(python) = &*PYTHON else {
        skipped(test, "there is no python3");
        return None;
    };
    let (script, folder) = (place("python_runner.py"), PLACE.path());
    Some(format!(
        "{python} -B {} {} {fault}",
        script.display(),
        folder.display()
    ))
}

/// The command of the digits in PyTorch; none where there is no PyTorch, which is said.
pub fn digits(test: &str) -> Option<String> {
    let python = PYTHON.as_ref().filter(|it| runs(it, "import torch"));
    let Some(python) = python else {
        skipped(
            test,
            "python3 has no torch; install python3-torch (or set TRIALHEAD_WITH_TORCH=1 for scripts/test)",
        );
        return None;
    };
    Some(format!(
        "env DIGITS={} {python} -B {}",
        place("digits.npz").display(),
        place("digits.py").display()
    ))
}
