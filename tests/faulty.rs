//! A backend of one's own, through [`Engine::on`]: the CPU's, whose passes fail where a test wants,
//! and whose reads are not ready at once, as in a browser.

use gritlm::model::cpu::{Batch, Cpu, Matrix, Pages, Routing};
use gritlm::model::measure::Measure;
use gritlm::model::ops::{
    Attention, DeviceError, Expert, GateUp, KvShape, Layout, LinearAdd, Logits, Match, Ops,
    PoolingSpan, Qkv, Result, RmsNorm, Route, SampleParams, SampledToken, Search, SharedVectors,
};
use gritlm::model::weights::Tensor;
use gritlm::{Engine, Options};
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

/// Fails a pass if this returns true for the tokens of one of its sequences.
type Fault = fn(&[u32]) -> bool;

struct Faulty {
    fault: Fault,
    /// Whether the device is lost by its first fault.
    is_last: bool,
    is_lost: AtomicBool,
}

/// Returns a model on a CPU with that fault.
pub(crate) fn faulty(model: &str, fault: Fault) -> gritlm::Result<Engine> {
    with(model, fault, false)
}

/// Returns a model on a CPU that is lost by that fault.
pub(crate) fn losing(model: &str, fault: Fault) -> gritlm::Result<Engine> {
    with(model, fault, true)
}

fn with(model: &str, fault: Fault, is_last: bool) -> gritlm::Result<Engine> {
    let ops = Faulty { fault, is_last, is_lost: AtomicBool::new(false) };
    Engine::on(ops, model, &Options::default())
}

/// Is ready when it is polled again.
async fn later() {
    let mut polled = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut polled, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

type Buffer = Vec<f32>;

impl Ops for Faulty {
    type Matrix = Matrix;
    type Buffer = Buffer;
    type Corpus = SharedVectors;
    type Pages = Pages;
    type Batch = Batch;
    type Routing = Routing;

    const THREADS: bool = true;

    fn device(&self) -> String {
        "a CPU with faults".into()
    }

    fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    fn in_place(&self) -> bool {
        Cpu.in_place()
    }

    fn matrix(&self, parts: &[Tensor]) -> Result<Matrix> {
        Ops::matrix(&Cpu, parts)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer> {
        Cpu.buffer(rows, cols)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Buffer> {
        Cpu.upload(rows, cols, values)
    }

    fn corpus(&self, n: usize, dim: usize, vectors: SharedVectors) -> Result<SharedVectors> {
        Cpu.corpus(n, dim, vectors)
    }

    fn pages(&self, shape: KvShape) -> Result<Pages> {
        Cpu.pages(shape)
    }

    fn batch(&self, layout: &Layout) -> Result<Batch> {
        let mut sequences = layout.spans.iter().map(|span| {
            let first = span.row as usize;
            &layout.tokens[first..first + span.rows as usize]
        });
        if self.is_lost() || sequences.any(self.fault) {
            self.is_lost.fetch_or(self.is_last, Ordering::Relaxed);
            return Err(DeviceError("the pass failed, as it was to".into()));
        }
        Cpu.batch(layout)
    }

    fn routing(&self, rows: usize, experts: usize, top_k: usize) -> Result<Routing> {
        Cpu.routing(rows, experts, top_k)
    }

    fn embed(&self, batch: &Batch, table: &Matrix, x: &mut Buffer) {
        Cpu.embed(batch, table, x);
    }

    fn rmsnorm(&self, p: RmsNorm, x: &Buffer, weight: &Matrix, h: &mut Buffer) {
        Cpu.rmsnorm(p, x, weight, h);
    }

    fn qkv(&self, p: Qkv, h: &Buffer, w: &Matrix, b: &Batch, q: &mut Buffer, pages: &mut Pages) {
        Cpu.qkv(p, h, w, b, q, pages);
    }

    fn attention(&self, p: Attention, q: &Buffer, pages: &Pages, b: &Batch, out: &mut Buffer) {
        Cpu.attention(p, q, pages, b, out);
    }

    fn linear_add(&self, p: LinearAdd, a: &Buffer, w: &Matrix, x: &mut Buffer) {
        Cpu.linear_add(p, a, w, x);
    }

    fn gate_up(&self, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer) {
        Cpu.gate_up(p, h, w, out);
    }

    fn route(&self, p: Route, h: &Buffer, w: &Matrix, routing: &mut Routing) {
        Cpu.route(p, h, w, routing);
    }

    fn expert_gate_up(&self, p: Expert, h: &Buffer, w: &Matrix, r: &Routing, out: &mut Buffer) {
        Cpu.expert_gate_up(p, h, w, r, out);
    }

    fn expert_down_add(&self, p: Expert, a: &Buffer, w: &Matrix, r: &Routing, x: &mut Buffer) {
        Cpu.expert_down_add(p, a, w, r, x);
    }

    fn pool(&self, dim: u32, spans: &[PoolingSpan], h: &Buffer, out: &mut Buffer) {
        Cpu.pool(dim, spans, h, out);
    }

    fn logits(
        &self,
        p: Logits,
        rows: &[u32],
        x: &Buffer,
        norm: &Matrix,
        w: &Matrix,
        out: &mut Buffer,
    ) {
        Cpu.logits(p, rows, x, norm, w, out);
    }

    async fn sample(
        &self,
        vocab: u32,
        rows: &[SampleParams],
        logits: &Buffer,
    ) -> Result<Vec<SampledToken>> {
        later().await;
        Cpu.sample(vocab, rows, logits).await
    }

    async fn search(
        &self,
        p: Search,
        queries: &Buffer,
        corpus: &SharedVectors,
    ) -> Result<Vec<Vec<Match>>> {
        later().await;
        Cpu.search(p, queries, corpus).await
    }

    async fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        later().await;
        Cpu.read(buffer, len).await
    }

    async fn read_routing(&self, routing: &Routing, rows: usize) -> Result<Vec<f32>> {
        Cpu.read_routing(routing, rows).await
    }

    async fn export_pages(&self, pages: &Pages, table: &[u32], tokens: usize) -> Result<Vec<f32>> {
        later().await;
        Cpu.export_pages(pages, table, tokens).await
    }

    fn import_pages(
        &self,
        pages: &mut Pages,
        table: &[u32],
        tokens: usize,
        first: usize,
        values: &[f32],
    ) {
        Cpu.import_pages(pages, table, tokens, first, values);
    }
}

impl Measure for Faulty {
    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        Cpu.copy_rate(bytes)
    }

    fn displace(&self, bytes: u64) -> Result<()> {
        Cpu.displace(bytes)
    }
}
