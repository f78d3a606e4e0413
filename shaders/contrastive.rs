//! contrastive: cosines of queries and passages, their gradients in the same place, and back; see
//! contrastive.wgsl, linear.wgsl, cross_entropy.wgsl and outer.wgsl.

use crate::gpu::{Grid, Use};
use crate::outer::{self, Sizes};
use crate::product::bind;
use crate::profile::Work;
use crate::{Buffer, Wgpu, cross_entropy, linear_add, matrix, shader, tune};
use gritlm_model::ops::{Contrast, Contrastive};
use gritlm_model::params;

const OP: &str = "contrastive";

params! {
    /// Parameters; the fields are described in contrastive.wgsl.
    Unit {
        rows: u32,
        used: u32,
        x_stride: u32,
        unit_stride: u32,
        backward: u32,
    }
}

/// Unit vectors, the lengths that they had, and room for their gradients.
struct Units {
    unit: Buffer,
    lengths: Buffer,
    dunit: Buffer,
}

#[expect(clippy::too_many_arguments, reason = "those of the operation")]
pub(crate) fn contrastive(
    device: &Wgpu,
    p: Contrastive,
    wanted: &[Contrast],
    queries: &Buffer,
    passages: &Buffer,
    losses: &Buffer,
    dqueries: &Buffer,
    dpassages: &Buffer,
) {
    let [n, m, used] = [p.queries, p.passages, p.used];
    if n == 0 {
        return;
    }
    let (Some(q), Some(d)) = (units(device, n, used), units(device, m, used)) else { return };
    let Some(scores) = device.work(n as usize, m as usize, Use::Work) else { return };
    turn(device, (n, used), queries, &q, false);
    turn(device, (m, used), passages, &d, false);
    let rows = matrix::rows_of(&d.unit.raw, d.unit.stride, m, used);
    linear_add::linear(device, OP, (n, m), &q.unit, &rows, &scores, false);
    let scale = (p.scale / p.temperature).to_bits();
    let wanted: Vec<[u32; 4]> =
        wanted.iter().map(|wanted| [wanted.target, wanted.first, wanted.count, scale]).collect();
    cross_entropy::differentiate(device, OP, m, &wanted, p.temperature, &scores, (0, losses));
    let sizes = Sizes { rows: n, inner: used, outer: m };
    outer::input(device, OP, sizes, None, &scores, &rows, &q.dunit);
    outer::weights(device, OP, sizes, None, &scores, &q.unit, &d.dunit, false);
    turn(device, (n, used), dqueries, &q, true);
    turn(device, (m, used), dpassages, &d, true);
}

fn units(device: &Wgpu, rows: u32, used: u32) -> Option<Units> {
    let vectors = || device.work(rows as usize, used as usize, Use::Work);
    let lengths = device.work(1, rows as usize, Use::Work)?;
    Some(Units { unit: vectors()?, lengths, dunit: vectors()? })
}

/// Makes unit vectors of rows, or adds to the gradients of the rows.
fn turn(device: &Wgpu, (rows, used): (u32, u32), x: &Buffer, units: &Units, backward: bool) {
    let params = Unit {
        rows,
        used,
        x_stride: x.stride,
        unit_stride: units.unit.stride,
        backward: u32::from(backward),
    };
    let values = u64::from(rows) * u64::from(used);
    device.gpu.launch(
        &shader::CONTRASTIVE,
        &[("LANES", f64::from(tune::LANES))],
        bytemuck::bytes_of(&params),
        &[bind(&x.raw), bind(&units.unit.raw), bind(&units.lengths.raw), bind(&units.dunit.raw)],
        Grid::flat(rows),
        Work { op: OP, bytes: 12 * values, flops: 3 * values },
    );
}
