//! Examples in memory, and how a batch is gathered from them.

use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::content::{Mapped, Scaling};

/// What a network reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Inputs {
    /// Row-major, `width` numbers for each example.
    Numbers { values: Vec<f32>, width: usize },
    /// Windows of a text, one after the other: example i is the tokens i·length to (i + 1)·length, and
    /// one more token follows the last window, so that each token has a next one.
    Text { tokens: Vec<u16>, length: usize },
    /// Numbers of a stored data set, normalised when they are gathered.
    Mapped {
        numbers: Mapped,
        width: usize,
        scaling: Arc<Scaling>,
    },
    /// A stored text, cut like any other.
    MappedText { tokens: Mapped, length: usize },
}

/// What a network is to predict.
#[derive(Debug, Clone, PartialEq)]
pub enum Targets {
    /// The class of each example.
    Classes(Vec<u32>),
    /// Row-major, `width` numbers for each example.
    Values { values: Vec<f32>, width: usize },
    /// The token that follows each token of the input.
    NextToken,
}

/// Examples with their targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    pub inputs: Inputs,
    pub targets: Targets,
}

/// A batch on the host, ready to be copied to a device.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Number of examples.
    pub examples: usize,
    pub inputs: BatchInputs,
    pub targets: BatchTargets,
}

/// The inputs of a batch, example by example.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchInputs {
    Numbers(Vec<f32>),
    Tokens(Vec<i64>),
}

/// The targets of a batch, example by example.
#[derive(Debug, Clone, PartialEq)]
pub enum BatchTargets {
    /// A class for each example, or the next token at each position.
    Classes(Vec<i64>),
    Values(Vec<f32>),
}

impl Examples {
    /// Numbers with a class for each example.
    pub(super) fn classified(values: Vec<f32>, width: usize, labels: Vec<u32>) -> Self {
        Self {
            inputs: Inputs::Numbers { values, width },
            targets: Targets::Classes(labels),
        }
    }

