//! Every way a child can end, and what it may and may not do meanwhile.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use trialhead::pool::child::{ChildConfig, ChildReport, Spawner, Told, run};
use trialhead::probe::{Exit, FailureReason, InfeasibleReason, KilledFor, Outcome};
use trialhead::study::{BatchSize, Bytes};

use crate::roles;
use crate::runner::{Lifelines, config, executable, run_as, run_to_end, spec};

fn failed(report: &ChildReport) -> (FailureReason, &str) {
    match &report.outcome {
        Outcome::Failed { reason, detail } => (*reason, detail),
        other => panic!("{other:?}\n{}", report.stderr_tail),
    }
}

fn infeasible(report: &ChildReport) -> (InfeasibleReason, &str) {
    match &report.outcome {
        Outcome::Infeasible { reason, detail } => (*reason, detail),
        other => panic!("{other:?}\n{}", report.stderr_tail),
    }
}

#[tokio::test]
async fn a_probe_that_does_what_it_was_asked_succeeds() {
    let (_control, controlled) = watch::channel(None);
    let (progress, seen) = watch::channel(None::<Told>);
    let spawner = Spawner::new().expect("starts a thread");
    let config = config(&["measure", "3"]);
    let report = run(&spawner, &config, &spec(), None, controlled, &progress).await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
    assert_eq!(report.exit, Some(Exit::Code(0)));
    assert_eq!(report.runner.as_deref(), Some("fake-1"));
    let values: Vec<f64> = report.measurements.iter().map(|one| one.value).collect();
    assert_eq!(values, [0.0, 1.0, 2.0]);
    assert!(report.wall_secs > 0.0);
    let told = seen.borrow().clone();
    let last = told
        .and_then(|told| told.progress)
        .expect("it told how far it was");
    assert_eq!((last.phase.as_str(), last.fraction), ("halfway", 0.5));
}

#[tokio::test]
async fn what_a_child_finds_out_is_knowledge() {
    let report = run_as(&["infeasible", "diverged"]).await;
    assert_eq!(infeasible(&report), (InfeasibleReason::Diverged, "as told"));
    let report = run_as(&["infeasible", "device_unsupported"]).await;
    assert_eq!(infeasible(&report).0, InfeasibleReason::DeviceUnsupported);
    // The time limit is kept from outside, and an upload is none of a probe's.
    for reason in ["too_slow", "data_refused"] {
        let report = run_as(&["infeasible", reason]).await;
        let (failure, detail) = failed(&report);
        assert_eq!(failure, FailureReason::InvalidOutput);
        assert!(
            detail.contains("line 2") && detail.contains(reason),
            "{detail}"
        );
    }
}

#[tokio::test]
async fn running_out_of_memory_is_told_from_other_ends() {
    let report = run_as(&["abort-out-of-memory"]).await;
    assert_eq!(report.exit, Some(Exit::Signal(6)));
    assert_eq!(
        infeasible(&report),
        (
            InfeasibleReason::OutOfMemory,
            "memory allocation of 1234567 bytes failed"
        )
    );
}

#[tokio::test]
async fn the_memory_limit_is_enforced_at_the_byte_count_of_the_spec() {
    // 16 MiB + 1 MiB an example, under 128 MiB: 96 examples fit, 128 do not.
    let run_at = async |batch_size| {
        let mut spec = spec();
        spec.limits.memory_bytes = Bytes(128 * Bytes::MIB);
        spec.batch_size = BatchSize(batch_size);
        run_to_end(&config(&["simulate", "16777216", "1048576"]), &spec).await
    };
    let fits = run_at(96).await;
    assert_eq!(fits.outcome, Outcome::Succeeded, "{}", fits.stderr_tail);
    let peak = &fits.measurements[0];
    assert_eq!(
        (peak.metric.as_str(), peak.value),
        ("peak_memory", 117440512.0)
    );
    let too_large = run_at(128).await;
    let (reason, detail) = infeasible(&too_large);
    assert_eq!(reason, InfeasibleReason::OutOfMemory);
    assert_eq!(detail, "memory allocation of 150994944 bytes failed");
}

