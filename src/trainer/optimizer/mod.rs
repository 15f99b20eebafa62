//! From an optimizer's definition to one that steps, with every hyperparameter set: burn's defaults differ
//! from the published ones (ε 1e-5 instead of 1e-8, dampening 0.1 instead of 0), and so do some of its forms.

mod adaptive;
mod clipping;
mod rmsprop;

use burn::optim::decay::WeightDecayConfig;
use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig, momentum::MomentumConfig};

use crate::study::{AdamEpsilon, InitialSquare, Optimizer, RmsPropEpsilon};
use adaptive::Adaptive;
use rmsprop::RmsProp;

pub(super) use clipping::{clip, square_norm};

/// The optimizer, to be stepped with a learning rate of its own each time.
pub(super) fn init(optimizer: &Optimizer) -> ModuleOptimizer {
    match *optimizer {
        Optimizer::Sgd { weight_decay, .. } => sgd(None, weight_decay),
        Optimizer::SgdMomentum {
            momentum,
            weight_decay,
            ..
        } => sgd(Some((momentum, false)), weight_decay),
        Optimizer::SgdNesterov {
            momentum,
            weight_decay,
            ..
        } => sgd(Some((momentum, true)), weight_decay),
        Optimizer::RmsProp {
            rho,
            momentum,
            epsilon,
            epsilon_form,
            initial_square,
            ..
        } => ModuleOptimizer::from(RmsProp {
            rho,
            momentum,
            epsilon,
            epsilon_inside_root: epsilon_form == RmsPropEpsilon::InsideRoot,
            initial_square: match initial_square {
                InitialSquare::One => 1.0,
                InitialSquare::Zero => 0.0,
            },
        }),
        Optimizer::Adam {
            beta_1,
            beta_2,
            epsilon,
            epsilon_form: AdamEpsilon::BiasCorrected,
            ..
        } => AdamConfig::new()
            .with_beta_1(beta_1 as f32)
            .with_beta_2(beta_2 as f32)
            .with_epsilon(epsilon as f32)
            .with_amsgrad(false)
            .with_weight_decay(None)
            .with_grad_clipping(None)
            .init(),
        Optimizer::AdamW {
            beta_1,
            beta_2,
            epsilon,
            epsilon_form: AdamEpsilon::BiasCorrected,
            weight_decay,
            ..
        } => AdamWConfig::new()
            .with_beta_1(beta_1 as f32)
            .with_beta_2(beta_2 as f32)
            .with_epsilon(epsilon as f32)
            .with_weight_decay(weight_decay as f32)
            .with_cautious_weight_decay(false)
            .with_amsgrad(false)
            .with_grad_clipping(None)
            .init(),
        Optimizer::Adam {
            beta_1,
            beta_2,
            epsilon,
            epsilon_form,
            ..
        } => adaptive(beta_1, beta_2, epsilon, epsilon_form, false, 0.0),
        Optimizer::AdamW {
            beta_1,
            beta_2,
            epsilon,
            epsilon_form,
            weight_decay,
            ..
        } => adaptive(beta_1, beta_2, epsilon, epsilon_form, false, weight_decay),
        Optimizer::NAdam {
            beta_1,
            beta_2,
            epsilon,
            epsilon_form,
            ..
        } => adaptive(beta_1, beta_2, epsilon, epsilon_form, true, 0.0),
    }
}

fn adaptive(
    beta_1: f64,
    beta_2: f64,
    epsilon: f64,
    form: AdamEpsilon,
    nesterov: bool,
    decoupled_weight_decay: f64,
) -> ModuleOptimizer {
    ModuleOptimizer::from(Adaptive {
        beta_1,
        beta_2,
        epsilon,
        bias_corrected_epsilon: form == AdamEpsilon::BiasCorrected,
        nesterov,
        decoupled_weight_decay,
    })
}

