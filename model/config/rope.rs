//! The rotary embedding: what a `config.json` says about it, and the frequencies that follow.

use super::Fields;
use crate::Result;
use serde_json::{Map, Value};
use std::fmt;

/// How a model's rotary frequencies differ from the powers of its base, so that it takes longer
/// texts than it was trained with at first.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All frequencies are divided by `factor`.
    Linear {
        /// At least 1.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones stay, and those between are mixed, as
    /// for Llama 3.1.
    Llama3 {
        /// At least 1.
        factor: f64,
        /// Frequencies that turn fewer times than this in `original` tokens are divided.
        low: f64,
        /// Frequencies that turn more times than this in `original` tokens stay; above `low`.
        high: f64,
        /// Tokens that the model was trained with at first.
        original: usize,
    },
    /// Each frequency is divided by its own factor, `(head_dim / 2)`, as GGUF files store it.
    Factors(Vec<f32>),
}

impl fmt::Display for RopeScaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Linear { factor } => write!(f, "linear, factor {factor}"),
            Self::Llama3 { factor, original, .. } => {
                write!(f, "llama3, factor {factor} over {original} tokens")
            }
            Self::Factors(factors) => write!(f, "{} factors", factors.len()),
        }
    }
}

/// Returns the RoPE frequencies, `(head_dim / 2)`: base^(−2d / head_dim), scaled, in f32 in the
/// order of transformers, where a number divided by a tensor is the tensor's reciprocal times the
/// number.
pub(super) fn frequencies(base: f32, head_dim: usize, scaling: Option<&RopeScaling>) -> Vec<f32> {
    let plain = |d| 1.0 / base.powf(2.0 * d as f32 / head_dim as f32);
    let scaled = |(d, turn): (usize, f32)| match scaling {
        None => turn,
        Some(RopeScaling::Linear { factor }) => turn / *factor as f32,
        Some(RopeScaling::Factors(factors)) => turn / factors[d],
        Some(&RopeScaling::Llama3 { factor, low, high, original }) => {
            let length = 1.0 / turn * std::f32::consts::TAU;
            if length > (original as f64 / low) as f32 {
                turn / factor as f32
            } else if length < (original as f64 / high) as f32 {
                turn
            } else {
                let turns = 1.0 / length * original as f32;
                let smooth = (turns - low as f32) / (high - low) as f32;
                (1.0 - smooth) * turn / factor as f32 + smooth * turn
            }
        }
    };
    (0..head_dim / 2).map(plain).enumerate().map(scaled).collect()
}

/// Largest factor. Published models have at most 64.
pub(crate) const MAX_FACTOR: f64 = 1e6;
/// Fewest turns in the tokens of training.
const MIN_TURNS: f64 = 1e-3;

/// The kinds of scaling that are supported, for errors.
const KINDS: &str = "type \"default\" (no scaling), \"linear\" or \"llama3\"";

/// Returns the base of the frequencies and their scaling; `default` is the base of the model's
/// class.
///
/// transformers 5 writes one object, `rope_parameters`. Older versions write `rope_theta`, and
/// `rope_scaling` as well if there is scaling. A file may have all three, but they must agree.
pub(super) fn read(fields: &Fields<'_>, default: f32) -> Result<(f32, Option<RopeScaling>)> {
    if let Some(share) = fields.get("partial_rotary_factor").filter(|share| !is_one(share)) {
        return fields.fail("partial_rotary_factor", "1 (whole heads turn)", share);
    }
    let mut found: Option<(&'static str, f32)> = None;
    let mut agree = |place: &'static str, value: f32| match found.replace((place, value)) {
        Some((other, before)) if before != value => {
            let both = format!("{before} in {other} and {value} in {place}");
            fields.fail("rope_theta", "the same number in every place", both)
        }
        _ => Ok(()),
    };
    if fields.get("rope_theta").is_some() {
        agree("the file itself", fields.positive("rope_theta")?)?;
    }
    let mut scaling: Option<Option<RopeScaling>> = None;
    for place in ["rope_parameters", "rope_scaling"] {
        let parameters = match fields.get(place) {
            None => continue,
            Some(Value::Object(parameters)) => parameters,
            Some(other) => return fields.fail(place, "an object or null (no scaling)", other),
        };
        if let Some(theta) = parameters.get("rope_theta") {
            agree(place, fields.positive_value(place, theta)?)?;
        }
        let here = read_scaling(fields, place, parameters)?;
        if scaling.as_ref().is_some_and(|before| *before != here) {
            let other = "the scaling of rope_parameters, or nothing";
            return fields.fail(place, other, "another scaling");
        }
        scaling = Some(here);
    }
    let theta = match (found, fields.json.get("rope_theta")) {
        (Some((_, theta)), _) if theta < 1.0 => {
            fields.fail("rope_theta", "a number of at least 1", format!("{theta:e}"))
        }
        (Some((_, theta)), _) => Ok(theta),
        (None, Some(null)) => fields.fail("rope_theta", "a positive number", null),
        (None, None) => Ok(default),
    };
    Ok((theta?, scaling.flatten()))
}

/// Reads one object of parameters.
fn read_scaling(
    fields: &Fields<'_>,
    place: &'static str,
    parameters: &Map<String, Value>,
) -> Result<Option<RopeScaling>> {
    let mut kind = "default";
    for (i, found) in ["rope_type", "type"].iter().filter_map(|k| parameters.get(*k)).enumerate() {
        match found.as_str().filter(|k| ["default", "linear", "llama3"].contains(k)) {
            Some(other) if i > 0 && other != kind => {
                let both = format!("{kind} and {other}");
                return fields.fail(place, "the same rope_type and type", both);
            }
            Some(known) => kind = known,
            None => return fields.fail(place, KINDS, found),
        }
    }
    let own: &[&str] = match kind {
        "linear" => &["factor"],
        "llama3" => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        _ => &[],
    };
    for (key, value) in parameters {
        match key.as_str() {
            "rope_type" | "type" | "rope_theta" => {}
            "partial_rotary_factor" if is_one(value) => {}
            key if own.contains(&key) => {}
            _ => {
                let more = own.iter().map(|key| format!(", {key}")).collect::<String>();
                let expected = format!("only rope_type, rope_theta{more} for \"{kind}\"");
                return fields.fail(place, &expected, format!("{key}: {value}"));
            }
        }
    }
    // Bounds that keep every frequency above zero in f32.
    let number = |key: &str, least: f64| {
        let value = parameters.get(key);
        match value.and_then(Value::as_f64).filter(|n| (least..=MAX_FACTOR).contains(n)) {
            Some(n) => Ok(n),
            None => {
                let found = value.map_or_else(|| "nothing".into(), ToString::to_string);
                let expected = format!("{key}, a number from {least} to {MAX_FACTOR}");
                fields.fail(place, &expected, found)
            }
        }
    };
    Ok(match kind {
        "linear" => Some(RopeScaling::Linear { factor: number("factor", 1.0)? }),
        "llama3" => {
            let (low, high) =
                (number("low_freq_factor", MIN_TURNS)?, number("high_freq_factor", MIN_TURNS)?);
            if high as f32 <= low as f32 {
                let expected = format!("high_freq_factor above low_freq_factor {low}");
                return fields.fail(place, &expected, high);
            }
            let original = "original_max_position_embeddings";
            Some(RopeScaling::Llama3 {
                factor: number("factor", 1.0)?,
                low,
                high,
                original: Fields { json: parameters, path: fields.path }
                    .count(original, super::limits::TOKENS)?,
            })
        }
        _ => None,
    })
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}
