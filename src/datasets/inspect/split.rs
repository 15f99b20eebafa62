//! Which examples are trained on and which are kept for validation.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::Refused;
use crate::datasets::content::Class;

/// Where a row of the file goes: training rows first, in the order of the file, then validation rows.
#[derive(Debug)]
pub(super) struct Places {
    /// The place of each row; `LEFT_OUT` for rows of neither split.
    places: Vec<u32>,
    pub training: u64,
    pub validation: u64,
    /// For people.
    pub how: String,
}

const LEFT_OUT: u32 = u32::MAX;

impl Places {
    /// `fraction` of the rows, drawn by a seed, are kept for validation: at least one, and not all.
    pub(super) fn drawn(rows: usize, fraction: f64, seed: u64) -> Result<Self, Refused> {
        if rows < 2 {
            return Err(Refused::because(format!(
                "there must be at least 2 examples, one to train on and one to validate on; there is {rows}"
            )));
        }
        if u32::try_from(rows).is_err() {
            return Err(Refused::because(format!(
                "{rows} examples are more than 2^32 − 1"
            )));
        }
        let wanted = ((rows as f64 * fraction).round() as usize).clamp(1, rows - 1);
        let mut order: Vec<u32> = (0..).take(rows).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        let mut kept = vec![false; rows];
        for &row in &order[..wanted] {
            kept[row as usize] = true;
        }
        drop(order);
        Ok(Self::from_kept(
            &kept,
            format!(
                "{wanted} of {rows} examples, drawn by the seed {seed}, are kept for validation"
            ),
        ))
    }

    fn from_kept(kept: &[bool], how: String) -> Self {
        let validation = kept.iter().filter(|kept| **kept).count();
        let training = kept.len() - validation;
        let (mut next_training, mut next_validation) = (0_u32, training as u32);
        let places = kept
            .iter()
            .map(|kept| {
                let next = if *kept {
                    &mut next_validation
                } else {
                    &mut next_training
                };
                *next += 1;
                *next - 1
            })
            .collect();
        Self {
            places,
            training: training as u64,
            validation: validation as u64,
            how,
        }
    }

    /// Rows given by their numbers, from 0; in the order given.
    pub(super) fn given(
        rows: usize,
        training: &[i64],
        validation: &[i64],
        names: [&str; 2],
    ) -> Result<Self, Refused> {
        let mut places = vec![LEFT_OUT; rows];
        let all = training
            .iter()
            .map(|row| (row, names[0]))
            .chain(validation.iter().map(|row| (row, names[1])));
        for (place, (row, name)) in all.enumerate() {
            let slot = usize::try_from(*row)
                .ok()
                .and_then(|row| places.get_mut(row))
                .ok_or_else(|| {
                    Refused::because(format!(
                        "{name} names row {row}, but rows go from 0 to {}",
                        rows.saturating_sub(1)
                    ))
                })?;
            if *slot != LEFT_OUT {
                return Err(Refused::because(format!(
                    "{name} names row {row}, which was named before; each row belongs to one split, once"
                )));
            }
            *slot = u32::try_from(place)
                .map_err(|_| Refused::because("more than 2^32 − 1 examples"))?;
        }
        if training.is_empty() || validation.is_empty() {
            return Err(Refused::because(format!(
                "{} and {} must each name at least one row",
                names[0], names[1]
            )));
        }
        let left = rows - training.len() - validation.len();
        Ok(Self {
            places,
            training: training.len() as u64,
            validation: validation.len() as u64,
            how: format!(
                "given by the arrays {} and {}; {left} rows belong to neither",
                names[0], names[1]
            ),
        })
    }

    /// Where a row goes, and whether it is trained on.
    pub(super) fn of(&self, row: usize) -> Option<(u64, bool)> {
        let place = *self.places.get(row)?;
        (place != LEFT_OUT).then(|| {
            let place = u64::from(place);
            (place, place < self.training)
        })
    }

    /// Rows that belong to a split.
    pub(super) fn used(&self) -> u64 {
        self.training + self.validation
    }
}

/// Counts classes while rows are written.
#[derive(Debug)]
pub(super) struct ClassCounts {
    counts: Vec<[u64; 2]>,
}

impl ClassCounts {
    pub(super) fn new(classes: usize) -> Self {
        Self {
            counts: vec![[0; 2]; classes],
        }
    }

    pub(super) fn push(&mut self, class: u32, trains: bool) {
        if let Some(counts) = self.counts.get_mut(class as usize) {
            counts[usize::from(!trains)] += 1;
        }
    }

    pub(super) fn described(&self, names: impl Iterator<Item = String>) -> Vec<Class> {
        let total: u64 = self.counts.iter().map(|counts| counts[0]).sum();
        names
            .zip(&self.counts)
            .map(|(name, [training, validation])| Class {
                name,
                training_examples: *training,
                validation_examples: *validation,
                prior: *training as f64 / total.max(1) as f64,
            })
            .collect()
    }
}
