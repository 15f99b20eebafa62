//! Text of a Markov chain: each token depends on the `order` tokens before it. The probabilities after a
//! context are a softmax of N(0, s²) with s = 1.5, so that some tokens are likely and none impossible;
//! the entropy rate follows from the stationary distribution of contexts, and is computed, not sampled.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::random::{TRAINING, TRUTH, VALIDATION, allocate, normal, size, stream};
use super::{DatasetError, Examples, Inputs, Split, Targets};

/// Standard deviation of the logits.
const LOGIT_DEVIATION: f64 = 1.5;
/// Contexts × tokens at most: what fits comfortably in memory beside training.
pub(super) const MAX_TABLE: u64 = 1 << 22;
/// Steps until the chain has forgotten where it began.
const BURN_IN: usize = 1000;

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    pub training_examples: u64,
    pub validation_examples: u64,
    pub sequence_length: u64,
    pub vocabulary: u64,
    pub order: u64,
    pub seed: u64,
}

/// The probabilities of the next token after each context.
struct Table {
    vocabulary: usize,
    contexts: usize,
    /// Row-major, contexts × vocabulary.
    probabilities: Vec<f64>,
}

impl Table {
    fn new(chain: &Chain) -> Result<Self, DatasetError> {
        let order = u32::try_from(chain.order).map_err(|_| DatasetError::TooLarge)?;
        let contexts = chain
            .vocabulary
            .checked_pow(order)
            .filter(|contexts| contexts.saturating_mul(chain.vocabulary) <= MAX_TABLE)
            .ok_or(DatasetError::TooLarge)?;
        let (contexts, vocabulary) = (size(contexts)?, size(chain.vocabulary)?);
        let mut rng = stream(chain.seed, TRUTH);
        let mut probabilities = allocate(contexts, vocabulary)?;
        for _ in 0..contexts {
            let weights: Vec<f64> = (0..vocabulary)
                .map(|_| (LOGIT_DEVIATION * f64::from(normal(&mut rng))).exp())
                .collect();
            let total: f64 = weights.iter().sum();
            probabilities.extend(weights.iter().map(|weight| weight / total));
        }
        Ok(Self {
            vocabulary,
            contexts,
            probabilities,
        })
    }

    fn after(&self, context: usize) -> &[f64] {
        &self.probabilities[context * self.vocabulary..(context + 1) * self.vocabulary]
    }

    /// The context that follows when `token` is said.
    fn next(&self, context: usize, token: usize) -> usize {
        (context * self.vocabulary + token) % self.contexts
    }

    fn draw(&self, context: usize, rng: &mut ChaCha8Rng) -> usize {
        let mut left: f64 = rng.random();
        for (token, probability) in self.after(context).iter().enumerate() {
            left -= probability;
            if left < 0.0 {
                return token;
            }
        }
        self.vocabulary - 1
    }

    /// Σ over contexts of their stationary probability × the entropy of what follows, nats.
    fn entropy_rate(&self) -> f64 {
        const SWEEPS: usize = 2000;
        const TOLERANCE: f64 = 1e-13;
        let mut share = vec![1.0 / self.contexts as f64; self.contexts];
        for _ in 0..SWEEPS {
            let mut moved = vec![0.0; self.contexts];
            for (context, share) in share.iter().enumerate() {
                for (token, probability) in self.after(context).iter().enumerate() {
                    moved[self.next(context, token)] += share * probability;
                }
            }
            let change: f64 = moved.iter().zip(&share).map(|(a, b)| (a - b).abs()).sum();
            share = moved;
            if change < TOLERANCE {
                break;
            }
        }
        share
            .iter()
            .enumerate()
            .map(|(context, share)| {
                let entropy: f64 = self.after(context).iter().map(|p| -p * p.ln()).sum();
                share * entropy
            })
            .sum()
    }
}

/// The least cross-entropy that any model of this language can reach, nats for each token.
pub(super) fn entropy_rate(chain: &Chain) -> Result<f64, DatasetError> {
    Ok(Table::new(chain)?.entropy_rate())
}

/// Makes both splits.
pub(super) fn generate(chain: &Chain) -> Result<Split, DatasetError> {
    let table = Table::new(chain)?;
    let length = size(chain.sequence_length)?;
    let draw = |examples: u64, number: u64| -> Result<Examples, DatasetError> {
        let count = size(examples)?
            .checked_mul(length)
            .and_then(|count| count.checked_add(1))
            .ok_or(DatasetError::TooLarge)?;
        let mut rng = stream(chain.seed, number);
        let mut context = 0;
        for _ in 0..BURN_IN {
            context = table.next(context, table.draw(context, &mut rng));
        }
        let mut tokens: Vec<u16> = allocate(count, 1)?;
        for _ in 0..count {
            let token = table.draw(context, &mut rng);
            tokens.push(u16::try_from(token).map_err(|_| DatasetError::TooLarge)?);
            context = table.next(context, token);
        }
        Ok(Examples {
            inputs: Inputs::Text { tokens, length },
            targets: Targets::NextToken,
        })
    };
    Ok(Split {
        training: draw(chain.training_examples, TRAINING)?,
        validation: draw(chain.validation_examples, VALIDATION)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAIN: Chain = Chain {
        training_examples: 4000,
        validation_examples: 10,
        sequence_length: 25,
        vocabulary: 5,
        order: 2,
        seed: 8,
    };

    #[test]
    fn the_entropy_rate_is_the_loss_of_the_one_who_knows_the_probabilities() {
        let table = Table::new(&CHAIN).expect("a table");
        let split = generate(&CHAIN).expect("generates");
        let Inputs::Text { tokens, .. } = &split.training.inputs else {
            panic!("a text");
        };
        let losses: Vec<f64> = tokens
            .windows(3)
            .map(|window| {
                let [a, b, next] = [0, 1, 2].map(|at| usize::from(window[at]));
                -table.after(a * 5 + b)[next].ln()
            })
            .collect();
        let count = losses.len() as f64;
        let mean = losses.iter().sum::<f64>() / count;
        let variance = losses.iter().map(|loss| (loss - mean).powi(2)).sum::<f64>() / count;
        let rate = entropy_rate(&CHAIN).expect("known");
        assert!(
            (mean - rate).abs() < 5.0 * (variance / count).sqrt(),
            "sampled {mean}, computed {rate}"
        );
        assert!(rate < 5.0_f64.ln() * 0.9, "says something: {rate}");
    }

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_one_another() {
        let one = generate(&CHAIN).expect("generates");
        assert_eq!(one, generate(&CHAIN).expect("generates"));
        let other = Chain { seed: 9, ..CHAIN };
        assert_ne!(one, generate(&other).expect("generates"));
        assert_eq!(one.training.len(), 4000);
        assert_eq!(one.validation.len(), 10);
    }

    #[test]
    fn a_table_larger_than_memory_is_an_error() {
        let absurd = Chain {
            vocabulary: 1024,
            order: 4,
            ..CHAIN
        };
        assert!(matches!(generate(&absurd), Err(DatasetError::TooLarge)));
    }
}
