//! Holds the dependency rule that the crate's documentation states.
//!
//! Every file under `src/` is parsed with `syn`; every path it names counts, wherever it stands: in
//! a `use`, inline in code or types, in an attribute, or among the tokens of a macro call. Nothing
//! here uses the library itself, so the test stays quick to link, and it can be read on its own as
//! the rule's exact text. `#[cfg(test)]` modules obey it too.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// A top-level module and the modules of ours that it may use.
struct Rule {
    module: &'static str,
    may_use: &'static [&'static str],
    /// No I/O, no clock, no random source, no async: the same arguments give the same answer.
    pure: bool,
}

/// `statistics, catalog ← study ← probe ← analysis ← {plan, recommendation}`, then everything that
/// touches the world. `lib` and `main` put it together and are not listed.
const RULES: [Rule; 25] = [
    pure("statistics", &[]),
    pure("catalog", &[]),
    pure("study", &["statistics", "catalog"]),
    pure("probe", &["statistics", "catalog", "study"]),
    pure("analysis", &["statistics", "catalog", "study", "probe"]),
    pure(
        "plan",
        &["statistics", "catalog", "study", "probe", "analysis"],
    ),
    pure(
        "recommendation",
        &["statistics", "catalog", "study", "probe", "analysis"],
    ),
    rule("datasets", &["statistics", "catalog", "study", "probe"]),
    rule("library", &[]),
    // From an upload to a data set: a child inspects it, the library keeps it, the store knows it.
    rule(
        "uploads",
        &[
            "study", "probe", "datasets", "settings", "store", "library", "pool",
        ],
    ),
    rule(
        "trainer",
        &["statistics", "catalog", "study", "probe", "datasets"],
    ),
    // Whether somebody's program keeps the contract of a runner.
    rule("runners", &["study", "probe", "pool"]),
    rule("settings", PURE),
    rule("telemetry", &["settings"]),
    rule("metrics", &concat_pure(["settings", "store"])),
    rule("store", &concat_pure(["settings", "telemetry"])),
    rule(
        "lifecycle",
        &[
            "statistics",
            "catalog",
            "study",
            "probe",
            "analysis",
            "plan",
            "recommendation",
            "settings",
            "store",
            "metrics",
        ],
    ),
    // Who may do what; it knows nothing of HTTP.
    rule("access", &["store", "lifecycle"]),
    // Puts everything together, for `serve` and for tests; it names no framework itself.
    rule(
        "service",
        &[
            "study",
            "settings",
            "metrics",
            "store",
            "lifecycle",
            "library",
            "pool",
            "uploads",
            "api",
        ],
    ),
    rule(
        "pool",
        &[
            "statistics",
            "catalog",
            "study",
            "probe",
            "settings",
            "telemetry",
            "metrics",
            "store",
            "lifecycle",
            "library",
        ],
    ),
    // The service from elsewhere: the worker's side of the lease protocol over REST.
    rule("client", &["study", "probe", "settings", "pool"]),
    // Looks at what a service needs.
    rule(
        "doctor",
        &["study", "probe", "settings", "store", "pool", "service"],
    ),
    // Commands for people: they speak REST like anybody else.
    rule("cli", &["client", "settings"]),
    // Puts a worker away from the service together, as `service` does with the service.
    rule(
        "work",
        &[
            "probe", "settings", "metrics", "pool", "client", "service", "api",
        ],
    ),
    rule(
        "api",
        &[
            "statistics",
            "catalog",
            "study",
            "probe",
            "analysis",
            "plan",
            "recommendation",
            "datasets",
            "settings",
            "telemetry",
            "metrics",
            "store",
            "lifecycle",
            "access",
            "pool",
            "uploads",
        ],
    ),
];

const PURE: &[&str] = &[
    "statistics",
    "catalog",
    "study",
    "probe",
    "analysis",
    "plan",
    "recommendation",
];

