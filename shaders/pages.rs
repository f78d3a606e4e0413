//! The KV cache: pages in f32 or in a smaller type, and what is read from them and written to them by
//! the host; see pages.wgsl.

use crate::Wgpu;
use crate::gpu::{Raw, Use};
use crate::shader;
use gritlm_model::format::{decode, encode};
use gritlm_model::host::pages;
pub(crate) use gritlm_model::host::pages::DTYPES;
use gritlm_model::ops::{DeviceError, KvShape, NO_PAGE, PAGE, Result};
use gritlm_model::weights::Dtype;
use std::sync::Arc;

/// The shaders have pages of 128 tokens.
const _: () = assert!(PAGE == 128);

/// The KV cache: per layer, a buffer of keys and one of values.
#[derive(Debug)]
pub struct Pages {
    shape: KvShape,
    layers: Vec<[Arc<Raw>; 2]>,
    pub(crate) stored: Stored,
}

/// How a cached head is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: Dtype,
    /// Vectors of 4 columns in a head, padding included.
    pub(crate) vectors: u32,
    /// Vectors and columns of a part: all in f32 and q8_0, else half.
    pub(crate) side: u32,
    pub(crate) width: u32,
    /// Words of a head's vector, and of its scales.
    pub(crate) words: u32,
    pub(crate) scales: u32,
}

/// Returns the constant that tells a shader the type of pages.
pub(crate) fn constants(dtype: Dtype) -> Vec<(&'static str, f64)> {
    shader::stored(dtype).into_iter().filter(|(name, _)| *name == "DTYPE").collect()
}

impl Stored {
    fn new(dtype: Dtype, head_dim: u32) -> Self {
        let whole = head_dim.div_ceil(4);
        let half = (head_dim / 2).div_ceil(4);
        let of = |vectors, side, width, words, scales| Self {
            dtype,
            vectors,
            side,
            width,
            words,
            scales,
        };
        match dtype {
            Dtype::F32 => of(whole, whole, head_dim, 4 * whole, 0),
            Dtype::F16 | Dtype::Bf16 => of(2 * half, half, head_dim / 2, 4 * half, 0),
            _ => of(whole, whole, head_dim, whole, head_dim.div_ceil(64)),
        }
    }

    pub(crate) fn constants(&self) -> Vec<(&'static str, f64)> {
        constants(self.dtype)
    }

    /// Returns the number that stands for the type in the shaders.
    pub(crate) fn code(&self) -> u32 {
        self.constants()[0].1 as u32
    }

    /// Returns the words of a head's tokens in a page: their vectors, then their scales.
    fn head(&self) -> usize {
        PAGE * (self.words + self.scales) as usize
    }

    /// Writes the vectors of a head, `(PAGE, head_dim)` encoded, into its words. Padding stays as it
    /// is.
    fn arrange(&self, bytes: &[u8], words: &mut [u32]) {
        let (vectors, scales) = words.split_at_mut(PAGE * self.words as usize);
        let each = bytes.len() / PAGE;
        for (slot, bytes) in bytes.chunks_exact(each).enumerate() {
            let words = &mut vectors[slot * self.words as usize..][..self.words as usize];
            match self.dtype {
                Dtype::F32 => {
                    let bytes = bytes.as_chunks().0;
                    words.iter_mut().zip(bytes).for_each(|(w, b)| *w = u32::from_le_bytes(*b));
                }
                Dtype::F16 | Dtype::Bf16 => {
                    let (low, high) = bytes.split_at(each / 2);
                    let pairs = low.as_chunks().0.iter().zip(high.as_chunks().0);
                    for (word, (&[a, b], &[c, d])) in words.iter_mut().zip(pairs) {
                        *word = u32::from_le_bytes([a, b, c, d]);
                    }
                }
                _ => {
                    let scales = &mut scales[slot * self.scales as usize..];
                    for (n, block) in bytes.as_chunks::<34>().0.iter().enumerate() {
                        let scale = u32::from(u16::from_le_bytes([block[0], block[1]]));
                        let (word, shift) = (&mut scales[n / 2], 16 * (n % 2));
                        *word = *word & !(0xffff << shift) | scale << shift;
                        for (i, word) in words[8 * n..8 * n + 8].iter_mut().enumerate() {
                            let code = |at: usize| block[2 + i / 4 * 16 + i % 4 + 4 * at];
                            *word = u32::from_le_bytes([code(0), code(1), code(2), code(3)]);
                        }
                    }
                }
            }
        }
    }

