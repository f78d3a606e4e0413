//! Implements `POST /v1/embeddings` in the shape of OpenAI's API, and what the other endpoints that
//! embed share with it.

use super::answers::{RequestOptions, server_timing};
use super::body::{Body, Loaded};
use super::conversations::{Conversations, ConversationsShape};
use super::failure::{Failure, Failures};
use super::input::{Input, Texts};
use super::options;
use axum::Json;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use gritlm::schedule::Work;
use gritlm::{Attn, Embed, Embedding, Encoded, Engine, Error, Pooling};
use gritlm_model::prompt::embed_parts;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Instant;
use utoipa::ToSchema;

/// Texts to embed. Options of other servers that would change the vectors, such as `input_type`,
/// `task` and `output_dimension`, are refused unless their value has no effect; other fields are
/// ignored.
#[derive(Deserialize, ToSchema)]
pub(super) struct EmbeddingsRequest {
    /// One text or several, as strings or as token ids. Ids are those of the text alone, as
    /// `/tokenize` returns them with `add_special_tokens: false`; `<s>`, tags and instruction are
    /// put in front. A text that is a complete prompt already (`<|user|>\n…\n<|embed|>\n…`) is
    /// taken as it is, and its instruction is left out of pooling.
    input: Option<Input>,
    /// An extension, in place of `input`: one conversation or several, each of which becomes one
    /// vector. The user's messages are the text, and a system message in front is the instruction.
    #[schema(value_type = Option<ConversationsShape>)]
    messages: Option<Conversations>,
    /// The model's name, as `/v1/models` lists it.
    model: Option<String>,
    /// How to write the vectors: as numbers, or as the base64 of their little-endian f32.
    #[schema(default = "float")]
    encoding_format: Option<Encoding>,
    /// Number of leading elements to keep of each vector, which is then L2-normalised again unless
    /// `normalize` is false.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// Not used.
    #[serde(rename = "user")]
    _user: Option<String>,
    /// An extension: an instruction that says what the vectors are for, such as "Given a question,
    /// retrieve passages that answer it"; none for documents. It is attended to and left out of
    /// pooling.
    instruction: Option<String>,
    /// An extension: how a text's hidden states become one vector.
    #[schema(default = "mean")]
    pooling: Option<PoolingName>,
    /// An extension: whether to L2-normalise the vectors.
    #[schema(default = true)]
    normalize: Option<bool>,
    /// An extension: whether to cut texts that are longer than `max_length` rather than refuse
    /// them. Defaults to true if `max_length` or `truncate_prompt_tokens` is given.
    truncate: Option<bool>,
    /// An extension: maximum number of tokens of a text, including `<s>`, tags and instruction. The
    /// default, and the largest value, is what both the model's positions and the KV cache have
    /// room for (`gritlm embed` and the library cut at 512).
    #[schema(minimum = 1)]
    max_length: Option<usize>,
    /// An extension: vLLM's name for `max_length` with `truncate`. -1 and values above the limit
    /// mean the limit.
    #[schema(minimum = -1)]
    truncate_prompt_tokens: Option<i64>,
    /// An extension: the attention for embedding. `cccc` is causal, for checkpoints that were
    /// trained that way.
    attn: Option<AttnName>,
    /// An extension: requests with a higher priority are scheduled earlier. One level is worth 64
    /// steps of waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the answer is no longer needed.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// How vectors are written.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    Base64,
}

/// How hidden states become one vector.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PoolingName {
    Mean,
    WeightedMean,
    Cls,
    LastToken,
}

impl From<PoolingName> for Pooling {
    fn from(name: PoolingName) -> Self {
        match name {
            PoolingName::Mean => Self::Mean,
            PoolingName::WeightedMean => Self::WeightedMean,
            PoolingName::Cls => Self::Cls,
            PoolingName::LastToken => Self::LastToken,
        }
    }
}

/// The attention of embedding and generation, in the letters of the original implementation.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum AttnName {
    Bbcc,
    Cccc,
}

impl From<AttnName> for Attn {
    fn from(name: AttnName) -> Self {
        match name {
            AttnName::Bbcc => Self::Bbcc,
            AttnName::Cccc => Self::Cccc,
        }
    }
}

/// The vectors, in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(super) struct EmbeddingsResponse {
    /// `list`.
    object: &'static str,
    data: Vec<EmbeddingObject>,
    /// The model's name.
    model: String,
    usage: EmbeddingsUsage,
}

