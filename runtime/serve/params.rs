//! The fields that requests for answers share, in both of OpenAI's endpoints and in `/v1/rag/ask`.

use super::answers::RequestOptions;
use super::failure::Failure;
use super::{objects, options};
use gritlm::{Engine, Grammar, Sampling};
use serde::Deserialize;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;
use std::marker::PhantomData;
use utoipa::ToSchema;

/// The most choices of one prompt.
const MAX_CHOICES: usize = 128;
/// The most stop texts. Each piece of an answer is searched for all of them, between two steps.
const MAX_STOPS: usize = 16;
const MAX_STOP_BYTES: usize = 1024;

/// How to answer. Options of OpenAI's and other servers that would change the answer, but are not
/// supported here, are refused unless their value has no effect: `tools`, `functions`,
/// `frequency_penalty`, `presence_penalty`, `logit_bias`, `best_of`, `suffix`, `modalities`,
/// `audio`, `guided_json`, `structured_outputs` and the like, `min_tokens`, `bad_words`,
/// `stop_token_ids`, `include_stop_str_in_output`, `"skip_special_tokens": false`,
/// `prompt_logprobs`, `truncate_prompt_tokens`, `use_beam_search` and more. Other fields are
/// ignored.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Params {
    /// The model's name; this server has only one model.
    pub(super) model: Option<String>,
    /// The most tokens to generate; the default is 256 in a chat and for `/v1/rag/ask`, else 16.
    max_tokens: Option<usize>,
    /// The newer name of `max_tokens`; it takes precedence if both are given.
    max_completion_tokens: Option<usize>,
    /// Divides the logits before sampling; 0 always takes the most likely token.
    #[schema(minimum = 0, default = 1)]
    temperature: Option<f32>,
    /// Sample from the smallest set of most likely tokens whose probabilities reach this sum.
    #[schema(exclusive_minimum = 0, maximum = 1, default = 1)]
    top_p: Option<f32>,
    /// Sample from the k most likely tokens; 0 for all.
    #[schema(default = 0)]
    top_k: Option<u32>,
    /// Sample from tokens with at least this share of the most likely token's probability.
    #[schema(minimum = 0, maximum = 1, default = 0)]
    min_p: Option<f32>,
    /// Penalty on tokens seen before: it divides positive logits and multiplies the others; 1 for
    /// none.
    #[schema(exclusive_minimum = 0, default = 1)]
    repetition_penalty: Option<f32>,
    /// Number of answers to each prompt; their seeds are `seed`, `seed` + 1, …
    #[schema(minimum = 1, maximum = 128, default = 1)]
    n: Option<usize>,
    /// Seed of sampling: the same seed gives the same answer, whatever else the server computes.
    /// Random if left out.
    seed: Option<i64>,
    /// Up to 16 texts of up to 1024 bytes that end the answer; they are not part of it.
    stop: Option<TextOr<String>>,
    /// Ignore the end-of-sequence token.
    #[schema(default = false)]
    ignore_eos: Option<bool>,
    /// Send the answer as server-sent events while it is generated.
    #[schema(default = false)]
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<StreamOptions>,
    /// The format of the answer. The answer is complete unless `max_tokens` cuts it off.
    pub(super) response_format: Option<ResponseFormat>,
    /// Requests with a higher number run earlier; one level is worth 64 steps of waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// Seconds after which the request expires.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
}

/// What a stream contains besides the answer.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    /// Whether to send a last chunk with the usage and without choices.
    #[schema(default = false)]
    include_usage: Option<bool>,
}

/// The format of an answer.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct ResponseFormat {
    r#type: Format,
    /// With the type `json_schema`.
    json_schema: Option<JsonSchema>,
}

/// Anything, a JSON object, or JSON that fits a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Format {
    Text,
    JsonObject,
    JsonSchema,
}

/// A schema that the answer follows strictly: tokens that would violate it are not sampled.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct JsonSchema {
    /// A JSON schema.
    schema: Map<String, Value>,
}

