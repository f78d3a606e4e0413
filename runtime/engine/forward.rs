//! The forward pass, which is the same code for every backend.

use crate::arithmetic::{check_int8, page_dtype, products};
use crate::backend::Load;
use crate::batch::{Output, Plan, Sequence, Want};
use crate::cache::{KvCache, KvPool, KvSnapshot};
use crate::corpus::{Corpus, whole};
use crate::layer::{Layer, Nothing, Pass};
use crate::{Error, Result};
use gritlm_model::config::{Config, Experts};
use gritlm_model::measure::{Created, Measure, OpTime};
use gritlm_model::ops::{
    KvShape, Logits, Mask, Match, Ops, PAGE, Products, RmsNorm, SampledToken, Search, SharedVectors,
};
use gritlm_model::weights::{Dtype, Expected, Tensor, Weights};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tokio::sync::Mutex;

/// Number of rows whose logits exist at once while tokens are scored: enough for the product to
/// reach its full rate, and 16 MB with a vocabulary of 32,000.
const SCORE_ROWS: usize = 128;

/// A point inside the forward pass that a [`Probe`] observes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The residual stream `(rows, dim)` as it enters a layer.
    LayerInput(usize),
    /// A layer's router logits `(rows, experts)`, before the softmax.
    RouterLogits(usize),
}

/// Receives the values at each [`Stage`].
pub type Probe<'a> = dyn FnMut(Stage, Vec<f32>) + Send + 'a;

/// What a model does once it is polled. It stays on the thread that polls it.
pub(crate) type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + 'a>>;

/// A loaded model on some device, whatever the backend.
pub(crate) trait Model: Send {
    fn device(&self) -> String;
    fn products(&self) -> Products;
    fn page_dtype(&self) -> Dtype;
    fn run<'a>(
        &'a mut self,
        sequences: &'a mut [Sequence<'_>],
        probe: Option<&'a mut Probe<'_>>,
    ) -> Pending<'a, Vec<Output>>;
    fn export<'a>(&'a self, cache: &'a KvCache) -> Pending<'a, KvSnapshot>;
    fn import(&mut self, from: &KvSnapshot) -> Result<KvCache>;
    fn corpus(&self, dim: usize, vectors: SharedVectors) -> Result<Corpus>;
    fn search<'a>(
        &'a self,
        top_k: usize,
        queries: &'a [f32],
        corpus: &'a Corpus,
    ) -> Pending<'a, Found>;
    fn is_lost(&self) -> bool;
    fn profile(&self) -> Vec<OpTime>;
    fn created(&self) -> Created;
}

/// The matches of each query, the best first.
pub(crate) type Found = Vec<Vec<Match>>;

/// The matrix that computes logits.
enum Head<M> {
    /// The checkpoint's `lm_head`.
    Own(M),
    /// The embedding table, because the config ties both.
    Tied,
    /// The checkpoint has no matrix for logits.
    Missing,
}

/// Activation buffers, which are kept between passes and replaced when a larger batch comes.
struct Work<O: Ops> {
    rows: usize,
    x: O::Buffer,
    h: O::Buffer,
    q: O::Buffer,
    mixed: O::Buffer,
    inner: O::Buffer,
    /// A dense model has that of a single expert, 40 bytes per row, and does not use it.
    routing: O::Routing,
}

/// A model on one backend.
pub(crate) struct Forward<O: Ops> {
    ops: O,
    config: Config,
    frequencies: Vec<f32>,
    table: O::Matrix,
    layers: Vec<Layer<O::Matrix>>,
    norm: O::Matrix,
    head: Head<O::Matrix>,
    pool: Arc<KvPool>,
    products: Products,
    page_dtype: Dtype,
    pages: O::Pages,
    work: Option<Work<O>>,
}

