//! product: the host side of all ops with a matrix product. It chooses the form, the buffers and
//! the number of workgroups; product.wgsl is the shaders' side.

use crate::Wgpu;
use crate::gpu::{Binding, Grid, Raw};
use crate::matrix::{Matrix, Segment};
use crate::profile::Work;
use crate::shader::{self, Product as Shaders};
use crate::tune::Form;
use gritlm_model::params;
use std::sync::Arc;

params! {
    /// Parameters; the fields are described in product.wgsl.
    Product {
        rows: u32,
        inner8: u32,
        outer: u32,
        first: u32,
        base0: u32,
        base1: u32,
        a_stride: u32,
        w_stride: u32,
        out_stride: u32,
        hidden: u32,
        half: u32,
        heads: u32,
        kv_heads: u32,
        pages: u32,
        padded: u32,
        slots: u32,
        angles: u32,
        assigned: u32,
        only: u32,
        experts: u32,
        high: u32,
        units: u32,
        numbers: u32,
        run: u32,
        block: u32,
        zero: f32,
    }
}

/// One product: `a (rows, w.cols)` times the rows of `w`.
pub(crate) struct Call<'a> {
    pub(crate) op: &'static str,
    pub(crate) shaders: &'static Shaders,
    /// Whether an output has two sums.
    pub(crate) pair: bool,
    pub(crate) rows: u32,
    pub(crate) a: Binding<'a>,
    /// Row stride of `a` in elements.
    pub(crate) a_stride: u32,
    pub(crate) w: &'a Matrix,
    /// Bindings of the op after the weights.
    pub(crate) rest: &'a [Binding<'a>],
    /// The op's own fields; the others are filled in.
    pub(crate) params: Product,
}

impl Call<'_> {
    /// Returns the additions and multiplications of `outputs` outputs for `rows` rows.
    pub(crate) fn flops(&self, rows: u32, outputs: u32) -> u64 {
        let sums = u64::from(outputs) * if self.pair { 2 } else { 1 };
        2 * u64::from(rows) * u64::from(self.w.cols) * sums
    }
}

impl Wgpu {
    /// Returns the form of a product with `rows` rows.
    pub(crate) fn form(&self, rows: u32) -> Form {
        match (self.tiles.product(rows, self.gpu.subgroup()), self.gpu.adapter.matrix_lanes()) {
            (Form::Many(_), Some(lanes)) if self.f16 => Form::Matrix(lanes),
            (Form::Many(tile), _) => Form::Many(tile.sharing(!self.f16)),
            (form, _) => form,
        }
    }

    /// Records all outputs of a dense product. `row(member, output)` returns the row of `w` for
    /// one of the output's sums.
    pub(crate) fn product(&self, call: &Call<'_>, outputs: u32, row: impl Fn(u32, u32) -> u32) {
        if call.rows == 0 {
            return;
        }
        let form = self.form(call.rows);
        let members = if call.pair { 2 } else { 1 };
        for segment in call.w.segments(outputs, members, row) {
            let count = segment.outputs.len() as u32;
            let across = form.across(count, call.pair);
            // Of many rows by many outputs, only so many that no dispatch takes too long.
            let share = self.gpu.share(across, call.flops(call.rows, count));
            let step = (share * form.outputs(call.pair)) as usize;
            for start in segment.outputs.clone().step_by(step) {
                let end = segment.outputs.end.min(start + step as u32);
                let across = form.across(end - start, call.pair);
                let grid = form.grid(across, call.rows.div_ceil(form.rows()));
                let part = Segment { outputs: start..end, ..segment };
                self.launch_product(call, form, &part, 0, grid);
            }
        }
    }

    /// Records one launch for a segment. `only` is the number of a single expert plus 1, or 0 for
    /// all experts.
    pub(crate) fn launch_product(
        &self,
        call: &Call<'_>,
        form: Form,
        segment: &Segment<'_>,
        only: u32,
        grid: Grid,
    ) {
        self.launch_product_on(call, form, segment, only, grid, None);
    }

    /// Does the same, but binds `part`, where given, instead of the whole buffers of the weights.
    pub(crate) fn launch_product_on(
        &self,
        call: &Call<'_>,
        form: Form,
        segment: &Segment<'_>,
        only: u32,
        grid: Grid,
        part: Option<Binding<'_>>,
    ) {
        let outer = segment.outputs.len() as u32;
        let format = segment.chunks[0].format;
        debug_assert_eq!(format, segment.chunks[1].format);
        let params = Product {
            rows: call.rows,
            inner8: call.w.cols.div_ceil(8),
            outer,
            first: segment.outputs.start,
            base0: segment.chunks[0].first,
            base1: segment.chunks[1].first,
            a_stride: call.a_stride / 4,
            w_stride: format.vectors(),
            only,
            high: format.codes.high,
            units: format.codes.units,
            numbers: format.codes.numbers,
            run: format.codes.run,
            block: format.codes.block,
            zero: format.codes.zero,
            ..call.params
        };
        let form_shader = match form {
            Form::Many(_) if self.f16 => &call.shaders[2],
            Form::Many(_) => &call.shaders[0],
            Form::Few(_) => &call.shaders[1],
            Form::Matrix(_) => &call.shaders[3],
        };
        let mut constants = shader::stored(format.dtype);
        constants.extend(form.constants());
        let [w0, w1] = segment.chunks.map(|c| part.unwrap_or(c.binding()));
        let mut bindings = vec![call.a, w0, w1];
        bindings.extend_from_slice(call.rest);
        let sums = u64::from(outer) * if call.pair { 2 } else { 1 };
        let activations = u64::from(call.rows) * (u64::from(call.w.cols) + u64::from(outer));
        let work = Work {
            op: call.op,
            bytes: sums * format.row_bytes(call.w.cols) + 4 * activations,
            flops: call
                .flops(if only > 0 { call.rows / call.params.experts } else { call.rows }, outer),
        };
        let params = bytemuck::bytes_of(&params);
        let subgroups = form.subgroups() && self.gpu.subgroup() > 0;
        self.gpu.launch_as(form_shader, subgroups, &constants, params, &bindings, grid, work);
    }
}

/// Returns a binding of a whole buffer.
pub(crate) fn bind(raw: &Arc<Raw>) -> Binding<'_> {
    raw.into()
}