#[tokio::test]
async fn crashes_are_told_with_what_is_known_of_them() {
    let panicked = run_as(&["panic"]).await;
    let (reason, detail) = failed(&panicked);
    assert_eq!(reason, FailureReason::Crashed);
    assert!(
        detail.contains("exit code 101") && detail.contains("as told"),
        "{detail}"
    );
    assert!(panicked.stderr_tail.contains("panicked at"));

    let killed = run_as(&["kill-self"]).await;
    assert_eq!(killed.exit, Some(Exit::Signal(9)));
    assert_eq!(
        failed(&killed),
        (FailureReason::Crashed, "signal 9 ended the child")
    );

    let code = run_as(&["exit", "139"]).await;
    assert_eq!(
        failed(&code),
        (FailureReason::Crashed, "the child ended with exit code 139")
    );

    let silent = run_as(&["no-final"]).await;
    let (reason, detail) = failed(&silent);
    assert_eq!(reason, FailureReason::Crashed);
    assert!(detail.contains("without saying"), "{detail}");

    let said = run_as(&["failed"]).await;
    assert_eq!(failed(&said), (FailureReason::Crashed, "as told"));

    let late = run_as(&["finish-and-exit", "3"]).await;
    assert_eq!(failed(&late).0, FailureReason::Crashed);
}

#[tokio::test]
async fn a_breach_of_the_contract_ends_the_child_at_once() {
    let cases: [(&[&str], &str); 7] = [
        (&["garbage"], "not an event"),
        (&["oversized", "1000000"], "longer than 65536 bytes"),
        (&["endless-events"], "more than 20000 events"),
        (&["no-start"], "must be `started`"),
        (&["wrong-protocol"], "protocol 99"),
        (&["after-finished"], "nothing may come after"),
        (&["partial", "0"], "not an event"),
    ];
    for (arguments, expected) in cases {
        let report = run_as(arguments).await;
        let (reason, detail) = failed(&report);
        assert_eq!(reason, FailureReason::InvalidOutput, "{arguments:?}");
        assert!(detail.contains(expected), "{arguments:?}: {detail}");
    }
    // A crash in the middle of a line is a crash.
    let report = run_as(&["partial", "7"]).await;
    assert_eq!(failed(&report).0, FailureReason::Crashed);
}

#[tokio::test]
async fn a_child_past_its_time_is_killed_whether_it_listens_or_not() {
    for behaviour in ["sleep", "ignore-sigterm", "ignore-spec"] {
        let mut spec = spec();
        spec.limits.wall_secs = 0.3;
        let report = run_to_end(&config(&[behaviour]), &spec).await;
        assert_eq!(infeasible(&report).0, InfeasibleReason::TooSlow);
        assert_eq!(report.exit, Some(Exit::Signal(9)));
        assert!(report.wall_secs >= 0.3 && report.wall_secs < 5.0);
    }
}

#[tokio::test]
async fn a_child_is_ended_for_every_reason_its_worker_can_have() {
    let reasons = [
        (KilledFor::Cancel, Outcome::Cancelled),
        (KilledFor::Drain, Outcome::HandedBack),
        (KilledFor::Lease, Outcome::HandedBack),
    ];
    let spawner = Spawner::new().expect("starts a thread");
    for (reason, expected) in reasons {
        let lifelines = Lifelines::new();
        let (control, controlled) = watch::channel(None);
        let (progress, _) = watch::channel(None);
        let config = config(&["--socket", &lifelines.path, "ignore-sigterm"]);
        let spec = spec();
        let (report, ()) = tokio::join!(
            run(&spawner, &config, &spec, None, controlled, &progress),
            async {
                let child = lifelines.next().await;
                control.send_replace(Some(reason));
                child.end().await;
            }
        );
        assert_eq!(report.outcome, expected);
    }
    // Told before the start, it never starts.
    let (_control, controlled) = watch::channel(Some(KilledFor::Cancel));
    let (progress, _) = watch::channel(None);
    let report = run(
        &spawner,
        &config(&["sleep"]),
        &spec(),
        None,
        controlled,
        &progress,
    )
    .await;
    assert_eq!((report.outcome, report.exit), (Outcome::Cancelled, None));
}

