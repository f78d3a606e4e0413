//! codes: the layout of quantised weights on the device, and its making of a file's blocks; see
//! codes.wgsl.

use gritlm_model::format::{Apart, Coding, Dtype};

/// The layout of a row of a quantised format.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Codes {
    /// Word of the row with which the high bits, the units and the numbers begin; the numbers' is 0
    /// where there are none.
    pub(crate) high: u32,
    pub(crate) units: u32,
    pub(crate) numbers: u32,
    /// Logarithms of the groups of 8 columns in a run and in a block.
    pub(crate) run: u32,
    pub(crate) block: u32,
    /// The code that stands for 0.
    pub(crate) zero: f32,
}

/// Returns the bits of a code in the low and in the high region.
fn bits(coding: &Coding) -> [u32; 2] {
    match coding.bits {
        bits @ ..4 => [2, bits - 2],
        8 => [8, 0],
        bits => [4, bits - 4],
    }
}

/// Returns the constants that tell a shader how quantised weights are stored.
pub(crate) fn constants(coding: &Coding) -> [(&'static str, f64); 3] {
    let [low, high] = bits(coding).map(f64::from);
    [("LOW", low), ("HIGH", high), ("LEVELS", f64::from(u8::from(coding.levels.is_some())))]
}

/// Returns the layout of a row of `cols` columns, and its words; nothing for plain elements.
pub(crate) fn layout(dtype: Dtype, cols: usize) -> Option<(Codes, usize)> {
    let coding = dtype.coding()?;
    let [low, high] = bits(&coding).map(|bits| (cols / 8 * bits as usize).div_ceil(4));
    let numbers = if dtype.block() > coding.run { (cols / coding.run).div_ceil(2) } else { 0 };
    let mut words = 0;
    let mut region = |len: usize| {
        let first = words;
        words += len.next_multiple_of(4);
        first as u32
    };
    region(low);
    let codes = Codes {
        high: region(high),
        units: region(cols / dtype.block()),
        numbers: if numbers > 0 { region(numbers) } else { 0 },
        run: (coding.run / 8).ilog2(),
        block: (dtype.block() / 8).ilog2(),
        zero: f32::from(zero(&coding)),
    };
    Some((codes, words))
}

/// Returns the unsigned code that stands for 0.
fn zero(coding: &Coding) -> u8 {
    match coding {
        // The shader's levels are bytes, too.
        Coding { levels: Some(_), .. } => 128,
        Coding { signed: true, bits, .. } => 1 << (bits - 1),
        _ => 0,
    }
}

/// Makes rows of one format into the layout.
pub(crate) struct Maker {
    apart: Apart,
    coding: Coding,
    codes: Codes,
    words: Vec<u32>,
}

impl Maker {
    /// Returns nothing for plain elements.
    pub(crate) fn new(dtype: Dtype, cols: usize) -> Option<Self> {
        let (codes, words) = layout(dtype, cols)?;
        let (apart, coding) = (Apart::new(dtype, cols), dtype.coding()?);
        Some(Self { apart, coding, codes, words: vec![0; words] })
    }

    /// Returns the words of a stored row.
    pub(crate) fn row(&mut self, stored: &[u8]) -> &[u32] {
        self.apart.take(stored);
        let [low, high] = bits(&self.coding);
        // Signed codes become unsigned, all of a group at once.
        let first = if self.coding.signed { 1 << (self.coding.bits - 1) } else { 0 };
        for code in &mut self.apart.codes {
            *code = code.wrapping_add_unsigned(first);
        }
        let groups: &[[u8; 8]] = bytemuck::cast_slice(&self.apart.codes).as_chunks().0;
        let (codes, words) = (self.codes, &mut self.words);
        match low {
            8 => put_bytes(groups, words),
            4 => put::<4, 1>(groups, 0, words),
            _ => put::<2, 2>(groups, 0, words),
        }
        let words = &mut words[codes.high as usize..];
        match high {
            0 => (),
            1 => put::<1, 4>(groups, low, words),
            _ => put::<2, 2>(groups, low, words),
        }
        let words = &mut self.words;
        for (word, &[unit, offset]) in
            words[codes.units as usize..].iter_mut().zip(&self.apart.units)
        {
            *word = u32::from(unit) | u32::from(offset) << 16;
        }
        if codes.numbers > 0 {
            // One of each run, two runs a word.
            let step = self.coding.run / 16;
            let runs = self.apart.numbers.chunks_exact(2 * step).map(|n| [n[0], n[step]]);
            for (word, runs) in words[codes.numbers as usize..].iter_mut().zip(runs) {
                let [[a, b], [c, d]] = runs.map(|run| run.map(|number| number as u8));
                *word = u32::from_le_bytes([a, b, c, d]);
            }
        }
        &self.words
    }
}

/// Puts `BITS` bits of each code, those from bit `from` on, together in words of `GROUPS` groups.
fn put<const BITS: u32, const GROUPS: usize>(groups: &[[u8; 8]], from: u32, words: &mut [u32]) {
    let mask = (0x0101_0101_0101_0101 << BITS) - 0x0101_0101_0101_0101;
    for (word, groups) in words.iter_mut().zip(groups.as_chunks::<GROUPS>().0) {
        *word = 0;
        for (n, group) in (0..).zip(groups) {
            let bytes = u64::from_le_bytes(*group) >> from & mask;
            *word |= even_bytes(bytes | bytes >> (8 - BITS)) << (2 * BITS * n);
        }
    }
}

/// Puts whole codes together, the even ones of a group in a word and the odd ones in the next.
fn put_bytes(groups: &[[u8; 8]], words: &mut [u32]) {
    for (words, group) in words.as_chunks_mut().0.iter_mut().zip(groups) {
        let bytes = u64::from_le_bytes(*group);
        *words = [even_bytes(bytes), even_bytes(bytes >> 8)];
    }
}

/// Returns bytes 0, 2, 4 and 6.
fn even_bytes(bytes: u64) -> u32 {
    let single = bytes & 0x00ff_00ff_00ff_00ff;
    let pairs = (single | single >> 8) & 0x0000_ffff_0000_ffff;
    (pairs | pairs >> 16) as u32
}
