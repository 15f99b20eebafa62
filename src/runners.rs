//! `trialhead runner check`: whether somebody's program keeps the contract of a runner.

use std::io::Write as _;
use std::path::PathBuf;

use crate::pool::child::{ChildConfig, ServiceUser, Spawner, unprivileged_user};
use crate::pool::conformance::{self, Finding, Verdict};
use crate::pool::inventory;
use crate::probe::{ProbeKind, ProbeSpec, examples};
use crate::study::validation::{self, DefinitionLimits};
use crate::study::{BatchSize, StudyDefinition, defaults};
use anyhow::Context as _;
use clap::Args;

/// The batch size of a check, if the data set has as many examples.
const BATCH_SIZE: u64 = 32;
/// What the program is called when no study names it.
const NAME: &str = "checked";
/// How long one probe of a check may take, seconds.
const WALL_SECS: f64 = 120.0;

/// What is checked, and how.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The program and its arguments, as a shell would split them.
    #[arg(value_name = "COMMAND")]
    command: String,
    /// Only these kinds of probes.
    #[arg(long, value_delimiter = ',', value_parser = kind)]
    kinds: Vec<ProbeKind>,
    /// A study, as it would be posted, whose workload, optimizer and options the program is checked with
    /// [default: an MLP on the digits].
    #[arg(long, value_name = "FILE")]
    study: Option<PathBuf>,
    /// Account that the program runs as when this runs as root.
    #[arg(long, value_name = "ACCOUNT")]
    user: Option<String>,
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

fn kind(name: &str) -> Result<ProbeKind, String> {
    ProbeKind::parse(name).ok_or_else(|| {
        let all: Vec<&str> = ProbeKind::ALL.into_iter().map(ProbeKind::as_str).collect();
        format!("must be one of {}", all.join(", "))
    })
}

/// Checks, prints what was found, and says whether all is well.
///
/// # Errors
/// When the command, the study or the account is none, or the system gives no thread.
pub async fn check(args: CheckArgs) -> anyhow::Result<bool> {
    let command = shlex::split(&args.command)
        .filter(|words| !words.is_empty())
        .context("COMMAND must be a program and its arguments, quotes closed")?;
    let definition = args.study.as_deref().map(study).transpose()?;
    let kinds = if args.kinds.is_empty() {
        ProbeKind::ALL.to_vec()
    } else {
        args.kinds
    };
    let specs: Vec<ProbeSpec> = kinds
        .into_iter()
        .map(|kind| spec(kind, definition.as_ref()))
        .collect();
    let user = match &args.user {
        None => unprivileged_user(),
        Some(name) => {
            let user = nix::unistd::User::from_name(name)?
                .with_context(|| format!("there is no account {name:?}"))?;
            ServiceUser {
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }
        }
    };
    let config = ChildConfig {
        runners: specs
            .iter()
            .map(|spec| (spec.runner.name.clone(), command.clone()))
            .collect(),
        user: Some(user),
        ..ChildConfig::default()
    };
    let spawner = Spawner::new()?;
    let mut out = std::io::stdout();
    let mut findings = Vec::new();
    if !args.json {
        writeln!(out, "{:<22} {:<12} ", "kind", "verdict")?;
    }
    // Each as soon as it is known: some take a while.
    for spec in &specs {
        let found = conformance::check(&spawner, &config, std::slice::from_ref(spec)).await;
        for Finding {
            kind,
            verdict,
            detail,
        } in &found
        {
            if !args.json {
                writeln!(
                    out,
                    "{:<22} {:<12} {detail}",
                    kind.as_str(),
                    verdict.as_str()
                )?;
            }
        }
        findings.extend(found);
    }
    let is_well = findings.iter().all(|it| it.verdict != Verdict::Problem);
    if args.json {
        let text = serde_json::to_string_pretty(
            &serde_json::json!({"conforms": is_well, "kinds": findings}),
        )?;
        writeln!(out, "{text}")?;
    } else if is_well {
        writeln!(out, "The program keeps the contract.")?;
    } else {
        writeln!(
            out,
            "The program breaks the contract; docs/runners.md has it, docs/runners/ an example of every kind."
        )?;
    }
    Ok(is_well)
}

fn study(path: &std::path::Path) -> anyhow::Result<StudyDefinition> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let rules = validation::DefinitionRules::new(DefinitionLimits::default());
    let request = rules.parse_body(&text, None).map_err(|error| match error {
        validation::Rejected::Invalid(violations) => {
            let lines: Vec<String> = violations
                .iter()
                .map(|it| format!("{}: {}", it.pointer, it.detail))
                .collect();
            anyhow::anyhow!("{} is no study: {}", path.display(), lines.join("; "))
        }
        other => anyhow::anyhow!("{}: {other}", path.display()),
    })?;
    defaults::resolve(request, None)
        .with_context(|| format!("{} names a data set that is not known here", path.display()))
}

fn spec(kind: ProbeKind, definition: Option<&StudyDefinition>) -> ProbeSpec {
    let mut spec = examples::on_digits(kind);
    spec.runner.name = NAME.to_owned();
    if let Some(definition) = definition {
        if !definition.runner.is_burn() {
            spec.runner = definition.runner.clone();
        }
        spec.workload = definition.workload.clone();
        let target = spec.workload.target.take();
        spec.task = examples::task(kind, target);
        spec.optimizer = definition.optimizer.clone();
        spec.schedule = definition.schedule.clone();
        spec.gradient_clipping = definition.gradient_clipping.clone();
        spec.seed = definition.seed;
        let examples = spec.workload.dataset.facts().training_examples;
        // As many for each device.
        let devices = u64::from(definition.device.count.max(1));
        spec.device.count = definition.device.count;
        let shared_out = BATCH_SIZE.min(examples) / devices * devices;
        spec.batch_size = BatchSize(shared_out.max(devices));
    }
    let facts = inventory::cpu("checked", None);
    spec.device.backend = facts.backend;
    spec.device.model = facts.model.clone();
    spec.device.threads = definition
        .and_then(|it| it.device.threads)
        .unwrap_or(facts.threads);
    spec.limits.memory_bytes = definition
        .and_then(|it| it.device.memory_budget_bytes)
        .unwrap_or_else(|| facts.default_memory_budget());
    spec.limits.wall_secs = WALL_SECS;
    spec
}
