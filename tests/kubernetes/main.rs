//! Holds the manifests under `k8s/` to what Kubernetes accepts and to the rules that we keep.
//!
//! Each overlay is built by `kubectl kustomize`; every document is parsed as the type it claims to be
//! (`k8s-openapi`) or against its schema in `k8s/schemas`, and a field that the type does not have is an error,
//! where a cluster would drop it in silence. Then come our own rules. No cluster is needed, and nothing here uses the
//! library. The last module breaks good manifests, one rule at a time, and wants to hear of it.

mod broken;
mod documents;
mod metrics;
mod overlays;
mod pods;
mod references;

use documents::Document;
use overlays::{Overlay, built};

/// Fails with every problem of every overlay.
fn no_problems(check: impl Fn(&Overlay) -> Vec<String>) {
    let problems: Vec<String> = built()
        .iter()
        .flat_map(|overlay| {
            check(overlay)
                .into_iter()
                .map(|problem| format!("{}: {problem}", overlay.name))
        })
        .collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_document_is_what_kubernetes_takes_it_for() {
    no_problems(|overlay| {
        assert!(overlay.documents.len() > 15, "{} is whole", overlay.name);
        overlay
            .documents
            .iter()
            .flat_map(documents::problems)
            .collect()
    });
}

#[test]
fn pods_are_confined_bounded_and_watched() {
    no_problems(|overlay| overlay.documents.iter().flat_map(pods::problems).collect());
}

#[test]
fn whatever_is_referred_to_is_there_or_is_said_to_be_yours_to_make() {
    no_problems(|overlay| references::problems(&overlay.documents));
}

#[test]
fn rules_and_triggers_ask_for_metrics_that_the_service_has() {
    no_problems(|overlay| {
        overlay
            .documents
            .iter()
            .flat_map(metrics::problems)
            .collect()
    });
}

#[test]
fn the_api_waits_for_the_migration_and_production_verifies_its_database() {
    no_problems(|overlay| {
        let mut problems = Vec::new();
        let migrate = overlay.environment("trialhead-api", "TRIALHEAD_DATABASE__MIGRATE");
        if migrate.as_deref() != Some("check") {
            problems.push(format!("the API would migrate by itself: {migrate:?}"));
        }
        let tls = overlay.settings("DATABASE_TLS");
        let verified = tls.starts_with("sslmode=verify-full&sslrootcert=");
        if verified != overlay.name.starts_with("production") {
            problems.push(format!("DATABASE_TLS is {tls:?}"));
        }
        if overlay.name.starts_with("production") && overlay.has("StatefulSet") {
            problems.push("brings a database of its own".into());
        }
        problems
    });
}

#[test]
fn each_way_to_scale_workers_is_the_only_one_in_its_overlay() {
    no_problems(|overlay| {
        let counts = ["Deployment", "ScaledObject", "ScaledJob"].map(|kind| {
            let workers = overlay.documents.iter().filter(|document| {
                document.kind == kind && document.name.starts_with("trialhead-worker-")
            });
            workers.count()
        });
        let wanted = match overlay.name.as_str() {
            "production-scaled-deployment" => [2, 2, 0],
            "production-scaled-jobs" => [0, 0, 2],
            _ => [2, 0, 0],
        };
        let mut problems = Vec::new();
        if counts != wanted {
            problems.push(format!(
                "has {counts:?} Deployments, ScaledObjects and ScaledJobs of workers"
            ));
        }
        for document in &overlay.documents {
            let scaled = overlay.documents.iter().any(|other| {
                other.kind == "ScaledObject"
                    && other.text("/spec/scaleTargetRef/name") == document.name
            });
            let fixed = document.value.pointer("/spec/replicas").is_some();
            if document.kind == "Deployment" && scaled && fixed {
                problems.push(format!(
                    "{document} has a number of replicas, and something else that sets it"
                ));
            }
        }
        problems
    });
}

#[test]
fn the_readme_tells_of_every_overlay_alert_and_thing_to_make() {
    let readme = overlays::read("k8s/README.md");
    let mut missing: Vec<String> = Vec::new();
    let mut want = |name: &str| {
        if !readme.contains(&format!("`{name}`")) {
            missing.push(name.to_owned());
        }
    };
    for reference in references::YOURS {
        want(reference.name);
    }
    for overlay in built() {
        want(&format!("overlays/{}", overlay.name));
        for alert in overlay.documents.iter().flat_map(Document::alerts) {
            want(alert);
        }
    }
    assert!(
        missing.is_empty(),
        "k8s/README.md says nothing of {missing:?}"
    );
}
