//! What a model is judged by on the validation examples.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shape::Target;

/// A metric of the validation examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvaluationMetric {
    /// Mean negative log likelihood of the label or of the next token, nats, without label smoothing.
    ValidationCrossEntropy,
    /// Mean squared error over examples and values.
    ValidationMeanSquaredError,
    /// Share of predictions that are right.
    ValidationAccuracy,
    /// Share of predictions that are wrong.
    ValidationErrorRate,
    /// Area under the receiver operating characteristic, for two classes.
    ValidationAuc,
    /// Exponential of the cross-entropy of a token.
    ValidationPerplexity,
}

impl EvaluationMetric {
    /// Every metric.
    pub const ALL: [Self; 6] = [
        Self::ValidationCrossEntropy,
        Self::ValidationMeanSquaredError,
        Self::ValidationAccuracy,
        Self::ValidationErrorRate,
        Self::ValidationAuc,
        Self::ValidationPerplexity,
    ];

    /// Whether less is better.
    pub fn is_minimized(self) -> bool {
        !matches!(self, Self::ValidationAccuracy | Self::ValidationAuc)
    }

    /// Whether it falls by factors, so that its logarithm is what is interpolated.
    pub fn is_logarithmic(self) -> bool {
        matches!(
            self,
            Self::ValidationCrossEntropy | Self::ValidationMeanSquaredError
        )
    }

    /// Whether a task has it.
    pub fn fits(self, target: &Target) -> bool {
        match self {
            Self::ValidationCrossEntropy | Self::ValidationAccuracy | Self::ValidationErrorRate => {
                !matches!(target, Target::Values { .. })
            }
            Self::ValidationMeanSquaredError => matches!(target, Target::Values { .. }),
            Self::ValidationAuc => matches!(target, Target::Classes { count: 2 }),
            Self::ValidationPerplexity => matches!(target, Target::NextToken { .. }),
        }
    }
}

/// A value of a metric that training is to reach.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationTarget {
    /// Which metric.
    pub metric: EvaluationMetric,
    /// At most this where less is better, else at least.
    pub value: f64,
}
