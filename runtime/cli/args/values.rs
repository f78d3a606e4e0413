//! Types of argument values, and how they are parsed.

use crate::error::{Error, Result};
use clap::ValueEnum;
use gritlm::{Device, Pooling};
use gritlm_model::host::pages::DTYPES;
use gritlm_model::quantize::Quantization;
use gritlm_model::weights::Dtype;
use gritlm_rag::text;
use std::convert::Infallible;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object per line.
    Json,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PoolingArg {
    Mean,
    WeightedMean,
    Cls,
    LastToken,
}

impl From<PoolingArg> for Pooling {
    fn from(arg: PoolingArg) -> Self {
        match arg {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::WeightedMean => Self::WeightedMean,
            PoolingArg::Cls => Self::Cls,
            PoolingArg::LastToken => Self::LastToken,
        }
    }
}

/// One device or several, separated by commas; a comma may also be in an adapter's name.
#[derive(Clone, Debug)]
pub(crate) struct Devices(pub(crate) Vec<Device>);

impl FromStr for Devices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts: Vec<String> = Vec::new();
        for part in text.split(',') {
            let kind = part.split(':').next().unwrap_or_default();
            match parts.last_mut() {
                Some(name) if !["auto", "cpu", "cuda", "wgpu"].contains(&kind) => {
                    *name += ",";
                    *name += part;
                }
                _ => parts.push(part.into()),
            }
        }
        Ok(Self(parts.iter().map(|part| part.parse()).collect::<gritlm::Result<_>>()?))
    }
}

/// `none` or a number of tokens.
#[derive(Clone, Copy)]
pub(crate) struct Window(pub(crate) Option<u32>);

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self(None)),
            (_, Ok(tokens)) if tokens > 0 => Ok(Self(Some(tokens))),
            _ => Err(Error::Option {
                option: "--window",
                expected: "none or a positive number".into(),
                found: text.into(),
            }),
        }
    }
}

/// `none`, or a number of bytes, optionally with a unit: 20GB, 512MiB.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget(pub(crate) Option<u64>);

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Self(None));
        }
        let bytes = in_bytes(text).ok_or_else(|| Error::Option {
            option: "--kv-budget",
            expected: "none or bytes, as 20GB or 4GiB".into(),
            found: text.into(),
        })?;
        Ok(Self(Some(bytes)))
    }
}

/// Parses a number of bytes, optionally with a unit.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    in_bytes(text).ok_or_else(|| format!("expected bytes, as 64MiB or 1GB, found {text:?}"))
}

fn in_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024_f64.powi(2),
        "gib" => 1024_f64.powi(3),
        "tib" => 1024_f64.powi(4),
        _ => return None,
    };
    Some((number.parse::<f64>().ok()? * unit) as u64)
}

/// `none`, or a number of chunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Above(pub(crate) Option<u64>);

impl FromStr for Above {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |_| Error::Option {
            option: "--approximate-above",
            expected: "none or a number of chunks".into(),
            found: text.into(),
        };
        match text {
            "none" => Ok(Self(None)),
            number => number.parse().map(Some).map(Self).map_err(wrong),
        }
    }
}

/// A kernel or WGSL file by its stem, and the file of a user's own.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[derive(Clone, Debug)]
pub(crate) struct Own {
    pub(crate) stem: String,
    pub(crate) path: PathBuf,
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
impl FromStr for Own {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (stem, path) = text.split_once('=').ok_or_else(|| Error::Option {
            option: "--with",
            expected: "a name and a file, as in attention=my.cu or matmul=my.wgsl".into(),
            found: text.into(),
        })?;
        Ok(Self { stem: stem.into(), path: path.into() })
    }
}

/// Returns the parser for a number of rows, tokens or sequences. Up to its maximum, 2^17, a
/// buffer's values can be counted in 32 bits.
pub(crate) fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 17)
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| format!("expected seconds, 0 or more, found {text:?}"))
}

/// Removes a byte-order mark from a text; `"$(cat FILE)"` brings one along.
pub(crate) fn unmarked(argument: &str) -> Result<String, Infallible> {
    Ok(text::unmarked(argument).into())
}

/// Parses the format of KV pages.
pub(crate) fn kv_type(text: &str) -> Result<Dtype, String> {
    let named = |dtype: &Dtype| dtype.to_string().eq_ignore_ascii_case(text);
    let wrong = || format!("expected f32, f16, bf16 or q8_0, found {text}");
    DTYPES.into_iter().find(named).ok_or_else(wrong)
}

/// Parses a format of plain elements.
pub(crate) fn plain(text: &str) -> Result<Dtype, String> {
    let all = [Dtype::F32, Dtype::F16, Dtype::Bf16];
    let named = |dtype: &Dtype| dtype.to_string().eq_ignore_ascii_case(text);
    let wrong = || format!("expected f32, f16 or bf16, found {text}");
    all.into_iter().find(named).ok_or_else(wrong)
}

/// Parses the formats of weights.
pub(crate) fn quantization(text: &str) -> Result<Quantization, String> {
    text.parse().map_err(|expected| format!("expected {expected}, found {text}"))
}

/// Parses a value, and returns an error as text, as clap wants it.
pub(crate) fn parse<T: FromStr<Err: Into<Error>>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: T::Err| e.into().message())
}
