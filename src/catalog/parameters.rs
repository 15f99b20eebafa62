//! Parameters in a line each.

use serde_json::{Value, json};

use super::{Component, Parameter, ParameterType, Provenance};

pub(super) const PLAYBOOK: Provenance = Provenance {
    source: "Godbole, Dahl, Gilmer, Shallue & Nado 2023, Deep Learning Tuning Playbook",
    url: "https://github.com/google-research/tuning_playbook",
};

fn parameter(
    name: &'static str,
    value_type: ParameterType,
    summary: &'static str,
    default: Value,
) -> Parameter {
    Parameter {
        name,
        value_type,
        summary,
        default,
        required: false,
        allowed: String::new(),
        minimum: None,
        maximum: None,
        exclusive_minimum: false,
        exclusive_maximum: false,
        choices: vec![],
    }
}

/// A whole number of at least `minimum`.
pub(super) fn whole(
    name: &'static str,
    summary: &'static str,
    default: impl Into<Option<u64>>,
    minimum: u64,
    maximum: Option<u64>,
) -> Parameter {
    let allowed = match maximum {
        Some(maximum) => format!("a whole number from {minimum} to {maximum}"),
        None => format!("a whole number, at least {minimum}"),
    };
    let default = default.into();
    Parameter {
        required: default.is_none(),
        allowed,
        minimum: Some(minimum as f64),
        maximum: maximum.map(|maximum| maximum as f64),
        ..parameter(name, ParameterType::Integer, summary, json!(default))
    }
}

/// Whole numbers of at least 1.
pub(super) fn wholes(name: &'static str, summary: &'static str, default: &[u64]) -> Parameter {
    Parameter {
        allowed: "a list of whole numbers, each at least 1".into(),
        minimum: Some(1.0),
        ..parameter(name, ParameterType::IntegerList, summary, json!(default))
    }
}

/// A real number from 0, below 1.
pub(super) fn fraction(
    name: &'static str,
    summary: &'static str,
    default: Option<f64>,
) -> Parameter {
    Parameter {
        required: default.is_none(),
        allowed: "at least 0 and below 1".into(),
        minimum: Some(0.0),
        maximum: Some(1.0),
        exclusive_maximum: true,
        ..parameter(name, ParameterType::Real, summary, json!(default))
    }
}

/// A real number from 0 to 1, the ends included.
pub(super) fn share(name: &'static str, summary: &'static str, default: f64) -> Parameter {
    Parameter {
        allowed: "from 0 to 1".into(),
        minimum: Some(0.0),
        maximum: Some(1.0),
        ..parameter(name, ParameterType::Real, summary, json!(default))
    }
}

/// A real number above 0, up to `maximum`.
pub(super) fn positive(
    name: &'static str,
    summary: &'static str,
    default: Option<f64>,
    maximum: Option<f64>,
) -> Parameter {
    Parameter {
        required: default.is_none(),
        allowed: match maximum {
            Some(maximum) => format!("above 0, at most {maximum}"),
            None => "above 0".into(),
        },
        minimum: Some(0.0),
        exclusive_minimum: true,
        maximum,
        ..parameter(name, ParameterType::Real, summary, json!(default))
    }
}

/// A real number of at least 0.
pub(super) fn not_negative(
    name: &'static str,
    summary: &'static str,
    default: f64,
    maximum: f64,
) -> Parameter {
    Parameter {
        allowed: format!("from 0 to {maximum}"),
        minimum: Some(0.0),
        maximum: Some(maximum),
        ..parameter(name, ParameterType::Real, summary, json!(default))
    }
}

/// One of several names; the first is the default.
pub(super) fn choice(
    name: &'static str,
    summary: &'static str,
    default: &'static str,
    choices: &[&'static str],
) -> Parameter {
    Parameter {
        allowed: "one of the choices".into(),
        choices: choices.to_vec(),
        ..parameter(name, ParameterType::Choice, summary, json!(default))
    }
}

/// The same, without a default.
pub(super) fn required_choice(
    name: &'static str,
    summary: &'static str,
    choices: &[&'static str],
) -> Parameter {
    Parameter {
        required: true,
        allowed: "one of the choices".into(),
        choices: choices.to_vec(),
        ..parameter(name, ParameterType::Choice, summary, Value::Null)
    }
}

/// True or false.
pub(super) fn flag(name: &'static str, summary: &'static str, default: bool) -> Parameter {
    Parameter {
        allowed: "true or false".into(),
        ..parameter(name, ParameterType::Boolean, summary, json!(default))
    }
}

/// One of the normalizations.
pub(super) fn normalization(summary: &'static str, default: Option<Value>) -> Parameter {
    Parameter {
        required: default.is_none(),
        allowed: "one of the normalizations".into(),
        ..parameter(
            "normalization",
            ParameterType::Normalization,
            summary,
            default.unwrap_or(Value::Null),
        )
    }
}

/// A list of layers.
pub(super) fn layer_list(
    name: &'static str,
    summary: &'static str,
    default: Option<Value>,
) -> Parameter {
    Parameter {
        required: default.is_none(),
        allowed: "a list of layers".into(),
        ..parameter(
            name,
            ParameterType::LayerList,
            summary,
            default.unwrap_or(Value::Null),
        )
    }
}

/// A name that must be given.
pub(super) fn name(name: &'static str, summary: &'static str) -> Parameter {
    Parameter {
        required: true,
        allowed: "a name".into(),
        ..parameter(name, ParameterType::Name, summary, Value::Null)
    }
}

/// Something that may be left out, with what follows then in the summary.
pub(super) fn optional(parameter: Parameter) -> Parameter {
    Parameter {
        required: false,
        default: Value::Null,
        ..parameter
    }
}

/// How batches come to the training.
pub(super) fn input_pipeline(summary: &'static str, default: Value) -> Parameter {
    Parameter {
        allowed: "an object with threads (0 to 256) and prefetch_batches (1 to 1024)".into(),
        ..parameter(
            "input_pipeline",
            ParameterType::InputPipeline,
            summary,
            default,
        )
    }
}

/// Something named by its kind.
pub(super) fn component(
    name: &'static str,
    summary: &'static str,
    parameters: Vec<Parameter>,
    provenance: Vec<Provenance>,
) -> Component {
    Component {
        name,
        summary,
        parameters,
        provenance,
    }
}
