//! The matrix products: chooses their form and sizes their grid; see product.cuh, matmul.cuh and
//! matmul_hopper.cuh.

use crate::driver::Grid;
use crate::gpu::{Kernel, Work};
use crate::params::Pointer;
use crate::tensor::{Dimension, Tensor, TensorMap, dimension};
use crate::tune::{Form, Shape, Target, Tile};
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

params! {
    /// Parameters on Hopper, aligned to 64 bytes in CUDA C++; see product.cuh.
    ProductMaps {
        a: TensorMap,
        w: TensorMap,
        p: Product,
        unused: [u32; 14],
    }
}

/// Columns of a step, and rows of the weights that one copy brings on Hopper.
const BOX: u32 = 64;

/// Where the weights of an output are in the matrix of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// One row each.
    Rows,
    /// Two rows each, in either half of the matrix.
    Halves,
    /// Two rows each, in either half of a head of so many rows.
    Heads(u32),
}

impl Order {
    /// Whether each output has two rows of weights.
    pub(crate) fn is_pair(self) -> bool {
        self != Self::Rows
    }

    /// Whether the kernels for Hopper can take the weights of so many outputs: neighbours are stored as
    /// one, and of pairs, 8 rows of either kind alternate.
    fn fits_hopper(self, outputs: u32) -> bool {
        match self {
            Self::Rows => outputs.is_multiple_of(2),
            Self::Halves => outputs.is_multiple_of(8),
            Self::Heads(rows) => rows.is_multiple_of(BOX),
        }
    }

    /// Returns the dimensions of the weights as Hopper's tiles have them, 64 rows a box.
    fn dimensions(self, w: &Matrix, outputs: u32, experts: u32) -> Vec<Dimension> {
        let row = u64::from(w.stride);
        let rows = |n: u32| u64::from(n) * row;
        let columns = dimension(w.cols, 1, BOX);
        let group = outputs << u32::from(self.is_pair());
        let eights = |half: u32, size: u32| {
            let (eight, kind) = (dimension(8, row, 8), dimension(2, rows(half), 2));
            [columns, eight, kind, dimension(size, rows(8), BOX / 16)]
        };
        let mut all = match self {
            Self::Rows => vec![columns, dimension(outputs, row, BOX)],
            Self::Halves => eights(outputs, outputs / 8).to_vec(),
            Self::Heads(head) => {
                let mut all = eights(head / 2, head / 16).to_vec();
                all.push(dimension(group / head, rows(head), 1));
                all
            }
        };
        if experts > 0 {
            all.push(dimension(experts, rows(group), 1));
        }
        all
    }
}

/// One matrix product.
pub(crate) struct Call<'a> {
    /// Op that the time is counted for.
    pub(crate) op: &'static str,
    /// File stem of the kernels, with which their entry points begin.
    pub(crate) source: &'static str,
    /// Where the weights of an output are.
    pub(crate) order: Order,
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
    /// Whether the kernels for Hopper are there for the products of a source, and support so many
    /// outputs.
    pub(crate) fn on_hopper(&self, source: &str, order: Order, outputs: u32) -> bool {
        self.gpu.has_hopper(source) && order.fits_hopper(outputs)
    }

    /// Returns the form of a product of this shape, which may be one for Hopper where `hopper` says so.
    pub(crate) fn form(&self, shape: Shape, hopper: bool) -> Form {
        let (sms, shared) = (self.gpu.sms(), self.gpu.shared_limit());
        match self.form.filter(|form| hopper || !form.tile.is_hopper()) {
            Some(form) if shape.groups > 1 => Form { parts: 1, ..form },
            Some(form) => form,
            None => Form::of(shape, Target { sms, shared, hopper }),
        }
    }

    /// Records a product of rows that all have the same weights.
    pub(crate) fn product(&self, call: &Call<'_>) {
        let Call { source, order, rows, outputs, w, .. } = *call;
        let weights = outputs << u32::from(order.is_pair());
        let shape = Shape { rows, weights, inner: w.cols, groups: 1 };
        self.product_as(call, self.form(shape, self.on_hopper(source, order, outputs)));
    }

    /// Records a product in this form.
    pub(crate) fn product_as(&self, call: &Call<'_>, form: Form) {
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
        let across = call.outputs.div_ceil(form.outputs(call.order.is_pair()));
        let sums = u64::from(call.outputs) << u32::from(call.order.is_pair());
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
        let blocks = form.tile.blocks(tiles, across, parts, self.gpu.sms());
        let cluster = form.tile.cluster();
        let grid = Grid {
            blocks: [blocks, parts, 1],
            threads: form.tile.threads,
            shared: form.tile.shared(),
        };
        let work = Work {
            op: call.op,
            bytes: 2 * sums * inner * used + 2 * rows * inner + stored,
            flops: 2 * rows * inner * sums,
            steps: form.steps(
                call.w.cols,
                [tiles.next_multiple_of(cluster) * across * parts, blocks * parts],
                call.experts > 0,
            ),
        };
        if form.tile.is_hopper() {
            let maps = self.maps(call, &params, &form.tile)?;
            self.gpu.launch(kernel(form.tile.name), grid, &maps, work);
        } else {
            self.gpu.launch(kernel(form.tile.name), grid, &params, work);
        }
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

    /// Returns the parameters of a product on Hopper.
    fn maps(&self, call: &Call<'_>, p: &Product, tile: &Tile) -> Result<ProductMaps> {
        let rows = dimension(p.rows, u64::from(p.a_stride), tile.rows);
        let a = Tensor { first: p.a, dimensions: &[dimension(p.inner, 1, BOX), rows] };
        let order = call.order.dimensions(call.w, call.outputs, call.experts);
        let w = Tensor { first: p.w, dimensions: &order };
        let driver = &self.gpu.driver;
        Ok(ProductMaps { a: a.map(driver)?, w: w.map(driver)?, p: *p, unused: [0; 14] })
    }
}
