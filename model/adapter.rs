//! Low-rank adapters (LoRA) as the PEFT library keeps them: a folder with `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! An adapter of a matrix W `(rows, cols)` is A `(rank, cols)` and B `(rows, rank)`; the matrix with
//! the adapter in it is W + scale · B · A. [`Adapter::open`] checks the files against the model's
//! config, and [`Adapter::merged`] computes a merged matrix: in f32, from W as it is stored, rounded
//! once to the wanted format. An option of PEFT that would change the values and is not supported is
//! refused by name.

use crate::config::Config;
use crate::config::fields::{Fields, object};
use crate::cpu::{Matrix, merge::merge};
use crate::format::Dtype;
use crate::hash::fnv1a;
use crate::ops::Merge;
use crate::quantize::Rows;
use crate::weights::{Expected, HEAD, Tensor, Weights, expected};
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// File of an adapter's options.
pub const CONFIG: &str = "adapter_config.json";
/// File of an adapter's matrices.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// What PEFT puts before the name of a module of the model.
const PREFIX: &str = "base_model.model.";
/// Maximum rank: more than the width of any model that there is.
const MAX_RANK: usize = 1 << 16;

/// Projections that an adapter of all of them has, in the order of the forward pass.
const PROJECTIONS: [&str; 10] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"];

/// Fields of PEFT that change what an adapter computes. They have to be absent, null, false or empty.
const UNSUPPORTED: [&str; 15] = [
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "exclude_modules",
    "layers_pattern",
    "fan_in_fan_out",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
];

/// Shape of a low-rank adapter.
///
/// ```
/// use gritlm_model::adapter::Lora;
/// let lora = Lora::new(16).targets(vec!["q_proj".into(), "v_proj".into()]);
/// assert_eq!((lora.alpha, lora.scale()), (64.0, 4.0));
/// assert!(lora.has("model.layers.0.self_attn.q_proj.weight"));
/// assert!(!lora.has("model.layers.0.mlp.gate_proj.weight"));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Lora {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Share of A's inputs that are dropped in training.
    pub dropout: f64,
    /// Last parts of the names of the modules that have an adapter; empty for every projection and
    /// router of the layers.
    pub targets: Vec<String>,
    /// Whether the scale is alpha / √rank (rsLoRA, Kalajdzievski 2023) and not alpha / rank.
    pub rslora: bool,
    /// Layers that have adapters; `None` for all.
    pub layers: Option<Vec<usize>>,
}

crate::setters!(Lora { alpha: f64, dropout: f64, targets: Vec<String>, rslora: bool });

impl Lora {
    /// Returns an adapter of all projections as the GRIT paper has it, with an alpha of four times
    /// the rank, and without dropout.
    pub fn new(rank: usize) -> Self {
        Self {
            rank,
            alpha: 4.0 * rank as f64,
            dropout: 0.0,
            targets: PROJECTIONS.map(String::from).into(),
            rslora: false,
            layers: None,
        }
    }

    /// Returns the factor of B · A.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// Returns whether the tensor of this name in the published layout has an adapter.
    pub fn has(&self, tensor: &str) -> bool {
        let Some((layer, module)) = module(tensor) else { return false };
        let target = |target: &String| is_part(module, target);
        self.layers.as_ref().is_none_or(|layers| layers.contains(&layer))
            && (self.targets.is_empty() || self.targets.iter().any(target))
    }

    /// Returns the names that [`Lora::targets`] can have for a model.
    pub fn modules(config: &Config) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for Expected { name, .. } in adaptable(config) {
            let last = name.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default();
            if !names.iter().any(|known| known == last) {
                names.push(last.into());
            }
        }
        names
    }

    /// Parses the text of an `adapter_config.json`. Errors name `path`.
    ///
    /// # Errors
    /// When it is not one, or asks for what is not supported.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        let json = object(text, path)?;
        let fields = Fields { json: &json, path };
        if let Some(found) = fields.get("peft_type").filter(|found| *found != "LORA") {
            return fields.fail("peft_type", "\"LORA\"", found);
        }
        if let Some(found) = fields.get("bias").filter(|found| *found != "none") {
            return fields.fail("bias", "\"none\"", found);
        }
        for field in UNSUPPORTED {
            if let Some(found) = fields.get(field).filter(|found| !is_off(found)) {
                return fields.fail(field, "nothing: it is not supported", found);
            }
        }
        // Other ways change the base model before the adapter is trained.
        let plain = |found: &Value| {
            found.is_boolean() || ["gaussian", "eva", "orthogonal"].iter().any(|one| found == one)
        };
        if let Some(found) = fields.get("init_lora_weights").filter(|found| !plain(found)) {
            let expected = "true, false, \"gaussian\", \"eva\" or \"orthogonal\", which leave the \
                            base model as it is";
            return fields.fail("init_lora_weights", expected, found);
        }
        let number = |field: &'static str, default: f64| match fields.get(field) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(number),
                None => fields.fail(field, "a finite number", value),
            },
        };
        Ok(Self {
            rank: fields.count("r", MAX_RANK)?,
            alpha: number("lora_alpha", 8.0)?,
            dropout: number("lora_dropout", 0.0)?,
            targets: targets(&fields)?,
            rslora: fields.flag("use_rslora"),
            layers: layers(&fields)?,
        })
    }

    /// Returns the text of an `adapter_config.json` for an adapter of the model called `base`.
    pub fn to_json(&self, base: &str, config: &Config) -> String {
        let used = |target: &&String| {
            adaptable(config).iter().any(|tensor| {
                module(&tensor.name).is_some_and(|(_, module)| is_part(module, target))
            })
        };
        let targets = match self.targets.is_empty() {
            true => json!("all-linear"),
            false => json!(self.targets.iter().filter(used).collect::<Vec<_>>()),
        };
        let fields = json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "target_modules": targets,
            "layers_to_transform": self.layers,
            "use_rslora": self.rslora,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "modules_to_save": null,
            "rank_pattern": {},
            "alpha_pattern": {},
            "use_dora": false,
        });
        format!("{fields:#}\n")
    }
}

