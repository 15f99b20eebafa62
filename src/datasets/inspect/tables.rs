//! Tables: CSV and Parquet. One column is the target, every other one is a feature.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Seek, SeekFrom};

use memmap2::MmapMut;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;

use super::split::{ClassCounts, Places};
use super::{Inspection, Refused, Running, make_room};
use crate::datasets::content::{Block, Column, Description, Header, Layout, Number, Scaling};
use crate::study::upload::UploadTask;
use crate::study::{Contents, Shape, Target};

/// Names that a column of targets usually has.
const USUAL_TARGETS: [&str; 4] = ["target", "label", "class", "y"];
/// A whole-numbered target with at most so many different values is taken for classes.
const MOST_GUESSED_CLASSES: usize = 100;
/// What stands for a missing value.
const MISSING: [&str; 7] = ["", "na", "n/a", "nan", "null", "none", "?"];

/// A value of a table.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell {
    Missing,
    Number(f64),
    Text(String),
}

/// What is done with a row: what people call it ("line 7"), and its values.
type RowVisitor<'a> = dyn FnMut(&str, &[Cell]) -> Result<(), Refused> + 'a;

/// A table that can be walked through more than once.
pub(super) trait Table {
    /// The names of the columns.
    fn columns(&mut self) -> Result<Vec<String>, Refused>;
    /// Visits every row, in order.
    fn walk(&mut self, row: &mut RowVisitor<'_>) -> Result<(), Refused>;
}

/// A CSV file with a header line.
#[derive(Debug)]
pub(super) struct Csv {
    file: File,
}

impl Csv {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    fn reader(&mut self) -> Result<csv::Reader<BufReader<&File>>, Refused> {
        self.file.seek(SeekFrom::Start(0))?;
        Ok(csv::ReaderBuilder::new()
            .has_headers(true)
            .trim(csv::Trim::All)
            .from_reader(BufReader::new(&self.file)))
    }
}

fn csv_error(error: &csv::Error) -> Refused {
    let line = error.position().map_or_else(String::new, |position| {
        format!("line {}: ", position.line())
    });
    let detail = match error.kind() {
        csv::ErrorKind::UnequalLengths {
            expected_len, len, ..
        } => format!("{len} values instead of {expected_len}"),
        csv::ErrorKind::Utf8 { .. } => "not UTF-8".to_owned(),
        _ => error.to_string(),
    };
    Refused::because(format!("{line}{detail}"))
}

impl Table for Csv {
    fn columns(&mut self) -> Result<Vec<String>, Refused> {
        let mut reader = self.reader()?;
        let header = reader.headers().map_err(|error| csv_error(&error))?;
        Ok(header.iter().map(str::to_owned).collect())
    }

    fn walk(&mut self, row: &mut RowVisitor<'_>) -> Result<(), Refused> {
        let mut reader = self.reader()?;
        let mut record = csv::StringRecord::new();
        let mut cells = Vec::new();
        loop {
            match reader.read_record(&mut record) {
                Ok(false) => return Ok(()),
                Ok(true) => {}
                Err(error) => return Err(csv_error(&error)),
            }
            let line = record.position().map_or(0, csv::Position::line);
            cells.clear();
            cells.extend(record.iter().map(cell));
            row(&format!("line {line}"), &cells)?;
        }
    }
}

/// A value as it is written.
fn cell(text: &str) -> Cell {
    if MISSING
        .iter()
        .any(|missing| text.eq_ignore_ascii_case(missing))
    {
        return Cell::Missing;
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_nan() => Cell::Missing,
        Ok(number) => Cell::Number(number),
        Err(_) => Cell::Text(text.to_owned()),
    }
}

/// A Parquet file.
pub(super) struct Parquet {
    reader: SerializedFileReader<File>,
}

fn parquet_error(error: &parquet::errors::ParquetError) -> Refused {
    Refused::because(format!("not a readable Parquet file: {error}"))
}

impl Parquet {
    pub(super) fn new(file: File) -> Result<Self, Refused> {
        let reader = SerializedFileReader::new(file).map_err(|error| parquet_error(&error))?;
        Ok(Self { reader })
    }
}

impl Table for Parquet {
    fn columns(&mut self) -> Result<Vec<String>, Refused> {
        let schema = self.reader.metadata().file_metadata().schema();
        schema
            .get_fields()
            .iter()
            .map(|field| {
                if field.is_primitive() {
                    Ok(field.name().to_owned())
                } else {
                    Err(Refused::because(format!(
                        "column {:?} is nested; give each value a column of its own",
                        field.name()
                    )))
                }
            })
            .collect()
    }

