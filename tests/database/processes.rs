//! Other processes that tests need: one that holds a server, and the end of any.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "one process speaks to another, and a skipped test to people"
)]

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, lchown};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::time::timeout;
use trialhead::store::local_server::{LocalServer, ServerState};

use crate::postgres::{ServerDirectory, throwaway};

/// Longer than anything here takes, so that a failure is a failure and not a hang.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn is_root() -> bool {
    Uid::effective().is_root()
}

pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

pub fn kill_hard(pid: u32) {
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).expect("the process is there");
}

/// Waits until the process has ended, whoever's child it is.
pub async fn gone(pid: u32) {
    // SAFETY: pidfd_open(2) takes two integers and returns a new descriptor, or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        let error = io::Error::last_os_error();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH), "{error}");
        return;
    }
    let fd = i32::try_from(fd).expect("a descriptor");
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let ended = tokio::task::spawn_blocking(move || {
        let patience = PollTimeout::try_from(PATIENCE).expect("it is short enough");
        poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], patience)
    });
    let ended = ended.await.expect("no panic").expect("the poll works");
    assert_eq!(ended, 1, "process {pid} goes on");
}

/// The process id of a server that is ready.
pub fn pid_of(server: &LocalServer) -> u32 {
    match *server.state().borrow() {
        ServerState::Ready { pid } => pid,
        ref other => panic!("{other:?}"),
    }
}

pub async fn until(
    state: &mut watch::Receiver<ServerState>,
    what: impl FnMut(&ServerState) -> bool,
) -> ServerState {
    timeout(PATIENCE, state.wait_for(what))
        .await
        .expect("the state is reached")
        .expect("the server is supervised")
        .clone()
}

/// What a process that holds a server says first.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Ready { pid: u32, url: String },
    Refused(String),
}

/// A process that runs a server, and stops it when its input closes.
pub struct Holder {
    pub child: Child,
    input: Option<ChildStdin>,
}

impl Holder {
    /// Starts one, as another user if one is given, and does not wait for its server.
    pub fn start(data_dir: &Path, scratch: &ServerDirectory, user: Option<u32>) -> Self {
        let program = std::env::current_exe().expect("our own path");
        // The build directory may be out of the other user's reach.
        let reachable = scratch.path.join("holder");
        if !reachable.exists() {
            fs::copy(program, &reachable).expect("a copy of the test program");
        }
        let mut command = Command::new(&reachable);
        command
            .args(["--exact", "processes::holds_a_server", "--nocapture"])
            .env("TRIALHEAD_TEST_DATA_DIR", data_dir)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        if let Some(uid) = user {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().expect("it starts");
        let input = child.stdin.take();
        Self { child, input }
    }

    pub async fn said(&mut self) -> Said {
        let output = self.child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let read = async {
            loop {
                let line = lines.next_line().await.expect("text");
                let line = line.expect("it says something before it ends");
                if let Some(error) = line.strip_prefix("REFUSED ") {
                    return Said::Refused(error.to_owned());
                }
                if let Some(rest) = line.strip_prefix("READY ") {
                    let (pid, url) = rest.split_once(' ').expect("two words");
                    return Said::Ready {
                        pid: pid.parse().expect("a number"),
                        url: url.to_owned(),
                    };
                }
            }
        };
        let said = timeout(PATIENCE, read).await.expect("it says something");
        // What it says later must find somebody at the other end of the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        said
    }

    pub async fn end(mut self) {
        drop(self.input.take());
        let status = timeout(PATIENCE, self.child.wait())
            .await
            .expect("it ends")
            .expect("its status");
        assert!(status.success(), "{status}");
    }
}

/// A process of its own for other tests; run as a test of its own it has nothing to do.
#[test]
fn holds_a_server() {
    let Some(data_dir) = std::env::var_os("TRIALHEAD_TEST_DATA_DIR") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(LocalServer::start(throwaway(Path::new(&data_dir)))) {
        Err(error) => println!("\nREFUSED {}", error.to_string().replace('\n', " ")),
        Ok(server) => {
            println!("\nREADY {} {}", pid_of(&server), server.url());
            let mut nothing = Vec::new();
            io::stdin().read_to_end(&mut nothing).expect("input");
            runtime.block_on(server.stop());
        }
    }
}

/// A directory that `uid` owns, below the scratch directory.
pub fn directory_of(scratch: &ServerDirectory, uid: u32) -> std::path::PathBuf {
    let path = scratch.path.join(format!("of-{uid}"));
    fs::create_dir(&path).expect("a directory");
    lchown(&path, Some(uid), Some(uid)).expect("its owner");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("its mode");
    path
}
