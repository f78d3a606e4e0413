//! Runs a case on a backend: uploads its inputs, with NaN in everything that the op must not read,
//! launches the op, and reads back the results.

use super::inputs::LAYERS;
use super::{Case, Op, count, qkv_widths};
use gritlm_model::ops::{
    Expert, KvShape, Layout, Match, NO_PAGE, Ops, PAGE, Result, Route, SampledToken,
};
use pollster::block_on;
use rayon::prelude::*;
use std::sync::Arc;

/// A request to the function that [`Case::ready`] returns.
#[derive(Debug)]
pub enum Step<'a> {
    /// Records the op; `sample` and `search` also wait for their results.
    Launch,
    /// Reads back the results of the last launch.
    Read(&'a mut Vec<f32>),
}

/// A case whose inputs are on a device.
pub type Ready<'a> = Box<dyn FnMut(Step<'_>) -> Result<()> + 'a>;

/// Extra rows that every buffer has beyond those in use.
pub(crate) const SPARE: usize = 3;

/// Scale of the values that are in the pages before `qkv` runs and that must survive in every
/// slot it does not write. It is small, so that the many old values do not hide an error in the
/// few new ones.
pub const BEFORE: f32 = 1e-3;

impl Case {
    /// Runs the case on a backend and returns its result.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run<O: Ops>(&self, ops: &O) -> Result<Vec<f32>> {
        let (mut ready, mut out) = (self.ready(ops)?, Vec::new());
        ready(Step::Launch)?;
        ready(Step::Read(&mut out))?;
        Ok(out)
    }

    fn shape_on<O: Ops>(&self, ops: &O, pool: KvShape) -> KvShape {
        let dtype = self.pages.or(ops.page_dtypes().first().copied()).unwrap_or(pool.dtype);
        KvShape { dtype, ..pool }
    }

    /// Uploads the inputs and returns a function that runs the op as often as it is called.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn ready<'a, O: Ops>(&'a self, ops: &'a O) -> Result<Ready<'a>> {
        // `filled` uploads a buffer with these values, `empty` one to write to; both end in rows
        // of NaN.
        let filled = |cols: u32, mut values: Vec<f32>| {
            values.resize(values.len() + SPARE * cols as usize, f32::NAN);
            ops.upload(values.len() / cols as usize, cols as usize, &values)
        };
        let empty = |rows: u32, cols: u32| filled(cols, vec![f32::NAN; (rows * cols) as usize]);
        let read = move |buffer: &O::Buffer, len: u32| block_on(ops.read(buffer, len as usize));
        Ok(match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let (batch, table) = (self.tokens(rows, vocab), self.weight(1, vocab, dim));
                let batch = ops.batch(&batch)?;
                let table = ops.matrix(&table.tensors(&[vocab]))?;
                let mut x = empty(rows, dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.embed(&batch, &table, &mut x),
                        Step::Read(to) => *to = read(&x, rows * dim)?,
                    }
                    Ok(())
                })
            }
            &Op::RmsNorm(p) => {
                let x = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let weight = ops.matrix(&[self.norm(2, p.dim).vector()])?;
                let mut h = empty(p.rows, p.dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.rmsnorm(p, &x, &weight, &mut h),
                        Step::Read(to) => *to = read(&h, p.rows * p.dim)?,
                    }
                    Ok(())
                })
            }
            Op::Qkv(p, sequences) => {
                let (p, [q_width, kv]) = (*p, qkv_widths(p).map(|w| w as u32));
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let w = self.weight(2, q_width + 2 * kv, p.dim);
                let w = ops.matrix(&w.tensors(&[q_width, kv, kv]))?;
                let batch = ops.batch(&layout)?;
                let mut q = empty(p.rows, q_width)?;
                let mut pages = ops.pages(self.shape_on(ops, pool))?;
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let tokens = pool.pages * PAGE;
                ops.import_pages(&mut pages, &all, tokens, 0, &self.cache(&pool, BEFORE));
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.qkv(p, &h, &w, &batch, &mut q, &mut pages),
                        Step::Read(to) => {
                            *to = read(&q, p.rows * q_width)?;
                            to.extend(block_on(ops.export_pages(&pages, &all, tokens))?);
                        }
                    }
                    Ok(())
                })
            }
            Op::Attention(p, sequences) => {
                let (p, width) = (*p, p.heads * p.head_dim);
                let (layout, pool) = self.layout(sequences, p.kv_heads, p.head_dim);
                let rows = layout.tokens.len() as u32;
                let q = filled(width, self.activations(1, rows * width))?;
                let batch = ops.batch(&layout)?;
                let mut pages = ops.pages(self.shape_on(ops, pool))?;
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let mut cache = self.cache(&pool, 1.0);
                poison_unused(&layout, &pool, &mut cache);
                ops.import_pages(&mut pages, &all, pool.pages * PAGE, 0, &cache);
                let mut out = empty(rows, width)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.attention(p, &q, &pages, &batch, &mut out),
                        Step::Read(to) => *to = read(&out, rows * width)?,
                    }
                    Ok(())
                })
            }
            &Op::LinearAdd(p) => {
                let a = filled(p.inner, self.activations(1, p.rows * p.inner))?;
                // The parts are unequal, and both end inside a tile of any size.
                let first = p.outer / 3;
                let w = self.weight(2, p.outer, p.inner);
                let w = ops.matrix(&w.tensors(&[first, p.outer - first]))?;
                let mut x = filled(p.outer, self.activations(3, p.rows * p.outer))?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.linear_add(p, &a, &w, &mut x),
                        Step::Read(to) => *to = read(&x, p.rows * p.outer)?,
                    }
                    Ok(())
                })
            }
            &Op::GateUp(p) => {
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let w = self.weight(2, 2 * p.hidden, p.dim);
                let w = ops.matrix(&w.tensors(&[p.hidden; 2]))?;
                let mut out = empty(p.rows, p.hidden)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.gate_up(p, &h, &w, &mut out),
                        Step::Read(to) => *to = read(&out, p.rows * p.hidden)?,
                    }
                    Ok(())
                })
            }
            &Op::Expert(p) => {
                let Expert { rows, dim, hidden, experts, top_k } = p;
                let (h, router, _) = self.routed(&p);
                let h = filled(dim, h)?;
                let router = ops.matrix(&router.tensors(&[experts]))?;
                let [gate_up, down] = self.experts(&p);
                let parts = vec![hidden; 2 * experts as usize];
                let gate_up = ops.matrix(&gate_up.tensors(&parts))?;
                let parts = vec![dim; experts as usize];
                let down = ops.matrix(&down.tensors(&parts))?;
                let mut x = filled(dim, self.activations(5, rows * dim))?;
                let mut inner = empty(rows * top_k, hidden)?;
                let (n, k) = (experts as usize, top_k as usize);
                let mut routing = ops.routing(rows as usize + SPARE, n, k)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.route(
                                Route { rows, dim, experts, top_k },
                                &h,
                                &router,
                                &mut routing,
                            );
                            ops.expert_gate_up(p, &h, &gate_up, &routing, &mut inner);
                            ops.expert_down_add(p, &inner, &down, &routing, &mut x)
                        }
                        Step::Read(to) => {
                            *to = block_on(ops.read_routing(&routing, rows as usize))?;
                            to.extend(read(&x, rows * dim)?);
                        }
                    }
                    Ok(())
                })
            }
            Op::Pool { dim, spans } => {
                let (h, mut out) =
                    (filled(*dim, self.hidden(*dim, spans))?, empty(count(spans), *dim)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.pool(*dim, spans, &h, &mut out),
                        Step::Read(to) => *to = read(&out, count(spans) * dim)?,
                    }
                    Ok(())
                })
            }
            Op::Logits { p, rows } => {
                let x = filled(p.dim, self.wanted(p, rows))?;
                let norm = ops.matrix(&[self.norm(2, p.dim).vector()])?;
                let w = ops.matrix(&self.weight(3, p.vocab, p.dim).tensors(&[p.vocab]))?;
                let mut out = empty(count(rows), p.vocab)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.logits(*p, rows, &x, &norm, &w, &mut out),
                        Step::Read(to) => *to = read(&out, count(rows) * p.vocab)?,
                    }
                    Ok(())
                })
            }
            Op::Sample { vocab, draws, step } => {
                let logits = filled(*vocab, self.drawn_from(*vocab, draws, *step))?;
                let mut drawn = Vec::new();
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => drawn = block_on(ops.sample(*vocab, draws, &logits))?,
                        Step::Read(to) => *to = drawn_values(&drawn),
                    }
                    Ok(())
                })
            }
            &Op::Search(p) => {
                let queries = filled(p.dim, self.steps(1, p.queries * p.dim))?;
                let corpus = Arc::new(self.steps(2, p.documents * p.dim));
                let corpus = ops.corpus(p.documents as usize, p.dim as usize, corpus)?;
                let mut found = Vec::new();
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => found = block_on(ops.search(p, &queries, &corpus))?,
                        Step::Read(to) => *to = found_values(&found),
                    }
                    Ok(())
                })
            }
        })
    }
}

