//! NPZ: a zip of NumPy arrays. One array holds the inputs, one the targets; two more may say which rows are
//! trained on and which are kept for validation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use memmap2::MmapMut;
use npyz::npz::NpzArchive;
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar};

use super::split::{ClassCounts, Places};
use super::{Inspection, Refused, Running, make_room};
use crate::datasets::content::{Block, Column, Description, Header, Layout, Number, Scaling};
use crate::study::upload::{ArrayLayout, UploadTask};
use crate::study::{Contents, Shape, Target};

const USUAL_INPUTS: [&str; 8] = [
    "X", "x", "inputs", "images", "data", "features", "x_train", "arr_0",
];
const USUAL_TARGETS: [&str; 8] = [
    "y", "Y", "targets", "labels", "target", "label", "y_train", "arr_1",
];
const TRAINING_ROWS: [&str; 2] = ["train_idx", "training_indices"];
const VALIDATION_ROWS: [&str; 3] = ["val_idx", "validation_indices", "valid_idx"];
/// Images have so many channels, when their layout is guessed.
const USUAL_CHANNELS: [u64; 3] = [1, 3, 4];
/// A whole-numbered target with at most so many different values is taken for classes.
const MOST_GUESSED_CLASSES: usize = 100;

/// An array's type, its shape, and how its bytes are to be read.
#[derive(Debug, Clone)]
struct Array {
    name: String,
    shape: Vec<u64>,
    kind: TypeChar,
    /// Bytes of a number.
    size: usize,
    big_endian: bool,
    dtype: String,
}

type Archive<'a> = NpzArchive<BufReader<&'a File>>;

