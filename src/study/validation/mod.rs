//! From a posted value to a request that can be trusted: every violation at once, each with its
//! JSON pointer and with what is allowed. (Of a definition with thousands of values, those of its beginning; see `explain`.)
//!
//! Four stages, so that one mistake never hides another:
//! 1. [`read_json`] turns bytes into a value and notices members that are given twice.
//! 2. The value is checked against the JSON schema that the OpenAPI document publishes, narrowed
//!    by the server's [`DefinitionLimits`] (`schema`, `explain`).
//! 3. What the schema refused is cut out, so that the rest can be read as a [`StudyRequest`].
//! 4. What a schema cannot say (min ≤ max, the size of the model, …) is checked on that rest
//!    (`meaning`), except where it rests on something that was cut out.

mod explain;
mod json;
mod limits;
mod meaning;
mod schema;

use std::collections::HashSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

pub use json::{Malformed, read_json};
pub use limits::DefinitionLimits;
pub use schema::request_schemas;

use super::{DatasetId, DatasetRequest, StoredDataset, StudyRequest};

/// Violations reported at most: past that, a caller needs no longer list but another body.
const MAX_VIOLATIONS: usize = 100;

/// One thing wrong with what was posted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// JSON pointer (RFC 6901) to the value; for a missing or unknown field, to where it is or
    /// should be; for a query parameter, `?` and its name.
    #[schema(example = "/batch_sizes/min")]
    pub pointer: String,
    /// What is wrong and what is allowed.
    #[schema(example = "must be at least 1, is 0")]
    pub detail: String,
}

impl Violation {
    /// A violation at a pointer.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// Checks posted values against the contract and one server's limits. Costs a schema compilation
/// to make, so a service makes one and keeps it.
pub struct DefinitionRules {
    limits: DefinitionLimits,
    schema: Value,
    validator: jsonschema::Validator,
}

impl fmt::Debug for DefinitionRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DefinitionRules")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl DefinitionRules {
    /// The rules under these limits.
    pub fn new(limits: DefinitionLimits) -> Self {
        let schema = schema::document(&limits);
        let validator = schema::compile(&schema, schema::ROOT);
        Self {
            limits,
            schema,
            validator,
        }
    }

    /// The limits.
    pub fn limits(&self) -> &DefinitionLimits {
        &self.limits
    }

    /// Reads a posted value; `stored` is what the service knows of the uploaded data set that it names,
    /// see [`named_dataset`].
    ///
    /// # Errors
    /// Every violation, sorted by pointer.
    pub fn parse(
        &self,
        value: &Value,
        stored: Option<&StoredDataset>,
    ) -> Result<StudyRequest, Vec<Violation>> {
        self.check(value, stored).map_err(tidy)
    }

    /// As [`parse`](Self::parse), every violation as it was found.
    fn check(
        &self,
        value: &Value,
        stored: Option<&StoredDataset>,
    ) -> Result<StudyRequest, Vec<Violation>> {
        let searched = batch_size_as_hyperparameter(value);
        let mut known = value.clone();
        // The name of a range is all that is wrong with it: said once.
        let ranges = known.pointer_mut("/search/ranges");
        if let Some(ranges) = ranges.and_then(Value::as_object_mut) {
            ranges.remove(SEARCHED_BATCH_SIZE);
        }
        let value = &known;
        let mut violations = explain::violations(&self.schema, &self.validator, value);
        violations.retain(|it| searched.iter().all(|other| other.pointer != it.pointer));
        violations.extend(searched);
        violations.extend(unreadable_dataset_id(value));
        let mut rest = value.clone();
        json::integers_as_integers(&mut rest);
        let cut: Vec<String> = violations
            .iter()
            .map(|violation| violation.pointer.clone())
            .collect();
        if cut.iter().any(String::is_empty) {
            // All of it is wrong, or of some nobody knows whether it is: nothing is left that could be judged.
            return Err(violations);
        }
        json::cut_out(&mut rest, &cut);
        match serde_json::from_value::<StudyRequest>(rest) {
            Ok(mut request) => {
                if let DatasetRequest::Uploaded(dataset) = &mut request.workload.dataset {
                    dataset.stored = stored.cloned();
                }
                violations.extend(meaning::violations(&request, &self.limits, &cut));
                if violations.is_empty() {
                    return Ok(request);
                }
            }
            // Schema and types say the same thing, so this is a difference between the two; the
            // caller is told in the type's words rather than not at all.
            Err(error) if violations.is_empty() => {
                violations.push(Violation::new("", error.to_string()));
            }
            Err(_) => {}
        }
        Err(violations)
    }

