//! The CPU backend: a fast implementation in Rust for machines without a GPU.
//! [`crate::reference`] specifies what each operation computes, in f64 and without SIMD.
//!
//! Each operation has a file of its own. All compute in f32 and use the weights in place, as the
//! checkpoint stores them. Only the matrix product and attention are tuned, with SIMD; see
//! `matmul.rs` and `attention.rs`. The product adds each output's terms in an order that does not
//! depend on the number of rows, and no other operation looks beyond its own row or sequence. A
//! sequence's results are therefore bit-identical whatever else is in its batch. Matrices that are
//! made to be multiplied in 8 bits or in bf16 are the exception, because that depends on the number
//! of rows; see `int8.rs` and `bf16/mod.rs`.

mod adamw;
mod attention;
mod attention_backward;
mod backward;
mod bf16;
mod contrastive;
mod cross_entropy;
mod embed;
mod embed_backward;
mod exp;
mod expert;
mod expert_backward;
mod gate_up;
mod gate_up_backward;
mod int8;
mod linear_add;
mod linear_add_backward;
mod logits;
mod matmul;
mod matvec;
mod measure;
pub(crate) mod merge;
mod merge_backward;
mod outer;
mod pages;
mod pool;
mod pool_backward;
mod prefetch;
mod qkv;
mod qkv_backward;
mod rmsnorm;
mod rmsnorm_backward;
mod route;
mod route_backward;
mod sample;
mod search;
mod shared;
mod turn;
mod unpack;
mod vectors;

use crate::ops::{
    Attention, Compute, Expert, GateUp, KvShape, Layout, LinearAdd, Logits, Match, NO_PAGE, Ops,
    PAGE, PoolingSpan, Products, Qkv, Result, RmsNorm, Route, SampleParams, SampledToken, Search,
    SharedVectors,
};
use crate::weights::{Dtype, Tensor, decode};
pub use pages::Pages;
pub use sample::draw;
use std::ops::Range;

/// The CPU backend. It runs on rayon's thread pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cpu;

/// Matrices of equal width, stacked by rows, as stored; or one in f32 that training writes.
#[derive(Clone, Debug)]
pub struct Matrix {
    parts: Vec<Tensor>,
    /// The values of a matrix that can be written, which has no parts.
    own: Vec<f32>,
    /// First row of each part, and the number of rows after the last.
    starts: Vec<usize>,
    /// Bytes of a row of each part.
    widths: Vec<usize>,
    cols: usize,
    /// In which numbers it is multiplied.
    products: Products,
}

impl Matrix {
    /// Stacks matrices by rows.
    ///
    /// # Panics
    /// When their widths differ, which the checks of a checkpoint's shapes rule out.
    pub fn new(parts: &[Tensor]) -> Self {
        let cols = parts.first().map_or(0, |p| p.matrix_shape().1);
        assert!(parts.iter().all(|p| p.matrix_shape().1 == cols), "stacked widths differ");
        let mut starts = vec![0];
        for part in parts {
            starts.push(starts[starts.len() - 1] + part.matrix_shape().0);
        }
        let widths = parts.iter().map(|part| part.dtype().bytes(cols)).collect();
        Self {
            parts: parts.to_vec(),
            own: Vec::new(),
            starts,
            widths,
            cols,
            products: Products::all(Compute::F32),
        }
    }

    /// Returns row `r` as stored.
    fn row(&self, r: usize) -> (Dtype, &[u8]) {
        if !self.own.is_empty() {
            return (Dtype::F32, bytemuck::cast_slice(&self.own[r * self.cols..][..self.cols]));
        }
        let part = self.starts.partition_point(|&s| s <= r) - 1;
        let (tensor, width) = (&self.parts[part], self.widths[part]);
        let start = (r - self.starts[part]) * width;
        (tensor.dtype(), &tensor.bytes()[start..start + width])
    }