    fn walk(&mut self, row: &mut RowVisitor<'_>) -> Result<(), Refused> {
        let rows = self
            .reader
            .get_row_iter(None)
            .map_err(|error| parquet_error(&error))?;
        let mut cells = Vec::new();
        for (number, record) in rows.enumerate() {
            let record = record.map_err(|error| parquet_error(&error))?;
            cells.clear();
            for (name, field) in record.get_column_iter() {
                cells.push(field_cell(name, field)?);
            }
            row(&format!("row {number}"), &cells)?;
        }
        Ok(())
    }
}

fn field_cell(name: &str, field: &Field) -> Result<Cell, Refused> {
    let number = |value: f64| {
        if value.is_nan() {
            Cell::Missing
        } else {
            Cell::Number(value)
        }
    };
    Ok(match field {
        Field::Null => Cell::Missing,
        Field::Bool(value) => number(f64::from(u8::from(*value))),
        Field::Byte(value) => number(f64::from(*value)),
        Field::Short(value) => number(f64::from(*value)),
        Field::Int(value) => number(f64::from(*value)),
        Field::Long(value) => number(*value as f64),
        Field::UByte(value) => number(f64::from(*value)),
        Field::UShort(value) => number(f64::from(*value)),
        Field::UInt(value) => number(f64::from(*value)),
        Field::ULong(value) => number(*value as f64),
        Field::Float16(value) => number(f64::from(*value)),
        Field::Float(value) => number(f64::from(*value)),
        Field::Double(value) => number(*value),
        Field::Str(value) => Cell::Text(value.clone()),
        _ => {
            return Err(Refused::because(format!(
                "column {name:?} has a type that is neither a number nor a string; convert it"
            )));
        }
    })
}

/// What the first walk learns of a column.
#[derive(Debug, Default)]
struct Seen {
    missing: u64,
    numbers: u64,
    /// The first value that is no number, and where.
    text: Option<(String, String)>,
    all_whole: bool,
}

/// What the target is.
enum Targets {
    /// The number of each label.
    Classes(BTreeMap<Label, u32>),
    Values,
}

/// A label, ordered as people would order them: numbers by value, words by letter.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Number(i64),
    /// A number that is not whole, by its bits.
    Real(u64),
    Text(String),
}

impl Label {
    fn of(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Missing => None,
            Cell::Number(number) if number.fract() == 0.0 && number.abs() < 9e15 => {
                Some(Self::Number(*number as i64))
            }
            Cell::Number(number) => Some(Self::Real(number.to_bits())),
            Cell::Text(text) => Some(Self::Text(text.clone())),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Real(bits) => f64::from_bits(*bits).to_string(),
            Self::Text(text) => text.clone(),
        }
    }
}

