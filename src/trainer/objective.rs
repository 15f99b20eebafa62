//! What training minimises, and what evaluation reports.

use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, FloatDType, Int, Tensor, TensorData};

use super::network::Value;
use crate::datasets::BatchTargets;
use crate::statistics::ranking;
use crate::study::{DType, EvaluationMetric, Loss, Target, Workload};

/// The targets of a batch on the device.
#[derive(Debug, Clone)]
pub(super) enum Targets {
    /// A class for each row of predictions.
    Classes(Tensor<1, Int>),
    /// Numbers for each example.
    Values(Tensor<2>),
}

impl Targets {
    /// Copies the targets of a batch to the device.
    pub(super) fn to_device(targets: BatchTargets, examples: usize, device: &Device) -> Self {
        match targets {
            BatchTargets::Classes(classes) => {
                let count = classes.len();
                Self::Classes(Tensor::from_data(TensorData::new(classes, [count]), device))
            }
            BatchTargets::Values(values) => {
                let width = values.len() / examples.max(1);
                Self::Values(Tensor::from_data(
                    TensorData::new(values, [examples, width]),
                    device,
                ))
            }
        }
    }
}

/// The loss of a workload.
#[derive(Debug)]
pub(super) struct Objective {
    kind: Kind,
    target: Target,
    dtype: DType,
}

#[derive(Debug)]
enum Kind {
    CrossEntropy {
        training: Box<CrossEntropyLoss>,
        /// Without label smoothing: what a model is worth is not a matter of how it was trained.
        evaluation: Box<CrossEntropyLoss>,
    },
    MeanSquaredError,
}

/// The validation of one state of the parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Evaluation {
    /// Mean over examples (over tokens, for a text) of the loss, without label smoothing.
    pub loss: f64,
    metrics: Vec<(EvaluationMetric, f64)>,
}

impl Evaluation {
    /// From a loss and everything that was evaluated, the loss under its own name included.
    pub(super) fn new(loss: f64, metrics: Vec<(EvaluationMetric, f64)>) -> Self {
        Self { loss, metrics }
    }

    /// Everything that the task has, the loss under its own name included.
    pub(super) fn metrics(&self) -> &[(EvaluationMetric, f64)] {
        &self.metrics
    }

    /// One metric, if the task has it.
    pub(super) fn metric(&self, metric: EvaluationMetric) -> Option<f64> {
        let found = self.metrics.iter().find(|(name, _)| *name == metric);
        found.map(|(_, value)| *value)
    }
}

impl Objective {
    pub(super) fn new(workload: &Workload, device: &Device) -> Self {
        let cross_entropy = |smoothing: Option<f32>| {
            CrossEntropyLossConfig::new()
                .with_logits(true)
                .with_pad_tokens(None)
                .with_weights(None)
                .with_smoothing(smoothing)
                .init(device)
        };
        let smoothing = (workload.label_smoothing > 0.0).then_some(workload.label_smoothing as f32);
        Self {
            kind: match workload.loss {
                Loss::CrossEntropy => Kind::CrossEntropy {
                    training: Box::new(cross_entropy(smoothing)),
                    evaluation: Box::new(cross_entropy(None)),
                },
                Loss::MeanSquaredError => Kind::MeanSquaredError,
            },
            target: workload.dataset.facts().target,
            dtype: workload.dtype,
        }
    }

    /// The training loss of a batch, still on the device.
    pub(super) fn training(&self, prediction: Value, targets: Targets) -> Tensor<1> {
        let prediction = self.rows(prediction);
        match (&self.kind, targets) {
            (Kind::CrossEntropy { training, .. }, Targets::Classes(labels)) => {
                training.forward(prediction, labels)
            }
            (Kind::MeanSquaredError, Targets::Values(values)) => squared_error(prediction, values),
            _ => unreachable!("the study was checked: a loss that does not fit its targets"),
        }
    }

    /// One row for each prediction: `[batch_size, outputs]`, or `[batch_size × length, vocabulary]`. In
    /// single precision, because a sum of many small numbers is no good in half of one.
    fn rows(&self, prediction: Value) -> Tensor<2> {
        let rows = match prediction {
            Value::Features(x) => x,
            Value::Sequence(x) => x.flatten(0, 1),
            Value::Image(x) => x.flatten(1, 3),
            Value::Tokens(_) => unreachable!("the study was checked: no network predicts tokens"),
        };
        match self.dtype {
            DType::Float32 => rows,
            DType::Bfloat16 => rows.cast(FloatDType::F32),
        }
    }
}

fn squared_error(prediction: Tensor<2>, values: Tensor<2>) -> Tensor<1> {
    // The data came in the device's precision; the prediction may be in a better one.
    let values = values.cast(prediction.dtype());
    (prediction - values).square().mean()
}

