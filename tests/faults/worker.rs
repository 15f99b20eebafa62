//! A worker away from its service, as a process of its own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::server::{PATIENCE, children_of, command};

/// A running `trialhead work`; killed when dropped.
pub struct WorkProcess {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl WorkProcess {
    /// Starts a worker as a host of its own, with its folder in `home`.
    pub fn start(server: &str, host: &str, runner: &[&str], home: &Path) -> Self {
        Self::start_with(server, host, runner, home, &[], &[])
    }

    /// The same with further arguments and variables.
    pub fn start_with(
        server: &str,
        host: &str,
        runner: &[&str],
        home: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trialhead"));
        command.args(["work", "--server", server]).args(arguments);
        Self::run(command, host, runner, home, variables)
    }

    /// The same in a control group, if one is named, from its beginning.
    pub fn start_within(
        group: Option<&Path>,
        server: &str,
        host: &str,
        runner: &[&str],
        home: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        let Some(group) = group else {
            return Self::start_with(server, host, runner, home, &[], variables);
        };
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", r#"echo $$ > "$0" && exec "$@""#])
            .arg(group.join("cgroup.procs"))
            .arg(env!("CARGO_BIN_EXE_trialhead"))
            .args(["work", "--server", server]);
        Self::run(command, host, runner, home, variables)
    }

    /// The same, not as root.
    pub fn start_unprivileged(
        server: &str,
        host: &str,
        runner: &[&str],
        home: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        use std::os::unix::process::CommandExt as _;

        let mut command = Command::new(crate::server::trainer());
        command.args(["work", "--server", server]);
        if nix::unistd::geteuid().is_root() {
            let nobody = trialhead::pool::child::unprivileged_user();
            command.uid(nobody.uid).gid(nobody.gid).current_dir("/");
        }
        Self::run(command, host, runner, home, variables)
    }

    fn run(
        mut work: Command,
        host: &str,
        runner: &[&str],
        home: &Path,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut child = work
            .arg("--data-dir")
            .arg(home.join(host))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("TRIALHEAD_POOL__HOST", host)
            .env(
                "TRIALHEAD_POOL__LOCK_DIR",
                home.join(format!("{host}-locks")),
            )
            .env("TRIALHEAD_POOL__CHILD_COMMAND", command(runner))
            .env("TRIALHEAD_POOL__TICK_SECS", "0.5")
            .env("TRIALHEAD_POOL__HEARTBEAT_SECS", "0.5")
            .env("TRIALHEAD_POOL__LEASE_SECS", "3")
            .env("TRIALHEAD_POOL__LEASE_MARGIN_SECS", "1")
            .env("TRIALHEAD_WORK__WAIT_SECS", "5")
            .env("NO_COLOR", "1")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let heard = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = heard.lock().expect("not poisoned");
                log.push_str(&line);
                log.push('\n');
            }
        });
        Self { child, log }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    /// The processes it has started and not reaped yet.
    pub fn children(&self) -> Vec<Pid> {
        children_of(self.pid())
    }

    /// Waits until it has a child.
    pub async fn with_child(&self) -> Pid {
        let since = Instant::now();
        loop {
            if let [child, ..] = self.children()[..] {
                return child;
            }
            assert!(since.elapsed() < PATIENCE, "no child: {}", self.log());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends it as a power cut would.
    pub fn kill_9(mut self) {
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

    /// Waits for its own end; gives its exit code and what it logged.
    pub async fn ended(mut self) -> (Option<i32>, String) {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("asked") {
                // What it said last may still be on its way.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return (status.code(), self.log());
            }
            assert!(since.elapsed() < PATIENCE, "{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for WorkProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
