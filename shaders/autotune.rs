//! Measures the tiles of an adapter once, and stores them in the cache folder.
//!
//! Each of the three choices (`matmul`, `matvec`, `attention`) is timed alone on a shape of its
//! own, since none depends on the others but for `shuffle`, which `matmul` decides. A file that
//! cannot be read, or is of another version, is ignored: the adapter then has its defaults.

use crate::tune::Tiles;
use crate::{Batch, Buffer, Wgpu};
use gritlm_model::files::{cache_folder, keep};
use gritlm_model::ops::{Attention, KvShape, Layout, LinearAdd, Mask, Ops, PAGE, Result, Span};
use gritlm_model::weights::{Dtype, Tensor};
use std::path::PathBuf;
use std::sync::PoisonError;
use web_time::Instant;

/// Timed runs of each candidate, of which the shortest counts.
const REPEATS: usize = 3;

/// Returns the file of an adapter's tiles.
fn file(label: &str) -> Option<PathBuf> {
    let name: String =
        label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    Some(cache_folder()?.join("tiles").join(format!("{name}.json")))
}

/// Returns the tiles that were measured for this adapter before, if they are still among the
/// choices.
pub(crate) fn kept(label: &str) -> Option<Tiles> {
    let tiles: Tiles = serde_json::from_slice(&std::fs::read(file(label)?).ok()?).ok()?;
    Tiles::all().contains(&tiles).then_some(tiles)
}

impl Wgpu {
    /// Measures every choice, uses the fastest of each and stores them for later starts.
    ///
    /// # Errors
    /// When the device has no room for a few matrices, or is lost.
    pub async fn tune(&mut self) -> Result<Tiles> {
        let fits = |t: &Tiles| t.workgroup_bytes() <= self.gpu.adapter.workgroup_bytes;
        let all: Vec<Tiles> = Tiles::all().into_iter().filter(fits).collect();
        let (dim, rows) = (1024, 128);
        let weights: Vec<half::bf16> =
            (0..2 * dim * dim).map(noise).map(half::bf16::from_f32).collect();
        let w = Tensor::from_bytes(Dtype::Bf16, &[2 * dim, dim], bytemuck::cast_slice(&weights));
        let w = self.matrix(&[w])?;
        let values: Vec<f32> = (0..rows * dim).map(noise).collect();
        let a = self.upload(rows, dim, &values)?;
        let mut x = self.upload(rows, 2 * dim, &vec![0.0; rows * 2 * dim])?;
        let mut product = |gpu: &Self, rows: u32| {
            let p = LinearAdd { rows, inner: dim as u32, outer: 2 * dim as u32 };
            gpu.linear_add(p, &a, &w, &mut x);
        };
        let same = |a: &Tiles, b: &Tiles| {
            (a.matmul, a.staged, a.shuffle) == (b.matmul, b.staged, b.shuffle)
        };
        let best = self.fastest(&all, same, &mut |gpu| product(gpu, rows as u32)).await?;
        let (matmul, staged) = (best.matmul, best.staged);
        let same = |a: &Tiles, b: &Tiles| a.lanes == b.lanes;
        let lanes = self.fastest(&all, same, &mut |gpu| product(gpu, 1)).await?.lanes;

        let tokens = 4 * PAGE;
        let (heads, head_dim) = (8, 128);
        let dtype = Dtype::F32;
        let shape = KvShape { layers: 1, pages: 4, kv_heads: 2, head_dim, dtype };
        let pages = self.pages(shape)?;
        let count = tokens as u32;
        let batch = self.batch(&Layout {
            tokens: vec![0; tokens],
            positions: (0..count).collect(),
            slots: (0..count).collect(),
            spans: vec![Span {
                row: 0,
                rows: count,
                past: 0,
                table: 0,
                mask: Mask::Causal { window: None },
            }],
            tables: (0..4).collect(),
            frequencies: vec![1.0; head_dim / 2],
        })?;
        let width = heads * head_dim;
        let values: Vec<f32> = (0..tokens * width).map(noise).collect();
        let q = self.upload(tokens, width, &values)?;
        let mut out: Buffer = self.buffer(tokens, width)?;
        let p = Attention {
            heads: heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: head_dim as u32,
            layer: 0,
        };
        let same = |a: &Tiles, b: &Tiles| (a.attention, a.shuffle) == (b.attention, b.shuffle);
        let mut attend = |gpu: &Self| {
            batch.forget_lists();
            gpu.attention(p, &q, &pages, &batch, &mut out);
        };
        // `shuffle` applies to both. Where they differ, the product decides, because it is most
        // of a step.
        let both: Vec<Tiles> = all.into_iter().filter(|t| t.shuffle == best.shuffle).collect();
        let attention = self.fastest(&both, same, &mut attend).await?.attention;
        let tiles = Tiles { matmul, staged, shuffle: best.shuffle, lanes, attention };
        self.tiles = tiles;
        // A full disk costs only another measurement.
        if let (Some(file), Ok(text)) =
            (file(&self.gpu.adapter.label()), serde_json::to_vec(&tiles))
        {
            let _ = keep(&file, &text);
        }
        Ok(tiles)
    }

    /// Returns the fastest candidate. Of candidates that are the `same`, only the first is tried.
    async fn fastest(
        &mut self,
        all: &[Tiles],
        same: impl Fn(&Tiles, &Tiles) -> bool,
        run: &mut dyn FnMut(&Self),
    ) -> Result<Tiles> {
        let mut tried: Vec<(Tiles, f64)> = Vec::new();
        for tiles in all {
            if tried.iter().any(|(t, _)| same(t, tiles)) {
                continue;
            }
            self.tiles = *tiles;
            let mut best = f64::INFINITY;
            // The first run compiles and is not timed.
            for repeat in 0..=REPEATS {
                let start = Instant::now();
                run(self);
                self.finish().await?;
                if repeat > 0 {
                    best = best.min(start.elapsed().as_secs_f64());
                }
            }
            tried.push((*tiles, best));
        }
        let fastest = tried.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        Ok(fastest.map_or(self.tiles, |(tiles, _)| tiles))
    }
}

impl Batch {
    /// Drops the tile lists, so that the next call builds them for other tiles.
    fn forget_lists(&self) {
        *self.lists.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Returns a pseudo-random number in [−1, 1): zeros would be faster than real weights.
fn noise(i: usize) -> f32 {
    let x = (i as u32).wrapping_mul(0x9E37_79B9) ^ 0x5bd1_e995;
    (x.wrapping_mul(0x85eb_ca6b) >> 8) as f32 / (1 << 23) as f32 - 1.0
}
