//! `bench ops`: times single operations on a device, after checking each against the CPU backend.

use super::case::{Case, Op, Seq, Step};
use super::record::{Limits, Row};
use super::shape;
use super::time::timed;
use crate::{Error, Result};
use gritlm_model::config::Config;
use gritlm_model::cpu::Cpu;
use gritlm_model::measure::Measure;
use gritlm_model::ops::{
    Attention, Expert, GateUp, LinearAdd, Logits, Mask, Pooling, PoolingSpan, Qkv, RmsNorm,
    SampleParams, Search,
};
use gritlm_model::reference::relative_error;
use gritlm_model::weights::Dtype;

/// A case, and the op and shape under which the record lists it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The case to time.
    pub case: Case,
    /// Value of [`Row::op`].
    pub op: String,
    /// Value of [`Row::shape`].
    pub shape: String,
    /// Replacement for a shape that would take the CPU backend longer than seconds: the same op
    /// with fewer rows, of which the results are compared, or with shorter sequences.
    pub checked: Option<Check>,
}

/// How the result of a large case is checked.
#[derive(Clone, Debug)]
pub enum Check {
    /// The first rows of the full result must equal the result of this case, which has only those
    /// rows.
    Rows(Case),
    /// This smaller case is checked in place of the large one.
    Instead(Case),
}

impl Check {
    /// Returns the case that the CPU backend computes.
    pub fn case(&self) -> &Case {
        match self {
            Self::Rows(case) | Self::Instead(case) => case,
        }
    }
}

/// Largest case that the CPU backend computes, in additions and multiplications.
const TWIN: u64 = 20_000_000_000;

/// Largest number of cached keys in a check: one layer of a large model then takes half a
/// gigabyte.
const SEEN: u32 = 1 << 16;

/// Rows of a matrix product that are compared where all would take too long.
const COMPARED: u32 = 32;

/// Returns the cases of the case table that move any bytes.
pub fn table() -> Vec<Named> {
    let all = super::cases::cases().into_iter().filter(|case| case.bytes() > 0);
    all.map(|case| {
        let (op, shape) = case.name.split_once(' ').unwrap_or((&case.name, ""));
        Named { op: op.into(), shape: shape.into(), checked: None, case: case.clone() }
    })
    .collect()
}

