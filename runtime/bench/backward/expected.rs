//! Computes the expected outputs of every case of training with the formulas of the reference.

use super::{Case, Op};
use crate::case::{Seq, cached, count, expert_sizes, qkv_widths};
use gritlm_model::ops::{AdamW, Attention, CrossEntropy, Expert, Qkv};
use gritlm_model::reference::{
    adamw, attention, attention_backward, attention_scores, contrastive, cross_entropy, dot, exact,
    gate_up, gate_up_backward, gated_backward, linear, linear_backward, log_sum_exp, outer,
    pool_backward, relative_error, rmsnorm_backward, rotary_backward, route_backward, weighted_sum,
};

/// One of the outputs of a case.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name in the operation's formula.
    pub name: &'static str,
    /// Its values.
    pub values: Vec<f32>,
}

impl Case {
    /// Returns the outputs by the formulas of [`gritlm_model::reference`], in the order of
    /// [`Case::run`].
    pub fn expected(&self) -> Vec<Output> {
        let mut all = match &self.op {
            &Op::Buffers { rows, cols } => self.expected_buffers(rows, cols),
            &Op::Embed { rows, vocab, dim } => {
                let (tokens, dx) =
                    (self.tokens(rows, vocab).tokens, self.activations(1, rows * dim));
                let mut dtable = self.added_to(1, vocab * dim);
                for (token, dx) in tokens.into_iter().zip(dx.chunks(dim as usize)) {
                    add_row(&mut dtable, token as usize, dx);
                }
                vec![("dtable", dtable)]
            }
            &Op::RmsNorm(p) => {
                let (x, dh) = (self.rows_of(1, p.dim, p.rows), self.rows_of(3, p.dim, p.rows));
                let weight = self.norm(2, p.dim);
                let mut dx = self.added_to(1, p.rows * p.dim);
                let mut dweight = self.added_to(2, p.dim);
                for (row, (x, dh)) in x.iter().zip(&dh).enumerate() {
                    let [to_x, to_weight] = rmsnorm_backward(x, weight.all(), p.eps, dh);
                    add_row(&mut dx, row, &to_x);
                    add_row(&mut dweight, 0, &to_weight);
                }
                vec![("dx", dx), ("dweight", dweight)]
            }
            Op::Qkv(p, sequences) => self.expected_qkv(p, sequences),
            Op::Attention(p, sequences) => self.expected_attention(p, sequences),
            &Op::LinearAdd(p) => {
                let (a, dx) = (self.rows_of(1, p.inner, p.rows), self.rows_of(3, p.outer, p.rows));
                let w = self.weight(2, p.outer, p.inner);
                let (mut da, mut dw) = (Vec::new(), self.added_to(1, p.outer * p.inner));
                for (a, dx) in a.iter().zip(&dx) {
                    let [to_a, to_w] = linear_backward(a, w.all(), dx);
                    da.extend(to_a);
                    add_row(&mut dw, 0, &to_w);
                }
                vec![("da", da), ("dw", dw)]
            }
            &Op::GateUp(p) => {
                let h = self.rows_of(1, p.dim, p.rows);
                let dout = self.rows_of(3, p.hidden, p.rows);
                let w = self.weight(2, 2 * p.hidden, p.dim);
                let (mut out, mut kept, mut dh) = (Vec::new(), Vec::new(), Vec::new());
                let mut dw = self.added_to(1, 2 * p.hidden * p.dim);
                for (h, dout) in h.iter().zip(&dout) {
                    out.extend(gate_up(h, w.all()));
                    kept.extend(gated_backward(&linear(h, w.all()), dout));
                    let [to_h, to_w] = gate_up_backward(h, w.all(), dout);
                    dh.extend(to_h);
                    add_row(&mut dw, 0, &to_w);
                }
                vec![("out", out), ("gradient of kept", kept), ("dh", dh), ("dw", dw)]
            }
            Op::Expert(p) => self.expected_mixture(p),
            Op::Pool { dim, spans } => {
                let rows = spans.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
                let dout = self.rows_of(1, *dim, count(spans));
                let mut dh = self.added_to(1, rows * dim);
                for (span, dout) in spans.iter().zip(&dout) {
                    for (row, gradient) in pool_backward(span, dout) {
                        add_row(&mut dh, row as usize, &gradient);
                    }
                }
                vec![("dh", dh)]
            }
            Op::CrossEntropy { p, rows } => self.expected_cross_entropy(p, rows),
            Op::Contrastive(p, wanted) => {
                let queries = self.activations(1, p.queries * p.dim);
                let passages = self.activations(2, p.passages * p.dim);
                let [losses, to_queries, to_passages] = contrastive(p, wanted, &queries, &passages);
                let mut dqueries = self.added_to(1, p.queries * p.dim);
                let mut dpassages = self.added_to(2, p.passages * p.dim);
                add_row(&mut dqueries, 0, &to_queries);
                add_row(&mut dpassages, 0, &to_passages);
                vec![("losses", losses), ("dqueries", dqueries), ("dpassages", dpassages)]
            }
            Op::AdamW { p, cols } => self.expected_adamw(p, *cols),
        };
        let of_weights = ["dw", "dweight", "drouter", "ddown"];
        all.retain(|(name, _)| !(self.frozen() && of_weights.contains(name)));
        let rounded = |values: Vec<f64>| values.into_iter().map(|v| v as f32).collect();
        all.into_iter().map(|(name, values)| Output { name, values: rounded(values) }).collect()
    }

