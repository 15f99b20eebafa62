//! Gaussian clusters, one a class: a data set of any size whose difficulty does not depend on it.
//!
//! The centre of class c is drawn from N(0, s²/features · I) with s = 4, and an example is its
//! centre plus N(0, I) noise. Two centres are then about 4·√2 apart whatever the number of features,
//! which leaves a Bayes error of a few per cent for ten classes: learnable, but not trivial.

use super::random::{MEASURING, TRAINING, TRUTH, VALIDATION, allocate, normal, size, stream};
use super::{DatasetError, Examples, Split};

/// Norm of a cluster's centre, about, in standard deviations of the noise.
const CENTRE_NORM: f64 = 4.0;

/// What is made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clusters {
    pub training_examples: u64,
    pub validation_examples: u64,
    pub features: u64,
    pub classes: u64,
    pub seed: u64,
}

/// Makes both splits. Each has its own stream of random numbers, so the validation examples stay
/// the same when the number of training examples changes within one seed.
pub(super) fn generate(clusters: &Clusters) -> Result<Split, DatasetError> {
    let width = size(clusters.features)?;
    let classes = size(clusters.classes)?;
    let centres = centres(clusters)?;
    let draw = |examples: u64, stream_number: u64| -> Result<Examples, DatasetError> {
        let examples = size(examples)?;
        let mut rng = stream(clusters.seed, stream_number);
        let mut features = allocate(examples, width)?;
        let mut labels = Vec::with_capacity(examples);
        for index in 0..examples {
            // Classes in turn: as balanced as the count allows. The order of training is shuffled.
            let class = index % classes;
            labels.push(u32::try_from(class).map_err(|_| DatasetError::TooLarge)?);
            let centre = &centres[class * width..(class + 1) * width];
            features.extend(centre.iter().map(|centre| centre + normal(&mut rng)));
        }
        Ok(Examples::classified(features, width, labels))
    };
    Ok(Split {
        training: draw(clusters.training_examples, TRAINING)?,
        validation: draw(clusters.validation_examples, VALIDATION)?,
    })
}

/// The Bayes error and the Bayes cross-entropy: what nobody can do better than, from the posterior
/// probabilities under the true centres, averaged over examples that serve nothing else. Each with its
/// standard error.
pub(super) fn bayes(clusters: &Clusters) -> Result<Bayes, DatasetError> {
    /// Distances that are computed at most: a second's work or so.
    const MAX_WORK: usize = 400_000_000;
    let width = size(clusters.features)?;
    let classes = size(clusters.classes)?;
    let centres = centres(clusters)?;
    let work = width.saturating_mul(classes).max(1);
    let samples = (MAX_WORK / work).clamp(100, 20_000);
    let mut rng = stream(clusters.seed, MEASURING);
    let (mut errors, mut entropies) = (Vec::new(), Vec::new());
    for index in 0..samples {
        let class = index % classes;
        let own = &centres[class * width..(class + 1) * width];
        let x: Vec<f32> = own.iter().map(|centre| centre + normal(&mut rng)).collect();
        let exponents: Vec<f64> = centres
            .chunks(width)
            .map(|centre| {
                let square: f32 = centre.iter().zip(&x).map(|(c, x)| (c - x).powi(2)).sum();
                -0.5 * f64::from(square)
            })
            .collect();
        let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = exponents.iter().map(|e| (e - largest).exp()).sum();
        errors.push(1.0 - 1.0 / total);
        entropies.push(
            exponents
                .iter()
                .map(|e| {
                    let logarithm = e - largest - total.ln();
                    -logarithm.exp() * logarithm
                })
                .sum::<f64>(),
        );
    }
    Ok(Bayes {
        error: mean_and_error(&errors),
        cross_entropy: mean_and_error(&entropies),
    })
}

/// What nobody can do better than, each with its standard error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bayes {
    pub error: (f64, f64),
    pub cross_entropy: (f64, f64),
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|value| (value - mean).powi(2))
        .sum::<f64>()
        / count;
    (mean, (variance / count).sqrt())
}

