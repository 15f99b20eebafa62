//! From an optimizer's definition to burn's, with every hyperparameter set: burn's defaults differ
//! from the published ones (ε 1e-5 instead of 1e-8, dampening 0.1 instead of 0).

use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};

use crate::study::Optimizer;

/// burn's optimizer and the learning rate to step it with.
pub(super) fn init(optimizer: &Optimizer) -> (ModuleOptimizer, f64) {
    match *optimizer {
        Optimizer::Sgd { learning_rate } => (sgd(None), learning_rate),
        Optimizer::SgdMomentum {
            learning_rate,
            momentum,
        } => (sgd(Some((momentum, false))), learning_rate),
        Optimizer::SgdNesterov {
            learning_rate,
            momentum,
        } => (sgd(Some((momentum, true))), learning_rate),
        Optimizer::Adam {
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
        } => (
            AdamConfig::new()
                .with_beta_1(beta_1 as f32)
                .with_beta_2(beta_2 as f32)
                .with_epsilon(epsilon as f32)
                .with_amsgrad(false)
                .with_weight_decay(None)
                .with_grad_clipping(None)
                .init(),
            learning_rate,
        ),
        Optimizer::AdamW {
            learning_rate,
            beta_1,
            beta_2,
            epsilon,
            weight_decay,
        } => (
            AdamWConfig::new()
                .with_beta_1(beta_1 as f32)
                .with_beta_2(beta_2 as f32)
                .with_epsilon(epsilon as f32)
                .with_weight_decay(weight_decay as f32)
                .with_cautious_weight_decay(false)
                .with_amsgrad(false)
                .with_grad_clipping(None)
                .init(),
            learning_rate,
        ),
    }
}

fn sgd(momentum: Option<(f64, bool)>) -> ModuleOptimizer {
    SgdConfig::new()
        .with_weight_decay(None)
        .with_momentum(momentum.map(|(momentum, nesterov)| {
            MomentumConfig::new()
                .with_momentum(momentum)
                .with_dampening(0.0)
                .with_nesterov(nesterov)
        }))
        .with_gradient_clipping(None)
        .init()
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor};

    use super::*;

    const CURVATURE: [f64; 2] = [3.0, 0.5];
    const START: [f64; 2] = [1.0, -2.0];
    const STEPS: usize = 5;

    #[derive(Module, Debug)]
    struct Point {
        theta: Param<Tensor<1>>,
    }

    /// Five steps of ½·Σ hᵢθᵢ² with burn, single precision.
    fn with_burn(optimizer: &Optimizer) -> Vec<[f64; 2]> {
        let device = Device::flex().autodiff();
        let (mut optimizer, learning_rate) = init(optimizer);
        let curvature = Tensor::<1>::from_floats(CURVATURE.map(|h| h as f32), &device);
        let start = Tensor::<1>::from_floats(START.map(|t| t as f32), &device);
        let mut point = Point {
            theta: Param::from_tensor(start),
        };
        (0..STEPS)
            .map(|_| {
                let loss = (point.theta.val().square() * curvature.clone()).sum() * 0.5;
                let gradients = GradientsParams::from_grads(loss.backward(), &point);
                point = optimizer.step(learning_rate, point.clone(), gradients);
                let theta: Vec<f32> = point.theta.val().into_data().try_to_vec().expect("is f32");
                [f64::from(theta[0]), f64::from(theta[1])]
            })
            .collect()
    }

    /// The same with the published formula, double precision. `rule` gets the step's number from 1,
    /// θ, the gradient and two numbers of state.
    fn by_formula(rule: impl Fn(i32, f64, f64, &mut [f64; 2]) -> f64) -> Vec<[f64; 2]> {
        let mut theta = START;
        let mut state = [[0.0; 2]; 2];
        (1..=STEPS)
            .map(|step| {
                for coordinate in 0..2 {
                    let gradient = CURVATURE[coordinate] * theta[coordinate];
                    theta[coordinate] = rule(
                        i32::try_from(step).expect("small"),
                        theta[coordinate],
                        gradient,
                        &mut state[coordinate],
                    );
                }
                theta
            })
            .collect()
    }

    fn assert_same(optimizer: &Optimizer, expected: &[[f64; 2]]) {
        for (step, (burn, formula)) in with_burn(optimizer).iter().zip(expected).enumerate() {
            for (burn, formula) in burn.iter().zip(formula) {
                assert!(
                    (burn - formula).abs() < 3e-5 * formula.abs().max(1.0),
                    "{optimizer:?} step {step}: burn {burn}, formula {formula}"
                );
            }
        }
    }

    #[test]
    fn sgd_follows_its_formula() {
        let optimizer = Optimizer::Sgd { learning_rate: 0.1 };
        assert_same(&optimizer, &by_formula(|_, theta, g, _| theta - 0.1 * g));
    }

    #[test]
    fn momentum_and_nesterov_follow_their_formulae_without_dampening() {
        let optimizer = Optimizer::SgdMomentum {
            learning_rate: 0.1,
            momentum: 0.8,
        };
        assert_same(
            &optimizer,
            &by_formula(|_, theta, g, state| {
                state[0] = 0.8 * state[0] + g;
                theta - 0.1 * state[0]
            }),
        );
        let optimizer = Optimizer::SgdNesterov {
            learning_rate: 0.1,
            momentum: 0.8,
        };
        assert_same(
            &optimizer,
            &by_formula(|_, theta, g, state| {
                state[0] = 0.8 * state[0] + g;
                theta - 0.1 * (g + 0.8 * state[0])
            }),
        );
    }

    /// Kingma & Ba 2015, algorithm 1, with ε outside the root.
    fn adam_update(step: i32, g: f64, state: &mut [f64; 2]) -> f64 {
        let (beta_1, beta_2, epsilon) = (0.8, 0.95, 0.01);
        state[0] = beta_1 * state[0] + (1.0 - beta_1) * g;
        state[1] = beta_2 * state[1] + (1.0 - beta_2) * g * g;
        let first = state[0] / (1.0 - f64::powi(beta_1, step));
        let second = state[1] / (1.0 - f64::powi(beta_2, step));
        first / (second.sqrt() + epsilon)
    }

    #[test]
    fn adam_follows_its_formula_with_epsilon_outside_the_root() {
        let optimizer = Optimizer::Adam {
            learning_rate: 0.1,
            beta_1: 0.8,
            beta_2: 0.95,
            epsilon: 0.01,
        };
        assert_same(
            &optimizer,
            &by_formula(|step, theta, g, state| theta - 0.1 * adam_update(step, g, state)),
        );
    }

    #[test]
    fn adamw_decays_the_parameters_before_the_step() {
        let optimizer = Optimizer::AdamW {
            learning_rate: 0.1,
            beta_1: 0.8,
            beta_2: 0.95,
            epsilon: 0.01,
            weight_decay: 0.5,
        };
        assert_same(
            &optimizer,
            &by_formula(|step, theta, g, state| {
                theta * (1.0 - 0.1 * 0.5) - 0.1 * adam_update(step, g, state)
            }),
        );
    }
}
