//! The stored form of an uploaded data set: a file that is mapped into memory and used as it is.
//!
//! Training examples come first, validation examples after them, each block aligned to 64 bytes; a header
//! in JSON at the end says what is where. Inputs stay as they were uploaded (bytes, or numbers of four
//! bytes); they are normalised when a batch is gathered, with the mean and the deviation of the training
//! examples, and a missing number becomes the mean. So a child opens a data set of any size at no cost,
//! and the kernel shares its pages between children.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use utoipa::ToSchema;

use super::{Examples, Inputs, Split, Targets};
use crate::study::{Contents, Target};

/// The first bytes of every stored data set; the last one is the version of the form.
const MAGIC: [u8; 16] = *b"TRIALHEAD DATA 1";
/// Magic, place and length of the header.
const PREAMBLE_BYTES: u64 = 32;
const ALIGNMENT: u64 = 64;
/// A header is a few pages of JSON, more with many columns and classes.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// What is in a stored data set, and where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Shapes and sizes.
    pub contents: Contents,
    /// The inputs, or the tokens of a text.
    pub inputs: Block,
    /// The targets: classes as `u32`, values as `f32`; none of a text.
    pub targets: Option<Block>,
    /// How inputs are normalised.
    pub scaling: Scaling,
    /// What people want to know.
    pub description: Description,
}

/// Numbers of one kind, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    pub number: Number,
    /// Bytes from the start of the file.
    pub offset: u64,
}

/// How a number is stored; all are little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Number {
    U8,
    U16,
    U32,
    F32,
}

impl Number {
    /// Bytes of one.
    pub fn bytes(self) -> u64 {
        match self {
            Self::U8 => 1,
            Self::U16 => 2,
            Self::U32 | Self::F32 => 4,
        }
    }
}

/// x ← (x − mean)/deviation, by groups of numbers: number i of an example belongs to group
/// (i / stride) mod (number of groups). No groups: as it is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scaling {
    pub stride: u64,
    pub groups: Vec<Moments>,
}

/// Mean and standard deviation over the training examples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Moments {
    /// Mean.
    pub mean: f32,
    /// Standard deviation; 1 where nothing varies.
    pub deviation: f32,
}

/// What people want to know of a data set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Description {
    /// The columns of a table, the arrays of an archive.
    pub columns: Vec<Column>,
    /// The classes, in the order of their numbers; empty for other tasks.
    pub classes: Vec<Class>,
    /// Missing numbers of the inputs; each is replaced by the mean of its column over the training examples.
    pub missing_values: u64,
    /// Mean and deviation by which the inputs are normalised: of each column, of each channel of an image;
    /// fitted on the training examples alone.
    pub normalization: Vec<Moments>,
    /// How the examples were split into training and validation.
    pub split: String,
    /// What the tokens of a text are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<String>,
}

/// A column of a table or an array of an archive.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `input`, `target`, `split` or `dropped`.
    pub role: String,
    /// The type of its values as found.
    pub dtype: String,
    /// Its shape, for an array.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shape: Vec<u64>,
    /// Values that are missing.
    pub missing: u64,
}

/// A class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Class {
    /// The label as found.
    pub name: String,
    /// Training examples of it.
    pub training_examples: u64,
    /// Validation examples of it.
    pub validation_examples: u64,
    /// Its share of the training examples.
    pub prior: f64,
}

/// What is wrong with a stored data set.
#[derive(Debug, Error)]
pub enum Damaged {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    /// It is not one, or of another version.
    #[error("it is not a stored data set of this version")]
    NotOne,
    /// The header cannot be read.
    #[error("its header: {0}")]
    Header(#[from] serde_json::Error),
    /// It ends too early.
    #[error("it ends before its numbers do")]
    Truncated,
    /// The study says something else of it.
    #[error("the study expects other contents")]
    OtherContents,
}

/// Where the blocks of a file go.
#[derive(Debug)]
pub struct Layout {
    end: u64,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            end: PREAMBLE_BYTES,
        }
    }
}

impl Layout {
    /// Room for so many numbers. Saturates.
    pub fn block(&mut self, number: Number, count: u64) -> Block {
        let offset = self.end.next_multiple_of(ALIGNMENT);
        self.end = offset.saturating_add(count.saturating_mul(number.bytes()));
        Block { number, offset }
    }

    /// Bytes of everything but the header.
    pub fn bytes(&self) -> u64 {
        self.end
    }
}