/// A text's vector.
#[derive(Serialize, ToSchema)]
struct EmbeddingObject {
    /// `embedding`.
    object: &'static str,
    /// Index of the text, from 0.
    index: usize,
    embedding: Vector,
}

/// A vector, in the format that `encoding_format` selects.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    fn new(vector: Vec<f32>, encoding: Encoding) -> Self {
        match encoding {
            Encoding::Float => Self::Float(vector),
            Encoding::Base64 => Self::Base64(base64(&vector)),
        }
    }
}

/// Returns the base64 of a vector's little-endian f32.
pub(super) fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
    BASE64_STANDARD.encode(bytes)
}

/// Token counts.
#[derive(Serialize, ToSchema)]
struct EmbeddingsUsage {
    /// Tokens of all texts, including `<s>`, tags and instruction, without those that were cut off.
    prompt_tokens: usize,
    /// The same as `prompt_tokens`.
    total_tokens: usize,
}

/// Embeds texts.
#[utoipa::path(post, path = "/v1/embeddings", tag = "embedding", request_body = EmbeddingsRequest,
    responses((status = 200, body = EmbeddingsResponse), Failures))]
pub(super) async fn embeddings(
    loaded: Loaded,
    Body(body): Body<EmbeddingsRequest>,
) -> Result<Response, Failure> {
    options::EMBEDDINGS.refuse(&body.rest, "")?;
    loaded.check_model(body.model.as_deref())?;
    let (field, input) = match (body.input, body.messages) {
        (Some(input), None) => ("input", input),
        (None, Some(messages)) => ("messages", messages.texts()?),
        (None, None) => {
            return Err(Failure::field("input", format!("expected {}, found none", Input::KINDS)));
        }
        (Some(_), Some(_)) => {
            let problem = "expected \"input\" or \"messages\", found both";
            return Err(Failure::field("messages", problem));
        }
    };
    let limit = loaded.max_length();
    let cut_at = cut_at(body.truncate_prompt_tokens, limit)?;
    if cut_at.is_some() && body.max_length.is_some() {
        let problem = "expected it or \"max_length\", found both";
        return Err(Failure::field("truncate_prompt_tokens", problem));
    }
    let max_length = body.max_length.or(cut_at).unwrap_or(limit);
    if !(1..=limit).contains(&max_length) {
        let problem = format!("expected 1 to {limit} tokens, found {max_length}");
        return Err(Failure::field("max_length", problem));
    }
    let how = Embed::default()
        .instruction(body.instruction.unwrap_or_default())
        .pooling(body.pooling.map_or(Pooling::Mean, Pooling::from))
        .normalize(body.normalize.unwrap_or(true))
        .max_length(max_length)
        .attn(body.attn.map(Attn::from))
        .mask(None)
        .dimensions(body.dimensions)
        .keep_kv(false);
    let options = RequestOptions { priority: body.priority, timeout: body.timeout };
    let truncate = body.truncate.unwrap_or(body.max_length.or(cut_at).is_some());
    let start = Instant::now();
    let texts = loaded.encode(field, input, &how, truncate).await?;
    let tokenize = start.elapsed();
    let answers = loaded.submit(Work::Embed { texts, options: how }, options)?;
    let (found, summary) = answers.embeddings().await?;

    let timing = server_timing(tokenize, &summary.timings);
    let encoding = body.encoding_format.unwrap_or(Encoding::Float);
    let (model, tokens) = (loaded.app.settings.name.clone(), summary.prompt_tokens);
    let object = move |(index, found): (usize, Embedding)| EmbeddingObject {
        object: "embedding",
        index,
        embedding: Vector::new(found.vector, encoding),
    };
    let answer = move || EmbeddingsResponse {
        object: "list",
        data: found.into_iter().enumerate().map(object).collect(),
        model,
        usage: EmbeddingsUsage { prompt_tokens: tokens, total_tokens: tokens },
    };
    loaded.render(timing, answer).await
}

/// Returns the length at which `truncate_prompt_tokens` cuts; -1 stands for the limit.
fn cut_at(tokens: Option<i64>, limit: usize) -> Result<Option<usize>, Failure> {
    match tokens {
        None => Ok(None),
        Some(-1) => Ok(Some(limit)),
        Some(tokens @ 1..) => Ok(Some(usize::try_from(tokens).unwrap_or(limit).min(limit))),
        Some(tokens) => {
            let problem = format!("expected a number of tokens, or -1, found {tokens}");
            Err(Failure::field("truncate_prompt_tokens", problem))
        }
    }
}

