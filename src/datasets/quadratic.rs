//! The noisy quadratic model (Zhang et al. 2019, arXiv:1907.04164) as examples.
//!
//! Every example has the inputs xᵢ = √(hᵢd/2) with hᵢ = 1/i, and targets yᵢ ~ N(0, d/2). A network that
//! multiplies each input by a factor θᵢ then has the expected squared error d/2 + ½Σhᵢθᵢ², a gradient of hᵢθᵢ,
//! and gradient noise whose covariance is hᵢ for one example: diagonal, and equal to the curvature. So one
//! step of SGD with learning rate η and batch size B takes E[θᵢ²] to (1 − ηhᵢ)²·E[θᵢ²] + η²hᵢ/B, which a test
//! follows.

use super::random::{TRAINING, VALIDATION, allocate, normal, size, stream};
use super::{DatasetError, Examples, Inputs, Split, Targets};

/// Makes both splits, of so many training and validation examples.
pub(super) fn generate(
    [training, validation]: [u64; 2],
    dimensions: u64,
    seed: u64,
) -> Result<Split, DatasetError> {
    let width = size(dimensions)?;
    let half = dimensions as f64 / 2.0;
    let deviation = half.sqrt() as f32;
    let draw = |examples: u64, number: u64| -> Result<Examples, DatasetError> {
        let examples = size(examples)?;
        let mut rng = stream(seed, number);
        let mut inputs: Vec<f32> = allocate(examples, width)?;
        let mut values: Vec<f32> = allocate(examples, width)?;
        for _ in 0..examples {
            inputs.extend((1..=width).map(|index| (half / index as f64).sqrt() as f32));
            values.extend((0..width).map(|_| deviation * normal(&mut rng)));
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
