//! The CUDA backend of `gritlm`. Every operation runs as handwritten kernels, on NVIDIA GPUs from
//! Ampere (compute capability 8.0) on.
//!
//! * [`Cuda`] implements the operations. One Rust file per op picks the kernel variant, sizes the
//!   grid and records the launch of the kernel with the same file stem.
//! * [`source`] holds the table of kernels, [`compile`] runs NVRTC and caches its output,
//!   [`prebuilt`] keeps it in a folder for machines without NVRTC, and [`tune`] chooses the forms and tiles of the matrix products.
//! * [`devices`] lists the GPUs.
//!
//! The driver and NVRTC are loaded at run time, so the crate builds where CUDA is not installed,
//! and opening a GPU then reports what is missing. The residual stream, norms, softmax, router
//! and pooling are f32. The operands of matrix products, queries, keys and values are bf16, and
//! their sums f32. The same input always gives the same bits.

mod attention;
pub mod compile;
mod driver;
mod embed;
mod expert;
mod gate_up;
mod gpu;
mod interpreter;
mod linear_add;
mod logits;
mod matrix;
mod measure;
mod narrow;
pub mod params;
pub mod plan;
mod pool;
pub mod prebuilt;
mod product;
mod qkv;
mod rmsnorm;
mod route;
mod sample;
mod search;
mod send;
pub mod source;
mod tensor;
pub mod tune;

pub use driver::{Device, devices};
pub use matrix::Matrix;

use driver::Driver;
use gpu::{Gpu, Raw, Use};
use gritlm_model::host::{pages, routing, rows};
use gritlm_model::ops::{
    Attention, Compute, Expert, GateUp, KvShape, Layout, LinearAdd, Logits, Match, NO_PAGE, Ops,
    PAGE, PoolingSpan, Qkv, Result, RmsNorm, Route, SampleParams, SampledToken, Search,
    SharedVectors, Span,
};
use gritlm_model::weights::{Dtype, Tensor};
use half::bf16;
use matrix::Ring;
use source::Source;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tune::Form;

/// Options for opening a GPU.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Options {
    /// Number of the GPU, from 0.
    pub ordinal: u32,
    /// Whether to time every launch; see [`Measure::profile`](gritlm_model::measure::Measure::profile).
    pub profile: bool,
    /// Folder of compiled kernels (`gritlm kernels build`) to load instead of compiling with
    /// NVRTC.
    pub kernels: Option<PathBuf>,
    /// Form in which to compute every matrix product, for tests and benches, instead of the one
    /// that [`Form::of`] chooses.
    pub form: Option<Form>,
    /// A user's own sources, each in place of the one with its stem.
    pub own: Vec<Source>,
}

gritlm_model::setters!(Options {
    ordinal: u32,
    profile: bool,
    kernels: Option<PathBuf>,
    form: Option<Form>,
    own: Vec<Source>,
});

/// An opened GPU with its kernels.
pub struct Cuda {
    gpu: Gpu,
    ring: Ring,
    form: Option<Form>,
}

/// Element type of a buffer, decided by the op that writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    F32,
    Bf16,
}

/// Activations, with rows padded to a multiple of 8 columns. The memory always has room for f32.
#[derive(Debug)]
pub struct Buffer {
    raw: Arc<Raw>,
    cols: usize,
    /// Row stride in elements.
    stride: u32,
    format: Format,
}

/// The KV cache: per layer, a buffer of keys and one of values, `(pages, kv_heads, PAGE, width)`
/// bf16.
#[derive(Debug)]
pub struct Pages {
    shape: KvShape,
    layers: Vec<[Arc<Raw>; 2]>,
    /// head_dim padded to a multiple of 8.
    width: u32,
}

/// An uploaded [`Layout`].
#[derive(Debug)]
pub struct Batch {
    /// Token ids, slots, and the cosines and sines of the rotary angles.
    raw: Arc<Raw>,
    rows: u32,
    slots: u32,
    angles: u32,
    spans: Vec<Span>,
    tables: Vec<u32>,
    lists: Mutex<Option<Arc<attention::Lists>>>,
}

/// The experts of each row; expert_sort.cu describes the regions of `raw`.
#[derive(Debug)]
pub struct Routing {
    logits: Buffer,
    raw: Arc<Raw>,
    /// Capacity in assignments, rows · top_k.
    assigned: u32,
    experts: usize,
}