pub(super) fn inspect(
    inspection: &Inspection,
    mut file: File,
    output: &File,
) -> Result<(Layout, Header), Refused> {
    let mut magic = [0; 4];
    let is_zip = file.read_exact(&mut magic).is_ok() && magic.starts_with(b"PK");
    if !is_zip {
        return Err(Refused::because(
            "not an NPZ archive (it does not begin like a zip); save it with numpy.savez",
        ));
    }
    file.seek(SeekFrom::Start(0))?;
    let mut archive: Archive<'_> =
        NpzArchive::new(BufReader::new(&file)).map_err(|error| damaged("the archive", &error))?;
    let mut names: Vec<String> = archive.array_names().map(str::to_owned).collect();
    // The archive lists them in an order of its own, another one each time.
    names.sort();
    let options = &inspection.options;
    let find = |wanted: &Option<String>, usual: &[&str], what: &str| -> Result<String, Refused> {
        let found = match wanted {
            Some(wanted) => names.iter().find(|name| *name == wanted),
            None => usual
                .iter()
                .find_map(|usual| names.iter().find(|name| name == usual)),
        };
        found.cloned().ok_or_else(|| {
            let there = names.join(", ");
            Refused::because(match wanted {
                Some(wanted) => format!("{what}: there is no array {wanted:?}; there are {there}"),
                None => format!(
                    "no array is called {}; say which one with {what}=NAME, one of {there}",
                    usual.join(", ")
                ),
            })
        })
    };
    let input_name = find(&options.inputs, &USUAL_INPUTS, "inputs")?;
    let target_name = find(&options.target, &USUAL_TARGETS, "target")?;
    let inputs = header(&mut archive, &input_name)?;
    let targets = header(&mut archive, &target_name)?;
    let rows = *inputs.shape.first().ok_or_else(|| {
        Refused::because(format!(
            "the array {input_name:?} is a single number, not examples"
        ))
    })?;
    if targets.shape.first() != Some(&rows) {
        return Err(Refused::because(format!(
            "the array {input_name:?} has {rows} examples, but {target_name:?} has the shape {:?}; both must have the same first dimension",
            targets.shape
        )));
    }
    let input = shape(&inputs, options.layout)?;
    let rows = usize::try_from(rows).map_err(|_| Refused::because("too many examples"))?;
    let places = places(&mut archive, &names, inspection, rows)?;
    let decided = decide(inspection, &mut archive, &targets)?;

    let mut layout = Layout::default();
    let number = if inputs.is_byte() {
        Number::U8
    } else {
        Number::F32
    };
    let input_block = layout.block(number, places.used().saturating_mul(input.numbers()));
    let target_block = match &decided {
        Decided::Classes(_) => layout.block(Number::U32, places.used()),
        Decided::Values(width) => layout.block(Number::F32, places.used().saturating_mul(*width)),
    };
    make_room(inspection, &layout, output)?;
    // SAFETY: the file was made for this process alone.
    let mut map = unsafe { MmapMut::map_mut(output)? };

    let (groups, stride) = match input {
        Shape::Image {
            channels,
            height,
            width,
        } => (channels, height * width),
        Shape::Sequence { width, .. } | Shape::Features { width } => (width, 1),
        Shape::Tokens { .. } => (0, 1),
    };
    let mut moments = vec![Running::default(); groups as usize];
    let mut missing = 0;
    let last_to_first = is_channels_last(&inputs, options.layout);
    let width = input.numbers();
    let mut ordered = Vec::new();
    walk(&mut archive, &inputs, |row, bytes| {
        let Some((place, trains)) = places.of(row) else {
            return Ok(());
        };
        inputs.numbers(bytes, &mut ordered);
        if last_to_first && let Shape::Image { channels, .. } = input {
            channels_first(&mut ordered, channels as usize);
        }
        let stride = stride as usize;
        for (index, value) in ordered.iter().enumerate() {
            if value.is_nan() {
                missing += 1;
            } else if trains {
                let group = (index / stride) % moments.len();
                moments[group].push(f64::from(*value));
            }
        }
        write(&mut map, input_block, place * width, &ordered);
        Ok(())
    })?;
    let mut counts = ClassCounts::new(match &decided {
        Decided::Classes(labels) => labels.len(),
        Decided::Values(_) => 0,
    });
    walk(&mut archive, &targets, |row, bytes| {
        let Some((place, trains)) = places.of(row) else {
            return Ok(());
        };
        match &decided {
            Decided::Classes(labels) => {
                let class = labels
                    .get(&targets.whole(bytes))
                    .copied()
                    .unwrap_or_default();
                counts.push(class, trains);
                write_word(&mut map, target_block, place, class);
            }
            Decided::Values(width) => {
                targets.numbers(bytes, &mut ordered);
                if let Some(at) = ordered.iter().position(|value| !value.is_finite()) {
                    return Err(Refused::because(format!(
                        "row {row} of the array {target_name:?}: {} at position {at} is not a finite number",
                        ordered[at]
                    )));
                }
                write(&mut map, target_block, place * width, &ordered);
            }
        }
        Ok(())
    })?;
    map.flush()?;

    let groups: Vec<_> = moments.iter().map(Running::moments).collect();
    let column = |array: &Array, role: &str, missing: u64| Column {
        name: array.name.clone(),
        role: role.into(),
        dtype: array.dtype.clone(),
        shape: array.shape.clone(),
        missing,
    };
    let header = Header {
        contents: Contents::Examples {
            input,
            target: match &decided {
                Decided::Classes(labels) => Target::Classes {
                    count: labels.len() as u64,
                },
                Decided::Values(width) => Target::Values { count: *width },
            },
            training_examples: places.training,
            validation_examples: places.validation,
        },
        inputs: input_block,
        targets: Some(target_block),
        scaling: Scaling {
            stride,
            groups: groups.clone(),
        },
        description: Description {
            columns: vec![
                column(&inputs, "input", missing),
                column(&targets, "target", 0),
            ],
            classes: match &decided {
                Decided::Classes(labels) => counts.described(labels.keys().map(i64::to_string)),
                Decided::Values(_) => vec![],
            },
            missing_values: missing,
            normalization: groups,
            split: places.how.clone(),
            tokens: None,
        },
    };
    Ok((layout, header))
}

fn damaged(what: &str, error: &io::Error) -> Refused {
    Refused::because(format!(
        "{what} cannot be read: {error}; is the file complete?"
    ))
}

