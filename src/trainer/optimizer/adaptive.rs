//! The members and forms of the Adam family that burn does not have: NAdam, and ε added to the root of the
//! uncorrected second moment.
//!
//! With t the step from 1: m ← β₁·m + (1 − β₁)·g, v ← β₂·v + (1 − β₂)·g², then the direction is m, or for
//! NAdam β₁·m + (1 − β₁)·g (Dozat 2016 in the form of Choi et al. 2019, arXiv:1910.05446, table 1), and
//! θ ← θ − η·√(1 − β₂ᵗ)/(1 − β₁ᵗ) · direction/(√v + ε′) with ε′ = ε, or ε·√(1 − β₂ᵗ) for the bias-corrected form.

use burn::optim::{AdaptiveMomentumState, LearningRate, Optimizer};
use burn::tensor::{Device, Tensor};

/// Adam, AdamW or NAdam with every choice made.
#[derive(Debug, Clone)]
pub(super) struct Adaptive {
    pub beta_1: f64,
    pub beta_2: f64,
    pub epsilon: f64,
    /// Whether ε is added to √v̂ instead of √v.
    pub bias_corrected_epsilon: bool,
    /// Whether the direction looks one step ahead.
    pub nesterov: bool,
    /// λ of θ ← θ·(1 − η·λ) before the step.
    pub decoupled_weight_decay: f64,
}

impl Optimizer for Adaptive {
    type State<const D: usize> = AdaptiveMomentumState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameters: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let new_first = gradient.clone() * (1.0 - self.beta_1);
        let new_second = gradient.square() * (1.0 - self.beta_2);
        let state = match state {
            None => AdaptiveMomentumState::new(1, new_first.clone(), new_second),
            Some(old) => AdaptiveMomentumState::new(
                old.time + 1,
                old.moment_1 * self.beta_1 + new_first.clone(),
                old.moment_2 * self.beta_2 + new_second,
            ),
        };
        let steps = i32::try_from(state.time).unwrap_or(i32::MAX);
        let root = (1.0 - self.beta_2.powi(steps)).sqrt();
        let factor = root / (1.0 - self.beta_1.powi(steps));
        let epsilon = if self.bias_corrected_epsilon {
            self.epsilon * root
        } else {
            self.epsilon
        };
        let direction = if self.nesterov {
            state.moment_1.clone() * self.beta_1 + new_first
        } else {
            state.moment_1.clone()
        };
        let update = direction / (state.moment_2.clone().sqrt() + epsilon);
        let parameters = if self.decoupled_weight_decay > 0.0 {
            parameters * (1.0 - learning_rate * self.decoupled_weight_decay)
        } else {
            parameters
        };
        (parameters - update * (learning_rate * factor), Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        state.to_device(device)
    }
}
