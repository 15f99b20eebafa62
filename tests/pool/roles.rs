//! Processes that tests start to kill them: this test binary, run again with one of these "tests".

use std::env;
use std::future::pending;
use std::io::{self, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::watch;
use trialhead::pool::child::{ChildConfig, Spawner, run};
use trialhead::pool::host_lock::{HostLocks, LockMode};

use crate::runner::{config, run_to_end, spec};

const ARGUMENT: &str = "TRIALHEAD_TEST_ROLE_ARGUMENT";

/// Runs this binary again in a role.
pub fn start(role: &str, argument: &str) -> Child {
    command(role, argument).spawn().expect("starts")
}

/// How this binary is run again in a role.
pub fn command(role: &str, argument: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("has a path"));
    command
        .args(["--exact", &format!("roles::{role}"), "--nocapture"])
        .env(ARGUMENT, argument)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn say(text: &str) {
    writeln!(io::stdout(), "\n{text}").expect("writes");
}

/// None when the test runner runs a role by itself: then it has nothing to do.
fn argument() -> Option<String> {
    env::var(ARGUMENT).ok()
}

/// A worker with a running child, on several threads as the service has them.
#[test]
fn parent() {
    let Some(socket) = argument() else { return };
    let runtime = tokio::runtime::Runtime::new().expect("builds");
    runtime.block_on(async {
        let spawner = Spawner::new().expect("starts a thread");
        let (_control, controlled) = watch::channel(None);
        let (progress, _) = watch::channel(None);
        let config = config(&["--socket", &socket, "sleep"]);
        run(&spawner, &config, &spec(), None, controlled, &progress).await;
    });
}

/// Another service of the host that measures.
#[test]
fn lock_holder() {
    let Some(folder) = argument() else { return };
    let runtime = tokio::runtime::Runtime::new().expect("builds");
    runtime.block_on(async {
        let locks = HostLocks::open(Some(folder.as_ref())).expect("opens");
        let held = locks
            .acquire("cpu", LockMode::Exclusive, Duration::from_secs(30))
            .await
            .expect("the directory is usable");
        assert!(held.is_some());
        say("held");
        pending::<()>().await;
    });
}

/// A service with secrets in its environment, whose child tells what it sees.
#[test]
fn keeper_of_secrets() {
    let Some(secret) = argument() else { return };
    assert!(env::var_os(secret).is_some(), "there is a secret");
    let runtime = tokio::runtime::Runtime::new().expect("builds");
    let config = ChildConfig {
        log_tail_bytes: 1 << 20,
        ..config(&["report"])
    };
    say(&runtime.block_on(run_to_end(&config, &spec())).stderr_tail);
}
