//! RMSProp with its forms as fields: burn's has one of them.
//!
//! v ← ρ·v + (1 − ρ)·g² from v₀ ∈ {0, 1}; u = g/√(v + ε) or g/(√v + ε); m ← γ·m + η·u; θ ← θ − m
//! (Tieleman & Hinton 2012, lecture 6.5; momentum as in Choi et al. 2019, arXiv:1910.05446, table 1).

use burn::optim::{LearningRate, Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{Device, Tensor};

#[derive(Debug, Clone)]
pub(super) struct RmsProp {
    pub rho: f64,
    pub momentum: f64,
    pub epsilon: f64,
    pub epsilon_inside_root: bool,
    /// What v starts from.
    pub initial_square: f64,
}

/// What is kept for a parameter.
#[derive(Clone)]
pub(super) struct RmsPropState<const D: usize> {
    square: Tensor<D>,
    /// Absent without momentum.
    velocity: Option<Tensor<D>>,
}

impl Optimizer for RmsProp {
    type State<const D: usize> = RmsPropState<D>;

    fn step<const D: usize>(
        &self,
        learning_rate: LearningRate,
        parameters: Tensor<D>,
        gradient: Tensor<D>,
        state: Option<Self::State<D>>,
    ) -> (Tensor<D>, Option<Self::State<D>>) {
        let newest = gradient.clone().square() * (1.0 - self.rho);
        let (square, velocity) = match state {
            None => (newest + self.rho * self.initial_square, None),
            Some(old) => (old.square * self.rho + newest, old.velocity),
        };
        let scale = if self.epsilon_inside_root {
            (square.clone() + self.epsilon).sqrt()
        } else {
            square.clone().sqrt() + self.epsilon
        };
        let update = gradient / scale * learning_rate;
        if self.momentum == 0.0 {
            let state = RmsPropState {
                square,
                velocity: None,
            };
            return (parameters - update, Some(state));
        }
        let velocity = match velocity {
            None => update,
            Some(velocity) => velocity * self.momentum + update,
        };
        let state = RmsPropState {
            square,
            velocity: Some(velocity.clone()),
        };
        (parameters - velocity, Some(state))
    }

    fn to_device<const D: usize>(state: Self::State<D>, device: &Device) -> Self::State<D> {
        RmsPropState {
            square: state.square.to_device(device),
            velocity: state.velocity.map(|velocity| velocity.to_device(device)),
        }
    }
}

/// Optimizers of burn can be saved, so their states say how. (The derive of burn is for its own crates.)
impl<const D: usize> RecordState for RmsPropState<D> {
    fn state_flatten(&self, prefix: &str, out: &mut StateSink) {
        out.push_tensor(prefix, SQUARE, self.square.to_data());
        if let Some(velocity) = &self.velocity {
            out.push_tensor(prefix, VELOCITY, velocity.to_data());
        }
    }

    fn state_unflatten(prefix: &str, src: &mut StateSource, device: &Device) -> Option<Self> {
        let mut tensor = |leaf: &str| {
            src.take_tensor(prefix, leaf)
                .map(|data| Tensor::from_data(data, device))
        };
        Some(Self {
            square: tensor(SQUARE)?,
            velocity: tensor(VELOCITY),
        })
    }
}

const SQUARE: &str = "square";
const VELOCITY: &str = "velocity";