    /// Undoes [`Stored::arrange`].
    fn encoded(&self, words: &[u32], bytes: &mut [u8]) {
        let (vectors, scales) = words.split_at(PAGE * self.words as usize);
        let each = bytes.len() / PAGE;
        for (slot, bytes) in bytes.chunks_exact_mut(each).enumerate() {
            let words = &vectors[slot * self.words as usize..][..self.words as usize];
            match self.dtype {
                Dtype::F32 => {
                    let bytes = bytes.as_chunks_mut().0;
                    bytes.iter_mut().zip(words).for_each(|(b, w)| *b = w.to_le_bytes());
                }
                Dtype::F16 | Dtype::Bf16 => {
                    let (low, high) = bytes.split_at_mut(each / 2);
                    let pairs = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0);
                    for (word, (low, high)) in words.iter().zip(pairs) {
                        let [a, b, c, d] = word.to_le_bytes();
                        (*low, *high) = ([a, b], [c, d]);
                    }
                }
                _ => {
                    let scales = &scales[slot * self.scales as usize..];
                    for (n, block) in bytes.as_chunks_mut::<34>().0.iter_mut().enumerate() {
                        let scale = (scales[n / 2] >> (16 * (n % 2))) as u16;
                        block[..2].copy_from_slice(&scale.to_le_bytes());
                        for (i, word) in words[8 * n..8 * n + 8].iter().enumerate() {
                            for (at, code) in word.to_le_bytes().into_iter().enumerate() {
                                block[2 + i / 4 * 16 + i % 4 + 4 * at] = code;
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Pages {
    /// Returns the keys and the values of a layer.
    pub(crate) fn layer(&self, layer: u32) -> [&Arc<Raw>; 2] {
        self.layers[layer as usize].each_ref()
    }

    /// Returns the bytes of one page of keys or of values.
    fn page_bytes(&self) -> u64 {
        4 * (self.shape.kv_heads * self.stored.head()) as u64
    }

    /// Returns the values of one page, `(kv_heads, PAGE, head_dim)`, that are in its words.
    fn decode(&self, words: &[u32], values: &mut [f32]) {
        let heads = words.chunks_exact(self.stored.head());
        let each = PAGE * self.shape.head_dim;
        let mut bytes = vec![0; self.shape.dtype.bytes(each)];
        for (words, values) in heads.zip(values.chunks_exact_mut(each)) {
            self.stored.encoded(words, &mut bytes);
            decode(self.shape.dtype, &bytes, values);
        }
    }

    /// Writes the values of one page into its words.
    fn encode(&self, values: &[f32], words: &mut [u32]) {
        let heads = words.chunks_exact_mut(self.stored.head());
        let each = PAGE * self.shape.head_dim;
        let mut bytes = vec![0; self.shape.dtype.bytes(each)];
        for (words, values) in heads.zip(values.chunks_exact(each)) {
            encode(self.shape.dtype, values, &mut bytes);
            self.stored.arrange(&bytes, words);
        }
    }
}

pub(crate) fn pages(device: &Wgpu, shape: KvShape) -> Result<Pages> {
    let KvShape { layers, pages, kv_heads, head_dim, dtype } = shape;
    pages::check_heads("WGSL", shape)?;
    let stored = Stored::new(dtype, head_dim as u32);
    let (gpu, page) = (&device.gpu, 4 * (kv_heads * stored.head()) as u64);
    let bytes = pages as u64 * page;
    if bytes > gpu.largest() {
        return Err(DeviceError(format!(
            "{} binds at most {} MiB, and a layer's keys of {} KV tokens take {} MiB; \
             `kv_tokens` {} would fit",
            gpu.adapter.label(),
            gpu.largest() >> 20,
            pages * PAGE,
            bytes >> 20,
            gpu.largest() / page * PAGE as u64
        )));
    }
    let layer = |_| Ok([gpu.buffer(Use::Lasting, bytes)?, gpu.buffer(Use::Lasting, bytes)?]);
    let layers = (0..layers).map(layer).collect::<Result<Vec<_>>>()?;
    Ok(Pages { shape, layers, stored })
}

pub(crate) async fn export(
    device: &Wgpu,
    pages: &Pages,
    table: &[u32],
    tokens: usize,
) -> Result<Vec<f32>> {
    let KvShape { layers, kv_heads, head_dim, .. } = pages.shape;
    let (gpu, page_bytes) = (&device.gpu, pages.page_bytes());
    let used = &table[..tokens.div_ceil(PAGE)];
    let mut out = Vec::with_capacity(layers * 2 * kv_heads * tokens * head_dim);
    let page = kv_heads * PAGE * head_dim;
    let mut values = vec![0.0; used.len() * page];
    for raw in pages.layers.iter().flatten() {
        let bytes = page_bytes * used.len() as u64;
        let back = gpu.buffer(Use::Back, bytes)?;
        for (n, &page) in (0..).zip(used) {
            debug_assert_ne!(page, NO_PAGE);
            gpu.copy(raw, u64::from(page) * page_bytes, &back, n * page_bytes, page_bytes);
        }
        let bytes = if bytes == 0 { Vec::new() } else { gpu.map(&back, bytes).await? };
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
        let stored = words.chunks_exact(page_bytes as usize / 4);
        stored.zip(values.chunks_exact_mut(page)).for_each(|(words, values)| {
            pages.decode(words, values);
        });
        pages::gather(pages.shape, head_dim, tokens, &values, &mut out);
    }
    Ok(out)
}

pub(crate) fn import(
    device: &Wgpu,
    pages: &Pages,
    table: &[u32],
    tokens: usize,
    first: usize,
    values: &[f32],
) {
    let KvShape { kv_heads, head_dim, .. } = pages.shape;
    let (gpu, page_bytes) = (&device.gpu, pages.page_bytes());
    // Recorded launches may still use the pages.
    if let Err(problem) = gpu.submit() {
        return gpu.fail(problem);
    }
    let mut page = vec![0.0; kv_heads * PAGE * head_dim];
    let mut words = vec![0u32; page_bytes as usize / 4];
    let each = kv_heads * tokens * head_dim;
    let planes = pages.layers.iter().flatten().skip(first);
    for (raw, plane) in planes.zip(values.chunks_exact(each.max(1))) {
        for (n, &number) in table[..tokens.div_ceil(PAGE)].iter().enumerate() {
            pages::scatter(pages.shape, head_dim, (n, tokens), plane, &mut page, |value| value);
            pages.encode(&page, &mut words);
            gpu.write(raw, u64::from(number) * page_bytes, bytemuck::cast_slice(&words));
        }
    }
}
