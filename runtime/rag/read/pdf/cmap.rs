//! How many codes a PDF's character maps name, and how deep they are nested. A range of codes takes
//! 20 bytes to write, and adobe-cmap-parser 0.4 makes an entry of each code in it.

use super::bounds::content;
use pdf_extract::{Document, Object, ObjectId};
use std::collections::BTreeSet;

/// Codes that all maps of a document may name: a font has 65,536.
const CODES: u64 = 1 << 22;
/// How deep arrays, dictionaries and strings may be nested; those of real maps are two deep.
const DEPTH: usize = 32;

/// Looks through the maps of all fonts; what is wrong, if anything is.
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

/// What pdf-extract takes for a map, wherever a font's dictionary is.
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

/// A string between `beginbfrange` and the next word, as the number that it is, or an array there.
/// Three of them are a range: its first code, its last, and what the first one means.
#[derive(Default)]
struct Ranges {
    /// None where no range is open.
    open: Option<Vec<u64>>,
    codes: u64,
}

impl Ranges {
    fn push(&mut self, value: u64) {
        let Some(open) = &mut self.open else { return };
        open.push(value);
        if let &[first, last, _] = open.as_slice() {
            self.codes = self.codes.saturating_add((last + 1).saturating_sub(first));
            open.clear();
        }
    }
}

/// The codes that a map's ranges name.
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
                    // Of a longer one the parser takes the last four bytes, too.
                    ranges.push(digits.fold(0_u32, |code, digit| code << 4 | digit).into());
                }
                after.get(string.len() + 1..).unwrap_or_default()
            }
            (b'(', _) => {
                let (string, after) = literal(after)?;
                if depth == 0 {
                    // As an escape may stand for any byte, a code with one may be any.
                    let plain = !string.contains(&b'\\');
                    let value = string.iter().fold(0_u32, |code, &b| code << 8 | u32::from(b));
                    ranges.push(if plain { value.into() } else { u32::MAX.into() });
                }
                after
            }
            (b'[', _) => {
                if depth == 0 {
                    ranges.push(0);
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

/// A string in round brackets, which nest, without the outer ones; and what comes behind it.
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

/// What comes behind the bytes that are so.
fn skip(bytes: &[u8], so: impl Fn(u8) -> bool) -> &[u8] {
    let end = bytes.iter().position(|&b| !so(b)).unwrap_or(bytes.len());
    &bytes[end..]
}