/// Writes NaN to every slot that holds no token, and to the whole first layer.
pub(crate) fn poison_unused(layout: &Layout, pool: &KvShape, cache: &mut [f32]) {
    let mut used = vec![false; pool.pages * PAGE];
    for span in &layout.spans {
        for position in 0..(span.past + span.rows) as usize {
            let page = layout.tables[span.table as usize + position / PAGE];
            if page != NO_PAGE {
                used[page as usize * PAGE + position % PAGE] = true;
            }
        }
    }
    let layer = cache.len() / LAYERS;
    cache.par_chunks_mut(pool.head_dim).enumerate().for_each(|(i, vector)| {
        if i * pool.head_dim < layer * (LAYERS - 1) || !used[i % used.len()] {
            vector.fill(f32::NAN);
        }
    });
}

/// Returns the ids, then the log-probabilities.
pub fn drawn_values(drawn: &[SampledToken]) -> Vec<f32> {
    let ids = drawn.iter().flat_map(|d| [d.token].into_iter().chain(d.top.iter().map(|t| t.0)));
    let values =
        drawn.iter().flat_map(|d| [d.logprob].into_iter().chain(d.top.iter().map(|t| t.1)));
    ids.map(id_value).chain(values).collect()
}

/// Returns the ids, then the scores.
pub fn found_values(found: &[Vec<Match>]) -> Vec<f32> {
    let ids = found.iter().flatten().map(|m| id_value(m.index));
    ids.chain(found.iter().flatten().map(|m| m.score)).collect()
}

fn id_value(id: u32) -> f32 {
    debug_assert!(id < 1 << 24, "f32 has this id exactly");
    id as f32
}