    /// Reads a posted body; `stored` as for [`parse`](Self::parse).
    ///
    /// # Errors
    /// [`Rejected::Malformed`] when it is not JSON, else every violation, members given twice and texts that cannot be stored included.
    pub fn parse_body(
        &self,
        body: &[u8],
        stored: Option<&StoredDataset>,
    ) -> Result<StudyRequest, Rejected> {
        let (value, faults) = read_json(body)?;
        match self.check(&value, stored) {
            Ok(request) if faults.is_empty() => Ok(request),
            Ok(_) => Err(Rejected::Invalid(tidy(faults))),
            Err(mut violations) => {
                // Where something else is wrong with a text already, once is enough.
                let known: HashSet<String> =
                    violations.iter().map(|it| it.pointer.clone()).collect();
                violations.extend(faults.into_iter().filter(|it| !known.contains(&it.pointer)));
                Err(Rejected::Invalid(tidy(violations)))
            }
        }
    }
}

/// An id of a data set that is none: the schema knows its format and does not check it.
fn unreadable_dataset_id(value: &Value) -> Option<Violation> {
    const ID: &str = "/workload/dataset/id";
    let id = value.pointer(ID)?.as_str()?;
    id.parse::<uuid::Uuid>().is_err().then(|| {
        Violation::new(
            ID,
            "is not the id of a data set: it is a UUID, as the upload answered it and GET /v1/datasets lists it",
        )
    })
}

/// What some would search like a hyperparameter.
const SEARCHED_BATCH_SIZE: &str = "batch_size";

/// Where a study wants the batch size searched like a hyperparameter: it cannot be, and why is worth more than that the
/// name is not in a list.
fn batch_size_as_hyperparameter(value: &Value) -> Vec<Violation> {
    const DETAIL: &str = "W_BATCH_TUNED_FOR_QUALITY: the batch size is not tuned for the quality of the model: with every \
         other hyperparameter tuned at each, no batch size ends with a better one, and a search over it would favour the \
         batch size whose other hyperparameters happen to fit. It is chosen for speed: ask batch_size, or \
         quality_across_batch_sizes to see that the quality is the same";
    let mut found = Vec::new();
    for list in ["/search/hyperparameters", "/optimizers/hyperparameters"] {
        let names = value.pointer(list).and_then(Value::as_array);
        for (index, name) in names.into_iter().flatten().enumerate() {
            if name == SEARCHED_BATCH_SIZE {
                found.push(Violation::new(format!("{list}/{index}"), DETAIL));
            }
        }
    }
    let ranges = value.pointer("/search/ranges").and_then(Value::as_object);
    if ranges.is_some_and(|ranges| ranges.contains_key(SEARCHED_BATCH_SIZE)) {
        found.push(Violation::new(
            format!("/search/ranges/{SEARCHED_BATCH_SIZE}"),
            DETAIL,
        ));
    }
    found
}

/// Why a posted body was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    /// It is not JSON.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is JSON, but not a definition.
    #[error("the definition has {} violation(s)", .0.len())]
    Invalid(Vec<Violation>),
}

/// Reads a posted value under `limits`; see [`DefinitionRules`], which does the same more cheaply
/// when there is more than one.
///
/// # Errors
/// Every violation, sorted by pointer.
pub fn parse(value: &Value, limits: &DefinitionLimits) -> Result<StudyRequest, Vec<Violation>> {
    DefinitionRules::new(limits.clone()).parse(value, None)
}

/// The uploaded data set that a posted body names, if it does: what has to be looked up before it is read.
pub fn named_dataset(body: &[u8]) -> Option<DatasetId> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let id = value.pointer("/workload/dataset/id")?.as_str()?;
    Some(DatasetId(id.parse().ok()?))
}

/// Sorted, each once, and no more than anybody would read.
fn tidy(mut violations: Vec<Violation>) -> Vec<Violation> {
    violations.sort();
    violations.dedup();
    if violations.len() > MAX_VIOLATIONS {
        let more = violations.len() - MAX_VIOLATIONS;
        violations.truncate(MAX_VIOLATIONS);
        violations.push(Violation::new("", format!("and {more} more violations")));
    }
    violations
}

#[cfg(test)]
mod tests;
