//! Metadata of a GGUF file: values by key, with getters that check their types.

use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A value of a GGUF file. Numbers are widened; arrays of strings, small integers and floats are
/// compact, because a vocabulary has more than 100,000 entries.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// An unsigned integer of 8, 16, 32 or 64 bits.
    U64(u64),
    /// A signed integer of 8, 16, 32 or 64 bits.
    I64(i64),
    /// A floating-point number of 32 or 64 bits.
    F64(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    String(String),
    /// An array of texts.
    Strings(Strings),
    /// An array of integers of any width that all fit into an i32, or of truth values as 0 and 1.
    Integers(Vec<i32>),
    /// An array of 32-bit floating-point numbers.
    Numbers(Vec<f32>),
    /// Any other array.
    Array(Vec<Value>),
}

impl fmt::Display for Value {
    /// Formats the value for an error: in one short line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::U64(n) => write!(f, "{n}"),
            Self::I64(n) => write!(f, "{n}"),
            Self::F64(n) => write!(f, "{n:?}"),
            Self::Bool(b) => write!(f, "{b}"),
            Self::String(text) => f.write_str(&quoted(text)),
            Self::Strings(all) => write!(f, "an array of {} strings", all.len()),
            Self::Integers(all) => write!(f, "an array of {} integers", all.len()),
            Self::Numbers(all) => write!(f, "an array of {} numbers", all.len()),
            Self::Array(all) => write!(f, "an array of {} values", all.len()),
        }
    }
}

/// An array of texts in one block of memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// End of each text in `text`.
    ends: Vec<usize>,
}

impl Strings {
    /// Returns an empty array with room for `texts` texts of together `bytes` bytes.
    pub fn with_capacity(texts: usize, bytes: usize) -> Self {
        Self { text: String::with_capacity(bytes), ends: Vec::with_capacity(texts) }
    }

    /// Appends a text.
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    /// Returns the number of texts.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Returns whether there are no texts.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Returns a text by its index.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        Some(&self.text[start..end])
    }

    /// Iterates over the texts.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end)..end])
    }
}

impl<'a> FromIterator<&'a str> for Strings {
    fn from_iter<I: IntoIterator<Item = &'a str>>(texts: I) -> Self {
        let mut all = Self::default();
        texts.into_iter().for_each(|text| all.push(text));
        all
    }
}

/// The metadata of one GGUF file. Each getter fails with the file, the key, and what was expected
/// and found, where the key is absent or has a value of another type.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// Creates metadata of these values. Errors name `path`.
    pub fn new(path: &Path, values: BTreeMap<String, Value>) -> Self {
        Self { path: path.into(), values }
    }

    /// Returns the values.
    pub fn into_values(self) -> BTreeMap<String, Value> {
        self.values
    }

    /// Returns the file that the values come from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a value of any type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// Returns whether there is a value of this key.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// Iterates over keys and values, ordered by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Returns a text.
    ///
    /// # Errors
    /// When the value is absent or no text.
    pub fn string(&self, key: &str) -> Result<&str> {
        match self.values.get(key) {
            Some(Value::String(text)) => Ok(text),
            other => self.fail(key, "a string", other),
        }
    }

    /// Returns a whole number from 1 to `max`.
    ///
    /// # Errors
    /// When the value is absent or no such number.
    pub fn count(&self, key: &str, max: usize) -> Result<usize> {
        match self.whole(key) {
            Some(n) if (1..=max as u64).contains(&n) => Ok(n as usize),
            _ => self.fail(key, &format!("a whole number from 1 to {max}"), self.values.get(key)),
        }
    }

    /// Returns the id of a token of a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// When the value is absent or no such id.
    pub fn token(&self, key: &str, vocab: usize) -> Result<u32> {
        match self.whole(key).map(u32::try_from) {
            Some(Ok(id)) if (id as usize) < vocab => Ok(id),
            _ => {
                let expected = format!("a token id below the vocabulary's size {vocab}");
                self.fail(key, &expected, self.values.get(key))
            }
        }
    }

    /// Returns a number, an integer or not.
    ///
    /// # Errors
    /// When the value is absent or no finite number.
    pub fn number(&self, key: &str) -> Result<f64> {
        match self.values.get(key) {
            Some(Value::F64(n)) if n.is_finite() => Ok(*n),
            Some(Value::U64(n)) => Ok(*n as f64),
            Some(Value::I64(n)) => Ok(*n as f64),
            other => self.fail(key, "a number", other),
        }
    }

    /// Returns a truth value.
    ///
    /// # Errors
    /// When the value is absent or no truth value.
    pub fn flag(&self, key: &str) -> Result<bool> {
        match self.values.get(key) {
            Some(Value::Bool(b)) => Ok(*b),
            other => self.fail(key, "true or false", other),
        }
    }

    /// Returns an array of texts.
    ///
    /// # Errors
    /// When the value is absent or no such array.
    pub fn strings(&self, key: &str) -> Result<&Strings> {
        match self.values.get(key) {
            Some(Value::Strings(all)) => Ok(all),
            other => self.fail(key, "an array of strings", other),
        }
    }

    /// Returns an array of 32-bit floating-point numbers.
    ///
    /// # Errors
    /// When the value is absent or no such array.
    pub fn numbers(&self, key: &str) -> Result<&[f32]> {
        match self.values.get(key) {
            Some(Value::Numbers(all)) => Ok(all),
            other => self.fail(key, "an array of 32-bit floating-point numbers", other),
        }
    }

    /// Returns an array of integers, of any width in the file.
    ///
    /// # Errors
    /// When the value is absent, no such array, or has an integer that does not fit into an i32.
    pub fn integers(&self, key: &str) -> Result<&[i32]> {
        match self.values.get(key) {
            Some(Value::Integers(all)) => Ok(all),
            other => self.fail(key, "an array of 32-bit integers", other),
        }
    }

    /// Fails with an error that says what the value of `key` was expected to be.
    ///
    /// # Errors
    /// Always.
    pub fn fail<T>(&self, key: &str, expected: &str, found: Option<&Value>) -> Result<T> {
        Err(Error::Metadata {
            path: self.path.clone(),
            key: key.into(),
            expected: expected.into(),
            found: found.map_or_else(|| "nothing".into(), ToString::to_string),
        })
    }

    /// Returns an integer that is not negative, if the value is one.
    pub(super) fn whole(&self, key: &str) -> Option<u64> {
        match self.values.get(key)? {
            Value::U64(n) => Some(*n),
            Value::I64(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// Quotes a text from a file on one line, cut after 60 characters so that a hostile file cannot
/// fill the terminal.
pub(super) fn quoted(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{:?}…", &text[..cut]),
        None => format!("{text:?}"),
    }
}