impl<O: Ops> Forward<O> {
    /// Loads the checked weights and returns when they are on the device. `pages` is the number
    /// of the pool's KV pages.
    pub(crate) async fn load(ops: O, load: Load<'_>, weights: &Weights) -> Result<Self> {
        let Load { options, config, frequencies, pool, pages, .. } = load;
        products(&ops, options, false)?;
        let page_dtype = page_dtype(&ops, options, config.head_dim)?;
        // The bar is shown on terminals only. The CPU has nothing to load and finishes before the
        // bar is drawn.
        let seen = options.progress && std::io::stderr().is_terminal();
        let bar = if seen { progress(weights.bytes()) } else { ProgressBar::hidden() };
        let quantized = AtomicBool::new(false);
        let stack = async |names: &[String]| -> Result<O::Matrix> {
            let stored: Vec<Tensor> =
                names.iter().map(|n| weights.get(n)).collect::<std::result::Result<_, _>>()?;
            let mut parts = Vec::with_capacity(stored.len());
            for (name, tensor) in names.iter().zip(&stored) {
                let shaped = Expected { name: name.clone(), shape: tensor.shape().into() };
                parts.push(match options.weights.and_then(|to| to.of(&shaped, config)) {
                    Some(dtype) => tensor.read().await?.to_dtype(dtype),
                    None => tensor.clone(),
                });
            }
            let all = parts.iter().all(|part| part.dtype().is_quantized());
            quantized.fetch_or(all, Relaxed);
            let matrix = ops.matrix_read::<Error>(products(&ops, options, all)?, &parts).await?;
            bar.inc(stored.iter().map(Tensor::size).sum());
            Ok(matrix)
        };
        let one = async |name: &str| stack(&[name.to_string()]).await;
        let shape = KvShape {
            layers: config.layers,
            pages,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            dtype: page_dtype,
        };
        let table = one("model.embed_tokens.weight").await?;
        let mut layers = Vec::with_capacity(config.layers);
        for l in 0..config.layers {
            let names = Layer::names(config, l);
            layers.push(names.try_turn(async |names| stack(&names).await).await?);
        }
        let norm = one("model.norm.weight").await?;
        let head = match weights.has_head(config) {
            _ if config.tied => Head::Tied,
            true => Head::Own(one("lm_head.weight").await?),
            false => Head::Missing,
        };
        let products = products(&ops, options, quantized.into_inner())?;
        check_int8(options, products)?;
        ops.finish().await?;
        bar.finish_and_clear();
        Ok(Self {
            table,
            layers,
            norm,
            head,
            config: config.clone(),
            frequencies,
            pool: Arc::clone(pool),
            products,
            page_dtype,
            pages: ops.pages(shape)?,
            work: None,
            ops,
        })
    }

    /// Returns buffers for at least `rows` rows.
    fn work(&mut self, rows: usize) -> Result<Work<O>> {
        if let Some(work) = self.work.take()
            && work.rows >= rows
        {
            return Ok(work);
        }
        let (c, ops) = (&self.config, &self.ops);
        let Experts { count, top_k } = c.experts.unwrap_or(Experts { count: 1, top_k: 1 });
        let heads = c.heads * c.head_dim;
        Ok(Work {
            rows,
            x: ops.buffer(rows, c.dim)?,
            h: ops.buffer(rows, c.dim)?,
            q: ops.buffer(rows, heads)?,
            mixed: ops.buffer(rows, heads)?,
            inner: ops.buffer(rows * top_k, c.hidden)?,
            routing: ops.routing(rows, count, top_k)?,
        })
    }

    /// Runs checked sequences and advances their caches.
    async fn run(
        &mut self,
        sequences: &mut [Sequence<'_>],
        probe: Option<&mut Probe<'_>>,
    ) -> Result<Vec<Output>> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        if sequences.iter().any(|s| s.want.needs_head()) {
            self.head()?;
        }
        let plan = Plan::new(sequences, &self.config, &self.frequencies, &self.pool)?;
        let wants: Vec<&Want> = sequences.iter().map(|s| &s.want).collect();
        let outputs = self.pass(&plan, &wants, probe).await?;
        for s in sequences {
            s.cache.advance(s.tokens.len());
            if let Mask::Causal { window: Some(window) } = s.mask {
                let seen = s.mask.keys(s.cache.tokens(), s.cache.tokens() + 1);
                debug_assert!(seen.len() <= window as usize);
                s.cache.forget_before(seen.start);
            }
        }
        Ok(outputs)
    }

