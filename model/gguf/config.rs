//! The config of a model from a GGUF file's metadata, checked as strictly as a `config.json`.

use super::files::Gguf;
use super::metadata::{Metadata, Value};
use super::names;
use crate::config::{Config, Experts, Family, MAX_FACTOR, RopeScaling, limits};
use crate::format::Dtype;
use crate::{Error, Result, format};

/// The only architecture that is supported. llama.cpp gives it to Llama, Mistral and Mixtral.
pub(super) const ARCHITECTURE: &str = "llama";

/// Numbers of other architectures that would change what is computed. None of the supported
/// models has one.
const REFUSED: [&str; 8] = [
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
];

impl Gguf {
    /// Reads and checks the config.
    ///
    /// # Errors
    /// When the architecture is not `llama`, or a value is missing, not positive, out of range,
    /// not divisible as required, or asks for something that is not supported.
    pub fn config(&self) -> Result<Config> {
        let all = Keys(self.metadata());
        let architecture = all.0.string("general.architecture")?;
        if architecture != ARCHITECTURE {
            let key = "general.architecture";
            return all.0.fail(key, &format!("{ARCHITECTURE:?}"), all.0.get(key));
        }
        for key in REFUSED {
            if all.optional(key, Metadata::number)?.is_some_and(|n| n != 0.0) {
                return all.fail(key, "no such value");
            }
        }
        let dim = all.count("embedding_length", limits::DIM)?;
        let heads = all.count("attention.head_count", limits::HEADS)?;
        let kv_heads = match all.has("attention.head_count_kv") {
            true => all.count("attention.head_count_kv", limits::HEADS)?,
            false => heads,
        };
        if heads % kv_heads != 0 {
            let expected = format!("a divisor of attention.head_count {heads}");
            return all.fail("attention.head_count_kv", &expected);
        }
        let head_dim = match all.has("attention.key_length") {
            true => all.count("attention.key_length", limits::HEAD_DIM)?,
            false if dim % heads == 0 => dim / heads,
            false => {
                let expected = format!("a multiple of attention.head_count {heads}");
                return all.fail("embedding_length", &expected);
            }
        };
        if head_dim % 2 != 0 || head_dim > limits::HEAD_DIM {
            let expected = format!(
                "an even width of heads (rotary pairs) of at most {}, which is {head_dim} here",
                limits::HEAD_DIM
            );
            return all.fail("attention.key_length", &expected);
        }
        for key in ["attention.value_length", "rope.dimension_count"] {
            if all.has(key) && all.count(key, limits::HEAD_DIM)? != head_dim {
                return all.fail(key, &format!("{head_dim}, the width of a head"));
            }
        }
        let vocab = match all.has("vocab_size") {
            true => all.count("vocab_size", limits::VOCAB)?,
            false => self.tokens()?,
        };
        let experts = self.experts(&all)?;
        let rope_theta = match all.has("rope.freq_base") {
            true => all.positive("rope.freq_base")?,
            false => 1e4,
        };
        if rope_theta < 1.0 {
            return all.fail("rope.freq_base", "a number of at least 1");
        }
        Ok(Config {
            family: if experts.is_some() { Family::Mixtral } else { Family::Llama },
            dim,
            layers: all.count("block_count", limits::LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            hidden: all.count("feed_forward_length", limits::HIDDEN)?,
            vocab,
            rope_theta,
            rope_scaling: self.scaling(&all, head_dim)?,
            norm_eps: all.positive("attention.layer_norm_rms_epsilon")?,
            window: match all.zero("attention.sliding_window")
                || !all.has("attention.sliding_window")
            {
                true => None,
                false => Some(all.count("attention.sliding_window", limits::TOKENS)?),
            },
            max_positions: all.count("context_length", limits::TOKENS)?,
            bos: all.0.token("tokenizer.ggml.bos_token_id", vocab)?,
            eos: ends(all.0, vocab)?,
            tied: self.tensor(names::HEAD).is_none(),
            experts,
        })
    }

    /// Returns the number of tokens of the tokenizer.
    fn tokens(&self) -> Result<usize> {
        let key = "tokenizer.ggml.tokens";
        let tokens = self.metadata().strings(key)?.len();
        match (1..=limits::VOCAB).contains(&tokens) {
            true => Ok(tokens),
            false => {
                let expected = format!("1 to {} tokens", limits::VOCAB);
                self.metadata().fail(key, &expected, self.metadata().get(key))
            }
        }
    }

    fn experts(&self, all: &Keys<'_>) -> Result<Option<Experts>> {
        if !all.has("expert_count") || all.zero("expert_count") {
            return Ok(None);
        }
        let count = all.count("expert_count", limits::EXPERTS)?;
        let top_k = all.count("expert_used_count", limits::EXPERTS)?;
        if top_k > count {
            return all.fail("expert_used_count", &format!("at most expert_count {count}"));
        }
        Ok(Some(Experts { count, top_k }))
    }

    /// Returns the scaling of the rotary frequencies: by one factor, or by a tensor of factors.
    fn scaling(&self, all: &Keys<'_>, head_dim: usize) -> Result<Option<RopeScaling>> {
        // llama.cpp's own default, which matters where there is a factor.
        let kind = match all.has("rope.scaling.type") {
            true => all.0.string(&key("rope.scaling.type"))?,
            false => "linear",
        };
        if !["none", "linear"].contains(&kind) {
            let expected = "\"none\" or \"linear\" (llama3's comes as the tensor rope_freqs)";
            return all.fail("rope.scaling.type", expected);
        }
        if all.optional("rope.scaling.attn_factor", Metadata::number)?.is_some_and(|n| n != 1.0) {
            return all.fail("rope.scaling.attn_factor", "1");
        }
        // Old files have the second name.
        let place = ["rope.scaling.factor", "rope.scale_linear"].into_iter().find(|k| all.has(k));
        let mut scaling = None;
        if let Some(place) = place.filter(|_| kind == "linear") {
            let factor = all.0.number(&key(place))?;
            // Zero is llama.cpp's way of saying that there is none.
            if factor != 0.0 && !(1.0..=MAX_FACTOR).contains(&factor) {
                return all.fail(place, &format!("0 (none), or a number from 1 to {MAX_FACTOR}"));
            }
            scaling = (factor > 1.0).then_some(RopeScaling::Linear { factor });
        }
        let Some((part, info)) = self.tensor(names::ROPE_FACTORS) else { return Ok(scaling) };
        let fail = |expected: String, found: String| {
            let (path, tensor) = (part.path.clone(), info.name.clone());
            Err(Error::Tensor { path, tensor, expected, found })
        };
        if scaling.is_some() {
            let found = "llama.rope.scaling.factor as well".into();
            return fail("no linear scaling beside it".into(), found);
        }
        if info.dtype != Dtype::F32 || info.shape != [head_dim / 2] {
            let expected = format!("F32 [{}]", head_dim / 2);
            return fail(expected, format!("{} {:?}", info.dtype, info.shape));
        }
        let mut factors = vec![0.0; head_dim / 2];
        format::decode(Dtype::F32, part.factors(info), &mut factors);
        let range = 1.0 / MAX_FACTOR..=MAX_FACTOR;
        match factors.iter().find(|&&f| !range.contains(&f.into())) {
            Some(found) => {
                let expected = format!("factors from {} to {}", range.start(), range.end());
                fail(expected, found.to_string())
            }
            None => Ok(Some(RopeScaling::Factors(factors))),
        }
    }
}

/// Returns the tokens that end an answer. The first separates the turns of a conversation.
fn ends(all: &Metadata, vocab: usize) -> Result<Vec<u32>> {
    let mut ends = vec![all.token("tokenizer.ggml.eos_token_id", vocab)?];
    for more in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
        if all.has(more) {
            let id = all.token(more, vocab)?;
            if !ends.contains(&id) {
                ends.push(id);
            }
        }
    }
    Ok(ends)
}

/// Values of the architecture, by keys without its name.
struct Keys<'a>(&'a Metadata);

impl Keys<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.has(&key(name))
    }

    fn zero(&self, name: &str) -> bool {
        matches!(self.0.get(&key(name)), Some(Value::U64(0) | Value::I64(0)))
    }

    fn count(&self, name: &str, max: usize) -> Result<usize> {
        self.0.count(&key(name), max)
    }

    fn optional<T>(
        &self,
        name: &str,
        get: impl FnOnce(&Metadata, &str) -> Result<T>,
    ) -> Result<Option<T>> {
        self.has(name).then(|| get(self.0, &key(name))).transpose()
    }

    fn positive(&self, name: &str) -> Result<f32> {
        match self.0.number(&key(name))? as f32 {
            n if n > 0.0 && n.is_finite() => Ok(n),
            _ => self.fail(name, "a positive number"),
        }
    }

    fn fail<T>(&self, name: &str, expected: &str) -> Result<T> {
        let key = key(name);
        self.0.fail(&key, expected, self.0.get(&key))
    }
}

fn key(name: &str) -> String {
    format!("{ARCHITECTURE}.{name}")
}