pub(super) fn inspect(
    inspection: &Inspection,
    table: &mut dyn Table,
    output: &File,
) -> Result<(Layout, Header), Refused> {
    let options = &inspection.options;
    let names = table.columns()?;
    check_names(&names, inspection)?;
    let target = target_column(&names, inspection)?;
    let is_feature = |column: usize| column != target && !options.drop.contains(&names[column]);
    let features: Vec<usize> = (0..names.len())
        .filter(|&column| is_feature(column))
        .collect();
    if features.is_empty() {
        return Err(Refused::because(format!(
            "there is no column beside the target {:?} to predict it from",
            names[target]
        )));
    }

    // The first walk: types, missing values, labels.
    let mut seen: Vec<Seen> = names
        .iter()
        .map(|_| Seen {
            all_whole: true,
            ..Seen::default()
        })
        .collect();
    let mut labels: Option<BTreeMap<Label, u32>> = Some(BTreeMap::new());
    let most_labels = usize::try_from(inspection.limits.max_classes).unwrap_or(usize::MAX);
    let mut rows = 0_usize;
    table.walk(&mut |place, cells| {
        rows += 1;
        for (seen, cell) in seen.iter_mut().zip(cells) {
            match cell {
                Cell::Missing => seen.missing += 1,
                Cell::Number(number) => {
                    seen.numbers += 1;
                    seen.all_whole &= number.fract() == 0.0;
                }
                Cell::Text(text) => {
                    if seen.text.is_none() {
                        seen.text = Some((text.clone(), place.to_owned()));
                    }
                }
            }
        }
        match cells.get(target).and_then(Label::of) {
            None => {
                return Err(Refused::because(format!(
                    "{place}: the target {:?} is missing; fill it in, or leave the row out",
                    names[target]
                )));
            }
            Some(label) => {
                if let Some(known) = &mut labels {
                    known.entry(label).or_insert(0);
                    if known.len() > most_labels {
                        labels = None;
                    }
                }
            }
        }
        Ok(())
    })?;
    if rows == 0 {
        return Err(Refused::because("there is a header, but no row"));
    }
    for &column in &features {
        if let Some((text, place)) = &seen[column].text {
            let name = &names[column];
            return Err(Refused::because(format!(
                "{place}: column {name:?} has {text:?}, which is no number; features must be numbers: encode it, or leave the column out with drop={name}"
            )));
        }
        if seen[column].numbers == 0 {
            let name = &names[column];
            return Err(Refused::because(format!(
                "column {name:?} has no value at all; leave it out with drop={name}"
            )));
        }
    }
    let targets = decide(inspection, &names[target], &seen[target], labels)?;

    // The second walk: the numbers.
    let places = Places::drawn(rows, options.validation_fraction, options.split_seed)?;
    let width = features.len() as u64;
    let mut layout = Layout::default();
    let inputs = layout.block(Number::F32, places.used().saturating_mul(width));
    let target_block = match &targets {
        Targets::Classes(_) => layout.block(Number::U32, places.used()),
        Targets::Values => layout.block(Number::F32, places.used()),
    };
    make_room(inspection, &layout, output)?;
    // SAFETY: the file was made for this process alone.
    let mut map = unsafe { MmapMut::map_mut(output)? };
    let mut moments = vec![Running::default(); features.len()];
    let mut counts = ClassCounts::new(match &targets {
        Targets::Classes(labels) => labels.len(),
        Targets::Values => 0,
    });
    let mut row = 0;
    table.walk(&mut |_, cells| {
        if let Some((place, trains)) = places.of(row) {
            for (index, &column) in features.iter().enumerate() {
                let value = match cells.get(column) {
                    Some(Cell::Number(number)) => *number as f32,
                    _ => f32::NAN,
                };
                put(
                    &mut map,
                    inputs,
                    place * width + index as u64,
                    value.to_bits(),
                );
                if trains {
                    moments[index].push(f64::from(value));
                }
            }
            let cell = cells.get(target).unwrap_or(&Cell::Missing);
            let bits = match (&targets, cell) {
                (Targets::Classes(labels), cell) => {
                    let class = Label::of(cell)
                        .and_then(|label| labels.get(&label).copied())
                        .unwrap_or_default();
                    counts.push(class, trains);
                    class
                }
                (Targets::Values, Cell::Number(number)) => (*number as f32).to_bits(),
                (Targets::Values, _) => f32::NAN.to_bits(),
            };
            put(&mut map, target_block, place, bits);
        }
        row += 1;
        Ok(())
    })?;
    map.flush()?;

    let groups: Vec<_> = moments.iter().map(Running::moments).collect();
    let columns = names
        .iter()
        .enumerate()
        .map(|(column, name)| Column {
            name: name.clone(),
            role: if column == target {
                "target"
            } else if is_feature(column) {
                "input"
            } else {
                "dropped"
            }
            .into(),
            dtype: if seen[column].text.is_some() {
                "text"
            } else if seen[column].all_whole {
                "integer"
            } else {
                "real"
            }
            .into(),
            shape: vec![],
            missing: seen[column].missing,
        })
        .collect();
    let header = Header {
        contents: Contents::Examples {
            input: Shape::Features { width },
            target: match &targets {
                Targets::Classes(labels) => Target::Classes {
                    count: labels.len() as u64,
                },
                Targets::Values => Target::Values { count: 1 },
            },
            training_examples: places.training,
            validation_examples: places.validation,
        },
        inputs,
        targets: Some(target_block),
        scaling: Scaling {
            stride: 1,
            groups: groups.clone(),
        },
        description: Description {
            columns,
            classes: match &targets {
                Targets::Classes(labels) => counts.described(labels.keys().map(Label::name)),
                Targets::Values => vec![],
            },
            missing_values: features.iter().map(|&column| seen[column].missing).sum(),
            normalization: groups,
            split: places.how.clone(),
            tokens: None,
        },
    };
    Ok((layout, header))
}

