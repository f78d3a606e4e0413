//! Parser and checks of the `config.json` of a Llama, Mistral or Mixtral checkpoint.
//!
//! Every number is checked here, once; later code relies on it, for example on `kv_heads`
//! dividing `heads`. An absent field gets the default of its class in transformers, or is refused
//! as missing; null means that the field is absent or switched off.

pub(crate) mod fields;
pub(crate) mod limits;
mod rope;
mod write;

pub(crate) use rope::MAX_FACTOR;
pub use rope::RopeScaling;
pub use write::with_dtype;

use crate::format::Dtype;
use crate::{Error, Result};
use fields::{Fields, object};
use serde_json::Value;
use std::fmt;
use std::path::Path;

/// Kind of a model: its class in transformers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `LlamaForCausalLM`, and what a GGUF file of architecture `llama` holds without experts.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `MixtralForCausalLM`.
    Mixtral,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Shape and constants of a model. Fields are named by the crate's vocabulary.
#[derive(Clone, PartialEq)]
pub struct Config {
    /// Kind of the model. All kinds compute the same; what a `config.json` leaves out differs.
    pub family: Family,
    /// Width of the residual stream (`hidden_size`).
    pub dim: usize,
    /// Number of transformer layers (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`); divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even. It defaults to `dim / heads`.
    pub head_dim: usize,
    /// Width of the feed-forward (`intermediate_size`), or of one expert in a mixture.
    pub hidden: usize,
    /// Rows of the embedding table (`vocab_size`).
    pub vocab: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f32,
    /// Scaling of these frequencies.
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square in each RMS norm.
    pub norm_eps: f32,
    /// Sliding window of causal attention in tokens, the query itself included.
    pub window: Option<usize>,
    /// Longest sequence that the model supports (`max_position_embeddings`).
    pub max_positions: usize,
    /// Id of `<s>`.
    pub bos: u32,
    /// End-of-sequence token ids: those of `config.json`, then further ones from
    /// `generation_config.json`. The first separates the turns of a conversation.
    pub eos: Vec<u32>,
    /// Whether `lm_head` is the embedding table (`tie_word_embeddings`).
    pub tied: bool,
    /// The mixture of experts, if the model is a Mixtral.
    pub experts: Option<Experts>,
}

impl fmt::Debug for Config {
    /// Leaves out what a plain Mistral or Mixtral does not need: engines hash this text to tell
    /// models apart, and stores that were made before the other kinds existed stay valid.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Config");
        out.field("dim", &self.dim)
            .field("layers", &self.layers)
            .field("heads", &self.heads)
            .field("kv_heads", &self.kv_heads)
            .field("head_dim", &self.head_dim)
            .field("hidden", &self.hidden)
            .field("vocab", &self.vocab)
            .field("rope_theta", &self.rope_theta)
            .field("norm_eps", &self.norm_eps)
            .field("window", &self.window)
            .field("max_positions", &self.max_positions)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("tied", &self.tied)
            .field("experts", &self.experts)
            // A field of the past, which the fingerprints of stores go on to contain.
            .field("instruction_apart", &false);
        if self.family == Family::Llama {
            out.field("family", &self.family);
        }
        if let Some(scaling) = &self.rope_scaling {
            out.field("rope_scaling", scaling);
        }
        out.finish()
    }
}

/// Sizes of the mixture of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Experts {
    /// Experts per layer (`num_local_experts`).
    pub count: usize,
    /// Experts that each token is routed to (`num_experts_per_tok`).
    pub top_k: usize,
}

impl Config {
    /// Reads and checks `config.json`, and the `eos_token_id` of a `generation_config.json` in
    /// the same folder.
    ///
    /// # Errors
    /// When a file cannot be read, is not JSON, names another architecture, or has a value that
    /// is missing, not positive, out of range or not divisible as required.
    pub fn open(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(Error::io(path))?;
        let beside = path.with_file_name("generation_config.json");
        let generation = match std::fs::read(&beside) {
            Ok(text) => Some(object(&text, &beside)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(Error::io(&beside)(e)),
        };
        let generation = generation.as_ref().map(|json| Fields { json, path: &beside });
        Self::check(&Fields { json: &object(&text, path)?, path }, generation.as_ref())
    }

    /// Checks the text of a `config.json`. Errors name `path`.
    ///
    /// # Errors
    /// As [`Config::open`].
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        Self::check(&Fields { json: &object(text, path)?, path }, None)
    }