/// Writes the header and, last of all, the bytes that make the file a data set.
///
/// # Errors
/// When it cannot be written.
pub fn finish(file: &mut File, layout: &Layout, header: &Header) -> io::Result<()> {
    let json = serde_json::to_vec(header)?;
    let at = layout.bytes();
    file.set_len(at + json.len() as u64)?;
    file.write_all_at(&json, at)?;
    let mut preamble = Vec::from(MAGIC);
    preamble.extend(at.to_le_bytes());
    preamble.extend((json.len() as u64).to_le_bytes());
    file.write_all_at(&preamble, 0)?;
    file.flush()?;
    file.sync_all()
}

/// A stored data set, mapped.
#[derive(Debug, Clone)]
pub struct Content {
    map: Arc<Mmap>,
    header: Header,
}

impl Content {
    /// Maps a stored data set and checks that everything its header speaks of is there.
    ///
    /// # Errors
    /// When it is not one, or damaged.
    pub fn open(file: &File) -> Result<Self, Damaged> {
        // SAFETY: the file is the service's own, is never changed after it was named by its hash, and is
        // opened for reading only. Were it cut short by force, reading would end this process, not more.
        let map = unsafe { Mmap::map(file)? };
        let word = |at: usize| -> Option<u64> {
            Some(u64::from_le_bytes(map.get(at..at + 8)?.try_into().ok()?))
        };
        let (Some(at), Some(length), true) = (word(16), word(24), map.starts_with(&MAGIC)) else {
            return Err(Damaged::NotOne);
        };
        let end = at.checked_add(length).ok_or(Damaged::Truncated)?;
        if length > MAX_HEADER_BYTES || end > map.len() as u64 {
            return Err(Damaged::Truncated);
        }
        // Both fit the map, so they fit an address.
        let header: Header = serde_json::from_slice(&map[at as usize..end as usize])?;
        let content = Self {
            map: Arc::new(map),
            header,
        };
        content.check()?;
        Ok(content)
    }

    /// What is in it.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn check(&self) -> Result<(), Damaged> {
        let fits = |block: Block, count: u64| {
            let end = count
                .checked_mul(block.number.bytes())
                .and_then(|bytes| bytes.checked_add(block.offset));
            let aligned = block.offset.is_multiple_of(ALIGNMENT);
            if aligned && end.is_some_and(|end| end <= self.map.len() as u64) {
                Ok(())
            } else {
                Err(Damaged::Truncated)
            }
        };
        match self.header.contents {
            Contents::Examples {
                input,
                target,
                training_examples,
                validation_examples,
            } => {
                let rows = training_examples
                    .checked_add(validation_examples)
                    .ok_or(Damaged::Truncated)?;
                fits(
                    self.header.inputs,
                    rows.checked_mul(input.numbers())
                        .ok_or(Damaged::Truncated)?,
                )?;
                let width = match target {
                    Target::Values { count } => count,
                    _ => 1,
                };
                let targets = self.header.targets.ok_or(Damaged::NotOne)?;
                fits(targets, rows.checked_mul(width).ok_or(Damaged::Truncated)?)
            }
            Contents::Text {
                training_tokens,
                validation_tokens,
                ..
            } => fits(
                self.header.inputs,
                training_tokens
                    .checked_add(validation_tokens)
                    .ok_or(Damaged::Truncated)?,
            ),
        }
    }

    /// Both splits; `contents` is what the study was told.
    ///
    /// # Errors
    /// When the file has something else in it.
    pub fn split(
        &self,
        contents: Contents,
        sequence_length: Option<u64>,
    ) -> Result<Split, Damaged> {
        if contents != self.header.contents {
            return Err(Damaged::OtherContents);
        }
        let facts = contents.facts(sequence_length);
        match contents {
            Contents::Examples {
                training_examples,
                validation_examples,
                ..
            } => Ok(Split {
                training: self.examples(&facts, 0, training_examples)?,
                validation: self.examples(&facts, training_examples, validation_examples)?,
            }),
            Contents::Text {
                training_tokens,
                validation_tokens,
                ..
            } => {
                let text = |first: u64, count: u64| Examples {
                    inputs: Inputs::MappedText {
                        tokens: self.numbers(self.header.inputs, first, count),
                        length: facts.input.numbers() as usize,
                    },
                    targets: Targets::NextToken,
                };
                Ok(Split {
                    training: text(0, training_tokens),
                    validation: text(training_tokens, validation_tokens),
                })
            }
        }
    }

    fn examples(
        &self,
        facts: &crate::study::Facts,
        first: u64,
        rows: u64,
    ) -> Result<Examples, Damaged> {
        let width = facts.input.numbers();
        let block = self.header.targets.ok_or(Damaged::NotOne)?;
        let targets = match facts.target {
            Target::Values { count } => {
                let numbers = self.numbers(block, first * count, rows * count);
                Targets::Values {
                    values: bytemuck::try_cast_slice(numbers.bytes())
                        .map_err(|_| Damaged::NotOne)?
                        .to_vec(),
                    width: count as usize,
                }
            }
            _ => {
                let numbers = self.numbers(block, first, rows);
                let labels: &[u32] =
                    bytemuck::try_cast_slice(numbers.bytes()).map_err(|_| Damaged::NotOne)?;
                if labels
                    .iter()
                    .any(|&label| u64::from(label) >= facts.target.width())
                {
                    return Err(Damaged::NotOne);
                }
                Targets::Classes(labels.to_vec())
            }
        };
        Ok(Examples {
            inputs: Inputs::Mapped {
                numbers: self.numbers(self.header.inputs, first * width, rows * width),
                width: width as usize,
                scaling: Arc::new(self.header.scaling.clone()),
            },
            targets,
        })
    }

    /// Numbers `first` to `first + count` of a block, which [`check`](Self::check) has found there.
    fn numbers(&self, block: Block, first: u64, count: u64) -> Mapped {
        let bytes = block.number.bytes();
        Mapped {
            map: Arc::clone(&self.map),
            number: block.number,
            start: (block.offset + first * bytes) as usize,
            length: (count * bytes) as usize,
        }
    }
}

