//! `bench ops`: single operations on a device, each checked against the CPU twin, then timed.

use super::case::{Case, Op, Seq, Step};
use super::record::{Limits, Row};
use super::shape;
use super::time::timed;
use crate::{Error, Result};
use gritlm_model::config::Config;
use gritlm_model::cpu::Cpu;
use gritlm_model::ops::{
    Attention, Expert, GateUp, LinearAdd, Logits, Mask, Ops, PoolSpan, Pooling, Qkv, RmsNorm,
};
use gritlm_model::weights::Dtype;

/// A case and how the record names its shape.
#[derive(Clone, Debug)]
pub struct Named {
    /// The case.
    pub case: Case,
    /// [`Row::op`] and [`Row::shape`].
    pub op: String,
    /// The shape, as text.
    pub shape: String,
    /// The same op in a shape that the CPU twin computes in seconds, where this one would take
    /// longer: with fewer rows, which then are compared, or of shorter sequences.
    pub checked: Option<Check>,
}

/// How a large case is checked.
#[derive(Clone, Debug)]
pub enum Check {
    /// The first rows of the result are the result of the first rows.
    Rows(Case),
    /// Another case, in place of this one.
    Instead(Case),
}

/// The most operations that the CPU twin is asked for.
const TWIN: u64 = 20_000_000_000;

/// Rows of a product that are compared where all would take too long.
const COMPARED: u32 = 32;

/// The case table.
pub fn table() -> Vec<Named> {
    let all = super::cases::cases().into_iter().filter(|case| case.bytes() > 0);
    all.map(|case| {
        let (op, shape) = case.name.split_once(' ').unwrap_or((&case.name, ""));
        Named { op: op.into(), shape: shape.into(), checked: None, case: case.clone() }
    })
    .collect()
}

/// A model's ops, for so many rows of one pass each, and its attention.
pub fn model(config: &Config, rows: &[u32], contexts: &[u32]) -> Vec<Named> {
    let c = config;
    let [dim, heads, kv_heads, head_dim, hidden, vocab] =
        [c.dim, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab].map(|n| n as u32);
    let (eps, layer) = (c.norm_eps, super::case::LAYERS as u32 - 1);
    let width = (heads + 2 * kv_heads) * head_dim;
    let causal = Mask::Causal { window: None };
    let mut all = Vec::new();
    let mut add = |op: Op, shape: String| all.push(Named::new(op, shape));
    for &rows in rows {
        let [r, d, h, v] = [rows, dim, hidden, vocab].map(u64::from);
        let product = |inner: u32, outer: u32| shape::product(r, inner.into(), outer.into());
        add(Op::RmsNorm(RmsNorm { rows, dim, eps }), shape::rows(r, d));
        add(
            Op::Qkv(
                Qkv { rows, dim, heads, kv_heads, head_dim, layer },
                vec![Seq { past: 0, rows, mask: causal }],
            ),
            product(dim, width),
        );
        let inner = heads * head_dim;
        add(Op::LinearAdd(LinearAdd { rows, inner, outer: dim }), product(inner, dim));
        if let Some(e) = c.experts {
            let (experts, top_k) = (e.count as u32, e.top_k as u32);
            add(
                Op::Expert(Expert { rows, dim, hidden, experts, top_k }),
                shape::experts(r, d, experts.into(), h, top_k.into()),
            );
        } else {
            add(Op::GateUp(GateUp { rows, dim, hidden }), product(dim, 2 * hidden));
            add(Op::LinearAdd(LinearAdd { rows, inner: hidden, outer: dim }), product(hidden, dim));
        }
        if rows <= 64 {
            let p = Logits { dim, vocab, eps };
            add(Op::Logits { p, rows: (0..rows).collect() }, shape::product(r, d, v));
        }
        let (pooling, normalize) = (Pooling::Mean, true);
        let span = PoolSpan { row: 0, rows, skip: 0, pooling, normalize };
        add(Op::Pool { dim, spans: vec![span] }, shape::pool(1, r, d));
    }
    let p = Attention { heads, kv_heads, head_dim, layer };
    let of = shape::heads(heads.into(), kv_heads.into(), head_dim.into());
    for &context in contexts {
        for (name, mask) in [("causal", causal), ("bidirectional", BOTH)] {
            let shape = format!("{}, {name}", shape::attention(context.into(), &of));
            let op = |rows| Op::Attention(p, vec![Seq { past: 0, rows, mask }]);
            let mut named = Named::new(op(context), shape);
            if named.case.flops() > TWIN {
                named.checked = Some(Check::Instead(Case::new(op(512), Dtype::F32)));
            }
            all.push(named);
        }
        let decode = Op::Attention(p, vec![Seq { past: context - 1, rows: 1, mask: causal }]);
        all.push(Named::new(decode, shape::attention_decode(1, (context - 1).into(), &of)));
    }
    all
}

const BOTH: Mask = Mask::Bidirectional { window: None };

