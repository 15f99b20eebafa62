//! Steps to target against batch size: S(B) = (S_min^k + (E_min/B)^k)^(1/k).
//!
//! Few steps are enough at a large batch (S_min of them), few examples at a small one (E_min); k is how
//! sharply one regime turns into the other. k = 1 is the hyperbola of McCandlish et al. 2018
//! (arXiv:1812.06162, eq. 2.11); measured curves are a little sharper, so ln k has the prior
//! N(ln 1.4, 0.35). A batch size whose runs did not reach the target enters as one-sided residual: never
//! as a number, and never dropped. How sure the fit is comes from a parametric bootstrap.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::statistics::regression::{Loss, least_squares};

/// Median of the prior of k.
const PRIOR_K: f64 = 1.4;
/// Its standard deviation in ln.
const PRIOR_K_SD: f64 = 0.35;
/// What a prior of the critical batch size leaves open, in ln.
pub const PRIOR_CRITICAL_SD: f64 = 0.7;
/// Without a noise scale: hardly anything, just enough that a curve with one regime only has a fit.
const NO_PRIOR_SD: f64 = 4.0;
/// What the search leaves undecided, in ln S: the best of so many trials is not the best there is.
pub const SEARCH_SD: f64 = 0.04;
/// Refits that the uncertainty is read from.
pub const DRAWS: usize = 400;

/// Steps at one batch size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Point {
    /// ln S with its standard error.
    Measured {
        /// ln B.
        ln_batch: f64,
        /// ln S.
        ln_steps: f64,
        /// Standard error of ln S.
        error: f64,
    },
    /// S is more than this.
    MoreThan {
        /// ln B.
        ln_batch: f64,
        /// ln of the cap.
        ln_steps: f64,
        /// Standard error of a ln S there.
        error: f64,
    },
}

impl Point {
    fn ln_batch(&self) -> f64 {
        match *self {
            Self::Measured { ln_batch, .. } | Self::MoreThan { ln_batch, .. } => ln_batch,
        }
    }
}

/// A curve.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepsCurve {
    /// ln S_min.
    pub ln_min_steps: f64,
    /// ln E_min.
    pub ln_min_examples: f64,
    /// ln k.
    pub ln_sharpness: f64,
}

impl StepsCurve {
    fn of([ln_min_steps, ln_min_examples, ln_sharpness]: [f64; 3]) -> Self {
        Self {
            ln_min_steps,
            ln_min_examples,
            ln_sharpness,
        }
    }

    /// k.
    pub fn sharpness(&self) -> f64 {
        self.ln_sharpness.exp()
    }

    /// ln of the critical batch size E_min/S_min.
    pub fn ln_critical(&self) -> f64 {
        self.ln_min_examples - self.ln_min_steps
    }

    /// ln S and its gradient in the three parameters.
    fn ln_steps_and_gradient(&self, ln_batch: f64) -> (f64, [f64; 3]) {
        let k = self.sharpness();
        let (flat, falling) = (self.ln_min_steps, self.ln_min_examples - ln_batch);
        let most = flat.max(falling);
        let (p, q) = ((k * (flat - most)).exp(), (k * (falling - most)).exp());
        let value = most + (p + q).ln() / k;
        let (p, q) = (p / (p + q), q / (p + q));
        (value, [p, q, p * flat + q * falling - value])
    }

    /// ln S at a batch size.
    pub fn ln_steps(&self, ln_batch: f64) -> f64 {
        self.ln_steps_and_gradient(ln_batch).0
    }

    /// dln S/dln B = −x/(1 + x) with x = (B_crit/B)^k: −1 where doubling the batch halves the steps, 0 where
    /// it saves none.
    pub fn slope(&self, ln_batch: f64) -> f64 {
        let x = (self.sharpness() * (self.ln_critical() - ln_batch)).exp();
        if x.is_infinite() {
            -1.0
        } else {
            -x / (1.0 + x)
        }
    }
}

/// What is known of the critical batch size before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    /// ln of where it is expected.
    pub ln_critical: f64,
    /// Standard deviation.
    pub sd: f64,
}

