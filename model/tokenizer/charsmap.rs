//! SentencePiece's table of a `Precompiled` normalizer: a trie of what is replaced, as a double
//! array, and the texts that replace it. The crate that reads it follows its numbers wherever they
//! lead, so they are looked through first.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::Value;
use std::collections::VecDeque;

/// The field.
const FIELD: &str = "precompiled_charsmap";

/// Refuses tables in a part of a `tokenizer.json` that are not there or lead beyond themselves.
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
        // The crate takes for granted that it is there.
        None if part["type"] == "Precompiled" => Err(wrong("expected a table, found none".into())),
        None => Ok(()),
    }
}

/// How many bytes can become of one with the table in base64.
pub(super) fn growth(table: &str) -> Result<f64, String> {
    let table = decode(table)?;
    let (trie, texts) = split(&table)?;
    let texts = std::str::from_utf8(texts).map_err(|e| wrong(format!("its texts: {e}")))?;
    let beyond = || wrong("its trie leads beyond its end".into());
    let unit = |at: usize| trie.get(at).map(|&unit| Unit(unit)).ok_or_else(beyond);
    let mut growth = 1.0_f64;
    let mut seen = vec![false; trie.len()];
    // Breadth first: the first way to a node is the shortest.
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

/// A number of the double array.
#[derive(Clone, Copy)]
struct Unit(u32);

impl Unit {
    fn has_leaf(self) -> bool {
        self.0 >> 8 & 1 == 1
    }

    /// Where a leaf's text begins.
    fn value(self) -> usize {
        (self.0 & !(1 << 31)) as usize
    }

    /// The byte that leads here; a leaf's is none.
    fn label(self) -> usize {
        (self.0 & (1 << 31 | 0xFF)) as usize
    }

    /// From here to the children, by exclusive or.
    fn offset(self) -> usize {
        ((self.0 >> 10) as usize) << ((self.0 & 1 << 9) >> 6)
    }
}

fn decode(table: &str) -> Result<Vec<u8>, String> {
    BASE64_STANDARD.decode(table).map_err(|e| wrong(e.to_string()))
}

/// The trie, whose bytes are counted in front of it, and the texts.
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