impl Loaded {
    /// Returns the maximum number of tokens of a text: the model's positions, or the KV cache's if
    /// it has fewer.
    pub(super) fn max_length(&self) -> usize {
        let engine = self.engine();
        engine.config().max_positions.min(engine.kv_tokens())
    }

    /// Encodes a field's texts for embedding. Unless `truncate` is set, a text that is too long is
    /// an error.
    pub(super) async fn encode(
        &self,
        field: &'static str,
        mut input: Input,
        how: &Embed,
        truncate: bool,
    ) -> Result<Vec<Encoded>, Failure> {
        input.check(field, self.app.settings.max_inputs, self.engine().config().vocab)?;
        let (how, most, tokenizer) = (how.clone(), self.max_length(), self.engine().tokenizer());
        // Text far behind the last token that can count does not have to be tokenized.
        if let Some((index, bytes)) = input.cut(tokenizer.most_bytes(how.max_length))
            && !truncate
        {
            let found = format!("at least {}", bytes / tokenizer.longest());
            return Err(long(&input.place(field, index), found, how.max_length, most));
        }
        self.blocking_of(input.bytes() + how.instruction.len(), move |engine| {
            let texts = match &input.texts {
                Texts::Text(texts) if texts.iter().any(|text| embed_parts(text).is_some()) => {
                    input.encode_prompts(field, texts, engine, &how)?
                }
                Texts::Text(texts) => engine.encode_texts(texts, &how),
                Texts::Ids(texts) => engine.encode_tokens(texts, &how),
            };
            let texts = texts.map_err(|error| match error {
                Error::EmptyText { index } => {
                    let problem = "expected a text, found one of no tokens";
                    Failure::field(input.place(field, index), problem)
                }
                Error::LongInstruction { tokens, limit } => {
                    let message =
                        format!("instruction: {tokens} tokens, expected fewer than {limit}");
                    Failure::too_long("instruction", message)
                }
                error => error.into(),
            })?;
            match texts.iter().enumerate().find(|(_, text)| text.truncated > 0 && !truncate) {
                None => Ok(texts),
                Some((index, text)) => {
                    let (place, found) =
                        (input.place(field, index), text.tokens.len() + text.truncated);
                    Err(long(&place, found, how.max_length, most))
                }
            }
        })
        .await
    }

    /// Serialises an answer of many numbers on a worker thread: 2048 vectors of 4096 elements are
    /// about 80 MB, too much for a handler.
    pub(super) async fn render<T: Serialize>(
        &self,
        timing: HeaderValue,
        answer: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Response, Failure> {
        let header = [(HeaderName::from_static("server-timing"), timing)];
        self.blocking(move |_| Ok((header, Json(answer())).into_response())).await
    }
}

impl Input {
    /// Encodes texts of which some are complete prompts, each with an instruction of its own.
    fn encode_prompts(
        &self,
        field: &str,
        texts: &[String],
        engine: &Engine,
        how: &Embed,
    ) -> Result<gritlm::Result<Vec<Encoded>>, Failure> {
        let mut groups: BTreeMap<&str, Vec<(usize, &str)>> = BTreeMap::new();
        for (index, text) in texts.iter().enumerate() {
            let (instruction, text) = embed_parts(text).unwrap_or((&how.instruction, text));
            if !how.instruction.is_empty() && instruction != how.instruction {
                let place = self.place(field, index);
                let problem = "it is a whole prompt; expected no \"instruction\" beside it";
                return Err(Failure::field(place, problem));
            }
            groups.entry(instruction).or_default().push((index, text));
        }
        let mut all = vec![None; texts.len()];
        for (instruction, group) in groups {
            let how = how.clone().instruction(instruction);
            let texts: Vec<&str> = group.iter().map(|&(_, text)| text).collect();
            match engine.encode_texts(&texts, &how) {
                Ok(encoded) => {
                    group.iter().zip(encoded).for_each(|(&(at, _), e)| all[at] = Some(e));
                }
                Err(Error::EmptyText { index }) => {
                    return Ok(Err(Error::EmptyText { index: group[index].0 }));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(all.into_iter().flatten().collect()))
    }
}

/// Returns the failure for a text that is longer than `limit`, which is the request's own limit or
/// `most`, the limit of every text.
fn long(place: &str, found: impl Display, limit: usize, most: usize) -> Failure {
    let more = "; \"truncate\": true cuts";
    if limit == most {
        return Failure::long_context(place, found, limit, more);
    }
    let message = format!("{place}: expected at most {limit} tokens, found {found}{more}");
    Failure::too_long(place, message)
}
