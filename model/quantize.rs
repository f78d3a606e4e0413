//! Which format each matrix of a model gets when it is quantised.
//!
//! Names and rules are those of llama.cpp's `llama-quantize`, so that a file from here and one
//! from there with the same name have the same formats.

use crate::config::Config;
use crate::format::{Dtype, decode, encode};
use crate::weights::{Expected, HEAD, TABLE, Tensor};
use rayon::prelude::*;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A choice of formats for the matrices of a model: one for most of them, a better one for the
/// few that need it. The names are those of the formats, in lower case, and `q4_k_m`, `q5_k_m`.
///
/// ```
/// use gritlm_model::quantize::Quantization;
/// let to: Quantization = "Q4_K_M".parse().unwrap();
/// assert_eq!(to.to_string(), "q4_k_m");
/// assert!("q4_k_x".parse::<Quantization>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quantization {
    dtype: Dtype,
    /// Whether half of the layers have their values and down projections in Q6_K.
    medium: bool,
}

impl Quantization {
    /// Returns all choices.
    pub fn all() -> impl Iterator<Item = Self> {
        let plain = Dtype::ALL.into_iter().map(Self::from);
        plain.chain([Dtype::Q4K, Dtype::Q5K].map(|dtype| Self { dtype, medium: true }))
    }

    /// Returns the format of most matrices.
    pub fn dtype(self) -> Dtype {
        self.dtype
    }

    /// Returns the number that llama.cpp gives the choice (`general.file_type`).
    pub fn file_type(self) -> u32 {
        match (self.dtype, self.medium) {
            (Dtype::F32, _) => 0,
            (Dtype::F16, _) => 1,
            (Dtype::Q4_0, _) => 2,
            (Dtype::Q4_1, _) => 3,
            (Dtype::Q8_0, _) => 7,
            (Dtype::Q5_0, _) => 8,
            (Dtype::Q5_1, _) => 9,
            (Dtype::Q2K, _) => 10,
            (Dtype::Q3K, _) => 11,
            (Dtype::Q4K, false) => 14,
            (Dtype::Q4K, true) => 15,
            (Dtype::Q5K, false) => 16,
            (Dtype::Q5K, true) => 17,
            (Dtype::Q6K, _) => 18,
            (Dtype::Iq4Xs, _) => 30,
            (Dtype::Bf16, _) => 32,
        }
    }

    /// Returns the format that a tensor of the published layout gets, or `None` where it keeps
    /// its values: vectors and routers are small, and an error there reaches everything behind
    /// them.
    pub fn of(self, tensor: &Expected, config: &Config) -> Option<Dtype> {
        let cols = tensor.shape.last().copied()?;
        self.of_any_width(tensor, config).map(|dtype| fallback(dtype, cols))
    }

    /// Returns the format that a tensor would get if the width of its rows allowed it.
    pub(crate) fn of_any_width(self, tensor: &Expected, config: &Config) -> Option<Dtype> {
        let router = tensor.name.ends_with("block_sparse_moe.gate.weight");
        (tensor.shape.len() > 1 && !router).then(|| self.wanted(&tensor.name, config))
    }

    fn wanted(self, name: &str, config: &Config) -> Dtype {
        // Errors of the logits choose wrong tokens, and the matrix is one of hundreds.
        let head = if config.tied { TABLE } else { HEAD };
        let large = !self.dtype.is_quantized() || self.dtype == Dtype::Q8_0;
        if name == head && !large {
            return Dtype::Q6K;
        }
        if !self.medium {
            return self.dtype;
        }
        let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
        let layer = layer.and_then(|number| number.parse().ok()).unwrap_or(0);
        let ends = |all: &[&str]| all.iter().any(|end| name.ends_with(end));
        // Of eight experts' layers, attention is a small part.
        if config.experts.is_some_and(|experts| experts.count == 8) {
            if ends(&["self_attn.k_proj.weight", "self_attn.v_proj.weight"]) {
                return Dtype::Q8_0;
            }
            if ends(&["self_attn.o_proj.weight"]) {
                return Dtype::Q5K;
            }
        }
        let sensitive = ends(&["self_attn.v_proj.weight", "mlp.down_proj.weight", ".w2.weight"]);
        match sensitive && has_more_bits(layer, config.layers) {
            true => Dtype::Q6K,
            false => self.dtype,
        }
    }
}

/// Returns whether a layer is one of those with more bits: the first and the last eighth, and
/// every third between.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    let eighth = layers / 8;
    layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
}