    async fn pass(
        &mut self,
        plan: &Plan,
        wants: &[&Want],
        mut probe: Option<&mut Probe<'_>>,
    ) -> Result<Vec<Output>> {
        let mut work = self.work(plan.rows())?;
        let w = &mut work;
        let (c, ops) = (&self.config, &self.ops);
        let batch = ops.batch(&plan.layout)?;
        let pass = Pass { ops, config: c, batch: &batch, rows: plan.rows() as u32 };

        ops.embed(&batch, &self.table, &mut w.x);
        for (l, layer) in self.layers.iter().enumerate() {
            if let Some(probe) = probe.as_deref_mut() {
                probe(Stage::LayerInput(l), ops.read(&w.x, plan.rows() * c.dim).await?);
            }
            let layer = &layer.as_ref();
            let buffers = [&mut w.h, &mut w.q, &mut w.mixed];
            pass.attend(l as u32, layer, &mut w.x, buffers, &mut self.pages, &mut Nothing);
            let buffers = [&mut w.h, &mut w.inner];
            pass.feed_forward(layer, &mut w.x, buffers, &mut w.routing, &mut Nothing);
            if let Some(probe) = probe.as_deref_mut().filter(|_| c.experts.is_some()) {
                let logits = ops.read_routing(&w.routing, plan.rows()).await?;
                probe(Stage::RouterLogits(l), logits);
            }
        }

        let outputs = self.outputs(plan, wants, w).await;
        self.work = Some(work);
        self.ops.submit()?;
        outputs
    }

    /// Returns the matrix that computes logits.
    fn head(&self) -> Result<&O::Matrix> {
        match &self.head {
            Head::Own(head) => Ok(head),
            Head::Tied => Ok(&self.table),
            Head::Missing => Err(Error::NoHead),
        }
    }

    /// Returns the log-probabilities of the given tokens. It computes a block of rows at a time,
    /// because all logits of a long prompt would take more memory than the model's activations.
    async fn scores(&self, plan: &Plan, w: &Work<O>) -> Result<Vec<SampledToken>> {
        let (c, ops) = (&self.config, &self.ops);
        let p = Logits { dim: c.dim as u32, vocab: c.vocab as u32, eps: c.norm_eps };
        let mut scores = Vec::with_capacity(plan.scores.len());
        for (rows, draws) in plan.score_rows.chunks(SCORE_ROWS).zip(plan.scores.chunks(SCORE_ROWS))
        {
            let mut out = ops.buffer(rows.len(), c.vocab)?;
            ops.logits(p, rows, &w.x, &self.norm, self.head()?, &mut out);
            scores.extend(ops.sample(p.vocab, draws, &out).await?);
        }
        Ok(scores)
    }

    /// Computes and reads back the output that each sequence wants.
    async fn outputs(&self, plan: &Plan, wants: &[&Want], w: &mut Work<O>) -> Result<Vec<Output>> {
        let (c, ops) = (&self.config, &self.ops);
        let (mut drawn, mut logits) = (Vec::new(), Vec::new());
        if !plan.logit_rows.is_empty() {
            let p = Logits { dim: c.dim as u32, vocab: c.vocab as u32, eps: c.norm_eps };
            let mut out = ops.buffer(plan.logit_rows.len(), c.vocab)?;
            ops.logits(p, &plan.logit_rows, &w.x, &self.norm, self.head()?, &mut out);
            drawn = ops.sample(p.vocab, &plan.draws, &out).await?;
            if plan.logit_rows.len() > plan.draws.len() {
                logits = ops.read(&out, plan.logit_rows.len() * c.vocab).await?;
            }
        }
        let mut scores = self.scores(plan, w).await?.into_iter();
        let (mut pooled, mut hidden) = (Vec::new(), Vec::new());
        let all_rows = wants.iter().any(|w| *w.besides_scores() == Want::Hidden);
        if !plan.pools.is_empty() || all_rows {
            let p = RmsNorm { rows: plan.rows() as u32, dim: c.dim as u32, eps: c.norm_eps };
            ops.rmsnorm(p, &w.x, &self.norm, &mut w.h);
        }
        if !plan.pools.is_empty() {
            let mut out = ops.buffer(plan.pools.len(), c.dim)?;
            ops.pool(c.dim as u32, &plan.pools, &w.h, &mut out);
            pooled = ops.read(&out, plan.pools.len() * c.dim).await?;
        }
        if all_rows {
            hidden = ops.read(&w.h, plan.rows() * c.dim).await?;
        }

        let mut drawn = drawn.into_iter();
        let mut logits = logits.get(plan.draws.len() * c.vocab..).unwrap_or_default();
        let mut pooled = pooled.chunks_exact(c.dim);
        let mut outputs = Vec::with_capacity(wants.len());
        for (want, span) in wants.iter().zip(&plan.layout.spans) {
            let (row, rows) = (span.row as usize, span.rows as usize);
            let besides = want.besides_scores();
            let output = match besides {
                Want::Nothing | Want::Scores { .. } => Output::Nothing,
                Want::Token(_) => drawn.next().map_or(Output::Nothing, Output::Token),
                Want::Logits | Want::AllLogits => {
                    let count = if *besides == Want::Logits { 1 } else { rows };
                    let (mine, rest) = logits.split_at(count * c.vocab);
                    logits = rest;
                    Output::Logits(mine.to_vec())
                }
                Want::Embedding { .. } => {
                    pooled.next().map_or(Output::Nothing, |v| Output::Embedding(v.to_vec()))
                }
                Want::Hidden => Output::Hidden(hidden[row * c.dim..][..rows * c.dim].to_vec()),
            };
            outputs.push(match want {
                Want::Scores { targets, .. } => {
                    let mine = scores.by_ref().take(targets.len()).collect();
                    Output::Scores(mine, Box::new(output))
                }
                _ => output,
            });
        }
        Ok(outputs)
    }
}