    /// Number of examples.
    pub fn len(&self) -> usize {
        match (&self.targets, &self.inputs) {
            (Targets::Classes(labels), _) => labels.len(),
            (Targets::Values { values, width }, _) => values.len() / width.max(&1),
            (Targets::NextToken, Inputs::Text { tokens, length }) => {
                tokens.len().saturating_sub(1) / length.max(&1)
            }
            (Targets::NextToken, Inputs::MappedText { tokens, length }) => {
                tokens.len().saturating_sub(1) / length.max(&1)
            }
            (Targets::NextToken, Inputs::Numbers { .. } | Inputs::Mapped { .. }) => 0,
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives every example the target of another one, at random: the targets stay what they are, and say nothing
    /// about the inputs any more. Of a text it is the tokens that change places.
    pub fn shuffle_targets(&mut self, seed: u64) {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        match &mut self.targets {
            Targets::Classes(labels) => labels.shuffle(&mut random),
            Targets::Values { values, width } => {
                let width = (*width).max(1);
                let mut order: Vec<usize> = (0..values.len() / width).collect();
                order.shuffle(&mut random);
                *values = order
                    .into_iter()
                    .flat_map(|row| values[row * width..(row + 1) * width].iter().copied())
                    .collect();
            }
            Targets::NextToken => {
                let (mut tokens, length) = match &self.inputs {
                    Inputs::Text { tokens, length } => (tokens.clone(), *length),
                    Inputs::MappedText { tokens, length } => {
                        let count = self.len() * length + 1;
                        let mut all = Vec::with_capacity(count);
                        tokens.tokens(0..count, &mut all);
                        // A token is one of at most 2^16.
                        let all = all.into_iter().map(|it| u16::try_from(it).unwrap_or(0));
                        (all.collect(), *length)
                    }
                    Inputs::Numbers { .. } | Inputs::Mapped { .. } => return,
                };
                tokens.shuffle(&mut random);
                self.inputs = Inputs::Text { tokens, length };
            }
        }
    }

    /// The examples at `indices`, in that order.
    pub fn gather(&self, indices: &[u32]) -> Batch {
        let rows = || indices.iter().map(|&index| index as usize);
        let inputs = match &self.inputs {
            Inputs::Numbers { values, width } => {
                let mut gathered = Vec::with_capacity(indices.len() * width);
                for row in rows() {
                    gathered.extend_from_slice(&values[row * width..(row + 1) * width]);
                }
                BatchInputs::Numbers(gathered)
            }
            Inputs::Mapped {
                numbers,
                width,
                scaling,
            } => {
                let mut gathered = Vec::with_capacity(indices.len() * width);
                for row in rows() {
                    numbers.gather(row * width..(row + 1) * width, scaling, &mut gathered);
                }
                BatchInputs::Numbers(gathered)
            }
            Inputs::Text { tokens, length } => {
                BatchInputs::Tokens(windows(tokens, *length, rows(), 0))
            }
            Inputs::MappedText { tokens, length } => {
                BatchInputs::Tokens(mapped_windows(tokens, *length, rows(), 0))
            }
        };
        let targets = match (&self.targets, &self.inputs) {
            (Targets::Classes(labels), _) => {
                BatchTargets::Classes(rows().map(|row| i64::from(labels[row])).collect())
            }
            (Targets::Values { values, width }, _) => {
                let mut gathered = Vec::with_capacity(indices.len() * width);
                for row in rows() {
                    gathered.extend_from_slice(&values[row * width..(row + 1) * width]);
                }
                BatchTargets::Values(gathered)
            }
            (Targets::NextToken, Inputs::Text { tokens, length }) => {
                BatchTargets::Classes(windows(tokens, *length, rows(), 1))
            }
            (Targets::NextToken, Inputs::MappedText { tokens, length }) => {
                BatchTargets::Classes(mapped_windows(tokens, *length, rows(), 1))
            }
            (Targets::NextToken, Inputs::Numbers { .. } | Inputs::Mapped { .. }) => {
                BatchTargets::Classes(Vec::new())
            }
        };
        Batch {
            examples: indices.len(),
            inputs,
            targets,
        }
    }
}

/// The windows of a text, moved on by `shift` tokens.
fn windows(
    tokens: &[u16],
    length: usize,
    rows: impl ExactSizeIterator<Item = usize>,
    shift: usize,
) -> Vec<i64> {
    let mut gathered = Vec::with_capacity(rows.len() * length);
    for row in rows {
        let start = row * length + shift;
        gathered.extend(
            tokens[start..start + length]
                .iter()
                .map(|&token| i64::from(token)),
        );
    }
    gathered
}

/// The same of a stored text.
fn mapped_windows(
    tokens: &Mapped,
    length: usize,
    rows: impl ExactSizeIterator<Item = usize>,
    shift: usize,
) -> Vec<i64> {
    let mut gathered = Vec::with_capacity(rows.len() * length);
    for row in rows {
        let start = row * length + shift;
        tokens.tokens(start..start + length, &mut gathered);
    }
    gathered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_the_examples_asked_for_in_their_order() {
        let examples = Examples::classified(vec![0.0, 0.1, 1.0, 1.1, 2.0, 2.1], 2, vec![5, 6, 7]);
        let batch = examples.gather(&[2, 0, 2]);
        assert_eq!(batch.examples, 3);
        assert_eq!(
            batch.inputs,
            BatchInputs::Numbers(vec![2.0, 2.1, 0.0, 0.1, 2.0, 2.1])
        );
        assert_eq!(batch.targets, BatchTargets::Classes(vec![7, 5, 7]));
    }

    #[test]
    fn shuffled_targets_are_the_same_ones_in_another_order() {
        let labels: Vec<u32> = (0..100).collect();
        let mut examples = Examples::classified(vec![0.0; 100], 1, labels.clone());
        examples.shuffle_targets(7);
        let Targets::Classes(shuffled) = &examples.targets else {
            panic!("classes stay classes");
        };
        assert_ne!(*shuffled, labels);
        let mut sorted = shuffled.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, labels);

        let mut pairs = Examples {
            inputs: Inputs::Numbers {
                values: vec![0.0; 50],
                width: 1,
            },
            targets: Targets::Values {
                values: (0..100_u16).map(f32::from).collect(),
                width: 2,
            },
        };
        pairs.shuffle_targets(7);
        let Targets::Values { values, .. } = &pairs.targets else {
            panic!("values stay values");
        };
        assert!(values.chunks(2).all(|pair| pair[1] == pair[0] + 1.0));
        assert_ne!(values[..2], [0.0, 1.0]);

        let mut text = Examples {
            inputs: Inputs::Text {
                tokens: (0..41).collect(),
                length: 4,
            },
            targets: Targets::NextToken,
        };
        text.shuffle_targets(7);
        assert_eq!(text.len(), 10);
        let BatchTargets::Classes(next) = text.gather(&[0]).targets else {
            panic!("tokens");
        };
        assert_ne!(next, [1, 2, 3, 4]);
    }

    #[test]
    fn the_target_of_a_text_is_the_same_text_one_token_on() {
        let examples = Examples {
            inputs: Inputs::Text {
                tokens: (0..8).collect(),
                length: 3,
            },
            targets: Targets::NextToken,
        };
        assert_eq!(examples.len(), 2);
        let batch = examples.gather(&[1, 0]);
        assert_eq!(batch.inputs, BatchInputs::Tokens(vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(batch.targets, BatchTargets::Classes(vec![4, 5, 6, 1, 2, 3]));
    }
}