#[tokio::test]
async fn a_child_dies_with_the_task_that_watches_it() {
    let lifelines = Lifelines::new();
    let path = lifelines.path.clone();
    let (control, controlled) = watch::channel(None);
    let task = tokio::spawn(async move {
        let (progress, _) = watch::channel(None);
        let spawner = Spawner::new().expect("starts a thread");
        let config = config(&["--socket", &path, "sleep"]);
        run(&spawner, &config, &spec(), None, controlled, &progress).await
    });
    let child = lifelines.next().await;
    task.abort();
    child.end().await;
    drop(control);

    // And when nobody is left who could tell it to end.
    let (control, controlled) = watch::channel(None);
    let (progress, _) = watch::channel(None);
    let spawner = Spawner::new().expect("starts a thread");
    let config = config(&["--socket", &lifelines.path, "sleep"]);
    let spec = spec();
    let (report, ()) = tokio::join!(
        run(&spawner, &config, &spec, None, controlled, &progress),
        async {
            let child = lifelines.next().await;
            drop(control);
            child.end().await;
        }
    );
    assert_eq!(report.outcome, Outcome::HandedBack);
}

#[tokio::test]
async fn grandchildren_go_with_the_child() {
    let lifelines = Lifelines::new();
    let report = run_as(&["--socket", &lifelines.path, "fork"]).await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
    let (child, grandchild) = (lifelines.next().await, lifelines.next().await);
    assert_ne!(child.pid, grandchild.pid);
    child.end().await;
    grandchild.end().await;
    // It held the pipes open, and that kept nobody.
    assert!(report.wall_secs < 5.0);
}

#[tokio::test]
async fn what_has_left_the_group_is_killed_with_the_child() {
    for how in ["group", "session"] {
        let lifelines = Lifelines::new();
        let config = config(&["--socket", &lifelines.path, "escape", how]);
        // Another probe of the same worker, whose processes are none of this one's.
        let others = Lifelines::new();
        let beside = config_of_another(&others.path);
        let (stop, stopped) = watch::channel(None);
        let (progress, _) = watch::channel(None::<Told>);
        let spawner = Spawner::new().expect("starts a thread");
        let spec = spec();
        let test = async {
            let other = others.next().await;
            let report = run_to_end(&config, &spec).await;
            assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
            let (_child, escaped) = (lifelines.next().await, lifelines.next().await);
            escaped.end().await;
            assert!(
                std::path::Path::new(&format!("/proc/{}/fd", other.pid)).exists(),
                "the other one's child"
            );
            stop.send_replace(Some(KilledFor::Drain));
            other.end().await;
        };
        let beside = run(&spawner, &beside, &spec, None, stopped, &progress);
        let (report, ()) = tokio::join!(beside, test);
        assert_eq!(report.outcome, Outcome::HandedBack);
    }
}

fn config_of_another(lifeline: &str) -> ChildConfig {
    config(&["--socket", lifeline, "sleep"])
}