impl Named {
    fn new(op: Op, shape: String) -> Self {
        let case = Case::new(op, Dtype::Bf16);
        let name = case.name.split(' ').next().unwrap_or_default().to_string();
        let mut fewer = case.clone();
        let clipped = match &mut fewer.op {
            Op::LinearAdd(p) => std::mem::replace(&mut p.rows, COMPARED) > COMPARED,
            Op::GateUp(p) => std::mem::replace(&mut p.rows, COMPARED) > COMPARED,
            _ => false,
        };
        let checked = match &case.op {
            _ if case.flops() <= TWIN => None,
            _ if clipped => Some(Check::Rows(fewer)),
            Op::Qkv(p, _) => {
                let rows = COMPARED.min(p.rows);
                let sequences = vec![Seq { past: 0, rows, mask: BOTH }];
                Some(Check::Instead(Case::new(Op::Qkv(Qkv { rows, ..*p }, sequences), case.dtype)))
            }
            Op::Expert(p) => {
                let p = Expert { rows: COMPARED.min(p.rows), ..*p };
                Some(Check::Instead(Case::new(Op::Expert(p), case.dtype)))
            }
            _ => None,
        };
        Self { case, op: name, shape, checked }
    }

    /// One product of the user's own: `linear_add 128x4096x4096`, rows by inner by outer.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::Option {
            option: "--shape",
            expected: "linear_add or gate_up with ROWSxINNERxOUTER, attention with TOKENS or \
                       rmsnorm with ROWSxDIM, as in linear_add:128x4096x4096"
                .into(),
            found: text.into(),
        };
        let (op, sizes) = text.split_once(':').ok_or_else(wrong)?;
        let sizes = sizes.split('x').map(|n| n.parse().ok().filter(|&n| (1..1 << 20).contains(&n)));
        let sizes: Vec<u32> = sizes.collect::<Option<_>>().ok_or_else(wrong)?;
        let eps = 1e-5;
        Ok(match (op, &sizes[..]) {
            ("linear_add", &[rows, inner, outer]) => {
                let shape = shape::product(rows.into(), inner.into(), outer.into());
                Self::new(Op::LinearAdd(LinearAdd { rows, inner, outer }), shape)
            }
            ("gate_up", &[rows, dim, hidden]) => {
                let shape = shape::product(rows.into(), dim.into(), 2 * u64::from(hidden));
                Self::new(Op::GateUp(GateUp { rows, dim, hidden }), shape)
            }
            ("rmsnorm", &[rows, dim]) => {
                let shape = shape::rows(rows.into(), dim.into());
                Self::new(Op::RmsNorm(RmsNorm { rows, dim, eps }), shape)
            }
            ("attention", &[rows]) => {
                let p = Attention { heads: 32, kv_heads: 8, head_dim: 128, layer: 1 };
                let of = shape::heads(32, 8, 128);
                let sequences = vec![Seq { past: 0, rows, mask: BOTH }];
                let shape = format!("{}, bidirectional", shape::attention(rows.into(), &of));
                Self::new(Op::Attention(p, sequences), shape)
            }
            _ => return Err(wrong()),
        })
    }
}

/// Checks and times one case. Where the device computes from bf16, the inputs are rounded first.
///
/// # Errors
/// When the device refuses, or its result is further from the twin's than [`Ops::bound`].
pub fn row<O: Ops>(
    ops: &O,
    limits: &Limits,
    named: &Named,
    (repeats, displaced): (u32, u64),
) -> Result<Row> {
    let bound = ops.bound();
    let bf16 = bound > 2e-3;
    let case = Case { bf16, ..named.case.clone() };
    let mut ready = case.ready(ops)?;
    let mut found = Vec::new();
    ready(Step::Launch)?;
    ready(Step::Read(&mut found))?;
    let (found, expected) = match &named.checked {
        None => (found, case.run(&Cpu)?),
        Some(Check::Rows(fewer)) => {
            let expected = Case { bf16, ..fewer.clone() }.run(&Cpu)?;
            found.truncate(expected.len());
            (found, expected)
        }
        Some(Check::Instead(other)) => {
            let other = Case { bf16, ..other.clone() };
            (other.run(ops)?, other.run(&Cpu)?)
        }
    };
    let error = error(&found, &expected);
    if error.is_nan() || error > bound {
        return Err(Error::Input {
            what: format!("{} {} on {}", named.op, named.shape, limits.device),
            problem: format!("expected the CPU's result within {bound:.0e}, found {error:.1e} off"),
        });
    }
    let times = timed(ops, repeats, displaced, || ready(Step::Launch))?;
    let variant = ops.launched().join("; ");
    let (bytes, flops) = (case.bytes() as f64, case.flops() as f64);
    let (limit, share) = limits.share(bytes, flops, times.median());
    Ok(Row {
        device: limits.device.clone(),
        suite: "ops".into(),
        op: named.op.clone(),
        shape: named.shape.clone(),
        us: times.median(),
        spread: times.spread(),
        repeats,
        bytes,
        flops,
        limit,
        share,
        tokens_s: None,
        variant,
        error: Some(error),
    })
}

/// ‖found − expected‖ / ‖expected‖ in f64; infinite where lengths differ.
fn error(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    if found == expected {
        return 0.0;
    }
    let (mut difference, mut length) = (0.0, 0.0);
    for (&a, &b) in found.iter().zip(expected) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        length += f64::from(b).powi(2);
    }
    (difference / length).sqrt()
}
