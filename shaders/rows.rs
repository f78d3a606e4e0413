//! rows: gathers rows, and adds rows to those of another buffer; see rows.wgsl.

use crate::gpu::{Binding, Grid};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Routing, Wgpu, shader};
use gritlm_model::params;

params! {
    /// Parameters; the fields are described in rows.wgsl.
    Rows {
        count: u32,
        vectors: u32,
        from_stride: u32,
        to_stride: u32,
        list: u32,
        entries: u32,
    }
}

/// A row that gets a multiple of another.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Term {
    pub(crate) to: u32,
    pub(crate) from: u32,
    pub(crate) scale: f32,
}

/// Copies row `chosen[n]` of `from` to row n of `to`, with its padding.
pub(crate) fn gather(
    device: &Wgpu,
    op: &'static str,
    dim: u32,
    chosen: &[u32],
    from: &Buffer,
    to: &Buffer,
) {
    match device.gpu.send(bytemuck::cast_slice(chosen)) {
        Ok(list) => launch(device, op, (dim, chosen.len() as u32), from, (bind(&list), 0, 0), to),
        Err(problem) => device.gpu.fail(problem),
    }
}

/// Copies the rows of `count` assignments, sorted by expert, with their padding.
pub(crate) fn by_expert(
    device: &Wgpu,
    op: &'static str,
    (dim, count): (u32, u32),
    routing: &Routing,
    from: &Buffer,
    to: &Buffer,
) {
    let list = (bind(&routing.raw), 3 * routing.assigned, 0);
    launch(device, op, (dim, count), from, list, to);
}

/// Adds all terms to the rows of `to`, those of one row in the order given.
pub(crate) fn add(
    device: &Wgpu,
    op: &'static str,
    dim: u32,
    mut terms: Vec<Term>,
    from: &Buffer,
    to: &Buffer,
) {
    // Stable: the terms of a row keep their order.
    terms.sort_by_key(|term| term.to);
    let mut list = Vec::new();
    let mut first = 0;
    for group in terms.chunk_by(|a, b| a.to == b.to) {
        let end = first + group.len() as u32;
        list.extend([group[0].to, first, end]);
        first = end;
    }
    let (count, entries) = (list.len() as u32 / 3, list.len() as u32);
    list.extend(terms.iter().flat_map(|term| [term.from, term.scale.to_bits()]));
    match device.gpu.send(bytemuck::cast_slice(&list)) {
        Ok(list) => launch(device, op, (dim, count), from, (bind(&list), 0, entries), to),
        Err(problem) => device.gpu.fail(problem),
    }
}

fn launch(
    device: &Wgpu,
    op: &'static str,
    (dim, count): (u32, u32),
    from: &Buffer,
    (words, list, entries): (Binding<'_>, u32, u32),
    to: &Buffer,
) {
    if count == 0 {
        return;
    }
    let params = Rows {
        count,
        // Whole groups of 8 columns: the padding is copied, too.
        vectors: 2 * dim.div_ceil(8),
        from_stride: from.stride / 4,
        to_stride: to.stride / 4,
        list,
        entries,
    };
    device.gpu.launch(
        &shader::ROWS,
        &[],
        bytemuck::bytes_of(&params),
        &[bind(&from.raw), words, bind(&to.raw)],
        Grid::flat((count * params.vectors).div_ceil(64)),
        Work { op, bytes: 12 * u64::from(count) * u64::from(dim), flops: 0 },
    );
}
