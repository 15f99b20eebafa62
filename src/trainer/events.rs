//! What the child says: JSON lines on the descriptor that the worker named.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::Instant;

use crate::probe::{EVENTS_FD_VARIABLE, Event, InfeasibleReason, Measurement, Metric, PROTOCOL};

/// Writes events, and numbers and dates the measurements.
pub(super) struct EventLog {
    output: Box<dyn Write + Send>,
    started: Instant,
    next_seq: u32,
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLog")
            .field("started", &self.started)
            .field("next_seq", &self.next_seq)
            .finish_non_exhaustive()
    }
}

impl EventLog {
    /// Opens the descriptor named in the environment; stdout if none is.
    ///
    /// # Errors
    /// When the variable does not name an open descriptor above the standard three.
    pub(super) fn open(started: Instant) -> io::Result<Self> {
        let output: Box<dyn Write + Send> = match std::env::var(EVENTS_FD_VARIABLE) {
            Err(std::env::VarError::NotPresent) => Box::new(io::stdout()),
            Err(error) => return Err(io::Error::other(error)),
            Ok(number) => Box::new(File::from(descriptor(&number)?)),
        };
        Ok(Self::writing_to(output, started))
    }

    /// Writes to anything.
    pub(super) fn writing_to(output: Box<dyn Write + Send>, started: Instant) -> Self {
        Self {
            output,
            started,
            next_seq: 0,
        }
    }

    /// Seconds since the child started.
    pub(super) fn elapsed_secs(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    pub(super) fn started(&mut self) -> io::Result<()> {
        self.write(&Event::Started {
            protocol: PROTOCOL,
            runner: crate::probe::fingerprint::RUNNER.to_owned(),
        })
    }

    pub(super) fn progress(&mut self, phase: &str, fraction: f64) -> io::Result<()> {
        self.write(&Event::Progress {
            phase: phase.to_owned(),
            fraction,
        })
    }

    /// A figure of the whole probe, measured now.
    pub(super) fn measurement(&mut self, metric: Metric, value: f64) -> io::Result<()> {
        let elapsed_secs = self.elapsed_secs();
        self.measurement_at(metric, None, value, elapsed_secs)
    }

    /// A figure of one step or block, measured `elapsed_secs` after the child's start.
    pub(super) fn measurement_at(
        &mut self,
        metric: Metric,
        step: Option<u64>,
        value: f64,
        elapsed_secs: f64,
    ) -> io::Result<()> {
        let seq = self.next_seq;
        self.next_seq += 1;
        self.write(&Event::Measurement(Measurement {
            seq,
            metric: metric.as_str().to_owned(),
            step,
            value,
            unit: metric.unit().to_owned(),
            elapsed_secs,
        }))
    }

    pub(super) fn finished(&mut self) -> io::Result<()> {
        self.write(&Event::Finished {})
    }

    pub(super) fn infeasible(
        &mut self,
        reason: InfeasibleReason,
        detail: String,
    ) -> io::Result<()> {
        self.write(&Event::Infeasible { reason, detail })
    }

    pub(super) fn failed(&mut self, detail: String) -> io::Result<()> {
        self.write(&Event::Failed { detail })
    }

    fn write(&mut self, event: &Event) -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        self.output.write_all(&line)?;
        self.output.flush()
    }
}

fn descriptor(number: &str) -> io::Result<OwnedFd> {
    let number: RawFd = number
        .parse()
        .ok()
        .filter(|&number| number > 2)
        .ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{EVENTS_FD_VARIABLE} must be a descriptor above 2, is {number:?}"),
            )
        })?;
    // SAFETY: the worker opened this descriptor for us and named it in the environment; this process
    // has opened nothing yet, and this is the only place that takes it. A number that is not open
    // makes the first write fail.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_descriptors_and_nonsense_are_refused() {
        for number in ["0", "2", "-1", "three", ""] {
            let error = descriptor(number).expect_err("refused");
            assert!(error.to_string().contains(EVENTS_FD_VARIABLE));
        }
    }
}