/// Returns the format, or where rows of `cols` values are no whole blocks of it, one with blocks
/// that fit: of 32 values with as many bits, else F16. llama.cpp takes IQ4_NL in place of Q2_K,
/// Q3_K and IQ4_XS, which this crate does not have.
fn fallback(dtype: Dtype, cols: usize) -> Dtype {
    if cols.is_multiple_of(dtype.block()) {
        return dtype;
    }
    let smaller = match dtype {
        Dtype::Q2K | Dtype::Q3K | Dtype::Iq4Xs => Dtype::Q4_0,
        Dtype::Q4K => Dtype::Q5_0,
        Dtype::Q5K => Dtype::Q5_1,
        Dtype::Q6K => Dtype::Q8_0,
        other => other,
    };
    if cols.is_multiple_of(smaller.block()) { smaller } else { Dtype::F16 }
}

impl From<Dtype> for Quantization {
    fn from(dtype: Dtype) -> Self {
        Self { dtype, medium: false }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.dtype.to_string().to_lowercase();
        write!(f, "{name}{}", if self.medium { "_m" } else { "" })
    }
}

impl FromStr for Quantization {
    type Err = String;

    /// Parses a name, in any case. The error says which names there are.
    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::all().find(|one| one.to_string().eq_ignore_ascii_case(text));
        found.ok_or_else(|| {
            let all: Vec<String> = Self::all().map(|one| one.to_string()).collect();
            format!("one of {}", all.join(", "))
        })
    }
}

impl Tensor {
    /// Returns the tensor in another format; the same one if it has that format. All threads take
    /// part.
    #[must_use]
    pub fn to_dtype(&self, dtype: Dtype) -> Self {
        if dtype == self.dtype() {
            return self.clone();
        }
        let (rows, cols) = self.matrix_shape();
        let mut block = vec![0; dtype.bytes(rows * cols)];
        let from = Rows { bytes: self.bytes(), from: self.dtype(), to: dtype, cols };
        from.convert(&mut block, |row| row);
        Self::of_block(dtype, self.shape(), &Arc::new(block), 0)
    }
}

/// Rows of a matrix on their way from one format to another.
pub(crate) struct Rows<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) from: Dtype,
    pub(crate) to: Dtype,
    pub(crate) cols: usize,
}

impl Rows<'_> {
    /// Fills `out` with whole rows: its row n is row `source(n)` of the matrix.
    pub(crate) fn convert(&self, out: &mut [u8], source: impl Fn(usize) -> usize + Sync) {
        let &Self { bytes, from, to, cols } = self;
        let (from_bytes, to_bytes) = (from.bytes(cols), to.bytes(cols));
        let rows = out.par_chunks_mut(to_bytes).enumerate();
        rows.for_each_init(
            || vec![0.0; if from == to { 0 } else { cols }],
            |values, (n, out)| {
                let row = &bytes[source(n) * from_bytes..][..from_bytes];
                match from == to {
                    true => out.copy_from_slice(row),
                    false => {
                        decode(from, row, values);
                        encode(to, values, out);
                    }
                }
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::{Quantization, fallback, has_more_bits};
    use crate::format::Dtype;

    #[test]
    fn every_name_means_its_choice() {
        for one in Quantization::all() {
            assert_eq!(one.to_string().parse(), Ok(one));
            assert_eq!(one.to_string().to_uppercase().parse(), Ok(one));
        }
        let refused = "q9".parse::<Quantization>().unwrap_err();
        assert!(refused.starts_with("one of bf16, f16, f32, q8_0, "), "{refused}");
    }

    /// llama.cpp's Q4_K_M of a model of 32 layers has these layers in Q6_K.
    #[test]
    fn half_of_the_layers_have_more_bits() {
        let more: Vec<usize> = (0..32).filter(|&layer| has_more_bits(layer, 32)).collect();
        assert_eq!(more, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
    }

    #[test]
    fn narrow_matrices_get_smaller_blocks() {
        for (dtype, cols, expected) in [
            (Dtype::Q4K, 512, Dtype::Q4K),
            (Dtype::Q4K, 576, Dtype::Q5_0),
            (Dtype::Q6K, 192, Dtype::Q8_0),
            (Dtype::Q5K, 32, Dtype::Q5_1),
            (Dtype::Iq4Xs, 64, Dtype::Q4_0),
            (Dtype::Q4_0, 48, Dtype::F16),
            (Dtype::Q6K, 40, Dtype::F16),
            (Dtype::Bf16, 7, Dtype::Bf16),
        ] {
            assert_eq!(fallback(dtype, cols), expected, "{dtype} {cols}");
        }
    }
}
