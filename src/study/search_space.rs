//! Which hyperparameters of an optimizer are tuned, and over which ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::definition::Workload;
use super::optimizer::Optimizer;
use crate::catalog;

/// A hyperparameter that can be tuned.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[schema(as = HyperparameterName)]
pub enum Hyperparameter {
    /// η; for the SGD family what is searched is η/(1 − γ), the *effective learning rate*.
    LearningRate,
    /// γ; what is searched is 1 − γ.
    Momentum,
    /// β₁; what is searched is 1 − β₁.
    #[serde(rename = "beta_1")]
    Beta1,
    /// β₂; what is searched is 1 − β₂.
    #[serde(rename = "beta_2")]
    Beta2,
    /// ε
    Epsilon,
    /// λ
    WeightDecay,
    /// The probability of dropping a unit, where the model drops any.
    Dropout,
    /// The share of a label's probability that is spread over all classes, where the workload spreads any.
    LabelSmoothing,
}

impl Hyperparameter {
    /// Every one, in the order in which they are worth tuning.
    pub const ALL: [Self; 8] = [
        Self::LearningRate,
        Self::Momentum,
        Self::Beta1,
        Self::WeightDecay,
        Self::Dropout,
        Self::LabelSmoothing,
        Self::Epsilon,
        Self::Beta2,
    ];

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LearningRate => "learning_rate",
            Self::Momentum => "momentum",
            Self::Beta1 => "beta_1",
            Self::Beta2 => "beta_2",
            Self::Epsilon => "epsilon",
            Self::WeightDecay => "weight_decay",
            Self::Dropout => "dropout",
            Self::LabelSmoothing => "label_smoothing",
        }
    }

    /// Whether what is searched is one minus the hyperparameter.
    pub fn is_complement(self) -> bool {
        matches!(self, Self::Momentum | Self::Beta1 | Self::Beta2)
    }

    /// Whether it limits how far a model follows its training examples.
    pub fn is_regularisation(self) -> bool {
        matches!(
            self,
            Self::WeightDecay | Self::Dropout | Self::LabelSmoothing
        )
    }
}

/// How strongly a workload is regularised, beside the optimizer's weight decay.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Regularisation {
    /// Probability of dropping a unit in training; null where the model drops none.
    pub dropout: Option<f64>,
    /// Share of a label's probability that training spreads over all classes; null where it spreads none.
    pub label_smoothing: Option<f64>,
}

impl Regularisation {
    /// That of a workload.
    pub fn of(workload: &Workload) -> Self {
        let used = |strength: f64| (strength > 0.0).then_some(strength);
        Self {
            dropout: workload.model.dropout().and_then(used),
            label_smoothing: used(workload.label_smoothing),
        }
    }

    /// Regularises a workload like this. What it does not have stays.
    pub fn apply(self, workload: &mut Workload) {
        if let Some(dropout) = self.dropout {
            workload.model.set_dropout(dropout);
        }
        if let Some(label_smoothing) = self.label_smoothing {
            workload.label_smoothing = label_smoothing;
        }
    }
}

/// A point of hyperparameters: everything that a search may vary.
#[derive(Debug, Clone, PartialEq)]
pub struct Configuration {
    /// The optimizer with its hyperparameters.
    pub optimizer: Optimizer,
    /// Those of the workload.
    pub regularisation: Regularisation,
}

impl Configuration {
    /// A hyperparameter, if there is one of the kind.
    pub fn get(&self, hyperparameter: Hyperparameter) -> Option<f64> {
        value(&self.optimizer, self.regularisation, hyperparameter)
    }

    /// Changes a hyperparameter; nothing happens when there is none of the kind.
    pub fn set(&mut self, hyperparameter: Hyperparameter, value: f64) {
        let place = match hyperparameter {
            Hyperparameter::Dropout => self.regularisation.dropout.as_mut(),
            Hyperparameter::LabelSmoothing => self.regularisation.label_smoothing.as_mut(),
            other => self.optimizer.place(other),
        };
        if let Some(place) = place {
            *place = value;
        }
    }
}