/// A fit with what it leaves open.
#[derive(Debug, Clone, PartialEq)]
pub struct StepsFit {
    /// The curve.
    pub curve: StepsCurve,
    /// Curves as likely as the data leave them.
    pub draws: Vec<StepsCurve>,
    /// Standard deviation of ln S beyond what seeds and search explain.
    pub excess_sd: f64,
    /// Batch sizes that reached the target.
    pub measured: usize,
}

/// Fits the curve. `None` with nothing measured.
pub fn fit(points: &[Point], prior: Option<Prior>, seed: u64) -> Option<StepsFit> {
    let measured: Vec<(f64, f64, f64)> = points
        .iter()
        .filter_map(|point| match *point {
            Point::Measured {
                ln_batch,
                ln_steps,
                error,
            } => Some((ln_batch, ln_steps, error)),
            Point::MoreThan { .. } => None,
        })
        .collect();
    let middle = points.iter().map(Point::ln_batch).sum::<f64>() / points.len() as f64;
    let prior = prior.unwrap_or(Prior {
        ln_critical: middle,
        sd: NO_PRIOR_SD,
    });
    let fewest = measured.iter().map(|it| it.1).reduce(f64::min)?;
    let least = measured.iter().map(|it| it.0 + it.1).reduce(f64::min)?;
    let start = [fewest, least, PRIOR_K.ln()];
    let once = |points: &[Point], start: [f64; 3], excess: f64| {
        least_squares(start, Loss::Squares, |parameters, push| {
            let curve = StepsCurve::of(parameters);
            for point in points {
                let (Point::Measured {
                    ln_batch,
                    ln_steps,
                    error,
                }
                | Point::MoreThan {
                    ln_batch,
                    ln_steps,
                    error,
                }) = *point;
                let (value, slope) = curve.ln_steps_and_gradient(ln_batch);
                let error = (error * error + excess * excess).sqrt();
                let residual = (value - ln_steps) / error;
                let counts = matches!(point, Point::Measured { .. }) || residual < 0.0;
                if counts {
                    push(residual, slope.map(|it| it / error));
                }
            }
            push(
                (curve.ln_sharpness - PRIOR_K.ln()) / PRIOR_K_SD,
                [0.0, 0.0, 1.0 / PRIOR_K_SD],
            );
            push(
                (curve.ln_critical() - prior.ln_critical) / prior.sd,
                [-1.0 / prior.sd, 1.0 / prior.sd, 0.0],
            );
        })
    };
    let mut best = once(points, start, 0.0)?;
    let excess_sd = excess(&measured, StepsCurve::of(best.parameters));
    if excess_sd > 0.0 {
        best = once(points, best.parameters, excess_sd)?;
    }
    let curve = StepsCurve::of(best.parameters);
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut draws = Vec::with_capacity(DRAWS);
    let mut drawn = points.to_vec();
    for _ in 0..DRAWS {
        for point in &mut drawn {
            if let Point::Measured {
                ln_batch,
                ln_steps,
                error,
            } = point
            {
                let z: f64 = StandardNormal.sample(&mut random);
                *ln_steps = curve.ln_steps(*ln_batch) + z * error.hypot(excess_sd);
            }
        }
        draws.extend(
            once(&drawn, best.parameters, excess_sd).map(|fit| StepsCurve::of(fit.parameters)),
        );
    }
    Some(StepsFit {
        curve,
        draws,
        excess_sd,
        measured: measured.len(),
    })
}

