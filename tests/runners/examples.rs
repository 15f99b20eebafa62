//! `docs/runners/`: one specification and one stream of events of each kind, as the service's own runner makes them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use trialhead::probe::{ProbeKind, examples};

use crate::service::trained;

/// Not every host tells these, and on a busy one too few blocks are timed for an interval.
const OPTIONAL: [&str; 4] = [
    "run_queue_delay_ratio",
    "energy_per_step",
    "within_run_median_half_width",
    "within_run_mean_half_width",
];

fn file(kind: ProbeKind, ending: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/runners");
    folder.join(format!("{}.{ending}", kind.as_str()))
}

/// What the service's own runner says.
fn said(spec: &str) -> String {
    let command = trained();
    let mut child = Command::new(&command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(spec.as_bytes()).expect("writes");
    drop(stdin);
    let ended = child.wait_with_output().expect("ends");
    assert!(ended.status.success(), "{spec}");
    String::from_utf8(ended.stdout).expect("text")
}

/// The kinds of lines in the order of their first appearance: figures, times and how often they come differ from run
/// to run and from host to host.
fn shape(events: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for line in events.lines() {
        let event: Value = serde_json::from_str(line).expect("JSON");
        let name = event["event"].as_str().expect("a name");
        let metric = event["metric"].as_str().unwrap_or_default();
        if name == "progress" || OPTIONAL.contains(&metric) {
            continue;
        }
        let members: Vec<&String> = event.as_object().expect("an object").keys().collect();
        let line = format!("{name} {metric} {} {members:?}", event["unit"]);
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines
}

#[test]
fn the_examples_of_the_contract_are_what_the_services_own_runner_says() {
    // `TRIALHEAD_WRITE_EXAMPLES=1 cargo test --release --test runners examples` makes them anew.
    let writes = std::env::var_os("TRIALHEAD_WRITE_EXAMPLES").is_some();
    for kind in ProbeKind::ALL {
        let spec = serde_json::to_string_pretty(&examples::on_digits(kind)).expect("JSON") + "\n";
        let events = said(&spec);
        let (spec_file, events_file) = (file(kind, "spec.json"), file(kind, "events.jsonl"));
        if writes {
            fs::write(&spec_file, &spec).expect("writes");
            fs::write(&events_file, &events).expect("writes");
        }
        let stored = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        assert_eq!(stored(&spec_file), spec, "{}", spec_file.display());
        assert_eq!(
            shape(&stored(&events_file)),
            shape(&events),
            "{}",
            events_file.display()
        );
    }
}
