//! The noisy quadratic model (Zhang et al. 2019, arXiv:1907.04164) as examples.
//!
//! Every example has the inputs xᵢ = √hᵢ with hᵢ = 1/i, and targets yᵢ ~ N(0, 1). A network that multiplies
//! each input by a factor θᵢ then has the expected squared error 1 + Σ hᵢθᵢ²/d, a gradient of 2/d·hᵢθᵢ, and
//! gradient noise whose covariance is (2/d)²·hᵢ for one example: diagonal, and proportional to the
//! curvature. So one step of SGD with learning rate η and batch size B takes E[θᵢ²] to
//! (1 − ηʹhᵢ)²·E[θᵢ²] + ηʹ²hᵢ/B with ηʹ = 2η/d, which a test follows.

use super::random::{TRAINING, VALIDATION, allocate, normal, size, stream};
use super::{DatasetError, Examples, Inputs, Split, Targets};

/// Makes both splits, of so many training and validation examples.
pub(super) fn generate(
    [training, validation]: [u64; 2],
    dimensions: u64,
    seed: u64,
) -> Result<Split, DatasetError> {
    let width = size(dimensions)?;
    let draw = |examples: u64, number: u64| -> Result<Examples, DatasetError> {
        let examples = size(examples)?;
        let mut rng = stream(seed, number);
        let mut inputs: Vec<f32> = allocate(examples, width)?;
        let mut values: Vec<f32> = allocate(examples, width)?;
        for _ in 0..examples {
            inputs.extend((1..=width).map(|index| (1.0 / index as f64).sqrt() as f32));
            values.extend((0..width).map(|_| normal(&mut rng)));
        }
        Ok(Examples {
            inputs: Inputs::Numbers {
                values: inputs,
                width,
            },
            targets: Targets::Values { values, width },
        })
    };
    Ok(Split {
        training: draw(training, TRAINING)?,
        validation: draw(validation, VALIDATION)?,
    })
}
