//! A runner that does not train: it speaks the child's contract, or breaks it, as its arguments say.
//!
//! It links nothing of the service on purpose: it starts in milliseconds, and it shows that the
//! contract can be met from the outside. `--socket PATH` (before the behaviour) makes it connect
//! there, send its process id, and hold the connection for as long as it lives.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, raise, signal};
use serde_json::{Value, json};

/// The learning rate at which simulated training diverges.
const DIVERGENT: f64 = 1.0;

fn main() -> io::Result<()> {
    let mut arguments: Vec<String> = env::args().skip(1).collect();
    let path = (arguments.first().map(String::as_str) == Some("--socket")).then(|| {
        let path = arguments.remove(1);
        arguments.remove(0);
        path
    });
    // Once it has said that it started, so that nothing but its parent's will ends it from then on.
    let connect = || -> io::Result<Option<UnixStream>> {
        let Some(path) = &path else { return Ok(None) };
        let mut stream = UnixStream::connect(path)?;
        writeln!(stream, "{}", process::id())?;
        Ok(Some(stream))
    };
    let behaviour = if arguments.is_empty() {
        "noop".to_owned()
    } else {
        arguments.remove(0)
    };
    let number = |index: usize| -> f64 {
        arguments
            .get(index)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0.0)
    };
    if behaviour == "grandchild" {
        // Started by `fork` or `escape`; it knows no contract.
        if arguments.first().map(String::as_str) == Some("session") {
            nix::unistd::setsid()?;
        }
        let _lifeline = connect()?;
        if let Some(path) = &path {
            fs::write(format!("{path}.grandchild"), "")?;
        }
        sleep_forever();
    }
    if behaviour == "briefly" {
        return Err(briefly(number(0), arguments.get(1..).unwrap_or_default())?);
    }
    let mut runner = Runner::start()?;
    if ![
        "ignore-spec",
        "wrong-protocol",
        "garbage",
        "no-start",
        "oversized",
    ]
    .contains(&behaviour.as_str())
    {
        runner.started(1)?;
    }
    let lifeline = connect()?;
    match behaviour.as_str() {
        "noop" => runner.simulate(1.0, 0.0, 1e-3, 0.0)?,
        "simulate" => {
            // Memory a + b·B bytes, time per step α + β·B seconds.
            runner.simulate(number(0), number(1), number(2), number(3))?;
        }
        "measure" => {
            for value in 0..number(0) as u32 {
                runner.measurement("my_metric", None, f64::from(value), "count")?;
            }
            runner.progress("halfway", 0.5)?;
            runner.finish()?;
        }
        "sleep" => sleep_forever(),
        "spy" => {
            // What it can learn of its parent, for the test to judge.
            let mut log = io::stderr();
            let of_parent = format!("/proc/{}", nix::unistd::getppid());
            for name in ["environ", "mem", "maps"] {
                let read = fs::File::open(format!("{of_parent}/{name}"))
                    .and_then(|file| io::read_to_string(file.take(1 << 20)));
                match read {
                    Ok(text) => writeln!(log, "{name}: {text}")?,
                    Err(error) => writeln!(log, "{name} is closed: {error}")?,
                }
            }
            writeln!(log, "uid {}", nix::unistd::getuid())?;
            let score = fs::read_to_string("/proc/self/oom_score_adj")?;
            writeln!(log, "oom_score_adj {}", score.trim())?;
            process::exit(3);
        }
        "ignore-sigterm" => {
            // SAFETY: ignoring runs no code in a signal handler.
            unsafe { signal(Signal::SIGTERM, SigHandler::SigIgn) }?;
            sleep_forever();
        }
        "ignore-spec" => sleep_forever(),
        "chatter" => {
            let line = [b'x'; 1023];
            for _ in 0..number(0) as usize * 1024 {
                for out in [&mut io::stdout() as &mut dyn Write, &mut io::stderr()] {
                    out.write_all(&line)?;
                    out.write_all(b"\n")?;
                }
            }
            io::stderr().write_all(b"the end\n")?;
            runner.finish()?;
        }
        "garbage" => {
            runner.raw(b"\xff\xfe this is no event\n")?;
            sleep_forever();
        }
        "oversized" => {
            let _ = runner.raw(&vec![b'{'; number(0) as usize]);
            sleep_forever();
        }
        "endless-events" => loop {
            runner.progress("on and on", 0.5)?;
        },
        "partial" => {
            runner.raw(b"{\"event\":\"finis")?;
            process::exit(number(0) as i32);
        }
        "no-start" => runner.finish()?,
        "wrong-protocol" => {
            runner.started(99)?;
            sleep_forever();
        }
        "after-finished" => {
            runner.finish()?;
            runner.progress("and another thing", 1.0)?;
            sleep_forever();
        }
        "no-final" => {}
        "exit" => process::exit(number(0) as i32),
        "finish-and-exit" => {
            runner.finish()?;
            process::exit(number(0) as i32);
        }
        "infeasible" => {
            runner.send(
                &json!({"event": "infeasible", "reason": arguments[0], "detail": "as told"}),
            )?;
        }
        "failed" => runner.send(&json!({"event": "failed", "detail": "as told"}))?,
        "panic" => panic!("as told"),
        "abort-out-of-memory" => {
            io::stderr().write_all(b"memory allocation of 1234567 bytes failed\n")?;
            process::abort();
        }
        "kill-self" => {
            raise(Signal::SIGKILL)?;
        }
        "fork" => {
            let mut command = Command::new(env::current_exe()?);
            if let Some(path) = &path {
                command.args(["--socket", path]);
            }
            // It holds this process's stdout, stderr and stdin.
            command.arg("grandchild").spawn()?;
            await_grandchild(path.as_deref());
            runner.finish()?;
        }
        "escape" => {
            // A grandchild that has left the group, or takes pains to belong to nobody, and holds the pipes.
            use std::os::unix::process::CommandExt;
            let mut command = Command::new(env::current_exe()?);
            if let Some(path) = &path {
                command.args(["--socket", path]);
            }
            command.arg("grandchild");
            match arguments.first().map(String::as_str) {
                Some("session") => command.arg("session"),
                Some("unmarked") => command.process_group(0).env_remove("TRIALHEAD_PROBE"),
                _ => command.process_group(0),
            };
            command.spawn()?;
            await_grandchild(path.as_deref());
            runner.finish()?;
        }
        "report" => {
            // What it was given, for the test to judge.
            let mut log = io::stderr();
            for (name, value) in env::vars() {
                writeln!(log, "env {name}={value}")?;
            }
            log.write_all(fs::read_to_string("/proc/self/status")?.as_bytes())?;
            log.write_all(fs::read_to_string("/proc/self/limits")?.as_bytes())?;
            for entry in fs::read_dir("/proc/self/fd")? {
                let path = entry?.path();
                let target = fs::read_link(&path).unwrap_or_default();
                writeln!(log, "fd {} {}", path.display(), target.display())?;
            }
            runner.finish()?;
        }
        other => {
            return Err(io::Error::other(format!("no such behaviour: {other}")));
        }
    }
    drop(lifeline);
    Ok(())
}