/// The header of an array, refused unless its numbers can be read one after the other.
fn header(archive: &mut Archive<'_>, name: &str) -> Result<Array, Refused> {
    let what = format!("the array {name:?}");
    let file = archive
        .by_name(name)
        .map_err(|error| damaged(&what, &error))?
        .ok_or_else(|| Refused::because(format!("{what} is not there")))?;
    let header: &NpyHeader = file.header();
    if header.uses_pickled_array() {
        return Err(Refused::because(format!(
            "{what} holds Python objects (pickled), which are never loaded; save it with a number dtype, e.g. X.astype(\"float32\")"
        )));
    }
    let DType::Plain(plain) = header.dtype() else {
        return Err(Refused::because(format!(
            "{what} has a structured dtype; give each field an array of its own"
        )));
    };
    let size = plain.num_bytes().unwrap_or(0);
    let readable = matches!(
        (plain.type_char(), size),
        (TypeChar::Bool, 1)
            | (TypeChar::Int | TypeChar::Uint, 1 | 2 | 4 | 8)
            | (TypeChar::Float, 4 | 8)
    );
    if !readable {
        return Err(Refused::because(format!(
            "{what} has the dtype {}; booleans, integers, float32 and float64 can be read",
            plain
        )));
    }
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return Err(Refused::because(format!(
            "{what} is in Fortran order; save numpy.ascontiguousarray of it"
        )));
    }
    Ok(Array {
        name: name.to_owned(),
        shape: header.shape().to_vec(),
        kind: plain.type_char(),
        size,
        big_endian: plain.endianness() == Endianness::Big,
        dtype: plain.to_string(),
    })
}

impl Array {
    fn is_byte(&self) -> bool {
        self.size == 1 && matches!(self.kind, TypeChar::Uint | TypeChar::Bool)
    }

    /// Numbers of one row.
    fn row_numbers(&self) -> u64 {
        self.shape
            .iter()
            .skip(1)
            .fold(1, |product, size| product.saturating_mul(*size))
    }

    /// The numbers of a row.
    fn numbers(&self, bytes: &[u8], into: &mut Vec<f32>) {
        into.clear();
        let words = bytes.chunks_exact(self.size);
        match (self.kind, self.size) {
            (TypeChar::Float, 4) => {
                into.extend(words.map(|word| f32::from_bits(self.word(word) as u32)))
            }
            (TypeChar::Float, _) => {
                into.extend(words.map(|word| f64::from_bits(self.word(word)) as f32))
            }
            (TypeChar::Int, _) => into.extend(words.map(|word| self.signed(word) as f32)),
            _ => into.extend(words.map(|word| self.word(word) as f32)),
        }
    }

    /// The first number of a row, as a whole one.
    fn whole(&self, bytes: &[u8]) -> i64 {
        let word = &bytes[..self.size];
        match (self.kind, self.size) {
            (TypeChar::Float, 4) => f32::from_bits(self.word(word) as u32) as i64,
            (TypeChar::Float, _) => f64::from_bits(self.word(word)) as i64,
            (TypeChar::Int, _) => self.signed(word),
            _ => i64::try_from(self.word(word)).unwrap_or(i64::MAX),
        }
    }

    /// The bits of a number of at most eight bytes.
    fn word(&self, bytes: &[u8]) -> u64 {
        let join = |bits: u64, byte: &u8| (bits << 8) | u64::from(*byte);
        if self.big_endian {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        }
    }

    fn signed(&self, bytes: &[u8]) -> i64 {
        let unused = 64 - 8 * self.size;
        ((self.word(bytes) << unused) as i64) >> unused
    }
}

/// Hands over an array row by row.
fn walk(
    archive: &mut Archive<'_>,
    array: &Array,
    mut function: impl FnMut(usize, &[u8]) -> Result<(), Refused>,
) -> Result<(), Refused> {
    let what = format!("the array {:?}", array.name);
    let file = archive
        .by_name(&array.name)
        .map_err(|error| damaged(&what, &error))?
        .ok_or_else(|| Refused::because(format!("{what} is not there")))?;
    let mut data = BufReader::new(file.into_inner());
    let bytes = array.row_numbers().saturating_mul(array.size as u64);
    // A row is a part of an example; one that does not fit the memory limit ends this process.
    let mut row =
        vec![0; usize::try_from(bytes).map_err(|_| Refused::because("a row is too large"))?];
    let rows = array.shape.first().copied().unwrap_or(1);
    for number in 0..rows {
        data.read_exact(&mut row).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                Refused::because(format!(
                    "{what} ends in row {number} of {rows}: the file is cut short"
                ))
            } else {
                damaged(&format!("row {number} of {what}"), &error)
            }
        })?;
        function(number as usize, &row)?;
    }
    // One byte more makes the archive check what it has handed out.
    let mut rest = [0; 1];
    match data.read(&mut rest) {
        Ok(0) => Ok(()),
        Ok(_) => Err(Refused::because(format!(
            "{what} has more bytes than its shape says"
        ))),
        Err(error) => Err(damaged(&what, &error)),
    }
}

