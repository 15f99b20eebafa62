//! Where throughput stops rising, on curves with a known knee at 256 and memory up to 4096.

use std::collections::BTreeMap;

use trialhead::analysis::{Evidence, SaturationAnalysis, saturation, throughput};

use crate::worlds::{add_round, random, standard_normal};

const WORLDS: u64 = 500;
const ROUNDS: usize = 3;
const KNEE: f64 = 256.0;

/// The time of one step takes the larger of a fixed part and one that grows.
fn max_form(size: u64) -> f64 {
    1e-3 * (size as f64 / KNEE).max(1.0)
}

/// Both parts add up.
fn additive(size: u64) -> f64 {
    1e-3 * (1.0 + size as f64 / KNEE)
}

/// Three rounds of the powers of two from 1 to `to`: children scatter by 1%, rounds by 3%.
fn measure(seed: u64, to: u64, secs: fn(u64) -> f64) -> SaturationAnalysis {
    let mut draws = random(seed);
    let sizes: Vec<u64> = (0..=to.ilog2()).map(|power| 1 << power).collect();
    let mut evidence = Evidence::default();
    for _ in 0..ROUNDS {
        let effect = 0.03 * standard_normal(&mut draws);
        add_round(&mut evidence, &sizes, |size, _| {
            secs(size) * (effect + 0.01 * standard_normal(&mut draws)).exp()
        });
    }
    let analysis = throughput::analyze(&evidence).expect("an analysis");
    saturation::analyze(&analysis).expect("an analysis")
}

/// How often each batch size is found to be where throughput stops rising; 0 for none.
fn found(name: &str, secs: fn(u64) -> f64) -> BTreeMap<u64, u64> {
    let mut counts = BTreeMap::new();
    for seed in 0..WORLDS {
        let found = measure(seed, 4096, secs).saturation_batch_size;
        *counts.entry(found.map_or(0, |size| size.0)).or_default() += 1;
    }
    println!("{name}: saturation found at {counts:?} of {WORLDS} (0: nowhere)");
    counts
}

#[test]
fn row_26_27_38_nothing_above_512_is_useful_with_a_sharp_knee_at_256() {
    let counts = found("max form", max_form);
    let useless: u64 = counts
        .iter()
        .filter(|(size, _)| ![256, 512].contains(*size))
        .map(|(_, count)| *count)
        .sum();
    assert_eq!(useless, 0, "{counts:?}");
}

#[test]
fn row_26_27_38_saturation_is_at_2048_when_fixed_and_growing_time_add_up() {
    let counts = found("additive form", additive);
    let right = counts.get(&2048).copied().unwrap_or(0);
    assert!(right as f64 >= 0.95 * WORLDS as f64, "{counts:?}");
    // Never taken for saturated while a doubling still gains 20%.
    assert!(counts.keys().all(|size| *size == 0 || *size >= 1024));
}

#[test]
fn the_fitted_knee_is_near_the_true_one() {
    let mut off = 0;
    for seed in 0..WORLDS {
        for secs in [max_form as fn(u64) -> f64, additive] {
            let model = measure(seed, 4096, secs).time_model.expect("a model");
            off += u64::from((model.knee / KNEE - 1.0).abs() > 0.10);
        }
    }
    println!("fitted knee more than 10% off in {off} of {}", 2 * WORLDS);
    assert!(off as f64 <= 0.05 * 2.0 * WORLDS as f64);
}
