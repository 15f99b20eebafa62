//! Every operation with what it needs, read from the OpenAPI document: the one place where that is said. What is not in
//! the document is not served, and an operation that says nothing of who may use it keeps the service from starting.

use serde_json::Value;

use crate::access::Scope;

/// Who may use an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requirement {
    /// Anybody.
    Public,
    /// Who has this scope.
    Scope(Scope),
}

/// One operation.
#[derive(Debug, Clone)]
pub struct Operation {
    /// `GET`, `POST`, …
    pub method: String,
    /// Who may use it.
    pub requirement: Requirement,
    /// Whether its body is JSON.
    pub takes_json: bool,
    /// Whether it refuses whatever stands in its query, because nothing can stand there.
    pub refuses_query: bool,
}

/// A path with its operations.
#[derive(Debug, Clone)]
struct Path {
    segments: Vec<String>,
    operations: Vec<Operation>,
}

/// What a request asks for.
#[derive(Debug)]
pub enum Asked<'a> {
    /// This operation.
    Operation(&'a Operation),
    /// A path that has only these methods.
    OtherMethods(String),
    /// The documentation itself, which anybody may read.
    Documentation,
    /// Nothing that there is.
    Nothing,
}

/// Every operation.
#[derive(Debug, Clone)]
pub struct Operations {
    paths: Vec<Path>,
    has_documentation: bool,
}

/// An operation that does not say who may use it.
#[derive(Debug, thiserror::Error)]
#[error(
    "{method} {path} does not say who may use it: give it security((\"token\" = [\"read\"])) with its scope, or security(()) for anybody"
)]
pub struct Unsaid {
    method: String,
    path: String,
}

impl Operations {
    /// Reads the document.
    ///
    /// # Errors
    /// [`Unsaid`] for an operation without exactly one known requirement.
    pub fn of(document: &Value) -> Result<Self, Unsaid> {
        let paths = document["paths"].as_object().into_iter().flatten();
        let paths = paths.map(|(path, item)| {
            let operations = item
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(_, operation)| operation.is_object())
                .map(|(method, operation)| {
                    Ok(Operation {
                        method: method.to_ascii_uppercase(),
                        requirement: requirement(&operation["security"]).ok_or_else(|| Unsaid {
                            method: method.to_ascii_uppercase(),
                            path: path.clone(),
                        })?,
                        takes_json: operation["requestBody"]["content"]["application/json"]
                            .is_object(),
                        // Metrics and health are asked for by programs that may add something.
                        refuses_query: path.starts_with("/v1/") && !takes_query(operation),
                    })
                })
                .collect::<Result<_, _>>()?;
            Ok(Path {
                segments: path.split('/').map(ToOwned::to_owned).collect(),
                operations,
            })
        });
        Ok(Self {
            paths: paths.collect::<Result<_, _>>()?,
            has_documentation: true,
        })
    }

    /// Only the metrics, for anybody: what a listener of their own serves.
    pub fn metrics_alone(self) -> Self {
        self.alone(Path::is_metrics)
    }

    /// Only what a worker has to tell, for anybody: whether it is well, and its metrics.
    pub fn worker_alone(self) -> Self {
        self.alone(|path| {
            let [root, first] = &path.segments[..] else {
                return false;
            };
            root.is_empty() && ["healthz", "readyz", "metrics"].contains(&first.as_str())
        })
    }

    fn alone(mut self, keeps: impl FnMut(&Path) -> bool) -> Self {
        self.paths.retain(keeps);
        for operation in self.paths.iter_mut().flat_map(|path| &mut path.operations) {
            operation.requirement = Requirement::Public;
        }
        self.has_documentation = false;
        self
    }

    /// All but the metrics, which have a listener of their own.
    pub fn without_metrics(mut self) -> Self {
        self.paths.retain(|path| !path.is_metrics());
        self
    }

    /// What a request asks for. The path is taken as it was sent: no path of ours needs an escape, and one with an escape
    /// might be read otherwise by the router.
    pub fn find(&self, method: &str, path: &str) -> Asked<'_> {
        let is_documentation =
            matches!(path, "/docs" | "/openapi.json") || path.starts_with("/docs/");
        if self.has_documentation && is_documentation {
            return Asked::Documentation;
        }
        if path.contains('%') {
            return Asked::Nothing;
        }
        let asked: Vec<&str> = path.split('/').collect();
        let Some(found) = self.paths.iter().find(|path| path.matches(&asked)) else {
            return Asked::Nothing;
        };
        match found.operations.iter().find(|it| it.method == method) {
            Some(operation) => Asked::Operation(operation),
            None => Asked::OtherMethods(found.methods()),
        }
    }
}

impl Path {
    fn is_metrics(&self) -> bool {
        self.segments.get(1).is_some_and(|first| first == "metrics")
    }

    fn matches(&self, asked: &[&str]) -> bool {
        self.segments.len() == asked.len()
            && self.segments.iter().zip(asked).all(|(segment, asked)| {
                if segment.starts_with('{') {
                    !asked.is_empty()
                } else {
                    segment == asked
                }
            })
    }

