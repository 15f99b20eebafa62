//! Points that fill a space evenly: scrambled Sobol sequences (Sobol 1967; Owen 1995).

/// Coordinate `dimension` of point `index` in [0, 1). A seed chooses the scrambling, so that two searches do
/// not look at the same points.
pub fn sobol(index: u32, dimension: u32, seed: u64) -> f64 {
    // Both halves of the seed count.
    let seed = (seed ^ (seed >> 32)) as u32;
    f64::from(sobol_burley::sample(index, dimension, seed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sixteenth_holds_one_of_sixteen_points_whatever_the_seed() {
        for seed in [0, 7, u64::MAX, 1 << 40] {
            for dimension in 0..4 {
                let mut seen = [0; 16];
                for index in 0..16 {
                    seen[(sobol(index, dimension, seed) * 16.0) as usize] += 1;
                }
                assert_eq!(seen, [1; 16], "dimension {dimension}, seed {seed}");
            }
        }
        assert_ne!(sobol(3, 0, 1), sobol(3, 0, 2));
        assert_ne!(sobol(3, 0, 1 << 32), sobol(3, 0, 0));
    }
}
