//! How large a study this server accepts. Every limit is a setting.

use serde::{Deserialize, Serialize};

/// The largest integer that every JSON reader holds exactly (RFC 8259 §6).
pub(super) const MAX_EXACT_INTEGER: u64 = 9_007_199_254_740_991;

/// Bounds on what a definition may ask for. A model that is too large for the memory budget is not
/// refused here: that it is infeasible is an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DefinitionLimits {
    /// Characters of a study's name.
    pub max_name_chars: u64,
    /// Labels of a study.
    pub max_labels: u64,
    /// Characters of a label's key.
    pub max_label_key_chars: u64,
    /// Characters of a label's value.
    pub max_label_value_chars: u64,
    /// Largest batch size.
    pub max_batch_size: u64,
    /// Batch sizes in an explicit grid.
    pub max_grid_values: u64,
    /// Hidden layers of an MLP, stages of a CNN, elements in a list of layers.
    pub max_hidden_layers: u64,
    /// Units or channels of one layer.
    pub max_hidden_units: u64,
    /// Layers of a network, those inside residual blocks included.
    pub max_layers: u64,
    /// Trainable parameters of a model.
    pub max_parameters: u64,
    /// Classes of a generated data set.
    pub max_classes: u64,
    /// Bytes of a generated data set: four for each number, validation included.
    pub max_synthetic_bytes: u64,
    /// Largest learning rate.
    pub max_learning_rate: f64,
    /// Largest ε of an adaptive optimizer.
    pub max_epsilon: f64,
    /// Largest weight decay.
    pub max_weight_decay: f64,
    /// Smallest memory budget: below it the training process itself does not start.
    pub min_memory_budget_bytes: u64,
    /// Threads of a training process.
    pub max_threads: u64,
    /// Devices that train together.
    pub max_devices: u64,
    /// Bytes of the options of a runner, as JSON.
    pub max_runner_options_bytes: u64,
    /// How deeply the options of a runner may be nested.
    pub max_runner_options_depth: u64,
    /// Device time of one study, seconds.
    pub max_device_secs: f64,
    /// Probes of one study.
    pub max_probes: u64,
}

impl Default for DefinitionLimits {
    fn default() -> Self {
        Self {
            max_name_chars: 200,
            max_labels: 32,
            max_label_key_chars: 63,
            max_label_value_chars: 255,
            max_batch_size: 1 << 24,
            max_grid_values: 64,
            max_hidden_layers: 256,
            max_hidden_units: 1_000_000,
            max_layers: 10_000,
            max_parameters: 10_000_000_000,
            max_classes: 1_000_000,
            max_synthetic_bytes: 4 << 30,
            max_learning_rate: 1_000.0,
            max_epsilon: 1.0,
            max_weight_decay: 100.0,
            min_memory_budget_bytes: 16 << 20,
            max_threads: 1024,
            max_devices: 64,
            max_runner_options_bytes: 16 << 10,
            max_runner_options_depth: 16,
            max_device_secs: 86_400.0,
            max_probes: 10_000,
        }
    }
}
