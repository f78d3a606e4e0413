//! Keys and values of a sequence, to and from numpy.

use crate::error::raise;
use gritlm::cache::KvSnapshot;
use numpy::{PyArray1, PyArray5, PyArrayMethods, PyReadonlyArray5};
use pyo3::prelude::*;

/// Keys (after RoPE) and values of one sequence, without padding, off the device.
#[pyclass(frozen, module = "gritlm_rs")]
pub(crate) struct Cache {
    pub(crate) snapshot: KvSnapshot,
    /// Ids of the cached tokens, for the repetition penalty; may be empty.
    pub(crate) tokens: Vec<u32>,
}

#[pymethods]
impl Cache {
    /// Makes a cache of an array `(layers, 2, kv_heads, tokens, head_dim)`.
    #[staticmethod]
    #[pyo3(signature = (array, tokens = Vec::new()))]
    fn from_numpy(array: PyReadonlyArray5<'_, f32>, tokens: Vec<u32>) -> PyResult<Self> {
        let view = array.as_array();
        let mut shape = [0; 5];
        shape.copy_from_slice(view.shape());
        let values: Vec<f32> = view.iter().copied().collect();
        Ok(Self { snapshot: KvSnapshot::from_f32(shape, values).map_err(raise)?, tokens })
    }

    /// Joins caches one after the other; keys keep the positions that they were computed at.
    #[staticmethod]
    fn concat(caches: Vec<PyRef<'_, Self>>) -> PyResult<Self> {
        let all: Vec<&KvSnapshot> = caches.iter().map(|cache| &cache.snapshot).collect();
        let snapshot = KvSnapshot::concat(&all).map_err(raise)?;
        Ok(Self { snapshot, tokens: caches.iter().flat_map(|c| c.tokens.clone()).collect() })
    }

    /// Returns a copy as an array `(layers, 2, kv_heads, tokens, head_dim)` of float32.
    fn numpy<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray5<f32>>> {
        let values = py.detach(|| self.snapshot.to_f32());
        PyArray1::from_vec(py, values).reshape(self.snapshot.shape())
    }

    /// Returns the same values rounded to bfloat16, which take half the memory.
    fn rounded(&self, py: Python<'_>) -> Self {
        let snapshot = py.detach(|| self.snapshot.to_bf16());
        Self { snapshot, tokens: self.tokens.clone() }
    }

    /// `(layers, 2, kv_heads, tokens, head_dim)`.
    #[getter]
    fn shape(&self) -> (usize, usize, usize, usize, usize) {
        self.snapshot.shape().into()
    }

    /// Bytes of the values.
    #[getter]
    fn nbytes(&self) -> usize {
        self.snapshot.bytes()
    }

    fn __len__(&self) -> usize {
        self.snapshot.tokens()
    }

    fn __repr__(&self) -> String {
        format!("Cache({} tokens, {} bytes)", self.snapshot.tokens(), self.snapshot.bytes())
    }
}
