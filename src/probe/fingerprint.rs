//! What makes two probes one row: SHA-256 of the canonical JSON (RFC 8785) of everything that they are told. What
//! their figures depend on is less, and what makes one take over what the other found: [`inputs`](super::inputs).

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::spec::ProbeSpec;

/// Version of how things are measured. A change in it makes timing and memory measurements stale.
pub const MEASUREMENT_PROTOCOL: u32 = 3;

/// The runner and its version, as part of every identity.
pub const RUNNER: &str = concat!("burn-0.22.1/trialhead-", env!("CARGO_PKG_VERSION"));

#[derive(Serialize)]
struct Identity<'a> {
    project: &'a str,
    study: Option<String>,
    runner: &'a str,
    measurement_protocol: u32,
    spec: &'a ProbeSpec,
}

/// What stands for [`RUNNER`] where another program trains: its name, version and options are in the spec, and a
/// release of the service is nothing to it.
pub const EXTERNAL: &str = "external";

/// The identity of a probe within a project: planning the same probe twice gives one row.
/// `study` is the study that refuses reuse, so that its probes are its own.
///
/// # Errors
/// When the spec holds a number that JSON cannot express (NaN or an infinity).
pub fn identity(
    project: &str,
    study: Option<crate::study::StudyId>,
    spec: &ProbeSpec,
) -> Result<String, serde_json::Error> {
    let bytes = serde_json_canonicalizer::to_vec(&Identity {
        project,
        study: study.map(|id| id.to_string()),
        runner: if spec.runner.is_burn() {
            RUNNER
        } else {
            EXTERNAL
        },
        measurement_protocol: MEASUREMENT_PROTOCOL,
        spec,
    })?;
    Ok(hex::encode(Sha256::digest(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Limits, ProbeDevice, Task};
    use crate::study::{
        Backend, BatchSize, Bytes, Dataset, GradientClipping, Model, Optimizer, Schedule, Workload,
    };

    fn spec(hidden: u64) -> ProbeSpec {
        ProbeSpec {
            protocol: 1,
            runner: Default::default(),
            task: Task::Memory { steps: 5 },
            workload: Workload::new(Dataset::digits(), Model::mlp(vec![hidden])),
            optimizer: Optimizer::adam(),
            schedule: Schedule::default(),
            gradient_clipping: GradientClipping::default(),
            device: ProbeDevice {
                backend: Backend::Cpu,
                model: "test".into(),
                count: 1,
                threads: 2,
            },
            batch_size: BatchSize(8),
            replicate: 0,
            seed: 1,
            limits: Limits {
                memory_bytes: Bytes(1 << 30),
                wall_secs: 60.0,
            },
        }
    }

    #[test]
    fn the_same_inputs_give_the_same_identity_and_any_other_input_another() {
        let base = identity("default", None, &spec(64)).expect("hashes");
        assert_eq!(base, identity("default", None, &spec(64)).expect("hashes"));
        assert_ne!(base, identity("default", None, &spec(65)).expect("hashes"));
        assert_ne!(base, identity("other", None, &spec(64)).expect("hashes"));
        let study = crate::study::StudyId(uuid::Uuid::from_u128(7));
        assert_ne!(
            base,
            identity("default", Some(study), &spec(64)).expect("hashes")
        );
    }
}
