//! How well scores rank.

/// Area under the receiver operating characteristic: the probability that a positive example scores higher
/// than a negative one, ties counting half (Mann & Whitney 1947; Hanley & McNeil 1982). `None` without
/// examples of both kinds, or when a score is not a number.
pub fn area_under_curve(scores: &[(f64, bool)]) -> Option<f64> {
    let positives = scores.iter().filter(|(_, positive)| *positive).count();
    let negatives = scores.len() - positives;
    if positives == 0 || negatives == 0 || scores.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Ranks from 1; those of equal scores are shared equally.
    let mut rank_sum = 0.0;
    let mut seen = 0;
    for tied in sorted.chunk_by(|a, b| a.0 == b.0) {
        let rank = seen as f64 + (tied.len() as f64 + 1.0) / 2.0;
        rank_sum += rank * tied.iter().filter(|(_, positive)| *positive).count() as f64;
        seen += tied.len();
    }
    let (positives, negatives) = (positives as f64, negatives as f64);
    Some((rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_cases_are_what_counting_pairs_gives() {
        let of = |scores: &[(f64, bool)]| area_under_curve(scores);
        assert_eq!(of(&[(0.1, false), (0.9, true)]), Some(1.0));
        assert_eq!(of(&[(0.9, false), (0.1, true)]), Some(0.0));
        assert_eq!(of(&[(0.5, false), (0.5, true)]), Some(0.5));
        assert_eq!(of(&[(0.5, true)]), None);
        assert_eq!(of(&[(f64::NAN, true), (0.0, false)]), None);
        assert_eq!(of(&[]), None);
    }

    proptest! {
        #[test]
        fn it_is_the_share_of_pairs_in_the_right_order(
            scores in prop::collection::vec((0_u8..6, any::<bool>()), 2..40),
        ) {
            let scores: Vec<(f64, bool)> =
                scores.into_iter().map(|(score, positive)| (f64::from(score), positive)).collect();
            let (mut right, mut pairs) = (0.0, 0.0);
            for (positive, _) in scores.iter().filter(|(_, positive)| *positive) {
                for (negative, _) in scores.iter().filter(|(_, positive)| !*positive) {
                    pairs += 1.0;
                    if positive > negative {
                        right += 1.0;
                    } else if positive == negative {
                        right += 0.5;
                    }
                }
            }
            match area_under_curve(&scores) {
                None => prop_assert_eq!(pairs, 0.0),
                Some(area) => prop_assert!((area - right / pairs).abs() < 1e-12),
            }
        }
    }
}
