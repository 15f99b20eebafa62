//! Which program trains: the service's own, or somebody else's that keeps the contract of a runner.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The runner that the service brings along.
pub const BURN: &str = "burn";

/// Characters of a runner's name at most.
pub const RUNNER_NAME_CHARS: usize = 64;

/// Which program trains, and what it is told beside the workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Runner {
    /// Its name, as workers offer it. `burn` is the service's own; any other is a program of somebody's, started by
    /// `trialhead work --runner NAME=COMMAND`.
    #[serde(default = "burn")]
    #[schema(default = "burn", pattern = "^[a-z0-9_-]{1,64}$")]
    pub name: String,
    /// The version of that program: raise it when its model, its data or its arithmetic changes, and everything is
    /// measured anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 100)]
    pub version: Option<String>,
    /// What the program is told beside the workload, passed on untouched.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub options: Map<String, Value>,
}

fn burn() -> String {
    BURN.to_owned()
}

impl Default for Runner {
    fn default() -> Self {
        Self {
            name: burn(),
            version: None,
            options: Map::new(),
        }
    }
}

impl Runner {
    /// Whether it is the service's own.
    pub fn is_burn(&self) -> bool {
        self.name == BURN
    }
}

/// Whether a runner may be called that: 1 to 64 lowercase letters, digits, `_` and `-`.
pub fn is_runner_name(name: &str) -> bool {
    let is_plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-')
    };
    (1..=RUNNER_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_plain)
}

/// What is wrong with options, if anything: the pointer within them, and the detail. Whatever passes can be stored,
/// hashed and written back as it was.
pub(super) fn option_faults(
    options: &Map<String, Value>,
    max_bytes: u64,
    max_depth: u64,
) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    for (name, value) in options {
        let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
        if name.contains('\0') {
            faults.push((
                pointer.clone(),
                "a name must not hold a NUL character".into(),
            ));
        }
        fault(value, &pointer, max_depth, &mut faults);
    }
    let bytes = serde_json::to_vec(options).map_or(u64::MAX, |text| text.len() as u64);
    if bytes > max_bytes {
        faults.push((
            String::new(),
            format!("must be at most {max_bytes} bytes of JSON, are {bytes}; pass the name of a file that the program reads"),
        ));
    }
    faults
}

/// The largest integer that every JSON reader holds exactly (RFC 8259 §6).
const LARGEST_EXACT: u64 = 9_007_199_254_740_991;

fn fault(value: &Value, pointer: &str, depth_left: u64, faults: &mut Vec<(String, String)>) {
    if depth_left == 0 {
        faults.push((
            pointer.to_owned(),
            "is nested too deeply; flatten it".into(),
        ));
        return;
    }
    match value {
        Value::String(text) if text.contains('\0') => {
            faults.push((pointer.to_owned(), "must not hold a NUL character".into()));
        }
        Value::Number(number) => {
            let magnitude = number
                .as_u64()
                .or_else(|| number.as_i64().map(i64::unsigned_abs));
            if magnitude.is_some_and(|it| it > LARGEST_EXACT) {
                faults.push((
                    pointer.to_owned(),
                    format!("an integer must be within ±{LARGEST_EXACT}; pass it as a string"),
                ));
            }
        }
        Value::Array(elements) => {
            for (index, element) in elements.iter().enumerate() {
                fault(
                    element,
                    &format!("{pointer}/{index}"),
                    depth_left - 1,
                    faults,
                );
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let at = format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1"));
                if name.contains('\0') {
                    faults.push((at.clone(), "a name must not hold a NUL character".into()));
                }
                fault(member, &at, depth_left - 1, faults);
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn faults(options: Value) -> Vec<(String, String)> {
        let Value::Object(options) = options else {
            panic!("an object");
        };
        option_faults(&options, 100, 3)
    }

    #[test]
    fn names_are_plain() {
        for name in ["burn", "pytorch", "jax-2_cpu", "a"] {
            assert!(is_runner_name(name), "{name}");
        }
        for name in ["", "PyTorch", "a b", "ä", "a=b", &"x".repeat(65)] {
            assert!(!is_runner_name(name), "{name}");
        }
    }

    #[test]
    fn options_are_bounded_in_size_depth_and_in_what_can_be_stored() {
        assert_eq!(faults(json!({"a": [1, {"b": 2.5}], "c": null})), []);
        let deep = faults(json!({"a": [[[1]]]}));
        assert!(
            deep[0].0 == "/a/0/0/0" && deep[0].1.contains("deep"),
            "{deep:?}"
        );
        let long = faults(json!({"a": "x".repeat(100)}));
        assert!(long[0].0.is_empty() && long[0].1.contains("at most 100"));
        let nul = faults(json!({"a/b": {"c": "\0"}}));
        assert_eq!(nul[0].0, "/a~1b/c");
        let large = faults(json!({"a": 9_007_199_254_740_992_u64}));
        assert!(large[0].1.contains("as a string"), "{large:?}");
    }
}
