//! Options of OpenAI's and other servers that this server does not support. They would change the
//! result, so a request that sets one is refused with the option's name, unless the value has no
//! effect.

use super::failure::Failure;
use serde_json::{Map, Value};

/// The values of an option that have no effect; `null` is always one.
#[derive(Clone, Copy)]
enum Idle {
    /// `false`, 0, or an empty value.
    Off,
    /// `true`.
    On,
    /// 1.
    One,
    /// One of these names, or an array of them.
    Named(&'static [&'static str]),
    /// Only `null`.
    Null,
}

/// Options by name, with the values of each that have no effect.
pub(super) struct Options(&'static [(&'static str, Idle)]);

use Idle::{Named, Null, Off, On, One};

/// Options of requests for answers: OpenAI's, vLLM's, SGLang's, llama.cpp's and TGI's.
pub(super) const ANSWERS: Options = Options(&[
    ("add_generation_prompt", On),
    ("allowed_token_ids", Off),
    ("audio", Off),
    ("bad_words", Off),
    ("best_of", One),
    ("chat_template", Off),
    ("chat_template_kwargs", Off),
    ("continue_final_message", Off),
    ("custom_logit_processor", Off),
    ("do_sample", On),
    ("documents", Off),
    ("dry_multiplier", Off),
    ("dynatemp_range", Off),
    ("early_stopping", Off),
    ("ebnf", Off),
    ("echo", Off),
    ("frequency_penalty", Off),
    ("function_call", Named(&["none", "auto"])),
    ("functions", Off),
    ("grammar", Off),
    ("guided_choice", Off),
    ("guided_grammar", Off),
    // An empty schema asks for JSON.
    ("guided_json", Null),
    ("guided_regex", Off),
    ("include_stop_str_in_output", Off),
    ("json_schema", Null),
    ("length_penalty", One),
    ("logit_bias", Off),
    ("logits_processors", Off),
    ("lora", Off),
    ("lora_path", Off),
    ("max_new_tokens", Null),
    ("min_tokens", Off),
    ("mirostat", Off),
    ("mirostat_mode", Off),
    ("mm_processor_kwargs", Off),
    ("modalities", Named(&["text"])),
    ("n_predict", Null),
    ("no_repeat_ngram_size", Off),
    ("no_stop_trim", Off),
    ("num_beams", One),
    ("presence_penalty", Off),
    ("prompt_embeds", Off),
    // 0 asks for the log-probabilities of the prompt's own tokens.
    ("prompt_logprobs", Null),
    ("reasoning_effort", Named(&["none"])),
    ("regex", Off),
    ("repeat_penalty", One),
    ("repetition_detection", Off),
    ("return_full_text", Off),
    ("return_hidden_states", Off),
    ("return_token_ids", Off),
    ("return_tokens_as_token_ids", Off),
    ("skip_special_tokens", On),
    ("spaces_between_special_tokens", On),
    ("stop_regex", Off),
    ("stop_token_ids", Off),
    ("structural_tag", Off),
    ("structured_outputs", Off),
    ("suffix", Off),
    ("tfs_z", One),
    ("thinking_token_budget", Null),
    ("tool_choice", Named(&["none", "auto"])),
    ("tools", Off),
    ("top_a", Off),
    ("truncate_prompt_tokens", Null),
    ("typical_p", One),
    ("use_beam_search", Off),
    ("verbosity", Named(&["medium"])),
    ("vllm_xargs", Off),
    ("watermark", Off),
    // An empty object asks for a search.
    ("web_search_options", Null),
    ("xtc_probability", Off),
]);

/// Options of a conversation's messages.
pub(super) const MESSAGES: Options =
    Options(&[("audio", Null), ("function_call", Off), ("tool_calls", Off)]);

/// Options of requests for embeddings: vLLM's, Jina's, Voyage's, Cohere's and Infinity's.
pub(super) const EMBEDDINGS: Options = Options(&[
    ("activation", On),
    ("chat_template", Off),
    ("chat_template_kwargs", Off),
    ("embed_dtype", Named(&["float32"])),
    ("embedding_type", Named(&["float"])),
    ("embedding_types", Named(&["float"])),
    ("endianness", Named(&["native", "little"])),
    ("input_type", Null),
    ("late_chunking", Off),
    ("mm_processor_kwargs", Off),
    ("modality", Named(&["text"])),
    ("normalized", On),
    ("output_dimension", Null),
    ("output_dtype", Named(&["float"])),
    ("prompt", Off),
    ("prompt_name", Off),
    ("task", Null),
    ("truncation", Off),
    ("use_activation", On),
]);

/// Options of requests for ranking: vLLM's, Jina's, Voyage's, TEI's and Cohere's older ones.
pub(super) const RANKS: Options = Options(&[
    ("activation", On),
    ("chat_template", Off),
    ("chat_template_kwargs", Off),
    ("instruction", Off),
    ("max_chunks_per_doc", Null),
    ("mm_processor_kwargs", Off),
    ("rank_fields", Off),
    ("raw_scores", Off),
    ("return_embeddings", Off),
    ("softmax", On),
    ("top_k", Null),
    ("truncate_prompt_tokens", Null),
    ("truncation", On),
    ("use_activation", On),
]);

impl Options {
    /// Refuses a field that is one of these options and has a value with an effect. `place` is put
    /// in front of the field's name in the error.
    pub(super) fn refuse(&self, fields: &Map<String, Value>, place: &str) -> Result<(), Failure> {
        for (name, value) in fields {
            let option = self.0.iter().find(|(option, _)| option == name);
            if option.is_some_and(|(_, idle)| !idle.fits(value)) {
                return Err(Failure::field(
                    format!("{place}{name}"),
                    "not supported; leave it out",
                ));
            }
        }
        Ok(())
    }
}

impl Idle {
    fn fits(self, value: &Value) -> bool {
        match (self, value) {
            (_, Value::Null) => true,
            (Off, Value::Bool(on)) => !on,
            (Off, Value::Number(number)) => number.as_f64() == Some(0.0),
            (Off, Value::String(text)) => text.is_empty(),
            (Off, Value::Array(all)) => all.is_empty(),
            (Off, Value::Object(all)) => all.values().all(|value| self.fits(value)),
            (On, value) => *value == Value::Bool(true),
            (One, value) => value.as_f64() == Some(1.0),
            (Named(names), Value::String(name)) => {
                name.is_empty() || names.contains(&name.as_str())
            }
            (Named(_), Value::Array(all)) => all.iter().all(|value| self.fits(value)),
            (Named(_) | Null, _) => false,
        }
    }
}
