//! qkv: projects to queries, keys and values, applies RoPE, and writes keys and values to the KV
//! cache; see qkv.wgsl and qkv_codes.wgsl.

use crate::gpu::{Grid, Use};
use crate::product::{Call, Product, bind};
use crate::profile::Work;
use crate::{Batch, Buffer, Matrix, Pages, Wgpu, shader};
use gritlm_model::ops::{PAGE, Qkv};
use gritlm_model::params;
use gritlm_model::weights::Dtype;

params! {
    /// Parameters; the fields are described in qkv_codes.wgsl.
    QkvCodes {
        rows: u32,
        kv_heads: u32,
        head_dim: u32,
        vectors: u32,
        side: u32,
        width: u32,
        slots: u32,
    }
}

pub(crate) fn qkv(
    device: &Wgpu,
    p: Qkv,
    h: &Buffer,
    w: &Matrix,
    batch: &Batch,
    q: &Buffer,
    pages: &Pages,
) {
    let half = p.head_dim / 2;
    let (stored, width) = (pages.stored, p.kv_heads * p.head_dim);
    let [keys, values] = pages.layer(p.layer);
    // Whole pages of rows in f32, where the pages themselves need another launch.
    let mut wide = Vec::new();
    if stored.dtype == Dtype::Q8_0 {
        let rows = (p.rows as usize).next_multiple_of(PAGE);
        for _ in 0..2 {
            let Some(buffer) = device.work(rows, width as usize, Use::Work) else { return };
            wide.push(buffer.raw);
        }
    }
    let [k, v] = if let [k, v] = &wide[..] { [k, v] } else { [keys, values] };
    let rest = [bind(&q.raw), bind(k), bind(v), bind(&batch.raw)];
    let call = Call {
        op: "qkv",
        shaders: &shader::QKV,
        pair: true,
        rows: p.rows,
        a: bind(&h.raw),
        a_stride: h.stride,
        w,
        rest: &rest,
        params: Product {
            out_stride: q.stride,
            half,
            heads: p.heads,
            kv_heads: p.kv_heads,
            pages: stored.code(),
            padded: if wide.is_empty() { stored.words } else { p.head_dim },
            slots: batch.slots,
            angles: batch.angles,
            ..Product::default()
        },
    };
    let row = |member, j| j / half * p.head_dim + member * half + j % half;
    device.product(&call, (p.heads + 2 * p.kv_heads) * half, row);
    if wide.is_empty() || p.rows == 0 {
        return;
    }
    let params = QkvCodes {
        rows: p.rows,
        kv_heads: p.kv_heads,
        head_dim: p.head_dim,
        vectors: stored.vectors,
        side: stored.side,
        width: stored.width,
        slots: batch.slots,
    };
    let elements = 2 * u64::from(p.rows) * u64::from(width);
    let bytes = 4 * elements + stored.dtype.bytes(elements as usize) as u64;
    device.gpu.launch(
        &shader::QKV_CODES,
        &stored.constants(),
        bytemuck::bytes_of(&params),
        &[bind(k), bind(v), bind(keys), bind(values), bind(&batch.raw)],
        Grid::flat((2 * p.rows * p.kv_heads * stored.scales).div_ceil(64)),
        Work { op: "qkv", bytes, flops: 2 * elements },
    );
}
