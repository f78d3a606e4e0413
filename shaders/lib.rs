//! The WGSL backend of `gritlm`. Every operation runs as a handwritten shader, on any GPU that
//! wgpu supports (Vulkan, Metal, DirectX 12, OpenGL).
//!
//! * [`Wgpu`] implements the operations. One Rust file per op picks the shader variant, sizes the
//!   grid and records the launch of the shader with the same file stem.
//! * [`shader`] holds the table of shaders and of all their variants, and [`tune`] the tiles and
//!   launch shapes.
//! * [`adapters`] lists the devices.
//!
//! Activations are f32; KV pages are f32 or a smaller type. Weights stay as stored (bf16, f16, f32,
//! or quantised codes in one layout for all formats) and are widened when they are read; sums are
//! f32. Subgroups, and more than 16 KiB of workgroup memory, are used only where the adapter has
//! them. On one adapter the same input always gives the same bits.

mod adamw;
mod adapter;
mod attention;
mod attention_backward;
mod autotune;
mod backward;
mod buffers;
mod codes;
mod contrastive;
mod cross_entropy;
mod embed;
mod embed_backward;
mod expert;
mod expert_backward;
mod gate_up;
mod gate_up_backward;
mod gpu;
mod linear_add;
mod linear_add_backward;
mod logits;
mod matrix;
mod measure;
mod merge;
mod merge_backward;
mod options;
mod outer;
mod own;
mod pages;
mod pipeline;
mod pool;
mod pool_backward;
mod product;
mod profile;
mod qkv;
mod qkv_backward;
mod rmsnorm;
mod rmsnorm_backward;
mod route;
mod route_backward;
mod rows;
mod sample;
mod search;
pub mod shader;
pub mod tune;

pub use adapter::{Adapter, adapters, best_gpu, opened_adapters};
pub use matrix::{Matrix, row_bytes};
pub use options::{Half, Options};
pub use own::{Own, stems};
pub use pages::Pages;

use gpu::{Gpu, Raw, Use};
use gritlm_model::host::{routing, rows as padding};
use gritlm_model::ops::{
    Attention, Compute, DeviceError, Expert, GateUp, KvShape, Layout, LinearAdd, Logits, Match,
    Ops, PoolingSpan, Products, Qkv, Result, RmsNorm, Route, SampleParams, SampledToken, Search,
    SharedVectors, Span,
};
use gritlm_model::weights::{Dtype, Tensor};
use matrix::Ring;
use shader::Shader;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use tune::Tiles;

/// An opened device with its shaders.
pub struct Wgpu {
    gpu: Gpu,
    tiles: Tiles,
    ring: Ring,
    matrix_bytes: u64,
    f16: bool,
}

/// Activations: f32, with rows padded with zeros to a multiple of 8 columns.
#[derive(Debug)]
pub struct Buffer {
    raw: Arc<Raw>,
    rows: usize,
    cols: usize,
    /// Row stride in elements.
    stride: u32,
}

/// An uploaded [`Layout`].
#[derive(Debug)]
pub struct Batch {
    /// Token ids, slots, and the cosines and sines of the rotary angles.
    raw: Arc<Raw>,
    rows: u32,
    slots: u32,
    angles: u32,
    tokens: Vec<u32>,
    spans: Vec<Span>,
    tables: Vec<u32>,
    lists: Mutex<Option<Arc<attention::Lists>>>,
}

/// The experts of each row; expert_sort.wgsl describes the regions of `raw`.
#[derive(Debug)]
pub struct Routing {
    logits: Buffer,
    raw: Arc<Raw>,
    grids: Arc<Raw>,
    /// Capacity in assignments, rows · top_k.
    assigned: u32,
    experts: usize,
}

