//! `trialhead doctor`: looks at everything that a service needs, and says what to mend. It changes nothing that
//! starting the service would not change.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use crate::pool::child::{self, ChildConfig, Spawner};
use crate::pool::gpus;
use crate::pool::host_lock::HostLocks;
use crate::probe::{Outcome, ProbeKind, examples};
use crate::service::{child_config, join_database};
use crate::settings::Settings;
use crate::store::connection::{Database, migrations_ready};
use crate::store::{server_facts, tokens};
use crate::study::Bytes;

/// The oldest Postgres that the queries are written for.
const OLDEST_POSTGRES: i32 = 140_000;
/// Clocks further apart than this make times in answers misleading; deadlines are the database's own.
const CLOCK_SECS: f64 = 5.0;
/// Less room than this on the data folder's disk is worth a word.
const LITTLE_ROOM: u64 = 2 * Bytes::GIB;
/// How long the probe that is tried may take.
const PROBE_SECS: f64 = 60.0;

/// What was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What.
    pub check: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; null where nothing is to be done.
    pub mend: Option<String>,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// The service works, but not as well as it could.
    Warning,
    /// The service does not work like this.
    Problem,
    /// It could not be looked at, because of something above.
    Unknown,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
            Self::Unknown => "unknown",
        }
    }
}

struct Findings {
    list: Vec<Finding>,
    prints: bool,
}

impl Findings {
    fn add(
        &mut self,
        check: &'static str,
        verdict: Verdict,
        detail: impl Into<String>,
        mend: Option<&str>,
    ) {
        let finding = Finding {
            check,
            verdict,
            detail: detail.into(),
            mend: mend.map(ToOwned::to_owned),
        };
        if self.prints {
            let mut out = std::io::stdout();
            let _ = writeln!(
                out,
                "{:<8} {check:<12} {}",
                verdict.as_str(),
                finding.detail
            );
            if let Some(mend) = &finding.mend {
                let _ = writeln!(out, "{:<21} -> {mend}", "");
            }
        }
        self.list.push(finding);
    }

    fn ok(&mut self, check: &'static str, detail: impl Into<String>) {
        self.add(check, Verdict::Ok, detail, None);
    }
}

/// Looks at everything; each finding is printed as soon as it is known, unless JSON is wanted.
pub async fn examine(settings: &Settings, json: bool) -> Vec<Finding> {
    let mut findings = Findings {
        list: Vec::new(),
        prints: !json,
    };
    let has_folder = folder(settings, &mut findings);
    if has_folder {
        database(settings, &mut findings).await;
    } else {
        findings.add(
            "database",
            Verdict::Unknown,
            "not looked at without a data folder",
            None,
        );
    }
    locks(settings, &mut findings);
    children(settings, &mut findings).await;
    if json {
        let text = serde_json::to_string_pretty(&findings.list).unwrap_or_default();
        let _ = writeln!(std::io::stdout(), "{text}");
    }
    findings.list
}

/// Whether anything keeps the service from working.
pub fn is_well(findings: &[Finding]) -> bool {
    findings.iter().all(|it| it.verdict != Verdict::Problem)
}

/// The folder, or the nearest one above it that is there.
fn existing(folder: &Path) -> PathBuf {
    let mut at = folder.to_owned();
    while !at.exists() && at.pop() {}
    at
}

fn folder(settings: &Settings, findings: &mut Findings) -> bool {
    const CHECK: &str = "data folder";
    let folder = match settings.data_dir() {
        Ok(folder) => folder,
        Err(error) => {
            findings.add(
                CHECK,
                Verdict::Problem,
                error.to_string(),
                Some("set TRIALHEAD_DATA_DIR to a folder of this account's"),
            );
            return false;
        }
    };
    let there = existing(&folder);
    if !there.is_dir() {
        findings.add(
            CHECK,
            Verdict::Problem,
            format!("{} is no folder", there.display()),
            Some("set TRIALHEAD_DATA_DIR to a folder of this account's"),
        );
        return false;
    }
    if let Err(error) = nix::unistd::access(&there, nix::unistd::AccessFlags::W_OK) {
        findings.add(
            CHECK,
            Verdict::Problem,
            format!("{} cannot be written: {error}", there.display()),
            Some("make it this account's, or set TRIALHEAD_DATA_DIR to one that is"),
        );
        return false;
    }
    #[allow(
        clippy::unnecessary_cast,
        reason = "these are narrower on other systems"
    )]
    let room = nix::sys::statvfs::statvfs(&there)
        .map(|it| (it.blocks_available() as u64).saturating_mul(it.fragment_size() as u64));
    match room {
        Ok(room) if room < LITTLE_ROOM => findings.add(
            CHECK,
            Verdict::Warning,
            format!("{}: {} are free", folder.display(), Bytes(room)),
            Some("make room: the database, uploads and tuned kernels are kept there"),
        ),
        Ok(room) => findings.ok(
            CHECK,
            format!("{}: {} are free", folder.display(), Bytes(room)),
        ),
        Err(error) => findings.add(
            CHECK,
            Verdict::Warning,
            format!("{}: {error}", folder.display()),
            None,
        ),
    }
    true
}

