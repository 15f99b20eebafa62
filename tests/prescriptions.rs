//! `docs/prescriptions.md` says of every prescription of the playbook's guide where in the code it is answered and
//! which test holds it. This keeps it true: every row is there once, what it names exists, and every test that is
//! named after a row is in the list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The prescriptions are numbered from 1 to this.
const LAST: u32 = 54;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// One line of the table.
struct Row {
    numbers: Vec<u32>,
    places: Vec<String>,
    tests: Vec<String>,
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// `30–36` and `16, 18, 43`.
fn numbers(cell: &str) -> Vec<u32> {
    cell.split(',')
        .flat_map(|part| {
            let mut ends = part.trim().split('–').map(|end| {
                end.trim()
                    .parse::<u32>()
                    .unwrap_or_else(|_| panic!("not a number of a prescription: {cell}"))
            });
            let first = ends.next().expect("a number");
            first..=ends.next().unwrap_or(first)
        })
        .collect()
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/prescriptions.md")).expect("is there");
    let rows: Vec<Row> = text
        .lines()
        .filter(|line| {
            line.starts_with("| ") && line[2..].starts_with(|it: char| it.is_ascii_digit())
        })
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
            assert_eq!(
                cells.len(),
                5,
                "row, prescription, output, code, test: {line}"
            );
            Row {
                numbers: numbers(cells[0]),
                places: quoted(cells[3]),
                tests: quoted(cells[4]),
            }
        })
        .collect();
    assert!(rows.len() > 20, "the table is read");
    rows
}

/// Every Rust file under a folder.
fn sources(folder: &str) -> Vec<PathBuf> {
    walkdir::WalkDir::new(root().join(folder))
        .into_iter()
        .map(|entry| entry.expect("readable").into_path())
        .filter(|path| path.extension().is_some_and(|it| it == "rs"))
        .collect()
}

/// Names of the tests in a file that are named after a row.
fn named_after_rows(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            line.trim_start()
                .trim_start_matches("async ")
                .strip_prefix("fn ")
        })
        .filter(|rest| {
            let number = rest
                .strip_prefix("row_")
                .or_else(|| rest.strip_prefix("rows_"));
            number.is_some_and(|number| number.starts_with(|it: char| it.is_ascii_digit()))
        })
        .filter_map(|rest| rest.split('(').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_prescription_is_listed_once() {
    let mut seen = BTreeMap::new();
    for row in rows() {
        for number in row.numbers {
            *seen.entry(number).or_insert(0) += 1;
        }
    }
    let expected: BTreeMap<u32, i32> = (1..=LAST).map(|number| (number, 1)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn what_the_list_names_exists_and_every_row_has_a_test_named_after_it() {
    for row in rows() {
        assert!(
            !row.places.is_empty(),
            "row {:?} names no code",
            row.numbers
        );
        for place in &row.places {
            assert!(root().join(place).exists(), "{place} does not exist");
        }
        assert!(!row.tests.is_empty(), "row {:?} names no test", row.numbers);
        for test in &row.tests {
            let (file, name) = test
                .rsplit_once("::")
                .unwrap_or_else(|| panic!("{test} is no path to a test"));
            let text = fs::read_to_string(root().join(file))
                .unwrap_or_else(|error| panic!("{file}: {error}"));
            assert!(
                named_after_rows(&text).iter().any(|it| it == name),
                "{file} has no test {name}"
            );
            // `row_16_18_43_…` and `rows_30_to_36_…` carry the numbers of their rows.
            let words: BTreeSet<&str> = name.split('_').collect();
            let is_named = row
                .numbers
                .iter()
                .any(|number| words.contains(number.to_string().as_str()));
            assert!(is_named, "{name} is not named after {:?}", row.numbers);
        }
    }
}

#[test]
fn every_test_that_is_named_after_a_row_is_listed() {
    let listed: BTreeSet<String> = rows()
        .into_iter()
        .flat_map(|row| row.tests)
        .filter_map(|test| Some(test.rsplit_once("::")?.1.to_owned()))
        .collect();
    let missing: Vec<String> = ["src", "tests"]
        .into_iter()
        .flat_map(sources)
        .flat_map(|path| named_after_rows(&fs::read_to_string(path).expect("readable")))
        .filter(|name| !listed.contains(name))
        .collect();
    assert!(
        missing.is_empty(),
        "not in docs/prescriptions.md: {missing:?}"
    );
}