impl Wgpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// When no adapter has that name, or it lacks what every model needs, or it cannot be opened.
    pub async fn open(options: &Options) -> Result<Self> {
        let gpu = Gpu::open(options).await?;
        let adapter = &gpu.adapter;
        let tiles = options
            .tiles
            .or_else(|| autotune::kept(&adapter.label()))
            .unwrap_or(Tiles::default_for(adapter.cpu, adapter.workgroup_bytes));
        let matrix_bytes = options.matrix_bytes.unwrap_or(u64::MAX).min(gpu.largest());
        let f16 = options.f16 != Half::Never && adapter.f16;
        let mut opened = Self { gpu, tiles, ring: Ring::default(), matrix_bytes, f16 };
        if options.tune {
            opened.tune().await?;
        }
        Ok(opened)
    }

    /// Returns the adapter that was opened.
    pub fn adapter(&self) -> &Adapter {
        &self.gpu.adapter
    }

    /// Returns the tiles in use.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// Calls `work` without running the launches that it records, and returns the names of the variants
    /// among them that have a file of [`Options::own`]. What `work` reads is undefined.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn planned<E>(
        &self,
        work: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<BTreeSet<String>, E> {
        self.gpu.planned(work)
    }

    /// Destroys the device, as a driver reset does: every later call returns an error.
    pub fn lose(&self) {
        self.gpu.lose();
    }

    /// Launches a custom shader over buffers, for benches and experiments. `params` is the
    /// uniform at binding 0, and `buffers` follow. If the shader does not compile, the next read
    /// returns the error.
    pub fn launch(
        &self,
        shader: &'static Shader,
        params: &[u8],
        buffers: &[&Buffer],
        (x, y): (u32, u32),
    ) {
        let bindings: Vec<_> = buffers.iter().map(|b| (&b.raw).into()).collect();
        let work = profile::Work { op: shader.name, bytes: 0, flops: 0 };
        self.gpu.launch(shader, &[], params, &bindings, gpu::Grid::Of(x, y), work);
    }

    fn buffer_of(&self, rows: usize, cols: usize, what: Use) -> Result<Buffer> {
        let stride = cols.next_multiple_of(8);
        let bytes = 4 * rows as u64 * stride as u64;
        if bytes > self.gpu.largest() {
            return Err(DeviceError(format!(
                "{} binds at most {} MiB, and {rows} rows of {cols} numbers take {}; use a smaller \
                 `batch_tokens`",
                self.gpu.adapter.label(),
                self.gpu.largest() >> 20,
                bytes >> 20
            )));
        }
        let raw = self.gpu.buffer(what, bytes)?;
        Ok(Buffer { raw, rows, cols, stride: stride as u32 })
    }

    /// Allocates a buffer for a part of an op's work. Returns `None` if there is no room, and the
    /// next read returns the error.
    fn work(&self, rows: usize, cols: usize, what: Use) -> Option<Buffer> {
        self.buffer_of(rows, cols, what).map_err(|problem| self.gpu.fail(problem)).ok()
    }
}

/// Returns every parameter struct, for the test that compares it with its WGSL twin.
pub fn params() -> Vec<gritlm_model::host::params::Layout> {
    let mut all = vec![
        attention::AttentionParams::LAYOUT,
        attention::Reduce::LAYOUT,
        embed::Embed::LAYOUT,
        expert::Add::LAYOUT,
        expert::Sort::LAYOUT,
        pool::Pool::LAYOUT,
        product::Product::LAYOUT,
        qkv::QkvCodes::LAYOUT,
        rmsnorm::RmsNormParams::LAYOUT,
        route::RouteParams::LAYOUT,
        sample::SamplingParams::LAYOUT,
        search::Select::LAYOUT,
    ];
    all.extend(backward::params());
    all
}

impl Ops for Wgpu {
    type Matrix = Matrix;
    type Buffer = Buffer;
    type Corpus = Buffer;
    type Pages = Pages;
    type Batch = Batch;
    type Routing = Routing;

    fn compute(&self) -> Compute {
        if self.f16 { Compute::F16 } else { Compute::F32 }
    }

    fn device(&self) -> String {
        let a = &self.gpu.adapter;
        let kind = if a.cpu { ", a CPU" } else { "" };
        format!("wgpu ({}, {}{kind})", a.name, a.backend)
    }

    fn is_lost(&self) -> bool {
        self.gpu.is_lost()
    }

    fn takes(&self, _: Dtype) -> bool {
        true
    }

