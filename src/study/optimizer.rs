//! Optimizers, learning-rate schedules and gradient clipping, with every hyperparameter of the update
//! rule; none is implicit. θ are the parameters, g the gradient of the loss, t the step from 1.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An optimizer with every hyperparameter of its update rule; none is implicit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "family", rename_all = "snake_case", deny_unknown_fields)]
pub enum Optimizer {
    /// θ ← θ − η·g, with g ← g + λ·θ first
    Sgd {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
        /// λ
        #[serde(default)]
        #[schema(minimum = 0.0, default = 0.0)]
        weight_decay: f64,
    },
    /// v ← γ·v + g; θ ← θ − η·v, with g ← g + λ·θ first
    SgdMomentum {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
        /// γ
        #[serde(default = "default_momentum")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        momentum: f64,
        /// λ
        #[serde(default)]
        #[schema(minimum = 0.0, default = 0.0)]
        weight_decay: f64,
    },
    /// v ← γ·v + g; θ ← θ − η·(g + γ·v), with g ← g + λ·θ first
    SgdNesterov {
        /// η
        #[serde(default = "default_sgd_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.01)]
        learning_rate: f64,
        /// γ
        #[serde(default = "default_momentum")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        momentum: f64,
        /// λ
        #[serde(default)]
        #[schema(minimum = 0.0, default = 0.0)]
        weight_decay: f64,
    },
    /// RMSProp (Tieleman & Hinton 2012). Sources differ in where ε stands and in what v starts from, so
    /// both are fields.
    #[serde(rename = "rmsprop")]
    RmsProp {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// ρ: v ← ρ·v + (1 − ρ)·g²
        #[serde(default = "default_rho")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        rho: f64,
        /// γ: m ← γ·m + η·g/(√v, with ε); θ ← θ − m
        #[serde(default)]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.0)]
        momentum: f64,
        /// ε
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
        /// Where ε stands.
        #[serde(default)]
        epsilon_form: RmsPropEpsilon,
        /// What v starts from.
        #[serde(default)]
        initial_square: InitialSquare,
    },
    /// Adam (Kingma & Ba 2015).
    Adam {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// β₁
        #[serde(default = "default_beta_1")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        beta_1: f64,
        /// β₂
        #[serde(default = "default_beta_2")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.999)]
        beta_2: f64,
        /// ε
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
        /// What ε is added to.
        #[serde(default)]
        epsilon_form: AdamEpsilon,
    },
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019): θ ← θ·(1 − η·λ) before the step.
    #[serde(rename = "adamw")]
    AdamW {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// β₁
        #[serde(default = "default_beta_1")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        beta_1: f64,
        /// β₂
        #[serde(default = "default_beta_2")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.999)]
        beta_2: f64,
        /// ε
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
        /// What ε is added to.
        #[serde(default)]
        epsilon_form: AdamEpsilon,
        /// λ
        #[serde(default = "default_weight_decay")]
        #[schema(minimum = 0.0, default = 0.01)]
        weight_decay: f64,
    },
    /// Adam with Nesterov momentum (Dozat 2016), in the form of Choi et al. 2019: the step is along
    /// β₁·m + (1 − β₁)·g with the new m.
    #[serde(rename = "nadam")]
    NAdam {
        /// η
        #[serde(default = "default_adam_learning_rate")]
        #[schema(exclusive_minimum = 0.0, default = 0.001)]
        learning_rate: f64,
        /// β₁
        #[serde(default = "default_beta_1")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.9)]
        beta_1: f64,
        /// β₂
        #[serde(default = "default_beta_2")]
        #[schema(minimum = 0.0, exclusive_maximum = 1.0, default = 0.999)]
        beta_2: f64,
        /// ε
        #[serde(default = "default_epsilon")]
        #[schema(exclusive_minimum = 0.0, default = 1e-8)]
        epsilon: f64,
        /// What ε is added to.
        #[serde(default = "AdamEpsilon::uncorrected")]
        epsilon_form: AdamEpsilon,
    },
}