/// Returns a model's ops for passes with each number of `rows`, and its attention: over one whole
/// sequence of each length in `contexts`, and decoding with each number of sequences in `batches`
/// at each of these lengths. Ops of negligible cost have one or two shapes: `embed`, `pool` of 8
/// texts, `search`.
pub fn model(config: &Config, rows: &[u32], contexts: &[u32], batches: &[u32]) -> Vec<Named> {
    let c = config;
    let [dim, heads, kv_heads, head_dim, hidden, vocab] =
        [c.dim, c.heads, c.kv_heads, c.head_dim, c.hidden, c.vocab].map(|n| n as u32);
    let (eps, layer) = (c.norm_eps, super::case::LAYERS as u32 - 1);
    let (inner, width) = (heads * head_dim, (heads + 2 * kv_heads) * head_dim);
    let mut all: Vec<Named> = Vec::new();
    // Where two matrices have the same shape, only one is measured.
    let mut add = |op: Op, shape: String| {
        let named = Named::new(op, shape);
        if !all.iter().any(|other| (&other.op, &other.shape) == (&named.op, &named.shape)) {
            all.push(named);
        }
    };
    let product =
        |rows: u32, inner: u32, outer: u32| shape::product(rows.into(), inner.into(), outer.into());
    for &rows in rows {
        let sequences = vec![Seq { past: 0, rows, mask: CAUSAL }];
        let p = Qkv { rows, dim, heads, kv_heads, head_dim, layer };
        add(Op::Qkv(p, sequences), product(rows, dim, width));
    }
    for (inner, wanted) in [(inner, true), (hidden, c.experts.is_none())] {
        for &rows in rows.iter().filter(|_| wanted) {
            let p = LinearAdd { rows, inner, outer: dim };
            add(Op::LinearAdd(p), product(rows, inner, dim));
        }
    }
    for &rows in rows {
        if let Some(e) = c.experts {
            let (experts, top_k) = (e.count as u32, e.top_k as u32);
            let p = Expert { rows, dim, hidden, experts, top_k };
            add(Op::Expert(p), shape_of_experts(p));
        } else {
            let p = GateUp { rows, dim, hidden };
            add(Op::GateUp(p), product(rows, dim, 2 * hidden));
        }
    }
    // No pass needs the logits of more rows.
    for &rows in rows.iter().filter(|&&rows| rows <= 64) {
        let p = Logits { dim, vocab, eps };
        add(Op::Logits { p, rows: (0..rows).collect() }, product(rows, dim, vocab));
    }
    let p = Attention { heads, kv_heads, head_dim, layer };
    let of = shape::heads(heads.into(), kv_heads.into(), head_dim.into());
    for &rows in contexts {
        for (name, mask) in [("causal", CAUSAL), ("bidirectional", BOTH)] {
            let shape = format!("{}, {name}", shape::attention(rows.into(), &of));
            add(Op::Attention(p, vec![Seq { past: 0, rows, mask }]), shape);
        }
    }
    for &batch in batches {
        for &context in contexts {
            let sequences = vec![Seq { past: context - 1, rows: 1, mask: CAUSAL }; batch as usize];
            let shape = shape::attention_decode(batch.into(), context.into(), &of);
            add(Op::Attention(p, sequences), shape);
        }
    }
    for &rows in rows {
        add(Op::RmsNorm(RmsNorm { rows, dim, eps }), shape::rows(rows.into(), dim.into()));
    }
    if let Some(&rows) = rows.iter().max() {
        add(Op::Embed { rows, vocab, dim }, shape::rows(rows.into(), dim.into()));
        let (texts, rows) = (8, (rows / 8).max(1));
        let (skip, pooling, normalize) = (0, Pooling::Mean, true);
        let span = |n| PoolingSpan { row: n * rows, rows, skip, pooling, normalize };
        let spans = (0..texts).map(span).collect();
        add(Op::Pool { dim, spans }, shape::pool(texts.into(), rows.into(), dim.into()));
    }
    for (how, drawn) in [("greedy", false), ("top-k top-p", true)] {
        for &batch in batches {
            let draws = (0..batch).map(|n| draw(drawn, n as f32 / batch as f32)).collect();
            let shape = shape::sample(batch.into(), vocab.into(), how);
            add(Op::Sample { vocab, draws, step: 0.0 }, shape);
        }
    }
    for queries in [1, 16] {
        let p = Search { queries, documents: 10_000, dim, top_k: 10 };
        let [n, documents, dim, top] = [queries, p.documents, dim, p.top_k].map(u64::from);
        add(Op::Search(p), shape::search(n, documents, dim, top));
    }
    all
}

const CAUSAL: Mask = Mask::Causal { window: None };
const BOTH: Mask = Mask::Bidirectional { window: None };

fn shape_of_experts(p: Expert) -> String {
    let [rows, dim, hidden, experts, top] =
        [p.rows, p.dim, p.hidden, p.experts, p.top_k].map(u64::from);
    shape::experts(rows, dim, experts, hidden, top)
}

/// Returns parameters for greedy sampling, or with common values of temperature, top-k and top-p.
fn draw(drawn: bool, uniform: f32) -> SampleParams {
    match drawn {
        true => SampleParams {
            temperature: 0.7,
            top_k: 50,
            top_p: 0.9,
            uniform,
            ..SampleParams::greedy()
        },
        false => SampleParams { uniform, ..SampleParams::greedy() },
    }
}

