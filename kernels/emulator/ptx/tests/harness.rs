//! What the tests run texts with: memory, tensor maps, numbers.

use crate::{Counts, Error, Global, Launch, parse};

/// The device's memory: buffers that the test holds.
pub(crate) struct Memory(Vec<Vec<u64>>);

impl Global for Memory {
    fn allocation(&self, at: u64) -> Option<(u64, u64)> {
        self.0.iter().find_map(|buffer| {
            let first = buffer.as_ptr() as u64;
            let end = first + 8 * buffer.len() as u64;
            (first <= at && at < end).then_some((first, end))
        })
    }
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns the address of a new buffer with these bytes.
    pub(crate) fn put(&mut self, bytes: &[u8]) -> u64 {
        let word = |part: &[u8]| {
            let mut word = [0xff; 8];
            word[..part.len()].copy_from_slice(part);
            u64::from_le_bytes(word)
        };
        // Nothing else may lie close behind it.
        let mut buffer = Vec::with_capacity(bytes.len() / 8 + 1024);
        buffer.extend(bytes.chunks(8).map(word));
        self.0.push(buffer);
        self.0.last().unwrap().as_ptr() as u64
    }

    pub(crate) fn get_f32(&self, at: u64, count: usize) -> Vec<f32> {
        let buffer = self.0.iter().find(|buffer| buffer.as_ptr() as u64 == at).unwrap();
        let bytes: Vec<u8> = buffer.iter().flat_map(|word| word.to_le_bytes()).collect();
        let numbers = bytes.chunks_exact(4).take(count);
        numbers.map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
    }
}

/// Returns small numbers, which bf16 holds, from a seed.
pub(crate) fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut x = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as f32 / 64.0 - 2.0
    };
    (0..count).map(next).collect()
}

/// Returns the bytes of numbers as bf16, cut.
pub(crate) fn bf16(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Returns a tensor map of bf16: sizes and box innermost first, strides in bytes from the second
/// on.
pub(crate) fn map(at: u64, sizes: &[u64], strides: &[u64], sides: &[u32], swizzle: u64) -> Vec<u8> {
    let mut words = [0u64; 16];
    words[0] = at;
    words[1] = sizes.len() as u64 | 2 << 8 | swizzle << 16;
    words[2..7].fill(1);
    words[2..2 + sizes.len()].copy_from_slice(sizes);
    words[7..7 + strides.len()].copy_from_slice(strides);
    for i in 0..5 {
        let side = sides.get(i).copied().unwrap_or(1);
        words[11 + i / 2] |= u64::from(side) << (i % 2 * 32);
    }
    words[15] = 0x5041_4d54_4c52_4947;
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A launch of the only kernel of a text.
pub(crate) struct Run<'a> {
    pub(crate) text: &'a str,
    pub(crate) memory: &'a Memory,
    pub(crate) params: &'a [u8],
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared: usize,
}

impl Run<'_> {
    pub(crate) fn run(&self, seed: u64) -> Result<Counts, Error> {
        let entries = parse(self.text)?;
        Launch {
            entry: &entries[0],
            grid: [self.blocks, 1, 1],
            block: [self.threads, 1, 1],
            shared: self.shared,
            params: self.params,
            memory: self.memory,
            seed,
        }
        .run()
    }
}

/// Orders of the warps that every text is run in.
const SEEDS: std::ops::Range<u64> = 0..8;

/// Returns a text with one entry point: what stands before its body, and the body. `s` is its
/// shared memory, `p` its parameters.
pub(crate) fn kernel(bytes: usize, head: &str, body: &str) -> String {
    format!(
        ".extern .shared .align 1024 .b8 s[];
        .visible .entry kernel(.param .align 64 .b8 p[{bytes}]) {head}
        {{
            .reg .pred %p<10>; .reg .b32 %r<40>; .reg .f32 %f<80>; .reg .b64 %rd<20>;
            {body}
            ret;
        }}"
    )
}

impl Run<'_> {
    /// Runs it in every order.
    pub(crate) fn is_right(&self) {
        for seed in SEEDS {
            self.run(seed).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }

    /// In place of `from` writes `to`: in every order, the error must have these words.
    pub(crate) fn is_wrong(&self, from: &str, to: &str, words: &str) {
        assert!(self.text.contains(from), "no {from}");
        let text = self.text.replacen(from, to, 1);
        let changed = Run { text: &text, ..*self };
        for seed in SEEDS {
            let error = changed.run(seed).expect_err(&format!("{from:?} to {to:?}, seed {seed}"));
            assert!(error.0.contains(words), "{from:?} to {to:?}, seed {seed}: {error}");
        }
    }
}
