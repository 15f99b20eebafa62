//! What a model is judged by on the validation examples.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::definition::Loss;
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
    /// ½Σhᵢθᵢ² of the `noisy_quadratic`: its expected loss beyond what no parameters change, computed from the
    /// recursion of the second moments, without sampling.
    ExpectedExcessLoss,
}

impl EvaluationMetric {
    /// Every metric.
    pub const ALL: [Self; 7] = [
        Self::ValidationCrossEntropy,
        Self::ValidationMeanSquaredError,
        Self::ValidationAccuracy,
        Self::ValidationErrorRate,
        Self::ValidationAuc,
        Self::ValidationPerplexity,
        Self::ExpectedExcessLoss,
    ];

    /// Whether less is better.
    pub fn is_minimized(self) -> bool {
        !matches!(self, Self::ValidationAccuracy | Self::ValidationAuc)
    }

    /// Whether it falls by factors, so that its logarithm is what is interpolated.
    pub fn is_logarithmic(self) -> bool {
        matches!(
            self,
            Self::ValidationCrossEntropy
                | Self::ValidationMeanSquaredError
                | Self::ExpectedExcessLoss
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
            // Whether it is the noisy quadratic is a matter of data set and network.
            Self::ExpectedExcessLoss => matches!(target, Target::Values { .. }),
        }
    }

    /// The metric that training minimises itself.
    pub fn of_loss(loss: Loss) -> Self {
        match loss {
            Loss::CrossEntropy => Self::ValidationCrossEntropy,
            Loss::MeanSquaredError => Self::ValidationMeanSquaredError,
        }
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ValidationCrossEntropy => "validation_cross_entropy",
            Self::ValidationMeanSquaredError => "validation_mean_squared_error",
            Self::ValidationAccuracy => "validation_accuracy",
            Self::ValidationErrorRate => "validation_error_rate",
            Self::ValidationAuc => "validation_auc",
            Self::ValidationPerplexity => "validation_perplexity",
            Self::ExpectedExcessLoss => "expected_excess_loss",
        }
    }

    /// Whether it is better, and by how much: the less, the better.
    pub fn score(self, value: f64) -> f64 {
        if self.is_minimized() { value } else { -value }
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

/// In which direction a metric improves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Less is better.
    Minimize,
    /// More is better.
    Maximize,
}

/// What training is to reach, as posted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetRequest {
    /// Which metric.
    pub metric: EvaluationMetric,
    /// In which direction it improves; left out, the metric's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// At most this where less is better, else at least.
    pub value: f64,
}

impl TargetRequest {
    /// Without the direction, which the metric has.
    pub fn resolve(self) -> EvaluationTarget {
        EvaluationTarget {
            metric: self.metric,
            value: self.value,
        }
    }
}