    fn page_dtypes(&self) -> &'static [Dtype] {
        &pages::DTYPES
    }

    fn submit(&self) -> Result<()> {
        self.gpu.submit()
    }

    async fn finish(&self) -> Result<()> {
        self.gpu.submit()?;
        self.gpu.wait().await
    }

    fn matrix(&self, parts: &[Tensor]) -> Result<Matrix> {
        matrix::upload(&self.gpu, &self.ring, self.matrix_bytes, parts)
    }

    async fn matrix_read<E: From<DeviceError> + From<gritlm_model::Error>>(
        &self,
        products: Products,
        parts: &[Tensor],
    ) -> std::result::Result<Matrix, E> {
        match parts.iter().any(Tensor::is_away) {
            true => matrix::read(&self.gpu, self.matrix_bytes, parts).await,
            false => Ok(self.matrix_in(products, parts)?),
        }
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer> {
        let buffer = self.buffer_of(rows, cols, Use::Work)?;
        if buffer.stride as usize != cols {
            // Padding must always be zero.
            self.gpu.clear(&buffer.raw);
        }
        Ok(buffer)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Buffer> {
        debug_assert_eq!(rows * cols, values.len());
        let buffer = self.buffer_of(rows, cols, Use::Sent)?;
        let padded = padding::padded(values, cols, buffer.stride as usize);
        if !padded.is_empty() {
            self.gpu.write(&buffer.raw, 0, bytemuck::cast_slice(&padded));
        }
        Ok(buffer)
    }

    fn corpus(&self, documents: usize, dim: usize, vectors: SharedVectors) -> Result<Buffer> {
        self.upload(documents, dim, (*vectors).as_ref())
    }

    fn pages(&self, shape: KvShape) -> Result<Pages> {
        pages::pages(self, shape)
    }

    fn batch(&self, layout: &Layout) -> Result<Batch> {
        // A first batch means that loading is over.
        self.ring.release();
        let rows = layout.tokens.len();
        let raw = self.gpu.send(bytemuck::cast_slice(&layout.words()))?;
        Ok(Batch {
            raw,
            rows: rows as u32,
            slots: rows as u32,
            angles: 2 * rows as u32,
            tokens: layout.tokens.clone(),
            spans: layout.spans.clone(),
            tables: layout.tables.clone(),
            lists: Mutex::default(),
        })
    }

    fn routing(&self, rows: usize, experts: usize, top_k: usize) -> Result<Routing> {
        let assigned = rows * top_k;
        let words = routing::words(assigned, experts);
        Ok(Routing {
            logits: self.buffer_of(rows, experts, Use::Work)?,
            raw: self.gpu.buffer(Use::Work, 4 * words as u64)?,
            grids: self.gpu.buffer(Use::Grid, 24 * (experts as u64 + 1))?,
            assigned: assigned as u32,
            experts,
        })
    }

    fn embed(&self, batch: &Batch, table: &Matrix, x: &mut Buffer) {
        embed::embed(self, batch, table, x);
    }

    fn rmsnorm(&self, p: RmsNorm, x: &Buffer, weight: &Matrix, h: &mut Buffer) {
        rmsnorm::rmsnorm(self, (p.rows, p.dim, p.eps), x, weight, None, h);
    }

    fn qkv(
        &self,
        p: Qkv,
        h: &Buffer,
        w: &Matrix,
        batch: &Batch,
        q: &mut Buffer,
        pages: &mut Pages,
    ) {
        qkv::qkv(self, p, h, w, batch, q, pages);
    }

    fn attention(&self, p: Attention, q: &Buffer, pages: &Pages, batch: &Batch, out: &mut Buffer) {
        attention::attention(self, p, q, pages, batch, out);
    }

    fn linear_add(&self, p: LinearAdd, a: &Buffer, w: &Matrix, x: &mut Buffer) {
        linear_add::linear(self, "linear_add", (p.rows, p.outer), a, w, x, true);
    }

    fn gate_up(&self, p: GateUp, h: &Buffer, w: &Matrix, out: &mut Buffer) {
        gate_up::gate_up(self, p, h, w, out);
    }

    fn route(&self, p: Route, h: &Buffer, w: &Matrix, routing: &mut Routing) {
        route::route(self, p, h, w, routing);
    }

    fn expert_gate_up(
        &self,
        p: Expert,
        h: &Buffer,
        w: &Matrix,
        routing: &Routing,
        out: &mut Buffer,
    ) {
        expert::expert_gate_up(self, p, h, w, routing, out);
    }

    fn expert_down_add(
        &self,
        p: Expert,
        a: &Buffer,
        w: &Matrix,
        routing: &Routing,
        x: &mut Buffer,
    ) {
        expert::expert_down_add(self, p, a, w, routing, x);
    }

    fn pool(&self, dim: u32, spans: &[PoolingSpan], h: &Buffer, out: &mut Buffer) {
        pool::pool(self, dim, spans, h, out);
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
        logits::logits(self, p, rows, x, norm, w, out);
    }

    async fn sample(
        &self,
        vocab: u32,
        draws: &[SampleParams],
        logits: &Buffer,
    ) -> Result<Vec<SampledToken>> {
        sample::sample(self, vocab, draws, logits).await
    }

    async fn search(
        &self,
        p: Search,
        queries: &Buffer,
        corpus: &Buffer,
    ) -> Result<Vec<Vec<Match>>> {
        search::search(self, p, queries, corpus).await
    }

    async fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        let (cols, stride) = (buffer.cols, buffer.stride as usize);
        let bytes = 4 * padding::stored(len, cols, stride) as u64;
        let bytes = self.gpu.read(&buffer.raw, 0, bytes).await?;
        Ok(padding::unpadded(bytemuck::pod_collect_to_vec(&bytes), len, cols, stride))
    }

    async fn read_routing(&self, routing: &Routing, rows: usize) -> Result<Vec<f32>> {
        self.read(&routing.logits, rows * routing.experts).await
    }

    async fn export_pages(&self, pages: &Pages, table: &[u32], tokens: usize) -> Result<Vec<f32>> {
        pages::export(self, pages, table, tokens).await
    }

    fn import_pages(
        &self,
        pages: &mut Pages,
        table: &[u32],
        tokens: usize,
        first: usize,
        values: &[f32],
    ) {
        pages::import(self, pages, table, tokens, first, values);
    }
}
