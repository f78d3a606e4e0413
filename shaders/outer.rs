//! outer: the products dx = dy · W and dW += dyᵀ · x, for all rows or for those of each expert; see
//! outer.wgsl.

use crate::codes::Codes;
use crate::gpu::{Binding, Grid};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Matrix, Routing, Wgpu, shader};
use gritlm_model::params;
use gritlm_model::weights::Dtype;

/// Rows and columns of a workgroup's tile.
const SIDE: u32 = 64;

params! {
    /// Parameters; the fields are described in outer.wgsl.
    Outer {
        m: u32,
        groups: u32,
        depth: u32,
        a_stride: u32,
        b_stride: u32,
        out_stride: u32,
        first: u32,
        count: u32,
        add: u32,
        experts: u32,
        assigned: u32,
        high: u32,
        units: u32,
        numbers: u32,
        run: u32,
        block: u32,
        zero: f32,
    }
}

/// The sizes of a projection y = x · Wᵀ: rows of x and y, columns of x, columns of y.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) rows: u32,
    pub(crate) inner: u32,
    pub(crate) outer: u32,
}

/// The experts that rows are sorted by, and their number.
pub(crate) type Experts<'a> = Option<(&'a Routing, u32)>;

/// Computes `dx (rows, inner)` = `dy (rows, outer)` · `w`, where `w` has `outer` rows, or as many for
/// each expert.
pub(crate) fn input(
    device: &Wgpu,
    op: &'static str,
    sizes: Sizes,
    experts: Experts<'_>,
    dy: &Buffer,
    w: &Matrix,
    dx: &Buffer,
) {
    let Sizes { rows, inner, outer } = sizes;
    let tiles = rows.div_ceil(SIDE) + experts.map_or(0, |(_, experts)| experts);
    for chunk in w.chunks() {
        let Codes { high, units, numbers, run, block, zero, .. } = chunk.format.codes;
        let params = Outer {
            m: rows,
            groups: inner.div_ceil(8),
            depth: outer,
            a_stride: dy.stride / 4,
            b_stride: chunk.format.vectors(),
            out_stride: dx.stride / 4,
            first: chunk.first,
            count: chunk.rows,
            high,
            units,
            numbers,
            run,
            block,
            zero,
            ..grouped(experts)
        };
        let mut constants = shader::stored(chunk.format.dtype);
        constants.push(("TRANSPOSED", 0.0));
        let bindings = [bind(&dy.raw), chunk.binding()];
        let weights = u64::from(chunk.rows) * chunk.format.row_bytes(w.cols);
        // Of a mixture, each row of dy meets the rows of one expert.
        let share = experts.map_or(1, |(_, experts)| u64::from(experts));
        let work = Work {
            op,
            bytes: weights + 4 * u64::from(rows) * u64::from(inner + outer),
            flops: 2 * u64::from(rows) * u64::from(inner) * u64::from(chunk.rows) / share,
        };
        launch(device, &constants, &params, bindings, experts, dx, tiles, work);
    }
}

/// Adds `dw (outer, inner)` += `dy (rows, outer)`ᵀ · `x (rows, inner)`, for each expert its own; without
/// `add`, = instead of +=.
#[expect(clippy::too_many_arguments, reason = "a product with its sizes and who asks for it")]
pub(crate) fn weights(
    device: &Wgpu,
    op: &'static str,
    sizes: Sizes,
    experts: Experts<'_>,
    dy: &Buffer,
    x: &Buffer,
    dw: &Buffer,
    add: bool,
) {
    let Sizes { rows, inner, outer } = sizes;
    let params = Outer {
        m: outer,
        groups: inner.div_ceil(8),
        depth: rows,
        a_stride: dy.stride / 4,
        b_stride: x.stride / 4,
        out_stride: dw.stride / 4,
        add: u32::from(add),
        ..grouped(experts)
    };
    let mut constants = shader::stored(Dtype::F32);
    constants.push(("TRANSPOSED", 1.0));
    let count = experts.map_or(1, |(_, experts)| experts);
    let work = Work {
        op,
        bytes: 4
            * (u64::from(rows) * u64::from(inner + outer)
                + 2 * u64::from(inner) * u64::from(outer) * u64::from(count)),
        flops: 2 * u64::from(rows) * u64::from(inner) * u64::from(outer),
    };
    let tiles = count * outer.div_ceil(SIDE);
    let bindings = [bind(&dy.raw), bind(&x.raw)];
    launch(device, &constants, &params, bindings, experts, dw, tiles, work);
}

/// Adds or writes both gradients of a projection, that of the weights where it is wanted.
#[expect(clippy::too_many_arguments, reason = "a projection and its gradients")]
pub(crate) fn projection(
    device: &Wgpu,
    op: &'static str,
    sizes: Sizes,
    x: &Buffer,
    w: &Matrix,
    dy: &Buffer,
    dx: &Buffer,
    dw: Option<&mut Buffer>,
) {
    if sizes.rows == 0 {
        return;
    }
    input(device, op, sizes, None, dy, w, dx);
    if let Some(dw) = dw {
        weights(device, op, sizes, None, dy, x, dw, true);
    }
}

fn grouped(experts: Experts<'_>) -> Outer {
    let (experts, assigned) =
        experts.map_or((0, 0), |(routing, experts)| (experts, routing.assigned));
    Outer { experts, assigned, ..Outer::default() }
}

#[expect(clippy::too_many_arguments, reason = "all that a launch is made of")]
fn launch(
    device: &Wgpu,
    constants: &[(&'static str, f64)],
    params: &Outer,
    [a, b]: [Binding<'_>; 2],
    experts: Experts<'_>,
    out: &Buffer,
    tiles: u32,
    work: Work,
) {
    // Without experts the shader does not read the routing.
    let routing = experts.map_or(a, |(routing, _)| bind(&routing.raw));
    device.gpu.launch(
        &shader::OUTER,
        constants,
        bytemuck::bytes_of(params),
        &[a, b, routing, bind(&out.raw)],
        Grid::Of(params.groups.div_ceil(SIDE / 8), tiles),
        work,
    );
}
