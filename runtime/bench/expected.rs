//! Computes the expected result of every case with the formulas of the reference.

use super::case::{BEFORE, Case, Op, Seq, cached, drawn_values, found_values};
use gritlm_model::ops::{Attention, Ops, PAGE, Qkv, SampledToken};
use gritlm_model::reference::{
    attention, gate_up, linear, pool, relative_error, rmsnorm, rotary, sample, search,
};

impl Case {
    /// Runs the case twice on a backend and returns the relative error of its result, which must be
    /// within `bound`.
    ///
    /// # Errors
    /// When the device fails, the second run has other bits than the first, ids differ, or the error
    /// is larger; one line.
    pub fn compare<O: Ops>(
        &self,
        ops: &O,
        expected: &[f32],
        bound: f64,
    ) -> std::result::Result<f64, String> {
        let run = || self.run(ops).map_err(|e| e.to_string());
        let (out, again) = (run()?, run()?);
        if !out.iter().map(|v| v.to_bits()).eq(again.iter().map(|v| v.to_bits())) {
            return Err("other bits the second time".into());
        }
        let exact = self.exact();
        if out.len() != expected.len() || out[..exact] != expected[..exact] {
            let mut pairs = out.iter().zip(expected).enumerate();
            let differ = pairs.find(|(_, (a, b))| a != b);
            return Err(format!("other ids, first {differ:?}"));
        }
        if out == expected {
            // Of nothing, or of zeros, there is no relative error.
            return Ok(0.0);
        }
        let error = relative_error(&out[exact..], &expected[exact..]);
        if error > bound || error.is_nan() {
            return Err(format!("relative error {error:.1e}, at most {bound:.0e}"));
        }
        Ok(error)
    }

    /// Returns the result by the formulas of [`gritlm_model::reference`], with its values in the
    /// order of [`Case::run`].
    ///
    /// # Panics
    /// When an f32 rounding could change which token is sampled: a comparison must not depend on
    /// luck.
    pub fn expected(&self) -> Vec<f32> {
        let values: Vec<f64> = match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let table = self.weight(1, vocab, dim);
                let tokens = self.tokens(rows, vocab).tokens;
                return tokens.iter().flat_map(|&t| table.rows(t as usize, 1).to_vec()).collect();
            }
            &Op::RmsNorm(p) => {
                let (x, weight) = (self.activations(1, p.rows * p.dim), self.norm(2, p.dim));
                x.chunks(p.dim as usize).flat_map(|x| rmsnorm(x, weight.all(), p.eps)).collect()
            }
            Op::Qkv(p, sequences) => return expected_qkv(self, p, sequences),
            Op::Attention(p, sequences) => expected_attention(self, p, sequences),
            &Op::LinearAdd(p) => {
                let a = self.activations(1, p.rows * p.inner);
                let x = self.activations(3, p.rows * p.outer);
                let w = self.weight(2, p.outer, p.inner);
                let products = a.chunks(p.inner as usize).flat_map(|a| linear(a, w.all()));
                x.iter().zip(products).map(|(&x, product)| f64::from(x) + product).collect()
            }
            &Op::GateUp(p) => {
                let h = self.activations(1, p.rows * p.dim);
                let w = self.weight(2, 2 * p.hidden, p.dim);
                h.chunks(p.dim as usize).flat_map(|h| gate_up(h, w.all())).collect()
            }
            Op::Expert(p) => {
                let (h, router, chosen) = self.routed(p);
                let [stacked, down] = self.experts(p);
                let (dim, hidden) = (p.dim as usize, p.hidden as usize);
                let rows = || h.chunks(dim);
                let mut out: Vec<f64> = rows().flat_map(|h| linear(h, router.all())).collect();
                let x = self.activations(5, p.rows * p.dim);
                for ((h, x), chosen) in rows().zip(x.chunks(dim)).zip(chosen) {
                    let mut x: Vec<f64> = x.iter().copied().map(f64::from).collect();
                    for (expert, weight) in chosen {
                        let inner = gate_up(h, stacked.rows(expert * 2 * hidden, 2 * hidden));
                        let added = linear(&inner, down.rows(expert * dim, dim));
                        x.iter_mut().zip(added).for_each(|(x, added)| *x += weight * added);
                    }
                    out.extend(x);
                }
                out
            }
            Op::Pool { dim, spans } => {
                let h = self.hidden(*dim, spans);
                spans.iter().flat_map(|span| pool(&h, *dim as usize, span)).collect()
            }
            Op::Logits { p, rows } => {
                let (x, norm) = (self.wanted(p, rows), self.norm(2, p.dim));
                let w = self.weight(3, p.vocab, p.dim);
                let row = |&r: &u32| {
                    let x = &x[(r * p.dim) as usize..][..p.dim as usize];
                    linear(&rmsnorm(x, norm.all(), p.eps), w.all())
                };
                rows.iter().flat_map(row).collect()
            }
            Op::Sample { vocab, draws, step } => {
                let logits = self.drawn_from(*vocab, draws, *step);
                let rows = draws.iter().zip(logits.chunks(*vocab as usize));
                let drawn: Vec<SampledToken> = rows
                    .map(|(draw, logits)| {
                        let (drawn, margin) = sample(draw, logits);
                        assert!(margin > 1e-5, "an f32 rounding could change {draw:?}");
                        drawn
                    })
                    .collect();
                return drawn_values(&drawn);
            }
            Op::Search(p) => {
                let queries = self.steps(1, p.queries * p.dim);
                let corpus = self.steps(2, p.documents * p.dim);
                let found = queries.chunks(p.dim as usize);
                let found = found.map(|query| search(query, &corpus, p.top_k as usize));
                return found_values(&found.collect::<Vec<_>>());
            }
        };
        values.into_iter().map(|v| v as f32).collect()
    }

    /// Returns the relative error of a backend's result.
    pub fn error(&self, out: &[f32]) -> f64 {
        relative_error(out, &self.expected())
    }
}