/// A hyperparameter, if there is one of the kind.
fn value(
    optimizer: &Optimizer,
    regularisation: Regularisation,
    hyperparameter: Hyperparameter,
) -> Option<f64> {
    match hyperparameter {
        Hyperparameter::Dropout => regularisation.dropout,
        Hyperparameter::LabelSmoothing => regularisation.label_smoothing,
        other => optimizer.get(other),
    }
}

/// A range, both ends above 0; searched on a logarithmic scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// Its lower end.
    #[schema(exclusive_minimum = 0.0)]
    pub lower: f64,
    /// Its upper end.
    #[schema(exclusive_minimum = 0.0)]
    pub upper: f64,
}

/// What is tuned, as posted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// The hyperparameters that are tuned; every other stays as the optimizer names it. Default: the
    /// learning rate, and the momentum of an SGD with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_items = 1, max_items = 4)]
    pub hyperparameters: Option<Vec<Hyperparameter>>,
    /// Ranges, by hyperparameter, in the quantity that the catalog names for each (for the learning rate of
    /// SGD η/(1 − γ), for a momentum 1 − γ). Default: those of the catalog; for the learning rate, what a
    /// learning-rate range test finds.
    #[serde(default)]
    pub ranges: BTreeMap<Hyperparameter, Range>,
}

/// What is tuned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Search {
    /// The hyperparameters that are tuned, the learning rate first.
    pub hyperparameters: Vec<Hyperparameter>,
    /// Ranges that the study names.
    #[serde(default)]
    pub ranges: BTreeMap<Hyperparameter, Range>,
}

impl SearchRequest {
    /// With the defaults of an optimizer filled in.
    pub fn resolve(self, optimizer: &Optimizer) -> Search {
        let mut hyperparameters = self
            .hyperparameters
            .unwrap_or_else(|| Search::usual(optimizer));
        hyperparameters.sort_by_key(|it| Hyperparameter::ALL.iter().position(|other| it == other));
        Search {
            hyperparameters,
            ranges: self.ranges,
        }
    }
}

impl Search {
    fn usual(optimizer: &Optimizer) -> Vec<Hyperparameter> {
        match optimizer {
            Optimizer::SgdMomentum { .. } | Optimizer::SgdNesterov { .. } => {
                vec![Hyperparameter::LearningRate, Hyperparameter::Momentum]
            }
            _ => vec![Hyperparameter::LearningRate],
        }
    }

    /// The space of these hyperparameters around a configuration, every range the study's or the catalog's.
    pub fn space(&self, around: Configuration) -> SearchSpace {
        let axes = self
            .hyperparameters
            .iter()
            .filter_map(|hyperparameter| {
                let named = self.ranges.get(hyperparameter).copied();
                let range = named.or_else(|| catalog_range(&around.optimizer, *hyperparameter))?;
                Some(Axis {
                    hyperparameter: *hyperparameter,
                    lower: range.lower.ln(),
                    upper: range.upper.ln(),
                })
            })
            .collect();
        SearchSpace {
            configuration: around,
            axes,
        }
    }
}

/// Where the strength of a dropout and of a smoothing is sought.
const DROPOUT: Range = Range {
    lower: 0.02,
    upper: 0.7,
};
const LABEL_SMOOTHING: Range = Range {
    lower: 0.005,
    upper: 0.4,
};

fn catalog_range(optimizer: &Optimizer, hyperparameter: Hyperparameter) -> Option<Range> {
    match hyperparameter {
        Hyperparameter::Dropout => return Some(DROPOUT),
        Hyperparameter::LabelSmoothing => return Some(LABEL_SMOOTHING),
        _ => {}
    }
    let space = catalog::search_range(optimizer.family(), hyperparameter.as_str())?;
    Some(Range {
        lower: space.lower,
        upper: space.upper,
    })
}

/// One axis of a search space, in the logarithm of what is searched.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    /// What varies along it.
    pub hyperparameter: Hyperparameter,
    /// ln of the lower end.
    pub lower: f64,
    /// ln of the upper end.
    pub upper: f64,
}

impl Axis {
    /// ln of an end that nothing lies beyond: 1 − γ is never above 1, nor is nearly everything dropped.
    pub fn hard_upper(&self) -> Option<f64> {
        match self.hyperparameter {
            it if it.is_complement() => Some(0.0),
            Hyperparameter::Dropout | Hyperparameter::LabelSmoothing => Some(NEARLY_ALL.ln()),
            _ => None,
        }
    }
}

