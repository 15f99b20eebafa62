//! Builds the overlays, once for all tests.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::documents::{self, Document};

/// One overlay, built.
#[derive(Debug)]
pub struct Overlay {
    pub name: String,
    pub documents: Vec<Document>,
}

impl Overlay {
    pub fn has(&self, kind: &str) -> bool {
        self.documents.iter().any(|document| document.kind == kind)
    }

    /// The value of a variable in the first container of a Deployment.
    pub fn environment(&self, deployment: &str, variable: &str) -> Option<String> {
        let document = self
            .documents
            .iter()
            .find(|document| document.kind == "Deployment" && document.name == deployment)?;
        let variables = document
            .value
            .pointer("/spec/template/spec/containers/0/env")?;
        let found = variables
            .as_array()?
            .iter()
            .find(|it| it["name"] == variable)?;
        Some(found["value"].as_str()?.to_owned())
    }

    /// A value of the generated ConfigMap that pods read.
    pub fn settings(&self, key: &str) -> String {
        self.documents
            .iter()
            .filter(|document| document.kind == "ConfigMap")
            .map(|document| document.text(&format!("/data/{key}")))
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_owned()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the repository.
pub fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Says that something is not tested, past the test harness, which keeps what a passing test prints.
pub fn skipped(line: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {line}\n");
}

/// Whether a program is there and runs.
pub fn runs(program: &Path, arguments: &[&str]) -> Result<(), String> {
    match Command::new(program).args(arguments).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!("{}: {}", program.display(), output.status)),
        Err(error) => Err(format!("{}: {error}", program.display())),
    }
}

/// Every overlay of `k8s/overlays`. Empty only where there is no kubectl, which is said aloud, and which CI
/// does not let pass.
pub fn built() -> &'static [Overlay] {
    static BUILT: OnceLock<Vec<Overlay>> = OnceLock::new();
    BUILT.get_or_init(|| {
        let kubectl = std::env::var_os("KUBECTL").unwrap_or_else(|| "kubectl".into());
        let kubectl = PathBuf::from(kubectl);
        if let Err(why) = runs(&kubectl, &["version", "--client"]) {
            let line = format!(
                "the manifests under k8s/ are NOT checked, for want of kubectl ({why}). Install 1.27 or newer, or name one in KUBECTL."
            );
            assert!(std::env::var_os("CI").is_none(), "{line}");
            skipped(&line);
            return Vec::new();
        }
        let mut names: Vec<String> = fs::read_dir(root().join("k8s/overlays"))
            .expect("k8s/overlays")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert!(names.len() >= 4, "{names:?}");
        names.into_iter().map(|name| build(&kubectl, name)).collect()
    })
}

fn build(kubectl: &Path, name: String) -> Overlay {
    let output = Command::new(kubectl)
        .arg("kustomize")
        .arg(root().join("k8s/overlays").join(&name))
        .output()
        .expect("kubectl runs");
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} is not built: {complaints}");
    assert!(
        !complaints.to_lowercase().contains("deprecated"),
        "{name} is built from fields on their way out: {complaints}"
    );
    let text = String::from_utf8(output.stdout).expect("text");
    Overlay {
        documents: documents::parse(&text).unwrap_or_else(|error| panic!("{name}: {error}")),
        name,
    }
}