/// Writes four bytes of a block, whose room was made before.
fn put(map: &mut MmapMut, block: Block, index: u64, bits: u32) {
    let at = (block.offset + index * 4) as usize;
    map[at..at + 4].copy_from_slice(&bits.to_le_bytes());
}

fn check_names(names: &[String], inspection: &Inspection) -> Result<(), Refused> {
    let most = inspection.limits.max_columns;
    if names.len() as u64 > most {
        return Err(Refused::because(format!(
            "{} columns are more than the {most} allowed (datasets.max_columns)",
            names.len()
        )));
    }
    for (index, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(Refused::because(format!(
                "column {} has no name in the header; give it one (then drop=NAME can leave it out)",
                index + 1
            )));
        }
        if names[..index].contains(name) {
            return Err(Refused::because(format!(
                "the header names the column {name:?} twice; rename one"
            )));
        }
    }
    if !names.is_empty() && names.iter().all(|name| name.parse::<f64>().is_ok()) {
        return Err(Refused::because(
            "line 1 has only numbers where the names of the columns should be; put a header line before it",
        ));
    }
    for name in &inspection.options.drop {
        if !names.contains(name) {
            return Err(Refused::because(format!(
                "drop: there is no column {name:?}; there are {}",
                listed(names)
            )));
        }
    }
    Ok(())
}

fn listed(names: &[String]) -> String {
    const MOST: usize = 12;
    let mut text = names
        .iter()
        .take(MOST)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > MOST {
        text.push_str(&format!(" and {} more", names.len() - MOST));
    }
    text
}

fn target_column(names: &[String], inspection: &Inspection) -> Result<usize, Refused> {
    let options = &inspection.options;
    if let Some(wanted) = &options.target {
        return names.iter().position(|name| name == wanted).ok_or_else(|| {
            Refused::because(format!(
                "target: there is no column {wanted:?}; there are {}",
                listed(names)
            ))
        });
    }
    let usual = USUAL_TARGETS.iter().find_map(|usual| {
        names
            .iter()
            .position(|name| name.eq_ignore_ascii_case(usual) && !options.drop.contains(name))
    });
    usual.ok_or_else(|| {
        Refused::because(format!(
            "no column is called {}; say which one is to be predicted with target=NAME, one of {}",
            USUAL_TARGETS.join(", "),
            listed(names)
        ))
    })
}

fn decide(
    inspection: &Inspection,
    name: &str,
    seen: &Seen,
    labels: Option<BTreeMap<Label, u32>>,
) -> Result<Targets, Refused> {
    let few = labels
        .as_ref()
        .is_some_and(|labels| labels.len() <= MOST_GUESSED_CLASSES);
    let task = inspection.options.task.unwrap_or({
        if seen.text.is_some() || (seen.all_whole && few) {
            UploadTask::Classification
        } else {
            UploadTask::Regression
        }
    });
    match task {
        UploadTask::Regression => match &seen.text {
            Some((text, place)) => Err(Refused::because(format!(
                "{place}: the target {name:?} is {text:?}, which is no number; a regression needs numbers"
            ))),
            None => Ok(Targets::Values),
        },
        UploadTask::Classification => {
            let mut labels = labels.ok_or_else(|| {
                Refused::because(format!(
                    "the target {name:?} has more than {} different values (datasets.max_classes); is it a regression? then say task=regression",
                    inspection.limits.max_classes
                ))
            })?;
            if labels.len() < 2 {
                return Err(Refused::because(format!(
                    "the target {name:?} has only one value; there is nothing to learn"
                )));
            }
            for (number, class) in (0..).zip(labels.values_mut()) {
                *class = number;
            }
            Ok(Targets::Classes(labels))
        }
    }
}