fn is_channels_last(array: &Array, layout: Option<ArrayLayout>) -> bool {
    match layout {
        Some(layout) => layout == ArrayLayout::ChannelsLast,
        None => match array.shape.as_slice() {
            [_, first, _, last] => USUAL_CHANNELS.contains(last) && !USUAL_CHANNELS.contains(first),
            _ => false,
        },
    }
}

/// The shape of one example.
fn shape(array: &Array, layout: Option<ArrayLayout>) -> Result<Shape, Refused> {
    let flat = Shape::Features {
        width: array.row_numbers(),
    };
    let does_not_fit = |name: &str, axes: &str| {
        Err(Refused::because(format!(
            "layout: {name} needs the axes {axes}, but the array {:?} has the shape {:?}",
            array.name, array.shape
        )))
    };
    let image = |channels: u64, height: u64, width: u64| Shape::Image {
        channels,
        height,
        width,
    };
    let shape = match (layout, array.shape.as_slice()) {
        (Some(ArrayLayout::Flat), _) | (None, [_] | [_, _]) => flat,
        (Some(ArrayLayout::Sequence), [_, length, width]) => Shape::Sequence {
            length: *length,
            width: *width,
        },
        (Some(ArrayLayout::Sequence), [_, length]) => Shape::Sequence {
            length: *length,
            width: 1,
        },
        (Some(ArrayLayout::Sequence), _) => {
            return does_not_fit("sequence", "examples × length × width");
        }
        (_, [_, height, width]) => image(1, *height, *width),
        (Some(ArrayLayout::ChannelsLast), [_, height, width, channels]) => {
            image(*channels, *height, *width)
        }
        (Some(ArrayLayout::ChannelsFirst), [_, channels, height, width]) => {
            image(*channels, *height, *width)
        }
        (Some(ArrayLayout::ChannelsLast), _) => {
            return does_not_fit("channels_last", "examples × height × width × channels");
        }
        (Some(ArrayLayout::ChannelsFirst), _) => {
            return does_not_fit("channels_first", "examples × channels × height × width");
        }
        (None, [_, a, b, c]) => {
            if is_channels_last(array, None) {
                image(*c, *a, *b)
            } else if USUAL_CHANNELS.contains(a) {
                image(*a, *b, *c)
            } else {
                return Err(Refused::because(format!(
                    "the shape {:?} does not tell where the channels are; say layout=channels_first or layout=channels_last",
                    array.shape
                )));
            }
        }
        (None, _) => {
            return Err(Refused::because(format!(
                "the array {:?} has the shape {:?}; examples of at most three dimensions can be read, or layout=flat makes a vector of each",
                array.name, array.shape
            )));
        }
    };
    if shape.numbers() == 0 {
        return Err(Refused::because(format!(
            "the array {:?} has the shape {:?}: its examples have no number in them",
            array.name, array.shape
        )));
    }
    Ok(shape)
}

/// height × width × channels → channels × height × width
fn channels_first(values: &mut Vec<f32>, channels: usize) {
    let positions = values.len() / channels.max(1);
    let mut turned = Vec::with_capacity(values.len());
    for channel in 0..channels {
        turned.extend((0..positions).map(|position| values[position * channels + channel]));
    }
    *values = turned;
}

