//! Measures the CPU's memory. A profile of single ops is left to the tools of the system.

use super::Cpu;
use crate::measure::{Measure, rate};
use crate::ops::Result;
use rayon::prelude::*;
use std::hint::black_box;

/// Copies with all threads.
fn copy(from: &[u8], to: &mut [u8]) {
    let pieces = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
    pieces.for_each(|(to, from)| to.copy_from_slice(from));
}

impl Measure for Cpu {
    fn copy_rate(&self, bytes: u64) -> Result<f64> {
        let (from, mut to) = (vec![1u8; bytes as usize], vec![0u8; bytes as usize]);
        rate(2 * bytes, || {
            copy(&from, &mut to);
            Ok(())
        })
    }

    fn displace(&self, bytes: u64) -> Result<()> {
        let (from, mut to) = (vec![1u8; bytes as usize / 2], vec![0u8; bytes as usize / 2]);
        copy(&from, &mut to);
        black_box(&to);
        Ok(())
    }
}
