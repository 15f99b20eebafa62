//! The noisy quadratic model without sampling (Zhang et al. 2019, arXiv:1907.04164): the expected loss
//! ½Σhᵢ·E[θᵢ²] under SGD with heavy-ball momentum, from the recursion of the second moments of parameters
//! and velocities.
//!
//! With g = hθ + ξ, Var ξ = h/B, v ← γv + g and θ ← θ − ηv:
//! E[θv′] = γE[θv] + h·E[θ²], E[v′²] = γ²E[v²] + 2γh·E[θv] + h²E[θ²] + h/B,
//! E[θ′v′] = E[θv′] − η·E[v′²], E[θ′²] = E[θ²] − 2η·E[θv′] + η²E[v′²].

use super::learner::Learner;
use super::loader::LoadTimes;
use super::objective::Evaluation;
use super::session::SessionError;
use crate::probe::ProbeSpec;
use crate::study::{
    BuiltinDataset, Dataset, EvaluationMetric, GradientClipping, Optimizer, Schedule,
    is_noisy_quadratic,
};

/// Second moments along one direction.
#[derive(Debug, Clone, Copy)]
struct Moments {
    curvature: f64,
    parameter: f64,
    mixed: f64,
    velocity: f64,
}

/// The recursion.
#[derive(Debug)]
pub(super) struct Quadratic {
    directions: Vec<Moments>,
    batch_size: f64,
    learning_rate: f64,
    momentum: f64,
    weight_decay: f64,
    schedule: Schedule,
    steps: u64,
}

impl Quadratic {
    pub(super) fn new(spec: &ProbeSpec) -> Result<Self, SessionError> {
        let unknown = || SessionError::NoExpectation;
        let Dataset::Builtin(dataset) = &spec.workload.dataset else {
            return Err(unknown());
        };
        let BuiltinDataset::NoisyQuadratic { dimensions, .. } = dataset else {
            return Err(unknown());
        };
        let is_plain = spec.gradient_clipping == GradientClipping::None {};
        if !is_noisy_quadratic(dataset, &spec.workload.model) || !is_plain {
            return Err(unknown());
        }
        let (learning_rate, momentum, weight_decay) = match spec.optimizer {
            Optimizer::Sgd {
                learning_rate,
                weight_decay,
            } => (learning_rate, 0.0, weight_decay),
            Optimizer::SgdMomentum {
                learning_rate,
                momentum,
                weight_decay,
            } => (learning_rate, momentum, weight_decay),
            _ => return Err(unknown()),
        };
        Ok(Self {
            directions: (1..=*dimensions)
                .map(|index| Moments {
                    curvature: 1.0 / index as f64,
                    parameter: 1.0,
                    mixed: 0.0,
                    velocity: 0.0,
                })
                .collect(),
            batch_size: spec.batch_size.as_f64(),
            learning_rate,
            momentum,
            weight_decay,
            schedule: spec.schedule.clone(),
            steps: 0,
        })
    }

    fn loss(&self) -> f64 {
        let twice: f64 = self
            .directions
            .iter()
            .map(|it| it.curvature * it.parameter)
            .sum();
        twice / 2.0
    }
}

impl Learner for Quadratic {
    fn step(&mut self) -> Result<Option<f64>, SessionError> {
        self.steps += 1;
        let rate = self.learning_rate * self.schedule.factor(self.steps);
        let gamma = self.momentum;
        for it in &mut self.directions {
            let slope = it.curvature + self.weight_decay;
            let with_velocity = gamma * it.mixed + slope * it.parameter;
            let velocity = gamma * gamma * it.velocity
                + 2.0 * gamma * slope * it.mixed
                + slope * slope * it.parameter
                + it.curvature / self.batch_size;
            it.parameter += rate * (rate * velocity - 2.0 * with_velocity);
            it.mixed = with_velocity - rate * velocity;
            it.velocity = velocity;
        }
        // Adding up the loss takes as long as the step, and an evaluation does it.
        Ok(None)
    }

    fn evaluate(&self) -> Evaluation {
        let loss = self.loss();
        Evaluation::new(loss, vec![(EvaluationMetric::ExpectedExcessLoss, loss)])
    }

    fn evaluate_examples(&self) -> (Evaluation, Vec<f64>) {
        (self.evaluate(), Vec::new())
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn set_learning_rate(&mut self, learning_rate: f64) {
        self.learning_rate = learning_rate;
    }

    fn load_times(&self) -> Option<LoadTimes> {
        None
    }

    fn chance_loss(&self) -> Option<f64> {
        None
    }

    fn chance_losses(&self) -> Option<Vec<f64>> {
        None
    }
}