const fn concat_pure(more: [&'static str; 2]) -> [&'static str; 9] {
    let [a, b] = more;
    [
        PURE[0], PURE[1], PURE[2], PURE[3], PURE[4], PURE[5], PURE[6], a, b,
    ]
}

const fn pure(module: &'static str, may_use: &'static [&'static str]) -> Rule {
    Rule {
        module,
        may_use,
        pure: true,
    }
}

const fn rule(module: &'static str, may_use: &'static [&'static str]) -> Rule {
    Rule {
        module,
        may_use,
        pure: false,
    }
}

/// Crates that one module has to itself.
struct Confined {
    to: &'static str,
    crates: &'static [&'static str],
    prefixes: &'static [&'static str],
}

const CONFINED: [Confined; 3] = [
    Confined {
        to: "trainer",
        crates: &["burn"],
        prefixes: &["burn_", "cubecl"],
    },
    Confined {
        to: "store",
        crates: &["diesel", "tokio_postgres", "tokio_postgres_rustls"],
        prefixes: &["diesel_"],
    },
    Confined {
        to: "api",
        crates: &["utoipa_actix_web", "utoipa_swagger_ui"],
        prefixes: &["actix"],
    },
];

/// Crates by which the world would come into a pure module.
const IMPURE_CRATES: [&str; 14] = [
    "clap",
    "config",
    "directories",
    "futures",
    "getrandom",
    "nix",
    "procfs",
    "prometheus",
    "reqwest",
    "rustls",
    "rustls_native_certs",
    "tokio",
    "tokio_stream",
    "tracing_subscriber",
];

/// Paths (by how they begin) by which the world would come into a pure module.
const IMPURE_PATHS: [&str; 15] = [
    "std::time::Instant",
    "std::time::SystemTime",
    "std::time::UNIX_EPOCH",
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::os",
    "std::thread::sleep",
    "std::io::stdin",
    "std::io::stdout",
    "std::io::stderr",
    "std::hash::RandomState",
    "rand::rngs::ThreadRng",
    "rand::rngs::SysRng",
];

/// Paths (by how they end) that read a clock or the system's random source.
const IMPURE_ENDINGS: [&str; 15] = [
    "Utc::now",
    "Local::now",
    "Instant::now",
    "SystemTime::now",
    "Uuid::now_v1",
    "Uuid::now_v6",
    "Uuid::now_v7",
    "Uuid::new_v4",
    "rand::rng",
    "rand::random",
    "rand::random_range",
    "rand::random_bool",
    "rand::make_rng",
    "rngs::OsRng",
    "from_os_rng",
];

/// One place that breaks the rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    file: PathBuf,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.what)
    }
}

/// A path as the source writes it.
#[derive(Debug, Clone)]
struct Mention {
    segments: Vec<String>,
    /// The module (from the crate's root) in which it stands.
    within: Vec<String>,
    line: usize,
    from: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A leaf of a `use` tree, or `extern crate`.
    Use,
    /// A `use` ending in `*`; the segments are what stands before it.
    Glob,
    /// Anywhere else.
    Inline,
}

/// Collects what one file names, and what its own names stand for.
struct Collector {
    within: Vec<String>,
    mentions: Vec<Mention>,
    /// Name → what a `use` or a `mod` of the file makes of it. File-wide and therefore sometimes
    /// more than one: the rule then holds for each.
    names: BTreeMap<String, BTreeSet<Vec<String>>>,
}

impl Collector {
    fn mention(&mut self, segments: Vec<String>, line: usize, from: Origin) {
        if !segments.is_empty() {
            self.mentions.push(Mention {
                segments,
                within: self.within.clone(),
                line,
                from,
            });
        }
    }

    fn name(&mut self, name: String, segments: &[String]) {
        let absolute = absolute(segments, &self.within);
        // `use burn::{self}` makes nothing new of `burn`.
        if absolute.first() != Some(&name) {
            self.names.entry(name).or_default().insert(absolute);
        }
    }

