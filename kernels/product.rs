//! The matrix products: chooses their form and sizes their grid; see product.cuh and matmul.cuh.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::tune::{Form, Shape};
use crate::{Buffer, Cuda, Matrix};
use gritlm_model::ops::Result;
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in product.cuh.
    Product {
        a: Pointer,
        w: Pointer,
        out: Pointer,
        sum: Pointer,
        keys: Pointer,
        values: Pointer,
        words: Pointer,
        parts: Pointer,
        rows: u32,
        outputs: u32,
        inner: u32,
        a_stride: u32,
        w_stride: u32,
        out_stride: u32,
        hidden: u32,
        head_dim: u32,
        heads: u32,
        kv_heads: u32,
        width: u32,
        slots: u32,
        angles: u32,
        assigned: u32,
        experts: u32,
        tiles: u32,
        split: u32,
        parts_count: u32,
    }
}

/// One matrix product.
pub(crate) struct Call<'a> {
    /// Op that the time is counted for.
    pub(crate) op: &'static str,
    /// File stem of the kernels, with which their entry points begin.
    pub(crate) source: &'static str,
    /// Whether each output has two rows of weights.
    pub(crate) pair: bool,
    /// Experts among which the rows are distributed; 0 where all rows have the same weights.
    pub(crate) experts: u32,
    pub(crate) rows: u32,
    pub(crate) outputs: u32,
    pub(crate) a: &'a Buffer,
    pub(crate) w: &'a Matrix,
    /// The op's own fields; the others are filled in.
    pub(crate) params: Product,
}

impl Cuda {
    /// Returns the form of a product of `rows` rows, which are distributed among `experts` where that
    /// is not 0, with `outputs` outputs.
    pub(crate) fn form(
        &self,
        rows: u32,
        experts: u32,
        [outputs, inner]: [u32; 2],
        pair: bool,
    ) -> Form {
        let groups = experts.max(1);
        let (rows, weights) = (rows.div_ceil(groups), outputs << u32::from(pair));
        let shape = Shape { rows, weights, inner, groups };
        match self.form {
            Some(form) if experts > 0 => Form { parts: 1, ..form },
            Some(form) => form,
            None => Form::of(shape, self.gpu.sms(), self.gpu.shared_limit()),
        }
    }

    /// Records a product in this form.
    pub(crate) fn product(&self, call: &Call<'_>, form: Form) {
        if let Err(problem) = self.launch_product(call, form) {
            self.gpu.fail(problem);
        }
    }

    fn launch_product(&self, call: &Call<'_>, form: Form) -> Result<()> {
        if call.rows == 0 || call.outputs == 0 {
            return Ok(());
        }
        let Some(a) = self.narrowed(call.a, call.rows) else { return Ok(()) };
        // An upper bound: the last tile of each expert may have fewer rows, and none is empty.
        let tiles = (call.rows.div_ceil(form.tile.rows) + call.experts).min(call.rows);
        let across = call.outputs.div_ceil(form.outputs(call.pair));
        let sums = u64::from(call.outputs) << u32::from(call.pair);
        let (rows, inner) = (u64::from(call.rows), u64::from(call.w.cols));
        let parts = form.used_parts(call.w.cols);
        let written = 4 * u64::from(parts) * rows * sums;
        let apart = (parts > 1).then(|| self.gpu.buffer(written)).transpose()?;
        let params = Product {
            a: a.raw.pointer(),
            w: call.w.raw.pointer(),
            parts: apart.as_ref().map_or(Pointer::NULL, |apart| apart.pointer()),
            rows: call.rows,
            outputs: call.outputs,
            inner: call.w.cols,
            a_stride: a.stride,
            w_stride: call.w.stride,
            experts: call.experts,
            tiles,
            split: form.split(call.w.cols),
            parts_count: parts,
            ..call.params
        };
        let used = u64::from(call.experts.clamp(1, call.rows));
        let stored = if apart.is_some() { 0 } else { 4 * rows * u64::from(call.outputs) };
        let kernel = |end: &str| Kernel {
            source: call.source,
            entry: format!("{}_{end}", call.source).into(),
        };
        self.gpu.launch(
            kernel(form.tile.name),
            Grid {
                blocks: [across * tiles, parts, 1],
                threads: form.tile.threads,
                shared: form.tile.shared(),
            },
            &params,
            Work {
                op: call.op,
                bytes: 2 * sums * inner * used + 2 * rows * inner + stored,
                flops: 2 * rows * inner * sums,
                steps: form.steps(call.w.cols),
            },
        );
        if apart.is_some() {
            const THREADS: u32 = 256;
            let pairs = rows * u64::from(call.outputs.div_ceil(2));
            let bytes = 4 * rows * u64::from(call.outputs);
            self.gpu.launch(
                kernel("sum"),
                Grid {
                    blocks: [pairs.div_ceil(THREADS.into()) as u32, 1, 1],
                    threads: THREADS,
                    shared: 0,
                },
                &params,
                Work {
                    op: call.op,
                    bytes,
                    flops: u64::from(parts) * rows * sums,
                    ..Work::default()
                },
            );
        }
        Ok(())
    }
}