impl ResponseFormat {
    /// Compiles the grammar that the answer must follow, or returns None if any text will do. This
    /// takes a while.
    pub(super) fn grammar(self, engine: &Engine) -> Result<Option<Grammar>, Failure> {
        let grammar = match (self.r#type, self.json_schema) {
            (Format::JsonObject, _) => Grammar::json_object(engine)?,
            (Format::JsonSchema, Some(JsonSchema { schema })) => {
                let grammar = Grammar::json_schema(engine, &Value::Object(schema));
                grammar.map_err(|error| match error {
                    gritlm::Error::Input { problem, .. } => {
                        Failure::field("response_format.json_schema.schema", problem)
                    }
                    error => error.into(),
                })?
            }
            _ => return Ok(None),
        };
        Ok(Some(grammar))
    }
}

impl Params {
    /// Parses the fields that an endpoint has not taken itself.
    pub(super) fn parse(fields: Map<String, Value>) -> Result<Self, Failure> {
        options::ANSWERS.refuse(&fields, "")?;
        let params: Self = objects::deserialize(Value::Object(fields))
            .map_err(|e| Failure::field(e.path().to_string(), e.inner()))?;
        if params.stream_options.is_some() && !params.stream() {
            return Err(Failure::field("stream_options", "expected \"stream\": true beside it"));
        }
        match &params.response_format {
            Some(ResponseFormat { r#type: Format::JsonSchema, json_schema: None }) => {
                Err(Failure::field("response_format.json_schema", "expected a schema, found none"))
            }
            _ => Ok(params),
        }
    }

    /// Returns the sampling settings. `max_tokens` is the default where the request has no limit,
    /// and `logprobs` the number of most likely tokens to report.
    pub(super) fn sampling(&self, max_tokens: usize, logprobs: u32) -> Result<Sampling, Failure> {
        let stop = match &self.stop {
            None => Vec::new(),
            Some(TextOr::Text(stop)) => vec![stop.clone()],
            Some(TextOr::List(stops)) => stops.clone(),
        };
        let longest = stop.iter().map(String::len).max().unwrap_or(0);
        if stop.len() > MAX_STOPS || longest > MAX_STOP_BYTES {
            let found = format!("{} of up to {longest}", stop.len());
            let expected = format!("at most {MAX_STOPS} texts of at most {MAX_STOP_BYTES} bytes");
            return Err(Failure::field("stop", format!("expected {expected}, found {found}")));
        }
        let given = self.max_completion_tokens.or(self.max_tokens);
        Ok(Sampling::default()
            .max_tokens(given.unwrap_or(max_tokens))
            .temperature(self.temperature.unwrap_or(1.0))
            .top_k(self.top_k.unwrap_or(0))
            .top_p(self.top_p.unwrap_or(1.0))
            .min_p(self.min_p.unwrap_or(0.0))
            .repetition_penalty(self.repetition_penalty.unwrap_or(1.0))
            .seed(self.seed.map_or_else(|| fastrand::u64(..), |seed| seed as u64))
            .stop(stop)
            .logprobs(logprobs)
            .ignore_eos(self.ignore_eos.unwrap_or(false)))
    }

    /// Returns the number of choices for each prompt.
    pub(super) fn choices(&self) -> Result<usize, Failure> {
        match self.n.unwrap_or(1) {
            n if (1..=MAX_CHOICES).contains(&n) => Ok(n),
            n => Err(Failure::field("n", format!("expected 1 to {MAX_CHOICES}, found {n}"))),
        }
    }

    pub(super) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(super) fn include_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false)
    }

    pub(super) fn options(&self) -> RequestOptions {
        RequestOptions { priority: self.priority, timeout: self.timeout }
    }
}

/// A text, or a list.
#[derive(Clone, Debug, PartialEq, ToSchema)]
#[serde(untagged)]
pub(super) enum TextOr<T> {
    Text(String),
    List(Vec<T>),
}

/// Written by hand, so that errors have the index of the list's element.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for TextOr<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Either<T> {
            type Value = TextOr<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text.into()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Self::Value, E> {
                Ok(TextOr::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, all: A) -> Result<Self::Value, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(all)).map(TextOr::List)
            }
        }

        deserializer.deserialize_any(Either(PhantomData))
    }
}
