//! Reads the values of a GGUF file's metadata.

use super::cursor::Cursor;
use super::metadata::{Strings, Value, quoted};
use crate::Result;
use std::collections::BTreeMap;

/// Arrays may hold arrays. No known key does so; the bound keeps a hostile file from exhausting
/// the stack.
const DEPTH: usize = 4;

/// Longest key, in bytes, that the format allows.
const KEY_BYTES: usize = (1 << 16) - 1;

/// The least that a key with its value takes: lengths of the key and of its one byte, type and
/// value.
pub(super) const PAIR_BYTES: usize = 8 + 1 + 4 + 1;

/// Reads `count` keys with their values.
pub(super) fn pairs(cursor: &mut Cursor<'_>, count: usize) -> Result<BTreeMap<String, Value>> {
    let mut values = BTreeMap::new();
    for index in 0..count {
        let key = cursor.text(&format!("key {index} of {count}"))?;
        let name = quoted(key);
        if key.is_empty() || key.len() > KEY_BYTES {
            let found = key.len();
            return cursor.fail(format!(
                "key {index} of {count}: expected 1 to {KEY_BYTES} bytes, found {found}"
            ));
        }
        let kind = Kind::read(cursor, &name)?;
        let value = value(cursor, kind, &name, 0)?;
        if values.insert(key.into(), value).is_some() {
            return cursor.fail(format!("expected each key once, found {name} twice"));
        }
    }
    Ok(values)
}

/// Type of a value.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Kind {
    /// All types, by their numbers in files.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, what: &str) -> Result<Self> {
        let number = cursor.u32(what)?;
        match Self::ALL.get(number as usize) {
            Some(&kind) => Ok(kind),
            None => cursor.fail(format!(
                "{what}: expected a value's type from 0 to {}, found {number}",
                Self::ALL.len() - 1
            )),
        }
    }

    /// Returns the least bytes that a value takes: those of its length where it is a text, of
    /// type and length where it is an array.
    fn least(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

fn value(cursor: &mut Cursor<'_>, kind: Kind, what: &str, depth: usize) -> Result<Value> {
    Ok(match kind {
        Kind::U8 => Value::U64(cursor.u8(what)?.into()),
        Kind::U16 => Value::U64(cursor.u16(what)?.into()),
        Kind::U32 => Value::U64(cursor.u32(what)?.into()),
        Kind::U64 => Value::U64(cursor.u64(what)?),
        Kind::I8 => Value::I64((cursor.u8(what)? as i8).into()),
        Kind::I16 => Value::I64((cursor.u16(what)? as i16).into()),
        Kind::I32 => Value::I64((cursor.u32(what)? as i32).into()),
        Kind::I64 => Value::I64(cursor.u64(what)? as i64),
        Kind::F32 => Value::F64(f32::from_bits(cursor.u32(what)?).into()),
        Kind::F64 => Value::F64(f64::from_bits(cursor.u64(what)?)),
        Kind::Bool => match cursor.u8(what)? {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            found => {
                return cursor
                    .fail(format!("{what}: expected 0 or 1 as a truth value, found {found}"));
            }
        },
        Kind::String => Value::String(cursor.text(what)?.into()),
        Kind::Array => array(cursor, what, depth)?,
    })
}

fn array(cursor: &mut Cursor<'_>, what: &str, depth: usize) -> Result<Value> {
    if depth == DEPTH {
        return cursor.fail(format!("{what}: expected arrays nested at most {DEPTH} deep"));
    }
    let kind = Kind::read(cursor, what)?;
    let count = cursor.count(kind.least(), what)?;
    Ok(match kind {
        Kind::String => Value::Strings(texts(cursor, count, what)?),
        Kind::F32 => {
            let bytes = cursor.take(4 * count, what)?;
            Value::Numbers(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
        }
        Kind::F64 | Kind::Array => Value::Array(values(cursor, kind, count, what, depth)?),
        _ => integers(cursor, kind, count, what, depth)?,
    })
}

/// Reads an array of texts.
fn texts(cursor: &mut Cursor<'_>, count: usize, what: &str) -> Result<Strings> {
    let mut all = Strings::with_capacity(count, 0);
    for _ in 0..count {
        all.push(cursor.text(what)?);
    }
    Ok(all)
}

/// Reads integers or truth values: compactly where all fit into an i32.
fn integers(
    cursor: &mut Cursor<'_>,
    kind: Kind,
    count: usize,
    what: &str,
    depth: usize,
) -> Result<Value> {
    let start = cursor.clone();
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let fits = match value(cursor, kind, what, depth)? {
            Value::U64(n) => i32::try_from(n).ok(),
            Value::I64(n) => i32::try_from(n).ok(),
            Value::Bool(b) => Some(b.into()),
            _ => None,
        };
        match fits {
            Some(n) => all.push(n),
            None => {
                drop(all);
                *cursor = start;
                return values(cursor, kind, count, what, depth).map(Value::Array);
            }
        }
    }
    Ok(Value::Integers(all))
}

fn values(
    cursor: &mut Cursor<'_>,
    kind: Kind,
    count: usize,
    what: &str,
    depth: usize,
) -> Result<Vec<Value>> {
    (0..count).map(|_| value(cursor, kind, what, depth + 1)).collect()
}
