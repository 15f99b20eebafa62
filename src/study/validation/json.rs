//! JSON as values: read without losing what `serde_json` forgets, cut, and pointed into.

use std::cell::RefCell;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::limits::MAX_EXACT_INTEGER;
use super::{MAX_VIOLATIONS, Violation};

/// The body is not JSON.
#[derive(Debug, thiserror::Error)]
#[error("the body is not JSON: {0}")]
pub struct Malformed(#[from] serde_json::Error);

/// Reads JSON and notices members that are given twice: RFC 8259 leaves open which one counts, so
/// a definition that has them is ambiguous. The value keeps the last. Notices texts that cannot be stored, too.
///
/// # Errors
/// When the body is not one JSON text in UTF-8, nests deeper than 128, or holds a number beyond
/// the range of doubles.
pub fn read_json(body: &[u8]) -> Result<(Value, Vec<Violation>), Malformed> {
    let faults = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Noticing {
        place: &Place::Root,
        faults: &faults,
    }
    .deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, faults.into_inner()))
}

/// Where in the document the reader is; rendered only when there is something to say.
enum Place<'a> {
    Root,
    Member(&'a Place<'a>, &'a str),
    Element(&'a Place<'a>, usize),
}

impl Place<'_> {
    fn pointer(&self) -> String {
        match self {
            Self::Root => String::new(),
            Self::Member(parent, name) => child(&parent.pointer(), name),
            Self::Element(parent, index) => format!("{}/{index}", parent.pointer()),
        }
    }
}

struct Noticing<'a> {
    place: &'a Place<'a>,
    faults: &'a RefCell<Vec<Violation>>,
}

impl Noticing<'_> {
    /// Each place is written out, so a hostile body must not have thousands.
    fn may_say_more(&self) -> bool {
        self.faults.borrow().len() < MAX_VIOLATIONS
    }

    /// Postgres has no NUL in its texts.
    fn check_text(&self, text: &str) {
        if text.contains('\0') && self.may_say_more() {
            self.faults.borrow_mut().push(Violation::new(
                shortened(&self.place.pointer()).replace('\0', "\u{fffd}"),
                "must not hold a NUL character (\\u0000)",
            ));
        }
    }
}

impl<'de> DeserializeSeed<'de> for Noticing<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Noticing<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        self.check_text(value);
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        self.check_text(&value);
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(value) = elements.next_element_seed(Noticing {
            place: &Place::Element(self.place, array.len()),
            faults: self.faults,
        })? {
            array.push(value);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            let place = Place::Member(self.place, &name);
            self.check_text(&name);
            let value = members.next_value_seed(Noticing {
                place: &place,
                faults: self.faults,
            })?;
            if object.contains_key(&name) && self.may_say_more() {
                self.faults.borrow_mut().push(Violation::new(
                    shortened(&place.pointer()),
                    "is given more than once; give it once",
                ));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// The pointer to a member or element of what `parent` points to.
pub(super) fn child(parent: &str, name: &str) -> String {
    if name.contains(['~', '/']) {
        format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"))
    } else {
        format!("{parent}/{name}")
    }
}

/// A pointer is echoed to the caller; a hostile one is not echoed in full.
pub(super) fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 200;
    if text.chars().count() <= MAX_CHARS {
        text.to_owned()
    } else {
        let mut short: String = text.chars().take(MAX_CHARS).collect();
        short.push('…');
        short
    }
}

/// How many values there are in a value, itself among them.
pub(super) fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(elements) => elements.iter().map(count).sum(),
        Value::Object(members) => members.values().map(count).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// A value with the later elements of its lists left out, once there are `left` others. A list keeps its first element.
pub(super) fn beginning(value: &Value, left: &mut usize) -> Value {
    *left = left.saturating_sub(1);
    match value {
        Value::Array(elements) => {
            let mut kept = Vec::new();
            for element in elements {
                if *left == 0 && !kept.is_empty() {
                    break;
                }
                kept.push(beginning(element, left));
            }
            Value::Array(kept)
        }
        Value::Object(members) => {
            let members = members.iter();
            let kept = members.map(|(name, member)| (name.clone(), beginning(member, left)));
            Value::Object(kept.collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

/// `1e3` and `1000.0` are integers to JSON Schema, and so they are to the types.
pub(super) fn integers_as_integers(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let integer = number.as_f64().filter(|float| {
                number.is_f64() && float.fract() == 0.0 && float.abs() <= MAX_EXACT_INTEGER as f64
            });
            if let Some(float) = integer {
                *value = (float as i64).into();
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(integers_as_integers),
        Value::Object(members) => members.values_mut().for_each(integers_as_integers),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Removes what violated the schema, so that the rest can still be judged. What is required and
/// missing is replaced by something valid; `meaning` knows not to judge it.
pub(super) fn cut_out(value: &mut Value, pointers: &[String]) {
    // An element is never taken out of its array: the others would move. The array goes instead.
    for pointer in pointers {
        let mut node = &*value;
        let mut end = 0;
        for segment in pointer.split('/').skip(1) {
            if node.is_array() {
                break;
            }
            end += 1 + segment.len();
            match node.get(unescaped(segment)) {
                Some(next) => node = next,
                None => break,
            }
        }
        remove(value, &pointer[..end]);
    }
    let tagged = [
        ("/optimizer", "family"),
        ("/workload/model", "family"),
        ("/batch_sizes/grid", "values"),
    ];
    for (place, needed) in tagged {
        let broken = value
            .pointer(place)
            .and_then(Value::as_object)
            .is_some_and(|object| !object.contains_key(needed));
        if broken {
            remove(value, place);
        }
    }
    if pointers.is_empty() {
        return;
    }
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let digits = serde_json::json!({"builtin": "digits"});
    if let Some(members) = value.as_object_mut() {
        let workload = members
            .entry("workload")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(workload) = workload.as_object_mut() {
            let dataset = workload.entry("dataset").or_insert_with(|| digits.clone());
            if dataset.get("builtin").is_none() {
                *dataset = digits;
            }
        }
    }
}

fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, segment)) = pointer.rsplit_once('/') else {
        return;
    };
    let name = unescaped(segment);
    if let Some(object) = value.pointer_mut(parent).and_then(Value::as_object_mut) {
        object.remove(&name);
    }
}

fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}
