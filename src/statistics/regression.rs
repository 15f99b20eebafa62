//! Two small fits: a weighted straight line, and a curve of a few parameters.

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

/// What a fit of `N` parameters found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit<const N: usize> {
    /// The parameters.
    pub parameters: [f64; N],
    /// The sum that was minimised.
    pub loss: f64,
}

/// What is summed over the residuals.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// r².
    Squares,
    /// 2s²(√(1 + (r/s)²) − 1) with this s (soft-L1): residuals beyond it count linearly.
    SoftL1(f64),
}

impl Loss {
    fn of(self, residual: f64) -> f64 {
        match self {
            Self::Squares => residual * residual,
            Self::SoftL1(s) => 2.0 * s * s * ((1.0 + (residual / s).powi(2)).sqrt() - 1.0),
        }
    }

    /// The weight of a residual in the next linear step.
    fn weight(self, residual: f64) -> f64 {
        match self {
            Self::Squares => 1.0,
            Self::SoftL1(s) => 1.0 / (1.0 + (residual / s).powi(2)).sqrt(),
        }
    }
}

/// Levenberg–Marquardt steps tried at most.
const MAX_STEPS: usize = 200;

/// Minimises the summed loss of residuals by Levenberg–Marquardt. `residuals(parameters, push)` pushes every
/// residual with its gradient. Nocedal & Wright, *Numerical Optimization*, §10.3; Triggs et al. 1999 for
/// the reweighting.
pub fn least_squares<const N: usize>(
    start: [f64; N],
    loss: Loss,
    residuals: impl Fn([f64; N], &mut dyn FnMut(f64, [f64; N])),
) -> Option<Fit<N>> {
    let total = |parameters: [f64; N]| -> f64 {
        let mut sum = 0.0;
        residuals(parameters, &mut |residual, _| sum += loss.of(residual));
        sum
    };
    let mut parameters = start;
    let mut best = total(parameters);
    let mut damping = 1e-3;
    for _ in 0..MAX_STEPS {
        let (mut normal, mut gradient) = ([[0.0; N]; N], [0.0; N]);
        residuals(parameters, &mut |residual, slope| {
            let weight = loss.weight(residual);
            for i in 0..N {
                gradient[i] -= weight * slope[i] * residual;
                for j in 0..N {
                    normal[i][j] += weight * slope[i] * slope[j];
                }
            }
        });
        for (i, row) in normal.iter_mut().enumerate() {
            row[i] = row[i] * (1.0 + damping) + 1e-12;
        }
        let step = solve(normal, gradient);
        let mut next = parameters;
        for (value, change) in next.iter_mut().zip(step) {
            *value += change;
        }
        let next_loss = total(next);
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
    (best.is_finite() && parameters.iter().all(|value| value.is_finite())).then_some(Fit {
        parameters,
        loss: best,
    })
}

/// Solves a system with a positive definite matrix: elimination needs no pivots then.
fn solve<const N: usize>(mut matrix: [[f64; N]; N], mut right: [f64; N]) -> [f64; N] {
    for pivot in 0..N {
        let above = matrix[pivot];
        for row in pivot + 1..N {
            let factor = matrix[row][pivot] / above[pivot];
            for (value, over) in matrix[row].iter_mut().zip(above) {
                *value -= factor * over;
            }
            right[row] -= factor * right[pivot];
        }
    }
    for row in (0..N).rev() {
        let known: f64 = (row + 1..N).map(|it| matrix[row][it] * right[it]).sum();
        right[row] = (right[row] - known) / matrix[row][row];
    }
    right
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
        fn three_parameters_are_found_again(a in -2.0..2.0_f64, b in -1.0..1.0_f64, c in 0.2..2.0_f64) {
            let x = |i: i32| f64::from(i) / 4.0;
            let fit = least_squares([0.0, 0.0, 1.0], Loss::Squares, |[p, q, r], push| {
                for i in -8..8 {
                    let value = p + q * x(i) + (r * x(i)).exp();
                    let truth = a + b * x(i) + (c * x(i)).exp();
                    push(value - truth, [1.0, x(i), x(i) * (r * x(i)).exp()]);
                }
            })
            .expect("a fit");
            for (found, true_value) in fit.parameters.iter().zip([a, b, c]) {
                prop_assert!((found - true_value).abs() < 1e-4, "{fit:?}");
            }
        }

        #[test]
        fn an_exponential_is_found_again_despite_an_outlier(a in -2.0..2.0_f64, b in -1.0..1.0_f64) {
            let mut points: Vec<_> = (0..12)
                .map(|i| (f64::from(i) / 4.0, a + b * f64::from(i) / 4.0))
                .collect();
            points[5].1 += 3.0;
            let fit = least_squares([0.0, 0.0], Loss::SoftL1(0.01), |[a, b], push| {
                for (x, y) in &points {
                    push(a + b * x - y, [1.0, *x]);
                }
            })
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
