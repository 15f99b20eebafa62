//! Callers that were written against the last version go on working: what `openapi/released.json` promises is kept until
//! the version is raised, with an entry in CHANGELOG.md.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const RELEASED: &str = include_str!("../../openapi/released.json");
const CURRENT: &str = include_str!("../../openapi/openapi.json");
const CHANGELOG: &str = include_str!("../../CHANGELOG.md");

/// Who reads a schema: the service what it is sent, or the caller what comes back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    Service,
    Caller,
}

/// Compares two documents.
struct Comparison<'a> {
    old: &'a Value,
    new: &'a Value,
    seen: BTreeSet<(String, String, Reader)>,
    broken: Vec<String>,
}

/// What of the old document the new one does not keep.
fn broken(old: &Value, new: &Value) -> Vec<String> {
    let mut comparison = Comparison {
        old,
        new,
        seen: BTreeSet::new(),
        broken: Vec::new(),
    };
    comparison.operations();
    comparison.broken
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn elements(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// A list of texts, or one text.
fn texts(value: &Value) -> BTreeSet<&str> {
    match value {
        Value::String(text) => BTreeSet::from([text.as_str()]),
        _ => elements(value).filter_map(Value::as_str).collect(),
    }
}

/// What a reference stands for.
fn resolved<'a>(document: &'a Value, mut value: &'a Value) -> &'a Value {
    while let Some(place) = value["$ref"].as_str() {
        value = document
            .pointer(place.trim_start_matches('#'))
            .unwrap_or(&Value::Null);
    }
    value
}

impl Comparison<'_> {
    fn say(&mut self, at: &str, what: &str) {
        self.broken.push(format!("{at}: {what}"));
    }

    fn operations(&mut self) {
        let (old, new) = (self.old, self.new);
        for (path, operations) in members(&old["paths"]) {
            for (method, before) in members(operations) {
                let at = format!("{method} {path}");
                let after = &new["paths"][path][method];
                if after.is_null() {
                    self.say(&at, "is gone");
                    continue;
                }
                if before["operationId"] != after["operationId"] {
                    self.say(&at, "has another operationId");
                }
                self.parameters(&at, before, after);
                self.bodies(
                    &at,
                    Reader::Service,
                    &before["requestBody"]["content"],
                    &after["requestBody"]["content"],
                );
                for (status, answer) in members(&before["responses"]) {
                    if !status.starts_with('2') {
                        continue;
                    }
                    let now = &after["responses"][status];
                    if now.is_null() {
                        self.say(&at, &format!("answers {status} no more"));
                    }
                    self.bodies(
                        &format!("{at} {status}"),
                        Reader::Caller,
                        &answer["content"],
                        &now["content"],
                    );
                }
            }
        }
    }

    fn parameters(&mut self, at: &str, before: &Value, after: &Value) {
        let name = |it: &Value| {
            format!(
                "{} {}",
                it["in"].as_str().unwrap_or_default(),
                it["name"].as_str().unwrap_or_default()
            )
        };
        for old in elements(&before["parameters"]) {
            if !elements(&after["parameters"]).any(|it| name(it) == name(old)) {
                self.say(at, &format!("takes no {} any more", name(old)));
            }
        }
        for new in elements(&after["parameters"]) {
            let old = elements(&before["parameters"]).find(|it| name(it) == name(new));
            if new["required"] == true && old.is_none_or(|old| old["required"] != true) {
                self.say(at, &format!("needs {}", name(new)));
            }
        }
    }

    fn bodies(&mut self, at: &str, reader: Reader, before: &Value, after: &Value) {
        for (kind, old) in members(before) {
            match after.get(kind) {
                None => self.say(at, &format!("has no {kind} any more")),
                Some(new) => self.schemas(
                    &format!("{at} {kind}"),
                    reader,
                    &old["schema"],
                    &new["schema"],
                ),
            }
        }
    }

    fn schemas(&mut self, at: &str, reader: Reader, before: &Value, after: &Value) {
        if let (Some(old), Some(new)) = (before["$ref"].as_str(), after["$ref"].as_str())
            && !self.seen.insert((old.to_owned(), new.to_owned(), reader))
        {
            return;
        }
        let (old, new) = (resolved(self.old, before), resolved(self.new, after));
        let (was, is) = (texts(&old["type"]), texts(&new["type"]));
        let lost: Vec<&&str> = match reader {
            // What could be sent may still be, what is read was read before.
            Reader::Service => was.difference(&is).collect(),
            Reader::Caller => is.difference(&was).collect(),
        };
        if !was.is_empty() && !lost.is_empty() {
            self.say(at, &format!("is of another type: {lost:?}"));
        }
        for value in elements(&old["enum"]) {
            if reader == Reader::Service
                && !elements(&new["enum"]).any(|it| it == value)
                && !new["enum"].is_null()
            {
                self.say(at, &format!("takes {value} no more"));
            }
        }
        let (needed, needs) = (texts(&old["required"]), texts(&new["required"]));
        match reader {
            Reader::Service => {
                for name in needs.difference(&needed) {
                    self.say(at, &format!("needs {name}"));
                }
            }
            Reader::Caller => {
                for name in needed.difference(&needs) {
                    self.say(at, &format!("does not always have {name}"));
                }
            }
        }
        for (name, property) in members(&old["properties"]) {
            match new["properties"].get(name) {
                None => self.say(at, &format!("has no {name} any more")),
                Some(now) => self.schemas(&format!("{at}.{name}"), reader, property, now),
            }
        }
        self.schemas_of_elements(at, reader, &old["items"], &new["items"]);
        for list in ["allOf", "oneOf", "anyOf"] {
            // One that is added is another choice; alternatives are told apart by what they are called or have.
            for (index, old) in elements(&old[list]).enumerate() {
                let same =
                    elements(&new[list]).find(|it| label(self.new, it) == label(self.old, old));
                match same {
                    Some(new) => self.schemas(&format!("{at}.{list}[{index}]"), reader, old, new),
                    None => self.say(at, &format!("has no {} any more", label(self.old, old))),
                }
            }
        }
    }

    fn schemas_of_elements(&mut self, at: &str, reader: Reader, old: &Value, new: &Value) {
        match (old.is_null(), new.is_null()) {
            (true, _) => {}
            (false, true) => self.say(at, "is no list any more"),
            (false, false) => self.schemas(&format!("{at}[]"), reader, old, new),
        }
    }
}

/// What tells an alternative from others: its name, its one-valued members, or its members' names.
fn label(document: &Value, schema: &Value) -> String {
    let name = schema["$ref"].as_str();
    let schema = resolved(document, schema);
    if let Some(name) = name {
        // By its tag, if it has one: whether an alternative stands where it is used or apart makes no difference.
        let own = label(document, schema);
        return if own.contains('=') {
            own
        } else {
            name.to_owned()
        };
    }
    let parts: Vec<String> = elements(&schema["allOf"])
        .map(|it| label(document, it))
        .collect();
    if !parts.is_empty() {
        return parts.join(" + ");
    }
    let mut names: Vec<String> = members(&schema["properties"])
        .map(|(name, it)| match elements(&it["enum"]).next() {
            Some(value) if it["enum"].as_array().map(Vec::len) == Some(1) => {
                format!("{name}={value}")
            }
            _ => String::new(),
        })
        .filter(|it| !it.is_empty())
        .collect();
    if names.is_empty() {
        names = texts(&schema["required"])
            .into_iter()
            .map(ToOwned::to_owned)
            .collect();
    }
    if names.is_empty() {
        names = texts(&schema["type"])
            .into_iter()
            .map(ToOwned::to_owned)
            .collect();
    }
    names.join(" ")
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn what_was_promised_is_kept_until_the_version_says_otherwise() {
    let (released, current) = (parsed(RELEASED), parsed(CURRENT));
    let version = |it: &Value| {
        it["info"]["version"]
            .as_str()
            .expect("a version")
            .to_owned()
    };
    assert!(
        CHANGELOG.contains(&format!("## {}", version(&current))),
        "CHANGELOG.md has no entry for {}",
        version(&current)
    );
    let broken = broken(&released, &current);
    if version(&released) == version(&current) {
        assert!(
            broken.is_empty(),
            "callers of {} would break:\n  {}\nKeep it, or raise the version in Cargo.toml, say in CHANGELOG.md what callers have to change, and copy openapi/openapi.json to openapi/released.json",
            version(&released),
            broken.join("\n  ")
        );
    }
}

/// The document with something changed.
fn changed(change: impl FnOnce(&mut Value)) -> Vec<String> {
    let released = parsed(RELEASED);
    let mut current = released.clone();
    change(&mut current);
    broken(&released, &current)
}

#[test]
fn what_breaks_callers_is_found_and_what_does_not_is_let_be() {
    assert_eq!(changed(|_| {}), Vec::<String>::new());
    // Added: an operation, a field of an answer, a field that may be left out of a request.
    let added = changed(|it| {
        it["paths"]["/v1/new"] = json!({"get": {"operationId": "new", "responses": {}}});
        it["components"]["schemas"]["Study"]["properties"]["more"] = json!({"type": "string"});
        it["components"]["schemas"]["StudyRequest"]["properties"]["more"] =
            json!({"type": "string"});
    });
    assert_eq!(added, Vec::<String>::new());
    type Change = (&'static str, fn(&mut Value));
    let breaking: [Change; 7] = [
        ("get /v1/studies: is gone", |it| {
            it["paths"]["/v1/studies"]
                .as_object_mut()
                .expect("operations")
                .remove("get");
        }),
        ("has another operationId", |it| {
            it["paths"]["/v1/studies"]["get"]["operationId"] = json!("studies");
        }),
        ("takes no query page_size any more", |it| {
            let list = it["paths"]["/v1/studies"]["get"]["parameters"]
                .as_array_mut()
                .expect("a list");
            list.retain(|it| it["name"] != "page_size");
        }),
        ("has no phase any more", |it| {
            it["components"]["schemas"]["Study"]["properties"]
                .as_object_mut()
                .expect("properties")
                .remove("phase");
        }),
        ("needs more", |it| {
            it["components"]["schemas"]["StudyRequest"]["required"]
                .as_array_mut()
                .expect("a list")
                .push(json!("more"));
        }),
        ("does not always have state", |it| {
            it["components"]["schemas"]["Study"]["required"]
                .as_array_mut()
                .expect("a list")
                .retain(|it| it != "state");
        }),
        ("is of another type", |it| {
            it["components"]["schemas"]["Study"]["properties"]["revision"]["type"] =
                json!("string");
        }),
    ];
    for (said, change) in breaking {
        let broken = changed(change);
        assert!(
            broken.iter().any(|it| it.contains(said)),
            "{said}: {broken:?}"
        );
    }
}