/// Returns whether a value switches a field off.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        _ => false,
    }
}

fn targets(fields: &Fields<'_>) -> Result<Vec<String>> {
    let field = "target_modules";
    let expected = "a list of module names, or \"all-linear\" (patterns are not supported)";
    match fields.get(field) {
        Some(Value::String(all)) if all == "all-linear" => Ok(Vec::new()),
        Some(Value::Array(names)) if !names.is_empty() => {
            let name = |name: &Value| match name.as_str() {
                Some(name) if !name.is_empty() => Ok(name.to_string()),
                _ => fields.fail(field, expected, name),
            };
            names.iter().map(name).collect()
        }
        Some(found) => fields.fail(field, expected, found),
        None => fields.fail(field, expected, "nothing"),
    }
}

fn layers(fields: &Fields<'_>) -> Result<Option<Vec<usize>>> {
    let field = "layers_to_transform";
    let number = |value: &Value| match value.as_u64() {
        Some(layer) => Ok(layer as usize),
        None => fields.fail(field, "the numbers of layers", value),
    };
    match fields.get(field) {
        None => Ok(None),
        Some(Value::Array(all)) if all.is_empty() => Ok(None),
        Some(Value::Array(all)) => all.iter().map(number).collect::<Result<_>>().map(Some),
        Some(one) => Ok(Some(vec![number(one)?])),
    }
}

/// Returns the layer of a tensor and the name of its module: 3 and `self_attn.q_proj` for
/// `model.layers.3.self_attn.q_proj.weight`.
fn module(tensor: &str) -> Option<(usize, &str)> {
    let (layer, rest) = tensor.strip_prefix("model.layers.")?.split_once('.')?;
    Some((layer.parse().ok()?, rest.strip_suffix(".weight")?))
}