/// Adds up the batches of one validation.
#[derive(Debug)]
pub(super) struct Evaluator<'a> {
    objective: &'a Objective,
    rows: usize,
    total_loss: f64,
    correct: u64,
    /// For two classes: how much more likely the second is taken to be, and whether it is it.
    scores: Vec<(f64, bool)>,
    /// The loss of every example, where it is wanted.
    examples: Option<Vec<f64>>,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(objective: &'a Objective) -> Self {
        Self {
            objective,
            rows: 0,
            total_loss: 0.0,
            correct: 0,
            scores: Vec::new(),
            examples: None,
        }
    }

    /// One that keeps the loss of every example.
    pub(super) fn of_examples(objective: &'a Objective) -> Self {
        Self {
            examples: Some(Vec::new()),
            ..Self::new(objective)
        }
    }

    /// Adds a batch of so many examples.
    pub(super) fn add(&mut self, prediction: Value, targets: Targets, examples: usize) {
        let prediction = self.objective.rows(prediction);
        let rows = prediction.dims()[0];
        if let Some(losses) = &mut self.examples {
            let each = row_losses(prediction.clone(), &targets);
            let mean =
                |rows: &[f32]| rows.iter().copied().map(f64::from).sum::<f64>() / rows.len() as f64;
            losses.extend(each.chunks((rows / examples.max(1)).max(1)).map(mean));
        }
        let loss = match (&self.objective.kind, targets) {
            (Kind::CrossEntropy { evaluation, .. }, Targets::Classes(labels)) => {
                let hits = prediction
                    .clone()
                    .argmax(1)
                    .squeeze_dim(1)
                    .equal(labels.clone());
                self.correct += u64::from(hits.int().sum().into_scalar::<u32>());
                if prediction.dims()[1] == 2 {
                    self.score(&prediction, &labels);
                }
                evaluation.forward(prediction, labels)
            }
            (Kind::MeanSquaredError, Targets::Values(values)) => squared_error(prediction, values),
            _ => unreachable!("the study was checked: a loss that does not fit its targets"),
        };
        self.total_loss += f64::from(loss.into_scalar::<f32>()) * rows as f64;
        self.rows += rows;
    }

    fn score(&mut self, prediction: &Tensor<2>, labels: &Tensor<1, Int>) {
        let classes: Vec<i64> = labels.clone().into_data().iter::<i64>().collect();
        let second = prediction.clone().narrow(1, 1, 1) - prediction.clone().narrow(1, 0, 1);
        let margins: Vec<f32> = second.into_data().try_to_vec().unwrap_or_default();
        self.scores.extend(
            margins
                .into_iter()
                .zip(classes)
                .map(|(margin, class)| (f64::from(margin), class == 1)),
        );
    }

    /// The result, and the loss of every example where it was kept: a text's is the mean over its tokens.
    pub(super) fn finish(self) -> (Evaluation, Vec<f64>) {
        let rows = self.rows as f64;
        let loss = self.total_loss / rows;
        let accuracy = self.correct as f64 / rows;
        let mut metrics = Vec::new();
        match self.objective.target {
            Target::Classes { .. } => {
                metrics.push((EvaluationMetric::ValidationCrossEntropy, loss));
                metrics.push((EvaluationMetric::ValidationAccuracy, accuracy));
                metrics.push((EvaluationMetric::ValidationErrorRate, 1.0 - accuracy));
                if let Some(auc) = ranking::area_under_curve(&self.scores) {
                    metrics.push((EvaluationMetric::ValidationAuc, auc));
                }
            }
            Target::NextToken { .. } => {
                metrics.push((EvaluationMetric::ValidationCrossEntropy, loss));
                metrics.push((EvaluationMetric::ValidationPerplexity, loss.exp()));
                metrics.push((EvaluationMetric::ValidationAccuracy, accuracy));
                metrics.push((EvaluationMetric::ValidationErrorRate, 1.0 - accuracy));
            }
            Target::Values { .. } => {
                metrics.push((EvaluationMetric::ValidationMeanSquaredError, loss));
            }
        }
        (
            Evaluation { loss, metrics },
            self.examples.unwrap_or_default(),
        )
    }
}

/// The loss of every row of predictions, without label smoothing.
fn row_losses(prediction: Tensor<2>, targets: &Targets) -> Vec<f32> {
    let losses: Tensor<2> = match targets {
        Targets::Classes(labels) => log_softmax(prediction, 1)
            .gather(1, labels.clone().unsqueeze_dim(1))
            .neg(),
        Targets::Values(values) => {
            let values = values.clone().cast(prediction.dtype());
            (prediction - values).square().mean_dim(1)
        }
    };
    losses.into_data().try_to_vec().unwrap_or_default()
}
