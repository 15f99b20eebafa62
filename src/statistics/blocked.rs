//! A complete randomised block design: every treatment once in every block.
//!
//! Here treatments are batch sizes, blocks are rounds, and a value is ln t of one child process. The
//! block effect takes out what changes from round to round (a host that gets slower, say), so the
//! residual is what one child differs from another. Montgomery, *Design and Analysis of
//! Experiments*, ch. 4.

use super::intervals::{mean, two_sided_t};

/// What the design says.
#[derive(Debug, Clone, PartialEq)]
pub struct BlockedDesign {
    /// Mean of each treatment over the blocks.
    pub means: Vec<f64>,
    /// What each block adds to every treatment; they sum to 0. All 0 with one treatment, where a
    /// block cannot be told from a residual.
    pub block_effects: Vec<f64>,
    /// Residual standard deviation, pooled over treatments; `None` with one block.
    pub residual_sd: Option<f64>,
    /// Degrees of freedom of the residual.
    pub degrees_of_freedom: u64,
    /// Blocks.
    pub blocks: u64,
}

impl BlockedDesign {
    /// Fits `values[treatment][block]`. Every treatment must have every block.
    ///
    /// With one treatment there is nothing to compare within a block, and the residual is the
    /// scatter over blocks. `None` when there is no value, or the table is not complete.
    pub fn fit(values: &[Vec<f64>]) -> Option<Self> {
        let blocks = values.first()?.len();
        if blocks == 0 || values.iter().any(|row| row.len() != blocks) {
            return None;
        }
        let means: Vec<f64> = values.iter().filter_map(|row| mean(row)).collect();
        let grand = mean(&means)?;
        let block_effects: Vec<f64> = (0..blocks)
            .map(|block| {
                let sum: f64 = values.iter().map(|row| row[block]).sum();
                if values.len() > 1 {
                    sum / values.len() as f64 - grand
                } else {
                    0.0
                }
            })
            .collect();
        let degrees_of_freedom = (values.len() - 1).max(1) * (blocks - 1);
        let sum_of_squares: f64 = values
            .iter()
            .zip(&means)
            .flat_map(|(row, treatment)| {
                row.iter()
                    .zip(&block_effects)
                    .map(move |(value, effect)| (value - treatment - effect).powi(2))
            })
            .sum();
        let residual_sd = (blocks > 1).then(|| (sum_of_squares / degrees_of_freedom as f64).sqrt());
        Some(Self {
            means,
            block_effects,
            residual_sd,
            degrees_of_freedom: degrees_of_freedom as u64,
            blocks: blocks as u64,
        })
    }

    /// Half-width of a treatment's interval, under the conditions of these blocks: what a block
    /// adds to all treatments alike is not in it.
    pub fn half_width(&self, confidence: f64) -> Option<f64> {
        let factor = two_sided_t(confidence, self.degrees_of_freedom as f64)?;
        Some(factor * self.residual_sd? / (self.blocks as f64).sqrt())
    }

    /// Half-width of the interval of a difference between two treatments; block effects cancel.
    pub fn difference_half_width(&self, confidence: f64) -> Option<f64> {
        Some(self.half_width(confidence)? * 2.0_f64.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_effects_are_taken_out() {
        // Treatments 1 and 2, blocks +0, +10, +20: no residual at all.
        let values = vec![vec![1.0, 11.0, 21.0], vec![2.0, 12.0, 22.0]];
        let design = BlockedDesign::fit(&values).expect("a design");
        assert_eq!(design.means, [11.0, 12.0]);
        assert!(design.residual_sd.expect("a residual") < 1e-12);
        assert_eq!(design.block_effects, [-10.0, 0.0, 10.0]);
        assert_eq!(design.degrees_of_freedom, 2);
    }

    #[test]
    fn a_table_worked_by_hand() {
        // Means 2 and 4, effects −1 and 1, residuals ±0.5: Σr² = 1 on one degree of freedom.
        let design = BlockedDesign::fit(&[vec![1.5, 2.5], vec![2.5, 5.5]]).expect("a design");
        assert_eq!(design.means, [2.0, 4.0]);
        assert_eq!(design.block_effects, [-1.0, 1.0]);
        assert_eq!(design.residual_sd, Some(1.0));
        // t(0.975, 1) = 12.706; standard error 1/√2.
        let half = design.half_width(0.95).expect("a half-width");
        assert!((half - 12.706 / 2.0_f64.sqrt()).abs() < 1e-3, "{half}");
        let half = design.difference_half_width(0.95).expect("a half-width");
        assert!((half - 12.706).abs() < 1e-3, "{half}");
    }

    #[test]
    fn a_single_treatment_has_the_scatter_of_its_blocks() {
        let design = BlockedDesign::fit(&[vec![1.0, 3.0]]).expect("a design");
        assert_eq!(design.residual_sd, Some(2.0_f64.sqrt()));
        assert_eq!(design.degrees_of_freedom, 1);
    }

    #[test]
    fn one_block_gives_no_interval_and_an_incomplete_table_no_design() {
        let design = BlockedDesign::fit(&[vec![1.0], vec![2.0]]).expect("a design");
        assert_eq!(design.residual_sd, None);
        assert_eq!(design.half_width(0.95), None);
        assert_eq!(BlockedDesign::fit(&[vec![1.0, 2.0], vec![1.0]]), None);
        assert_eq!(BlockedDesign::fit(&[]), None);
    }
}