impl Cuda {
    /// Opens a GPU.
    ///
    /// # Errors
    /// When there is no driver or no such GPU, when the GPU is too old, or when its kernels
    /// cannot be loaded or compiled.
    pub fn open(options: &Options) -> Result<Self> {
        let driver = Driver::open(options.ordinal)?;
        let kernels = options.kernels.as_deref();
        let cubins = compile::cubins(driver.device.capability, kernels, &options.own)?;
        let gpu = Gpu::new(driver, cubins, options.profile)?;
        Ok(Self { gpu, ring: Ring::default(), form: options.form })
    }

    /// Returns the GPU that was opened.
    pub fn describe(&self) -> &Device {
        &self.gpu.driver.device
    }

    /// Computes every matrix product in this form from now on; see [`Options::form`].
    pub fn compute_as(&mut self, form: Option<Form>) {
        self.form = form;
    }

    /// Returns the kernels that have been launched: file stems of their sources, and entry points.
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        self.gpu.entries()
    }

    /// Allocates a buffer with undefined contents.
    fn buffer_of(&self, rows: usize, cols: usize) -> Result<Buffer> {
        let stride = cols.next_multiple_of(8);
        let raw = self.gpu.buffer(4 * (rows * stride) as u64)?;
        Ok(Buffer { raw, cols, stride: stride as u32, format: Format::F32 })
    }
}

impl Pages {
    /// Returns the keys and the values of a layer.
    fn layer(&self, layer: u32) -> [&Arc<Raw>; 2] {
        self.layers[layer as usize].each_ref()
    }

    /// Returns the bytes of one page of keys or of values.
    fn page_bytes(&self) -> usize {
        2 * self.shape.kv_heads * PAGE * self.width as usize
    }
}

impl Ops for Cuda {
    type Matrix = Matrix;
    type Buffer = Buffer;
    type Corpus = Buffer;
    type Pages = Pages;
    type Batch = Batch;
    type Routing = Routing;

    fn device(&self) -> String {
        let Device { ordinal, name, capability: (major, minor), .. } = self.describe();
        format!("cuda:{ordinal} ({name}, compute capability {major}.{minor})")
    }

    fn submit(&self) -> Result<()> {
        self.gpu.submit()
    }

    async fn finish(&self) -> Result<()> {
        self.gpu.submit()?;
        self.gpu.driver.wait()
    }

    fn free_memory(&self) -> Option<u64> {
        self.gpu.driver.free_memory().ok().map(|(free, _)| free)
    }

    fn compute(&self) -> Compute {
        Compute::Bf16
    }