/// What ε is added to in the Adam family. `uncorrected` with ε is `bias_corrected` with ε/√(1 − β₂ᵗ):
/// a larger ε in the first steps, the same one later.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdamEpsilon {
    /// m̂/(√v̂ + ε) with v̂ = v/(1 − β₂ᵗ) (Kingma & Ba 2015, algorithm 1).
    #[default]
    BiasCorrected,
    /// m̂·√(1 − β₂ᵗ)/(√v + ε) (Kingma & Ba 2015, end of section 2; the tuning playbook; Choi et al. 2019).
    Uncorrected,
}

impl AdamEpsilon {
    fn uncorrected() -> Self {
        Self::Uncorrected
    }
}

/// Where ε stands in RMSProp.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RmsPropEpsilon {
    /// g/√(v + ε) (TensorFlow, Choi et al. 2019).
    #[default]
    InsideRoot,
    /// g/(√v + ε) (PyTorch).
    OutsideRoot,
}

/// What RMSProp's average of squares starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialSquare {
    /// 1, so that the first steps are small (TensorFlow 1, Choi et al. 2019).
    #[default]
    One,
    /// 0 (PyTorch).
    Zero,
}

fn default_sgd_learning_rate() -> f64 {
    0.01
}
fn default_adam_learning_rate() -> f64 {
    0.001
}
fn default_momentum() -> f64 {
    0.9
}
fn default_rho() -> f64 {
    0.9
}
fn default_beta_1() -> f64 {
    0.9
}
fn default_beta_2() -> f64 {
    0.999
}
fn default_epsilon() -> f64 {
    1e-8
}
fn default_weight_decay() -> f64 {
    0.01
}

impl Optimizer {
    /// Adam with its published defaults: the first choice for tabular data, MLPs and recurrent networks.
    pub fn adam() -> Self {
        Self::Adam {
            learning_rate: default_adam_learning_rate(),
            beta_1: default_beta_1(),
            beta_2: default_beta_2(),
            epsilon: default_epsilon(),
            epsilon_form: AdamEpsilon::BiasCorrected,
        }
    }

    /// AdamW: the first choice for transformers.
    pub fn adamw() -> Self {
        Self::AdamW {
            learning_rate: default_adam_learning_rate(),
            beta_1: default_beta_1(),
            beta_2: default_beta_2(),
            epsilon: default_epsilon(),
            epsilon_form: AdamEpsilon::BiasCorrected,
            weight_decay: default_weight_decay(),
        }
    }

    /// Plain gradient descent.
    pub fn sgd(learning_rate: f64) -> Self {
        Self::Sgd {
            learning_rate,
            weight_decay: 0.0,
        }
    }

    /// Nesterov momentum: with γ = 0.9, the first choice for convolutional networks.
    pub fn nesterov(learning_rate: f64, momentum: f64) -> Self {
        Self::SgdNesterov {
            learning_rate,
            momentum,
            weight_decay: 0.0,
        }
    }

    /// The rule of thumb for a family of models, before anything is measured.
    pub fn first_for(model: &super::Model) -> Self {
        match model {
            super::Model::Cnn { .. } | super::Model::Resnet { .. } => {
                Self::nesterov(default_sgd_learning_rate(), default_momentum())
            }
            super::Model::TransformerEncoder { .. } | super::Model::TransformerLm { .. } => {
                Self::adamw()
            }
            super::Model::Mlp { .. }
            | super::Model::Rnn { .. }
            | super::Model::Sequential { .. }
            | super::Model::External { .. } => Self::adam(),
        }
    }

