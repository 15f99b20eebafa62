//! From a posted value to a definition: every violation at once, each with its JSON pointer.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// One thing wrong with what was posted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct Violation {
    /// JSON pointer (RFC 6901) to the value; for a missing or unknown field, to where it is or should be.
    #[schema(example = "/batch_sizes/min")]
    pub pointer: String,
    /// What is wrong and what is allowed.
    #[schema(example = "must be at least 1, is 0")]
    pub detail: String,
}

/// What a study may ask for; every limit is a setting.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefinitionLimits {
    /// Batch size at most.
    pub max_batch_size: u64,
}

impl Default for DefinitionLimits {
    fn default() -> Self {
        Self {
            max_batch_size: 1 << 24,
        }
    }
}
