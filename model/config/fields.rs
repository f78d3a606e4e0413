//! Fields of a JSON object, checked one by one.

use crate::{Error, Result, files};
use serde_json::{Map, Value};
use std::path::Path;

/// Parses the JSON object in a file.
pub(crate) fn object(text: &[u8], path: &Path) -> Result<Map<String, Value>> {
    files::check_pointer(text, path)?;
    serde_json::from_slice(text)
        .map_err(|e| Error::Format { path: path.into(), problem: format!("not JSON: {e}") })
}

/// A JSON object and the file it came from, for errors that name both field and file.
pub(crate) struct Fields<'a> {
    pub(crate) json: &'a Map<String, Value>,
    pub(crate) path: &'a Path,
}

impl<'a> Fields<'a> {
    pub(crate) fn fail<T>(
        &self,
        field: &'static str,
        expected: &str,
        found: impl ToString,
    ) -> Result<T> {
        let (expected, mut found) = (expected.to_string(), found.to_string());
        // Truncate the value, so that a hostile file cannot fill the terminal.
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
            found.push('…');
        }
        Err(Error::Config { path: self.path.into(), field, expected, found })
    }

    /// Returns the field's value; null counts as absent.
    pub(crate) fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|v| !v.is_null())
    }

    pub(crate) fn flag(&self, field: &str) -> bool {
        self.get(field) == Some(&Value::Bool(true))
    }

    /// Refuses a field that asks for `what`, which is not supported.
    pub(crate) fn switched_off(&self, field: &'static str, what: &str) -> Result<()> {
        match self.get(field) {
            None | Some(Value::Bool(false)) => Ok(()),
            Some(found) => self.fail(field, &format!("false (no {what})"), found),
        }
    }

    pub(crate) fn text(&self, field: &'static str) -> Result<&'a str> {
        match self.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => self.fail(field, "a string", other),
            None => self.fail(field, "a string", "nothing"),
        }
    }

    /// Returns a whole number from 1 to `max`.
    pub(crate) fn count(&self, field: &'static str, max: usize) -> Result<usize> {
        let expected = format!("a whole number from 1 to {max}");
        match self.get(field) {
            None => self.fail(field, &expected, "nothing"),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=max as u64).contains(&n) => Ok(n as usize),
                _ => self.fail(field, &expected, value),
            },
        }
    }

    pub(crate) fn positive(&self, field: &'static str) -> Result<f32> {
        match self.get(field) {
            None => self.fail(field, "a positive number", "nothing"),
            Some(value) => self.positive_value(field, value),
        }
    }

    pub(crate) fn positive_value(&self, field: &'static str, value: &Value) -> Result<f32> {
        match value.as_f64().map(|n| n as f32) {
            Some(n) if n > 0.0 && n.is_finite() => Ok(n),
            _ => self.fail(field, "a positive number", value),
        }
    }

    /// Returns one or several token ids; `None` where the field is absent.
    pub(crate) fn tokens(&self, field: &'static str, vocab: usize) -> Result<Option<Vec<u32>>> {
        let ids = match self.get(field) {
            None => return Ok(None),
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
        };
        ids.iter().map(|id| self.token(field, id, vocab)).collect::<Result<_>>().map(Some)
    }

    pub(crate) fn token(&self, field: &'static str, value: &Value, vocab: usize) -> Result<u32> {
        match value.as_u64() {
            Some(id) if id < vocab as u64 => Ok(id as u32),
            _ => self.fail(field, &format!("a token id below vocab_size {vocab}"), value),
        }
    }
}
