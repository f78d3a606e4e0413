//! Runs a case of training on a backend: uploads its inputs, with NaN in everything that the ops
//! must not read or that they write, launches them, and reads back the results.

use super::{Case, Op};
use crate::case::{Ready, SPARE, Step, Weight, count, poison_unused, qkv_widths};
use gritlm_model::ops::{Backward, Expert, PAGE, Result, Route};
use gritlm_model::weights::Tensor;
use pollster::block_on;

impl Case {
    /// Runs the case on a backend and returns the values of all [`Case::expected`] outputs, one
    /// after the other.
    ///
    /// # Errors
    /// When the device fails.
    pub fn run<O: Backward>(&self, ops: &O) -> Result<Vec<f32>> {
        let (mut ready, mut out) = (self.ready(ops)?, Vec::new());
        ready(Step::Launch)?;
        ready(Step::Read(&mut out))?;
        Ok(out)
    }

    /// Uploads the inputs and returns a function that runs the ops as often as it is called. What
    /// they add to is the expected output after the first time only.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn ready<'a, O: Backward>(&'a self, ops: &'a O) -> Result<Ready<'a>> {
        // `filled` uploads a buffer with these values, `empty` one to write to, `before` one to add
        // to, and `gradient` one of a matrix that is trained; all end in rows of NaN.
        let filled = |cols: u32, mut values: Vec<f32>| {
            values.resize(values.len() + SPARE * cols as usize, f32::NAN);
            ops.upload(values.len() / cols as usize, cols as usize, &values)
        };
        let empty = |rows: u32, cols: u32| filled(cols, vec![f32::NAN; (rows * cols) as usize]);
        let before = |n: u64, rows: u32, cols: u32| filled(cols, self.before(n, rows * cols));
        let gradient = |n: u64, rows: u32, cols: u32| {
            (!self.frozen()).then(|| before(n, rows, cols)).transpose()
        };
        let matrix = |w: &Weight, parts: &[Tensor]| match self.frozen() {
            true => ops.matrix(parts),
            false => ops.parameters(w.all().len() / w.cols(), w.cols(), w.all()),
        };
        let read = move |to: &mut Vec<f32>, buffer: &O::Buffer, len: u32| -> Result<()> {
            to.extend(block_on(ops.read(buffer, len as usize))?);
            Ok(())
        };
        let read_if = move |to: &mut Vec<f32>, buffer: &Option<O::Buffer>, len: u32| {
            buffer.as_ref().map_or(Ok(()), |buffer| read(to, buffer, len))
        };
        Ok(match &self.op {
            &Op::Buffers { rows, cols } => {
                let (len, all) = (rows * cols, (rows + SPARE as u32) * cols);
                let values = self.peaked(len);
                let w = ops.parameters(rows as usize, cols as usize, &values)?;
                let from = filled(cols, values)?;
                let known = |n: u64| {
                    let values = self.before(n, all);
                    ops.upload((rows as usize) + SPARE, cols as usize, &values)
                };
                let (mut copied, mut cleared) = (known(1)?, known(2)?);
                let mut squares = 0.0;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.copy(&from, len as usize, &mut copied);
                            ops.clear(&mut cleared, len as usize);
                            squares = block_on(ops.squares(&from, len as usize))? as f32;
                        }
                        Step::Read(to) => {
                            *to = block_on(ops.read_parameters(&w))?;
                            read(to, &copied, all)?;
                            read(to, &cleared, all)?;
                            to.push(squares);
                        }
                    }
                    Ok(())
                })
            }
            &Op::Embed { rows, vocab, dim } => {
                let batch = ops.batch(&self.tokens(rows, vocab))?;
                let dx = filled(dim, self.activations(1, rows * dim))?;
                let mut dtable = before(1, vocab, dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.embed_backward(dim, &batch, &dx, &mut dtable),
                        Step::Read(to) => read(to, &dtable, vocab * dim)?,
                    }
                    Ok(())
                })
            }
            &Op::RmsNorm(p) => {
                let x = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let weight = self.norm(2, p.dim);
                let weight = matrix(&weight, &[weight.vector()])?;
                let dh = filled(p.dim, self.activations(3, p.rows * p.dim))?;
                let (mut dx, mut dweight) = (before(1, p.rows, p.dim)?, gradient(2, 1, p.dim)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.rmsnorm_backward(p, &x, &weight, &dh, &mut dx, dweight.as_mut());
                        }
                        Step::Read(to) => {
                            read(to, &dx, p.rows * p.dim)?;
                            read_if(to, &dweight, p.dim)?;
                        }
                    }
                    Ok(())
                })
            }
            Op::Qkv(p, sequences) => {
                let (p, [q, kv]) = (*p, qkv_widths(p).map(|width| width as u32));
                let (layout, _) = self.joined(sequences, p.kv_heads, p.head_dim);
                let batch = ops.batch(&layout)?;
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let outer = q + 2 * kv;
                let w = self.weight(2, outer, p.dim);
                let w = matrix(&w, &w.tensors(&[q, kv, kv]))?;
                let dqkv = [(3, q), (4, kv), (5, kv)]
                    .map(|(n, width)| filled(width, self.activations(n, p.rows * width)));
                let [dq, dk, dv] = dqkv;
                let (dq, dk, dv) = (dq?, dk?, dv?);
                let (mut dh, mut dw) = (empty(p.rows, p.dim)?, gradient(1, outer, p.dim)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            let dqkv = [&dq, &dk, &dv];
                            ops.qkv_backward(p, &h, &w, &batch, dqkv, &mut dh, dw.as_mut());
                        }
                        Step::Read(to) => {
                            read(to, &dh, p.rows * p.dim)?;
                            read_if(to, &dw, outer * p.dim)?;
                        }
                    }
                    Ok(())
                })
            }
            Op::Attention(p, sequences) => {
                let (p, width, kv) = (*p, p.heads * p.head_dim, p.kv_heads * p.head_dim);
                let (layout, pool) = self.joined(sequences, p.kv_heads, p.head_dim);
                let (batch, rows) = (ops.batch(&layout)?, count(&layout.tokens));
                let q = filled(width, self.activations(1, rows * width))?;
                let dout = filled(width, self.activations(2, rows * width))?;
                let mut pages = ops.pages(pool)?;
                let all: Vec<u32> = (0..pool.pages as u32).collect();
                let mut cache = self.cache(&pool, 1.0);
                poison_unused(&layout, &pool, &mut cache);
                ops.import_pages(&mut pages, &all, pool.pages * PAGE, 0, &cache);
                let (mut out, mut lse) = (empty(rows, width)?, empty(rows, p.heads)?);
                let (mut dq, mut dk, mut dv) =
                    (empty(rows, width)?, empty(rows, kv)?, empty(rows, kv)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.attention_kept(p, &q, &pages, &batch, &mut out, &mut lse);
                            let dqkv = [&mut dq, &mut dk, &mut dv];
                            ops.attention_backward(p, &q, &pages, &batch, &out, &lse, &dout, dqkv);
                        }
                        Step::Read(to) => {
                            read(to, &out, rows * width)?;
                            read(to, &lse, rows * p.heads)?;
                            read(to, &dq, rows * width)?;
                            read(to, &dk, rows * kv)?;
                            read(to, &dv, rows * kv)?;
                        }
                    }
                    Ok(())
                })
            }
            &Op::LinearAdd(p) => {
                let a = filled(p.inner, self.activations(1, p.rows * p.inner))?;
                // As in the forward pass: unequal parts, which end inside a tile of any size.
                let first = p.outer / 3;
                let w = self.weight(2, p.outer, p.inner);
                let w = matrix(&w, &w.tensors(&[first, p.outer - first]))?;
                let dx = filled(p.outer, self.activations(3, p.rows * p.outer))?;
                let (mut da, mut dw) = (empty(p.rows, p.inner)?, gradient(1, p.outer, p.inner)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.linear_add_backward(p, &a, &w, &dx, &mut da, dw.as_mut());
                        }
                        Step::Read(to) => {
                            read(to, &da, p.rows * p.inner)?;
                            read_if(to, &dw, p.outer * p.inner)?;
                        }
                    }
                    Ok(())
                })
            }
            &Op::GateUp(p) => {
                let h = filled(p.dim, self.activations(1, p.rows * p.dim))?;
                let w = self.weight(2, 2 * p.hidden, p.dim);
                let w = matrix(&w, &w.tensors(&[p.hidden; 2]))?;
                let dout = filled(p.hidden, self.activations(3, p.rows * p.hidden))?;
                let mut out = empty(p.rows, p.hidden)?;
                let (mut kept, mut dh) = (empty(p.rows, 2 * p.hidden)?, empty(p.rows, p.dim)?);
                let mut dw = gradient(1, 2 * p.hidden, p.dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.gate_up_kept(p, &h, &w, &mut out, &mut kept);
                            let dw = dw.as_mut();
                            ops.gate_up_backward(p, &h, &w, &mut kept, &dout, &mut dh, dw);
                        }
                        Step::Read(to) => {
                            read(to, &out, p.rows * p.hidden)?;
                            read(to, &kept, p.rows * 2 * p.hidden)?;
                            read(to, &dh, p.rows * p.dim)?;
                            read_if(to, &dw, 2 * p.hidden * p.dim)?;
                        }
                    }
                    Ok(())
                })
            }
            &Op::Expert(p) => {
                let Expert { rows, dim, hidden, experts, top_k } = p;
                let route = Route { rows, dim, experts, top_k };
                let (h, router, _) = self.routed(&p);
                let h = filled(dim, h)?;
                let router = matrix(&router, &router.tensors(&[experts]))?;
                let [w, down] = self.experts(&p);
                let w = matrix(&w, &w.tensors(&vec![hidden; 2 * experts as usize]))?;
                let down = matrix(&down, &down.tensors(&vec![dim; experts as usize]))?;
                let (dx, balance) = (self.activations(5, rows * dim), self.balance(&p));
                let dx = filled(dim, dx)?;
                let (n, k) = (experts as usize, top_k as usize);
                let mut routing = ops.routing(rows as usize + SPARE, n, k)?;
                let inner = rows * top_k;
                let (mut a, mut kept) = (empty(inner, hidden)?, empty(inner, 2 * hidden)?);
                let (mut da, mut dweights) = (empty(inner, hidden)?, empty(1, inner)?);
                let mut dh = empty(rows, dim)?;
                let mut drouter = gradient(1, experts, dim)?;
                let mut dw = gradient(2, experts * 2 * hidden, dim)?;
                let mut ddown = gradient(3, experts * dim, hidden)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            ops.route(route, &h, &router, &mut routing);
                            ops.expert_gate_up_kept(p, &h, &w, &routing, &mut a, &mut kept);
                            let (to, ddown) = (&mut dweights, ddown.as_mut());
                            ops.expert_down_add_backward(
                                p, &a, &down, &routing, &dx, &mut da, to, ddown,
                            );
                            let (to, drouter) = (&mut dh, drouter.as_mut());
                            ops.route_backward(
                                route, &h, &router, &routing, &dweights, &balance, to, drouter,
                            );
                            let (to, dw) = (&mut dh, dw.as_mut());
                            ops.expert_gate_up_backward(
                                p, &h, &w, &routing, &mut kept, &da, to, dw,
                            );
                        }
                        Step::Read(to) => {
                            read(to, &dh, rows * dim)?;
                            read_if(to, &drouter, experts * dim)?;
                            read_if(to, &dw, experts * 2 * hidden * dim)?;
                            read_if(to, &ddown, experts * dim * hidden)?;
                        }
                    }
                    Ok(())
                })
            }
            Op::Pool { dim, spans } => {
                let dim = *dim;
                let rows = spans.iter().map(|s| s.row + s.rows).max().unwrap_or(0);
                let dout = filled(dim, self.activations(1, count(spans) * dim))?;
                let mut dh = before(1, rows, dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.pool_backward(dim, spans, &dout, &mut dh),
                        Step::Read(to) => read(to, &dh, rows * dim)?,
                    }
                    Ok(())
                })
            }
            Op::CrossEntropy { p, rows } => {
                let (p, all) = (*p, rows.iter().max().map_or(0, |row| row + 1));
                let h = filled(p.dim, self.predicting(&p, rows))?;
                let w = self.weight(3, p.vocab, p.dim);
                let w = matrix(&w, &w.tensors(&[p.vocab]))?;
                let (targets, scales) = self.predicted(&p, rows);
                let mut losses = empty(1, count(rows).max(1))?;
                let (mut dh, mut dw) = (before(1, all, p.dim)?, gradient(2, p.vocab, p.dim)?);
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            let (losses, dw) = (&mut losses, dw.as_mut());
                            ops.cross_entropy(
                                p, rows, &targets, &scales, &h, &w, losses, &mut dh, dw,
                            );
                        }
                        Step::Read(to) => {
                            read(to, &losses, count(rows))?;
                            read(to, &dh, all * p.dim)?;
                            read_if(to, &dw, p.vocab * p.dim)?;
                        }
                    }
                    Ok(())
                })
            }
            Op::Contrastive(p, wanted) => {
                let (p, lens) = (*p, [p.queries, p.passages].map(|rows| rows * p.dim));
                let queries = filled(p.dim, self.activations(1, lens[0]))?;
                let passages = filled(p.dim, self.activations(2, lens[1]))?;
                let mut losses = empty(1, p.queries.max(1))?;
                let mut dqueries = before(1, p.queries, p.dim)?;
                let mut dpassages = before(2, p.passages, p.dim)?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => {
                            let (losses, dqueries) = (&mut losses, &mut dqueries);
                            let dpassages = &mut dpassages;
                            ops.contrastive(
                                p, wanted, &queries, &passages, losses, dqueries, dpassages,
                            );
                        }
                        Step::Read(to) => {
                            read(to, &losses, p.queries)?;
                            read(to, &dqueries, lens[0])?;
                            read(to, &dpassages, lens[1])?;
                        }
                    }
                    Ok(())
                })
            }
            &Op::AdamW { p, cols } => {
                let rows = p.len / cols;
                let w = self.weight(1, rows, cols);
                let mut w = ops.parameters(rows as usize, cols as usize, w.all())?;
                let [m, v] = self.moments(&p);
                let (mut m, mut v) = (filled(cols, m)?, filled(cols, v)?);
                let gradient = filled(cols, self.activations(4, p.len))?;
                Box::new(move |step: Step<'_>| {
                    match step {
                        Step::Launch => ops.adamw(p, &gradient, [&mut m, &mut v], &mut w),
                        Step::Read(to) => {
                            to.extend(block_on(ops.read_parameters(&w))?);
                            read(to, &m, p.len)?;
                            read(to, &v, p.len)?;
                        }
                    }
                    Ok(())
                })
            }
        })
    }
}