fn centres(clusters: &Clusters) -> Result<Vec<f32>, DatasetError> {
    let width = size(clusters.features)?;
    let classes = size(clusters.classes)?;
    let scale = (CENTRE_NORM / (width as f64).sqrt()) as f32;
    let mut rng = stream(clusters.seed, TRUTH);
    let mut centres = allocate(classes, width)?;
    centres.extend((0..classes * width).map(|_| scale * normal(&mut rng)));
    Ok(centres)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::{Inputs, Targets};

    const CLUSTERS: Clusters = Clusters {
        training_examples: 600,
        validation_examples: 200,
        features: 20,
        classes: 4,
        seed: 11,
    };

    #[test]
    fn the_same_seed_gives_the_same_bits_and_another_seed_others() {
        let one = generate(&CLUSTERS).expect("generates");
        assert_eq!(one, generate(&CLUSTERS).expect("generates"));
        let other = Clusters {
            seed: 12,
            ..CLUSTERS
        };
        assert_ne!(one, generate(&other).expect("generates"));
    }

    #[test]
    fn more_training_examples_leave_the_validation_examples_alone() {
        let larger = Clusters {
            training_examples: 900,
            ..CLUSTERS
        };
        let one = generate(&CLUSTERS).expect("generates");
        let two = generate(&larger).expect("generates");
        assert_eq!(one.validation, two.validation);
        let all: Vec<u32> = (0..600).collect();
        assert_eq!(one.training.gather(&all), two.training.gather(&all));
    }

    /// A class for each validation example: that of the nearest mean of the training examples.
    fn errors_of_the_nearest_mean(clusters: &Clusters) -> f64 {
        let split = generate(clusters).expect("generates");
        let (width, classes) = (clusters.features as usize, clusters.classes as usize);
        let (Inputs::Numbers { values, .. }, Targets::Classes(labels)) =
            (&split.training.inputs, &split.training.targets)
        else {
            panic!("numbers and classes");
        };
        let mut means = vec![vec![0.0_f32; width]; classes];
        let share = classes as f32 / labels.len() as f32;
        for (row, &label) in values.chunks(width).zip(labels) {
            for (sum, value) in means[label as usize].iter_mut().zip(row) {
                *sum += value * share;
            }
        }
        let (Inputs::Numbers { values, .. }, Targets::Classes(labels)) =
            (&split.validation.inputs, &split.validation.targets)
        else {
            panic!("numbers and classes");
        };
        let wrong = values
            .chunks(width)
            .zip(labels)
            .filter(|(row, label)| {
                let distance = |mean: &[f32]| -> f32 {
                    mean.iter().zip(*row).map(|(m, v)| (m - v).powi(2)).sum()
                };
                let nearest = (0..classes)
                    .min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b])))
                    .expect("some class");
                nearest as u32 != **label
            })
            .count();
        wrong as f64 / labels.len() as f64
    }

    #[test]
    fn the_nearest_mean_of_many_examples_comes_to_the_bayes_error() {
        let clusters = Clusters {
            training_examples: 40_000,
            validation_examples: 20_000,
            ..CLUSTERS
        };
        let measured = errors_of_the_nearest_mean(&clusters);
        let (bayes, error) = bayes(&clusters).expect("known").error;
        let spread = (measured / 20_000.0).sqrt() + error;
        assert!(bayes > 0.001, "not by construction zero: {bayes}");
        assert!(
            (measured - bayes).abs() < 4.0 * spread,
            "measured {measured}, Bayes {bayes} ± {error}"
        );
    }

    #[test]
    fn a_size_beyond_the_address_space_is_an_error_not_a_panic() {
        let absurd = Clusters {
            training_examples: u64::MAX / 2,
            ..CLUSTERS
        };
        assert!(matches!(generate(&absurd), Err(DatasetError::TooLarge)));
    }
}