fn sgd(momentum: Option<(f64, bool)>, weight_decay: f64) -> ModuleOptimizer {
    let decay = (weight_decay > 0.0).then(|| WeightDecayConfig::new(weight_decay as f32));
    SgdConfig::new()
        .with_weight_decay(decay)
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
        let learning_rate = optimizer.learning_rate();
        let mut optimizer = init(optimizer);
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
    fn row_13_sgd_follows_its_formula() {
        assert_same(
            &Optimizer::sgd(0.1),
            &by_formula(|_, theta, g, _| theta - 0.1 * g),
        );
        let decayed = Optimizer::Sgd {
            learning_rate: 0.1,
            weight_decay: 0.3,
        };
        assert_same(
            &decayed,
            &by_formula(|_, theta, g, _| theta - 0.1 * (g + 0.3 * theta)),
        );
    }

    #[test]
    fn row_13_momentum_and_nesterov_follow_their_formulae_without_dampening() {
        for weight_decay in [0.0, 0.3] {
            let optimizer = Optimizer::SgdMomentum {
                learning_rate: 0.1,
                momentum: 0.8,
                weight_decay,
            };
            assert_same(
                &optimizer,
                &by_formula(|_, theta, g, state| {
                    state[0] = 0.8 * state[0] + g + weight_decay * theta;
                    theta - 0.1 * state[0]
                }),
            );
            let optimizer = Optimizer::SgdNesterov {
                learning_rate: 0.1,
                momentum: 0.8,
                weight_decay,
            };
            assert_same(
                &optimizer,
                &by_formula(|_, theta, g, state| {
                    let g = g + weight_decay * theta;
                    state[0] = 0.8 * state[0] + g;
                    theta - 0.1 * (g + 0.8 * state[0])
                }),
            );
        }
    }

    #[test]
    fn rmsprop_follows_each_of_its_forms() {
        let (rho, epsilon) = (0.7, 0.05);
        for momentum in [0.0, 0.6] {
            for (epsilon_form, inside) in [
                (RmsPropEpsilon::InsideRoot, true),
                (RmsPropEpsilon::OutsideRoot, false),
            ] {
                for (initial_square, first) in
                    [(InitialSquare::One, 1.0), (InitialSquare::Zero, 0.0)]
                {
                    let optimizer = Optimizer::RmsProp {
                        learning_rate: 0.1,
                        rho,
                        momentum,
                        epsilon,
                        epsilon_form,
                        initial_square,
                    };
                    let expected = by_formula(|step, theta, g, state| {
                        let before = if step == 1 { first } else { state[0] };
                        state[0] = rho * before + (1.0 - rho) * g * g;
                        let scale = if inside {
                            (state[0] + epsilon).sqrt()
                        } else {
                            state[0].sqrt() + epsilon
                        };
                        state[1] = momentum * state[1] + 0.1 * g / scale;
                        theta - state[1]
                    });
                    assert_same(&optimizer, &expected);
                }
            }
        }
    }

    const BETA_1: f64 = 0.8;
    const BETA_2: f64 = 0.95;
    const EPSILON: f64 = 0.01;

    /// Kingma & Ba 2015: algorithm 1 with ε added to √v̂, or the last remark of section 2 with ε added to √v;
    /// with Dozat's look ahead.
    fn adam_update(
        step: i32,
        g: f64,
        state: &mut [f64; 2],
        form: AdamEpsilon,
        nesterov: bool,
    ) -> f64 {
        state[0] = BETA_1 * state[0] + (1.0 - BETA_1) * g;
        state[1] = BETA_2 * state[1] + (1.0 - BETA_2) * g * g;
        let direction = if nesterov {
            BETA_1 * state[0] + (1.0 - BETA_1) * g
        } else {
            state[0]
        };
        let (first, second) = (1.0 - BETA_1.powi(step), 1.0 - BETA_2.powi(step));
        match form {
            AdamEpsilon::BiasCorrected => {
                (direction / first) / ((state[1] / second).sqrt() + EPSILON)
            }
            AdamEpsilon::Uncorrected => {
                direction / first * second.sqrt() / (state[1].sqrt() + EPSILON)
            }
        }
    }

    #[test]
    fn row_13_adam_adamw_and_nadam_follow_their_formulae_in_both_forms() {
        for epsilon_form in [AdamEpsilon::BiasCorrected, AdamEpsilon::Uncorrected] {
            let adam = Optimizer::Adam {
                learning_rate: 0.1,
                beta_1: BETA_1,
                beta_2: BETA_2,
                epsilon: EPSILON,
                epsilon_form,
            };
            assert_same(
                &adam,
                &by_formula(|step, theta, g, state| {
                    theta - 0.1 * adam_update(step, g, state, epsilon_form, false)
                }),
            );
            let adamw = Optimizer::AdamW {
                learning_rate: 0.1,
                beta_1: BETA_1,
                beta_2: BETA_2,
                epsilon: EPSILON,
                epsilon_form,
                weight_decay: 0.5,
            };
            assert_same(
                &adamw,
                &by_formula(|step, theta, g, state| {
                    theta * (1.0 - 0.1 * 0.5)
                        - 0.1 * adam_update(step, g, state, epsilon_form, false)
                }),
            );
            let nadam = Optimizer::NAdam {
                learning_rate: 0.1,
                beta_1: BETA_1,
                beta_2: BETA_2,
                epsilon: EPSILON,
                epsilon_form,
            };
            assert_same(
                &nadam,
                &by_formula(|step, theta, g, state| {
                    theta - 0.1 * adam_update(step, g, state, epsilon_form, true)
                }),
            );
        }
    }
}
