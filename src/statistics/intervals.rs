//! Quantiles and the small summaries that everything else is made of.

use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// With more degrees of freedom t is the normal distribution to five digits. Besides, the search for
/// the inverse in `statrs` does not end for very many (10⁹, say).
const NEARLY_NORMAL: f64 = 1e5;

/// Quantile of Student's t with `degrees_of_freedom` > 0 at probability `p` in (0, 1).
///
/// `None` outside of that.
pub fn student_t_quantile(p: f64, degrees_of_freedom: f64) -> Option<f64> {
    if !(p > 0.0 && p < 1.0 && degrees_of_freedom > 0.0) {
        return None;
    }
    if degrees_of_freedom > NEARLY_NORMAL {
        return Normal::new(0.0, 1.0).ok().map(|z| z.inverse_cdf(p));
    }
    StudentsT::new(0.0, 1.0, degrees_of_freedom)
        .ok()
        .map(|t| t.inverse_cdf(p))
}

/// The probability that Student's t is below `value`; with endless degrees of freedom that of a normal deviate.
///
/// `None` where a number is not one, or there are no degrees of freedom.
pub fn student_t_cdf(value: f64, degrees_of_freedom: f64) -> Option<f64> {
    if value.is_nan() || degrees_of_freedom.is_nan() || degrees_of_freedom <= 0.0 {
        return None;
    }
    if degrees_of_freedom > NEARLY_NORMAL {
        return Normal::new(0.0, 1.0).ok().map(|z| z.cdf(value));
    }
    StudentsT::new(0.0, 1.0, degrees_of_freedom)
        .ok()
        .map(|t| t.cdf(value))
}

/// Two-sided factor: the interval is estimate ± factor × standard error.
pub fn two_sided_t(confidence: f64, degrees_of_freedom: f64) -> Option<f64> {
    student_t_quantile(0.5 + confidence / 2.0, degrees_of_freedom)
}

/// Arithmetic mean; `None` of nothing.
pub fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Median; `None` of nothing. NaN sorts last.
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        (sorted[middle - 1] + sorted[middle]) / 2.0
    })
}

/// Standard deviation with n − 1; `None` of fewer than two.
pub fn standard_deviation(values: &[f64]) -> Option<f64> {
    if values.len() < 2 {
        return None;
    }
    let mean = mean(values)?;
    let sum: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((sum / (values.len() - 1) as f64).sqrt())
}

/// The difference of two means, b − a, with the ends of its interval, the variances not taken to be equal (Welch
/// 1947). `None` with fewer than two values on a side.
pub fn welch(a: &[f64], b: &[f64], confidence: f64) -> Option<(f64, f64, f64)> {
    let part = |values: &[f64]| Some(standard_deviation(values)?.powi(2) / values.len() as f64);
    let (first, second) = (part(a)?, part(b)?);
    let difference = mean(b)? - mean(a)?;
    let squared = first + second;
    if squared == 0.0 {
        return Some((difference, difference, difference));
    }
    let freedom = squared.powi(2)
        / (first.powi(2) / (a.len() - 1) as f64 + second.powi(2) / (b.len() - 1) as f64);
    let half = two_sided_t(confidence, freedom)? * squared.sqrt();
    Some((difference, difference - half, difference + half))
}

/// Batches that a correlated series is cut into. Twenty leave 19 degrees of freedom, where t is
/// within 7% of the normal factor; more would be shorter than the correlation (Schmeiser 1982).
const BATCHES: usize = 20;

/// Confidence of the interval within one series.
const SERIES_CONFIDENCE: f64 = 0.95;

/// Half-width of the 95% interval of a statistic of a series whose neighbours may be correlated:
/// the statistic of each of 20 batches of neighbours (batch means, batch medians), then Student's t
/// with 19 degrees of freedom over the batches. In the statistic's own unit.
///
/// `None` with fewer than two values a batch.
pub fn batch_half_width(series: &[f64], statistic: impl Fn(&[f64]) -> Option<f64>) -> Option<f64> {
    let of_batches = of_batches(series, statistic)?;
    let factor = two_sided_t(SERIES_CONFIDENCE, (BATCHES - 1) as f64)?;
    Some(factor * standard_deviation(&of_batches)? / (BATCHES as f64).sqrt())
}