fn expected_qkv(case: &Case, p: &Qkv, sequences: &[Seq]) -> Vec<f32> {
    let (layout, pages) = case.layout(sequences, p.kv_heads, p.head_dim);
    let (head_dim, heads, kv_heads) = (p.head_dim as usize, p.heads as usize, p.kv_heads as usize);
    let h = case.activations(1, p.rows * p.dim);
    let w = case.weight(2, (p.heads + 2 * p.kv_heads) * p.head_dim, p.dim);
    let (mut out, mut cache) = (Vec::new(), case.cache(&pages, BEFORE));
    for (r, h) in h.chunks(p.dim as usize).enumerate() {
        for (n, head) in linear(h, w.all()).chunks(head_dim).enumerate() {
            let rotated = rotary(head, layout.positions[r], &layout.frequencies);
            let head = if n < heads + kv_heads { &rotated } else { head };
            let head: Vec<f32> = head.iter().map(|&v| v as f32).collect();
            if n < heads {
                out.extend(head);
            } else {
                let (which, n) = ((n - heads) / kv_heads, (n - heads) % kv_heads);
                let at = cached(&pages, which, n, layout.slots[r] as usize);
                cache[at..at + head_dim].copy_from_slice(&head);
            }
        }
    }
    out.extend(cache);
    out
}

fn expected_attention(case: &Case, p: &Attention, sequences: &[Seq]) -> Vec<f64> {
    let (layout, pages) = case.layout(sequences, p.kv_heads, p.head_dim);
    let (head_dim, heads) = (p.head_dim as usize, p.heads as usize);
    let queries = case.activations(1, layout.tokens.len() as u32 * p.heads * p.head_dim);
    let cache = case.cache(&pages, 1.0);
    let mut queries = queries.chunks(head_dim);
    let mut out = Vec::new();
    for (s, span) in sequences.iter().zip(&layout.spans) {
        for seen in s.keys() {
            for (head, query) in queries.by_ref().take(heads).enumerate() {
                let cached = |which: usize, j: usize| {
                    let page = layout.tables[span.table as usize + j / PAGE] as usize;
                    let head = head / (heads / p.kv_heads as usize);
                    let at = cached(&pages, which, head, page * PAGE + j % PAGE);
                    &cache[at..at + head_dim]
                };
                let keys: Vec<&[f32]> = seen.iter().map(|&j| cached(0, j)).collect();
                let values: Vec<&[f32]> = seen.iter().map(|&j| cached(1, j)).collect();
                out.extend(attention(query, &keys, &values));
            }
        }
    }
    out
}