impl Named {
    fn new(op: Op, shape: String) -> Self {
        let case = Case::new(op, Dtype::Bf16);
        let name = case.name.split(' ').next().unwrap_or_default().to_string();
        let mut fewer = case.clone();
        let first_rows = match &mut fewer.op {
            Op::LinearAdd(p) => std::mem::replace(&mut p.rows, COMPARED) > COMPARED,
            Op::GateUp(p) => std::mem::replace(&mut p.rows, COMPARED) > COMPARED,
            Op::Logits { rows, .. } => {
                let more = rows.len() > COMPARED as usize;
                rows.truncate(COMPARED as usize);
                more
            }
            Op::Qkv(p, sequences) => {
                p.rows = COMPARED.min(p.rows);
                *sequences = vec![Seq { past: 0, rows: p.rows, mask: BOTH }];
                false
            }
            Op::Expert(p) => {
                p.rows = COMPARED.min(p.rows);
                false
            }
            Op::Attention(_, sequences) => {
                let past = SEEN / sequences.len() as u32;
                for s in sequences {
                    *s = Seq { past: s.past.min(past), rows: s.rows.min(512), ..*s };
                }
                false
            }
            _ => false,
        };
        let seen = match &case.op {
            Op::Attention(_, sequences) => sequences.iter().map(|s| s.past).sum(),
            _ => 0,
        };
        let checked = match first_rows {
            _ if case.flops() <= TWIN && seen <= SEEN => None,
            true => Some(Check::Rows(fewer)),
            false => Some(Check::Instead(fewer)),
        };
        Self { case, op: name, shape, checked }
    }

    /// Parses an op with a shape of the user's choice, such as `linear_add:128x4096x4096` (rows,
    /// inner, outer).
    ///
    /// # Errors
    /// When the text has another form.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || {
            Error::from(gritlm::Error::Option {
                option: "shape",
                expected:
                    "linear_add, gate_up or logits with ROWSxINNERxOUTER, attention with TOKENS \
                       or rmsnorm with ROWSxDIM, as in linear_add:128x4096x4096"
                        .into(),
                found: text.into(),
            })
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
            ("logits", &[rows, dim, vocab]) => {
                let shape = shape::product(rows.into(), dim.into(), vocab.into());
                let p = Logits { dim, vocab, eps };
                Self::new(Op::Logits { p, rows: (0..rows).collect() }, shape)
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

impl Named {
    /// Returns the op over KV pages of this type, if it reads or writes any, as another shape.
    pub fn over_pages(mut self, dtype: Dtype) -> Self {
        if matches!(self.case.op, Op::Qkv(..) | Op::Attention(..)) {
            self.shape += &format!(", {} pages", dtype.to_string().to_lowercase());
            self.case.pages = Some(dtype);
            if let Some(Check::Rows(case) | Check::Instead(case)) = &mut self.checked {
                case.pages = Some(dtype);
            }
        }
        self
    }
}

/// Checks and times one case. Where the device computes in bf16, the inputs are rounded first.
///
/// # Errors
/// When the device fails or has not the case's type of pages, or its result differs from the CPU
/// backend's by more than [`Measure::bound`].
pub fn row<O: Measure>(
    ops: &O,
    limits: &Limits,
    named: &Named,
    (repeats, displaced): (u32, u64),
) -> Result<Row> {
    let has = ops.page_dtypes();
    if let Some(asked) = named.case.pages.filter(|asked| !has.contains(asked)) {
        let lower = |dtype: &Dtype| dtype.to_string().to_lowercase();
        let names: Vec<String> = has.iter().map(lower).collect();
        return Err(gritlm::Error::Option {
            option: "kv_type",
            expected: format!("one of {} on {}", names.join(", "), limits.device),
            found: lower(&asked),
        }
        .into());
    }
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
    let error = relative_error(&found, &expected);
    if error.is_nan() || error > bound {
        return Err(gritlm::Error::Input {
            what: format!("{} {} on {}", named.op, named.shape, limits.device),
            problem: format!("expected the CPU's result within {bound:.0e}, found {error:.1e} off"),
        }
        .into());
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
        variant,
        error: Some(error),
        ..Row::default()
    })
}
