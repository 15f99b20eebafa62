//! Which optimizers are compared and how batch normalization is looked into, what each hyperparameter of an
//! optimizer is to a study, and when two optimizers are the same one under two names.

use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::ToSchema;

use super::model::{Layer, Model, Normalization};
use super::optimizer::{AdamEpsilon, Optimizer};
use super::search_space::Hyperparameter;
use super::units::BatchSize;
use crate::catalog;

/// How optimizers are compared, where the question `optimizer` is asked. Without candidates it is answered with the
/// rule of thumb for the family of the model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerComparison {
    /// The optimizers that are compared. Each is tuned with the same budget at the same batch size, its learning rate
    /// always, between the learning rates that a range test of its own leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 2, max_items = 5)]
    pub candidates: Option<Vec<Optimizer>>,
    /// What is tuned from the beginning, of each candidate what it has. Default: the learning rate. Any other
    /// hyperparameter is tuned once a search with half the trials shows that it pays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4)]
    pub hyperparameters: Option<Vec<Hyperparameter>>,
}

impl OptimizerComparison {
    /// The candidates; none where the rule of thumb is all that is asked for.
    pub fn candidates(&self) -> &[Optimizer] {
        self.candidates.as_deref().unwrap_or_default()
    }

    /// What is tuned of a candidate from the beginning, the learning rate first.
    pub fn tuned_of(&self, candidate: &Optimizer) -> Vec<Hyperparameter> {
        let named = self.hyperparameters.as_deref().unwrap_or_default();
        Hyperparameter::ALL
            .into_iter()
            .filter(|it| *it == Hyperparameter::LearningRate || named.contains(it))
            .filter(|it| candidate.get(*it).is_some())
            .collect()
    }

    /// For every candidate the first before it that is the same one, if there is one.
    pub fn identical(&self) -> Vec<Option<usize>> {
        let named = self.hyperparameters.as_deref().unwrap_or_default();
        let identities: Vec<Optimizer> = self
            .candidates()
            .iter()
            .map(|candidate| candidate.identity(named))
            .collect();
        identities
            .iter()
            .enumerate()
            .map(|(index, it)| identities[..index].iter().position(|other| other == it))
            .collect()
    }
}

/// How batch normalization is looked into, where the question `batch_norm` is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchNormProbe {
    /// Whether ghost batches of several sizes are trained with. Default: the rule alone answers.
    #[serde(default)]
    pub probe: bool,
    /// The batch size at which they are. Default: the one recommended, where steps to a target are measured, else the
    /// grid's nearest to 48.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<BatchSize>,
}

/// Examples of a ghost batch at least: a mean and a variance over fewer scatter too much (Hoffer et al. 2017 find 16 to be
/// the least that trains well).
pub const LEAST_GHOST_BATCH: u64 = 16;

/// What something that may be varied is to a study (Godbole et al. 2023, "Identifying scientific, nuisance, and fixed
/// hyperparameters").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HyperparameterRole)]
pub enum Role {
    /// Its effect is what is asked about.
    Scientific,
    /// It has to be optimised over, or the comparison is not a fair one.
    Nuisance,
    /// It stays as it is, and conclusions hold for this value.
    Fixed,
}

/// What a study does about a hyperparameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HyperparameterTuning)]
pub enum Tuning {
    /// It is searched for.
    Tuned,
    /// The study names a value other than the default.
    Fixed,
    /// It has its default value.
    Untuned,
}

/// A hyperparameter of an optimizer as a study treats it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TreatedHyperparameter {
    /// Its name.
    pub name: String,
    /// Its letter in the update rule.
    pub symbol: String,
    /// Its value; for one that is tuned what was found, or what stands there before.
    pub value: f64,
    /// The value that it has unless another is named.
    pub default: f64,
    /// What it is to the study.
    pub role: Role,
    /// What the study does about it.
    pub status: Tuning,
}