fn places(
    archive: &mut Archive<'_>,
    names: &[String],
    inspection: &Inspection,
    rows: usize,
) -> Result<Places, Refused> {
    let given = |usual: &[&'static str]| {
        usual
            .iter()
            .copied()
            .find(|usual| names.iter().any(|name| name == usual))
    };
    let (training, validation) = match (given(&TRAINING_ROWS), given(&VALIDATION_ROWS)) {
        (Some(training), Some(validation)) => (training, validation),
        (None, None) => {
            return Places::drawn(
                rows,
                inspection.options.validation_fraction,
                inspection.options.split_seed,
            );
        }
        (one, other) => {
            return Err(Refused::because(format!(
                "there is the array {:?} but not its counterpart; give both {} and {}, or neither",
                one.or(other).unwrap_or_default(),
                TRAINING_ROWS[0],
                VALIDATION_ROWS[0]
            )));
        }
    };
    let mut read = |name: &str| -> Result<Vec<i64>, Refused> {
        let array = header(archive, name)?;
        if array.shape.len() != 1 || array.kind == TypeChar::Float {
            return Err(Refused::because(format!(
                "the array {name:?} must be a list of whole numbers; it is {} of the shape {:?}",
                array.dtype, array.shape
            )));
        }
        if array.shape[0] > rows as u64 {
            return Err(Refused::because(format!(
                "the array {name:?} names {} rows, but there are {rows}",
                array.shape[0]
            )));
        }
        let mut all = Vec::new();
        walk(archive, &array, |_, bytes| {
            all.push(array.whole(bytes));
            Ok(())
        })?;
        Ok(all)
    };
    let (training_rows, validation_rows) = (read(training)?, read(validation)?);
    Places::given(
        rows,
        &training_rows,
        &validation_rows,
        [training, validation],
    )
}

/// What the targets are.
enum Decided {
    /// The number of each label.
    Classes(BTreeMap<i64, u32>),
    /// So many numbers an example.
    Values(u64),
}

fn decide(
    inspection: &Inspection,
    archive: &mut Archive<'_>,
    targets: &Array,
) -> Result<Decided, Refused> {
    let name = &targets.name;
    let width = targets.row_numbers();
    if targets.shape.len() > 2 || width == 0 {
        return Err(Refused::because(format!(
            "the array {name:?} has the shape {:?}; targets are one class or a list of numbers for each example",
            targets.shape
        )));
    }
    let is_real = targets.kind == TypeChar::Float;
    let asked = inspection.options.task;
    if asked == Some(UploadTask::Regression) || (asked.is_none() && (is_real || width > 1)) {
        return Ok(Decided::Values(width));
    }
    if is_real || width > 1 {
        return Err(Refused::because(format!(
            "task: a classification needs one whole number for each example, but the array {name:?} is {} of the shape {:?}",
            targets.dtype, targets.shape
        )));
    }
    let most = usize::try_from(inspection.limits.max_classes).unwrap_or(usize::MAX);
    let mut labels = BTreeMap::new();
    walk(archive, targets, |_, bytes| {
        if labels.len() <= most {
            labels.insert(targets.whole(bytes), 0);
        }
        Ok(())
    })?;
    if asked.is_none() && labels.len() > MOST_GUESSED_CLASSES {
        return Err(Refused::because(format!(
            "the array {name:?} has more than {MOST_GUESSED_CLASSES} different whole numbers; say task=classification or task=regression"
        )));
    }
    if labels.len() > most {
        return Err(Refused::because(format!(
            "the array {name:?} has more than the {most} classes allowed (datasets.max_classes)"
        )));
    }
    if labels.len() < 2 {
        return Err(Refused::because(format!(
            "the array {name:?} has only one value; there is nothing to learn"
        )));
    }
    for (number, class) in (0..).zip(labels.values_mut()) {
        *class = number;
    }
    Ok(Decided::Classes(labels))
}

/// Writes numbers from `index` on of a block, whose room was made before.
fn write(map: &mut MmapMut, block: Block, index: u64, values: &[f32]) {
    let size = block.number.bytes();
    let at = (block.offset + index * size) as usize;
    match block.number {
        Number::U8 => {
            for (byte, value) in map[at..at + values.len()].iter_mut().zip(values) {
                *byte = *value as u8;
            }
        }
        _ => {
            let place = &mut map[at..at + values.len() * 4];
            for (word, value) in place.chunks_exact_mut(4).zip(values) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }
}

fn write_word(map: &mut MmapMut, block: Block, index: u64, word: u32) {
    let at = (block.offset + index * 4) as usize;
    map[at..at + 4].copy_from_slice(&word.to_le_bytes());
}
