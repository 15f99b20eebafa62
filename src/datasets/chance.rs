//! What the best predictor scores that does not look at its input.

use super::{BatchTargets, Examples};

/// Examples gathered at once.
const CHUNK: usize = 4096;

/// Validation loss of the constant predictor fitted on the training targets: the frequencies of classes or of
/// tokens (cross-entropy in nats, without smoothing), the mean of each value (squared error). `None` where
/// there is no example, or a class of the validation examples is not in the training ones, for which no
/// constant predictor has a finite loss.
pub fn chance_loss(training: &Examples, validation: &Examples, validated: &[u32]) -> Option<f64> {
    let fitted = Constant::of(training);
    let (mut loss, mut count) = (0.0, 0.0);
    for chunk in validated.chunks(CHUNK) {
        let (sum, rows) = fitted.loss(&validation.gather(chunk).targets);
        loss += sum;
        count += rows;
    }
    let mean = loss / count;
    mean.is_finite().then_some(mean)
}

/// The same of every validated example, a text's the mean over its tokens; `None` where one of them has no finite
/// loss.
pub fn chance_losses(
    training: &Examples,
    validation: &Examples,
    validated: &[u32],
) -> Option<Vec<f64>> {
    let fitted = Constant::of(training);
    let mut losses = Vec::with_capacity(validated.len());
    for example in validated {
        let (sum, rows) = fitted.loss(&validation.gather(&[*example]).targets);
        losses.push(sum / rows);
    }
    losses.iter().all(|loss| loss.is_finite()).then_some(losses)
}

/// What is fitted.
#[derive(Debug, Default)]
struct Constant {
    /// Examples of each class.
    classes: Vec<f64>,
    /// Sums of each value.
    sums: Vec<f64>,
    rows: f64,
}

impl Constant {
    fn of(training: &Examples) -> Self {
        let all: Vec<u32> = (0..).take(training.len()).collect();
        let mut fitted = Self::default();
        for chunk in all.chunks(CHUNK) {
            fitted.add(training.gather(chunk).targets, chunk.len());
        }
        fitted
    }

    fn add(&mut self, targets: BatchTargets, examples: usize) {
        match targets {
            BatchTargets::Classes(classes) => {
                self.rows += classes.len() as f64;
                for class in classes {
                    let class = usize::try_from(class).unwrap_or(0);
                    if class >= self.classes.len() {
                        self.classes.resize(class + 1, 0.0);
                    }
                    self.classes[class] += 1.0;
                }
            }
            BatchTargets::Values(values) => {
                self.rows += examples as f64;
                let width = values.len() / examples.max(1);
                self.sums.resize(width, 0.0);
                for row in values.chunks(width.max(1)) {
                    for (sum, value) in self.sums.iter_mut().zip(row) {
                        *sum += f64::from(*value);
                    }
                }
            }
        }
    }

    /// The summed loss and what it is summed over.
    fn loss(&self, targets: &BatchTargets) -> (f64, f64) {
        match targets {
            BatchTargets::Classes(classes) => {
                let of = |class: &i64| {
                    let class = usize::try_from(*class).unwrap_or(usize::MAX);
                    let seen = self.classes.get(class).copied().unwrap_or(0.0);
                    -(seen / self.rows).ln()
                };
                (classes.iter().map(of).sum(), classes.len() as f64)
            }
            BatchTargets::Values(values) => {
                let width = self.sums.len().max(1);
                let squares = values.chunks(width).flat_map(|row| {
                    row.iter()
                        .zip(&self.sums)
                        .map(|(value, sum)| (f64::from(*value) - sum / self.rows).powi(2))
                });
                (squares.sum(), values.len() as f64)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Inputs, Targets};
    use super::*;

    #[test]
    fn balanced_classes_give_the_logarithm_of_their_number() {
        let examples = |labels: Vec<u32>| {
            let width = 1;
            Examples::classified(vec![0.0; labels.len()], width, labels)
        };
        let training = examples((0..1000).map(|index| index % 10).collect());
        let validation = examples(vec![3, 4, 9]);
        let loss = chance_loss(&training, &validation, &[0, 1, 2]).expect("known");
        assert!((loss - 10_f64.ln()).abs() < 1e-12);
        let strange = examples(vec![12]);
        assert_eq!(chance_loss(&training, &strange, &[0]), None);
        assert_eq!(chance_loss(&training, &validation, &[]), None);
    }

    #[test]
    fn values_are_predicted_by_their_mean() {
        let examples = |values: Vec<f32>| Examples {
            inputs: Inputs::Numbers {
                values: vec![0.0; values.len() / 2],
                width: 1,
            },
            targets: Targets::Values { values, width: 2 },
        };
        let training = examples(vec![1.0, 10.0, 3.0, 20.0]);
        let validation = examples(vec![2.0, 16.0]);
        // Means 2 and 15: squared errors 0 and 1.
        assert_eq!(chance_loss(&training, &validation, &[0]), Some(0.5));
    }
}
