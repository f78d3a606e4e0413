//! Text from outside, as editors save it: UTF-8, or UTF-16 that begins with a byte-order mark.
//!
//! A mark is no part of the text; left in, it would be a token, and change an embedding.

use std::fmt;
use std::io::{self, BufRead, Cursor, Read};

/// The mark, as a character.
const MARK: char = '\u{FEFF}';

/// Bytes that are no text.
#[derive(Debug)]
pub struct NotText {
    /// What they are not.
    encoding: Encoding,
    /// The first byte that is wrong, from 0.
    pub at: usize,
    bytes: Vec<u8>,
}

impl NotText {
    /// What they are not.
    pub fn encoding(&self) -> &'static str {
        if self.encoding == Encoding::Utf8 { "UTF-8" } else { "UTF-16" }
    }

    /// Whether they hold zeros, which no text does but in UTF-16.
    pub fn is_binary(&self) -> bool {
        self.encoding == Encoding::Utf8 && self.bytes.contains(&0)
    }
}

impl fmt::Display for NotText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not {} (byte {}, counted from 0)", self.encoding(), self.at)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
}

impl Encoding {
    /// By the mark; UTF-8 where there is none.
    fn of(bytes: &[u8]) -> Self {
        match bytes {
            [0xFF, 0xFE, ..] => Self::Utf16Le,
            [0xFE, 0xFF, ..] => Self::Utf16Be,
            _ => Self::Utf8,
        }
    }
}

/// The text of a file, or of what stands in for one, without its mark.
pub fn decode(bytes: Vec<u8>) -> Result<String, NotText> {
    let encoding = Encoding::of(&bytes);
    let decoded = match encoding {
        Encoding::Utf8 => {
            return match String::from_utf8(bytes) {
                Ok(text) if text.starts_with(MARK) => Ok(unmarked(&text).into()),
                Ok(text) => Ok(text),
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    Err(NotText { encoding, at, bytes: error.into_bytes() })
                }
            };
        }
        Encoding::Utf16Le => utf16(&bytes, u16::from_le_bytes),
        Encoding::Utf16Be => utf16(&bytes, u16::from_be_bytes),
    };
    decoded.map_err(|at| NotText { encoding, at, bytes })
}

/// The text of UTF-16 without its mark, or where the first unit is that is half a character.
fn utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Result<String, usize> {
    let (units, rest) = bytes.as_chunks();
    let (mut text, mut at) = (String::with_capacity(bytes.len()), 0);
    for c in char::decode_utf16(units.iter().map(|&bytes| unit(bytes))) {
        let c = c.map_err(|_| at)?;
        text.push(c);
        at += 2 * c.len_utf16();
    }
    if rest.is_empty() { Ok(unmarked(&text).into()) } else { Err(at) }
}

/// Bytes of a line, and of a document: more than a book of a thousand pages, and little enough to
/// be read at once.
pub const MAX_BYTES: usize = 256 << 20;

/// Reads the next line, with its end, to where `line` was cleared; whether there was one.
///
/// # Errors
/// When it cannot be read, or has more than [`MAX_BYTES`]. (A pipe may have no line's end at all.)
pub fn read_line(from: &mut dyn BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    from.take(MAX_BYTES as u64 + 1).read_until(b'\n', line)?;
    match line.len() > MAX_BYTES {
        true => Err(too_long("a line")),
        false => Ok(!line.is_empty()),
    }
}

fn too_long(what: &str) -> io::Error {
    let problem = format!("{what} has more than {} MiB", MAX_BYTES >> 20);
    io::Error::new(io::ErrorKind::FileTooLarge, problem)
}

/// A reader of UTF-8 from one of either, without the mark. It waits for the first line.
///
/// # Errors
/// When the first line cannot be read, or what has the mark of UTF-16 is not, or has more than
/// [`MAX_BYTES`].
pub fn utf8<'a>(mut from: impl BufRead + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut first = Vec::new();
    read_line(&mut from, &mut first)?;
    if Encoding::of(&first) == Encoding::Utf8 {
        let first = unmarked_bytes(&first).to_vec();
        return Ok(Box::new(Cursor::new(first).chain(from)));
    }
    from.take(MAX_BYTES as u64).read_to_end(&mut first)?;
    if first.len() > MAX_BYTES {
        return Err(too_long("UTF-16"));
    }
    let text = decode(first);
    let text = text.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    Ok(Box::new(Cursor::new(text.into_bytes())))
}

/// A text, or a line of one, without a mark in front. (Lines have marks where files were put one
/// after the other.)
pub fn unmarked(text: &str) -> &str {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// [`unmarked`], of UTF-8.
pub fn unmarked_bytes(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(text)
}
