//! What refers to what: names, selectors and ports.

use serde_json::Value;

use crate::documents::{Document, items};

/// Something that whoever installs has to make.
#[derive(Debug)]
pub struct Yours {
    pub kind: &'static str,
    pub name: &'static str,
    keys: &'static [&'static str],
    optional: bool,
}

/// What is not in the manifests on purpose; k8s/README.md says how to make each.
pub const YOURS: [Yours; 4] = [
    yours(
        "Secret",
        "trialhead-database",
        &["host", "user", "password", "name"],
        false,
    ),
    yours("Secret", "trialhead-worker-token", &["token"], false),
    yours("Secret", "trialhead-datasets", &[], true),
    yours(
        "ConfigMap",
        "trialhead-database-authority",
        &["ca.crt"],
        false,
    ),
];

const fn yours(
    kind: &'static str,
    name: &'static str,
    keys: &'static [&'static str],
    optional: bool,
) -> Yours {
    Yours {
        kind,
        name,
        keys,
        optional,
    }
}

/// Optional references to what only some overlays make.
const OPTIONAL: [(&str, &str); 1] = [("ConfigMap", "trialhead-api")];

/// Every reference that leads nowhere.
pub fn problems(documents: &[Document]) -> Vec<String> {
    let mut found = Vec::new();
    let all = All(documents);
    let mut namespaces: Vec<&str> = documents
        .iter()
        .filter(|document| document.kind != "Namespace")
        .map(|document| document.text("/metadata/namespace"))
        .collect();
    namespaces.dedup();
    if namespaces.len() != 1 || !all.exists("Namespace", namespaces[0]) {
        found.push(format!(
            "objects are in {namespaces:?}, which is not the one namespace that is made"
        ));
    }
    let denied = documents.iter().any(|document| {
        document.kind == "NetworkPolicy"
            && document.value["spec"]
                == serde_json::json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})
    });
    if !denied {
        found.push("no policy refuses what none allows".into());
    }
    for document in documents {
        let mut of_document = Vec::new();
        if let Some(template) = document.pod() {
            all.check_pod(document, template, &mut of_document);
        }
        all.check_selectors(document, &mut of_document);
        found.extend(
            of_document
                .into_iter()
                .map(|problem| format!("{document}: {problem}")),
        );
    }
    found
}

struct All<'a>(&'a [Document]);

