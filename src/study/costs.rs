//! What is minimised, and what training costs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::units::BatchSize;

/// What the recommendation minimises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Time from start to finish.
    #[default]
    MinimizeTrainingTime,
    /// What training uses up: money where the study names prices, else device-seconds.
    MinimizeResourceConsumption,
    /// Neither alone: the batch sizes that no other beats in both, and the quickest of them as the one to
    /// start with.
    Pareto,
}

/// Prices. What is not named is not counted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Money for an hour of one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.0)]
    pub device_hour: Option<f64>,
    /// Money for a kilowatt-hour; counts where the device's power is measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0.0)]
    pub energy_price_per_kwh: Option<f64>,
    /// The currency of every amount, for people.
    #[serde(default = "default_currency")]
    #[schema(default = "USD", min_length = 1, max_length = 16)]
    pub currency: String,
    /// What has to be paid once before larger batch sizes can be used.
    #[serde(default)]
    #[schema(max_items = 100)]
    pub upfront: Vec<UpfrontCost>,
    /// Training runs that the project will still make, those of tuning included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub planned_runs: Option<u64>,
    /// Money that an hour of waiting for a training run is worth.
    #[serde(default)]
    #[schema(minimum = 0.0, default = 0.0)]
    pub value_of_time_per_hour: f64,
}

/// What has to be paid once before larger batch sizes can be used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpfrontCost {
    /// It is paid for batch sizes above this one.
    pub above_batch_size: BatchSize,
    /// How much.
    #[schema(minimum = 0.0)]
    pub amount: f64,
    /// What for.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub why: String,
}

fn default_currency() -> String {
    "USD".into()
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            device_hour: None,
            energy_price_per_kwh: None,
            currency: default_currency(),
            upfront: Vec::new(),
            planned_runs: None,
            value_of_time_per_hour: 0.0,
        }
    }
}

impl Costs {
    /// What has to be paid before a batch size can be used.
    pub fn upfront_for(&self, batch_size: BatchSize) -> f64 {
        self.upfront
            .iter()
            .filter(|cost| batch_size > cost.above_batch_size)
            .map(|cost| cost.amount)
            .sum()
    }
}

/// How far the project is: changes that cost much are better made late, when it is known that they pay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectPhase {
    /// Much may still change.
    #[default]
    Early,
    /// What is decided stays.
    Late,
}

/// Which batch sizes are trained to the target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Design {
    /// Those that tell most about what was asked.
    #[default]
    Adaptive,
    /// Every one of the grid.
    Full,
}
