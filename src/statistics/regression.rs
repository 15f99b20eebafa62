//! Two small fits: a weighted straight line, and a curve of two parameters that outliers do not pull.

/// y = intercept + slope·x.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Line {
    /// Value at x = 0.
    pub intercept: f64,
    /// Rise for each x.
    pub slope: f64,
}

/// Weighted least squares through (x, y, weight). `None` with fewer than two different x.
pub fn weighted_line(points: &[(f64, f64, f64)]) -> Option<Line> {
    let total: f64 = points.iter().map(|(_, _, weight)| weight).sum();
    if total.is_nan() || total <= 0.0 {
        return None;
    }
    let mean = |value: fn(&(f64, f64, f64)) -> f64| {
        points
            .iter()
            .map(|point| point.2 * value(point))
            .sum::<f64>()
            / total
    };
    let (x_mean, y_mean) = (mean(|point| point.0), mean(|point| point.1));
    let (mut xx, mut xy) = (0.0, 0.0);
    for (x, y, weight) in points {
        xx += weight * (x - x_mean).powi(2);
        xy += weight * (x - x_mean) * (y - y_mean);
    }
    if xx <= x_mean.powi(2) * 1e-18 * total {
        return None;
    }
    let slope = xy / xx;
    Some(Line {
        intercept: y_mean - slope * x_mean,
        slope,
    })
}

/// What a two-parameter fit found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TwoParameterFit {
    /// The parameters.
    pub parameters: [f64; 2],
    /// Σ 2s²(√(1 + (r/s)²) − 1), the soft-L1 loss.
    pub loss: f64,
}

/// Levenberg–Marquardt steps tried at most.
const MAX_STEPS: usize = 200;

/// Fits `model(parameters, x) -> (value, gradient)` to (x, y) by Levenberg–Marquardt, the squares
/// replaced by soft-L1 with scale `s`: residuals beyond it count linearly. Nocedal & Wright,
/// *Numerical Optimization*, §10.3; Triggs et al. 1999 for the reweighting.
pub fn fit_two_parameters(
    points: &[(f64, f64)],
    start: [f64; 2],
    s: f64,
    model: impl Fn([f64; 2], f64) -> (f64, [f64; 2]),
) -> Option<TwoParameterFit> {
    let loss = |parameters: [f64; 2]| -> f64 {
        points
            .iter()
            .map(|(x, y)| {
                let residual = (y - model(parameters, *x).0) / s;
                2.0 * s * s * ((1.0 + residual * residual).sqrt() - 1.0)
            })
            .sum()
    };
    let mut parameters = start;
    let mut best = loss(parameters);
    let mut damping = 1e-3;
    for _ in 0..MAX_STEPS {
        let (mut normal, mut gradient) = ([[0.0; 2]; 2], [0.0; 2]);
        for (x, y) in points {
            let (value, slope) = model(parameters, *x);
            let residual = y - value;
            let weight = 1.0 / (1.0 + (residual / s).powi(2)).sqrt();
            for i in 0..2 {
                gradient[i] += weight * slope[i] * residual;
                for j in 0..2 {
                    normal[i][j] += weight * slope[i] * slope[j];
                }
            }
        }
        let (a, d) = (
            normal[0][0] * (1.0 + damping) + 1e-12,
            normal[1][1] * (1.0 + damping) + 1e-12,
        );
        let b = normal[0][1];
        let determinant = a * d - b * b;
        let step = [
            (d * gradient[0] - b * gradient[1]) / determinant,
            (a * gradient[1] - b * gradient[0]) / determinant,
        ];
        let next = [parameters[0] + step[0], parameters[1] + step[1]];
        let next_loss = loss(next);
        if next_loss.is_finite() && next_loss <= best {
            let gained = best - next_loss;
            (parameters, best) = (next, next_loss);
            damping = (damping * 0.3).max(1e-12);
            if step.iter().all(|size| size.abs() < 1e-10) || gained < 1e-16 {
                break;
            }
        } else {
            damping *= 10.0;
            if damping > 1e12 {
                break;
            }
        }
    }
    (best.is_finite() && parameters.iter().all(|value| value.is_finite())).then_some(
        TwoParameterFit {
            parameters,
            loss: best,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_line_is_found_again(intercept in -1e3..1e3_f64, slope in -1e3..1e3_f64) {
            let points: Vec<_> = [1.0, 2.0, 8.0, 64.0]
                .iter()
                .map(|&x: &f64| (x, intercept + slope * x, x.sqrt()))
                .collect();
            let line = weighted_line(&points).expect("a line");
            prop_assert!((line.intercept - intercept).abs() < 1e-6);
            prop_assert!((line.slope - slope).abs() < 1e-6);
        }

        #[test]
        fn an_exponential_is_found_again_despite_an_outlier(a in -2.0..2.0_f64, b in -1.0..1.0_f64) {
            let mut points: Vec<_> = (0..12)
                .map(|i| (f64::from(i) / 4.0, a + b * f64::from(i) / 4.0))
                .collect();
            points[5].1 += 3.0;
            let fit = fit_two_parameters(&points, [0.0, 0.0], 0.01, |[a, b], x| (a + b * x, [1.0, x]))
                .expect("a fit");
            prop_assert!((fit.parameters[0] - a).abs() < 0.02, "{fit:?}");
            prop_assert!((fit.parameters[1] - b).abs() < 0.02, "{fit:?}");
        }
    }

    #[test]
    fn a_single_x_has_no_line() {
        assert_eq!(weighted_line(&[(1.0, 2.0, 1.0), (1.0, 3.0, 1.0)]), None);
        assert_eq!(weighted_line(&[]), None);
    }
}
