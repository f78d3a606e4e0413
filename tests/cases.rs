//! What every case of the table should give: the op's formula in f64, from the definitions in
//! `model/ops.rs`, sharing nothing with a backend.

use gritlm::bench::case::{
    BEFORE, Case, Op, Seq, Weight, cached, dot, drawn_values, found_values, pooled,
};
pub(crate) use gritlm::bench::cases::cases;
use gritlm::model::ops::{Attention, Draw, Drawn, PAGE, PoolSpan, Qkv};

/// The result by the formula.
pub(crate) trait Expected {
    fn expected(&self) -> Vec<f32>;
}

impl Expected for Case {
    fn expected(&self) -> Vec<f32> {
        let values: Vec<f64> = match &self.op {
            &Op::Embed { rows, vocab, dim } => {
                let table = self.weight(1, vocab, dim);
                let tokens = self.tokens(rows, vocab).tokens;
                return tokens.iter().flat_map(|&t| table.row(t as usize).to_vec()).collect();
            }
            &Op::RmsNorm(p) => {
                let (x, weight) = (self.activations(1, p.rows * p.dim), self.norm(2, p.dim));
                x.chunks(p.dim as usize).flat_map(|x| normed(x, &weight, p.eps)).collect()
            }
            Op::Qkv(p, sequences) => return expected_qkv(self, p, sequences),
            Op::Attention(p, sequences) => expected_attention(self, p, sequences),
            &Op::LinearAdd(p) => {
                let a = self.activations(1, p.rows * p.inner);
                let x = self.activations(3, p.rows * p.outer);
                let w = self.weight(2, p.outer, p.inner);
                let products = a.chunks(p.inner as usize).flat_map(|a| w.times(a, 0, p.outer));
                x.iter().zip(products).map(|(&x, product)| f64::from(x) + product).collect()
            }
            &Op::GateUp(p) => {
                let h = self.activations(1, p.rows * p.dim);
                let w = self.weight(2, 2 * p.hidden, p.dim);
                h.chunks(p.dim as usize).flat_map(|h| gated(h, &w, 0, p.hidden)).collect()
            }
            Op::Expert(p) => {
                let (h, router, chosen) = self.routed(p);
                let [gate_up, down] = self.experts(p);
                let rows = || h.chunks(p.dim as usize);
                let mut out: Vec<f64> =
                    rows().flat_map(|h| router.times(h, 0, p.experts)).collect();
                let x = self.activations(5, p.rows * p.dim);
                for ((h, x), chosen) in rows().zip(x.chunks(p.dim as usize)).zip(chosen) {
                    let mut x: Vec<f64> = x.iter().copied().map(f64::from).collect();
                    for (expert, weight) in chosen {
                        let first = expert * 2 * p.hidden as usize;
                        let inner = gated(h, &gate_up, first, p.hidden);
                        let added = down.times(&inner, expert * p.dim as usize, p.dim);
                        x.iter_mut().zip(added).for_each(|(x, added)| *x += weight * added);
                    }
                    out.extend(x);
                }
                out
            }
            Op::Pool { dim, spans } => {
                let h = self.hidden(*dim, spans);
                spans.iter().flat_map(|span| expected_pool(*dim as usize, span, &h)).collect()
            }
            Op::Logits { p, rows } => {
                let (x, norm) = (self.wanted(p, rows), self.norm(2, p.dim));
                let w = self.weight(3, p.vocab, p.dim);
                let row = |&r: &u32| {
                    let x = &x[(r * p.dim) as usize..][..p.dim as usize];
                    w.times(&normed(x, &norm, p.eps), 0, p.vocab)
                };
                rows.iter().flat_map(row).collect()
            }
            Op::Sample { vocab, draws, step } => {
                let logits = self.drawn_from(*vocab, draws, *step);
                let rows = draws.iter().zip(logits.chunks(*vocab as usize));
                let drawn: Vec<Drawn> = rows.map(|(d, l)| expected_draw(d, l)).collect();
                return drawn_values(&drawn);
            }
            Op::Search(p) => {
                let queries = self.steps(1, p.queries * p.dim);
                let corpus = self.steps(2, p.documents * p.dim);
                let best = queries.chunks(p.dim as usize).map(|query| {
                    let score = |document: &[f32]| dot(query, document) as f32;
                    let scores: Vec<f32> = corpus.chunks(p.dim as usize).map(score).collect();
                    let best = largest_first(&scores).into_iter().take(p.top_k as usize);
                    best.map(|i| (i as u32, scores[i])).collect::<Vec<_>>()
                });
                return found_values(&best.collect::<Vec<_>>());
            }
        };
        values.into_iter().map(|v| v as f32).collect()
    }
}

