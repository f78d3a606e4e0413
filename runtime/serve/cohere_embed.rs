//! Implements `POST /v2/embed`: embeddings in the shape of Cohere's API.

use super::answers::{RequestOptions, server_timing};
use super::body::{Body, Loaded};
use super::cohere::{ApiVersion, MetaTokens};
use super::embeddings::base64;
use super::failure::{Failure, Failures};
use super::input::Input;
use axum::response::Response;
use gritlm::schedule::Work;
use gritlm::{Embed, Embedding};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use utoipa::ToSchema;

/// The instruction for queries if the request has none: the one that GritLM was evaluated with on
/// MS MARCO.
const QUERY: &str = "Given a web search query, retrieve relevant passages that answer the query";

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
pub(super) struct CohereEmbedRequest {
    /// The model's name, as `/v1/models` lists it.
    model: Option<String>,
    /// The texts.
    #[schema(min_items = 1)]
    texts: Vec<String>,
    /// What the vectors are for. `search_query` selects the instruction "Given a web search query,
    /// retrieve relevant passages that answer the query"; the other values select none.
    input_type: Option<InputType>,
    /// An extension: an instruction that says what the vectors are for, in place of the one that
    /// `input_type` selects.
    instruction: Option<String>,
    /// Maximum number of tokens of a text, including `<s>`, tags and instruction.
    #[schema(minimum = 1)]
    max_tokens: Option<usize>,
    /// Number of leading elements to keep of each vector, which is then L2-normalised again.
    #[schema(minimum = 1)]
    output_dimension: Option<usize>,
    /// How to write the vectors; as numbers if not given.
    embedding_types: Option<Vec<EmbeddingType>>,
    /// Whether a text that is too long is cut at its end or refused.
    #[schema(default = "END")]
    truncate: Option<Truncate>,
    /// Not supported: the model reads text.
    images: Option<Vec<String>>,
    /// Not supported; use `texts`.
    inputs: Option<Vec<serde_json::Value>>,
    /// An extension: requests with a higher priority are scheduled earlier. One level is worth 64
    /// steps of waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the answer is no longer needed.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
}

/// What a vector is for.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum InputType {
    SearchDocument,
    SearchQuery,
    Classification,
    Clustering,
}

/// How a vector is written: as numbers, as the base64 of its little-endian f32, or as its signs,
/// packed eight to a byte into signed or unsigned bytes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum EmbeddingType {
    Float,
    Base64,
    Binary,
    Ubinary,
}

/// Where texts that are too long are cut, if at all. Cutting at the start is not supported.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
enum Truncate {
    None,
    End,
}

/// The vectors by encoding, each list in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(super) struct CohereEmbedResponse {
    id: String,
    /// `embeddings_by_type`.
    response_type: &'static str,
    embeddings: ByType,
    texts: Vec<String>,
    meta: EmbedMeta,
}

/// The encodings that were requested.
#[derive(Default, Serialize, ToSchema)]
struct ByType {
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    float: Option<Vec<Vec<f32>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    base64: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    binary: Option<Vec<Vec<i8>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    ubinary: Option<Vec<Vec<u8>>>,
}

/// Fields that Cohere's clients read.
#[derive(Serialize, ToSchema)]
struct EmbedMeta {
    api_version: ApiVersion,
    billed_units: MetaTokens,
}

/// Embeds texts.
#[utoipa::path(post, path = "/v2/embed", tag = "embedding", request_body = CohereEmbedRequest,
    responses((status = 200, body = CohereEmbedResponse), Failures))]
pub(super) async fn embed(
    loaded: Loaded,
    Body(body): Body<CohereEmbedRequest>,
) -> Result<Response, Failure> {
    loaded.check_model(body.model.as_deref())?;
    for (field, given) in [("images", body.images.is_some()), ("inputs", body.inputs.is_some())] {
        if given {
            return Err(Failure::field(field, "not supported; \"texts\" has the texts"));
        }
    }
    let limit = loaded.max_length();
    let max_length = body.max_tokens.unwrap_or(limit).min(limit);
    if max_length == 0 {
        return Err(Failure::field("max_tokens", "expected 1 or more, found 0"));
    }
    let instruction = match (body.instruction, body.input_type) {
        (Some(instruction), _) => instruction,
        (None, Some(InputType::SearchQuery)) => QUERY.into(),
        (None, _) => String::new(),
    };
    let dimensions = body.output_dimension;
    let how =
        Embed::default().instruction(instruction).max_length(max_length).dimensions(dimensions);
    let options = RequestOptions { priority: body.priority, timeout: body.timeout };
    let truncate = body.truncate.unwrap_or(Truncate::End) == Truncate::End;
    let start = Instant::now();
    let texts =
        loaded.encode("texts", Input::of(false, body.texts.clone()), &how, truncate).await?;
    let tokenize = start.elapsed();
    let answers = loaded.submit(Work::Embed { texts, options: how }, options)?;
    let (found, summary) = answers.embeddings().await?;
    let timing = server_timing(tokenize, &summary.timings);
    let types = body.embedding_types.unwrap_or_else(|| vec![EmbeddingType::Float]);
    let texts = body.texts;
    let answer = move || CohereEmbedResponse {
        id: format!("embed-{:032x}", fastrand::u128(..)),
        response_type: "embeddings_by_type",
        embeddings: ByType::new(found, &types),
        texts,
        meta: EmbedMeta {
            api_version: ApiVersion { version: "2" },
            billed_units: MetaTokens { input_tokens: summary.prompt_tokens },
        },
    };
    loaded.render(timing, answer).await
}

impl ByType {
    fn new(found: Vec<Embedding>, types: &[EmbeddingType]) -> Self {
        let has = |kind| types.contains(&kind);
        let vectors: Vec<Vec<f32>> = found.into_iter().map(|e| e.vector).collect();
        let signs: Vec<Vec<u8>> = match has(EmbeddingType::Binary) || has(EmbeddingType::Ubinary) {
            true => vectors.iter().map(|vector| signs(vector)).collect(),
            false => Vec::new(),
        };
        // Shifts 0..=255 to -128..=127.
        let signed = |bytes: &Vec<u8>| bytes.iter().map(|b| (b ^ 0x80) as i8).collect();
        Self {
            base64: has(EmbeddingType::Base64).then(|| vectors.iter().map(|v| base64(v)).collect()),
            binary: has(EmbeddingType::Binary).then(|| signs.iter().map(signed).collect()),
            ubinary: has(EmbeddingType::Ubinary).then_some(signs),
            float: has(EmbeddingType::Float).then_some(vectors),
        }
    }
}

/// Packs one bit per element, most significant bit first: 1 if the element is above 0.
fn signs(vector: &[f32]) -> Vec<u8> {
    let byte = |numbers: &[f32]| {
        numbers.iter().enumerate().fold(0, |byte, (i, &v)| byte | (u8::from(v > 0.0) << (7 - i)))
    };
    vector.chunks(8).map(byte).collect()
}
