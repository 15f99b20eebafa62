//! The entries of the catalog.

use serde_json::json;

use super::{
    DatasetEntry, Hyperparameter, LossEntry, MetricEntry, ModelFamily, ModelSize, OptimizerFamily,
    Parameter, ParameterType, ProbeKindEntry, Provenance, Scale, SearchRange,
};

const PLAYBOOK: Provenance = Provenance {
    source: "Godbole, Dahl, Gilmer, Shallue & Nado 2023, Deep Learning Tuning Playbook",
    url: "https://github.com/google-research/tuning_playbook",
};
const CHOI: Provenance = Provenance {
    source: "Choi et al. 2019, On Empirical Comparisons of Optimizers for Deep Learning",
    url: "https://arxiv.org/abs/1910.05446",
};

pub(super) fn model_families() -> Vec<ModelFamily> {
    vec![ModelFamily {
        name: "mlp",
        summary: "A multilayer perceptron: linear layers with an activation and dropout between.",
        parameters: vec![
            Parameter {
                name: "hidden",
                value_type: ParameterType::IntegerList,
                summary: "Units of each hidden layer, first to last; empty for a linear model.",
                default: json!([64]),
                allowed: "a list of whole numbers, each at least 1",
                choices: vec![],
            },
            Parameter {
                name: "activation",
                value_type: ParameterType::Choice,
                summary: "What follows each hidden layer.",
                default: json!("relu"),
                allowed: "one of the choices",
                choices: vec!["relu", "gelu", "tanh", "sigmoid"],
            },
            Parameter {
                name: "dropout",
                value_type: ParameterType::Real,
                summary: "Probability that a hidden unit is dropped in training.",
                default: json!(0.0),
                allowed: "at least 0 and below 1",
                choices: vec![],
            },
        ],
        sizes: vec![
            ModelSize {
                name: "S",
                parameters: json!({"hidden": [64], "activation": "relu", "dropout": 0.0}),
            },
            ModelSize {
                name: "M",
                parameters: json!({"hidden": [512, 512], "activation": "relu", "dropout": 0.0}),
            },
            ModelSize {
                name: "L",
                parameters: json!({
                    "hidden": [2048, 2048, 2048], "activation": "relu", "dropout": 0.0
                }),
            },
        ],
        trainable_parameters: "Σ over layers of inputs·outputs + outputs, from the features \
                               through the hidden layers to the classes",
        initialisation: "weights ~ N(0, 2/inputs) before relu and gelu, N(0, 1/inputs) before tanh \
                         and sigmoid and in the last layer; biases 0",
        first_optimizer: "adam",
        provenance: vec![
            Provenance {
                source: "Rumelhart, Hinton & Williams 1986, Learning representations by \
                         back-propagating errors",
                url: "https://doi.org/10.1038/323533a0",
            },
            Provenance {
                source: "He, Zhang, Ren & Sun 2015, Delving Deep into Rectifiers (initialisation)",
                url: "https://arxiv.org/abs/1502.01852",
            },
            Provenance {
                source: "Srivastava et al. 2014, Dropout",
                url: "https://jmlr.org/papers/v15/srivastava14a.html",
            },
        ],
    }]
}

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
    let decay = Hyperparameter {
        name: "weight_decay",
        symbol: "λ",
        default: 0.01,
        allowed: "at least 0",
        search_space: log_range("weight_decay", 1e-6, 0.1),
    };
    vec![
        OptimizerFamily {
            name: "sgd",
            summary: "Stochastic gradient descent.",
            update_rule: "θ ← θ − η·g",
            hyperparameters: vec![sgd_learning_rate("learning_rate")],
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
            update_rule: "v ← γ·v + g; θ ← θ − η·v",
            hyperparameters: vec![sgd_learning_rate(EFFECTIVE), momentum()],
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
            update_rule: "v ← γ·v + g; θ ← θ − η·(g + γ·v)",
            hyperparameters: vec![sgd_learning_rate(EFFECTIVE), momentum()],
            state_per_parameter: 1,
            provenance: vec![sutskever(), PLAYBOOK],
        },
        OptimizerFamily {
            name: "adam",
            summary: "Adam, with ε outside the root.",
            update_rule: "m ← β₁·m + (1 − β₁)·g; v ← β₂·v + (1 − β₂)·g²; \
                          θ ← θ − η·(m/(1 − β₁ᵗ)) / (√(v/(1 − β₂ᵗ)) + ε)",
            hyperparameters: adam_hyperparameters(),
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
                hyperparameters.push(decay);
                hyperparameters
            },
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
    ]
}

fn whole_number(
    name: &'static str,
    summary: &'static str,
    default: u64,
    allowed: &'static str,
) -> Parameter {
    Parameter {
        name,
        value_type: ParameterType::Integer,
        summary,
        default: json!(default),
        allowed,
        choices: vec![],
    }
}

