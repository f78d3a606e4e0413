//! The metadata that say what a checkpoint's config, tokenizer and chat template say: the
//! opposite of `config.rs`.

use super::config::ARCHITECTURE;
use super::metadata::Value;
use crate::Result;
use crate::chat_template::ChatTemplate;
use crate::config::{Config, RopeScaling};
use crate::tokenizer::Tokenizer;
use std::collections::BTreeMap;
use std::path::Path;

/// Returns the metadata of a GGUF file of this model, but for what its weights decide. Errors
/// name `path`.
///
/// # Errors
/// When GGUF has no words for the tokenizer; see [`Tokenizer::to_gguf`].
pub fn describe(
    config: &Config,
    tokenizer: &Tokenizer,
    chat_template: Option<&ChatTemplate>,
    name: &str,
    path: &Path,
) -> Result<BTreeMap<String, Value>> {
    let c = config;
    let mut all = tokenizer.to_gguf(config, path)?;
    all.insert("general.architecture".into(), Value::String(ARCHITECTURE.into()));
    all.insert("general.name".into(), Value::String(name.into()));
    if let Some(template) = chat_template {
        all.insert("tokenizer.chat_template".into(), Value::String(template.source().into()));
    }
    let mut add = |name: &str, value: Value| {
        all.insert(format!("{ARCHITECTURE}.{name}"), value);
    };
    let counts = [
        ("block_count", Some(c.layers)),
        ("context_length", Some(c.max_positions)),
        ("embedding_length", Some(c.dim)),
        ("feed_forward_length", Some(c.hidden)),
        ("attention.head_count", Some(c.heads)),
        ("attention.head_count_kv", Some(c.kv_heads)),
        ("attention.key_length", Some(c.head_dim)),
        ("attention.value_length", Some(c.head_dim)),
        ("attention.sliding_window", c.window),
        ("rope.dimension_count", Some(c.head_dim)),
        ("vocab_size", Some(c.vocab)),
        ("expert_count", c.experts.map(|experts| experts.count)),
        ("expert_used_count", c.experts.map(|experts| experts.top_k)),
    ];
    for (name, count) in counts {
        if let Some(count) = count {
            add(name, Value::U64(count as u64));
        }
    }
    add("attention.layer_norm_rms_epsilon", Value::F64(c.norm_eps.into()));
    add("rope.freq_base", Value::F64(c.rope_theta.into()));
    // Other scalings are a tensor of factors.
    if let Some(RopeScaling::Linear { factor }) = c.rope_scaling {
        add("rope.scaling.type", Value::String("linear".into()));
        add("rope.scaling.factor", Value::F64(factor));
    }
    Ok(all)
}
