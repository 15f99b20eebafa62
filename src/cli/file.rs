//! A study from a file: JSON, YAML or TOML, as its name ends; `-` is standard input.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use super::CliError;

/// Reads a definition. What is in it is the service's to judge.
pub fn read(path: &Path) -> Result<Value, CliError> {
    let wrong = |why: String| CliError::File(format!("{}: {why}", path.display()));
    let text = if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| wrong(error.to_string()))?;
        text
    } else {
        std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?
    };
    let ending = path
        .extension()
        .map(|it| it.to_string_lossy().to_lowercase());
    parse(&text, ending.as_deref()).map_err(wrong)
}

fn parse(text: &str, ending: Option<&str>) -> Result<Value, String> {
    let value: Value = match ending {
        Some("json") => {
            serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?
        }
        Some("toml") => toml::from_str(text).map_err(|error| format!("is no TOML: {error}"))?,
        // Every JSON is YAML, so that what has no name that tells may be either.
        Some("yaml" | "yml") | None => serde_saphyr::from_str(text)
            .map_err(|error| format!("is neither JSON nor YAML: {error}"))?,
        Some(other) => {
            return Err(format!(
                "a study is written in a .json, .yaml, .yml or .toml file, not in .{other}"
            ));
        }
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err("a study is an object with at least workload.dataset".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_same_study_in_three_languages() {
        let study = json!({
            "workload": {"dataset": {"builtin": "digits"}},
            "batch_sizes": {"min": 8, "max": 64},
            "costs": {"device_hour": 2.5},
            "questions": ["throughput"]
        });
        let written = study.to_string();
        assert_eq!(parse(&written, Some("json")), Ok(study.clone()));
        assert_eq!(parse(&written, None), Ok(study.clone()));
        let yaml = "workload: {dataset: {builtin: digits}}\nbatch_sizes:\n  min: 8\n  max: 64\ncosts: {device_hour: 2.5}\nquestions: [throughput]\n";
        assert_eq!(parse(yaml, Some("yaml")), Ok(study.clone()));
        let toml = "questions = [\"throughput\"]\n[workload.dataset]\nbuiltin = \"digits\"\n[batch_sizes]\nmin = 8\nmax = 64\n[costs]\ndevice_hour = 2.5\n";
        assert_eq!(parse(toml, Some("toml")), Ok(study));
    }

    #[test]
    fn what_is_no_study_is_told_where() {
        for (text, ending, said) in [
            ("{\"a\": }", Some("json"), "line 1"),
            ("a = ", Some("toml"), "TOML"),
            ("- 1\n- 2\n", Some("yaml"), "an object"),
            ("{}", Some("xml"), ".toml"),
        ] {
            let error = parse(text, ending).expect_err(text);
            assert!(error.contains(said), "{error}");
        }
    }
}