/// Returns a bar that shows the bytes of weights loaded so far.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr_with_hz(4));
    let template = "loading {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}";
    ProgressStyle::with_template(template).map_or(bar.clone(), |style| bar.with_style(style))
}

impl<O: Measure> Model for Forward<O> {
    fn device(&self) -> String {
        self.ops.device()
    }

    fn products(&self) -> Products {
        self.products
    }

    fn page_dtype(&self) -> Dtype {
        self.page_dtype
    }

    fn profile(&self) -> Vec<OpTime> {
        self.ops.profile()
    }

    fn is_lost(&self) -> bool {
        self.ops.is_lost()
    }

    fn created(&self) -> Created {
        self.ops.created()
    }

    fn run<'a>(
        &'a mut self,
        sequences: &'a mut [Sequence<'_>],
        probe: Option<&'a mut Probe<'_>>,
    ) -> Pending<'a, Vec<Output>> {
        Box::pin(self.run(sequences, probe))
    }

    fn export<'a>(&'a self, cache: &'a KvCache) -> Pending<'a, KvSnapshot> {
        Box::pin(async move {
            let wrong =
                |problem: &str| Error::Input { what: "cache".into(), problem: problem.into() };
            if !cache.belongs_to(&self.pool) {
                return Err(wrong("it belongs to another engine"));
            }
            if cache.has_holes() {
                return Err(wrong("its sliding window has dropped its first tokens"));
            }
            let values = self.ops.export_pages(&self.pages, cache.table(), cache.tokens()).await?;
            let c = &self.config;
            KvSnapshot::from_f32([c.layers, 2, c.kv_heads, cache.tokens(), c.head_dim], values)
        })
    }

    fn import(&mut self, from: &KvSnapshot) -> Result<KvCache> {
        let c = &self.config;
        from.check_shape(c)?;
        let mut cache = KvCache::new(&self.pool);
        cache.reserve(from.tokens())?;
        debug_assert!(cache.table().len() * PAGE >= from.tokens());
        let plane = c.kv_heads * from.tokens() * c.head_dim;
        let mut buffer = Vec::new();
        for first in 0..2 * c.layers {
            let values = from.part(first * plane..(first + 1) * plane, &mut buffer);
            self.ops.import_pages(&mut self.pages, cache.table(), from.tokens(), first, values);
        }
        cache.advance(from.tokens());
        Ok(cache)
    }

    fn corpus(&self, dim: usize, vectors: SharedVectors) -> Result<Corpus> {
        let len = whole("corpus", dim, (*vectors).as_ref())?;
        let held = self.ops.corpus(len, dim, vectors)?;
        Ok(Corpus { dim, len, held: Mutex::new(Box::new(held)), pool: Arc::clone(&self.pool) })
    }

    fn search<'a>(
        &'a self,
        top_k: usize,
        queries: &'a [f32],
        corpus: &'a Corpus,
    ) -> Pending<'a, Found> {
        Box::pin(async move {
            let held = corpus.held.lock().await;
            let held = held.downcast_ref().filter(|_| Arc::ptr_eq(&corpus.pool, &self.pool));
            let held: &O::Corpus = held.ok_or_else(|| Error::Input {
                what: "corpus".into(),
                problem: "it belongs to another engine".into(),
            })?;
            let p = Search {
                queries: whole("queries", corpus.dim, queries)? as u32,
                documents: corpus.len as u32,
                dim: corpus.dim as u32,
                top_k: u32::try_from(top_k).unwrap_or(u32::MAX),
            };
            let queries = self.ops.upload(p.queries as usize, corpus.dim, queries)?;
            Ok(self.ops.search(p, &queries, held).await?)
        })
    }
}
