//! Generates the tables of `RESULTS.md` from the records in `benches/record`.

use super::record::{Record, Row};
use super::report::{digits, gb_s, gflop_s, input, percent, ratio, time};
use super::table::{heading, plain, share};
use crate::{Error, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Marks the start of the generated part; the text around it is written by hand.
pub const BEGIN: &str = "<!-- generated: gritlm bench results -->";
/// Marks its end.
pub const END: &str = "<!-- end of what is generated -->";

/// The records in a folder.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    /// Each record with its path inside the folder, newest first.
    pub records: Vec<(String, Record)>,
    /// Files from before the format had a version; `RESULTS.md` describes them by hand.
    pub older: Vec<String>,
}

impl Records {
    /// Reads every `.json` file of a folder and its subfolders.
    ///
    /// # Errors
    /// When a folder or a file cannot be read, or a file is neither a record nor of the older
    /// form, a JSON object without a number as its version.
    pub fn read(folder: &Path) -> Result<Self> {
        let mut found = Self::default();
        for path in files(folder)? {
            let name =
                path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            let bytes = fs::read(&path).map_err(Error::io(&path))?;
            let value: Option<Value> = serde_json::from_slice(&bytes).ok();
            match value {
                Some(v) if v.is_object() && !v["version"].is_number() => {
                    found.older.push(name);
                }
                _ => found.records.push((name, Record::parse(&bytes, &path)?)),
            }
        }
        found.records.sort_by(|a, b| (&b.1.date, &a.0).cmp(&(&a.1.date, &b.0)));
        Ok(found)
    }
}

/// Returns all `.json` files, sorted by path.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            all.extend(files(&path)?);
        } else if path.extension().is_some_and(|e| e == "json") {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Returns the generated part: a section for each record, a table for each suite of each device.
pub fn results(records: &[(String, Record)]) -> String {
    if records.is_empty() {
        return "No records of `gritlm bench` yet.\n".into();
    }
    let sections = records.iter().map(|(path, record)| section(path, record));
    sections.collect::<Vec<_>>().join("\n")
}

fn section(path: &str, record: &Record) -> String {
    let mut text = format!("## {}, {}\n\n", cell(&record.host), cell(&record.date));
    text += &format!("`{}`, {}.\n", plain(path).replace('`', "'"), cell(&record.program));
    for limits in record.all_devices() {
        text += &format!("\n### {}\n", cell(&heading(&limits).join("; ")));
        for (suite, rows) in record.suites(&limits.device) {
            text += &format!(
                "\n| {} | shape | median | spread | rate | share | beside |\n",
                cell(suite)
            );
            text += "|---|---|---:|---:|---:|---:|---|\n";
            rows.iter().for_each(|row| text += &line(record, row));
        }
    }
    if !record.missing.is_empty() {
        text += "\nNot measured:\n\n";
        record.missing.iter().for_each(|line| text += &format!("- {}\n", cell(line)));
    }
    text
}

fn line(record: &Record, row: &Row) -> String {
    let rate = match (row.tokens_s, row.limit.as_str()) {
        (Some(tokens), _) => format!("{} tokens/s", digits(tokens)),
        (None, "matmul") => gflop_s(row.gflop_s()),
        (None, _) if row.bytes > 0.0 => gb_s(row.gb_s()),
        (None, _) => String::new(),
    };
    let beside = record.beside(row);
    let beside = beside.iter().map(|p| format!("{:.2}x {}", ratio(p, row), p.peer));
    let note = Some(row.note.clone()).filter(|note| !note.is_empty());
    let cells = [
        row.op.clone(),
        row.shape.clone(),
        time(row.us),
        percent(row.spread),
        rate,
        share(row),
        beside.chain(note).collect::<Vec<_>>().join("; "),
    ];
    format!("| {} |\n", cells.map(|text| cell(&text)).join(" | "))
}

/// Escapes a text of a file as one line of Markdown without markup.
fn cell(text: &str) -> String {
    let special = |c| matches!(c, '|' | '<' | '>' | '`' | '*' | '_' | '[' | ']' | '\\' | '&');
    let mut out = String::new();
    for c in plain(text).chars() {
        if special(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// Replaces the generated part of the file's `text`; appends it if there is none yet.
///
/// # Errors
/// When one of the two markers is missing, or they are in the wrong order.
pub fn splice(text: &str, generated: &str, path: &Path) -> Result<String> {
    let part = format!("{BEGIN}\n\n{}\n\n{END}", generated.trim_end());
    match (text.find(BEGIN), text.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            Ok(format!("{}{part}{}", &text[..begin], &text[end + END.len()..]))
        }
        (None, None) => Ok(format!("{}\n\n{part}\n", text.trim_end())),
        _ => Err(input(path, format!("expected {BEGIN} and after it {END}, found only one"))),
    }
}
