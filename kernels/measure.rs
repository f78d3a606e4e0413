//! Measures the GPU: the transfer rates that it reaches, with which benches compare the time of an
//! op, and what it has launched and created.

use crate::gpu::Use;
use crate::product::{Call, Order, Product};
use crate::{Buffer, Cuda, Format, Matrix};
use gritlm_model::measure::{Created, Measure, OpTime, rate};
use gritlm_model::ops::Result;
use rayon::prelude::*;

/// Columns of the weights that are read to displace what the caches hold.
const COLS: u32 = 8192;

/// The op that reading them is counted for.
const DISPLACING: &str = "displace";

/// Copies per measurement: enough for the wait at their end not to count.
const COPIES: usize = 8;

impl Measure for Cuda {
    fn bound(&self) -> f64 {
        8e-3
    }

    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        let from = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut values = vec![0; bytes as usize];
        scramble(&mut values);
        self.gpu.write(&from, 0, &values)?;
        self.rate(2 * bytes, || self.gpu.copy((&from, 0), (&to, 0), bytes))
    }

    fn pinned_rate(&self, bytes: u64) -> Result<Option<f64>> {
        let to = self.gpu.buffer_for(Use::Lasting, bytes)?;
        let mut pinned = self.gpu.driver.pinned(bytes as usize)?;
        let values = pinned.bytes()?;
        scramble(values);
        self.rate(bytes, || self.gpu.upload(&to, 0, values)).map(Some)
    }

    fn displace(&self, bytes: u64) -> Result<()> {
        // A product of one row reads so many bytes of weights and writes next to nothing. A copy would
        // leave the L2 cache full of lines that are written back while the next launch is timed.
        let outputs = bytes.div_ceil(2 * u64::from(COLS)) as u32;
        let raw = self.gpu.buffer(2 * u64::from(outputs) * u64::from(COLS))?;
        let w = Matrix { raw, cols: COLS, stride: COLS };
        let a = Buffer { format: Format::Bf16, ..self.buffer_of(1, COLS as usize)? };
        let x = self.buffer_of(1, outputs as usize)?;
        let params = Product { sum: x.raw.pointer(), out_stride: x.stride, ..Product::default() };
        let (op, source, experts, rows) = (DISPLACING, "linear_add", 0, 1);
        let order = Order::Rows;
        let call = Call { op, source, order, experts, rows, outputs, a: &a, w: &w, params };
        self.product(&call);
        // A launch that is timed goes alone.
        self.gpu.submit()
    }

    fn launched(&self) -> Vec<String> {
        self.gpu.launched()
    }

    fn profile(&self) -> Vec<OpTime> {
        let mut ops = self.gpu.profile();
        ops.retain(|op| op.op != DISPLACING);
        ops
    }

    fn created(&self) -> Created {
        self.gpu.created()
    }
}

impl Cuda {
    /// Returns the bytes per second of a copy of `bytes` bytes.
    fn rate(&self, bytes: u64, copy: impl Fn() -> Result<()>) -> Result<f64> {
        rate(COPIES as u64 * bytes, || {
            (0..COPIES).try_for_each(|_| copy())?;
            self.gpu.submit()?;
            self.gpu.driver.wait()
        })
    }
}

/// Fills bytes with values that no memory can compress.
fn scramble(bytes: &mut [u8]) {
    bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(n, bytes)| {
        let mut x = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(n as u64 + 1);
        for word in bytes.chunks_mut(8) {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            word.copy_from_slice(&x.to_ne_bytes()[..word.len()]);
        }
    });
}
