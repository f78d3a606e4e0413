//! A config as the text of a `config.json` that transformers and this program read.

use super::{Config, Family, RopeScaling};
use crate::format::Dtype;
use serde_json::{Map, Value, json};

impl Config {
    /// Returns the text of a `config.json`, for weights in `dtype`. `None` where the rotary
    /// frequencies have factors of their own, which only GGUF files can say.
    ///
    /// ```
    /// use gritlm_model::{config::Config, demo, weights::Dtype};
    /// let path = std::path::Path::new("config.json");
    /// let config = Config::parse(demo::CONFIG, path)?;
    /// let text = config.to_json(Dtype::Bf16).unwrap_or_default();
    /// assert_eq!(Config::parse(text.as_bytes(), path)?, config);
    /// # Ok::<(), gritlm_model::Error>(())
    /// ```
    pub fn to_json(&self, dtype: Dtype) -> Option<String> {
        let (class, kind) = match self.family {
            Family::Llama => ("LlamaForCausalLM", "llama"),
            Family::Mistral => ("MistralForCausalLM", "mistral"),
            Family::Mixtral => ("MixtralForCausalLM", "mixtral"),
        };
        let eos = match self.eos.as_slice() {
            [one] => json!(one),
            more => json!(more),
        };
        let mut fields = json!({
            "architectures": [class],
            "model_type": kind,
            "torch_dtype": torch(dtype),
            "hidden_act": "silu",
            "hidden_size": self.dim,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.hidden,
            "vocab_size": self.vocab,
            "rms_norm_eps": decimal(self.norm_eps),
            "rope_theta": decimal(self.rope_theta),
            "max_position_embeddings": self.max_positions,
            "sliding_window": self.window,
            "bos_token_id": self.bos,
            "eos_token_id": eos,
            "tie_word_embeddings": self.tied,
        });
        let Value::Object(object) = &mut fields else { return None };
        let mut add = |name: &str, value: Value| object.insert(name.into(), value);
        match &self.rope_scaling {
            None => {}
            Some(RopeScaling::Factors(_)) => return None,
            Some(RopeScaling::Linear { factor }) => {
                add("rope_scaling", json!({ "rope_type": "linear", "factor": factor }));
            }
            Some(RopeScaling::Llama3 { factor, low, high, original }) => {
                add(
                    "rope_scaling",
                    json!({
                        "rope_type": "llama3",
                        "factor": factor,
                        "low_freq_factor": low,
                        "high_freq_factor": high,
                        "original_max_position_embeddings": original,
                    }),
                );
            }
        }
        if let Some(experts) = self.experts {
            add("num_local_experts", json!(experts.count));
            add("num_experts_per_tok", json!(experts.top_k));
        }
        if self.family == Family::Llama {
            object.remove("sliding_window");
        }
        text(object)
    }
}

/// Returns the text of a `config.json` with another type of its weights, everything else as it is;
/// `None` if it is not an object.
pub fn with_dtype(config: &[u8], dtype: Dtype) -> Option<String> {
    let mut object: Map<String, Value> = serde_json::from_slice(config).ok()?;
    // transformers 5 calls it `dtype`.
    let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    object.insert(key.into(), torch(dtype).into());
    text(&object)
}

/// Returns the name that PyTorch has for plain elements.
fn torch(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        _ => "bfloat16",
    }
}

fn text(object: &Map<String, Value>) -> Option<String> {
    serde_json::to_string_pretty(object).ok().map(|text| text + "\n")
}

/// Returns the shortest decimal number that is this one in f32: 1e-5, not 9.99999974e-6.
fn decimal(number: f32) -> f64 {
    number.to_string().parse().unwrap_or_else(|_| number.into())
}
