//! Bounds how many codes a PDF's character maps name, and how deep they are nested. A range of
//! codes takes 20 bytes to write, and adobe-cmap-parser 0.4 creates an entry for each code in it.

use super::bounds::content;
use pdf_extract::{Document, Object, ObjectId};
use std::collections::BTreeSet;

/// Maximum codes that all maps of a document together may name; a font has 65,536.
const CODES: u64 = 1 << 22;
/// Maximum nesting of arrays, dictionaries and strings; real maps are nested two deep.
const DEPTH: usize = 32;

/// Checks the maps of all fonts, and describes what is wrong, if anything is.
pub(super) fn check(document: &Document) -> Result<(), String> {
    let mut maps = BTreeSet::new();
    document.objects.values().for_each(|object| find_maps(object, &mut maps));
    let mut left = CODES;
    for map in maps {
        if let Ok(stream) = document.get_object(map).and_then(Object::as_stream) {
            let named = codes(&content(stream))?;
            left = left
                .checked_sub(named)
                .ok_or_else(|| format!("its fonts' character maps name more than {CODES} codes"))?;
        }
    }
    Ok(())
}

/// Collects what pdf-extract takes for a character map, wherever a font's dictionary is.
fn find_maps(object: &Object, maps: &mut BTreeSet<ObjectId>) {
    let dictionary = match object {
        Object::Array(items) => return items.iter().for_each(|item| find_maps(item, maps)),
        Object::Dictionary(dictionary) => dictionary,
        Object::Stream(stream) => &stream.dict,
        _ => return,
    };
    for (key, value) in dictionary {
        match value {
            Object::Reference(id) if [&b"ToUnicode"[..], b"Encoding"].contains(&&key[..]) => {
                maps.insert(*id);
            }
            value => find_maps(value, maps),
        }
    }
}

/// Counts the codes of the ranges between `beginbfrange` and the next word. A value there is a
/// string, taken as the number it encodes, or an array. Three values make a range: its first
/// code, its last code, and what the first one maps to. `None` is a string with an escape, which
/// may stand for any byte: its range is taken as the longest that it may be.
#[derive(Default)]
struct Ranges {
    /// The values of the current range so far; `None` outside of ranges.
    open: Option<Vec<Option<u64>>>,
    codes: u64,
}

impl Ranges {
    fn push(&mut self, value: Option<u64>) {
        let Some(open) = &mut self.open else { return };
        open.push(value);
        if let &[first, last, _] = open.as_slice() {
            let (first, last) = (first.unwrap_or(0), last.unwrap_or(u32::MAX.into()));
            self.codes = self.codes.saturating_add((last + 1).saturating_sub(first));
            open.clear();
        }
    }
}

/// Counts the codes that a map's ranges name.
fn codes(map: &[u8]) -> Result<u64, String> {
    let mut ranges = Ranges::default();
    let mut depth = 0_usize;
    let mut rest = map;
    while let [first, after @ ..] = rest {
        rest = match (first, after) {
            (b'%', _) => skip(after, |b| !b"\r\n".contains(&b)),
            (b'<', [b'<', after @ ..]) => {
                depth += 1;
                after
            }
            (b'>', [b'>', after @ ..]) => {
                depth = depth.saturating_sub(1);
                after
            }
            (b'<', _) => {
                let string = &after[..after.len() - skip(after, |b| b != b'>').len()];
                let digits = string.iter().filter_map(|&b| char::from(b).to_digit(16));
                if depth == 0 {
                    // The parser also takes only the last four bytes of a longer string.
                    let value = digits.fold(0_u32, |code, digit| code << 4 | digit);
                    ranges.push(Some(value.into()));
                }
                after.get(string.len() + 1..).unwrap_or_default()
            }
            (b'(', _) => {
                let (string, after) = literal(after)?;
                if depth == 0 {
                    let plain = !string.contains(&b'\\');
                    let value = string.iter().fold(0_u32, |code, &b| code << 8 | u32::from(b));
                    ranges.push(plain.then(|| value.into()));
                }
                after
            }
            (b'[', _) => {
                if depth == 0 {
                    ranges.push(Some(0));
                }
                depth += 1;
                after
            }
            (b']', _) => {
                depth = depth.saturating_sub(1);
                after
            }
            (b'/', _) => skip(after, |b| b.is_ascii_alphanumeric()),
            (b'a'..=b'z' | b'A'..=b'Z', _) => {
                let word = &rest[..rest.len() - skip(rest, |b| b.is_ascii_alphabetic()).len()];
                ranges.open = (word == b"beginbfrange").then(Vec::new);
                &rest[word.len()..]
            }
            _ => after,
        };
        if depth > DEPTH {
            return Err(nested());
        }
    }
    Ok(ranges.codes)
}

/// Returns a string in parentheses, which may be nested, without the outer ones, and the bytes
/// behind it.
fn literal(bytes: &[u8]) -> Result<(&[u8], &[u8]), String> {
    let (mut depth, mut escaped) = (1_usize, false);
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'(' if depth == DEPTH => return Err(nested()),
            b'(' => depth += 1,
            b')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Ok((&bytes[..at], &bytes[at + 1..]));
        }
    }
    Ok((bytes, &[]))
}

fn nested() -> String {
    format!("a font's character map is nested more than {DEPTH} deep")
}

/// Returns the bytes behind the leading ones that satisfy `so`.
fn skip(bytes: &[u8], so: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().position(|&b| !so(b)).unwrap_or(bytes.len());
    &bytes[end..]
}
