//! The matrix products: chooses their form and sizes their grid; see product.cuh, matmul.cuh and
//! matvec.cuh.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::tune::Form;
use crate::{Buffer, Cuda, Matrix};
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
    /// Returns the form of a product.
    pub(crate) fn form(&self, rows: u32, experts: u32, outputs: u32, pair: bool) -> Form {
        let weights = outputs << u32::from(pair);
        let each = rows.div_ceil(experts.max(1));
        match self.form {
            Some(form @ Form::Many(_)) => form,
            Some(form @ Form::Few(most)) if experts > 0 || rows <= most => form,
            _ => Form::of(each, weights, experts.max(1), self.gpu.sms(), self.gpu.shared_limit()),
        }
    }

    /// Records a product in this form.
    pub(crate) fn product(&self, call: &Call<'_>, form: Form) {
        if call.rows == 0 || call.outputs == 0 {
            return;
        }
        let Some(a) = self.narrowed(call.a, call.rows) else { return };
        // An upper bound: the last tile of each expert may have fewer rows, and none is empty.
        let tiles = (call.rows.div_ceil(form.rows()) + call.experts).min(call.rows);
        let across = call.outputs.div_ceil(form.outputs(call.pair));
        let params = Product {
            a: a.raw.pointer(),
            w: call.w.raw.pointer(),
            rows: call.rows,
            outputs: call.outputs,
            inner: call.w.cols,
            a_stride: a.stride,
            w_stride: call.w.stride,
            experts: call.experts,
            tiles,
            ..call.params
        };
        let blocks = match form {
            Form::Few(_) => [across, tiles, 1],
            Form::Many(_) => [across * tiles, 1, 1],
        };
        let sums = u64::from(call.outputs) << u32::from(call.pair);
        let (rows, inner) = (u64::from(call.rows), u64::from(call.w.cols));
        let used = u64::from(call.experts.clamp(1, call.rows));
        self.gpu.launch(
            Kernel { source: call.source, entry: format!("{}_{form}", call.source).into() },
            Grid { blocks, threads: form.threads(), shared: form.shared() },
            &params,
            Work {
                op: call.op,
                bytes: 2 * sums * inner * used + rows * (2 * inner + 4 * u64::from(call.outputs)),
                flops: 2 * rows * inner * sums,
                steps: form.steps(call.w.cols),
            },
        );
    }
}
