//! The schema's findings in words: which field, what it is, what it may be.

use std::collections::HashMap;
use std::rc::Rc;

use jsonschema::error::{TypeKind, ValidationErrorKind};
use jsonschema::{ValidationError, Validator};
use serde_json::Value;

use super::Violation;
use super::json::{beginning, child, count, shortened};
use super::schema::{compile, tag_of};

/// JSON values of a definition that are looked at for an explanation.
const MAX_LOOKED_AT: usize = 2000;

/// What the schema refuses in `instance`.
///
/// A validator makes every finding of every alternative before it gives the first, so of a long definition only the
/// beginning is explained: ten thousand wrong layers would take seconds and hundreds of megabytes.
pub(super) fn violations(
    document: &Value,
    validator: &Validator,
    instance: &Value,
) -> Vec<Violation> {
    if count(instance) <= MAX_LOOKED_AT {
        return explained(document, validator, instance, instance);
    }
    if validator.is_valid(instance) {
        return Vec::new();
    }
    let mut left = MAX_LOOKED_AT;
    let beginning = beginning(instance, &mut left);
    let mut found = explained(document, validator, instance, &beginning);
    let detail = if found.is_empty() {
        format!(
            "something is not as the schema has it, behind the first {MAX_LOOKED_AT} values (members by their names), where it is not looked for; take out elements of its lists until you are told what"
        )
    } else {
        format!(
            "has more than {MAX_LOOKED_AT} values, and what is behind the first of them was not looked at: there may be more violations"
        )
    };
    found.push(Violation::new("", detail));
    found
}

fn explained(
    document: &Value,
    validator: &Validator,
    posted: &Value,
    instance: &Value,
) -> Vec<Violation> {
    let mut explainer = Explainer {
        document,
        posted,
        compiled: HashMap::new(),
        found: Vec::new(),
    };
    explainer.explain_all(validator, instance, super::schema::ROOT, "");
    explainer.found
}

struct Explainer<'a> {
    document: &'a Value,
    /// All of what was posted, where only its beginning is looked at.
    posted: &'a Value,
    /// Validators of alternatives: thousands of layers may be of one kind.
    compiled: HashMap<String, Rc<Validator>>,
    found: Vec<Violation>,
}

