//! Where the runners are that only tests use: `fake_runner`, which speaks the contract and trains nothing, and
//! `faulty_runner`, which trains and is slow on purpose.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The fake runner's executable, at a place that an unprivileged user can reach.
pub fn executable() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| example("fake_runner"))
}

/// An example's executable, at a place that an unprivileged user can reach.
pub fn example(name: &str) -> PathBuf {
    let me = std::env::current_exe().expect("has a path");
    let profile = me
        .parent()
        .and_then(Path::parent)
        .expect("is in PROFILE/deps");
    let built = profile.join("examples").join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support")
        .join(name)
        .with_extension("rs");
    // `cargo test --test pool` builds no examples.
    if modified(&built) < modified(&source) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--example", name]);
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        // Build scripts look at what cargo tells this test of itself, and would run again.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if [
                "CARGO_PKG_",
                "CARGO_MANIFEST_",
                "CARGO_CRATE_",
                "CARGO_BIN_",
            ]
            .iter()
            .any(|prefix| name.starts_with(prefix))
            {
                cargo.env_remove(&*name);
            }
        }
        assert!(cargo.status().expect("cargo runs").success());
    }
    reachable(&built, name)
}

/// A copy of a program at a place that an unprivileged user can reach: the build folder may be closed
/// to it. One place per user and program; replaced whole, so that tests may run side by side.
pub fn reachable(program: &Path, name: &str) -> PathBuf {
    let uid = nix::unistd::getuid();
    let place = std::env::temp_dir().join(format!("trialhead-{name}-{uid}"));
    let fresh = place.with_extension(std::process::id().to_string());
    fs::copy(program, &fresh).expect("copies");
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).expect("sets");
    fs::rename(&fresh, &place).expect("renames");
    place
}