    /// Adds rows to a list, as stored.
    fn rows<'a>(&'a self, rows: Range<usize>, all: &mut matmul::Rows<'a>) {
        if !self.own.is_empty() {
            return all.extend(rows.map(|r| self.row(r)));
        }
        for ((part, &width), starts) in
            self.parts.iter().zip(&self.widths).zip(self.starts.windows(2))
        {
            let here = |row: usize| (row.clamp(starts[0], starts[1]) - starts[0]) * width;
            let stored = part.bytes()[here(rows.start)..here(rows.end)].chunks_exact(width);
            all.extend(stored.map(|row| (part.dtype(), row)));
        }
    }

    /// Decodes some columns of row `r` to f32.
    fn part(&self, r: usize, columns: Range<usize>, out: &mut [f32]) {
        if !self.own.is_empty() {
            return out.copy_from_slice(&self.own[r * self.cols..][columns]);
        }
        let (dtype, bytes) = self.row(r);
        if !dtype.is_quantized() {
            return decode(
                dtype,
                &bytes[dtype.bytes(columns.start)..dtype.bytes(columns.end)],
                out,
            );
        }
        let (size, mut values) = (dtype.block(), [0.0; 256]);
        for block in columns.start / size..columns.end.div_ceil(size) {
            let (values, all) = (&mut values[..size], block * size..(block + 1) * size);
            decode(dtype, &bytes[dtype.bytes(all.start)..dtype.bytes(all.end)], values);
            let here = all.start.max(columns.start)..all.end.min(columns.end);
            out[here.start - columns.start..here.end - columns.start]
                .copy_from_slice(&values[here.start - all.start..here.end - all.start]);
        }
    }

    /// Decodes row `r` to f32.
    fn row_f32(&self, r: usize, out: &mut [f32]) {
        let (dtype, bytes) = self.row(r);
        decode(dtype, bytes, out);
    }
}

/// A layout and the RoPE angles of its rows.
#[derive(Debug)]
pub struct Batch {
    layout: Layout,
    /// Cosine and sine per row and pair, `(rows, head_dim / 2)`.
    angles: Vec<(f32, f32)>,
}

/// The experts of each row.
#[derive(Debug, Default)]
pub struct Routing {
    /// Router logits before the softmax, `(rows, experts)`.
    logits: Vec<f32>,
    /// (expert, row, weight), sorted by expert, then row: the order of the expert buffers.
    assigned: Vec<(usize, usize, f32)>,
}

impl Routing {
    /// Returns the assignments of each expert that has any, and where they begin.
    fn groups(&self) -> impl Iterator<Item = (usize, &[(usize, usize, f32)])> {
        let groups = self.assigned.chunk_by(|a, b| a.0 == b.0);
        groups.scan(0, |next, group| {
            let at = *next;
            *next += group.len();
            Some((at, group))
        })
    }
}

impl Ops for Cpu {
    type Matrix = Matrix;
    type Buffer = Vec<f32>;
    type Corpus = SharedVectors;
    type Pages = Pages;
    type Batch = Batch;
    type Routing = Routing;

    const THREADS: bool = true;

    fn device(&self) -> String {
        format!("cpu ({}, {} threads)", matmul::arch(), rayon::current_num_threads())
    }

    fn takes(&self, _: Dtype) -> bool {
        true
    }

    fn free_memory(&self) -> Option<u64> {
        // Only Linux has this file. MemAvailable is in KiB and includes reclaimable page cache.
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok().map(|kib: u64| kib << 10)
    }

    fn in_place(&self) -> bool {
        true
    }

    fn matrix(&self, parts: &[Tensor]) -> Result<Matrix> {
        Ok(Matrix::new(parts))
    }

    fn products(&self, asked: Option<Compute>, quantized: bool) -> Option<Products> {
        use Compute::{Bf16, F16, F32, Int8};
        let fastest = |faster: bool| if faster { Bf16 } else { F32 };
        let (few, many) = bf16::faster();
        let (few, many) = match asked {
            None if quantized => (Int8, fastest(many)),
            None => (fastest(few), fastest(many)),
            Some(Int8) if quantized => (Int8, F32),
            Some(F32 | Int8) => (F32, F32),
            Some(Bf16) => (fastest(few), Bf16),
            Some(F16) => return None,
        };
        Some(Products { few, many })
    }

    fn matrix_in(&self, products: Products, parts: &[Tensor]) -> Result<Matrix> {
        Ok(Matrix { products, ..Matrix::new(parts) })
    }