    /// Returns the relative error of each of a backend's outputs, with its name.
    ///
    /// Where the expected output is zero throughout, as the gradient of a softmax over one key, a
    /// backend has what rounding leaves: it is compared with all outputs together.
    pub fn errors(&self, out: &[f32], expected: &[Output]) -> Vec<(&'static str, f64)> {
        if out.len() != expected.iter().map(|output| output.values.len()).sum::<usize>() {
            return vec![("length", f64::INFINITY)];
        }
        let size = |values: &[f32]| dot(values, values).sqrt();
        let all = expected.iter().map(|o| size(&o.values).powi(2)).sum::<f64>().sqrt();
        let mut rest = out;
        let error = |Output { name, values }: &Output| {
            let found;
            (found, rest) = rest.split_at(values.len());
            let zero = values.iter().all(|&v| v == 0.0) && found.iter().all(|v| v.is_finite());
            let error =
                if zero && all > 0.0 { size(found) / all } else { relative_error(found, values) };
            (*name, error)
        };
        expected.iter().map(error).collect()
    }

    fn expected_buffers(&self, rows: u32, cols: u32) -> Vec<Named> {
        let values = self.peaked(rows * cols);
        let all = (rows as usize + crate::case::SPARE) * cols as usize;
        let [mut copied, mut cleared] = [1, 2].map(|n| self.added_to(n, all as u32));
        copied[..values.len()].copy_from_slice(&exact(&values));
        cleared[..values.len()].fill(0.0);
        let squares = vec![dot(&values, &values)];
        vec![
            ("parameters", exact(&values)),
            ("copied", copied),
            ("cleared", cleared),
            ("squares", squares),
        ]
    }

    fn expected_qkv(&self, p: &Qkv, sequences: &[Seq]) -> Vec<Named> {
        let (layout, _) = self.joined(sequences, p.kv_heads, p.head_dim);
        let [q, kv] = qkv_widths(p).map(|width| width as u32);
        let h = self.rows_of(1, p.dim, p.rows);
        let w = self.weight(2, q + 2 * kv, p.dim);
        let [dq, dk, dv] =
            [(3, q), (4, kv), (5, kv)].map(|(n, width)| self.rows_of(n, width, p.rows));
        let (mut dh, mut dw) = (Vec::new(), self.added_to(1, (q + 2 * kv) * p.dim));
        for (row, h) in h.iter().enumerate() {
            let rotated =
                dq[row].chunks(p.head_dim as usize).chain(dk[row].chunks(p.head_dim as usize));
            let before = |head: &[f32]| {
                rotary_backward(&exact(head), layout.positions[row], &layout.frequencies)
            };
            let mut dy: Vec<f64> = rotated.flat_map(before).collect();
            dy.extend(exact(&dv[row]));
            let [to_h, to_w] = linear_backward(h, w.all(), &dy);
            dh.extend(to_h);
            add_row(&mut dw, 0, &to_w);
        }
        vec![("dh", dh), ("dw", dw)]
    }

    fn expected_attention(&self, p: &Attention, sequences: &[Seq]) -> Vec<Named> {
        let (layout, pool) = self.joined(sequences, p.kv_heads, p.head_dim);
        let (head_dim, heads) = (p.head_dim as usize, p.heads as usize);
        let (kv_heads, rows) = (p.kv_heads as usize, layout.tokens.len());
        let [q, dout] = [1, 2].map(|n| self.activations(n, rows as u32 * p.heads * p.head_dim));
        let cache = self.cache(&pool, 1.0);
        let (mut out, mut lse, mut dq) = (Vec::new(), Vec::new(), Vec::new());
        let [mut dk, mut dv] = [0, 1].map(|_| vec![0.0; rows * kv_heads * head_dim]);
        let mut vectors = q.chunks(head_dim).zip(dout.chunks(head_dim));
        for (s, span) in sequences.iter().zip(&layout.spans) {
            for seen in s.keys() {
                // The rows of the batch whose keys this row sees.
                let seen: Vec<usize> =
                    seen.iter().map(|j| (span.row - span.past) as usize + j).collect();
                for (head, (query, dout)) in vectors.by_ref().take(heads).enumerate() {
                    let kv_head = head / (heads / kv_heads);
                    let [keys, values] = [0, 1].map(|which| {
                        let vector = |&row: &usize| {
                            let at = cached(&pool, which, kv_head, layout.slots[row] as usize);
                            &cache[at..at + head_dim]
                        };
                        seen.iter().map(vector).collect::<Vec<&[f32]>>()
                    });
                    out.extend(attention(query, &keys, &values));
                    lse.push(log_sum_exp(&attention_scores(query, &keys)));
                    let [to_q, to_keys, to_values] =
                        attention_backward(query, &keys, &values, dout);
                    dq.extend(to_q);
                    for (to, from) in [(&mut dk, to_keys), (&mut dv, to_values)] {
                        for (row, from) in seen.iter().zip(from.chunks(head_dim)) {
                            add_row(to, row * kv_heads + kv_head, from);
                        }
                    }
                }
            }
        }
        vec![("out", out), ("lse", lse), ("dq", dq), ("dk", dk), ("dv", dv)]
    }

