//! GGUF files: metadata and tensors of a model in one file, or in several.
//!
//! A file is, little-endian and without gaps: the magic `GGUF`, a version, the numbers of tensors
//! and of key-value pairs, the pairs, and the list of the tensors. The tensors' elements follow,
//! each aligned to `general.alignment` bytes. [`parse`] checks all of it and copies none of the
//! tensors. Its memory is a small multiple of the list's and the pairs' bytes, whatever their
//! counts and lengths claim.

mod config;
mod cursor;
mod describe;
mod files;
mod metadata;
mod names;
mod tensors;
mod value;
mod weights;
mod write;

pub use describe::describe;
pub use files::{Gguf, is_gguf, parts};
pub use metadata::{Metadata, Strings, Value};
pub use tensors::Info;
pub use write::{Planned, plan, write};

use crate::Result;
use cursor::Cursor;
use metadata::quoted;
use std::cell::Cell;
use std::path::Path;

/// First bytes of every GGUF file.
pub const MAGIC: &[u8; 4] = b"GGUF";

/// Alignment of tensors in a file that says none.
const ALIGNMENT: usize = 32;

/// Greatest alignment. More than a page of memory makes no sense, and would waste the file.
const MAX_ALIGNMENT: usize = 1 << 16;

/// What a GGUF file says before its tensors' elements.
#[derive(Clone, Debug, PartialEq)]
pub struct Contents {
    /// The key-value pairs.
    pub metadata: Metadata,
    /// The tensors, in the order of the file.
    pub tensors: Vec<Info>,
}

/// Reads and checks everything but the tensors' elements. Errors name `path`.
///
/// # Errors
/// When the file is of another format or version, big-endian, truncated, or claims counts or
/// lengths beyond its size; when a key or a tensor occurs twice; when a tensor has an unknown
/// format, rows that are not whole blocks, or elements that are not aligned, overlap another's or
/// lie beyond the file's end.
pub fn parse(bytes: &[u8], path: &Path) -> Result<Contents> {
    contents(Cursor::new(bytes, bytes.len(), &Cell::new(0), path), bytes, path)
}

/// What the first bytes of a file say.
pub(crate) enum Start {
    /// They are enough.
    Contents(Contents),
    /// At least so many are needed.
    Needs(usize),
}

/// Does what [`parse`] does with the first bytes of a file of `size` bytes.
pub(crate) fn parse_start(bytes: &[u8], size: usize, path: &Path) -> Result<Start> {
    let needed = Cell::new(0);
    match contents(Cursor::new(bytes, size, &needed, path), bytes, path) {
        Err(_) if needed.get() > bytes.len() => Ok(Start::Needs(needed.get())),
        found => found.map(Start::Contents),
    }
}

fn contents(mut cursor: Cursor<'_>, bytes: &[u8], path: &Path) -> Result<Contents> {
    crate::files::check_pointer(bytes, path)?;
    let magic = cursor.take(MAGIC.len(), "the magic")?;
    if magic != MAGIC {
        let found = quoted(&String::from_utf8_lossy(magic));
        return cursor.fail(format!("expected it to begin with \"GGUF\", found {found}"));
    }
    match cursor.u32("the version")? {
        2 | 3 => {}
        other if (1..=0xFFFF).contains(&other.swap_bytes()) => {
            let version = other.swap_bytes();
            return cursor
                .fail(format!("expected little-endian, found version {version} in big-endian"));
        }
        other => return cursor.fail(format!("expected version 2 or 3, found {other}")),
    }
    let tensors = cursor.count(tensors::INFO_BYTES, "the number of tensors")?;
    let pairs = cursor.count(value::PAIR_BYTES, "the number of key-value pairs")?;
    let metadata = Metadata::new(path, value::pairs(&mut cursor, pairs)?);
    let alignment = match metadata.has("general.alignment") {
        true => metadata.count("general.alignment", MAX_ALIGNMENT)?,
        false => ALIGNMENT,
    };
    if !alignment.is_power_of_two() || alignment < 8 {
        let expected = format!("a power of two from 8 to {MAX_ALIGNMENT}");
        let found = metadata.get("general.alignment");
        return metadata.fail("general.alignment", &expected, found);
    }
    let size = cursor.size();
    let tensors = tensors::infos(&mut cursor, tensors, alignment, size, path)?;
    Ok(Contents { metadata, tensors })
}