    fn methods(&self) -> String {
        let methods: Vec<&str> = self
            .operations
            .iter()
            .map(|it| it.method.as_str())
            .collect();
        methods.join(", ")
    }
}

fn takes_query(operation: &Value) -> bool {
    let mut parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters.any(|parameter| parameter["in"] == "query")
}

/// `[{}]` is anybody, `[{"token": ["read"]}]` who has the scope; anything else says nothing.
fn requirement(security: &Value) -> Option<Requirement> {
    let [alternative] = security.as_array()?.as_slice() else {
        return None;
    };
    let schemes = alternative.as_object()?;
    if schemes.is_empty() {
        return Some(Requirement::Public);
    }
    let [scope] = schemes.get("token")?.as_array()?.as_slice() else {
        return None;
    };
    (schemes.len() == 1).then_some(Requirement::Scope(Scope::parse(scope.as_str()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document() -> Value {
        serde_json::to_value(super::super::openapi::document()).expect("JSON")
    }

    #[test]
    fn every_operation_says_who_may_use_it() {
        Operations::of(&document()).expect("all of them");
    }

    #[test]
    fn an_operation_that_says_nothing_or_too_much_is_refused() {
        for security in [
            json!(null),
            json!([]),
            json!([{"token": []}]),
            json!([{"token": ["root"]}]),
            json!([{"token": ["read", "write"]}]),
            json!([{"password": ["read"]}]),
            json!([{"token": ["read"], "password": []}]),
            json!([{}, {"token": ["read"]}]),
        ] {
            let document = json!({"paths": {"/v1/x": {"get": {"security": security}}}});
            let error = Operations::of(&document).expect_err("refused");
            assert!(error.to_string().contains("GET /v1/x"), "{error}");
        }
    }

    #[test]
    fn only_health_and_readiness_are_for_anybody() {
        let operations = Operations::of(&document()).expect("operations");
        let public: Vec<String> = operations
            .paths
            .iter()
            .flat_map(|path| path.operations.iter().map(move |it| (path, it)))
            .filter(|(_, it)| it.requirement == Requirement::Public)
            .map(|(path, it)| format!("{} {}", it.method, path.segments.join("/")))
            .collect();
        assert_eq!(public, ["GET /healthz", "GET /readyz"]);
    }

    #[test]
    fn reading_needs_read_and_everything_else_does_not() {
        let operations = Operations::of(&document()).expect("operations");
        for path in &operations.paths {
            for operation in &path.operations {
                let at = format!("{} {}", operation.method, path.segments.join("/"));
                let Requirement::Scope(scope) = operation.requirement else {
                    continue;
                };
                match operation.method.as_str() {
                    "GET" => assert!(matches!(scope, Scope::Read | Scope::Work), "{at}"),
                    _ => assert!(matches!(scope, Scope::Write | Scope::Work), "{at}"),
                }
            }
        }
    }

    #[test]
    fn no_two_paths_match_the_same_request() {
        // Else the router might choose another than this table.
        let operations = Operations::of(&document()).expect("operations");
        for (number, path) in operations.paths.iter().enumerate() {
            for other in &operations.paths[number + 1..] {
                let differ = path.segments.len() != other.segments.len()
                    || path
                        .segments
                        .iter()
                        .zip(&other.segments)
                        .any(|(a, b)| a != b && !a.starts_with('{') && !b.starts_with('{'));
                assert!(differ, "{:?} and {:?}", path.segments, other.segments);
            }
        }
    }

    #[test]
    fn what_is_not_in_the_document_is_not_found() {
        let operations = Operations::of(&document()).expect("operations");
        let id = "01981f6e-6f2a-7c3e-9a51-0d6e4b1f2a33";
        for path in [
            "/".to_owned(),
            "/v1/nothing".into(),
            "/v1/studies/".into(),
            "//v1/studies".into(),
            "/v1//studies".into(),
            "/v1/studies//cancel".into(),
            format!("/v1/studies/{id}/nothing"),
            "/v1/%73tudies".into(),
            format!("/v1/studies/{id}%2Fcancel"),
            "/docsx".into(),
            "/openapi.json/".into(),
        ] {
            assert!(
                matches!(operations.find("GET", &path), Asked::Nothing),
                "{path}"
            );
        }
        let found = operations.find("PATCH", "/v1/studies");
        let Asked::OtherMethods(methods) = found else {
            panic!("{found:?}");
        };
        assert_eq!(methods, "GET, POST");
    }

    #[test]
    fn metrics_are_served_at_one_place_only() {
        let all = Operations::of(&document()).expect("operations");
        let (main, metrics) = (all.clone().without_metrics(), all.metrics_alone());
        for path in ["/metrics", "/metrics/service"] {
            assert!(matches!(main.find("GET", path), Asked::Nothing));
            let Asked::Operation(operation) = metrics.find("GET", path) else {
                panic!("{path}");
            };
            assert_eq!(operation.requirement, Requirement::Public);
        }
        for path in ["/v1/studies", "/healthz", "/docs/", "/openapi.json"] {
            assert!(!matches!(main.find("GET", path), Asked::Nothing));
            assert!(matches!(metrics.find("GET", path), Asked::Nothing));
        }
    }
}