    fn expected_mixture(&self, p: &Expert) -> Vec<Named> {
        let [_, dim, hidden, _, top_k] = expert_sizes(p);
        let (h, router, chosen) = self.routed(p);
        let [stacked, down] = self.experts(p);
        let (balance, mut dh) = (self.balance(p), Vec::new());
        let mut drouter = self.added_to(1, p.experts * p.dim);
        let mut dstacked = self.added_to(2, p.experts * 2 * p.hidden * p.dim);
        let mut ddown = self.added_to(3, p.experts * p.dim * p.hidden);
        let dx = self.rows_of(5, p.dim, p.rows);
        for ((h, dx), chosen) in h.chunks(dim).zip(&dx).zip(chosen) {
            let (mut to_h, mut dweights) = (vec![0.0; dim], Vec::new());
            for (expert, weight) in chosen {
                let stacked = stacked.rows(expert * 2 * hidden, 2 * hidden);
                let down = down.rows(expert * dim, dim);
                let a = gate_up(h, stacked);
                dweights.push(dot(&linear(&a, down), dx));
                // x += weight · W2 a
                let [da, to_down] = linear_backward(&a, down, dx);
                let da: Vec<f64> = da.into_iter().map(|da| weight * da).collect();
                let to_down: Vec<f64> = to_down.into_iter().map(|d| weight * d).collect();
                add_row(&mut ddown, expert, &to_down);
                let [from_expert, to_stacked] = gate_up_backward(h, stacked, &da);
                add_row(&mut dstacked, expert, &to_stacked);
                add_row(&mut to_h, 0, &from_expert);
            }
            let logits = linear(h, router.all());
            let dlogits = route_backward(&logits, top_k, &dweights, &balance);
            let [from_router, to_router] = linear_backward(h, router.all(), &dlogits);
            add_row(&mut drouter, 0, &to_router);
            add_row(&mut to_h, 0, &from_router);
            dh.extend(to_h);
        }
        vec![("dh", dh), ("drouter", drouter), ("dw", dstacked), ("ddown", ddown)]
    }

    fn expected_cross_entropy(&self, p: &CrossEntropy, rows: &[u32]) -> Vec<Named> {
        let (h, w) = (self.predicting(p, rows), self.weight(3, p.vocab, p.dim));
        let (targets, scales) = self.predicted(p, rows);
        let (mut losses, mut dh) = (Vec::new(), self.added_to(1, h.len() as u32));
        let mut dw = self.added_to(2, p.vocab * p.dim);
        for ((&row, target), scale) in rows.iter().zip(targets).zip(scales) {
            let (row, dim) = (row as usize, p.dim as usize);
            let h = &h[row * dim..][..dim];
            let (loss, dlogits) = cross_entropy(&linear(h, w.all()), target as usize);
            losses.push(loss);
            let dlogits: Vec<f64> = dlogits.into_iter().map(|d| f64::from(scale) * d).collect();
            add_row(&mut dh, row, &weighted_sum(&dlogits, w.all().chunks(dim), dim));
            add_row(&mut dw, 0, &outer(&dlogits, h));
        }
        vec![("losses", losses), ("dh", dh), ("dw", dw)]
    }

    fn expected_adamw(&self, p: &AdamW, cols: u32) -> Vec<Named> {
        let w = self.weight(1, p.len / cols, cols);
        let ([m, v], gradient) = (self.moments(p), self.activations(4, p.len));
        let step = |i: usize| {
            let [g, m, v, w] = [gradient[i], m[i], v[i], w.all()[i]].map(f64::from);
            adamw(p, g, [m, v], w)
        };
        let steps: Vec<(f64, [f64; 2])> = (0..gradient.len()).map(step).collect();
        let moment = |n: usize| steps.iter().map(|(_, moments)| moments[n]).collect();
        vec![("w", steps.iter().map(|(w, _)| *w).collect()), ("m", moment(0)), ("v", moment(1))]
    }

    /// Returns activations, row by row.
    fn rows_of(&self, stream: u64, cols: u32, rows: u32) -> Vec<Vec<f32>> {
        let values = self.activations(stream, rows * cols);
        values.chunks(cols as usize).map(<[f32]>::to_vec).collect()
    }

    fn added_to(&self, n: u64, len: u32) -> Vec<f64> {
        exact(&self.before(n, len))
    }
}

/// An output's name and values.
type Named = (&'static str, Vec<f64>);

/// Adds values to a row of a matrix of as many columns.
fn add_row<T: Copy + Into<f64>>(to: &mut [f64], row: usize, values: &[T]) {
    let to = &mut to[row * values.len()..][..values.len()];
    to.iter_mut().zip(values).for_each(|(to, &value)| *to += value.into());
}