impl Explainer<'_> {
    /// Explains what `validator`, which checks the schema at `root`, finds in `instance`, which is
    /// at `place` of what was posted.
    fn explain_all(&mut self, validator: &Validator, instance: &Value, root: &str, place: &str) {
        for error in validator.iter_errors(instance) {
            self.explain(&error, root, place);
        }
    }

    /// The length that it has as it was posted.
    fn length(&self, pointer: &str, instance: &Value) -> usize {
        length(self.posted.pointer(pointer).unwrap_or(instance))
    }

    fn add(&mut self, pointer: &str, detail: String) {
        self.found.push(Violation::new(shortened(pointer), detail));
    }

    fn explain(&mut self, error: &ValidationError<'_>, root: &str, place: &str) {
        let pointer = format!("{place}{}", error.instance_path().as_str());
        let instance = error.instance();
        let is = described(instance);
        match error.kind() {
            ValidationErrorKind::Type { kind } => {
                self.add(&pointer, format!("must be {}, is {is}", type_names(kind)));
            }
            ValidationErrorKind::Minimum { limit } => {
                self.add(
                    &pointer,
                    format!("must be at least {}, is {is}", number(limit)),
                );
            }
            ValidationErrorKind::Maximum { limit } => {
                self.add(
                    &pointer,
                    format!("must be at most {}, is {is}", number(limit)),
                );
            }
            ValidationErrorKind::ExclusiveMinimum { limit } => {
                self.add(
                    &pointer,
                    format!("must be more than {}, is {is}", number(limit)),
                );
            }
            ValidationErrorKind::ExclusiveMaximum { limit } => {
                self.add(
                    &pointer,
                    format!("must be less than {}, is {is}", number(limit)),
                );
            }
            // Long enough as it was posted: what is looked at is only its beginning.
            ValidationErrorKind::MinItems { limit }
                if self.length(&pointer, instance) as u64 >= *limit => {}
            ValidationErrorKind::MinItems { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must have at least {}, has {}",
                        counted(*limit, "element"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::MaxItems { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must have at most {}, has {}",
                        counted(*limit, "element"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::MinProperties { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must have at least {}, has {}",
                        counted(*limit, "member"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::MaxProperties { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must have at most {}, has {}",
                        counted(*limit, "member"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::MinLength { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must be at least {} long, is {}",
                        counted(*limit, "character"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::MaxLength { limit } => {
                self.add(
                    &pointer,
                    format!(
                        "must be at most {} long, is {}",
                        counted(*limit, "character"),
                        self.length(&pointer, instance)
                    ),
                );
            }
            ValidationErrorKind::Pattern { pattern } => {
                self.add(&pointer, format!("must match {pattern}, is {is}"));
            }
            ValidationErrorKind::Enum { options } => {
                let options: Vec<&str> = options
                    .as_array()
                    .map(|options| options.iter().filter_map(Value::as_str).collect())
                    .unwrap_or_default();
                self.add(&pointer, not_one_of(&options, instance));
            }
            ValidationErrorKind::Required { property } => {
                let name = property.as_str().unwrap_or_default();
                self.add(&child(&pointer, name), "is required and missing".into());
            }
            ValidationErrorKind::AdditionalProperties { unexpected } => {
                let allowed = self
                    .locate(root, error.evaluation_path().as_str())
                    .and_then(|keyword| parent(&keyword))
                    .and_then(|schema| self.document.pointer(&format!("{schema}/properties")))
                    .and_then(Value::as_object)
                    .map(|properties| properties.keys().map(String::as_str).collect::<Vec<_>>())
                    .unwrap_or_default();
                for name in unexpected {
                    self.add(&child(&pointer, name), unknown_field(name, &allowed));
                }
            }
            ValidationErrorKind::OneOfNotValid { .. } | ValidationErrorKind::AnyOf { .. } => {
                self.explain_union(error, root, &pointer);
            }
            _ => self.add(&pointer, shortened(&error.masked().to_string())),
        }
    }

    /// None of the alternatives fits. What to say follows from the one that was meant: the one
    /// whose tag matches, else the only one of the right type.
    fn explain_union(&mut self, error: &ValidationError<'_>, root: &str, pointer: &str) {
        let instance = error.instance();
        let alternatives = self
            .locate(root, error.evaluation_path().as_str())
            .map(|union| self.alternatives(&union))
            .unwrap_or_default();
        let of_its_type: Vec<&String> = alternatives
            .iter()
            .filter(|at| {
                self.document
                    .pointer(at)
                    .is_some_and(|schema| admits(schema, instance))
            })
            .collect();
        if let Value::Object(members) = instance.as_ref() {
            let tagged: Vec<(&str, &str, &String)> = of_its_type
                .iter()
                .filter_map(|at| {
                    let (tag, name) = tag_of(self.document.pointer(at)?)?;
                    Some((tag, name, *at))
                })
                .collect();
            // An alternative without a tag is meant by whoever gives what it requires.
            let meant = of_its_type.iter().find(|at| {
                self.document.pointer(at).is_some_and(|schema| {
                    tag_of(schema).is_none()
                        && required(schema).any(|name| members.contains_key(name))
                })
            });
            if let Some(at) = meant {
                self.explain_alternative(at, instance, pointer);
                return;
            }
            if let Some((tag, _, _)) = tagged.first() {
                let names: Vec<&str> = tagged.iter().map(|(_, name, _)| *name).collect();
                let at_tag = child(pointer, tag);
                match members.get(*tag) {
                    None => {
                        let names = names.join(", ");
                        self.add(&at_tag, format!("is required and missing; one of: {names}"));
                    }
                    Some(given) => match tagged.iter().find(|(_, name, _)| given == name) {
                        Some((_, _, at)) => self.explain_alternative(at, instance, pointer),
                        None => {
                            let detail = not_one_of(&names, given);
                            self.add(&at_tag, detail);
                        }
                    },
                }
                return;
            }
        }
        if let [only] = of_its_type.as_slice() {
            self.explain_alternative(only, instance, pointer);
            return;
        }
        // That an optional field may be null is no help to somebody who gave something else.
        let mut expected: Vec<String> = alternatives
            .iter()
            .filter_map(|at| self.document.pointer(at))
            .filter(|schema| schema.get("type").is_none_or(|name| name != "null"))
            .map(expected)
            .collect();
        expected.dedup();
        let is = described(instance);
        self.add(
            pointer,
            format!("must be {}, is {is}", expected.join(" or ")),
        );
    }

    fn explain_alternative(&mut self, at: &str, instance: &Value, pointer: &str) {
        let validator = match self.compiled.get(at) {
            Some(validator) => Rc::clone(validator),
            None => {
                let validator = Rc::new(compile(self.document, at));
                self.compiled.insert(at.to_owned(), Rc::clone(&validator));
                validator
            }
        };
        self.explain_all(&validator, instance, at, pointer);
    }

    /// The schemas that a union stands for, unions inside it included.
    fn alternatives(&self, union: &str) -> Vec<String> {
        let Some(branches) = self.document.pointer(union).and_then(Value::as_array) else {
            return Vec::new();
        };
        (0..branches.len())
            .flat_map(|index| {
                let at = self.follow(format!("{union}/{index}"));
                let inner = format!("{at}/oneOf");
                if self.document.pointer(&inner).is_some() {
                    self.alternatives(&inner)
                } else {
                    vec![at]
                }
            })
            .collect()
    }

    /// Where a `$ref` leads, if there is one.
    fn follow(&self, at: String) -> String {
        self.document
            .pointer(&format!("{at}/$ref"))
            .and_then(Value::as_str)
            .and_then(|reference| reference.strip_prefix('#'))
            .map_or(at, str::to_owned)
    }

    /// The place in the document of a keyword, from the path that evaluation took to it.
    fn locate(&self, root: &str, evaluation_path: &str) -> Option<String> {
        let mut at = root.to_owned();
        // The first step is the validator's own reference to its root.
        let path = evaluation_path
            .strip_prefix("/$ref")
            .unwrap_or(evaluation_path);
        for segment in path.split('/').skip(1) {
            at = if segment == "$ref" {
                self.follow(at)
            } else {
                format!("{at}/{segment}")
            };
        }
        self.document.pointer(&at).is_some().then_some(at)
    }
}

fn parent(pointer: &str) -> Option<String> {
    pointer
        .rsplit_once('/')
        .map(|(parent, _)| parent.to_owned())
}

/// Whether a schema is about values of the instance's type.
fn admits(schema: &Value, instance: &Value) -> bool {
    let of_type = |name: &str| match (name, instance) {
        ("object", Value::Object(_))
        | ("array", Value::Array(_))
        | ("string", Value::String(_))
        | ("boolean", Value::Bool(_))
        | ("null", Value::Null)
        | ("number", Value::Number(_)) => true,
        ("integer", Value::Number(number)) => {
            number.as_f64().is_none_or(|value| value.fract() == 0.0)
        }
        _ => false,
    };
    match schema.get("type") {
        Some(Value::String(name)) => of_type(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(of_type),
        _ => true,
    }
}

/// The names of the members that a schema requires.
fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

/// What one alternative would accept, in a few words.
fn expected(schema: &Value) -> String {
    if let Some(options) = schema.get("enum").and_then(Value::as_array) {
        let options: Vec<String> = options.iter().map(Value::to_string).collect();
        return options.join(" or ");
    }
    let name = schema
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or("value");
    let required: Vec<String> = schema
        .get("required")
        .and_then(Value::as_array)
        .map(|names| {
            names
                .iter()
                .filter_map(Value::as_str)
                .map(|name| format!("`{name}`"))
                .collect()
        })
        .unwrap_or_default();
    if name == "object" && !required.is_empty() {
        format!("an object with {}", required.join(" and "))
    } else {
        with_article(name)
    }
}

fn with_article(name: &str) -> String {
    match name {
        "null" => name.to_owned(),
        "integer" | "object" | "array" => format!("an {name}"),
        _ => format!("a {name}"),
    }
}

fn type_names(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(name) => with_article(&name.to_string()),
        TypeKind::Multiple(names) => {
            let names: Vec<String> = names
                .iter()
                .map(|name| name.to_string())
                .filter(|name| name != "null")
                .map(|name| with_article(&name))
                .collect();
            names.join(" or ")
        }
    }
}

/// A value in a few words: as it is when short, else what it is.
fn described(value: &Value) -> String {
    match value {
        Value::Null | Value::Bool(_) => value.to_string(),
        Value::Number(_) => number(value),
        Value::String(text) => {
            let short: String = text.chars().take(40).collect();
            let more = if short.len() < text.len() { "…" } else { "" };
            format!("the string {}{more}", Value::String(short))
        }
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

/// `1000` for 1000.0, `1e30` for what would be thirty digits.
fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(float) if value.is_f64() => {
            if float.fract() == 0.0 && float.abs() < 1e15 {
                format!("{float}")
            } else if float != 0.0 && !(1e-4..1e15).contains(&float.abs()) {
                format!("{float:e}")
            } else {
                format!("{float}")
            }
        }
        _ => value.to_string(),
    }
}

fn length(value: &Value) -> usize {
    match value {
        Value::Array(elements) => elements.len(),
        Value::Object(members) => members.len(),
        Value::String(text) => text.chars().count(),
        _ => 0,
    }
}

fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

fn not_one_of(options: &[&str], given: &Value) -> String {
    let all = options.join(", ");
    let is = described(given);
    match given.as_str().and_then(|given| closest(given, options)) {
        Some(meant) => format!("must be one of: {all}; is {is}; did you mean {meant}?"),
        None => format!("must be one of: {all}; is {is}"),
    }
}

fn unknown_field(name: &str, allowed: &[&str]) -> String {
    let all = allowed.join(", ");
    match closest(name, allowed) {
        Some(meant) => format!("unknown field; allowed: {all}; did you mean {meant}?"),
        None => format!("unknown field; allowed: {all}"),
    }
}

/// The option that a slip of the keyboard would have turned into `given`.
fn closest<'a>(given: &str, options: &[&'a str]) -> Option<&'a str> {
    const MAX_CHARS: usize = 40;
    if given.chars().count() > MAX_CHARS {
        return None;
    }
    let given = given.to_lowercase();
    options
        .iter()
        .map(|option| (edits(&given, option), *option))
        .filter(|(edits, option)| *edits <= 1 + option.len() / 4)
        .min()
        .map(|(_, option)| option)
}

/// Insertions, deletions and substitutions between two words (Levenshtein 1966).
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