pub(super) fn datasets() -> Vec<DatasetEntry> {
    vec![
        DatasetEntry {
            name: "digits",
            summary: "1797 handwritten digits of 8×8 pixels: 1437 to train, 360 to validate.",
            task: "classification",
            parameters: vec![],
            preprocessing: "pixel/16, then less the mean and over the standard deviation of all \
                            training pixels",
            licence: "CC-BY-4.0",
            provenance: vec![Provenance {
                source: "Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI \
                         Machine Learning Repository; its test part as scikit-learn distributes it",
                url: "https://doi.org/10.24432/C50P49",
            }],
        },
        DatasetEntry {
            name: "synthetic",
            summary: "Gaussian clusters, one a class, made from a seed. A quarter as many examples \
                      to validate as to train, 1 to 2000. It is held in memory as 4-byte numbers, \
                      which count towards the memory of training.",
            task: "classification",
            parameters: vec![
                whole_number("examples", "Training examples.", 10_000, "at least 1"),
                whole_number("features", "Features of an example.", 784, "at least 1"),
                whole_number("classes", "Classes.", 10, "at least 2"),
                whole_number("seed", "Seeds the generator.", 0, "at most 2^53 - 1"),
            ],
            preprocessing: "none: each feature has a variance of about 1",
            licence: "none needed: made by this program",
            provenance: vec![Provenance {
                source: "Hastie, Tibshirani & Friedman 2009, The Elements of Statistical Learning, \
                         section 4.3 (Gaussian classes with a common covariance)",
                url: "https://hastie.su.domains/ElemStatLearn/",
            }],
        },
    ]
}

pub(super) fn losses() -> Vec<LossEntry> {
    vec![LossEntry {
        name: "cross_entropy",
        summary: "Mean over examples of −ln of the predicted probability of the label.",
        unit: "nats",
    }]
}

pub(super) fn metrics() -> Vec<MetricEntry> {
    let entry = |name, unit, summary| MetricEntry {
        name,
        unit,
        summary,
    };
    vec![
        entry(
            "block_time_per_step",
            "s",
            "Time per step of one block of steps: the raw samples.",
        ),
        entry(
            "time_per_step_median",
            "s",
            "Median over blocks of the time per step.",
        ),
        entry(
            "time_per_step_mean",
            "s",
            "Mean over blocks of the time per step.",
        ),
        entry(
            "within_run_median_half_width",
            "ratio",
            "Relative half-width of the median's 95% interval within one run; it ends the sampling.",
        ),
        entry(
            "within_run_mean_half_width",
            "ratio",
            "Relative half-width of the mean's 95% interval within one run; it ends the sampling.",
        ),
        entry("blocks", "count", "Blocks that the summary uses."),
        entry("steps_per_block", "count", "Steps in each block."),
        entry(
            "converged",
            "count",
            "1 if the sampling converged, 0 if a cap ended it.",
        ),
        entry(
            "compile_secs",
            "s",
            "The first step, apart: compilation and autotuning.",
        ),
        entry(
            "canary_time_per_step",
            "s",
            "Median time of a fixed reference step just before the sampling.",
        ),
        entry(
            "run_queue_delay_ratio",
            "ratio",
            "Time the threads waited for a processor over wall time × threads.",
        ),
        entry(
            "peak_memory",
            "bytes",
            "Peak of what the memory limit limits; on a CPU the data segments.",
        ),
        entry(
            "peak_resident_memory",
            "bytes",
            "Peak resident memory of the training process.",
        ),
        entry("first_loss", "nats", "Training loss of the first step."),
        entry("last_loss", "nats", "Training loss of the last step."),
        entry(
            "validation_loss",
            "nats",
            "Validation loss at the end of the run.",
        ),
        entry(
            "evaluation_difference",
            "nats",
            "Absolute difference between two evaluations of the same parameters.",
        ),
        entry("steps", "count", "Optimizer steps made, warm-up included."),
    ]
}

pub(super) fn probe_kinds() -> Vec<ProbeKindEntry> {
    vec![
        ProbeKindEntry {
            name: "smoke",
            question: "Does the pipeline run?",
            summary: "A few training steps and the evaluation twice: the loss must be finite and \
                      the evaluations equal.",
            exclusive: false,
        },
        ProbeKindEntry {
            name: "memory",
            question: "How much memory does training take at one batch size?",
            summary: "A few training steps and one evaluation, with the peak of memory measured.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "step_time",
            question: "How long does a step take at one batch size?",
            summary: "Training steps timed in blocks after a warm-up, until the median and the \
                      mean are known well enough.",
            exclusive: true,
        },
        ProbeKindEntry {
            name: "confirmation",
            question: "Does a batch size survive a longer run?",
            summary: "Training steps and one evaluation under the memory limit, before a batch size \
                      is recommended.",
            exclusive: true,
        },
    ]
}
