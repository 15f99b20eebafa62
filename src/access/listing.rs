//! Tokens as a list for people and for programs.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::json;

use crate::store::tokens::TokenRow;

const HEADINGS: [&str; 8] = [
    "ID",
    "NAME",
    "SCOPES",
    "PROJECT",
    "STATE",
    "CREATED",
    "EXPIRES",
    "LAST USED",
];

/// A table with aligned columns.
pub fn table(rows: &[TokenRow]) -> String {
    let minute = |at: Option<DateTime<Utc>>, none: &str| match at {
        Some(at) => at.format("%Y-%m-%d %H:%M").to_string(),
        None => none.to_owned(),
    };
    let mut lines = vec![HEADINGS.map(ToOwned::to_owned)];
    lines.extend(rows.iter().map(|row| {
        [
            row.id.to_string(),
            row.name.clone(),
            row.scopes.join(","),
            row.project.clone().unwrap_or_else(|| "any".into()),
            row.state.clone(),
            minute(Some(row.created_at), ""),
            minute(row.expires_at, "never"),
            minute(row.last_used_at, "never"),
        ]
    }));
    let mut widths = [0; HEADINGS.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A JSON array.
///
/// # Errors
/// Never, in practice: every value has a form in JSON.
pub fn json(rows: &[TokenRow]) -> Result<String, serde_json::Error> {
    let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let items: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.id,
                "name": row.name,
                "scopes": row.scopes,
                "project": row.project,
                "state": row.state,
                "created_at": time(row.created_at),
                "expires_at": row.expires_at.map(time),
                "revoked_at": row.revoked_at.map(time),
                "last_used_at": row.last_used_at.map(time),
            })
        })
        .collect();
    Ok(serde_json::to_string_pretty(&items)? + "\n")
}