/// The strongest dropout and smoothing.
const NEARLY_ALL: f64 = 0.9;

/// A configuration of which some hyperparameters vary.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchSpace {
    /// The configuration, with every other hyperparameter.
    pub configuration: Configuration,
    /// What varies, the learning rate first.
    pub axes: Vec<Axis>,
}

impl SearchSpace {
    /// The configuration at a point, given as logarithms along the axes.
    pub fn at(&self, point: &[f64]) -> Configuration {
        let mut at = self.configuration.clone();
        // The effective learning rate needs the momentum, so the learning rate comes last.
        for (axis, value) in self.axes.iter().zip(point).rev() {
            let value = value.exp();
            let value = match axis.hyperparameter {
                Hyperparameter::LearningRate => value * (1.0 - at.optimizer.effective_momentum()),
                it if it.is_complement() => (1.0 - value).max(0.0),
                _ => value,
            };
            at.set(axis.hyperparameter, value);
        }
        at
    }

    /// The point of a configuration, as logarithms along the axes.
    pub fn point(&self, optimizer: &Optimizer, regularisation: Regularisation) -> Vec<f64> {
        self.axes
            .iter()
            .map(|axis| {
                let value =
                    value(optimizer, regularisation, axis.hyperparameter).unwrap_or(f64::NAN);
                match axis.hyperparameter {
                    Hyperparameter::LearningRate => value / (1.0 - optimizer.effective_momentum()),
                    it if it.is_complement() => 1.0 - value,
                    _ => value,
                }
                .ln()
            })
            .collect()
    }

    /// A point given as shares along the axes.
    pub fn within(&self, shares: &[f64]) -> Vec<f64> {
        self.axes
            .iter()
            .zip(shares)
            .map(|(axis, share)| axis.lower + share * (axis.upper - axis.lower))
            .collect()
    }
}

impl Optimizer {
    /// A hyperparameter, if the optimizer has it.
    pub fn get(&self, hyperparameter: Hyperparameter) -> Option<f64> {
        // Reading through the setter's place keeps the two together.
        self.clone().place(hyperparameter).copied()
    }

    /// Changes a hyperparameter; nothing happens when the optimizer does not have it.
    pub fn set(&mut self, hyperparameter: Hyperparameter, value: f64) {
        if let Some(place) = self.place(hyperparameter) {
            *place = value;
        }
    }

    /// γ where the learning rate counts 1/(1 − γ)-fold in the long run: in the SGD family.
    pub fn effective_momentum(&self) -> f64 {
        match self {
            Self::SgdMomentum { momentum, .. } | Self::SgdNesterov { momentum, .. } => *momentum,
            _ => 0.0,
        }
    }

