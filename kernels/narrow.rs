//! narrow: converts f32 rows to bf16 for a matrix product; see narrow.cu.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::{Buffer, Cuda, Format};
use gritlm_model::params;
use std::borrow::Cow;
use std::sync::Arc;

params! {
    /// Parameters; the fields are described in narrow.cu.
    Narrow {
        x: Pointer,
        h: Pointer,
        dim: u32,
        x_stride: u32,
        h_stride: u32,
        unused: u32,
    }
}

/// Rows of bf16 for reading.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) raw: Arc<crate::gpu::Raw>,
    pub(crate) stride: u32,
}

impl Cuda {
    /// Returns the first `rows` rows as bf16: the buffer itself, or a copy. Activations of the
    /// forward pass are bf16 already, while a caller's uploads are f32. Returns `None` after an
    /// error, which the next read reports.
    pub(crate) fn narrowed(&self, x: &Buffer, rows: u32) -> Option<Rows> {
        if x.format == Format::Bf16 {
            return Some(Rows { raw: Arc::clone(&x.raw), stride: x.stride });
        }
        let stride = (x.cols as u32).next_multiple_of(8);
        let raw = match self.gpu.buffer(2 * u64::from(rows) * u64::from(stride)) {
            Ok(raw) => raw,
            Err(problem) => {
                self.gpu.fail(problem);
                return None;
            }
        };
        let params = Narrow {
            x: x.raw.pointer(),
            h: raw.pointer(),
            dim: x.cols as u32,
            x_stride: x.stride,
            h_stride: stride,
            unused: 0,
        };
        self.gpu.launch(
            Kernel { source: "narrow", entry: Cow::Borrowed("narrow_rows") },
            Grid { blocks: [rows, 1, 1], threads: 256, shared: 0 },
            &params,
            Work {
                op: "narrow",
                bytes: 6 * u64::from(rows) * u64::from(stride),
                flops: 0,
                ..Work::default()
            },
        );
        Some(Rows { raw, stride })
    }
}