    /// The family's name.
    pub fn family(&self) -> &'static str {
        match self {
            Self::Sgd { .. } => "sgd",
            Self::SgdMomentum { .. } => "sgd_momentum",
            Self::SgdNesterov { .. } => "sgd_nesterov",
            Self::RmsProp { .. } => "rmsprop",
            Self::Adam { .. } => "adam",
            Self::AdamW { .. } => "adamw",
            Self::NAdam { .. } => "nadam",
        }
    }

    /// η
    pub fn learning_rate(&self) -> f64 {
        match self {
            Self::Sgd { learning_rate, .. }
            | Self::SgdMomentum { learning_rate, .. }
            | Self::SgdNesterov { learning_rate, .. }
            | Self::RmsProp { learning_rate, .. }
            | Self::Adam { learning_rate, .. }
            | Self::AdamW { learning_rate, .. }
            | Self::NAdam { learning_rate, .. } => *learning_rate,
        }
    }

    /// Numbers of optimizer state kept for each parameter.
    pub fn state_per_parameter(&self) -> u64 {
        match self {
            Self::Sgd { .. } => 0,
            Self::SgdMomentum { .. } | Self::SgdNesterov { .. } => 1,
            Self::RmsProp { momentum, .. } => {
                if *momentum > 0.0 {
                    2
                } else {
                    1
                }
            }
            Self::Adam { .. } | Self::AdamW { .. } | Self::NAdam { .. } => 2,
        }
    }
}

/// What of an optimizer decides which arithmetic a step does and which state it keeps, its numbers left out:
/// two optimizers of one form take the same time and the same memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct OptimizerForm {
    family: &'static str,
    state_per_parameter: u64,
    decays_weights: bool,
    adam_epsilon: Option<AdamEpsilon>,
    rmsprop_epsilon: Option<RmsPropEpsilon>,
}

impl Optimizer {
    /// Its form.
    pub fn form(&self) -> OptimizerForm {
        let decays_weights = match self {
            Self::Sgd { weight_decay, .. }
            | Self::SgdMomentum { weight_decay, .. }
            | Self::SgdNesterov { weight_decay, .. }
            | Self::AdamW { weight_decay, .. } => *weight_decay > 0.0,
            Self::RmsProp { .. } | Self::Adam { .. } | Self::NAdam { .. } => false,
        };
        let adam_epsilon = match self {
            Self::Adam { epsilon_form, .. }
            | Self::AdamW { epsilon_form, .. }
            | Self::NAdam { epsilon_form, .. } => Some(*epsilon_form),
            _ => None,
        };
        let rmsprop_epsilon = match self {
            Self::RmsProp { epsilon_form, .. } => Some(*epsilon_form),
            _ => None,
        };
        OptimizerForm {
            family: self.family(),
            state_per_parameter: self.state_per_parameter(),
            decays_weights,
            adam_epsilon,
            rmsprop_epsilon,
        }
    }
}

/// How the learning rate changes over training: a factor on the optimizer's. Step t counts from 1; over
/// the first `warm_up_steps` steps the factor rises linearly to 1, t/warm_up_steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// 1: what to start a project with.
    Constant {
        /// Steps of warm-up.
        #[serde(default)]
        #[schema(maximum = 4294967295u64)]
        warm_up_steps: u64,
    },
    /// Falls linearly from 1 to `final_factor` over `decay_steps` steps after the warm-up, and stays there.
    Linear {
        /// Steps of warm-up.
        #[serde(default)]
        #[schema(maximum = 4294967295u64)]
        warm_up_steps: u64,
        /// Steps of the fall.
        #[schema(minimum = 1, maximum = 4294967295u64)]
        decay_steps: u64,
        /// What it falls to.
        #[serde(default)]
        #[schema(minimum = 0.0, maximum = 1.0)]
        final_factor: f64,
    },
    /// Falls along half a cosine (Loshchilov & Hutter 2017, without restarts).
    Cosine {
        /// Steps of warm-up.
        #[serde(default)]
        #[schema(maximum = 4294967295u64)]
        warm_up_steps: u64,
        /// Steps of the fall.
        #[schema(minimum = 1, maximum = 4294967295u64)]
        decay_steps: u64,
        /// What it falls to.
        #[serde(default)]
        #[schema(minimum = 0.0, maximum = 1.0)]
        final_factor: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Constant { warm_up_steps: 0 }
    }
}

