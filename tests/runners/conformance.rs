//! `trialhead runner check`: programs that keep the contract, and every way to break it.

use std::process::Command;

use serde_json::Value;
use trialhead::pool::child::{ChildConfig, Spawner};
use trialhead::pool::conformance::{self, Finding, Verdict};
use trialhead::probe::{ProbeKind, ProbeSpec, examples};
use trialhead::study::Bytes;

use crate::python;
use crate::service::trained;

/// Runs the command of people; gives its exit code and its findings.
pub fn check(command: &str, more: &[&str]) -> (Option<i32>, Value) {
    let ended = Command::new(env!("CARGO_BIN_EXE_trialhead"))
        .args(["runner", "check", command, "--json"])
        .args(more)
        .output()
        .expect("it runs");
    let findings = serde_json::from_slice(&ended.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {}{}",
            String::from_utf8_lossy(&ended.stdout),
            String::from_utf8_lossy(&ended.stderr)
        )
    });
    (ended.status.code(), findings)
}

pub fn verdicts(findings: &Value) -> Vec<(&str, &str)> {
    let kinds = findings["kinds"].as_array().expect("kinds");
    kinds
        .iter()
        .map(|it| {
            (
                it["kind"].as_str().expect("a kind"),
                it["verdict"].as_str().expect("a verdict"),
            )
        })
        .collect()
}

#[test]
fn the_services_own_runner_keeps_the_contract() {
    let (code, findings) = check(&trained().join(" "), &[]);
    assert_eq!(code, Some(0), "{findings:#}");
    assert_eq!(findings["conforms"], true);
    let expected: Vec<_> = ProbeKind::ALL
        .into_iter()
        .map(|kind| (kind.as_str(), "ok"))
        .collect();
    assert_eq!(verdicts(&findings), expected, "{findings:#}");
}

#[test]
fn a_runner_need_not_do_every_kind() {
    let Some(command) = python::simulated("a_runner_need_not_do_every_kind", "") else {
        return;
    };
    let (code, findings) = check(&command, &[]);
    assert_eq!(code, Some(0), "{findings:#}");
    for (kind, verdict) in verdicts(&findings) {
        let expected = match kind {
            "input_pipeline" | "gradient_accumulation" | "noise_scale" => "unsupported",
            _ => "ok",
        };
        assert_eq!(verdict, expected, "{kind}: {findings:#}");
    }
}

async fn found(fault: &str, kind: ProbeKind, memory: Bytes) -> Option<Finding> {
    let command = python::simulated("every_breach_is_found_and_named", fault)?;
    let mut spec: ProbeSpec = examples::on_digits(kind);
    spec.runner.name = "faulty".into();
    spec.limits.memory_bytes = memory;
    let config = ChildConfig {
        runners: [("faulty".into(), shlex::split(&command).expect("splits"))].into(),
        ..ChildConfig::default()
    };
    let spawner = Spawner::new().expect("a thread");
    conformance::check(&spawner, &config, &[spec]).await.pop()
}

#[tokio::test]
async fn every_breach_is_found_and_named() {
    let cases = [
        (
            "silent",
            ProbeKind::Smoke,
            "without saying that it had finished",
        ),
        (
            "old",
            ProbeKind::Smoke,
            "line 1 of its events: the runner speaks protocol 0, the service 1",
        ),
        (
            "nan",
            ProbeKind::Smoke,
            "line 2 of its events: not an event",
        ),
        ("nan", ProbeKind::Smoke, "JSON has no NaN and no infinity"),
        (
            "unit",
            ProbeKind::StepTime,
            "time_per_step_median is in s, not in \"ms\"",
        ),
        (
            "late",
            ProbeKind::Smoke,
            "line 3 of its events: nothing may come after `finished`",
        ),
        (
            "long",
            ProbeKind::Smoke,
            "line 2 of its events is longer than 65536 bytes",
        ),
        (
            "empty",
            ProbeKind::Memory,
            "it finished without a measurement, with no step, of peak_memory",
        ),
        (
            "exception",
            ProbeKind::Memory,
            "ValueError: the images are not where they were",
        ),
        (
            "memory",
            ProbeKind::Memory,
            "it ended as out_of_memory: MemoryError",
        ),
        (
            "torch",
            ProbeKind::Memory,
            "it ended as out_of_memory: torch.cuda.OutOfMemoryError",
        ),
        (
            "unsupported",
            ProbeKind::Smoke,
            "no study comes far without smoke probes",
        ),
        (
            "seedless",
            ProbeKind::Training,
            "the seed must decide everything random",
        ),
        (
            "fixed",
            ProbeKind::Training,
            "gave the very same best_evaluation",
        ),
    ];
    for (fault, kind, expected) in cases {
        let Some(finding) = found(fault, kind, Bytes(256 * Bytes::MIB)).await else {
            return;
        };
        assert_eq!(finding.verdict, Verdict::Problem, "{fault}: {finding:?}");
        assert!(finding.detail.contains(expected), "{fault}: {finding:?}");
    }
}

#[tokio::test]
async fn seeds_that_happen_to_give_the_same_are_no_breach() {
    let memory = Bytes(256 * Bytes::MIB);
    if let Some(finding) = found("tied", ProbeKind::Training, memory).await {
        assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
    }
}

#[test]
fn a_breach_makes_the_command_fail_and_names_what_cannot_be_checked() {
    let (code, findings) = check("/bin/true", &["--kinds", "smoke"]);
    assert_eq!(code, Some(1), "{findings:#}");
    assert_eq!(findings["conforms"], false);
    let missing = Command::new(env!("CARGO_BIN_EXE_trialhead"))
        .args(["runner", "check", "/bin/true", "--kinds", "dancing"])
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&missing.stderr);
    assert!(said.contains("must be one of smoke, memory"), "{said}");
}
