//! A linear teacher: y = w·x + noise with x ~ N(0, I) and |w| = 1 for each output, so that the function
//! has a variance of 1 and the irreducible mean squared error is the variance of the noise.

use super::random::{TRAINING, TRUTH, VALIDATION, allocate, normal, size, stream};
use super::{DatasetError, Examples, Inputs, Split, Targets};

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Teacher {
    pub training_examples: u64,
    pub validation_examples: u64,
    pub features: u64,
    pub outputs: u64,
    pub noise_deviation: f64,
    pub seed: u64,
}

/// Makes both splits.
pub(super) fn generate(teacher: &Teacher) -> Result<Split, DatasetError> {
    let width = size(teacher.features)?;
    let outputs = size(teacher.outputs)?;
    let noise = teacher.noise_deviation as f32;
    let mut rng = stream(teacher.seed, TRUTH);
    let mut weights: Vec<f32> = allocate(outputs, width)?;
    for _ in 0..outputs {
        let row: Vec<f32> = (0..width).map(|_| normal(&mut rng)).collect();
        let norm = row.iter().map(|weight| weight * weight).sum::<f32>().sqrt();
        weights.extend(row.iter().map(|weight| weight / norm));
    }
    let draw = |examples: u64, number: u64| -> Result<Examples, DatasetError> {
        let examples = size(examples)?;
        let mut rng = stream(teacher.seed, number);
        let mut features: Vec<f32> = allocate(examples, width)?;
        let mut values: Vec<f32> = allocate(examples, outputs)?;
        for example in 0..examples {
            features.extend((0..width).map(|_| normal(&mut rng)));
            let x = &features[example * width..];
            for weights in weights.chunks(width) {
                let clean: f32 = weights.iter().zip(x).map(|(w, x)| w * x).sum();
                values.push(clean + noise * normal(&mut rng));
            }
        }
        Ok(Examples {
            inputs: Inputs::Numbers {
                values: features,
                width,
            },
            targets: Targets::Values {
                values,
                width: outputs,
            },
        })
    };
    Ok(Split {
        training: draw(teacher.training_examples, TRAINING)?,
        validation: draw(teacher.validation_examples, VALIDATION)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_targets_have_the_variance_of_the_function_and_the_noise() {
        let split = generate(&Teacher {
            training_examples: 20_000,
            validation_examples: 10,
            features: 5,
            outputs: 2,
            noise_deviation: 0.5,
            seed: 3,
        })
        .expect("generates");
        let Targets::Values { values, width: 2 } = &split.training.targets else {
            panic!("two values");
        };
        for output in 0..2 {
            let variance = values
                .iter()
                .skip(output)
                .step_by(2)
                .map(|&value| f64::from(value).powi(2))
                .sum::<f64>()
                / 20_000.0;
            // 1 + 0.5², with a standard error of 1.25·√(2/20000).
            assert!((variance - 1.25).abs() < 5.0 * 0.0125, "{variance}");
        }
    }
}
