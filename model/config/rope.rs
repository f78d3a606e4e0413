//! The RoPE parameters of a config. Only plain RoPE with some base is supported; configs that
//! scale positions or frequencies are refused.

use super::Fields;
use crate::Result;
use serde_json::Value;

/// Returns the base of the frequencies; `default` is the default of the model's class.
///
/// transformers 5 writes one object, `rope_parameters`. Older versions write `rope_theta`, and
/// `rope_scaling` as well if there is scaling. A file may have all three, but they must agree.
pub(super) fn theta(fields: &Fields<'_>, default: f32) -> Result<f32> {
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
    for place in ["rope_parameters", "rope_scaling"] {
        let parameters = match fields.get(place) {
            None => continue,
            Some(Value::Object(parameters)) => parameters,
            Some(other) => return fields.fail(place, "an object or null (no scaling)", other),
        };
        for kind in ["rope_type", "type"].iter().filter_map(|key| parameters.get(*key)) {
            if kind != "default" {
                return fields.fail(place, "type \"default\" (no scaling)", kind);
            }
        }
        for (key, value) in parameters {
            match key.as_str() {
                "rope_type" | "type" => {}
                "rope_theta" => agree(place, fields.positive_value(place, value)?)?,
                "partial_rotary_factor" if is_one(value) => {}
                _ => {
                    let other = format!("{key}: {value}");
                    return fields.fail(place, "rope_type and rope_theta only (no scaling)", other);
                }
            }
        }
    }
    match (found, fields.json.get("rope_theta")) {
        (Some((_, theta)), _) if theta < 1.0 => {
            fields.fail("rope_theta", "a number of at least 1", format!("{theta:e}"))
        }
        (Some((_, theta)), _) => Ok(theta),
        (None, Some(null)) => fields.fail("rope_theta", "a positive number", null),
        (None, None) => Ok(default),
    }
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}
