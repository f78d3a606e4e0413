//! Writes a model as a GGUF file, with its matrices in other formats where wanted.
//!
//! Metadata and the list of tensors come first; then tensor after tensor is converted and
//! written, a block at a time, so that the memory does not grow with the model.

use super::metadata::Value;
use super::names::{self, Place};
use super::{ALIGNMENT, MAGIC, tensors};
use crate::config::{Config, RopeScaling};
use crate::format::Dtype;
use crate::quantize::{Quantization, Rows};
use crate::weights::{Expected, Tensor, Weights, expected};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Version of the format that is written.
const VERSION: u32 = 3;

/// Bytes that are converted while the block before is written.
const BLOCK: usize = 4 << 20;

/// A tensor of a file to be written.
pub struct Planned {
    /// Name in the file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Format in the file.
    pub dtype: Dtype,
    /// The format that the width of the rows did not allow.
    pub instead_of: Option<Dtype>,
    /// What it is made of: one tensor, or one for each expert.
    parts: Vec<Tensor>,
    /// Rows of a head where the parts have the rows of q or k in the published order; else 0.
    head_dim: usize,
}

impl Planned {
    /// Returns the size in the file, without what aligns the next.
    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.shape.iter().product()) as u64
    }
}

/// Returns the tensors of a GGUF file of a model whose matrices are stored as `to` says.
///
/// # Errors
/// When the weights lack a tensor of the config, but for the head of a checkpoint without logits.
pub fn plan(config: &Config, weights: &Weights, to: Quantization) -> Result<Vec<Planned>> {
    let mut all: Vec<Planned> = Vec::new();
    for want in expected(config) {
        if want.name == crate::weights::HEAD && !weights.has_head(config) {
            let path = weights.path().to_path_buf();
            let problem = "expected an lm_head, which GGUF files need, found none".into();
            return Err(Error::Format { path, problem });
        }
        let tensor = weights.get(&want.name)?;
        match names::place(&want.name) {
            Some(Place::Expert { stacked, index, .. }) if index > 0 => {
                // The first expert's tensor of that name is among those of this layer.
                if let Some(stack) = all.iter_mut().rev().find(|one| one.name == stacked) {
                    stack.shape[0] += 1;
                    stack.parts.push(tensor);
                }
            }
            Some(Place::Expert { stacked, .. }) => {
                let mut planned = planned(stacked, &want, tensor, config, to);
                planned.shape.insert(0, 1);
                all.push(planned);
            }
            Some(Place::Own(name)) => all.push(planned(name, &want, tensor, config, to)),
            None => {}
        }
    }
    if let Some(RopeScaling::Llama3 { .. } | RopeScaling::Factors(_)) = config.rope_scaling {
        let factors = config.rope_factors();
        all.push(Planned {
            name: names::ROPE_FACTORS.into(),
            shape: vec![factors.len()],
            dtype: Dtype::F32,
            instead_of: None,
            parts: vec![Tensor::from_f32(&[factors.len()], &factors)],
            head_dim: 0,
        });
    }
    Ok(all)
}

fn planned(
    name: String,
    want: &Expected,
    tensor: Tensor,
    config: &Config,
    to: Quantization,
) -> Planned {
    // llama.cpp reads what is not a matrix of a product as F32 only.
    let dtype = to.of(want, config).unwrap_or(Dtype::F32);
    let wanted = to.of_any_width(want, config).unwrap_or(Dtype::F32);
    let turned = [".attn_q.weight", ".attn_k.weight"].iter().any(|end| name.ends_with(end));
    let head_dim = if turned && !tensor.is_in_pairs() { config.head_dim } else { 0 };
    let (shape, instead_of) = (want.shape.clone(), (wanted != dtype).then_some(wanted));
    Planned { name, shape, dtype, instead_of, parts: vec![tensor], head_dim }
}

/// Writes a GGUF file, which must not exist. `progress` is called with the number of bytes of
/// tensors written and the total, and its error ends the work. Until the file is complete, it is
/// `<path>.partial-<process id>`.
///
/// # Errors
/// When the file exists or cannot be written. Nothing is then left behind.
pub fn write<E: From<Error>>(
    path: &Path,
    metadata: &BTreeMap<String, Value>,
    tensors: &[Planned],
    mut progress: impl FnMut(u64, u64) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    if path.exists() {
        return Err(Error::io(path)(io::Error::other("exists already")).into());
    }
    let partial = Partial(path.with_added_extension(format!("partial-{}", std::process::id())));
    let failed = |problem| E::from(Error::io(path)(problem));
    let mut file = File::create_new(&partial.0).map_err(failed)?;
    let total = tensors.iter().map(Planned::bytes).sum();
    let mut done = 0;
    let mut full = header(metadata, tensors);
    let mut next = Vec::new();
    for tensor in tensors {
        let cols = tensor.shape.last().copied().unwrap_or(1);
        let row = tensor.dtype.bytes(cols);
        for part in &tensor.parts {
            let rows = part.matrix_shape().0;
            let most = (BLOCK / row).max(1);
            for first in (0..rows).step_by(most) {
                let count = most.min(rows - first);
                next.resize(count * row, 0);
                let (saved, ()) = rayon::join(
                    || file.write_all(&full),
                    || tensor.fill(part, cols, first, &mut next),
                );
                saved.map_err(failed)?;
                std::mem::swap(&mut full, &mut next);
                done += (count * row) as u64;
                progress(done, total)?;
            }
        }
        // Behind the last tensor as well, as llama.cpp has it.
        full.resize(
            full.len()
                + (tensor.bytes().next_multiple_of(ALIGNMENT as u64) - tensor.bytes()) as usize,
            0,
        );
    }
    file.write_all(&full).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&partial.0, path).map_err(failed)
}

