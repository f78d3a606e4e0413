//! The numbers that a device computes in and keeps: what is asked for, and whether it has them.

use crate::{Error, Options, Result};
use gritlm_model::ops::{Compute, Ops};
use gritlm_model::weights::Dtype;
use std::fmt;
use std::str::FromStr;

/// The numbers that matrix products are to be computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// The fastest that the device has: f16 on a wgpu adapter that has it and f32 on others, bf16 on
    /// CUDA, int8 on the CPU with quantised weights and f32 with others.
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

/// Refuses to compute in numbers that a device has not.
pub(crate) fn check_compute<O: Ops>(ops: &O, options: &Options) -> Result<()> {
    match options.compute {
        Some(Arithmetic::In(Compute::Int8)) if O::INT8 => Ok(()),
        Some(Arithmetic::In(asked)) if asked != ops.compute() => {
            let int8 = if O::INT8 { ", int8" } else { "" };
            let expected = format!("{}{int8} or auto on {}", ops.compute(), ops.device());
            Err(Error::Option { option: "compute", expected, found: asked.to_string() })
        }
        _ => Ok(()),
    }
}

/// Returns whether [`Ops::matrix_int8`] is to make matrices where it can.
pub(crate) fn wants_int8(options: &Options) -> bool {
    matches!(options.compute, Some(Arithmetic::Auto | Arithmetic::In(Compute::Int8)))
}

/// Refuses int8 where no matrix could be made for it.
pub(crate) fn check_int8(options: &Options) -> Result<()> {
    match options.compute {
        Some(Arithmetic::In(Compute::Int8)) => Err(Error::Option {
            option: "compute",
            expected: "f32 or auto, because no weights are quantised".into(),
            found: Compute::Int8.to_string(),
        }),
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
