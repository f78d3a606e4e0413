//! Reads the list of a GGUF file's tensors: names, sizes, formats and places.

use super::cursor::Cursor;
use super::metadata::quoted;
use crate::format::Dtype;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// A tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Name in the file.
    pub name: String,
    /// Format of the elements.
    pub dtype: Dtype,
    /// Sizes, outermost first. (The file has the innermost first.)
    pub shape: Vec<usize>,
    /// Place of the elements, in bytes from the start of the file.
    pub range: Range<usize>,
}

/// Longest name in bytes that the format allows.
const NAME_BYTES: usize = 64;

/// Most dimensions that the format allows.
const DIMS: u32 = 4;

/// The least that an entry of the list takes: length and one byte of the name, number of
/// dimensions, one of them, type and place.
pub(super) const INFO_BYTES: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// Reads `count` entries. Their elements lie in the rest of the file of `len` bytes, behind the
/// list and aligned to `alignment` bytes.
pub(super) fn infos(
    cursor: &mut Cursor<'_>,
    count: usize,
    alignment: usize,
    len: usize,
    path: &Path,
) -> Result<Vec<Info>> {
    let mut listed = Vec::with_capacity(count);
    let mut names = BTreeSet::new();
    for index in 0..count {
        let entry = entry(cursor, index, count, path)?;
        if !names.insert(entry.name) {
            return cursor.fail(format!("expected each tensor once, found {} twice", entry.name));
        }
        listed.push(entry);
    }
    let start = cursor.at().next_multiple_of(alignment);
    let infos = listed.into_iter().map(|entry| entry.place(start, alignment, len, path));
    let infos: Vec<Info> = infos.collect::<Result<_>>()?;
    let mut ordered: Vec<&Info> = infos.iter().collect();
    ordered.sort_by_key(|info| info.range.start);
    for pair in ordered.windows(2) {
        if pair[1].range.start < pair[0].range.end {
            let expected = format!("it behind {}, at byte {}", pair[0].name, pair[0].range.end);
            let found = format!("it at byte {} (they overlap)", pair[1].range.start);
            return Err(tensor(path, &pair[1].name, expected, found));
        }
    }
    Ok(infos)
}

fn tensor(path: &Path, name: &str, expected: String, found: String) -> Error {
    Error::Tensor { path: path.into(), tensor: name.into(), expected, found }
}

/// An entry as it is listed.
struct Entry<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: usize,
    offset: u64,
}

fn entry<'a>(
    cursor: &mut Cursor<'a>,
    index: usize,
    count: usize,
    path: &Path,
) -> Result<Entry<'a>> {
    let which = format!("tensor {index} of {count}");
    let name = cursor.text(&which)?;
    // A name is printed in errors, so it must be one line.
    if name.is_empty() || name.len() > NAME_BYTES || name.contains(char::is_control) {
        let found = quoted(name);
        return cursor.fail(format!(
            "{which}: expected a printable name of 1 to {NAME_BYTES} bytes, found {found}"
        ));
    }
    let dims = cursor.u32(name)?;
    if !(1..=DIMS).contains(&dims) {
        let expected = format!("1 to {DIMS} dimensions");
        return Err(tensor(path, name, expected, dims.to_string()));
    }
    let mut shape = Vec::with_capacity(DIMS as usize);
    for _ in 0..dims {
        shape.push(cursor.u64(name)?);
    }
    let number = cursor.u32(name)?;
    let offset = cursor.u64(name)?;
    let Some(dtype) = dtype(number) else {
        let found = match UNSUPPORTED.iter().find(|(known, _)| *known == number) {
            Some((_, known)) => (*known).to_string(),
            None => format!("type {number}"),
        };
        let all: Vec<String> = Dtype::ALL.iter().map(ToString::to_string).collect();
        return Err(tensor(path, name, format!("one of {}", all.join(", ")), found));
    };
    let block = dtype.block() as u64;
    if !shape[0].is_multiple_of(block) {
        let expected = format!("rows of whole blocks of {block} for {dtype}");
        return Err(tensor(path, name, expected, format!("rows of {}", shape[0])));
    }
    let size = shape.iter().try_fold(1_u64, |all, &n| all.checked_mul(n).filter(|_| n > 0));
    let bytes = size.and_then(|n| (n / block).checked_mul(dtype.block_bytes() as u64));
    let Some(bytes) = bytes.and_then(|n| usize::try_from(n).ok()) else {
        let expected = "sizes of at least 1 whose product fits into memory".into();
        return Err(tensor(path, name, expected, format!("{shape:?}")));
    };
    // Each size is at most the product, which fits.
    let shape = shape.into_iter().rev().map(|n| n as usize).collect();
    Ok(Entry { name, dtype, shape, bytes, offset })
}

impl Entry<'_> {
    fn place(self, start: usize, alignment: usize, len: usize, path: &Path) -> Result<Info> {
        let Self { name, dtype, shape, bytes, offset } = self;
        if !offset.is_multiple_of(alignment as u64) {
            let expected = format!("an offset divisible by the alignment {alignment}");
            return Err(tensor(path, name, expected, offset.to_string()));
        }
        let first = usize::try_from(offset).ok().and_then(|offset| start.checked_add(offset));
        let end = first.and_then(|first| first.checked_add(bytes));
        match (first, end) {
            (Some(first), Some(end)) if end <= len => {
                Ok(Info { name: name.into(), dtype, shape, range: first..end })
            }
            _ => {
                let expected = format!("{bytes} bytes at byte {start} + {offset}");
                let found = format!("a file of {len} bytes (cut off)");
                Err(tensor(path, name, expected, found))
            }
        }
    }
}

/// The formats by their numbers in files.
const NUMBERS: [(u32, Dtype); 14] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (23, Dtype::Iq4Xs),
    (30, Dtype::Bf16),
];

/// Returns the format of a type's number in files.
fn dtype(number: u32) -> Option<Dtype> {
    NUMBERS.iter().find(|(known, _)| *known == number).map(|&(_, dtype)| dtype)
}

/// Returns the number of a format in files.
pub(super) fn number(dtype: Dtype) -> u32 {
    NUMBERS.iter().find(|(_, known)| *known == dtype).map_or(u32::MAX, |&(number, _)| number)
}

/// Types that llama.cpp has and this crate has not, named in errors.
const UNSUPPORTED: [(u32, &str); 23] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];