impl Optimizer {
    /// The family with every hyperparameter at its default.
    pub fn with_defaults(&self) -> Self {
        serde_json::from_value(json!({ "family": self.family() })).unwrap_or_else(|_| self.clone())
    }

    /// Every hyperparameter of the update rule, `tuned` being those that are searched for and `found` the optimizer
    /// that a search has come to.
    pub fn treated(
        &self,
        tuned: &[Hyperparameter],
        found: Option<&Self>,
    ) -> Vec<TreatedHyperparameter> {
        let families = catalog::optimizer_families();
        let Some(family) = families.iter().find(|it| it.name == self.family()) else {
            return Vec::new();
        };
        let values = |optimizer: &Self| serde_json::to_value(optimizer).unwrap_or_default();
        let (own, best) = (values(self), found.map(values));
        family
            .hyperparameters
            .iter()
            .map(|it| {
                let is_tuned = tuned.iter().any(|tuned| tuned.as_str() == it.name);
                let named = own[it.name].as_f64().unwrap_or(it.default);
                let best = best.as_ref().and_then(|best| best[it.name].as_f64());
                let status = if is_tuned {
                    Tuning::Tuned
                } else if named == it.default {
                    Tuning::Untuned
                } else {
                    Tuning::Fixed
                };
                TreatedHyperparameter {
                    name: it.name.to_owned(),
                    symbol: it.symbol.to_owned(),
                    value: best.filter(|_| is_tuned).unwrap_or(named),
                    default: it.default,
                    role: Role::Nuisance,
                    status,
                }
            })
            .collect()
    }

    /// The order in which further hyperparameters are worth opening: the momentum first, then what limits or steadies
    /// the step, then the average of squares.
    pub fn further_hyperparameters(&self) -> Vec<Hyperparameter> {
        use Hyperparameter as H;
        [H::Momentum, H::Beta1, H::WeightDecay, H::Epsilon, H::Beta2]
            .into_iter()
            .filter(|it| self.get(*it).is_some())
            .collect()
    }

    /// The same update rule by its simplest name, `tuned` being the hyperparameters that have no value of their own yet:
    /// a momentum of 0 is none, nor is a weight decay of 0, and without a first moment NAdam looks ahead at nothing.
    pub fn canonical(&self, tuned: &[Hyperparameter]) -> Self {
        let is_zero = |value: f64, name: Hyperparameter| value == 0.0 && !tuned.contains(&name);
        match *self {
            Self::SgdMomentum {
                learning_rate,
                momentum,
                weight_decay,
            }
            | Self::SgdNesterov {
                learning_rate,
                momentum,
                weight_decay,
            } if is_zero(momentum, Hyperparameter::Momentum) => Self::Sgd {
                learning_rate,
                weight_decay,
            },
            Self::AdamW {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                epsilon_form,
                weight_decay,
            } if is_zero(weight_decay, Hyperparameter::WeightDecay) => Self::Adam {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                epsilon_form,
            }
            .canonical(tuned),
            Self::NAdam {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                epsilon_form,
            } if is_zero(beta_1, Hyperparameter::Beta1) => Self::Adam {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                epsilon_form,
            }
            .canonical(tuned),
            // With β₂ = 0 there is no bias to correct.
            Self::Adam {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                ..
            } if is_zero(beta_2, Hyperparameter::Beta2) => Self::Adam {
                learning_rate,
                beta_1,
                beta_2,
                epsilon,
                epsilon_form: AdamEpsilon::BiasCorrected,
            },
            _ => self.clone(),
        }
    }

    /// What makes it another candidate than the rest: its canonical form without what is tuned anyway.
    fn identity(&self, tuned: &[Hyperparameter]) -> Self {
        let mut identity = self.canonical(tuned);
        for name in tuned.iter().chain(&[Hyperparameter::LearningRate]) {
            identity.set(*name, 0.0);
        }
        identity
    }
}

