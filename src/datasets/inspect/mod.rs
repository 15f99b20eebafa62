//! From an uploaded file to a stored data set: inferred shapes, types, classes and priors, a split, the
//! normalisation fitted on the training examples. Runs in a child with a limit on its memory, because the
//! file is anybody's: it is read as a stream, once to learn what it is and once to write it.
//!
//! The child ([`run`]) finds the options on its stdin, the file and the place for the result on two
//! descriptors, and ends with the event `finished`, or `infeasible: data_refused` with what is wrong, where,
//! and what would mend it.

mod npz;
mod split;
mod tables;
mod text;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::process::ExitCode;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::content::{Header, Layout, finish};
use crate::probe::{EVENTS_FD_VARIABLE, Event, InfeasibleReason, PROTOCOL};
use crate::study::upload::{UploadFormat, UploadLimits, UploadOptions};

/// The descriptor of the uploaded file.
pub const INPUT_FD: RawFd = 4;
/// The descriptor of the stored form.
pub const OUTPUT_FD: RawFd = 5;

/// What the child is to do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    pub options: UploadOptions,
    pub limits: UploadLimits,
}

/// Why a file is no data set.
#[derive(Debug, Error)]
pub enum Refused {
    /// What is wrong, where, and what would mend it.
    #[error("{0}")]
    Because(String),
    /// The disk, not the file.
    #[error("the file could not be read or written: {0}")]
    Io(#[from] io::Error),
}

impl Refused {
    fn because(detail: impl Into<String>) -> Self {
        Self::Because(detail.into())
    }
}

/// Reads `input` and writes its stored form to `output`.
///
/// # Errors
/// When the file is not what it should be.
pub fn inspect(inspection: &Inspection, input: File, mut output: File) -> Result<Header, Refused> {
    if input.metadata()?.len() == 0 {
        return Err(Refused::because("the file is empty"));
    }
    let (layout, header) = match inspection.options.format {
        UploadFormat::Npz => npz::inspect(inspection, input, &output)?,
        UploadFormat::Csv => tables::inspect(inspection, &mut tables::Csv::new(input), &output)?,
        UploadFormat::Parquet => {
            tables::inspect(inspection, &mut tables::Parquet::new(input)?, &output)?
        }
        UploadFormat::Text => text::inspect(inspection, input, &output)?,
    };
    finish(&mut output, &layout, &header)?;
    Ok(header)
}

/// Refuses what would be stored with more bytes than allowed, and makes room for the rest.
fn make_room(inspection: &Inspection, layout: &Layout, output: &File) -> Result<(), Refused> {
    let limit = inspection.limits.max_content_bytes;
    if layout.bytes() > limit {
        return Err(Refused::because(format!(
            "the examples take {} bytes in their stored form, more than the {limit} allowed (datasets.max_content_bytes)",
            layout.bytes()
        )));
    }
    output.set_len(layout.bytes())?;
    Ok(())
}

/// The whole of the child process. Exit codes as for a probe: 0 when the last event says how it ended.
pub fn run() -> ExitCode {
    match supervise() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "stderr is the child's log")]
            {
                eprintln!("error: {error}");
            }
            ExitCode::FAILURE
        }
    }
}

fn supervise() -> io::Result<()> {
    let number: RawFd = std::env::var(EVENTS_FD_VARIABLE)
        .ok()
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::other(format!("{EVENTS_FD_VARIABLE} names no descriptor")))?;
    // SAFETY: the service opened these three for this process, which has opened nothing yet; each is taken
    // once. A number that is not open makes the first use fail.
    let [events, input, output] = unsafe {
        [number, INPUT_FD, OUTPUT_FD].map(|number| File::from(OwnedFd::from_raw_fd(number)))
    };
    let mut events = events;
    let mut say = |event: &Event| -> io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        events.write_all(&line)
    };
    say(&Event::Started {
        protocol: PROTOCOL,
        runner: crate::probe::fingerprint::RUNNER.to_owned(),
    })?;
    let mut options = String::new();
    io::stdin().read_to_string(&mut options)?;
    let inspection: Inspection = serde_json::from_str(&options)?;
    match inspect(&inspection, input, output) {
        Ok(_) => say(&Event::Finished {}),
        Err(Refused::Because(detail)) => say(&Event::Infeasible {
            reason: InfeasibleReason::DataRefused,
            detail,
        }),
        Err(Refused::Io(error)) => Err(error),
    }
}

/// Mean and deviation, gathered number by number (Welford 1962); what is not a number is left out.
#[derive(Debug, Clone, Copy, Default)]
struct Running {
    count: u64,
    mean: f64,
    squares: f64,
}

impl Running {
    fn push(&mut self, value: f64) {
        if value.is_nan() {
            return;
        }
        self.count += 1;
        let difference = value - self.mean;
        self.mean += difference / self.count as f64;
        self.squares += difference * (value - self.mean);
    }

    fn moments(&self) -> super::content::Moments {
        let variance = if self.count == 0 {
            0.0
        } else {
            self.squares / self.count as f64
        };
        let deviation = variance.sqrt() as f32;
        super::content::Moments {
            mean: self.mean as f32,
            // Nothing varies, or so little that dividing by it would overflow.
            deviation: if deviation > 1e-30 { deviation } else { 1.0 },
        }
    }
}