/// The scatter around the curve beyond the standard errors, from what is left of χ² (DerSimonian & Laird
/// 1986); with three parameters it takes more than three points to see any.
fn excess(measured: &[(f64, f64, f64)], curve: StepsCurve) -> f64 {
    let free = measured.len() as f64 - 3.0;
    if free <= 0.0 {
        return 0.0;
    }
    let (mut chi_squared, mut weights) = (0.0, 0.0);
    for (ln_batch, ln_steps, error) in measured {
        chi_squared += ((ln_steps - curve.ln_steps(*ln_batch)) / error).powi(2);
        weights += 1.0 / (error * error);
    }
    let mean_weight = weights / measured.len() as f64;
    ((chi_squared - free) / free / mean_weight).max(0.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(curve: StepsCurve, batches: &[f64], error: f64) -> Vec<Point> {
        batches
            .iter()
            .map(|batch| Point::Measured {
                ln_batch: batch.ln(),
                ln_steps: curve.ln_steps(batch.ln()),
                error,
            })
            .collect()
    }

    #[test]
    fn the_hyperbola_of_mccandlish_is_k_1() {
        let curve = StepsCurve {
            ln_min_steps: 100_f64.ln(),
            ln_min_examples: 6400_f64.ln(),
            ln_sharpness: 0.0,
        };
        // S/S_min − 1 = (E/E_min − 1)⁻¹
        for batch in [1.0, 16.0, 64.0, 1000.0_f64] {
            let steps = curve.ln_steps(batch.ln()).exp();
            let examples = steps * batch;
            let left = steps / 100.0 - 1.0;
            let right = 1.0 / (examples / 6400.0 - 1.0);
            assert!((left / right - 1.0).abs() < 1e-9, "{batch}");
        }
        assert!((curve.slope(64_f64.ln()) + 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_curve_is_found_again_and_its_gradient_is_right() {
        let curve = StepsCurve {
            ln_min_steps: 728_f64.ln(),
            ln_min_examples: (728.0 * 634.0_f64).ln(),
            ln_sharpness: 1.42_f64.ln(),
        };
        let batches = [1.0, 16.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];
        let found = fit(&exact(curve, &batches, 0.01), None, 1).expect("a fit");
        assert!((found.curve.ln_critical() - curve.ln_critical()).abs() < 0.02);
        assert_eq!(found.draws.len(), DRAWS);
        for batch in batches {
            let h = 1e-6;
            let (value, gradient) = curve.ln_steps_and_gradient(batch.ln());
            let mut parameters = [
                curve.ln_min_steps,
                curve.ln_min_examples,
                curve.ln_sharpness,
            ];
            for (index, slope) in gradient.iter().enumerate() {
                parameters[index] += h;
                let moved = StepsCurve::of(parameters).ln_steps(batch.ln());
                parameters[index] -= h;
                assert!(((moved - value) / h - slope).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn a_cap_pushes_the_curve_up_and_nothing_below_it_does() {
        let curve = StepsCurve {
            ln_min_steps: 10_f64.ln(),
            ln_min_examples: 640_f64.ln(),
            ln_sharpness: 1.4_f64.ln(),
        };
        let mut points = exact(curve, &[16.0, 64.0, 256.0], 0.1);
        let cap = |steps: f64| Point::MoreThan {
            ln_batch: 4_f64.ln(),
            ln_steps: steps.ln(),
            error: 0.1,
        };
        let without = fit(&points, None, 1).expect("a fit").curve;
        points.push(cap(100.0));
        let below = fit(&points, None, 1).expect("a fit").curve;
        assert!((without.ln_critical() - below.ln_critical()).abs() < 0.02);
        points.pop();
        points.push(cap(400.0));
        let above = fit(&points, None, 1).expect("a fit").curve;
        assert!(above.ln_steps(4_f64.ln()) > below.ln_steps(4_f64.ln()) + 0.1);
    }

    /// Heavy-ball momentum on the noisy quadratic: doubling the batch halves the steps all the way.
    #[test]
    fn a_curve_that_never_bends_has_a_fit_all_the_same() {
        let seen = [
            (16.0, 24_567.0),
            (128.0, 3_073.0),
            (256.0, 1_536.0),
            (512.0, 769.0),
            (1024.0, 386.0_f64),
        ];
        let points: Vec<Point> = seen
            .iter()
            .map(|(batch, steps): &(f64, f64)| Point::Measured {
                ln_batch: batch.ln(),
                ln_steps: steps.ln(),
                error: 0.04,
            })
            .collect();
        let fit = fit(&points, None, 1).expect("a fit");
        assert!(fit.draws.len() > DRAWS * 9 / 10, "{}", fit.draws.len());
        let steep = fit
            .draws
            .iter()
            .filter(|it| it.slope(1024_f64.ln()) <= -0.8);
        assert!(steep.count() * 10 >= fit.draws.len() * 8, "{:?}", fit.curve);
    }
}
