//! Starting Postgres' programs so that none outlives this process, and reading what they say.
//!
//! On Linux a child asks to be interrupted when its parent dies (`PR_SET_PDEATHSIG`). That follows the
//! *thread* that forked it, and a thread of an async runtime may end at any time, so children are started
//! from one thread that lives as long as the server does. Elsewhere a shell waits at the other end of a
//! pipe, which closes when this process ends, however it ends.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::account::{Account, environment};

/// Lines kept of what a program said, for the error when it fails.
const TAIL_LINES: usize = 40;
/// Bytes of one line that are kept.
const LINE_BYTES: u64 = 4096;

type Job = (Command, Handle, oneshot::Sender<io::Result<Child>>);

/// The thread that every child of one server is started from. When it is dropped the thread ends, and on
/// Linux that stops the server too: so a runtime that is dropped in a hurry leaves nothing behind.
#[derive(Debug, Clone)]
pub(super) struct Spawner {
    jobs: std::sync::mpsc::Sender<Job>,
}

impl Spawner {
    pub fn start() -> io::Result<Self> {
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        thread::Builder::new()
            .name("postgres-parent".to_owned())
            .spawn(move || {
                for (command, runtime, reply) in queue {
                    let _runtime = runtime.enter();
                    let child = tokio::process::Command::from(command).spawn();
                    // Whoever asked has gone: the child would have nobody to stop it.
                    if let Err(Ok(mut orphan)) = reply.send(child) {
                        let _ = orphan.start_kill();
                    }
                }
            })?;
        Ok(Self { jobs })
    }

    pub async fn spawn(&self, mut command: Command) -> io::Result<Program> {
        let (said, stderr) = io::pipe()?;
        command.stderr(stderr);
        let (reply, child) = oneshot::channel();
        let gone = || io::Error::other("the thread that starts Postgres has ended");
        self.jobs
            .send((command, Handle::current(), reply))
            .map_err(|_| gone())?;
        let child = child.await.map_err(|_| gone())??;
        let output = Output::read(said)?;
        #[cfg(not(target_os = "linux"))]
        let watchdog = match child.id() {
            Some(pid) => Some(Watchdog::start(pid)?),
            None => None,
        };
        Ok(Program {
            child,
            output,
            #[cfg(not(target_os = "linux"))]
            _watchdog: watchdog,
        })
    }
}

/// A program of Postgres as `account`, in `directory`, with nothing of our environment, in a process group
/// of its own (so that Ctrl-C at a terminal reaches the service alone, which then stops it in order).
pub(super) fn command(program: &Path, account: &Account, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .envs(environment())
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0);
    account.run(&mut command);
    end_with_parent(&mut command);
    command
}

#[cfg(target_os = "linux")]
fn end_with_parent(command: &mut Command) {
    use nix::errno::Errno;
    let parent = std::process::id().cast_signed();
    // A change of user clears the setting; this closure runs after it.
    //
    // SAFETY: between fork and exec only async-signal-safe calls are allowed: prctl(2) and getppid(2) are,
    // and nothing here allocates.
    unsafe {
        command.pre_exec(move || {
            nix::sys::prctl::set_pdeathsig(Signal::SIGINT)?;
            // The parent may have died before the setting took hold.
            if nix::unistd::getppid().as_raw() == parent {
                Ok(())
            } else {
                Err(Errno::ESRCH.into())
            }
        });
    }
}

#[cfg(not(target_os = "linux"))]
fn end_with_parent(_command: &mut Command) {}

/// A shell that interrupts the server once this process has gone.
#[cfg(not(target_os = "linux"))]
#[derive(Debug)]
struct Watchdog(std::process::Child);

#[cfg(not(target_os = "linux"))]
impl Watchdog {
    fn start(pid: u32) -> io::Result<Self> {
        let script = format!("read -r _; kill -INT {pid}");
        Command::new("/bin/sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }
}

#[cfg(not(target_os = "linux"))]
impl Drop for Watchdog {
    fn drop(&mut self) {
        // Before its input closes, or it would do its work on a number that may be somebody else's by now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that runs, and what it has said.
#[derive(Debug)]
pub(super) struct Program {
    pub child: Child,
    pub output: Output,
    #[cfg(not(target_os = "linux"))]
    _watchdog: Option<Watchdog>,
}

impl Program {
    fn signal(&self, signal: Signal) {
        // Without an id it has been reaped, and the number may be another's.
        if let Some(pid) = self.child.id() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
    }

    /// Stops a server: fast (clients are cut off, everything is written), after `patience` at once (the
    /// next start recovers), and in the end by force.
    pub async fn stop(&mut self, patience: Duration) {
        for (signal, wait) in [
            (Signal::SIGINT, patience),
            (Signal::SIGQUIT, Duration::from_secs(5)),
            (Signal::SIGKILL, Duration::from_secs(5)),
        ] {
            self.signal(signal);
            if timeout(wait, self.child.wait()).await.is_ok() {
                return;
            }
            tracing::warn!(?signal, "Postgres did not stop in time");
        }
    }
}

impl Drop for Program {
    /// For a runtime that ends without having stopped it; one that has been waited for has no number left.
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// The end of what a program wrote to its standard error; all of it goes to the log.
#[derive(Debug)]
pub(super) struct Output {
    tail: Arc<Mutex<VecDeque<String>>>,
    end: Option<oneshot::Receiver<()>>,
}

impl Output {
    fn read(pipe: PipeReader) -> io::Result<Self> {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let (ended, end) = oneshot::channel();
        let kept = Arc::clone(&tail);
        // A thread, since a full pipe would stall the database whenever the runtime is busy.
        thread::Builder::new()
            .name("postgres-log".to_owned())
            .spawn(move || {
                let mut pipe = BufReader::new(pipe);
                while let Some(line) = next_line(&mut pipe) {
                    log(&line);
                    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                    if kept.len() == TAIL_LINES {
                        kept.pop_front();
                    }
                    kept.push_back(line);
                }
                let _ = ended.send(());
            })?;
        Ok(Self {
            tail,
            end: Some(end),
        })
    }

    /// What was said last, once the program has ended: all of it, unless an orphan keeps the pipe open.
    pub async fn tail(&mut self) -> String {
        if let Some(end) = self.end.take() {
            let _ = timeout(Duration::from_secs(1), end).await;
        }
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.iter().cloned().collect::<Vec<_>>().join("\n")
    }
}

fn next_line(pipe: &mut BufReader<PipeReader>) -> Option<String> {
    let mut line = Vec::new();
    let read = pipe.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line);
    match read {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
    }
}

fn log(line: &str) {
    match line.split(':').next() {
        Some("PANIC" | "FATAL") => tracing::error!(target: "postgres", "{line}"),
        Some("ERROR" | "WARNING") => tracing::warn!(target: "postgres", "{line}"),
        Some("LOG" | "NOTICE" | "INFO") => tracing::info!(target: "postgres", "{line}"),
        _ => tracing::debug!(target: "postgres", "{line}"),
    }
}
