//! Gaussian clusters, one a class: a data set of any size whose difficulty does not depend on it.
//!
//! The centre of class c is drawn from N(0, s²/features · I) with s = 4, and an example is its
//! centre plus N(0, I) noise. Two centres are then about 4·√2 apart whatever the number of features,
//! which leaves a Bayes error of a few per cent for ten classes: learnable, but not trivial.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

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
    let centres = {
        let scale = (CENTRE_NORM / (width as f64).sqrt()) as f32;
        let mut rng = stream(clusters.seed, 0);
        let mut centres = allocate(classes, width)?;
        centres.extend((0..classes * width).map(|_| scale * normal(&mut rng)));
        centres
    };
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
        Ok(Examples {
            features,
            labels,
            width,
        })
    };
    Ok(Split {
        training: draw(clusters.training_examples, 1)?,
        validation: draw(clusters.validation_examples, 2)?,
    })
}

fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

fn normal(rng: &mut ChaCha8Rng) -> f32 {
    StandardNormal.sample(rng)
}

fn size(count: u64) -> Result<usize, DatasetError> {
    usize::try_from(count).map_err(|_| DatasetError::TooLarge)
}

/// Room for rows × width numbers, exactly. A lack of memory ends the process like everywhere else;
/// only a size that cannot even be expressed is an error.
fn allocate(rows: usize, width: usize) -> Result<Vec<f32>, DatasetError> {
    let numbers = rows.checked_mul(width).ok_or(DatasetError::TooLarge)?;
    let bytes = numbers
        .checked_mul(size_of::<f32>())
        .ok_or(DatasetError::TooLarge)?;
    if isize::try_from(bytes).is_err() {
        return Err(DatasetError::TooLarge);
    }
    Ok(Vec::with_capacity(numbers))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(one.training.features, two.training.features[..600 * 20]);
    }

    #[test]
    fn the_nearest_training_mean_classifies_most_validation_examples_but_not_by_construction_all() {
        let split = generate(&CLUSTERS).expect("generates");
        let mut means = vec![vec![0.0_f32; 20]; 4];
        for (index, &label) in split.training.labels.iter().enumerate() {
            for (sum, value) in means[label as usize]
                .iter_mut()
                .zip(split.training.row(index))
            {
                *sum += value / 150.0;
            }
        }
        let hits = (0..split.validation.len())
            .filter(|&index| {
                let distance = |mean: &[f32]| -> f32 {
                    mean.iter()
                        .zip(split.validation.row(index))
                        .map(|(mean, value)| (mean - value).powi(2))
                        .sum()
                };
                let nearest = (0..4)
                    .min_by(|&a, &b| distance(&means[a]).total_cmp(&distance(&means[b])))
                    .expect("four classes");
                nearest as u32 == split.validation.labels[index]
            })
            .count();
        assert!((180..=200).contains(&hits), "{hits} of 200");
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
