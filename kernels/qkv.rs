//! qkv: projects to queries, keys and values, applies RoPE, and writes keys and values to the KV
//! cache; see qkv.cu.

use crate::product::{Call, Order, Product};
use crate::{Batch, Buffer, Cuda, Format, Matrix, Pages};
use gritlm_model::ops::{PAGE, Qkv};

pub(crate) fn qkv(
    device: &Cuda,
    p: Qkv,
    h: &Buffer,
    w: &Matrix,
    batch: &Batch,
    q: &mut Buffer,
    pages: &Pages,
) {
    q.format = Format::Bf16;
    let outputs = (p.heads + 2 * p.kv_heads) * (p.head_dim / 2);
    let [keys, values] = pages.layer(p.layer);
    let call = Call {
        op: "qkv",
        source: "qkv",
        order: Order::Heads(p.head_dim),
        experts: 0,
        rows: p.rows,
        outputs,
        a: h,
        w,
        params: Product {
            out: q.raw.pointer(),
            keys: keys.pointer(),
            values: values.pointer(),
            words: batch.raw.pointer(),
            out_stride: q.stride,
            head_dim: p.head_dim,
            heads: p.heads,
            kv_heads: p.kv_heads,
            width: pages.width,
            slots: batch.slots,
            angles: batch.angles,
            ..Product::default()
        },
    };
    device.product(&call);
}

/// The kernels have pages of 128 tokens.
const _: () = assert!(PAGE == 128);
