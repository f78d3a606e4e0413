//! Parser and checks of a Mistral or Mixtral checkpoint's `config.json`.
//!
//! Every number is checked here, once; later code relies on it, for example on `kv_heads`
//! dividing `heads`. An absent field gets the default of its class in transformers, or is refused
//! as missing; null means that the field is absent or switched off.

mod rope;

use crate::{Error, Result, files};
use serde_json::{Map, Value};
use std::path::Path;

/// Shape and constants of a model. Fields are named by the crate's vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
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
    /// Whether the instruction and the text to embed are tokenized separately, each as if it
    /// began a text (`gritlm_instruction_apart`, a field of this project). The demo model was
    /// trained that way. GritLM was trained on one string, in which a text's first word gets
    /// another token.
    pub instruction_apart: bool,
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
        let mixture = match fields.text("model_type")? {
            "mistral" => false,
            "mixtral" => true,
            other => return fields.fail("model_type", "\"mistral\" or \"mixtral\"", other),
        };
        if let Some(Value::String(act)) = fields.get("hidden_act")
            && act != "silu"
        {
            return fields.fail("hidden_act", "\"silu\"", act);
        }

        let dim = fields.count("hidden_size", 1 << 20)?;
        let heads = fields.count("num_attention_heads", 1 << 16)?;
        let kv_heads = match fields.json.get("num_key_value_heads") {
            None => 8,
            Some(Value::Null) => heads,
            Some(_) => fields.count("num_key_value_heads", 1 << 16)?,
        };
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of num_attention_heads {heads}");
            return fields.fail("num_key_value_heads", &expected, kv_heads);
        }
        let head_dim = match fields.get("head_dim") {
            Some(_) => fields.count("head_dim", 1 << 12)?,
            None if dim % heads == 0 => dim / heads,
            None => {
                let expected = format!("a multiple of num_attention_heads {heads}, or head_dim");
                return fields.fail("hidden_size", &expected, dim);
            }
        };
        if head_dim % 2 != 0 {
            return fields.fail("head_dim", "an even number (rotary pairs)", head_dim);
        }
        let vocab = fields.count("vocab_size", 1 << 24)?;
        let experts = if mixture {
            let count = fields.count("num_local_experts", 1 << 8)?;
            let top_k = fields.count("num_experts_per_tok", 1 << 8)?;
            if top_k > count {
                let expected = format!("at most num_local_experts {count}");
                return fields.fail("num_experts_per_tok", &expected, top_k);
            }
            Some(Experts { count, top_k })
        } else {
            None
        };
        let theta = rope::theta(fields, if mixture { 1e6 } else { 1e4 })?;
        let own = fields.tokens("eos_token_id", vocab)?;
        let more = generation.map(|g| g.tokens("eos_token_id", vocab)).transpose()?.flatten();
        let Some(mut eos) = own.or_else(|| more.clone()) else {
            return fields.fail("eos_token_id", "a token id", "nothing");
        };
        for id in more.unwrap_or_default() {
            if !eos.contains(&id) {
                eos.push(id);
            }
        }
        let bos = match fields.get("bos_token_id") {
            Some(id) => fields.token("bos_token_id", id, vocab)?,
            None => return fields.fail("bos_token_id", "a token id", "nothing"),
        };
        Ok(Self {
            dim,
            layers: fields.count("num_hidden_layers", 1 << 10)?,
            heads,
            kv_heads,
            head_dim,
            hidden: fields.count("intermediate_size", 1 << 24)?,
            vocab,
            rope_theta: theta,
            norm_eps: fields.positive("rms_norm_eps")?,
            window: match fields.json.get("sliding_window") {
                None if mixture => None,
                None => Some(4096),
                Some(Value::Null) => None,
                Some(_) => Some(fields.count("sliding_window", 1 << 31)?),
            },
            max_positions: fields.count("max_position_embeddings", 1 << 31)?,
            bos,
            eos,
            tied: fields.flag("tie_word_embeddings"),
            experts,
            instruction_apart: fields.flag("gritlm_instruction_apart"),
        })
    }

    /// Returns the width of the stacked query, key and value projection.
    pub fn qkv_rows(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Returns the RoPE frequencies, `(head_dim / 2)`: theta^(−2d / head_dim), in f32 as in
    /// transformers.
    pub fn rope_frequencies(&self) -> Vec<f32> {
        let turn = |d| 1.0 / self.rope_theta.powf(2.0 * d as f32 / self.head_dim as f32);
        (0..self.head_dim / 2).map(turn).collect()
    }

    /// Returns the number of parameters; tied matrices count once.
    pub fn parameters(&self) -> u64 {
        let tensors = crate::weights::expected(self);
        tensors.iter().map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Returns the bytes of keys and values per token, at `element` bytes per element (2 in
    /// bf16).
    pub fn kv_bytes_per_token(&self, element: usize) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * element
    }
}

/// Parses the JSON object in a file.
fn object(text: &[u8], path: &Path) -> Result<Map<String, Value>> {
    files::check_pointer(text, path)?;
    serde_json::from_slice(text)
        .map_err(|e| Error::Format { path: path.into(), problem: format!("not JSON: {e}") })
}

/// A JSON object and the file it came from, for errors that name both field and file.
struct Fields<'a> {
    json: &'a Map<String, Value>,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    fn fail<T>(&self, field: &'static str, expected: &str, found: impl ToString) -> Result<T> {
        let (expected, mut found) = (expected.to_string(), found.to_string());
        // Truncate the value, so that a hostile file cannot fill the terminal.
        if let Some((cut, _)) = found.char_indices().nth(60) {
            found.truncate(cut);
            found.push('…');
        }
        Err(Error::Config { path: self.path.into(), field, expected, found })
    }

    /// Returns the field's value; null counts as absent.
    fn get(&self, field: &str) -> Option<&'a Value> {
        self.json.get(field).filter(|v| !v.is_null())
    }

    fn flag(&self, field: &str) -> bool {
        self.get(field) == Some(&Value::Bool(true))
    }

    fn text(&self, field: &'static str) -> Result<&'a str> {
        match self.get(field) {
            Some(Value::String(text)) => Ok(text),
            Some(other) => self.fail(field, "a string", other),
            None => self.fail(field, "a string", "nothing"),
        }
    }

    /// Returns a whole number from 1 to `max`.
    fn count(&self, field: &'static str, max: u64) -> Result<usize> {
        let expected = format!("a whole number from 1 to {max}");
        match self.get(field) {
            None => self.fail(field, &expected, "nothing"),
            Some(value) => match value.as_u64() {
                Some(n) if (1..=max).contains(&n) => Ok(n as usize),
                _ => self.fail(field, &expected, value),
            },
        }
    }

    fn positive(&self, field: &'static str) -> Result<f32> {
        match self.get(field) {
            None => self.fail(field, "a positive number", "nothing"),
            Some(value) => self.positive_value(field, value),
        }
    }

    fn positive_value(&self, field: &'static str, value: &Value) -> Result<f32> {
        match value.as_f64().map(|n| n as f32) {
            Some(n) if n > 0.0 && n.is_finite() => Ok(n),
            _ => self.fail(field, "a positive number", value),
        }
    }

    /// Returns one or several token ids; `None` where the field is absent.
    fn tokens(&self, field: &'static str, vocab: usize) -> Result<Option<Vec<u32>>> {
        let ids = match self.get(field) {
            None => return Ok(None),
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) => std::slice::from_ref(id),
        };
        ids.iter().map(|id| self.token(field, id, vocab)).collect::<Result<_>>().map(Some)
    }

    fn token(&self, field: &'static str, value: &Value, vocab: usize) -> Result<u32> {
        match value.as_u64() {
            Some(id) if id < vocab as u64 => Ok(id as u32),
            _ => self.fail(field, &format!("a token id below vocab_size {vocab}"), value),
        }
    }
}
