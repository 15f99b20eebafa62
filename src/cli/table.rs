//! Tables that fit the terminal, and figures as people read them.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// Columns where nobody looks: a pipe, a file.
const UNWATCHED: u16 = 160;

/// Columns of the terminal.
pub fn columns() -> u16 {
    let terminal = console::Term::stdout();
    match terminal.size_checked() {
        Some((_, columns)) if terminal.is_term() && columns > 20 => columns,
        _ => UNWATCHED,
    }
}

/// A table with headings; long cells are broken within `columns`.
pub fn table(headings: &[&str], rows: Vec<Vec<String>>, columns: u16) -> String {
    let mut table = Table::new();
    table
        .load_preset(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(columns)
        .set_header(headings.iter().map(|it| it.to_uppercase()));
    for row in rows {
        // What comes from the service may hold anything; a terminal would obey it.
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    let lines: Vec<String> = table
        .to_string()
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n") + "\n"
}

/// A text without control characters, which a terminal would obey.
pub fn plain(text: &str) -> String {
    text.chars()
        .map(|it| {
            if it.is_control() && it != '\n' {
                '�'
            } else {
                it
            }
        })
        .collect()
}

/// A member as text; a dash where there is none.
pub fn text(value: &Value, name: &str) -> String {
    match &value[name] {
        Value::Null => "–".into(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    }
}

/// A span, as long as it needs.
pub fn span(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        "–".into()
    } else if secs < 90.0 {
        format!("{secs:.0} s")
    } else if secs < 5400.0 {
        format!("{:.0} min", secs / 60.0)
    } else {
        format!("{:.1} h", secs / 3600.0)
    }
}

/// A time of day, to the minute.
pub fn minute(value: &Value, name: &str) -> String {
    let at = value[name]
        .as_str()
        .and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    at.map_or_else(|| "–".into(), |at| at.format("%Y-%m-%d %H:%M").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_and_obeys_nobody() {
        let long = "a name that is rather long for the place that there is".to_owned();
        let rows = vec![vec!["1".into(), long, "\u{1b}[31mred".into()]];
        let text = table(&["id", "name", "state"], rows, 40);
        assert!(
            text.lines().all(|line| line.chars().count() <= 40),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.lines().count() > 2, "{text}");
    }

    #[test]
    fn spans_read_well() {
        assert_eq!(span(12.3), "12 s");
        assert_eq!(span(600.0), "10 min");
        assert_eq!(span(7200.0), "2.0 h");
        assert_eq!(span(f64::NAN), "–");
    }
}
