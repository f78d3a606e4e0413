//! Defines the protocol with a parser's process over a socket. Numbers have 8 bytes,
//! little-endian; a string of bytes is its length, as such a number, followed by the bytes.
//!
//! The process sends [`GREETING`] once. A request is the format (0 HTML, 1 PDF), seconds of CPU
//! time, bytes of memory, bytes of text, and the document. An answer is 0 and a problem; 1 and a
//! text; or 2, a title and a text.

use super::{Format, ParseLimits, Parsed};
use std::io::{self, Read, Write};
use std::time::Duration;

/// Identifies a parser's process and the version of its protocol.
pub(super) const GREETING: &[u8; 16] = b"gritlm parser 1\n";

pub(super) struct Request {
    pub(super) format: Format,
    pub(super) limits: ParseLimits,
    pub(super) document: Vec<u8>,
}

pub(super) fn write_request(
    to: &mut impl Write,
    format: Format,
    limits: &ParseLimits,
    document: &[u8],
) -> io::Result<()> {
    let format = u64::from(format == Format::Pdf);
    for number in [format, limits.cpu.as_secs(), limits.memory, limits.text as u64] {
        to.write_all(&number.to_le_bytes())?;
    }
    write_bytes(to, document)
}

/// Reads the next request. Returns `None` at the end of the stream.
pub(super) fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    let format = match number(from) {
        Ok(0) => Format::Html,
        Ok(_) => Format::Pdf,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let limits = ParseLimits {
        cpu: Duration::from_secs(number(from)?),
        memory: number(from)?,
        text: number(from)? as usize,
    };
    let document = read_bytes(from, usize::MAX)?;
    Ok(Some(Request { format, limits, document }))
}

pub(super) fn write_answer(to: &mut impl Write, answer: &Parsed) -> io::Result<()> {
    let (kind, parts): (u64, &[&str]) = match answer {
        Err(problem) => (0, &[problem]),
        Ok((None, text)) => (1, &[text]),
        Ok((Some(title), text)) => (2, &[title, text]),
    };
    to.write_all(&kind.to_le_bytes())?;
    parts.iter().try_for_each(|part| write_bytes(to, part.as_bytes()))
}

/// Reads an answer whose parts have at most `limit` bytes each.
pub(super) fn read_answer(from: &mut impl Read, limit: usize) -> io::Result<Parsed> {
    let kind = number(from)?;
    let mut text = || {
        let text = String::from_utf8(read_bytes(from, limit)?);
        text.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
    };
    match kind {
        0 => Ok(Err(text()?)),
        1 => Ok(Ok((None, text()?))),
        2 => Ok(Ok((Some(text()?), text()?))),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn number(from: &mut impl Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn write_bytes(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(&(bytes.len() as u64).to_le_bytes())?;
    to.write_all(bytes)
}

fn read_bytes(from: &mut impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let count = number(from)?;
    if count > limit as u64 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // The buffer grows with the bytes that arrive, not to the announced size.
    let mut bytes = Vec::new();
    match from.take(count).read_to_end(&mut bytes)? as u64 == count {
        true => Ok(bytes),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
