//! Rules for pods: confined, bounded, watched, and started with settings that exist.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::Value;

use crate::documents::{Document, items};
use crate::overlays::read;

/// Variables with our prefix that are no settings of the service: the worker's token, and settings that
/// docs/settings.md does not list yet.
const NOT_IN_THE_TABLE: [&str; 3] = [
    "TRIALHEAD_TOKEN",
    "TRIALHEAD_API__METRICS_LISTEN",
    "TRIALHEAD_WORK__RESTART_IS_OUT_OF_MEMORY",
];

/// Every rule that the pods of a document break.
pub fn problems(document: &Document) -> Vec<String> {
    let Some(template) = document.pod() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let spec = &template["spec"];
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    rule(
        spec["automountServiceAccountToken"] == false,
        "mounts a token of the Kubernetes API (automountServiceAccountToken)",
    );
    rule(
        spec["enableServiceLinks"] == false,
        "gets variables of services, TRIALHEAD_PORT among them, which settings refuse (enableServiceLinks)",
    );
    rule(
        spec["serviceAccountName"].is_string(),
        "runs as the default service account",
    );
    rule(
        spec["securityContext"]["runAsNonRoot"] == true
            && spec["securityContext"]["runAsUser"].as_u64().unwrap_or(0) > 0,
        "may run as root (runAsNonRoot, runAsUser)",
    );
    rule(
        spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault",
        "has no seccomp profile",
    );
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        rule(spec.get(field).is_none(), "shares a namespace of the host");
    }
    if document.kind != "Job" {
        let grace = spec["terminationGracePeriodSeconds"].as_f64();
        rule(
            grace.is_some(),
            "leaves the time to end to a default (terminationGracePeriodSeconds)",
        );
        let drain = items(spec, "/containers")
            .iter()
            .filter_map(|container| {
                value_of(container, "TRIALHEAD_POOL__DRAIN_SECS")?
                    .parse()
                    .ok()
            })
            .fold(0.0, f64::max);
        rule(
            drain == 0.0 || grace.is_some_and(|grace| grace >= drain + 15.0),
            "is killed before it has drained (terminationGracePeriodSeconds, TRIALHEAD_POOL__DRAIN_SECS)",
        );
    }
    let mut volumes = BTreeSet::new();
    for claim in items(&document.value, "/spec/volumeClaimTemplates") {
        volumes.insert(claim["metadata"]["name"].as_str().unwrap_or_default());
    }
    for volume in items(spec, "/volumes") {
        volumes.insert(volume["name"].as_str().unwrap_or_default());
        rule(
            ["emptyDir", "configMap", "secret", "persistentVolumeClaim"]
                .iter()
                .any(|kind| volume.get(kind).is_some()),
            "mounts something of the host's",
        );
        rule(
            volume
                .get("emptyDir")
                .is_none_or(|folder| folder["sizeLimit"].is_string()),
            "may fill the node's disk (emptyDir without sizeLimit)",
        );
    }
    let containers = items(spec, "/containers");
    rule(!containers.is_empty(), "has no containers");
    for container in containers.iter().chain(items(spec, "/initContainers")) {
        found.extend(of_container(document, container, &volumes));
    }
    found
        .into_iter()
        .map(|problem| format!("{document}: {problem}"))
        .collect()
}

fn value_of<'a>(container: &'a Value, variable: &str) -> Option<&'a str> {
    let variables = items(container, "/env");
    variables.iter().find(|it| it["name"] == variable)?["value"].as_str()
}

