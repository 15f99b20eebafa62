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
                self.access(&at, before, after);
                self.parameters(&at, before, after);
                self.request_body(&at, &before["requestBody"], &after["requestBody"]);
                for (status, answer) in members(&before["responses"]) {
                    let at = format!("{at} {status}");
                    match after["responses"].get(status) {
                        None => self.say(&at, "is answered no more"),
                        Some(now) => self.answer(&at, answer, now),
                    }
                }
            }
        }
    }

    /// A token that was enough still is.
    fn access(&mut self, at: &str, before: &Value, after: &Value) {
        let ways = |it: &Value| -> Vec<(BTreeSet<String>, bool)> {
            elements(&it["security"])
                .map(|way| {
                    let scopes = members(way).flat_map(|(_, scopes)| texts(scopes));
                    (
                        scopes.map(ToOwned::to_owned).collect(),
                        members(way).next().is_none(),
                    )
                })
                .collect()
        };
        let (old, new) = (ways(before), ways(after));
        let is_public = |ways: &[(BTreeSet<String>, bool)]| {
            ways.is_empty() || ways.iter().any(|(_, is_public)| *is_public)
        };
        if is_public(&new) {
            return;
        }
        if is_public(&old) {
            self.say(at, "needs a token");
            return;
        }
        for (scopes, _) in &old {
            if !new.iter().any(|(needs, _)| needs.is_subset(scopes)) {
                self.say(at, &format!("is not allowed with {scopes:?} any more"));
            }
        }
    }

    fn request_body(&mut self, at: &str, before: &Value, after: &Value) {
        if after["required"] == true && before["required"] != true {
            self.say(at, "needs a body");
        }
        self.bodies(at, Reader::Service, &before["content"], &after["content"]);
    }

    fn answer(&mut self, at: &str, before: &Value, after: &Value) {
        for (name, _) in members(&before["headers"]) {
            if after["headers"].get(name).is_none() {
                self.say(at, &format!("has no header {name} any more"));
            }
        }
        for (name, _) in members(&before["links"]) {
            if after["links"].get(name).is_none() {
                self.say(at, &format!("has no link {name} any more"));
            }
        }
        self.bodies(at, Reader::Caller, &before["content"], &after["content"]);
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
            if let Some(old) = old {
                let at = format!("{at} {}", name(new));
                self.schemas(&at, Reader::Service, &old["schema"], &new["schema"]);
                if old["schema"]["default"] != new["schema"]["default"] {
                    self.say(&at, "has another default");
                }
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
        self.values(at, reader, old, new);
        if reader == Reader::Service {
            self.limits(at, old, new);
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

    /// A value that may be sent still may be; one that callers wait for or look at may still come.
    fn values(&mut self, at: &str, reader: Reader, old: &Value, new: &Value) {
        let any = |it: &Value| it["enum"].is_null();
        for value in elements(&old["enum"]) {
            if !any(new) && !elements(&new["enum"]).any(|it| it == value) {
                let what = match reader {
                    Reader::Service => "takes",
                    Reader::Caller => "says",
                };
                self.say(at, &format!("{what} {value} no more"));
            }
        }
        // What was any text is one of a few now.
        if reader == Reader::Service && any(old) && !any(new) && !old["type"].is_null() {
            self.say(at, "takes some values only");
        }
    }

    /// Nothing that was sent is out of bounds now.
    fn limits(&mut self, at: &str, old: &Value, new: &Value) {
        for name in [
            "minimum",
            "exclusiveMinimum",
            "minLength",
            "minItems",
            "minProperties",
        ] {
            let (was, is) = (old[name].as_f64(), new[name].as_f64());
            if is.is_some_and(|is| was.is_none_or(|was| was < is)) {
                self.say(at, &format!("has a higher {name}"));
            }
        }
        for name in [
            "maximum",
            "exclusiveMaximum",
            "maxLength",
            "maxItems",
            "maxProperties",
        ] {
            let (was, is) = (old[name].as_f64(), new[name].as_f64());
            if is.is_some_and(|is| was.is_none_or(|was| was > is)) {
                self.say(at, &format!("has a lower {name}"));
            }
        }
        for name in ["pattern", "format", "multipleOf", "uniqueItems", "const"] {
            if !new[name].is_null() && old[name] != new[name] && !old["type"].is_null() {
                self.say(at, &format!("has another {name}"));
            }
        }
        if new["additionalProperties"] == false
            && old["additionalProperties"] != false
            && !old["properties"].is_null()
        {
            self.say(at, "refuses what it does not know");
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
    let before = parsed(CURRENT);
    let mut after = before.clone();
    change(&mut after);
    broken(&before, &after)
}

/// A parameter of the list of studies.
fn parameter<'a>(document: &'a mut Value, name: &str) -> &'a mut Value {
    document["paths"]["/v1/studies"]["get"]["parameters"]
        .as_array_mut()
        .expect("a list")
        .iter_mut()
        .find(|it| it["name"] == name)
        .expect("a parameter")
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
        it["components"]["schemas"]["ProblemCode"]["enum"]
            .as_array_mut()
            .expect("a list")
            .push(json!("one_more"));
        it["paths"]["/v1/studies"]["get"]["responses"]["418"] = json!({"description": "new"});
        it["paths"]["/v1/studies"]["post"]["security"] = json!([{"token": []}]);
        parameter(it, "page_size")["schema"]["maximum"] = json!(100_000);
    });
    assert_eq!(added, Vec::<String>::new());
    type Change = (&'static str, fn(&mut Value));
    let breaking: [Change; 18] = [
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
        ("is not allowed with {\"read\"} any more", |it| {
            it["paths"]["/v1/studies"]["get"]["security"] = json!([{"token": ["admin"]}]);
        }),
        ("get /healthz: needs a token", |it| {
            it["paths"]["/healthz"]["get"]["security"] = json!([{"token": ["read"]}]);
        }),
        ("page_size: has a lower maximum", |it| {
            parameter(it, "page_size")["schema"]["maximum"] = json!(10);
        }),
        ("page_size: is of another type", |it| {
            parameter(it, "page_size")["schema"]["type"] = json!("string");
        }),
        ("page_size: has another default", |it| {
            parameter(it, "page_size")["schema"]["default"] = json!(7);
        }),
        ("state: takes \"running\" no more", |it| {
            let state = parameter(it, "state")["schema"].clone();
            let name = state["$ref"]
                .as_str()
                .map(|it| it.rsplit_once('/').expect("a name").1);
            let schema = match name {
                Some(name) => &mut it["components"]["schemas"][name],
                None => &mut parameter(it, "state")["schema"],
            };
            schema["enum"]
                .as_array_mut()
                .expect("values")
                .retain(|it| it != "running");
        }),
        ("/healthz 200: has no header X-Request-Id any more", |it| {
            it["paths"]["/healthz"]["get"]["responses"]["200"]["headers"] = json!({});
        }),
        (
            "post /v1/studies 202: has no link get_study any more",
            |it| {
                it["paths"]["/v1/studies"]["post"]["responses"]["202"]["links"] = json!({});
            },
        ),
        ("post /v1/studies 422: is answered no more", |it| {
            it["paths"]["/v1/studies"]["post"]["responses"]
                .as_object_mut()
                .expect("responses")
                .remove("422");
        }),
        ("says \"lease_lost\" no more", |it| {
            it["components"]["schemas"]["ProblemCode"]["enum"]
                .as_array_mut()
                .expect("a list")
                .retain(|it| it != "lease_lost");
        }),
        ("needs a body", |it| {
            it["paths"]["/v1/studies/{id}/cancel"]["post"]["requestBody"] =
                json!({"required": true, "content": {}});
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