async fn database(settings: &Settings, findings: &mut Findings) {
    const CHECK: &str = "database";
    let asked = Instant::now();
    let (database, postgres) = match join_database(settings).await {
        Ok(opened) => opened,
        Err(error) => {
            findings.add(
                CHECK,
                Verdict::Problem,
                format!("{error:#}"),
                Some("set DATABASE_URL to a Postgres of version 14 or later, or install its server programs for the managed one"),
            );
            return;
        }
    };
    look_into(settings, &database, asked, findings).await;
    database.close();
    if let Some(postgres) = postgres {
        postgres.stop().await;
    }
}

async fn look_into(
    settings: &Settings,
    database: &Database,
    asked: Instant,
    findings: &mut Findings,
) {
    const CHECK: &str = "database";
    let facts = match database.connection().await {
        Ok(mut conn) => server_facts::read(&mut conn).await,
        Err(error) => Err(error),
    };
    let facts = match facts {
        Ok(facts) => facts,
        Err(error) => {
            findings.add(CHECK, Verdict::Problem, error.to_string(), Some("see that the server runs, and that DATABASE_URL names it, its port and an account that may log in"));
            return;
        }
    };
    let here = if settings.database.url.is_some() {
        "the server of DATABASE_URL"
    } else {
        "the managed server"
    };
    if facts.version_number < OLDEST_POSTGRES {
        findings.add(
            CHECK,
            Verdict::Problem,
            format!("{here} is PostgreSQL {}", facts.version),
            Some("take PostgreSQL 14 or later"),
        );
    } else {
        findings.ok(
            CHECK,
            format!(
                "{here} is PostgreSQL {}, reached in {:.2} s",
                facts.version,
                asked.elapsed().as_secs_f64()
            ),
        );
    }
    let wanted = settings.database.pool_size + 1;
    if usize::try_from(facts.connections).is_ok_and(|has| has < wanted) {
        findings.add(
            "connections",
            Verdict::Warning,
            format!(
                "the server takes {} and this instance alone may open {wanted}",
                facts.connections
            ),
            Some("lower database.pool_size, or raise max_connections"),
        );
    } else {
        findings.ok(
            "connections",
            format!(
                "the server takes {}, this instance opens {wanted} at most",
                facts.connections
            ),
        );
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64());
    let apart = (now - facts.clock_secs).abs();
    if apart > CLOCK_SECS {
        findings.add(
            "clock",
            Verdict::Warning,
            format!("this host and the database are {apart:.0} s apart"),
            Some("set both by NTP: leases go by the database's clock, logs by this one"),
        );
    } else {
        findings.ok("clock", format!("{apart:.1} s from the database's"));
    }
    match migrations_ready(database).await {
        Ok(status) if status.is_ready() => findings.ok("migrations", "all are there"),
        Ok(status) => {
            let lacks = format!(
                "{} are missing: {}",
                status.missing.len(),
                status.missing.join(", ")
            );
            match settings.database.migrate {
                crate::settings::Migrate::Auto => findings.add(
                    "migrations",
                    Verdict::Ok,
                    format!("{lacks}; the service makes them when it starts"),
                    None,
                ),
                crate::settings::Migrate::Check => findings.add(
                    "migrations",
                    Verdict::Problem,
                    lacks,
                    Some("run `trialhead migrate`, or set database.migrate = \"auto\""),
                ),
            }
            return;
        }
        Err(error) => {
            findings.add("migrations", Verdict::Problem, error.to_string(), None);
            return;
        }
    }
    if !settings.needs_token() {
        findings.ok("tokens", format!("none is needed on {}", settings.listen));
        return;
    }
    let live = match database.connection().await {
        Ok(mut conn) => tokens::any_live(&mut conn).await,
        Err(error) => Err(error),
    };
    match live {
        Ok(true) => findings.ok("tokens", "at least one is live"),
        Ok(false) => findings.add(
            "tokens",
            Verdict::Problem,
            format!("{} needs access tokens, and none is live", settings.listen),
            Some("trialhead token create --name admin --scope admin"),
        ),
        Err(error) => findings.add("tokens", Verdict::Problem, error.to_string(), None),
    }
}