fn of_container(document: &Document, container: &Value, volumes: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    let name = container["name"].as_str().unwrap_or_default();
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            found.push(format!("container {name} {what}"));
        }
    };
    let security = &container["securityContext"];
    rule(
        security["allowPrivilegeEscalation"] == false && security.get("privileged").is_none(),
        "may gain privileges (allowPrivilegeEscalation)",
    );
    rule(
        security["readOnlyRootFilesystem"] == true,
        "can write its own image (readOnlyRootFilesystem)",
    );
    rule(
        security["capabilities"] == serde_json::json!({"drop": ["ALL"]}),
        "keeps capabilities",
    );
    rule(
        security.get("runAsUser").is_none() && security.get("runAsNonRoot").is_none(),
        "has a user of its own, beside the pod's",
    );
    for bound in ["requests", "limits"] {
        for resource in ["cpu", "memory"] {
            rule(
                container["resources"][bound][resource].is_string(),
                &format!("has no {bound} of {resource}"),
            );
        }
    }
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image
        .rsplit('/')
        .next()
        .and_then(|last| last.split_once(':'));
    rule(
        tag.is_some_and(|(_, tag)| tag != "latest"),
        "runs whatever image is newest",
    );
    let ports: Vec<&str> = items(container, "/ports")
        .iter()
        .filter_map(|port| port["name"].as_str())
        .collect();
    let is_worker = document.name.starts_with("trialhead-worker");
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        // A worker that hangs and hears no signal would be killed without a word, which reads as a want of memory.
        let is_wanted = !(is_worker && probe == "livenessProbe");
        rule(
            is_wanted || container.get(probe).is_none(),
            "is a worker that its livenessProbe may kill without a word",
        );
        // Without a port nothing is served: the process ends when something is wrong.
        rule(
            !is_wanted || ports.is_empty() || container.get(probe).is_some(),
            &format!("serves, and has no {probe}"),
        );
        let port = &container[probe]["httpGet"]["port"];
        rule(
            port.is_null() || port.as_str().is_some_and(|port| ports.contains(&port)),
            &format!("is asked by its {probe} at a port that it has not"),
        );
    }
    for mount in items(container, "/volumeMounts") {
        let volume = mount["name"].as_str().unwrap_or_default();
        rule(
            volumes.contains(volume),
            &format!("mounts {volume}, which is no volume of the pod"),
        );
    }
    let mut known = BTreeSet::new();
    for variable in items(container, "/env") {
        let name = variable["name"].as_str().unwrap_or_default();
        for used in substituted(variable["value"].as_str().unwrap_or_default()) {
            rule(
                known.contains(used),
                &format!("has {name} before {used}, which is then not filled in"),
            );
        }
        known.insert(name);
        rule(is_known(name), &format!("sets {name}, which is no setting"));
    }
    if is_worker {
        let listens = value_of(container, "TRIALHEAD_WORK__LISTEN")
            .and_then(|address| address.rsplit(':').next()?.parse::<u64>().ok());
        let has = |port: u64| {
            items(container, "/ports")
                .iter()
                .any(|it| it["containerPort"] == port)
        };
        rule(
            listens.is_some_and(has),
            "does not listen at a port that it has (TRIALHEAD_WORK__LISTEN)",
        );
        let is_once = items(container, "/args").iter().any(|it| it == "--once");
        let empty = value_of(container, "TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE");
        rule(
            !is_once || empty == Some("0"),
            "fails when another was faster (TRIALHEAD_WORK__ONCE_EMPTY_EXIT_CODE)",
        );
        rule(
            container["resources"]["requests"] == container["resources"]["limits"],
            "is measured on more than it may count on (requests are not the limits)",
        );
        let cores = container["resources"]["limits"]["cpu"].as_str();
        rule(
            cores.is_some_and(|cores| cores.parse::<u32>().is_ok()),
            "is measured on a part of a core",
        );
        let gpus = &container["resources"]["limits"]["nvidia.com/gpu"];
        let wanted = document.name.ends_with("-gpu");
        let devices = items(container, "/env")
            .iter()
            .find(|variable| variable["name"] == "TRIALHEAD_POOL__DEVICES")
            .and_then(|variable| variable["value"].as_str());
        rule(
            devices == Some(if wanted { "gpu" } else { "cpu" }),
            "offers other devices than its name says (TRIALHEAD_POOL__DEVICES)",
        );
        rule(
            if wanted { gpus == "1" } else { gpus.is_null() },
            "does not have the one GPU that its name says",
        );
    }
    found
}

/// The variables that a value is composed of: `$(NAME)`.
fn substituted(value: &str) -> impl Iterator<Item = &str> {
    value
        .split("$(")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
}

/// Whether a variable is none of ours, or names a setting that `docs/settings.md` lists.
fn is_known(variable: &str) -> bool {
    static SETTINGS: OnceLock<BTreeSet<String>> = OnceLock::new();
    let Some(name) = variable.strip_prefix("TRIALHEAD_") else {
        return true;
    };
    let settings = SETTINGS.get_or_init(|| {
        read("docs/settings.md")
            .lines()
            .filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned()))
            .collect()
    });
    NOT_IN_THE_TABLE.contains(&variable)
        || settings.contains(&name.to_lowercase().replace("__", "."))
}