fn expected_qkv(case: &Case, p: &Qkv, sequences: &[Seq]) -> Vec<f32> {
    let (layout, pool) = case.layout(sequences, p.kv_heads, p.head_dim);
    let (head_dim, heads, kv_heads) = (p.head_dim as usize, p.heads as usize, p.kv_heads as usize);
    let h = case.activations(1, p.rows * p.dim);
    let width = (p.heads + 2 * p.kv_heads) * p.head_dim;
    let w = case.weight(2, width, p.dim);
    let (mut out, mut cache) = (Vec::new(), case.cache(&pool, BEFORE));
    for (r, h) in h.chunks(p.dim as usize).enumerate() {
        let vectors = w.times(h, 0, width);
        for (n, vector) in vectors.chunks(head_dim).enumerate() {
            let turned: Vec<f32> = (0..head_dim)
                .map(|d| {
                    let (pair, half) = (d % (head_dim / 2), head_dim / 2);
                    let (a, b) = (vector[pair], vector[pair + half]);
                    // The angle is defined in f32, as in transformers.
                    let angle = layout.frequencies[pair] * layout.positions[r] as f32;
                    let (sin, cos) = f64::from(angle).sin_cos();
                    let turned = if d < half { a * cos - b * sin } else { b * cos + a * sin };
                    (if n < heads + kv_heads { turned } else { vector[d] }) as f32
                })
                .collect();
            if n < heads {
                out.extend(turned);
            } else {
                let (which, head) = ((n - heads) / kv_heads, (n - heads) % kv_heads);
                let at = cached(&pool, which, head, layout.slots[r] as usize);
                cache[at..at + head_dim].copy_from_slice(&turned);
            }
        }
    }
    out.extend(cache);
    out
}

fn expected_attention(case: &Case, p: &Attention, sequences: &[Seq]) -> Vec<f64> {
    let (layout, pool) = case.layout(sequences, p.kv_heads, p.head_dim);
    let (head_dim, heads) = (p.head_dim as usize, p.heads as usize);
    let q = case.activations(1, layout.tokens.len() as u32 * p.heads * p.head_dim);
    let cache = case.cache(&pool, 1.0);
    let mut q = q.chunks(head_dim);
    let mut out = Vec::new();
    for (s, span) in sequences.iter().zip(&layout.spans) {
        for keys in s.keys() {
            for head in 0..heads {
                let q = q.next().unwrap();
                let vector = |which: usize, j: usize| {
                    let page = layout.tables[span.table as usize + j / PAGE] as usize;
                    let head = head / (heads / p.kv_heads as usize);
                    let at = cached(&pool, which, head, page * PAGE + j % PAGE);
                    &cache[at..at + head_dim]
                };
                let score = |&j: &usize| dot(q, vector(0, j)) / (head_dim as f64).sqrt();
                let scores: Vec<f64> = keys.iter().map(score).collect();
                let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                let mut mixed = vec![0.0; head_dim];
                for (score, &j) in scores.iter().zip(&keys) {
                    let weight = (score - max).exp() / sum;
                    for (mixed, &v) in mixed.iter_mut().zip(vector(1, j)) {
                        *mixed += weight * f64::from(v);
                    }
                }
                out.extend(mixed);
            }
        }
    }
    out
}

