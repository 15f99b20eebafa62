//! How sure it is which batch size has the highest throughput, by simulation from the design.
//!
//! A draw takes one scatter between children for all batch sizes (it is pooled, so its uncertainty is
//! common: σ² = s²·ν/χ²_ν) and then a normal error for each mean. Jointly that is the multivariate t
//! of the blocked design; block effects cancel in every comparison.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{ChiSquared, Distribution, StandardNormal};

use super::Curve;
use crate::study::BatchSize;

/// Draws that a probability is estimated from: its standard error is at most 0.8%.
const DRAWS: u32 = 4000;

/// Within this share of the best counts as good as the best.
const AS_GOOD_AS_THE_BEST: f64 = 0.95;

/// For each candidate that was timed: the probability that its throughput is the highest of the
/// candidates', and that it is within 5% of the highest. Empty with fewer than two complete rounds:
/// single runs do not tell how far single runs are off.
pub fn best_throughput_probabilities(
    curve: &Curve,
    candidates: &[BatchSize],
    seed: u64,
) -> Vec<(BatchSize, f64, f64)> {
    let mut among = curve.clone();
    among.rates.retain(|(size, _)| candidates.contains(size));
    draw_choices(&among, seed, |rates| {
        rates
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(size, _)| *size)
    })
}

/// Draws the throughput of every batch size from the design and counts how often `pick` chooses each,
/// and how often each is within 5% of the highest throughput drawn: (batch size, share picked, share
/// within 5%). Empty with fewer than two complete rounds.
pub fn draw_choices(
    curve: &Curve,
    seed: u64,
    pick: impl Fn(&[(BatchSize, f64)]) -> Option<BatchSize>,
) -> Vec<(BatchSize, f64, f64)> {
    let Some(sd) = curve.design.residual_sd.filter(|sd| sd.is_finite()) else {
        return Vec::new();
    };
    let error = sd / (curve.design.blocks as f64).sqrt();
    let freedom = curve.design.degrees_of_freedom as f64;
    let Ok(chi_squared) = ChiSquared::new(freedom) else {
        return Vec::new();
    };
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut picked = vec![0_u32; curve.rates.len()];
    let mut within = vec![0_u32; curve.rates.len()];
    for _ in 0..DRAWS {
        let spread: f64 = chi_squared.sample(&mut random);
        let scatter = error * (freedom / spread).sqrt();
        let rates: Vec<(BatchSize, f64)> = curve
            .rates
            .iter()
            .map(|(size, rate)| {
                let z: f64 = StandardNormal.sample(&mut random);
                (*size, rate * (scatter * z).exp())
            })
            .collect();
        let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
        let choice = pick(&rates);
        for (index, (size, rate)) in rates.iter().enumerate() {
            picked[index] += u32::from(choice == Some(*size));
            within[index] += u32::from(*rate >= AS_GOOD_AS_THE_BEST * best);
        }
    }
    let share = |count: u32| f64::from(count) / f64::from(DRAWS);
    curve
        .rates
        .iter()
        .zip(picked.iter().zip(&within))
        .map(|((size, _), (picked, within))| (*size, share(*picked), share(*within)))
        .collect()
}