fn locks(settings: &Settings, findings: &mut Findings) {
    match HostLocks::open(settings.pool.lock_dir.as_deref()) {
        Ok(_) => findings.ok("locks", "the host's locks on devices can be taken"),
        Err(error) => findings.add(
            "locks",
            Verdict::Problem,
            error.to_string(),
            Some("make the folder of pool.lock_dir writable for everybody who runs a worker on this host"),
        ),
    }
}

async fn children(settings: &Settings, findings: &mut Findings) {
    const CHECK: &str = "probes";
    let child = match child_config(&settings.pool, &settings.datasets) {
        Ok(child) => child,
        Err(error) => {
            findings.add(
                CHECK,
                Verdict::Problem,
                format!("{error:#}"),
                Some("make the account, or name another one in pool.child_user"),
            );
            return;
        }
    };
    let spawner = match Spawner::new() {
        Ok(spawner) => spawner,
        Err(error) => {
            findings.add(CHECK, Verdict::Problem, error.to_string(), None);
            return;
        }
    };
    let devices = gpus::devices_of_this_host(&spawner, &child, &settings.pool).await;
    if devices.is_empty() {
        findings.add(
            "devices",
            Verdict::Problem,
            "no device of this host is offered",
            Some("name one in pool.devices: cpu, gpu, a backend or a hardware id"),
        );
    }
    for device in &devices {
        findings.ok(
            "device",
            format!(
                "{}: {}, {} ({} free){}",
                device.backend.as_str(),
                device.model,
                device.memory_bytes,
                device.available_bytes,
                if device.count > 1 {
                    format!(", {} may train together", device.count)
                } else {
                    String::new()
                }
            ),
        );
    }
    let is_wanted = settings.pool.devices.iter().any(|name| name != "cpu");
    let is_there = devices.iter().any(|device| device.backend.is_gpu());
    if cfg!(feature = "gpu") && is_wanted && !is_there {
        findings.add(
            "devices",
            Verdict::Unknown,
            "this program was built for GPUs, and none of this host is offered",
            Some(
                "trialhead inventory lists what it finds. For Vulkan it needs a loader (Debian: libvulkan1), the card's driver, and for \
                 NVIDIA's without a display libegl1, too; VK_LOADER_DEBUG=error,driver says what the loader found. Which of \
                 them are offered is said by pool.devices and pool.software_gpus",
            ),
        );
    }
    probe(&spawner, &child, settings, findings).await;
    for (name, command) in &settings.pool.runners {
        findings.add(
            "runner",
            Verdict::Ok,
            format!("{name}: {command}"),
            Some(&format!(
                "trialhead runner check {} says whether it keeps the contract",
                shlex::try_quote(command).unwrap_or_default()
            )),
        );
    }
}

/// A probe, as a worker would start it.
async fn probe(
    spawner: &Spawner,
    child: &ChildConfig,
    settings: &Settings,
    findings: &mut Findings,
) {
    const CHECK: &str = "probes";
    if !settings.pool.offers_burn {
        findings.add(
            CHECK,
            Verdict::Unknown,
            "burn is not offered, so no probe was tried",
            None,
        );
        return;
    }
    let mut spec = examples::on_digits(ProbeKind::Smoke);
    spec.limits.wall_secs = PROBE_SECS;
    let (_control, control) = watch::channel(None);
    let (progress, _told) = watch::channel(None);
    let report = child::run(spawner, child, &spec, None, control, &progress).await;
    match report.outcome {
        Outcome::Succeeded => findings.ok(CHECK, format!("one trained in {:.1} s", Duration::from_secs_f64(report.wall_secs).as_secs_f64())),
        Outcome::Infeasible { detail, .. } | Outcome::Failed { detail, .. } => findings.add(
            CHECK,
            Verdict::Problem,
            detail,
            Some("see that the account of pool.child_user may read and start the program, and that no limit on processes or memory is too low"),
        ),
        Outcome::Cancelled | Outcome::HandedBack => findings.add(CHECK, Verdict::Problem, "the probe was stopped", None),
    }
}