/// Waits until the grandchild has said that it lives: its end would else have no witness.
fn await_grandchild(socket: Option<&str>) {
    let Some(socket) = socket else { return };
    let sign = format!("{socket}.grandchild");
    while !std::path::Path::new(&sign).exists() {
        thread::sleep(Duration::from_millis(1));
    }
}

fn sleep_forever() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// Becomes another runner, which samples times for so many seconds at most: on a busy host one samples for a
/// minute and more, which no test waits for that does not ask how exact a time is. Returns only what went wrong.
fn briefly(secs: f64, runner: &[String]) -> io::Result<io::Error> {
    let mut spec: Value = serde_json::from_reader(io::stdin().lock())?;
    if let Some(max_secs) = spec.pointer_mut("/task/max_secs") {
        *max_secs = json!(secs);
    }
    // A specification is far smaller than what a pipe holds.
    let (input, writer) = io::pipe()?;
    serde_json::to_writer(writer, &spec)?;
    let [program, arguments @ ..] = runner else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    Ok(Command::new(program).args(arguments).stdin(input).exec())
}

/// The contract, from the runner's side.
struct Runner {
    spec: Value,
    events: File,
    seq: u32,
}

impl Runner {
    fn start() -> io::Result<Self> {
        let descriptor = env::var("TRIALHEAD_EVENTS_FD")
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| io::Error::other("TRIALHEAD_EVENTS_FD names no descriptor"))?;
        // SAFETY: the parent passes this descriptor for this purpose.
        let events = unsafe { File::from_raw_fd(descriptor) };
        let mut text = String::new();
        if !env::args().any(|argument| argument == "ignore-spec") {
            io::stdin().read_to_string(&mut text)?;
        }
        let spec = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Self {
            spec,
            events,
            seq: 0,
        })
    }

    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.events.write_all(bytes)
    }

    fn send(&mut self, event: &Value) -> io::Result<()> {
        self.raw(format!("{event}\n").as_bytes())
    }

    fn started(&mut self, protocol: u32) -> io::Result<()> {
        self.send(&json!({"event": "started", "protocol": protocol, "runner": "fake-1"}))
    }

    fn progress(&mut self, phase: &str, fraction: f64) -> io::Result<()> {
        self.send(&json!({"event": "progress", "phase": phase, "fraction": fraction}))
    }

    fn measurement(
        &mut self,
        metric: &str,
        step: Option<u64>,
        value: f64,
        unit: &str,
    ) -> io::Result<()> {
        let seq = self.seq;
        self.seq += 1;
        let mut event = json!({
            "event": "measurement", "seq": seq, "metric": metric, "value": value, "unit": unit,
            "elapsed_secs": 0.0,
        });
        if let Some(step) = step {
            event["step"] = step.into();
        }
        self.send(&event)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.send(&json!({"event": "finished"}))
    }

    /// A device whose memory and time are known: a + b·B bytes, really allocated, and α + β·B seconds
    /// per step, only claimed. Training takes fewer steps at larger batches, and the fewest at a fifth of the learning
    /// rate that diverges.
    fn simulate(&mut self, a: f64, b: f64, alpha: f64, beta: f64) -> io::Result<()> {
        let batch_size = self.spec["batch_size"].as_f64().unwrap_or(1.0);
        let bytes = a + b * batch_size;
        let kept = vec![1_u8; bytes as usize];
        let touched = kept
            .iter()
            .step_by(4096)
            .map(|byte| u64::from(*byte))
            .sum::<u64>();
        self.progress("simulating", 0.5)?;
        let time = alpha + beta * batch_size;
        match self.spec["task"]["kind"].as_str() {
            Some("step_time") => {
                for block in 0..50_u64 {
                    // A known, small spread around the truth.
                    let spread = 1.0 + 0.004 * ((block * 7 % 11) as f64 - 5.0) / 5.0;
                    self.measurement("block_time_per_step", Some(block), time * spread, "s")?;
                }
                self.measurement("time_per_step_median", None, time, "s")?;
                self.measurement("time_per_step_mean", None, time, "s")?;
                self.measurement("within_run_median_half_width", None, 0.001, "ratio")?;
                self.measurement("within_run_mean_half_width", None, 0.001, "ratio")?;
                self.measurement("blocks", None, 50.0, "count")?;
                self.measurement("steps_per_block", None, 1.0, "count")?;
                self.measurement("converged", None, 1.0, "count")?;
                self.measurement("compile_secs", None, time, "s")?;
                self.measurement("canary_time_per_step", None, 1e-3, "s")?;
            }
            Some("smoke") => {
                self.measurement("first_loss", None, 2.3, "loss")?;
                self.measurement("last_loss", None, 1.9, "loss")?;
                self.measurement("validation_loss", None, 2.0, "loss")?;
                self.measurement("evaluation_difference", None, 0.0, "loss")?;
            }
            Some("learning_rate_range") => {
                self.measurement("divergent_learning_rate", None, DIVERGENT, "ratio")?;
            }
            Some("input_pipeline") => {
                // Parts that add up, all of them alike for every size.
                for (part, share) in [
                    ("unprefetched", 1.0),
                    ("load", 0.2),
                    ("transfer", 0.1),
                    ("synthetic", 0.7),
                    ("readback", 1.0),
                ] {
                    let name = format!("{part}_time_per_step");
                    self.measurement(&name, None, share * time, "s")?;
                }
            }
            Some("gradient_accumulation") => {
                let batches = self.spec["task"]["micro_batches"].as_f64().unwrap_or(1.0);
                self.measurement("accumulated_time_per_step", None, batches * time, "s")?;
            }
            Some("noise_scale") => self.measurement("noise_scale", None, 40.0, "count")?,
            Some("training") => {
                let rate = self.spec["optimizer"]["learning_rate"].as_f64();
                let rate = rate.unwrap_or(DIVERGENT);
                if rate > DIVERGENT {
                    return self.send(&json!({
                        "event": "infeasible", "reason": "diverged", "detail": "too fast",
                    }));
                }
                let off = (rate / (0.2 * DIVERGENT)).ln();
                let seed = self.spec["seed"].as_u64().unwrap_or(0) % 7;
                let steps = (20.0 + 600.0 / batch_size)
                    * (1.0 + 0.3 * off * off)
                    * (1.0 + 0.01 * seed as f64);
                let cap = self.spec["task"]["max_steps"].as_f64().unwrap_or(1.0);
                if steps <= cap {
                    self.measurement("steps_to_target", None, steps, "count")?;
                }
                let best = 0.2 * steps / steps.min(cap);
                self.measurement("best_evaluation", None, best, "metric")?;
                self.measurement("best_step", None, steps.min(cap), "count")?;
            }
            _ => {
                self.measurement("peak_memory", None, bytes, "bytes")?;
                self.measurement(
                    "peak_resident_memory",
                    None,
                    touched as f64 * 4096.0,
                    "bytes",
                )?;
            }
        }
        let steps = self.spec["task"]["steps"].as_f64().unwrap_or(1.0);
        self.measurement("steps", None, steps, "count")?;
        self.finish()
    }
}
