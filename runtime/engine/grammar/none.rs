//! Replaces grammars in builds without the feature `grammar`: types that have no values.

use crate::{Engine, Result};

/// A grammar that an answer must match. No value exists, because this build lacks the feature
/// `grammar`.
#[derive(Clone, Debug, PartialEq)]
pub enum Grammar {}

impl Grammar {
    pub(crate) fn guide(&self, _engine: &Engine) -> Result<Guide> {
        match *self {}
    }
}

#[derive(Default)]
pub(crate) struct Vocabulary;

pub(crate) enum Guide {}

/// Tokens that may come next.
pub(crate) enum Allowed {}

impl Allowed {
    pub(crate) fn is_allowed(&self, _id: u32) -> bool {
        match *self {}
    }
}

impl Guide {
    pub(crate) fn prepare(&mut self) {}

    pub(crate) fn allowed(&mut self) -> Result<Allowed> {
        match *self {}
    }

    pub(crate) fn push(&mut self, _id: u32) -> Result<bool> {
        match *self {}
    }
}
