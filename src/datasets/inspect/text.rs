//! UTF-8 text: its bytes as tokens, or the characters of a given vocabulary.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use super::{Inspection, Refused, make_room};
use crate::datasets::content::{Block, Column, Description, Header, Layout, Number, Scaling};
use crate::study::Contents;

const CHUNK_BYTES: usize = 1 << 16;
/// Tokens of each split at the least: one to read, one to predict.
const FEWEST_TOKENS: u64 = 2;

pub(super) fn inspect(
    inspection: &Inspection,
    input: File,
    output: &File,
) -> Result<(Layout, Header), Refused> {
    let vocabulary = match &inspection.options.vocabulary {
        None => None,
        Some(characters) => Some(vocabulary(characters)?),
    };
    let mut tokens = 0_u64;
    walk(&input, |chunk, at| {
        tokens += match &vocabulary {
            None => chunk.len() as u64,
            Some(vocabulary) => count(chunk, at, vocabulary)?,
        };
        Ok(())
    })?;
    let kept = ((tokens as f64 * inspection.options.validation_fraction).round() as u64).clamp(
        FEWEST_TOKENS,
        tokens.saturating_sub(FEWEST_TOKENS).max(FEWEST_TOKENS),
    );
    if tokens < 2 * FEWEST_TOKENS {
        return Err(Refused::because(format!(
            "a text must have at least {} tokens, has {tokens}",
            2 * FEWEST_TOKENS
        )));
    }
    let number = match &vocabulary {
        Some(vocabulary) if vocabulary.len() > 256 => Number::U16,
        _ => Number::U8,
    };
    let mut layout = Layout::default();
    let inputs: Block = layout.block(number, tokens);
    make_room(inspection, &layout, output)?;
    let mut place = output;
    place.seek(SeekFrom::Start(inputs.offset))?;
    let mut writer = BufWriter::with_capacity(CHUNK_BYTES, place);
    walk(&input, |chunk, _| {
        match &vocabulary {
            None => writer.write_all(chunk.as_bytes())?,
            Some(vocabulary) => {
                for character in chunk.chars() {
                    // Every one was found when they were counted.
                    let token = vocabulary.get(&character).copied().unwrap_or_default();
                    match number {
                        Number::U8 => writer.write_all(&[token as u8])?,
                        _ => writer.write_all(&token.to_le_bytes())?,
                    }
                }
            }
        }
        Ok(())
    })?;
    writer.flush()?;
    let different = vocabulary
        .as_ref()
        .map_or(256, |vocabulary| vocabulary.len() as u64);
    let header = Header {
        contents: Contents::Text {
            vocabulary: different,
            training_tokens: tokens - kept,
            validation_tokens: kept,
        },
        inputs,
        targets: None,
        scaling: Scaling::default(),
        description: Description {
            columns: vec![Column {
                name: "text".into(),
                role: "input".into(),
                dtype: "utf-8".into(),
                shape: vec![],
                missing: 0,
            }],
            split: format!("the last {kept} of {tokens} tokens are kept for validation"),
            tokens: Some(match &vocabulary {
                None => "bytes".into(),
                Some(_) => format!("{different} characters"),
            }),
            ..Description::default()
        },
    };
    Ok((layout, header))
}

fn vocabulary(characters: &str) -> Result<HashMap<char, u16>, Refused> {
    let mut vocabulary = HashMap::new();
    for (index, character) in characters.chars().enumerate() {
        let token = u16::try_from(index)
            .map_err(|_| Refused::because("vocabulary: at most 65536 characters"))?;
        if vocabulary.insert(character, token).is_some() {
            return Err(Refused::because(format!(
                "vocabulary: {character:?} is given twice"
            )));
        }
    }
    if vocabulary.len() < 2 {
        return Err(Refused::because(
            "vocabulary: at least 2 characters are needed",
        ));
    }
    Ok(vocabulary)
}

fn count(chunk: &str, at: u64, vocabulary: &HashMap<char, u16>) -> Result<u64, Refused> {
    let mut tokens = 0;
    for (offset, character) in chunk.char_indices() {
        if !vocabulary.contains_key(&character) {
            return Err(Refused::because(format!(
                "byte {}: {character:?} is not in the vocabulary; add it, or leave the vocabulary out to have bytes as tokens",
                at + offset as u64
            )));
        }
        tokens += 1;
    }
    Ok(tokens)
}

/// Hands over the text piece by piece, each with the number of its first byte, checked to be UTF-8.
fn walk(
    mut input: &File,
    mut function: impl FnMut(&str, u64) -> Result<(), Refused>,
) -> Result<(), Refused> {
    input.seek(SeekFrom::Start(0))?;
    let mut reader = BufReader::with_capacity(CHUNK_BYTES, input);
    let mut buffer = vec![0; CHUNK_BYTES];
    // Bytes of a character that the last piece broke off.
    let (mut filled, mut at) = (0, 0_u64);
    loop {
        let read = reader.read(&mut buffer[filled..])?;
        let available = filled + read;
        let valid = match std::str::from_utf8(&buffer[..available]) {
            Ok(_) => available,
            Err(error) if error.error_len().is_none() && read > 0 => error.valid_up_to(),
            Err(error) => {
                return Err(Refused::because(format!(
                    "byte {}: not UTF-8; convert the text to UTF-8, or upload it in another format",
                    at + error.valid_up_to() as u64
                )));
            }
        };
        if let Ok(text) = std::str::from_utf8(&buffer[..valid])
            && !text.is_empty()
        {
            function(text, at)?;
        }
        at += valid as u64;
        buffer.copy_within(valid..available, 0);
        filled = available - valid;
        if read == 0 {
            return Ok(());
        }
    }
}