    fn buffer(&self, rows: usize, cols: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; rows * cols])
    }

    fn upload(&self, rows: usize, cols: usize, values: &[f32]) -> Result<Vec<f32>> {
        debug_assert_eq!(rows * cols, values.len());
        Ok(values.to_vec())
    }

    fn corpus(&self, _: usize, _: usize, vectors: SharedVectors) -> Result<SharedVectors> {
        Ok(vectors)
    }

    fn page_dtypes(&self) -> &'static [Dtype] {
        &pages::DTYPES
    }

    fn pages(&self, shape: KvShape) -> Result<Pages> {
        Pages::new(shape)
    }

    fn batch(&self, layout: &Layout) -> Result<Batch> {
        Ok(Batch { angles: qkv::angles(layout), layout: layout.clone() })
    }

    fn routing(&self, _rows: usize, _experts: usize, _top_k: usize) -> Result<Routing> {
        Ok(Routing::default())
    }

    fn embed(&self, batch: &Batch, table: &Matrix, x: &mut Vec<f32>) {
        embed::embed(&batch.layout.tokens, table, x);
    }

    fn rmsnorm(&self, p: RmsNorm, x: &Vec<f32>, weight: &Matrix, h: &mut Vec<f32>) {
        rmsnorm::rmsnorm(p, x, weight, h);
    }

    fn qkv(
        &self,
        p: Qkv,
        h: &Vec<f32>,
        w: &Matrix,
        batch: &Batch,
        q: &mut Vec<f32>,
        pages: &mut Pages,
    ) {
        qkv::qkv(p, h, w, batch, q, pages);
    }

    fn attention(
        &self,
        p: Attention,
        q: &Vec<f32>,
        pages: &Pages,
        batch: &Batch,
        out: &mut Vec<f32>,
    ) {
        attention::attention(p, q, pages, &batch.layout, out, None);
    }

    fn linear_add(&self, p: LinearAdd, a: &Vec<f32>, w: &Matrix, x: &mut Vec<f32>) {
        linear_add::linear_add(p, a, w, x);
    }

    fn gate_up(&self, p: GateUp, h: &Vec<f32>, w: &Matrix, out: &mut Vec<f32>) {
        gate_up::gate_up(p, h, w, out);
    }

    fn route(&self, p: Route, h: &Vec<f32>, w: &Matrix, routing: &mut Routing) {
        route::route(p, h, w, routing);
    }

    fn expert_gate_up(
        &self,
        p: Expert,
        h: &Vec<f32>,
        w: &Matrix,
        routing: &Routing,
        out: &mut Vec<f32>,
    ) {
        expert::expert_gate_up(p, h, w, routing, out, None);
    }

    fn expert_down_add(
        &self,
        p: Expert,
        a: &Vec<f32>,
        w: &Matrix,
        routing: &Routing,
        x: &mut Vec<f32>,
    ) {
        expert::expert_down_add(p, a, w, routing, x);
    }

    fn pool(&self, dim: u32, spans: &[PoolingSpan], h: &Vec<f32>, out: &mut Vec<f32>) {
        pool::pool(dim, spans, h, out);
    }

    fn logits(
        &self,
        p: Logits,
        rows: &[u32],
        x: &Vec<f32>,
        norm: &Matrix,
        w: &Matrix,
        out: &mut Vec<f32>,
    ) {
        logits::logits(p, rows, x, norm, w, out);
    }

    async fn sample(
        &self,
        vocab: u32,
        draws: &[SampleParams],
        logits: &Vec<f32>,
    ) -> Result<Vec<SampledToken>> {
        Ok(sample::sample(vocab, draws, logits))
    }

    async fn search(
        &self,
        p: Search,
        queries: &Vec<f32>,
        corpus: &SharedVectors,
    ) -> Result<Vec<Vec<Match>>> {
        Ok(search::search(p, queries, (**corpus).as_ref()))
    }

    async fn read(&self, buffer: &Vec<f32>, len: usize) -> Result<Vec<f32>> {
        Ok(buffer[..len].to_vec())
    }

    async fn read_routing(&self, routing: &Routing, _rows: usize) -> Result<Vec<f32>> {
        Ok(routing.logits.clone())
    }

    async fn export_pages(&self, pages: &Pages, table: &[u32], tokens: usize) -> Result<Vec<f32>> {
        let s = pages.shape;
        let mut out = Vec::with_capacity(s.layers * 2 * s.kv_heads * tokens * s.head_dim);
        let mut room = Vec::new();
        each_vector(s, 0..2 * s.layers, table, tokens, |layer, value, slot, head| {
            let from = if value { &pages.values } else { &pages.keys };
            out.extend_from_slice(from.read(pages.slot(layer, slot, head), &mut room));
        });
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
        let mut vectors = values.chunks_exact(pages.shape.head_dim);
        let planes = vectors.len() / (pages.shape.kv_heads * tokens).max(1);
        each_vector(
            pages.shape,
            first..first + planes,
            table,
            tokens,
            |layer, value, slot, head| {
                let range = pages.slot(layer, slot, head);
                let to = if value { &mut pages.values } else { &mut pages.keys };
                if let Some(vector) = vectors.next() {
                    to.write(range, vector);
                }
            },
        );
    }
}

/// Visits the key and value vectors of some planes of a sequence in the order of an exported
/// cache, calling `f(layer, is_value, slot, head)`.
fn each_vector(
    s: KvShape,
    planes: Range<usize>,
    table: &[u32],
    tokens: usize,
    mut f: impl FnMut(usize, bool, usize, usize),
) {
    for plane in planes {
        for head in 0..s.kv_heads {
            for t in 0..tokens {
                debug_assert_ne!(table[t / PAGE], NO_PAGE);
                let slot = table[t / PAGE] as usize * PAGE + t % PAGE;
                f(plane / 2, plane % 2 == 1, slot, head);
            }
        }
    }
}