impl All<'_> {
    fn exists(&self, kind: &str, name: &str) -> bool {
        self.find(kind, name).is_some()
    }

    fn find(&self, kind: &str, name: &str) -> Option<&Document> {
        self.0.iter().find(|it| it.kind == kind && it.name == name)
    }

    /// Pods that a selector takes.
    fn pods(&self, selector: &Value) -> Vec<&Value> {
        self.0
            .iter()
            .filter_map(Document::pod)
            .filter(|template| matches(selector, &template["metadata"]["labels"]))
            .collect()
    }

    /// A key of a Secret or ConfigMap is there, or is on the list.
    fn check_source(&self, kind: &str, reference: &Value, found: &mut Vec<String>) {
        let name = reference["name"].as_str().unwrap_or_default();
        let key = reference["key"].as_str();
        let optional = reference["optional"] == true;
        let known = match (
            self.find(kind, name),
            YOURS.iter().find(|it| it.kind == kind && it.name == name),
        ) {
            (Some(made), _) => key.is_none_or(|key| made.value["data"].get(key).is_some()),
            (None, Some(yours)) => {
                key.is_none_or(|key| yours.keys.contains(&key)) && (optional || !yours.optional)
            }
            (None, None) => optional && OPTIONAL.contains(&(kind, name)),
        };
        if !known {
            found.push(format!("{kind} {name} (key {key:?}) is neither made nor on the list of what is yours to make"));
        }
    }

    fn check_pod(&self, document: &Document, template: &Value, found: &mut Vec<String>) {
        let spec = &template["spec"];
        let account = spec["serviceAccountName"].as_str().unwrap_or_default();
        if !self.exists("ServiceAccount", account) {
            found.push(format!("there is no service account {account}"));
        }
        for container in items(spec, "/containers")
            .iter()
            .chain(items(spec, "/initContainers"))
        {
            for variable in items(container, "/env") {
                let from = &variable["valueFrom"];
                for (field, kind) in [("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")]
                {
                    if let Some(reference) = from.get(field) {
                        self.check_source(kind, reference, found);
                    }
                }
            }
            for source in items(container, "/envFrom") {
                for (field, kind) in [("secretRef", "Secret"), ("configMapRef", "ConfigMap")] {
                    if let Some(reference) = source.get(field) {
                        self.check_source(kind, reference, found);
                    }
                }
            }
            let arguments: Vec<&str> = items(container, "/args")
                .iter()
                .filter_map(Value::as_str)
                .collect();
            if let Some(["--server", server]) =
                arguments.windows(2).find(|pair| pair[0] == "--server")
            {
                let address = server
                    .strip_prefix("http://")
                    .and_then(|it| it.split_once(':'))
                    .and_then(|(service, port)| Some((service, port.parse::<u64>().ok()?)));
                let served = address.is_some_and(|(service, port)| {
                    self.find("Service", service).is_some_and(|service| {
                        items(&service.value, "/spec/ports")
                            .iter()
                            .any(|it| it["port"] == port)
                    })
                });
                if !served {
                    found.push(format!("no service is at {server}"));
                }
            }
        }
        for volume in items(spec, "/volumes") {
            if let Some(reference) = volume.get("configMap") {
                self.check_source("ConfigMap", reference, found);
            }
            if let Some(reference) = volume.get("secret") {
                self.check_source(
                    "Secret",
                    &serde_json::json!({"name": reference["secretName"]}),
                    found,
                );
            }
            let claim = volume
                .pointer("/persistentVolumeClaim/claimName")
                .and_then(Value::as_str);
            if claim.is_some_and(|claim| !self.exists("PersistentVolumeClaim", claim)) {
                found.push(format!("there is no claim {claim:?}"));
            }
        }
        let labels = &template["metadata"]["labels"];
        if ["Deployment", "StatefulSet"].contains(&document.kind.as_str())
            && !matches(&document.value["spec"]["selector"], labels)
        {
            found.push("does not select its own pods".into());
        }
        for spread in items(spec, "/topologySpreadConstraints") {
            if !matches(&spread["labelSelector"], labels) {
                found.push("spreads pods that are not its own".into());
            }
        }
    }

    fn check_selectors(&self, document: &Document, found: &mut Vec<String>) {
        let spec = &document.value["spec"];
        match document.kind.as_str() {
            "Service" => {
                let pods = self.pods(&serde_json::json!({"matchLabels": spec["selector"]}));
                for port in items(spec, "/ports") {
                    check_port(&pods, &port["targetPort"], found);
                }
            }
            "PodDisruptionBudget" if self.pods(&spec["selector"]).is_empty() => {
                found.push("selects no pods".into());
            }
            "NetworkPolicy" => {
                let pods = self.pods(&spec["podSelector"]);
                if pods.is_empty() {
                    found.push("selects no pods".into());
                }
                for (direction, peers) in [("/ingress", "/from"), ("/egress", "/to")] {
                    for rule in items(spec, direction) {
                        let mut ends = Vec::new();
                        for peer in items(rule, peers) {
                            if peer.get("namespaceSelector").is_some()
                                || peer.get("ipBlock").is_some()
                            {
                                continue;
                            }
                            let peers = self.pods(&peer["podSelector"]);
                            if peers.is_empty() {
                                found.push(format!("{direction} names pods that are not there"));
                            }
                            ends.extend(peers);
                        }
                        for port in items(rule, "/ports") {
                            let receivers = if direction == "/ingress" {
                                &pods
                            } else {
                                &ends
                            };
                            check_port(receivers, &port["port"], found);
                        }
                    }
                }
            }
            "StatefulSet" => {
                let service = document.text("/spec/serviceName");
                if !self.exists("Service", service) {
                    found.push(format!("there is no service {service}"));
                }
            }
            "ScaledObject" => {
                let target = document.text("/spec/scaleTargetRef/name");
                if !self.exists("Deployment", target) {
                    found.push(format!("there is no Deployment {target} to scale"));
                }
            }
            "PodMonitor" => {
                let pods = self.pods(&spec["selector"]);
                for endpoint in items(spec, "/podMetricsEndpoints") {
                    check_port(&pods, &endpoint["port"], found);
                }
            }
            "ServiceMonitor" => {
                let services: Vec<&Document> = self
                    .0
                    .iter()
                    .filter(|it| {
                        it.kind == "Service"
                            && matches(&spec["selector"], &it.value["metadata"]["labels"])
                    })
                    .collect();
                for endpoint in items(spec, "/endpoints") {
                    let port = &endpoint["port"];
                    let has = |it: &&Document| {
                        items(&it.value, "/spec/ports")
                            .iter()
                            .any(|it| it["name"] == *port)
                    };
                    if !services.iter().any(has) {
                        found.push(format!("no service that it selects has a port {port}"));
                    }
                }
            }
            _ => {}
        }
    }
}

/// A port given by name is one of some container of these pods.
fn check_port(pods: &[&Value], port: &Value, found: &mut Vec<String>) {
    let Some(name) = port.as_str() else {
        return;
    };
    let has = |template: &&Value| {
        items(template, "/spec/containers")
            .iter()
            .flat_map(|container| items(container, "/ports"))
            .any(|port| port["name"] == name)
    };
    if !pods.iter().any(has) {
        found.push(format!("no pod that it selects has a port {name}"));
    }
}

/// Whether a label selector takes what has these labels. An operator that is not known here takes nothing.
fn matches(selector: &Value, labels: &Value) -> bool {
    let by_label = selector["matchLabels"]
        .as_object()
        .is_none_or(|wanted| wanted.iter().all(|(key, value)| &labels[key] == value));
    let by_expression = items(selector, "/matchExpressions")
        .iter()
        .all(|expression| {
            let key = expression["key"].as_str().unwrap_or_default();
            expression["operator"] == "In" && items(expression, "/values").contains(&labels[key])
        });
    by_label && by_expression
}