    fn place(&mut self, hyperparameter: Hyperparameter) -> Option<&mut f64> {
        use Hyperparameter as H;
        match (self, hyperparameter) {
            (
                Self::Sgd { learning_rate, .. }
                | Self::SgdMomentum { learning_rate, .. }
                | Self::SgdNesterov { learning_rate, .. }
                | Self::RmsProp { learning_rate, .. }
                | Self::Adam { learning_rate, .. }
                | Self::AdamW { learning_rate, .. }
                | Self::NAdam { learning_rate, .. },
                H::LearningRate,
            ) => Some(learning_rate),
            (
                Self::SgdMomentum { momentum, .. }
                | Self::SgdNesterov { momentum, .. }
                | Self::RmsProp { momentum, .. },
                H::Momentum,
            ) => Some(momentum),
            (
                Self::Adam { beta_1, .. } | Self::AdamW { beta_1, .. } | Self::NAdam { beta_1, .. },
                H::Beta1,
            ) => Some(beta_1),
            (
                Self::Adam { beta_2, .. } | Self::AdamW { beta_2, .. } | Self::NAdam { beta_2, .. },
                H::Beta2,
            ) => Some(beta_2),
            (
                Self::RmsProp { epsilon, .. }
                | Self::Adam { epsilon, .. }
                | Self::AdamW { epsilon, .. }
                | Self::NAdam { epsilon, .. },
                H::Epsilon,
            ) => Some(epsilon),
            (
                Self::Sgd { weight_decay, .. }
                | Self::SgdMomentum { weight_decay, .. }
                | Self::SgdNesterov { weight_decay, .. }
                | Self::AdamW { weight_decay, .. },
                H::WeightDecay,
            ) => Some(weight_decay),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone(optimizer: Optimizer) -> Configuration {
        Configuration {
            optimizer,
            regularisation: Regularisation::default(),
        }
    }

    #[test]
    fn a_point_and_its_optimizer_are_the_same_thing() {
        let search = SearchRequest::default().resolve(&Optimizer::nesterov(0.01, 0.9));
        assert_eq!(
            search.hyperparameters,
            [Hyperparameter::LearningRate, Hyperparameter::Momentum]
        );
        let space = search.space(alone(Optimizer::nesterov(0.01, 0.9)));
        let point = space.within(&[0.5, 0.25]);
        let Configuration {
            optimizer,
            regularisation,
        } = space.at(&point);
        for (before, after) in point.iter().zip(space.point(&optimizer, regularisation)) {
            assert!((before - after).abs() < 1e-9, "{point:?} {optimizer:?}");
        }
        // [1e-3, 10] and [1e-3, 1]: effective learning rate 0.1, 1 − γ = 10^−2.25.
        let gamma = 1.0 - 10_f64.powf(-2.25);
        let Optimizer::SgdNesterov {
            learning_rate,
            momentum,
            ..
        } = optimizer
        else {
            panic!("{optimizer:?}");
        };
        assert!((momentum - gamma).abs() < 1e-12);
        assert!((learning_rate - 0.1 * (1.0 - gamma)).abs() < 1e-12);
    }

    #[test]
    fn adam_searches_its_learning_rate_itself_and_the_rest_stays() {
        let adam = Optimizer::adam();
        let space = SearchRequest::default()
            .resolve(&adam)
            .space(alone(adam.clone()));
        let found = space.at(&[0.02_f64.ln()]).optimizer;
        let mut expected = adam;
        expected.set(Hyperparameter::LearningRate, 0.02_f64.ln().exp());
        assert_eq!(found, expected);
    }

    #[test]
    fn every_hyperparameter_that_an_optimizer_has_has_a_range_in_the_catalog() {
        for family in catalog::optimizer_families() {
            let posted = serde_json::json!({"family": family.name});
            let optimizer: Optimizer = serde_json::from_value(posted).expect("a family");
            for it in Hyperparameter::ALL {
                if matches!(it, Hyperparameter::Dropout | Hyperparameter::LabelSmoothing) {
                    continue;
                }
                assert_eq!(
                    optimizer.get(it).is_some(),
                    catalog_range(&optimizer, it).is_some(),
                    "{} {it:?}",
                    family.name
                );
            }
        }
    }

    #[test]
    fn regularisation_is_varied_where_the_workload_has_any_and_comes_back_as_a_workload() {
        let dataset = serde_json::from_value(serde_json::json!({"builtin": "digits"}));
        let model = serde_json::from_value(serde_json::json!({"family": "mlp", "dropout": 0.1}));
        let mut workload = Workload::new(
            super::super::Dataset::Builtin(dataset.expect("a data set")),
            model.expect("a model"),
        );
        let regularisation = Regularisation::of(&workload);
        assert_eq!(regularisation.dropout, Some(0.1));
        assert_eq!(regularisation.label_smoothing, None, "it has none");
        let search = Search {
            hyperparameters: vec![Hyperparameter::LearningRate, Hyperparameter::Dropout],
            ranges: BTreeMap::new(),
        };
        let space = search.space(Configuration {
            optimizer: Optimizer::adam(),
            regularisation,
        });
        let mut found = space.at(&[1e-3_f64.ln(), 0.5_f64.ln()]);
        found.set(Hyperparameter::LabelSmoothing, 0.3);
        found.regularisation.apply(&mut workload);
        assert!((workload.model.dropout().expect("some") - 0.5).abs() < 1e-12);
        assert_eq!(workload.label_smoothing, 0.0);
    }
}
