//! Checks SentencePiece's table of a `Precompiled` normalizer: a double-array trie of the strings
//! to replace, and their replacements. The crate that reads it follows its offsets without
//! checks, so this module validates them first.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use std::collections::VecDeque;

/// Name of the field with the table.
const FIELD: &str = "precompiled_charsmap";

/// Refuses a part of a `tokenizer.json` with a table that is missing or has offsets beyond its
/// end.
pub(super) fn check(part: &Value) -> Result<(), String> {
    let inner = match part {
        Value::Array(values) => values.iter().try_for_each(check),
        Value::Object(fields) => fields.values().try_for_each(check),
        _ => Ok(()),
    };
    inner?;
    match part.get(FIELD) {
        Some(Value::String(table)) => growth(table).map(drop),
        Some(_) => Err(wrong("expected a string".into())),
        // The crate assumes that the table exists.
        None if part["type"] == "Precompiled" => Err(wrong("expected a table, found none".into())),
        None => Ok(()),
    }
}

/// Returns the largest growth by the table (in base64), in bytes per byte.
pub(super) fn growth(table: &str) -> Result<f64, String> {
    let table = decode(table)?;
    let (trie, texts) = split(&table)?;
    let texts = std::str::from_utf8(texts).map_err(|e| wrong(format!("its texts: {e}")))?;
    let beyond = || wrong("an entry of its trie points past the trie's end".into());
    let unit = |at: usize| trie.get(at).map(|&unit| Unit(unit)).ok_or_else(beyond);
    let mut growth = 1.0_f64;
    let mut seen = vec![false; trie.len()];
    // The search is breadth-first, so the first path to a node is the shortest.
    let mut waiting = VecDeque::from([(unit(0)?.offset(), 0_u32)]);
    while let Some((node, depth)) = waiting.pop_front() {
        for byte in 1..=255_usize {
            let next = unit(node ^ byte)?;
            if next.label() != byte {
                continue;
            }
            let child = node ^ byte ^ next.offset();
            if next.has_leaf() {
                let at = unit(child)?.value();
                let rest = texts.get(at..).ok_or_else(|| {
                    wrong(format!("expected {} bytes of texts, found byte {at}", texts.len()))
                })?;
                let text = rest.split('\0').next().unwrap_or_default();
                growth = growth.max(text.len() as f64 / f64::from(depth + 1));
            }
            let seen = seen.get_mut(child).ok_or_else(beyond)?;
            if !std::mem::replace(seen, true) {
                waiting.push_back((child, depth + 1));
            }
        }
    }
    Ok(growth)
}

/// An element of the double array.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// Returns where a leaf's text begins.
    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }

    /// Returns the byte on the edge to this unit; a leaf's label is not a byte.
    fn label(self) -> usize {
        (self.0 & (1 << 31 | 0xFF)) as usize
    }

    /// Returns the offset to the children, to be combined by exclusive or.
    fn offset(self) -> usize {
        ((self.0 >> 10) as usize) << ((self.0 & 1 << 9) >> 6)
    }
}

fn decode(table: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(table).map_err(|e| wrong(e.to_string()))
}

/// Splits the table into the trie, whose size in bytes precedes it, and the texts.
fn split(table: &[u8]) -> Result<(Vec<u32>, &[u8]), String> {
    let (size, rest) = table.split_first_chunk().ok_or_else(|| wrong("it has no size".into()))?;
    let size = u32::from_le_bytes(*size) as usize;
    let (trie, texts) = rest.split_at_checked(size / 4 * 4).ok_or_else(|| {
        wrong(format!("expected a trie of {size} bytes, found {} bytes", rest.len()))
    })?;
    let units = trie.as_chunks::<4>().0.iter().map(|&unit| u32::from_le_bytes(unit));
    Ok((units.collect(), texts))
}

fn wrong(problem: String) -> String {
    format!("{FIELD}: {problem}")
}
