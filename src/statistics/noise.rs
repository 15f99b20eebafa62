//! The gradient noise scale from squared norms of gradients (McCandlish et al. 2018, arXiv:1812.06162,
//! appendix A.1).

/// Signal and noise of the gradient at one point of training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GradientNoise {
    /// |G|², the squared norm of the gradient over all examples. An estimate: it may be below 0.
    pub square: f64,
    /// tr Σ, the trace of the covariance of one example's gradient.
    pub variance: f64,
}

impl GradientNoise {
    /// Unbiased from the mean squared norm of gradients of `small` examples and the squared norm of one of
    /// `big`, eq. A.2 and A.3; the examples are drawn without replacement from `all`, so the big batch's
    /// gradient lies nearer to G by tr Σ/all.
    pub fn from_squares(
        small_square: f64,
        small: f64,
        big_square: f64,
        big: f64,
        all: f64,
    ) -> Self {
        let variance = (small_square - big_square) / (1.0 / small - 1.0 / big);
        let square = (big * big_square - small * small_square) / (big - small);
        Self {
            square: square + variance / all,
            variance,
        }
    }
}

/// Neighbours on either side that |G|² and tr Σ are averaged over before their ratio is taken: an average of
/// ratios would be biased.
const NEIGHBOURS: usize = 2;

/// The simple noise scale tr Σ/|G|² along a run, from (step, noise): the geometric mean weighted by the steps
/// that each point stands for. `None` where |G|² is nowhere above 0.
pub fn noise_scale(points: &[(f64, GradientNoise)]) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for index in 0..points.len() {
        let first = index.saturating_sub(NEIGHBOURS);
        let last = (index + NEIGHBOURS).min(points.len() - 1);
        let around = &points[first..=last];
        let square: f64 = around.iter().map(|(_, noise)| noise.square).sum();
        let variance: f64 = around.iter().map(|(_, noise)| noise.variance).sum();
        if square <= 0.0 || variance <= 0.0 {
            continue;
        }
        let before = if index == 0 { 0.0 } else { points[index - 1].0 };
        let after = points.get(index + 1).map_or(points[index].0, |next| next.0);
        let weight = (after - before) / 2.0;
        sum += weight * (variance / square).ln();
        weights += weight;
    }
    (weights > 0.0).then(|| (sum / weights).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_and_noise_are_told_apart_exactly_in_expectation() {
        // E|g_B|² = |G|² + tr Σ·(1/B − 1/N) for a batch drawn without replacement.
        let (signal, variance, all) = (3.0, 120.0, 1000.0);
        let expected = |batch: f64| signal + variance * (1.0 / batch - 1.0 / all);
        let noise = GradientNoise::from_squares(expected(16.0), 16.0, expected(512.0), 512.0, all);
        assert!((noise.square - signal).abs() < 1e-9, "{noise:?}");
        assert!((noise.variance - variance).abs() < 1e-9, "{noise:?}");
        let points: Vec<_> = (1..10).map(|step| (f64::from(step), noise)).collect();
        assert!((noise_scale(&points).expect("a scale") - 40.0).abs() < 1e-9);
    }

    #[test]
    fn without_a_signal_there_is_no_scale() {
        let noise = GradientNoise {
            square: -1.0,
            variance: 2.0,
        };
        assert_eq!(noise_scale(&[(1.0, noise), (2.0, noise)]), None);
        assert_eq!(noise_scale(&[]), None);
    }
}