/// The statistic of each of 20 batches of neighbours; `None` with fewer than two values a batch.
pub fn of_batches(series: &[f64], statistic: impl Fn(&[f64]) -> Option<f64>) -> Option<Vec<f64>> {
    if series.len() < 2 * BATCHES {
        return None;
    }
    let border = |batch: usize| batch * series.len() / BATCHES;
    (0..BATCHES)
        .map(|batch| statistic(&series[border(batch)..border(batch + 1)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    #[test]
    fn the_interval_of_a_difference_holds_it_as_often_as_it_says() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut draw = |mean: f64, sd: f64, count: usize| -> Vec<f64> {
            (0..count)
                .map(|_| {
                    let z: f64 = StandardNormal.sample(&mut random);
                    mean + sd * z
                })
                .collect()
        };
        let held = (0..4000)
            .filter(|_| {
                let (a, b) = (draw(1.0, 0.1, 5), draw(1.3, 0.4, 8));
                let (_, lower, upper) = welch(&a, &b, 0.9).expect("enough");
                (lower..=upper).contains(&0.3)
            })
            .count();
        assert!((3520..=3680).contains(&held), "{held} of 4000");
        assert_eq!(welch(&[1.0], &[2.0, 3.0], 0.9), None);
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0], 0.9), Some((1.0, 1.0, 1.0)));
    }

    /// Share of 500 series of mean 0 whose interval holds 0.
    fn coverage(correlation: f64) -> f64 {
        let mut random = ChaCha8Rng::seed_from_u64(11);
        let covered = (0..500)
            .filter(|_| {
                let mut state = 0.0;
                let series: Vec<f64> = (0..1000)
                    .map(|_| {
                        let innovation: f64 = StandardNormal.sample(&mut random);
                        state = correlation * state + innovation;
                        state
                    })
                    .collect();
                let half = batch_half_width(&series, mean).expect("a half-width");
                mean(&series).expect("a mean").abs() <= half
            })
            .count();
        covered as f64 / 500.0
    }

    #[test]
    fn batches_cover_the_truth_whether_neighbours_are_correlated_or_not() {
        for correlation in [0.0, 0.5] {
            let covered = coverage(correlation);
            assert!((0.92..=0.98).contains(&covered), "{correlation}: {covered}");
        }
    }

    #[test]
    fn a_short_series_has_no_interval_and_a_constant_one_no_width() {
        assert_eq!(batch_half_width(&[1.0; 39], mean), None);
        assert_eq!(batch_half_width(&[1.0; 40], median), Some(0.0));
    }

    #[test]
    fn quantiles_agree_with_the_tables() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-3, "{a} against {b}");
        close(two_sided_t(0.95, 19.0).expect("a factor"), 2.093);
        close(two_sided_t(0.95, 1e9).expect("a factor"), 1.960);
        close(two_sided_t(0.98, 8.0).expect("a factor"), 2.896);
        assert_eq!(two_sided_t(0.95, 0.0), None);
        assert_eq!(student_t_quantile(1.0, 5.0), None);
        for freedom in [3.0, 40.0, f64::INFINITY] {
            let p = student_t_cdf(1.0, freedom).expect("a probability");
            let back = student_t_quantile(p, freedom).expect("a quantile");
            close(back, 1.0);
        }
        assert_eq!(student_t_cdf(0.0, 0.0), None);
    }

    #[test]
    fn summaries_of_known_lists() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), Some(3.0));
        assert_eq!(standard_deviation(&[1.0, 3.0]), Some(2.0_f64.sqrt()));
        assert_eq!(standard_deviation(&[1.0]), None);
    }
}