    fn use_tree(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.use_tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Name(leaf) => {
                let ident = &leaf.ident;
                let mut segments = before.clone();
                if ident != "self" {
                    segments.push(ident.to_string());
                }
                let name = segments.last().cloned().unwrap_or_default();
                self.name(name, &segments);
                self.mention(segments, ident.span().start().line, Origin::Use);
            }
            syn::UseTree::Rename(leaf) => {
                let mut segments = before.clone();
                if leaf.ident != "self" {
                    segments.push(leaf.ident.to_string());
                }
                self.name(leaf.rename.to_string(), &segments);
                self.mention(segments, leaf.ident.span().start().line, Origin::Use);
            }
            syn::UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                self.mention(before.clone(), line, Origin::Glob);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.use_tree(before, tree);
                }
            }
        }
    }

    /// Reads paths out of tokens that are not (yet) Rust to `syn`: macro calls, macro bodies,
    /// attributes. `before` is what stands left of a brace group, as in `use crate::{a, b}`.
    fn tokens(&mut self, stream: TokenStream, before: &[String]) {
        let tokens: Vec<TokenTree> = stream.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(first) => {
                    let line = first.span().start().line;
                    let mut segments = before.to_vec();
                    segments.push(first.to_string());
                    at += 1;
                    while double_colon(&tokens, at) {
                        match tokens.get(at + 2) {
                            Some(TokenTree::Ident(next)) => {
                                segments.push(next.to_string());
                                at += 3;
                            }
                            Some(TokenTree::Group(group))
                                if group.delimiter() == Delimiter::Brace =>
                            {
                                self.tokens(group.stream(), &segments);
                                at += 3;
                            }
                            _ => break,
                        }
                    }
                    self.mention(segments, line, Origin::Inline);
                }
                TokenTree::Group(group) => {
                    self.tokens(group.stream(), &[]);
                    at += 1;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at += 1,
            }
        }
    }
}

fn double_colon(tokens: &[TokenTree], at: usize) -> bool {
    let colon =
        |index| matches!(tokens.get(index), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    colon(at) && colon(at + 1)
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.use_tree(&mut Vec::new(), &item.tree);
    }

    fn visit_item_extern_crate(&mut self, item: &'ast syn::ItemExternCrate) {
        let line = item.ident.span().start().line;
        self.mention(vec![item.ident.to_string()], line, Origin::Use);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        let name = item.ident.to_string();
        self.name(name.clone(), &["self".into(), name.clone()]);
        self.within.push(name);
        visit::visit_item_mod(self, item);
        self.within.pop();
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        let line = path
            .segments
            .first()
            .map_or(0, |segment| segment.ident.span().start().line);
        self.mention(segments, line, Origin::Inline);
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone(), &[]);
        visit::visit_macro(self, call);
    }

    fn visit_attribute(&mut self, attribute: &'ast syn::Attribute) {
        if attribute.path().is_ident("doc") {
            return;
        }
        if let syn::Meta::List(list) = &attribute.meta {
            self.tokens(list.tokens.clone(), &[]);
            // serde and others take paths as strings: `#[serde(with = "crate::store::bytes")]`.
            for text in string_literals(list.tokens.clone()) {
                if let Ok(stream) = text.parse::<TokenStream>() {
                    self.tokens(stream, &[]);
                }
            }
        }
        visit::visit_attribute(self, attribute);
    }
}

fn string_literals(stream: TokenStream) -> Vec<String> {
    stream
        .into_iter()
        .flat_map(|token| match token {
            TokenTree::Group(group) => string_literals(group.stream()),
            TokenTree::Literal(literal) => syn::parse_str::<syn::LitStr>(&literal.to_string())
                .map(|text| vec![text.value()])
                .unwrap_or_default(),
            TokenTree::Ident(_) | TokenTree::Punct(_) => Vec::new(),
        })
        .collect()
}

/// Resolves `self::` and `super::` against the module in which a path stands.
fn absolute(segments: &[String], within: &[String]) -> Vec<String> {
    let here = || std::iter::once("crate".to_string()).chain(within.iter().cloned());
    match segments.first().map(String::as_str) {
        Some("self") => here().chain(segments[1..].iter().cloned()).collect(),
        Some("super") => {
            let ups = segments.iter().take_while(|s| *s == "super").count();
            let mut base: Vec<String> = here().collect();
            base.truncate(base.len().saturating_sub(ups).max(1));
            base.extend(segments[ups..].iter().cloned());
            base
        }
        _ => segments.to_vec(),
    }
}

