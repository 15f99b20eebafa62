//! The optimizers with their update rules, and what goes with them.

use super::parameters::{PLAYBOOK, choice, component, positive, share, whole};
use super::{
    Component, Hyperparameter, OptimizerFamily, Parameter, Provenance, Scale, SearchRange,
};

const CHOI: Provenance = Provenance {
    source: "Choi et al. 2019, On Empirical Comparisons of Optimizers for Deep Learning",
    url: "https://arxiv.org/abs/1910.05446",
};

const POSITIVE: &str = "above 0";
const FRACTION: &str = "at least 0 and below 1";

const fn log_range(quantity: &'static str, lower: f64, upper: f64) -> SearchRange {
    SearchRange {
        quantity,
        lower,
        upper,
        scale: Scale::Log,
    }
}

fn sgd_learning_rate(quantity: &'static str) -> Hyperparameter {
    Hyperparameter {
        name: "learning_rate",
        symbol: "η",
        default: 0.01,
        allowed: POSITIVE,
        search_space: log_range(quantity, 1e-3, 10.0),
    }
}

fn momentum() -> Hyperparameter {
    Hyperparameter {
        name: "momentum",
        symbol: "γ",
        default: 0.9,
        allowed: FRACTION,
        search_space: log_range("1 - momentum", 1e-3, 1.0),
    }
}

fn adam_hyperparameters() -> Vec<Hyperparameter> {
    vec![
        Hyperparameter {
            name: "learning_rate",
            symbol: "η",
            default: 0.001,
            allowed: POSITIVE,
            search_space: log_range("learning_rate", 1e-5, 0.1),
        },
        Hyperparameter {
            name: "beta_1",
            symbol: "β₁",
            default: 0.9,
            allowed: FRACTION,
            search_space: log_range("1 - beta_1", 1e-2, 0.3),
        },
        Hyperparameter {
            name: "beta_2",
            symbol: "β₂",
            default: 0.999,
            allowed: FRACTION,
            search_space: log_range("1 - beta_2", 1e-4, 0.1),
        },
        Hyperparameter {
            name: "epsilon",
            symbol: "ε",
            default: 1e-8,
            allowed: POSITIVE,
            search_space: log_range("epsilon", 1e-10, 1.0),
        },
    ]
}

