//! The digits of `DIGITS.md`, read from the archive inside the program.

use std::io::Cursor;

use npyz::npz::NpzArchive;

use super::{DatasetError, Examples, Split};

static ARCHIVE: &[u8] = include_bytes!("digits.npz");

const WIDTH: usize = 64;
const LARGEST_PIXEL: f32 = 16.0;

type Archive = NpzArchive<Cursor<&'static [u8]>>;

/// The two splits, normalised with the scalar mean and standard deviation of the training pixels.
pub(super) fn load() -> Result<Split, DatasetError> {
    let mut archive = NpzArchive::new(Cursor::new(ARCHIVE))?;
    let pixels: Vec<u8> = array(&mut archive, "X")?;
    let digits: Vec<u8> = array(&mut archive, "y")?;
    let training_rows: Vec<i32> = array(&mut archive, "train_idx")?;
    let validation_rows: Vec<i32> = array(&mut archive, "val_idx")?;

    let mut training = select(&pixels, &training_rows);
    let mut validation = select(&pixels, &validation_rows);
    let (mean, deviation) = moments(&training);
    for value in training.iter_mut().chain(validation.iter_mut()) {
        *value = (*value - mean) / deviation;
    }
    Ok(Split {
        training: Examples::classified(training, WIDTH, labels(&digits, &training_rows)),
        validation: Examples::classified(validation, WIDTH, labels(&digits, &validation_rows)),
    })
}

fn array<T: npyz::Deserialize>(
    archive: &mut Archive,
    name: &'static str,
) -> Result<Vec<T>, DatasetError> {
    let file = archive
        .by_name(name)?
        .ok_or(DatasetError::MissingArray(name))?;
    Ok(file.into_vec()?)
}

/// The pixels of the images at `rows`, from 0 to 1.
fn select(pixels: &[u8], rows: &[i32]) -> Vec<f32> {
    indices(rows)
        .flat_map(|row| &pixels[row * WIDTH..(row + 1) * WIDTH])
        .map(|&pixel| f32::from(pixel) / LARGEST_PIXEL)
        .collect()
}

fn labels(digits: &[u8], rows: &[i32]) -> Vec<u32> {
    indices(rows).map(|row| u32::from(digits[row])).collect()
}

fn indices(rows: &[i32]) -> impl Iterator<Item = usize> {
    rows.iter().map(|&row| row.unsigned_abs() as usize)
}

/// Mean and (population) standard deviation over all values, summed in double precision.
fn moments(values: &[f32]) -> (f32, f32) {
    let count = values.len() as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance = values
        .iter()
        .map(|&value| (f64::from(value) - mean).powi(2))
        .sum::<f64>()
        / count;
    (mean as f32, variance.sqrt() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datasets::{Inputs, Targets};

    #[test]
    fn the_training_pixels_have_the_known_moments() {
        let mut archive = NpzArchive::new(Cursor::new(ARCHIVE)).expect("opens");
        let pixels: Vec<u8> = array(&mut archive, "X").expect("reads");
        let rows: Vec<i32> = array(&mut archive, "train_idx").expect("reads");
        let (mean, deviation) = moments(&select(&pixels, &rows));
        assert!((mean - 0.3047).abs() < 5e-5, "mean {mean}");
        assert!((deviation - 0.3758).abs() < 5e-5, "deviation {deviation}");

        let split = load().expect("loads");
        let Inputs::Numbers { values, .. } = &split.training.inputs else {
            panic!("pixels are numbers");
        };
        let (mean, deviation) = moments(values);
        assert!(mean.abs() < 1e-5 && (deviation - 1.0).abs() < 1e-5);
    }

    #[test]
    fn every_example_is_in_exactly_one_split_and_the_classes_are_the_published_ones() {
        let split = load().expect("loads");
        let mut counts = [0_u32; 10];
        for examples in [&split.training, &split.validation] {
            let Targets::Classes(labels) = &examples.targets else {
                panic!("digits have classes");
            };
            for &label in labels {
                counts[label as usize] += 1;
            }
        }
        // The class counts that scikit-learn documents for its 1797 examples.
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);

        let mut archive = NpzArchive::new(Cursor::new(ARCHIVE)).expect("opens");
        let mut rows: Vec<i32> = array(&mut archive, "train_idx").expect("reads");
        rows.extend(array::<i32>(&mut archive, "val_idx").expect("reads"));
        rows.sort_unstable();
        assert_eq!(rows, (0..1797).collect::<Vec<i32>>());
    }

    #[test]
    fn a_missing_array_is_named() {
        let mut archive = NpzArchive::new(Cursor::new(ARCHIVE)).expect("opens");
        let error = array::<u8>(&mut archive, "z").expect_err("there is no z");
        assert_eq!(error.to_string(), "the digits archive has no array z");
    }
}