/// Everything a mention can stand for, the file's own names resolved.
fn resolve(mention: &Mention, names: &BTreeMap<String, BTreeSet<Vec<String>>>) -> Vec<Vec<String>> {
    /// A `use` of a `use` of a `use`; deeper chains do not occur in real files.
    const DEPTH: usize = 3;
    let mut paths = vec![absolute(&mention.segments, &mention.within)];
    for _ in 0..DEPTH {
        paths = paths
            .into_iter()
            .flat_map(|path| match names.get(&path[0]) {
                Some(meanings) => meanings
                    .iter()
                    .map(|meaning| meaning.iter().chain(&path[1..]).cloned().collect())
                    .collect(),
                None => vec![path],
            })
            .collect();
    }
    paths
}

/// What in `source` breaks the rule. `file` is the path from the repository's root.
fn violations(file: &Path, source: &str, modules: &BTreeSet<String>) -> Vec<Violation> {
    let syntax = syn::parse_file(source).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let within = module_path(file);
    let root = within.is_empty();
    let top = within.first().cloned().unwrap_or_else(|| "lib".into());
    let mut collector = Collector {
        within,
        mentions: Vec::new(),
        names: BTreeMap::new(),
    };
    collector.visit_file(&syntax);

    let mut broken = BTreeSet::new();
    for mention in &collector.mentions {
        for path in resolve(mention, &collector.names) {
            if let Some(what) = breach(&top, root, mention.from, &path, modules) {
                broken.insert(Violation {
                    file: file.to_path_buf(),
                    line: mention.line,
                    what,
                });
            }
        }
    }
    broken.into_iter().collect()
}

/// Why `top` may not name `path`, if it may not.
fn breach(
    top: &str,
    root: bool,
    from: Origin,
    path: &[String],
    modules: &BTreeSet<String>,
) -> Option<String> {
    let rule = RULES.iter().find(|rule| rule.module == top);
    let written = path.join("::");
    if path[0] == "crate" {
        let rule = rule?;
        let Some(target) = path.get(1) else {
            return (from != Origin::Inline).then(|| {
                format!("`{top}` takes in the whole crate; name the modules it uses one by one")
            });
        };
        let allowed =
            target == top || !modules.contains(target) || rule.may_use.contains(&target.as_str());
        return (!allowed).then(|| {
            format!(
                "`{top}` uses `{written}`, but of ours it may use only {}",
                list(rule.may_use)
            )
        });
    }

    let krate = path[0].as_str();
    // A lone identifier in code is a variable, not a crate.
    let is_crate = path.len() > 1 || from != Origin::Inline;
    if is_crate {
        for confined in &CONFINED {
            let named = confined.crates.contains(&krate)
                || confined.prefixes.iter().any(|p| krate.starts_with(p));
            if named && top != confined.to {
                let user = if root { "the crate's root" } else { top };
                return Some(format!(
                    "`{user}` uses `{written}`, but `{}` alone uses `{krate}`",
                    confined.to
                ));
            }
        }
    }
    if !rule.is_some_and(|rule| rule.pure) {
        return None;
    }
    let impure = || Some(format!("`{top}` is pure and may not use `{written}`"));
    if is_crate && IMPURE_CRATES.contains(&krate) {
        return impure();
    }
    let within = |inner: &str, outer: &str| {
        inner == outer
            || inner
                .strip_prefix(outer)
                .is_some_and(|r| r.starts_with("::"))
    };
    let hides = |banned: &&str| from == Origin::Glob && within(banned, &written);
    if IMPURE_PATHS.iter().any(|b| within(&written, b) || hides(b)) {
        return impure();
    }
    let ends = |banned: &&str| written == **banned || written.ends_with(&format!("::{banned}"));
    if IMPURE_ENDINGS.iter().any(ends) {
        return impure();
    }
    None
}

fn list(modules: &[&str]) -> String {
    if modules.is_empty() {
        "nothing".into()
    } else {
        modules.join(", ")
    }
}