pub(super) fn optimizers() -> Vec<OptimizerFamily> {
    const EFFECTIVE: &str = "learning_rate / (1 - momentum)";
    let sutskever = || Provenance {
        source: "Sutskever, Martens, Dahl & Hinton 2013, On the importance of initialization and \
                 momentum in deep learning",
        url: "https://proceedings.mlr.press/v28/sutskever13.html",
    };
    let kingma = || Provenance {
        source: "Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, algorithm 1",
        url: "https://arxiv.org/abs/1412.6980",
    };
    let decay = |default| Hyperparameter {
        name: "weight_decay",
        symbol: "λ",
        default,
        allowed: "at least 0",
        search_space: log_range("weight_decay", 1e-6, 0.1),
    };
    let adam_form = |default| {
        vec![choice(
            "epsilon_form",
            "What ε is added to: \"bias_corrected\", √(v/(1 − β₂ᵗ)) (Kingma & Ba, algorithm 1), or \
             \"uncorrected\", √v (the playbook). ε in the second is ε/√(1 − β₂ᵗ) in the first.",
            default,
            &["bias_corrected", "uncorrected"],
        )]
    };
    vec![
        OptimizerFamily {
            name: "sgd",
            summary: "Stochastic gradient descent.",
            update_rule: "g ← g + λ·θ; θ ← θ − η·g",
            hyperparameters: vec![sgd_learning_rate("learning_rate"), decay(0.0)],
            forms: vec![],
            state_per_parameter: 0,
            provenance: vec![
                Provenance {
                    source: "Robbins & Monro 1951, A Stochastic Approximation Method",
                    url: "https://doi.org/10.1214/aoms/1177729586",
                },
                PLAYBOOK,
            ],
        },
        OptimizerFamily {
            name: "sgd_momentum",
            summary: "Stochastic gradient descent with heavy-ball momentum, no dampening.",
            update_rule: "g ← g + λ·θ; v ← γ·v + g; θ ← θ − η·v",
            hyperparameters: vec![sgd_learning_rate(EFFECTIVE), momentum(), decay(0.0)],
            forms: vec![],
            state_per_parameter: 1,
            provenance: vec![
                Provenance {
                    source: "Polyak 1964, Some methods of speeding up the convergence of iteration \
                             methods",
                    url: "https://doi.org/10.1016/0041-5553(64)90137-5",
                },
                sutskever(),
                PLAYBOOK,
            ],
        },
        OptimizerFamily {
            name: "sgd_nesterov",
            summary: "Stochastic gradient descent with Nesterov momentum, no dampening.",
            update_rule: "g ← g + λ·θ; v ← γ·v + g; θ ← θ − η·(g + γ·v)",
            hyperparameters: vec![sgd_learning_rate(EFFECTIVE), momentum(), decay(0.0)],
            forms: vec![],
            state_per_parameter: 1,
            provenance: vec![sutskever(), PLAYBOOK],
        },
        OptimizerFamily {
            name: "rmsprop",
            summary: "RMSProp: the gradient over a running root mean square, with momentum if wanted.",
            update_rule: "v ← ρ·v + (1 − ρ)·g²; m ← γ·m + η·g/√(v + ε); θ ← θ − m",
            hyperparameters: vec![
                Hyperparameter {
                    name: "learning_rate",
                    symbol: "η",
                    default: 0.001,
                    allowed: POSITIVE,
                    search_space: log_range("learning_rate", 1e-5, 0.1),
                },
                Hyperparameter {
                    name: "rho",
                    symbol: "ρ",
                    default: 0.9,
                    allowed: FRACTION,
                    search_space: log_range("1 - rho", 1e-4, 0.3),
                },
                Hyperparameter {
                    default: 0.0,
                    ..momentum()
                },
                Hyperparameter {
                    name: "epsilon",
                    symbol: "ε",
                    default: 1e-8,
                    allowed: POSITIVE,
                    search_space: log_range("epsilon", 1e-10, 1.0),
                },
            ],
            forms: vec![
                choice(
                    "epsilon_form",
                    "Where ε stands: \"inside_root\", √(v + ε) (TensorFlow), or \"outside_root\", √v + ε \
                     (PyTorch).",
                    "inside_root",
                    &["inside_root", "outside_root"],
                ),
                choice(
                    "initial_square",
                    "What v starts from: 1, so that the first steps are small (TensorFlow 1), or 0 (PyTorch).",
                    "one",
                    &["one", "zero"],
                ),
            ],
            state_per_parameter: 1,
            provenance: vec![
                Provenance {
                    source: "Tieleman & Hinton 2012, lecture 6.5: rmsprop",
                    url: "https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
                },
                CHOI,
            ],
        },
        OptimizerFamily {
            name: "adam",
            summary: "Adam.",
            update_rule: "m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g²; \
                          θ ← θ − η·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)",
            hyperparameters: adam_hyperparameters(),
            forms: adam_form("bias_corrected"),
            state_per_parameter: 2,
            provenance: vec![kingma(), CHOI],
        },
        OptimizerFamily {
            name: "adamw",
            summary: "Adam with decoupled weight decay, applied before the step.",
            update_rule: "θ ← θ·(1 − η·λ); then Adam: m ← β₁·m + (1 − β₁)·g; \
                          v ← β₂·v + (1 − β₂)·g²; θ ← θ − η·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)",
            hyperparameters: {
                let mut hyperparameters = adam_hyperparameters();
                hyperparameters.push(decay(0.01));
                hyperparameters
            },
            forms: adam_form("bias_corrected"),
            state_per_parameter: 2,
            provenance: vec![
                Provenance {
                    source: "Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, \
                             algorithm 2",
                    url: "https://arxiv.org/abs/1711.05101",
                },
                kingma(),
                CHOI,
            ],
        },
        OptimizerFamily {
            name: "nadam",
            summary: "Adam with Nesterov momentum.",
            update_rule: "m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g²; \
                          θ ← θ − η·√(1 − β₂ᵗ)/(1 − β₁ᵗ)·(β₁·m + (1 − β₁)·g)/(√v + ε)",
            hyperparameters: adam_hyperparameters(),
            forms: adam_form("uncorrected"),
            state_per_parameter: 2,
            provenance: vec![
                Provenance {
                    source: "Dozat 2016, Incorporating Nesterov Momentum into Adam",
                    url: "https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
                },
                CHOI,
                PLAYBOOK,
            ],
        },
    ]
}

fn warm_up() -> Parameter {
    whole(
        "warm_up_steps",
        "Steps over which the learning rate rises linearly from 0; a bell, like every schedule.",
        0,
        0,
        Some(u64::from(u32::MAX)),
    )
}

pub(super) fn schedules() -> Vec<Component> {
    let decay = || {
        vec![
            warm_up(),
            whole(
                "decay_steps",
                "Steps of the fall, after the warm-up.",
                None,
                1,
                Some(u64::from(u32::MAX)),
            ),
            share(
                "final_factor",
                "What the factor falls to, and stays at.",
                0.0,
            ),
        ]
    };
    vec![
        component(
            "constant",
            "The learning rate stays: what to start a project with.",
            vec![warm_up()],
            vec![PLAYBOOK],
        ),
        component(
            "linear",
            "The learning rate falls linearly.",
            decay(),
            vec![PLAYBOOK],
        ),
        component(
            "cosine",
            "The learning rate falls along half a cosine.",
            decay(),
            vec![
                Provenance {
                    source: "Loshchilov & Hutter 2017, SGDR (without restarts)",
                    url: "https://arxiv.org/abs/1608.03983",
                },
                PLAYBOOK,
            ],
        ),
    ]
}

pub(super) fn gradient_clipping() -> Vec<Component> {
    vec![
        component("none", "Gradients are taken as they are.", vec![], vec![]),
        component(
            "global_norm",
            "All gradients together are scaled down where their norm is larger; 1 by default for an rnn.",
            vec![positive("max_norm", "The largest norm.", None, None)],
            vec![Provenance {
                source: "Pascanu, Mikolov & Bengio 2013, On the difficulty of training recurrent neural \
                         networks, algorithm 1",
                url: "https://arxiv.org/abs/1211.5063",
            }],
        ),
        component(
            "value",
            "Each number of a gradient is cut off.",
            vec![positive("max_value", "The largest magnitude.", None, None)],
            vec![],
        ),
    ]
}