#[tokio::test]
async fn pipes_that_an_escaped_process_holds_open_are_given_up() {
    let lifelines = Lifelines::new();
    let config = ChildConfig {
        drain_grace: Duration::from_millis(200),
        ..config(&["--socket", &lifelines.path, "escape", "unmarked"])
    };
    let started = Instant::now();
    let report = run_to_end(&config, &spec()).await;
    assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
    assert!(started.elapsed() < Duration::from_secs(10));
    let (_child, escaped) = (lifelines.next().await, lifelines.next().await);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(escaped.pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("it is still there");
    escaped.end().await;
}

#[tokio::test]
async fn a_child_never_outlives_a_parent_that_is_killed() {
    let lifelines = Lifelines::new();
    let mut parent = roles::start("parent", &lifelines.path);
    let child = lifelines.next().await;
    assert_ne!(child.pid, parent.id() as i32);
    parent.kill().expect("SIGKILL");
    child.end().await;
    parent.wait().expect("reaps");
}

#[tokio::test]
async fn logs_are_read_while_they_come_and_only_their_ends_are_kept() {
    let config = ChildConfig {
        log_tail_bytes: 2000,
        ..config(&["chatter", "8"])
    };
    let report = run_to_end(&config, &spec()).await;
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(report.stdout_tail.len(), 2000);
    assert_eq!(report.stderr_tail.len(), 2000);
    assert!(report.stderr_tail.ends_with("xxx\nthe end\n"));
}

#[test]
fn a_child_gets_limits_and_its_place_but_no_secrets() {
    let output = roles::command("keeper_of_secrets", "DATABASE_URL")
        .env("DATABASE_URL", "postgres://user:hunter2@db/x")
        .env("TRIALHEAD_API__TOKEN", "hunter2")
        .env("AWS_SECRET_ACCESS_KEY", "hunter2")
        .output()
        .expect("runs");
    assert!(output.status.success());
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(!told.contains("hunter2"), "{told}");
    let has = |wanted: &str| {
        let found = told
            .lines()
            .any(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") == wanted);
        assert!(found, "{wanted} is not in\n{told}");
    };
    has("env TRIALHEAD_EVENTS_FD=3");
    has("env RAYON_NUM_THREADS=3");
    has("env RUST_BACKTRACE=0");
    has("Max data size 268435456 268435456 bytes");
    has("Max core file size 0 0 bytes");
    has("NoNewPrivs: 1");
    let open: Vec<&str> = told
        .lines()
        .filter(|line| line.starts_with("fd "))
        .collect();
    // 0 to 3, and the directory it is just reading.
    assert_eq!(open.len(), 5, "{open:?}");
    if nix::unistd::geteuid().is_root() {
        has("Uid: 65534 65534 65534 65534");
        has("Gid: 65534 65534 65534 65534");
        has("Groups: 65534");
        has("CapEff: 0000000000000000");
    }
}

#[tokio::test]
async fn a_child_that_cannot_start_says_why() {
    let nowhere = ChildConfig {
        command: Some(vec!["/nonexistent/runner".into()]),
        ..ChildConfig::default()
    };
    let report = run_to_end(&nowhere, &spec()).await;
    assert_eq!(report.exit, None);
    let (reason, detail) = failed(&report);
    assert_eq!(reason, FailureReason::NotStarted);
    assert!(
        detail.contains("cannot start /nonexistent/runner"),
        "{detail}"
    );
    assert!(detail.contains("No such file"), "{detail}");

    let empty = ChildConfig {
        command: Some(Vec::new()),
        ..ChildConfig::default()
    };
    let report = run_to_end(&empty, &spec()).await;
    assert_eq!(failed(&report).0, FailureReason::NotStarted);
}

#[tokio::test]
async fn a_step_that_fails_before_the_program_runs_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let config = ChildConfig {
        user: Some(trialhead::pool::child::ServiceUser {
            // The one id that no user can have.
            uid: u32::MAX,
            gid: 65534,
        }),
        ..config(&["noop"])
    };
    let report = run_to_end(&config, &spec()).await;
    let (reason, detail) = failed(&report);
    assert_eq!(reason, FailureReason::NotStarted);
    assert!(detail.contains("cannot change to the user"), "{detail}");
}

#[tokio::test]
async fn many_children_at_once_are_kept_apart() {
    let spawner = Spawner::new().expect("starts a thread");
    let (_control, controlled) = watch::channel(None);
    let path = executable().to_string_lossy().into_owned();
    let runs = (1..=24).map(|count| {
        let (spawner, controlled, path) = (spawner.clone(), controlled.clone(), path.clone());
        async move {
            let config = ChildConfig {
                command: Some(vec![path, "measure".into(), count.to_string()]),
                ..ChildConfig::default()
            };
            let (progress, _) = watch::channel(None);
            let report = run(&spawner, &config, &spec(), None, controlled, &progress).await;
            assert_eq!(report.outcome, Outcome::Succeeded, "{}", report.stderr_tail);
            assert_eq!(report.measurements.len(), count);
        }
    });
    futures::future::join_all(runs).await;
}