impl Schedule {
    /// The factor on the learning rate at a step, counted from 1.
    pub fn factor(&self, step: u64) -> f64 {
        let warm_up_steps = self.warm_up_steps();
        if step <= warm_up_steps {
            return step as f64 / warm_up_steps as f64;
        }
        // 0 at the first step after the warm-up, 1 from `decay_steps` later on.
        let progress = |decay_steps: u64| {
            ((step - warm_up_steps - 1) as f64 / decay_steps.max(1) as f64).min(1.0)
        };
        match *self {
            Self::Constant { .. } => 1.0,
            Self::Linear {
                decay_steps,
                final_factor,
                ..
            } => 1.0 - (1.0 - final_factor) * progress(decay_steps),
            Self::Cosine {
                decay_steps,
                final_factor,
                ..
            } => {
                let fall = (1.0 + (PI * progress(decay_steps)).cos()) / 2.0;
                final_factor + (1.0 - final_factor) * fall
            }
        }
    }

    /// Steps of warm-up.
    pub fn warm_up_steps(&self) -> u64 {
        match *self {
            Self::Constant { warm_up_steps }
            | Self::Linear { warm_up_steps, .. }
            | Self::Cosine { warm_up_steps, .. } => warm_up_steps,
        }
    }
}

/// How gradients are limited before the optimizer sees them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum GradientClipping {
    /// Not at all.
    None {},
    /// All gradients together are scaled down to this norm where theirs is larger (Pascanu et al. 2013).
    GlobalNorm {
        /// The largest norm.
        #[schema(exclusive_minimum = 0.0)]
        max_norm: f64,
    },
    /// Each number of a gradient is cut off at ± this.
    Value {
        /// The largest magnitude.
        #[schema(exclusive_minimum = 0.0)]
        max_value: f64,
    },
}

impl Default for GradientClipping {
    fn default() -> Self {
        Self::None {}
    }
}

impl GradientClipping {
    /// The rule of thumb for a family of models: recurrent networks need it.
    pub fn first_for(model: &super::Model) -> Self {
        match model {
            super::Model::Rnn { .. } => Self::GlobalNorm { max_norm: 1.0 },
            _ => Self::None {},
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_pass_through_the_points_that_define_them() {
        let close = |schedule: &Schedule, step: u64, expected: f64| {
            let factor = schedule.factor(step);
            assert!(
                (factor - expected).abs() < 1e-12,
                "{schedule:?} at {step}: {factor} instead of {expected}"
            );
        };
        let constant = Schedule::Constant { warm_up_steps: 4 };
        for (step, expected) in [(1, 0.25), (2, 0.5), (4, 1.0), (5, 1.0), (1_000_000, 1.0)] {
            close(&constant, step, expected);
        }
        close(&Schedule::default(), 1, 1.0);
        let linear = Schedule::Linear {
            warm_up_steps: 2,
            decay_steps: 10,
            final_factor: 0.2,
        };
        for (step, expected) in [(1, 0.5), (2, 1.0), (3, 1.0), (8, 0.6), (13, 0.2), (99, 0.2)] {
            close(&linear, step, expected);
        }
        let cosine = Schedule::Cosine {
            warm_up_steps: 0,
            decay_steps: 8,
            final_factor: 0.0,
        };
        let quarter = (1.0 + (PI / 4.0).cos()) / 2.0;
        for (step, expected) in [(1, 1.0), (3, quarter), (5, 0.5), (9, 0.0), (50, 0.0)] {
            close(&cosine, step, expected);
        }
    }

    #[test]
    fn every_family_has_its_first_optimizer() {
        let first = |value: serde_json::Value| {
            let model = serde_json::from_value(value).expect("a model");
            Optimizer::first_for(&model).family()
        };
        for (family, optimizer) in [
            ("mlp", "adam"),
            ("cnn", "sgd_nesterov"),
            ("resnet", "sgd_nesterov"),
            ("transformer_encoder", "adamw"),
            ("transformer_lm", "adamw"),
            ("rnn", "adam"),
        ] {
            assert_eq!(first(serde_json::json!({"family": family})), optimizer);
        }
    }
}