/// `src/study/states.rs` → `[study, states]`; `src/lib.rs` and `src/main.rs` → `[]`.
fn module_path(file: &Path) -> Vec<String> {
    let mut path: Vec<String> = file
        .strip_prefix("src")
        .expect("files of the crate lie under src/")
        .with_extension("")
        .components()
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    if matches!(path.last().map(String::as_str), Some("mod")) {
        path.pop();
    }
    if path == ["lib"] || path == ["main"] {
        path.clear();
    }
    path
}

/// Every source file, as a path from the repository's root, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<(PathBuf, String)> = walkdir::WalkDir::new(root.join("src"))
        .into_iter()
        .map(|entry| entry.expect("src/ can be read").into_path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| {
            let source = std::fs::read_to_string(&path).expect("source files can be read");
            let file = path.strip_prefix(root).expect("inside").to_path_buf();
            (file, source)
        })
        .collect();
    files.sort();
    files
}

fn top_level_modules(files: &[(PathBuf, String)]) -> BTreeSet<String> {
    files
        .iter()
        .filter_map(|(file, _)| module_path(file).into_iter().next())
        .collect()
}

#[test]
fn every_module_uses_only_what_the_dependency_rule_allows() {
    let files = sources();
    let modules = top_level_modules(&files);
    let broken: Vec<String> = files
        .iter()
        .flat_map(|(file, source)| violations(file, source, &modules))
        .map(|violation| violation.to_string())
        .collect();
    assert!(
        broken.is_empty(),
        "the dependency rule is broken in {} place(s):\n  {}\nThe rule is explained in \
         ARCHITECTURE.md and written down in tests/architecture.rs.",
        broken.len(),
        broken.join("\n  ")
    );
}

#[test]
fn every_top_level_module_has_a_rule() {
    let files = sources();
    let without: Vec<String> = top_level_modules(&files)
        .into_iter()
        .filter(|module| !RULES.iter().any(|rule| rule.module == module))
        .collect();
    assert!(
        without.is_empty(),
        "no rule in tests/architecture.rs says what these modules may use: {without:?}"
    );
}

#[test]
fn the_pure_modules_form_the_chain_of_the_documentation() {
    let may_use = |module: &str| -> BTreeSet<&str> {
        let rule = RULES.iter().find(|rule| rule.module == module);
        rule.expect("listed").may_use.iter().copied().collect()
    };
    let chain = [
        &["statistics", "catalog"][..],
        &["study"],
        &["probe"],
        &["analysis"],
        &["plan", "recommendation"],
    ];
    let mut left = BTreeSet::new();
    for link in chain {
        for module in link {
            assert_eq!(may_use(module), left, "{module}");
        }
        left.extend(link);
    }
    assert!(!may_use("api").contains("trainer"));
    assert!(!may_use("pool").contains("trainer"));
}

/// Lines of `source` that break the rule, were it the file `file`.
fn caught(file: &str, source: &str) -> BTreeSet<usize> {
    let modules = RULES.iter().map(|rule| rule.module.to_string()).collect();
    violations(Path::new(file), source, &modules)
        .into_iter()
        .map(|violation| violation.line)
        .collect()
}

#[test]
fn a_path_to_the_right_is_caught_however_it_is_written() {
    for source in [
        "use crate::store::Database;",
        "use crate::{statistics, store::Database};",
        "use super::store;",
        "use super::super::study::{self}; use crate::pool as p;",
        "fn f() { crate::api::serve() }",
        "fn f(x: Option<crate::lifecycle::Study>) {}",
        "use crate::*;",
        "use crate as everything;",
        "mod inner { fn f() { super::super::plan::plan() } }",
        "fn f() { assert_eq!(crate::analysis::analyze(), 1) }",
        "macro_rules! m { () => { $crate::trainer::run() } }",
        "macro_rules! m { () => { use crate::{probe, pool}; } }",
        "#[cfg(test)] mod tests { use crate::probe::ProbeSpec; }",
        "#[serde(with = \"crate::store::bytes\")] struct S;",
        "pub(in crate::store) struct S;",
    ] {
        assert_eq!(
            caught("src/study/mod.rs", source),
            BTreeSet::from([1]),
            "{source}"
        );
    }
}