impl Model {
    /// The same model with every normalization over the batch taken over ghost batches of so many examples.
    pub fn with_ghost_batches(&self, examples: u64) -> Self {
        let mut model = self.clone();
        match &mut model {
            Self::Mlp { normalization, .. }
            | Self::Cnn { normalization, .. }
            | Self::Resnet { normalization, .. }
            | Self::TransformerEncoder { normalization, .. }
            | Self::TransformerLm { normalization, .. } => normalization.take_ghosts(examples),
            Self::Rnn { .. } | Self::External { .. } => {}
            Self::Sequential { layers, .. } => take_ghosts(layers, examples),
        }
        model
    }
}

fn take_ghosts(layers: &mut [Layer], examples: u64) {
    for layer in layers {
        match layer {
            Layer::Norm { normalization } => normalization.take_ghosts(examples),
            Layer::Residual { layers, shortcut } => {
                take_ghosts(layers, examples);
                take_ghosts(shortcut, examples);
            }
            _ => {}
        }
    }
}

impl Normalization {
    fn take_ghosts(&mut self, examples: u64) {
        if let Self::Batch { momentum, epsilon }
        | Self::GhostBatch {
            momentum, epsilon, ..
        } = *self
        {
            *self = Self::GhostBatch {
                batch_size: examples,
                momentum,
                epsilon,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn optimizer(value: serde_json::Value) -> Optimizer {
        serde_json::from_value(value).expect("an optimizer")
    }

    fn comparison(value: serde_json::Value) -> OptimizerComparison {
        serde_json::from_value(value).expect("a comparison")
    }

    #[test]
    fn row_9_adam_lists_every_hyperparameter_and_so_does_every_other() {
        let names = |optimizer: &Optimizer| -> Vec<String> {
            let listed = optimizer.treated(&[], None);
            listed.into_iter().map(|it| it.name).collect()
        };
        let adam = names(&Optimizer::adam());
        assert_eq!(adam, ["learning_rate", "beta_1", "beta_2", "epsilon"]);
        for family in catalog::optimizer_families() {
            let optimizer = optimizer(json!({"family": family.name}));
            // Every number of the optimizer is in its list.
            let value = serde_json::to_value(&optimizer).expect("a value");
            let numbers = value.as_object().expect("fields").iter();
            let mut numbers: Vec<&str> = numbers
                .filter_map(|(name, value)| value.is_number().then_some(name.as_str()))
                .collect();
            let mut listed = names(&optimizer);
            numbers.sort_unstable();
            listed.sort_unstable();
            assert_eq!(listed, numbers, "{}", family.name);
        }
    }

    #[test]
    fn what_is_tuned_what_is_fixed_and_what_nobody_thought_of_are_told_apart() {
        let adam = optimizer(json!({"family": "adam", "beta_1": 0.8}));
        let mut found = adam.clone();
        found.set(Hyperparameter::LearningRate, 0.02);
        let listed = adam.treated(&[Hyperparameter::LearningRate], Some(&found));
        let of = |name: &str| {
            let it = listed.iter().find(|it| it.name == name).expect("listed");
            (it.status, it.value)
        };
        assert_eq!(of("learning_rate"), (Tuning::Tuned, 0.02));
        assert_eq!(of("beta_1"), (Tuning::Fixed, 0.8));
        assert_eq!(of("beta_2"), (Tuning::Untuned, 0.999));
        assert!(listed.iter().all(|it| it.role == Role::Nuisance));
    }

    #[test]
    fn row_7_the_same_optimizer_under_two_names_is_identical() {
        let same = [
            (json!({"family": "adam"}), json!({"family": "adam"})),
            // Learning rates are tuned anyway.
            (
                json!({"family": "adam"}),
                json!({"family": "adam", "learning_rate": 0.1}),
            ),
            (
                json!({"family": "sgd_momentum", "momentum": 0.0}),
                json!({"family": "sgd"}),
            ),
            (
                json!({"family": "sgd_nesterov", "momentum": 0.0}),
                json!({"family": "sgd_momentum", "momentum": 0.0}),
            ),
            (
                json!({"family": "adamw", "weight_decay": 0.0}),
                json!({"family": "adam"}),
            ),
            (
                json!({"family": "nadam", "beta_1": 0.0}),
                json!({"family": "adam", "beta_1": 0.0, "epsilon_form": "uncorrected"}),
            ),
        ];
        for (a, b) in same {
            let candidates = comparison(json!({"candidates": [a, b]}));
            assert_eq!(candidates.identical(), [None, Some(0)], "{candidates:?}");
        }
        let others = [
            (
                json!({"family": "sgd_momentum", "momentum": 0.1}),
                json!({"family": "sgd"}),
            ),
            (json!({"family": "adamw"}), json!({"family": "adam"})),
            (json!({"family": "nadam"}), json!({"family": "adam"})),
            (
                json!({"family": "adam"}),
                json!({"family": "adam", "epsilon_form": "uncorrected"}),
            ),
            (
                json!({"family": "adamw", "weight_decay": 0.0}),
                json!({"family": "adam", "epsilon_form": "uncorrected"}),
            ),
            (
                json!({"family": "adam"}),
                json!({"family": "adam", "epsilon": 1e-3}),
            ),
        ];
        for (a, b) in others {
            let candidates = comparison(json!({"candidates": [a, b]}));
            assert_eq!(candidates.identical(), [None, None], "{candidates:?}");
        }
        // A momentum that is tuned is not 0, whatever it begins with; and what is tuned does not tell apart.
        let tuned = |a, b| {
            comparison(
                json!({"candidates": [a, b], "hyperparameters": ["learning_rate", "momentum"]}),
            )
            .identical()
        };
        let heavy_ball = |momentum: f64| json!({"family": "sgd_momentum", "momentum": momentum});
        assert_eq!(
            tuned(heavy_ball(0.0), json!({"family": "sgd"})),
            [None, None]
        );
        assert_eq!(tuned(heavy_ball(0.0), heavy_ball(0.9)), [None, Some(0)]);
    }

    #[test]
    fn of_each_candidate_is_tuned_what_it_has() {
        let asked = comparison(json!({
            "candidates": [{"family": "sgd"}, {"family": "adam"}],
            "hyperparameters": ["beta_1", "learning_rate"]
        }));
        use Hyperparameter::{Beta1, LearningRate};
        assert_eq!(asked.tuned_of(&Optimizer::sgd(0.1)), [LearningRate]);
        assert_eq!(asked.tuned_of(&Optimizer::adam()), [LearningRate, Beta1]);
        let usual = OptimizerComparison::default();
        assert_eq!(usual.tuned_of(&Optimizer::adam()), [LearningRate]);
    }

    #[test]
    fn every_normalization_over_the_batch_takes_ghost_batches_and_no_other_does() {
        let ghosts = |value: serde_json::Value| {
            let model: Model = serde_json::from_value(value).expect("a model");
            serde_json::to_string(&model.with_ghost_batches(32)).expect("JSON")
        };
        let cnn = ghosts(json!({"family": "cnn"}));
        assert!(
            cnn.contains(r#""kind":"ghost_batch","batch_size":32"#),
            "{cnn}"
        );
        let nested = ghosts(json!({"family": "sequential", "layers": [
            {"layer": "residual", "layers": [{"layer": "norm", "normalization": {"kind": "batch"}}],
             "shortcut": [{"layer": "norm", "normalization": {"kind": "layer"}}]},
            {"layer": "norm", "normalization": {"kind": "ghost_batch", "batch_size": 4}}
        ]}));
        assert_eq!(nested.matches(r#""batch_size":32"#).count(), 2, "{nested}");
        assert_eq!(nested.matches(r#""kind":"layer""#).count(), 1, "{nested}");
    }
}