fn normed(x: &[f32], weight: &Weight, eps: f32) -> Vec<f64> {
    let root = (dot(x, x) / x.len() as f64 + f64::from(eps)).sqrt();
    x.iter().zip(weight.row(0)).map(|(&x, &w)| f64::from(x) * f64::from(w) / root).collect()
}

/// silu(h · W1ᵀ) ⊙ (h · W3ᵀ) with the [W1; W3] that begin at row `first`.
fn gated(h: &[f32], w: &Weight, first: usize, hidden: u32) -> Vec<f64> {
    let (gate, up) = (w.times(h, first, hidden), w.times(h, first + hidden as usize, hidden));
    gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
}

fn expected_pool(dim: usize, span: &PoolSpan, h: &[f32]) -> Vec<f64> {
    let rows = pooled(span);
    let total: f64 = rows.iter().map(|(_, weight)| weight).sum();
    let column = |c: usize| {
        let weighted = |(row, weight): &(u32, f64)| weight * f64::from(h[*row as usize * dim + c]);
        rows.iter().map(weighted).sum::<f64>() / total
    };
    let mut out: Vec<f64> = (0..dim).map(column).collect();
    if span.normalize {
        let length = dot(&out, &out).sqrt();
        out.iter_mut().for_each(|v| *v /= length);
    }
    out
}

/// Indices, largest value first, lower index first where equal.
fn largest_first<T: PartialOrd>(values: &[T]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).unwrap().then(a.cmp(&b)));
    order
}

/// Panics where an f32 rounding could change the draw: no test may depend on luck.
fn expected_draw(d: &Draw, logits: &[f32]) -> Drawn {
    let clear = |a: f64, b: f64| assert!((a - b).abs() > 1e-5, "{a} is too close to {b}: {d:?}");
    let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    let logprob = |id: usize| (f64::from(logits[id]) - max - sum.ln()) as f32;
    let top = largest_first(logits).into_iter().take(d.logprobs as usize);
    let top = top.map(|id| (id as u32, logprob(id))).collect();

    let mut changed: Vec<f64> = logits.iter().copied().map(f64::from).collect();
    for &id in &d.seen {
        let (logit, penalty) = (&mut changed[id as usize], f64::from(d.penalty));
        *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
    }
    let mut kept = largest_first(&changed);
    if d.temperature == 0.0 {
        kept.truncate(1);
    } else {
        if d.top_k > 0 {
            kept.truncate(d.top_k as usize);
        }
        // Probabilities among the kept, relative to the likeliest's.
        let weights: Vec<f64> = (kept.iter())
            .map(|&id| ((changed[id] - changed[kept[0]]) / f64::from(d.temperature)).exp())
            .collect();
        let (total, mut before) = (weights.iter().sum::<f64>(), 0.0);
        let mut n = 0;
        while d.top_p < 1.0 && n < kept.len() && (n == 0 || before < f64::from(d.top_p)) {
            before += weights[n] / total;
            n += 1;
            clear(before, d.top_p.into());
        }
        kept.truncate(if d.top_p < 1.0 { n } else { weights.len() });
        let likely = |i: usize| i == 0 || weights[i] >= f64::from(d.min_p);
        let n = (0..kept.len()).take_while(|&i| likely(i)).count();
        weights[1..]
            .iter()
            .for_each(|&w| clear(if d.min_p > 0.0 { w } else { 1.0 }, d.min_p.into()));
        kept.truncate(n);
    }
    let weight = |&id: &usize| match d.temperature {
        0.0 => 1.0,
        t => ((changed[id] - changed[kept[0]]) / f64::from(t)).exp(),
    };
    let (total, mut sum) = (kept.iter().map(weight).sum::<f64>(), 0.0);
    let mut token = kept[kept.len() - 1];
    for id in &kept[..kept.len() - 1] {
        sum += weight(id) / total;
        clear(sum, d.uniform.into());
        if f64::from(d.uniform) < sum {
            token = *id;
            break;
        }
    }
    let token = d.given.map_or(token, |id| id as usize);
    Drawn { token: token as u32, logprob: logprob(token), top }
}
