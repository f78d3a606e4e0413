//! The numbers that a device computes in and keeps: what is asked for, and whether it has them.

use crate::{Error, Options, Result};
use gritlm_model::ops::{Compute, Ops, Products};
use gritlm_model::weights::Dtype;
use std::fmt;
use std::str::FromStr;

/// The numbers that matrix products are to be computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// The fastest that the device has: f16 on a wgpu adapter that has it and f32 on others; bf16 on
    /// CUDA; on the CPU int8 for few rows and quantised weights, bf16 for many rows where the CPU has
    /// instructions for it, otherwise f32.
    Auto,
    /// These; a device that has not refuses.
    In(Compute),
}

impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::In(compute) => compute.fmt(f),
        }
    }
}

impl FromStr for Arithmetic {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::In).map_err(|()| Error::Option {
                option: "compute",
                expected: "f32, f16, bf16, int8 or auto".into(),
                found: text.into(),
            }),
        }
    }
}

/// Returns in which numbers matrices are to be multiplied, whose parts are all quantised or not.
///
/// # Errors
/// When the device has not the numbers that are asked for.
pub(crate) fn products<O: Ops>(ops: &O, options: &Options, quantized: bool) -> Result<Products> {
    let asked = match options.compute {
        None => Some(ops.compute()),
        Some(Arithmetic::Auto) => None,
        Some(Arithmetic::In(asked)) => Some(asked),
    };
    ops.products(asked, quantized).ok_or_else(|| {
        let has = |one: &Compute| ops.products(Some(*one), true).is_some();
        let names: Vec<&str> =
            Compute::ALL.iter().filter(|(one, _)| has(one)).map(|(_, name)| *name).collect();
        Error::Option {
            option: "compute",
            expected: format!("{} or auto on {}", names.join(", "), ops.device()),
            found: asked.map_or_else(String::new, |asked| asked.to_string()),
        }
    })
}

/// Refuses int8 where no matrix is multiplied in it.
pub(crate) fn check_int8(options: &Options, products: Products) -> Result<()> {
    match options.compute {
        Some(Arithmetic::In(Compute::Int8)) if products.few != Compute::Int8 => {
            Err(Error::Option {
                option: "compute",
                expected: "f32, bf16 or auto, because no weights are quantised".into(),
                found: Compute::Int8.to_string(),
            })
        }
        _ => Ok(()),
    }
}

/// Returns the format of the pages.
pub(crate) fn page_dtype<O: Ops>(ops: &O, options: &Options, head_dim: usize) -> Result<Dtype> {
    let fits = |dtype: &Dtype| head_dim.is_multiple_of(dtype.block());
    let all: Vec<Dtype> = ops.page_dtypes().iter().copied().filter(fits).collect();
    match options.kv_type {
        None => Ok(ops.page_dtypes().first().copied().unwrap_or(Dtype::F32)),
        Some(asked) if all.contains(&asked) => Ok(asked),
        Some(asked) => {
            let names: Vec<String> = all.iter().map(|d| d.to_string().to_lowercase()).collect();
            let (names, device) = (names.join(", "), ops.device());
            let expected = format!("one of {names} on {device} for heads of {head_dim}");
            let found = asked.to_string().to_lowercase();
            Err(Error::Option { option: "kv_type", expected, found })
        }
    }
}