#[test]
fn a_confined_crate_is_caught_outside_its_module_and_allowed_inside() {
    for (source, home) in [
        ("use burn::tensor::Tensor;", "src/trainer/mod.rs"),
        ("fn f() { burn_flex::init() }", "src/trainer/models/mlp.rs"),
        ("use diesel::prelude::*;", "src/store/studies.rs"),
        (
            "#[derive(diesel::Queryable)] struct Row;",
            "src/store/rows.rs",
        ),
        ("extern crate diesel_async;", "src/store/mod.rs"),
        (
            "async fn f(c: &tokio_postgres::Client) {}",
            "src/store/notify.rs",
        ),
        (
            "#[actix_web::get(\"/\")] async fn f() {}",
            "src/api/studies.rs",
        ),
        ("use utoipa_swagger_ui as docs;", "src/api/docs.rs"),
    ] {
        assert_eq!(caught(home, source), BTreeSet::new(), "{source}");
        for elsewhere in ["src/pool/claim.rs", "src/main.rs", "src/plan/mod.rs"] {
            assert_eq!(
                caught(elsewhere, source),
                BTreeSet::from([1]),
                "{source} in {elsewhere}"
            );
        }
    }
}

#[test]
fn clocks_random_sources_and_io_are_caught_in_pure_modules_only() {
    for source in [
        "use std::time::{Duration, Instant};",
        "use std::time::*;",
        "use std::time; fn f() { time::SystemTime::now(); }",
        "fn f() { std::fs::read(\"x\"); }",
        "use std::{fmt, net};",
        "use std::process::Command;",
        "fn f() -> Option<String> { std::env::var(\"X\").ok() }",
        "use chrono::Utc; fn f() { Utc::now(); }",
        "fn f() { chrono::Utc::now(); }",
        "use rand::rng; fn f() { rng(); }",
        "fn f() { let x: f64 = rand::random(); }",
        "fn f() { rand_chacha::ChaCha8Rng::from_os_rng(1); }",
        "fn f() { format!(\"{}\", uuid::Uuid::now_v7()); }",
        "async fn f() { tokio::task::yield_now().await }",
    ] {
        let lines = caught("src/analysis/memory.rs", source);
        assert_eq!(lines, BTreeSet::from([1]), "{source}");
        assert_eq!(caught("src/pool/child.rs", source), BTreeSet::new());
    }
}

#[test]
fn what_the_rule_allows_is_left_alone() {
    for (file, source) in [
        (
            "src/probe/spec.rs",
            "use crate::study::{Backend, Workload};",
        ),
        (
            "src/probe/spec.rs",
            "const V: &str = env!(\"CARGO_PKG_VERSION\");",
        ),
        ("src/study/mod.rs", "mod definition; pub use definition::*;"),
        ("src/study/mod.rs", "mod config; use config::Config;"),
        (
            "src/study/units.rs",
            "pub(crate) fn f() { let tokio = 1; g(tokio) }",
        ),
        (
            "src/study/units.rs",
            "use chrono::{DateTime, Utc}; fn f(now: DateTime<Utc>) {}",
        ),
        ("src/study/units.rs", "use std::time::Duration;"),
        (
            "src/plan/mod.rs",
            "#[cfg(test)] mod tests { use super::*; use proptest::prelude::*; }",
        ),
        (
            "src/analysis/mod.rs",
            "//! See `crate::store` for where it is kept.\nstruct S;",
        ),
        (
            "src/lifecycle/create.rs",
            "use crate::{plan, recommendation, store, study};",
        ),
        ("src/main.rs", "use trialhead::{api, pool, trainer};"),
    ] {
        assert_eq!(caught(file, source), BTreeSet::new(), "{source}");
    }
}

#[test]
fn a_violation_names_the_file_the_line_and_the_rule() {
    let modules = BTreeSet::from(["study".to_string(), "store".to_string()]);
    let source = "struct S;\n\nfn f() { crate::store::open() }\n";
    let found = violations(Path::new("src/study/mod.rs"), source, &modules);
    assert_eq!(
        found[0].to_string(),
        "src/study/mod.rs:3: `study` uses `crate::store::open`, but of ours it may use only \
         statistics, catalog"
    );
}