    fn check(fields: &Fields<'_>, generation: Option<&Fields<'_>>) -> Result<Self> {
        // `model_type` decides, because copies made for other servers have "GritLM" in
        // `architectures`.
        let family = match fields.text("model_type")? {
            "llama" => Family::Llama,
            "mistral" => Family::Mistral,
            "mixtral" => Family::Mixtral,
            other => {
                let expected = "\"llama\", \"mistral\" or \"mixtral\"";
                return fields.fail("model_type", expected, other);
            }
        };
        if let Some(Value::String(act)) = fields.get("hidden_act")
            && act != "silu"
        {
            return fields.fail("hidden_act", "\"silu\"", act);
        }
        let llama = family == Family::Llama;
        if llama {
            fields.switched_off("attention_bias", "biases")?;
            fields.switched_off("mlp_bias", "biases")?;
        }

        let dim = fields.count("hidden_size", limits::DIM)?;
        let heads = fields.count("num_attention_heads", limits::HEADS)?;
        let kv_heads = match fields.json.get("num_key_value_heads") {
            None if !llama => 8,
            None | Some(Value::Null) => heads,
            Some(_) => fields.count("num_key_value_heads", limits::HEADS)?,
        };
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads {heads}");
            return fields.fail("num_key_value_heads", &expected, kv_heads);
        }
        let head_dim = match fields.get("head_dim") {
            Some(_) => fields.count("head_dim", limits::HEAD_DIM)?,
            None if dim % heads == 0 => dim / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads {heads}, or head_dim");
                return fields.fail("hidden_size", &expected, dim);
            }
        };
        if head_dim % 2 != 0 {
            return fields.fail("head_dim", "an even number (rotary pairs)", head_dim);
        }
        let vocab = fields.count("vocab_size", limits::VOCAB)?;
        let experts = if family == Family::Mixtral {
            let count = fields.count("num_local_experts", limits::EXPERTS)?;
            let top_k = fields.count("num_experts_per_tok", limits::EXPERTS)?;
            if top_k > count {
                let expected = format!("at most num_local_experts {count}");
                return fields.fail("num_experts_per_tok", &expected, top_k);
            }
            Some(Experts { count, top_k })
        } else {
            None
        };
        let (rope_theta, rope_scaling) =
            rope::read(fields, if family == Family::Mixtral { 1e6 } else { 1e4 })?;
        // Only Llama's class has ids of its own for tokens that the file does not name.
        let unsaid = |field: &str| llama && !fields.json.contains_key(field);
        let own = fields.tokens("eos_token_id", vocab)?;
        let more = generation.map(|g| g.tokens("eos_token_id", vocab)).transpose()?.flatten();
        let mut eos = match own.or_else(|| more.clone()) {
            Some(eos) => eos,
            None if unsaid("eos_token_id") && vocab > 2 => vec![2],
            None => return fields.fail("eos_token_id", "a token id", "nothing"),
        };
        for id in more.unwrap_or_default() {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        let bos = match fields.get("bos_token_id") {
            Some(id) => fields.token("bos_token_id", id, vocab)?,
            None if unsaid("bos_token_id") && vocab > 1 => 1,
            None => return fields.fail("bos_token_id", "a token id", "nothing"),
        };
        Ok(Self {
            family,
            dim,
            layers: fields.count("num_hidden_layers", limits::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            hidden: fields.count("intermediate_size", limits::HIDDEN)?,
            vocab,
            rope_theta,
            rope_scaling,
            norm_eps: match fields.json.get("rms_norm_eps") {
                None if llama => 1e-6,
                _ => fields.positive("rms_norm_eps")?,
            },
            window: match fields.json.get("sliding_window") {
                // Llama's class has no window, whatever the file says.
                _ if llama => None,
                None if family == Family::Mixtral => None,
                None => Some(4096),
                Some(Value::Null) => None,
                Some(_) => Some(fields.count("sliding_window", limits::TOKENS)?),
            },
            max_positions: match fields.json.get("max_position_embeddings") {
                None if llama => 2048,
                _ => fields.count("max_position_embeddings", limits::TOKENS)?,
            },
            bos,
            eos,
            tied: fields.flag("tie_word_embeddings"),
            experts,
        })
    }

    /// Returns the width of the stacked query, key and value projection.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Returns the RoPE frequencies, `(head_dim / 2)`: theta^(−2d / head_dim), scaled, in f32 as
    /// in transformers.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        rope::frequencies(self.rope_theta, self.head_dim, self.rope_scaling.as_ref())
    }

    /// Returns what the scaling divides each rotary frequency by, `(head_dim / 2)`, as GGUF files
    /// store it.
    pub(crate) fn rope_factors(&self) -> Vec<f32> {
        let plain = rope::frequencies(self.rope_theta, self.head_dim, None);
        match &self.rope_scaling {
            Some(RopeScaling::Factors(factors)) => factors.clone(),
            _ => plain
                .iter()
                .zip(self.rope_frequencies())
                .map(|(plain, scaled)| plain / scaled)
                .collect(),
        }
    }

    /// Returns the number of parameters; tied matrices count once.
    pub fn parameters(&self) -> u64 {
        let tensors = crate::weights::expected(self);
        tensors.iter().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Returns the bytes of keys and values per token in this format.
    pub fn kv_bytes_per_token(&self, dtype: Dtype) -> usize {
        2 * self.layers * self.kv_heads * dtype.bytes(self.head_dim)
    }
}
