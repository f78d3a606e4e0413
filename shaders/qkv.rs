//! qkv: projects to queries, keys and values, applies RoPE, and writes keys and values to the KV
//! cache; see qkv.wgsl.

use crate::product::{Call, Product, bind};
use crate::{Batch, Buffer, Matrix, Pages, Wgpu, shader};
use gritlm_model::ops::Qkv;

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
    let [keys, values] = pages.layer(p.layer);
    let rest = [bind(&q.raw), bind(keys), bind(values), bind(&batch.raw)];
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
            padded: 4 * pages.vectors,
            slots: batch.slots,
            angles: batch.angles,
            ..Product::default()
        },
    };
    let row = |member, j| j / half * p.head_dim + member * half + j % half;
    device.product(&call, (p.heads + 2 * p.kv_heads) * half, row);
}