    fn page_dtypes(&self) -> &'static [Dtype] {
        &[Dtype::Bf16]
    }

    fn matrix(&self, parts: &[Tensor]) -> Result<Matrix> {
        matrix::upload(&self.gpu, &self.ring, parts)
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Buffer> {
        self.buffer_of(rows, cols)
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Buffer> {
        debug_assert_eq!(rows * cols, values.len());
        let buffer = self.buffer_of(rows, cols)?;
        let padded = rows::padded(values, cols, buffer.stride as usize);
        if !padded.is_empty() {
            self.gpu.write(&buffer.raw, 0, bytemuck::cast_slice(&padded))?;
        }
        Ok(buffer)
    }

    fn corpus(&self, documents: usize, dim: usize, vectors: SharedVectors) -> Result<Buffer> {
        self.upload(documents, dim, (*vectors).as_ref())
    }

    fn pages(&self, shape: KvShape) -> Result<Pages> {
        let KvShape { layers, pages, kv_heads, head_dim, .. } = shape;
        pages::check_heads("CUDA", shape)?;
        let width = head_dim.next_multiple_of(8);
        let bytes = 2 * (pages * kv_heads * PAGE * width) as u64;
        let layer = |_| {
            let keys = self.gpu.buffer_for(Use::Lasting, bytes)?;
            Ok([keys, self.gpu.buffer_for(Use::Lasting, bytes)?])
        };
        let layers = (0..layers).map(layer).collect::<Result<Vec<_>>>()?;
        Ok(Pages { shape, layers, width: width as u32 })
    }

    fn batch(&self, layout: &Layout) -> Result<Batch> {
        // A first batch means that loading is over.
        self.ring.release();
        let rows = layout.tokens.len();
        Ok(Batch {
            raw: self.gpu.send(bytemuck::cast_slice(&layout.words()))?,
            rows: rows as u32,
            slots: rows as u32,
            angles: 2 * rows as u32,
            spans: layout.spans.clone(),
            tables: layout.tables.clone(),
            lists: Mutex::default(),
        })
    }

    fn routing(&self, rows: usize, experts: usize, top_k: usize) -> Result<Routing> {
        let assigned = rows * top_k;
        let words = routing::words(assigned, experts);
        Ok(Routing {
            logits: self.buffer_of(rows, experts)?,
            raw: self.gpu.buffer(4 * words as u64)?,
            assigned: assigned as u32,
            experts,
        })
    }

    fn embed(&self, batch: &Batch, table: &Matrix, x: &mut Buffer) {
        x.format = Format::F32;
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
        linear_add::linear_add(self, p, a, w, x);
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
        out.format = Format::F32;
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
        out.format = Format::F32;
        logits::logits(self, p, rows, x, norm, w, out);
    }

    async fn sample(
        &self,
        vocab: u32,
        draws: &[SampleParams],
        logits: &Buffer,
    ) -> Result<Vec<SampledToken>> {
        sample::sample(self, vocab, draws, logits)
    }

    async fn search(
        &self,
        p: Search,
        queries: &Buffer,
        corpus: &Buffer,
    ) -> Result<Vec<Vec<Match>>> {
        search::search(self, p, queries, corpus)
    }

    async fn read(&self, buffer: &Buffer, len: usize) -> Result<Vec<f32>> {
        let (cols, stride) = (buffer.cols, buffer.stride as usize);
        let values = rows::stored(len, cols, stride);
        let stored: Vec<f32> = match buffer.format {
            Format::F32 => {
                let bytes = self.gpu.read(&buffer.raw, 0, 4 * values as u64)?;
                bytes.as_chunks().0.iter().map(|&word| f32::from_ne_bytes(word)).collect()
            }
            Format::Bf16 => widened(&self.gpu.read(&buffer.raw, 0, 2 * values as u64)?),
        };
        Ok(rows::unpadded(stored, len, cols, stride))
    }

    async fn read_routing(&self, routing: &Routing, rows: usize) -> Result<Vec<f32>> {
        self.read(&routing.logits, rows * routing.experts).await
    }

    async fn export_pages(&self, pages: &Pages, table: &[u32], tokens: usize) -> Result<Vec<f32>> {
        let KvShape { layers, kv_heads, head_dim, .. } = pages.shape;
        let page = pages.page_bytes();
        let used = &table[..tokens.div_ceil(PAGE)];
        let mut out = Vec::with_capacity(layers * 2 * kv_heads * tokens * head_dim);
        let together = self.gpu.buffer((page * used.len()) as u64)?;
        for raw in pages.layers.iter().flatten() {
            for (n, &number) in used.iter().enumerate() {
                debug_assert_ne!(number, NO_PAGE);
                let (from, to) = ((number as usize * page) as u64, (n * page) as u64);
                self.gpu.copy((raw, from), (&together, to), page as u64)?;
            }
            let values = widened(&self.gpu.read(&together, 0, (page * used.len()) as u64)?);
            pages::gather(pages.shape, pages.width as usize, tokens, &values, &mut out);
        }
        Ok(out)
    }

    fn import_pages(
        &self,
        pages: &mut Pages,
        table: &[u32],
        tokens: usize,
        first: usize,
        values: &[f32],
    ) {
        let KvShape { kv_heads, head_dim, .. } = pages.shape;
        let (bytes, width) = (pages.page_bytes(), pages.width as usize);
        let mut page = vec![bf16::ZERO; bytes / 2];
        let each = kv_heads * tokens * head_dim;
        let planes = pages.layers.iter().flatten().skip(first);
        for (raw, plane) in planes.zip(values.chunks_exact(each.max(1))) {
            for (n, &number) in table[..tokens.div_ceil(PAGE)].iter().enumerate() {
                pages::scatter(pages.shape, width, (n, tokens), plane, &mut page, bf16::from_f32);
                let at = (number as usize * bytes) as u64;
                if let Err(problem) = self.gpu.write(raw, at, bytemuck::cast_slice(&page)) {
                    return self.gpu.fail(problem);
                }
            }
        }
    }
}

/// Converts bf16 values to f32.
fn widened(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect()
}
