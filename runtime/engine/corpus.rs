//! Vectors on a device, which are searched there.

use crate::cache::KvPool;
use crate::{Error, Result};
use std::any::Any;
use std::fmt;
use std::sync::Arc;
use tokio::sync::Mutex;

/// Vectors on an engine's device, which can be searched there repeatedly; see
/// [`crate::Engine::corpus`].
pub struct Corpus {
    pub(crate) dim: usize,
    pub(crate) len: usize,
    /// The backend's own type, `O::Corpus`.
    pub(crate) held: Mutex<Box<dyn Any + Send>>,
    pub(crate) pool: Arc<KvPool>,
}

impl Corpus {
    /// Returns the number of vectors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no vectors.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the dimension of the vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }
}

/// Returns how many vectors of `dim` numbers `numbers` holds.
pub(crate) fn whole(what: &str, dim: usize, numbers: &[f32]) -> Result<usize> {
    if dim == 0 || !numbers.len().is_multiple_of(dim) {
        let problem = format!("expected vectors of {dim}, found {} numbers", numbers.len());
        return Err(Error::Input { what: what.into(), problem });
    }
    Ok(numbers.len() / dim)
}

impl fmt::Debug for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Corpus({} × {})", self.len, self.dim)
    }
}