/// Numbers in a mapped file.
#[derive(Debug, Clone)]
pub struct Mapped {
    map: Arc<Mmap>,
    number: Number,
    start: usize,
    length: usize,
}

impl PartialEq for Mapped {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number && self.bytes() == other.bytes()
    }
}

impl Mapped {
    fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.length]
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.length / self.number.bytes() as usize
    }

    /// Appends numbers `range` of them, normalised.
    pub(super) fn gather(
        &self,
        range: std::ops::Range<usize>,
        scaling: &Scaling,
        into: &mut Vec<f32>,
    ) {
        let size = self.number.bytes() as usize;
        let bytes = &self.bytes()[range.start * size..range.end * size];
        match self.number {
            Number::U8 => scale(bytes, scaling, into, |byte| f32::from(*byte)),
            Number::U16 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                scale(pairs, scaling, into, |pair| {
                    f32::from(u16::from_le_bytes(*pair))
                });
            }
            Number::F32 => {
                let (words, _) = bytes.as_chunks::<4>();
                scale(words, scaling, into, |word| f32::from_le_bytes(*word));
            }
            Number::U32 => {
                let (words, _) = bytes.as_chunks::<4>();
                scale(words, scaling, into, |word| {
                    u32::from_le_bytes(*word) as f32
                });
            }
        }
    }

    /// Appends tokens `range` of them.
    pub(super) fn tokens(&self, range: std::ops::Range<usize>, into: &mut Vec<i64>) {
        let size = self.number.bytes() as usize;
        let bytes = &self.bytes()[range.start * size..range.end * size];
        match self.number {
            Number::U8 => into.extend(bytes.iter().map(|&byte| i64::from(byte))),
            _ => {
                let (pairs, _) = bytes.as_chunks::<2>();
                into.extend(
                    pairs
                        .iter()
                        .map(|&pair| i64::from(u16::from_le_bytes(pair))),
                );
            }
        }
    }
}

/// One example's numbers, normalised; what is not a number becomes the mean.
fn scale<T>(
    numbers: &[T],
    scaling: &Scaling,
    into: &mut Vec<f32>,
    number: impl Fn(&T) -> f32 + Copy,
) {
    let clean = |value: f32| if value.is_nan() { 0.0 } else { value };
    let groups = &scaling.groups;
    if groups.is_empty() {
        into.extend(numbers.iter().map(|one| clean(number(one))));
        return;
    }
    let stride = (scaling.stride as usize).max(1);
    if stride == 1 {
        for row in numbers.chunks(groups.len()) {
            into.extend(
                row.iter().zip(groups).map(|(one, group)| {
                    clean((number(one) - group.mean) * group.deviation.recip())
                }),
            );
        }
        return;
    }
    for (run, group) in numbers.chunks(stride).zip(groups.iter().cycle()) {
        let (mean, factor) = (group.mean, group.deviation.recip());
        into.extend(run.iter().map(|one| clean((number(one) - mean) * factor)));
    }
}