impl Planned {
    /// Fills `out` with rows of a part, from row `first` on.
    fn fill(&self, part: &Tensor, cols: usize, first: usize, out: &mut [u8]) {
        let (from, to) = (part.dtype(), self.dtype);
        let rows = Rows { bytes: part.stored(), from, to, cols };
        // Of a head, row 2 d is the published row d and row 2 d + 1 row d + head_dim / 2.
        let (size, half) = (self.head_dim.max(1), self.head_dim / 2);
        rows.convert(out, |n| match (first + n) % size {
            _ if half == 0 => first + n,
            d => (first + n) - d + d / 2 + d % 2 * half,
        });
    }
}

/// Returns everything in front of the first tensor's elements.
fn header(metadata: &BTreeMap<String, Value>, tensors: &[Planned]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut out, key);
        value.write(&mut out);
    }
    let mut offset = 0_u64;
    for tensor in tensors {
        text(&mut out, &tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&n| out.extend((n as u64).to_le_bytes()));
        out.extend(tensors::number(tensor.dtype).to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes().next_multiple_of(ALIGNMENT as u64);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Value {
    /// Writes the type and the value. Numbers take 32 bits where they fit, the width that
    /// llama.cpp expects of them.
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Array(all) => {
                let kind = all.iter().map(Self::kind).next().unwrap_or(kind::U32);
                // Values of an array have one type; the widest takes all.
                let kind = if all.iter().all(|one| one.kind() == kind) { kind } else { wide(kind) };
                out.extend(kind::ARRAY.to_le_bytes());
                out.extend(kind.to_le_bytes());
                out.extend((all.len() as u64).to_le_bytes());
                all.iter().for_each(|one| one.write_as(kind, out));
            }
            other => {
                out.extend(other.kind().to_le_bytes());
                other.write_as(other.kind(), out);
            }
        }
    }

    fn kind(&self) -> u32 {
        match self {
            Self::U64(n) => {
                if u32::try_from(*n).is_ok() {
                    kind::U32
                } else {
                    kind::U64
                }
            }
            Self::I64(n) => {
                if i32::try_from(*n).is_ok() {
                    kind::I32
                } else {
                    kind::I64
                }
            }
            Self::F64(n) => {
                if f64::from(*n as f32) == *n {
                    kind::F32
                } else {
                    kind::F64
                }
            }
            Self::Bool(_) => kind::BOOL,
            Self::String(_) => kind::STRING,
            Self::Strings(_) | Self::Integers(_) | Self::Numbers(_) | Self::Array(_) => kind::ARRAY,
        }
    }

    fn write_as(&self, kind: u32, out: &mut Vec<u8>) {
        let mut array = |kind: u32, len: usize| {
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Self::U64(n) if kind == kind::U32 => out.extend((*n as u32).to_le_bytes()),
            Self::U64(n) => out.extend(n.to_le_bytes()),
            Self::I64(n) if kind == kind::I32 => out.extend((*n as i32).to_le_bytes()),
            Self::I64(n) => out.extend(n.to_le_bytes()),
            Self::F64(n) if kind == kind::F32 => out.extend((*n as f32).to_le_bytes()),
            Self::F64(n) => out.extend(n.to_le_bytes()),
            Self::Bool(b) => out.push((*b).into()),
            Self::String(one) => text(out, one),
            Self::Strings(all) => {
                array(kind::STRING, all.len());
                all.iter().for_each(|one| text(out, one));
            }
            Self::Integers(all) => {
                array(kind::I32, all.len());
                all.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Self::Numbers(all) => {
                array(kind::F32, all.len());
                all.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
            Self::Array(all) => {
                let mut nested = Vec::new();
                Self::Array(all.clone()).write(&mut nested);
                // Without its own type, which the outer array has said.
                out.extend(&nested[4..]);
            }
        }
    }
}

/// Numbers of the types that are written.
mod kind {
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// Returns the widest type of that kind of number.
fn wide(kind: u32) -> u32 {
    match kind {
        kind::U32 | kind::U64 => kind::U64,
        kind::I32 | kind::I64 => kind::I64,
        kind::F32 | kind::F64 => kind::F64,
        other => other,
    }
}

/// A file that is removed when this value is dropped, unless it has been renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Value, header};
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Whatever a file said comes back.
    #[test]
    fn every_kind_of_value() {
        let wide = Value::Array(vec![Value::U64(u64::MAX), Value::U64(1)]);
        let values: BTreeMap<String, Value> = [
            ("small", Value::U64(7)),
            ("large", Value::U64(1 << 40)),
            ("below", Value::I64(-3)),
            ("far below", Value::I64(-1 << 40)),
            ("half", Value::F64(0.5)),
            ("third", Value::F64(1.0 / 3.0)),
            ("no", Value::Bool(false)),
            ("text", Value::String("Grüße".into())),
            ("texts", Value::Strings(["", "a"].into_iter().collect())),
            ("integers", Value::Integers(vec![-1, 2])),
            ("numbers", Value::Numbers(vec![1.5, -0.25])),
            ("wide", wide.clone()),
            ("doubles", Value::Array(vec![Value::F64(0.1), Value::F64(0.5)])),
            ("nested", Value::Array(vec![wide, Value::Integers(vec![3])])),
        ]
        .map(|(key, value)| (key.to_string(), value))
        .into();
        let file = header(&values, &[]);
        let read = super::super::parse(&file, Path::new("a.gguf")).unwrap();
        let read: BTreeMap<String, Value> =
            read.metadata.iter().map(|(key, value)| (key.into(), value.clone())).collect();
        assert_eq!(read, values);
    }
}