/// Returns whether a module is called `target`, or its name ends with it.
fn is_part(module: &str, target: &str) -> bool {
    module.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Returns the matrices of a model's layers.
pub fn adaptable(config: &Config) -> Vec<Expected> {
    let matrix = |tensor: &Expected| tensor.shape.len() == 2 && module(&tensor.name).is_some();
    expected(config).into_iter().filter(matrix).collect()
}

/// Returns the names of A and B of a tensor in PEFT's files.
pub fn names(tensor: &str) -> [String; 2] {
    let module = tensor.strip_suffix(".weight").unwrap_or(tensor);
    ["A", "B"].map(|which| format!("{PREFIX}{module}.lora_{which}.weight"))
}

/// A checked adapter.
#[derive(Clone, Debug)]
pub struct Adapter {
    path: PathBuf,
    lora: Lora,
    /// A and B of each tensor, by its name in the published layout.
    pairs: BTreeMap<String, [Tensor; 2]>,
}

impl Adapter {
    /// Maps and checks the adapter in `folder` for a model with this config.
    ///
    /// # Errors
    /// When a file is missing or invalid, the adapter has options that are not supported, or a
    /// tensor is missing, surplus, of another shape than the model's or of numbers that are not
    /// finite.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = std::fs::read(&path).map_err(Error::io(&path))?;
        let lora = Lora::parse(&text, &path)?;
        let wanted: Vec<Expected> =
            adaptable(config).into_iter().filter(|tensor| lora.has(&tensor.name)).collect();
        if wanted.is_empty() {
            return Err(Error::Config {
                path,
                field: "target_modules",
                expected: format!("some of {}", Lora::modules(config).join(", ")),
                found: format!("only others: {}", lora.targets.join(", ")),
            });
        }
        let path = folder.join(WEIGHTS);
        let file = Weights::of_file(&path)?;
        let mut found: BTreeMap<String, &Tensor> = BTreeMap::new();
        for (name, tensor) in file.tensors() {
            // An adapter of the bare model lacks the first part of the names.
            let whole = match name.strip_prefix(PREFIX) {
                Some(rest) if rest.starts_with("layers.") => format!("{PREFIX}model.{rest}"),
                _ => name.to_string(),
            };
            found.insert(whole, tensor);
        }
        let mut pairs = BTreeMap::new();
        for Expected { name, shape } in wanted {
            let [a_name, b_name] = names(&name);
            let mut take = |key: String, shape: [usize; 2]| {
                let fail = |found: String| Error::Tensor {
                    path: path.clone(),
                    tensor: key.clone(),
                    expected: format!("{shape:?} in finite numbers"),
                    found,
                };
                let tensor = found.remove(&key).ok_or_else(|| fail("nothing".into()))?;
                if tensor.shape() != shape {
                    return Err(fail(format!("{:?}", tensor.shape())));
                }
                match tensor.to_f32().into_iter().find(|value| !value.is_finite()) {
                    Some(value) => Err(fail(value.to_string())),
                    None => Ok(tensor.clone()),
                }
            };
            let a = take(a_name, [lora.rank, shape[1]])?;
            let b = take(b_name, [shape[0], lora.rank])?;
            pairs.insert(name, [a, b]);
        }
        match found.into_keys().next() {
            None => Ok(Self { path: folder.into(), lora, pairs }),
            Some(tensor) => Err(Error::Tensor {
                path,
                tensor,
                expected: "A and B of the model's target_modules only".into(),
                found: "a surplus tensor".into(),
            }),
        }
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the shape.
    pub fn lora(&self) -> &Lora {
        &self.lora
    }

    /// Returns A `(rank, cols)` and B `(rows, rank)` of each tensor that has them, by the name of
    /// the tensor in the published layout.
    pub fn pairs(&self) -> &BTreeMap<String, [Tensor; 2]> {
        &self.pairs
    }

    /// Returns a hash that distinguishes this adapter from others. It covers the scale and, of each
    /// tensor, the name and the first 64 bytes.
    pub fn fingerprint(&self) -> u128 {
        let mut seen = self.lora.scale().to_le_bytes().to_vec();
        for (name, pair) in &self.pairs {
            seen.extend(name.bytes());
            pair.iter().for_each(|one| seen.extend(one.bytes().iter().take(64)));
        }
        fnv1a(seen)
    }

    /// Checks that the adapter can be merged into these weights.
    ///
    /// # Errors
    /// When a matrix with an adapter is quantised: its blocks cannot hold the difference.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        check_plain(weights, self.pairs.keys().map(String::as_str))
    }

    /// Returns a tensor of the model in `dtype` and with its adapter, if it has one. `name` is that of
    /// the published layout.
    #[must_use]
    pub fn merged(&self, name: &str, tensor: &Tensor, dtype: Dtype) -> Tensor {
        let Some(pair) = self.pairs.get(name) else { return tensor.to_dtype(dtype) };
        let (rows, cols) = tensor.matrix_shape();
        let p = Merge {
            first: 0,
            rows: rows as u32,
            cols: cols as u32,
            rank: self.lora.rank as u32,
            scale: self.lora.scale(),
        };
        let [a, b] = pair.each_ref().map(Tensor::to_f32);
        let mut values = vec![0.0; rows * cols];
        merge(p, &Matrix::new(std::slice::from_ref(tensor)), Some([&b, &a]), None, &mut values);
        let mut block = vec![0; dtype.bytes(rows * cols)];
        let bytes = bytemuck::cast_slice(&values);
        Rows { bytes, from: Dtype::F32, to: dtype, cols }.convert(&mut block, |row| row);
        Tensor::of_block(dtype, tensor.shape(), &Arc::new(block), 0)
    }

    /// Merges the adapter into weights. Each matrix keeps its format and moves from the file to
    /// memory.
    ///
    /// # Errors
    /// As [`Adapter::check`].
    pub fn merge(&self, weights: &mut Weights) -> Result<()> {
        self.check(weights)?;
        for name in self.pairs.keys() {
            let tensor = weights.get(name)?;
            weights.set(name, self.merged(name, &tensor, tensor.dtype()));
        }
        Ok(())
    }
}

/// Checks that an adapter can be merged into tensors of these names in the published layout.
///
/// # Errors
/// When one is quantised or, other than the head, missing.
pub fn check_plain<'a>(weights: &Weights, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    for name in names {
        let dtype = match weights.get(name) {
            Ok(tensor) => tensor.dtype(),
            Err(_) if name == HEAD => continue,
            Err(error) => return Err(error),
        };
        if dtype.is_quantized() {
            return Err(Error::Tensor {
                path: weights.path().into(),
                tensor: name.into(),
                expected: "F32, F16 or BF16, because an adapter cannot be merged into quantised \
                           weights"
                    .into(),
                found: dtype.to_string(),
            });
        }
    }
    Ok(())
}
