//! The endpoints of text-embeddings-inference (TEI): `/embed`, `/similarity`, `/rerank`, `/info`.

use super::answers::{RequestOptions, server_timing};
use super::body::{Body, Loaded};
use super::failure::{Failure, FailureBody, Failures};
use super::input::Input;
use super::rank::{Question, Ranking};
use axum::Json;
use axum::response::{IntoResponse, Response};
use gritlm::model::ops::Compute;
use gritlm::schedule::Work;
use gritlm::{Embed, Ranked, dot};
use serde::{Deserialize, Serialize};
use std::time::Instant;
use utoipa::{IntoResponses, ToSchema};

/// Texts to embed.
#[derive(Deserialize, ToSchema)]
pub(super) struct EmbedRequest {
    /// One text or several, as strings or as token ids; see `/v1/embeddings`.
    inputs: Input,
    /// Whether to L2-normalise the vectors.
    #[schema(default = true)]
    normalize: Option<bool>,
    /// Cut texts that are too long, instead of refusing them with 422.
    #[schema(default = false)]
    truncate: Option<bool>,
    /// The end at which they are cut.
    #[serde(rename = "truncation_direction")]
    #[schema(default = "Right")]
    _truncation_direction: Option<Direction>,
    /// Not supported, as prompts have no names here; use `instruction`.
    prompt_name: Option<String>,
    /// Keep only this many leading components of each vector, and normalise it again if
    /// `normalize` is true.
    #[schema(minimum = 1)]
    dimensions: Option<usize>,
    /// An extension: the instruction that the texts are embedded with; leave it out for documents.
    instruction: Option<String>,
    /// An extension: requests with a higher number run earlier. One level is worth 64 steps of
    /// waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the request expires.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
}

/// The end at which texts are cut; the left is not supported.
#[derive(Clone, Copy, Deserialize, ToSchema)]
enum Direction {
    #[serde(alias = "right")]
    Right,
}

/// Vectors, in the order of the texts.
#[derive(Serialize, ToSchema)]
pub(super) struct EmbedResponse(Vec<Vec<f32>>);

/// A sentence, and others to compare it with.
#[derive(Deserialize, ToSchema)]
pub(super) struct SimilarityRequest {
    inputs: SimilarityInputs,
    parameters: Option<SimilarityParameters>,
    /// An extension: requests with a higher number run earlier. One level is worth 64 steps of
    /// waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the request expires.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
}

/// The sentences to compare.
#[derive(Deserialize, ToSchema)]
struct SimilarityInputs {
    /// The sentence that the others are compared with.
    #[schema(min_length = 1)]
    source_sentence: String,
    /// The other sentences.
    #[schema(min_items = 1)]
    sentences: Vec<String>,
}

/// How the sentences are embedded.
#[derive(Default, Deserialize, ToSchema)]
struct SimilarityParameters {
    /// Cut sentences that are too long, instead of refusing them with 422.
    #[schema(default = false)]
    truncate: Option<bool>,
    /// The end at which they are cut.
    #[serde(rename = "truncation_direction")]
    #[schema(default = "Right")]
    _truncation_direction: Option<Direction>,
    /// Not supported, as prompts have no names here; use `instruction`.
    prompt_name: Option<String>,
    /// An extension: the instruction for the source sentence, if it is a query.
    instruction: Option<String>,
    /// An extension: the instruction for the other sentences; leave it out for documents. For a
    /// symmetric comparison, give the same as `instruction`.
    sentences_instruction: Option<String>,
}

/// Cosine similarities, in the order of the sentences.
#[derive(Serialize, ToSchema)]
pub(super) struct SimilarityResponse(Vec<f32>);

/// Texts to rank.
#[derive(Deserialize, ToSchema)]
pub(super) struct RankRequest {
    /// The query by which the texts are ranked. The model sees its first 600 characters.
    #[schema(min_length = 1)]
    query: String,
    /// The texts. The model sees the first 600 characters of each.
    #[schema(min_items = 1)]
    texts: Vec<String>,
    /// Ignored: longer texts are always cut to 600 characters.
    #[serde(rename = "truncate")]
    _truncate: Option<bool>,
    /// Has no effect; only `Right` is accepted.
    #[serde(rename = "truncation_direction")]
    _truncation_direction: Option<Direction>,
    /// Whether scores are the logits of "yes", as in the GRIT paper, instead of the probabilities
    /// of "yes" against "no".
    #[schema(default = false)]
    raw_scores: Option<bool>,
    /// Whether to return the texts, too.
    #[schema(default = false)]
    return_text: Option<bool>,
    /// An extension: requests with a higher number run earlier. One level is worth 64 steps of
    /// waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the request expires.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
}

/// The texts, highest score first.
#[derive(Serialize, ToSchema)]
pub(super) struct RankResponse(Vec<Rank>);

/// A text's relevance.
#[derive(Serialize, ToSchema)]
struct Rank {
    /// Index of the text in the request, from 0.
    index: usize,
    score: f32,
    /// The text, if `return_text` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    text: Option<String>,
}

/// The model and the limits of this server.
#[derive(Serialize, ToSchema)]
pub(super) struct Info {
    /// The model's name.
    model_id: String,
    /// Always null.
    #[schema(required)]
    model_sha: Option<String>,
    /// The data type of the computation; weights have that of the checkpoint.
    model_dtype: &'static str,
    model_type: ModelType,
    /// The most requests that may wait.
    max_concurrent_requests: usize,
    /// The most tokens of a text.
    max_input_length: usize,
    /// The most tokens of a pass.
    max_batch_tokens: usize,
    /// Always null: the number of tokens limits a pass.
    #[schema(required)]
    max_batch_requests: Option<usize>,
    /// The most inputs of one request.
    max_client_batch_size: usize,
    /// Whether texts that are too long are cut without being asked for: always false.
    auto_truncate: bool,
    /// Threads that tokenize.
    tokenization_workers: usize,
    /// Version of this server.
    version: &'static str,
    /// Always null.
    #[schema(required)]
    sha: Option<String>,
    /// Always null.
    #[schema(required)]
    docker_label: Option<String>,
}

/// The kind of model.
#[derive(Serialize, ToSchema)]
struct ModelType {
    embedding: EmbeddingModel,
}

/// How the model embeds.
#[derive(Serialize, ToSchema)]
struct EmbeddingModel {
    /// The default pooling.
    pooling: &'static str,
}

/// A failure, with TEI's status 422 if an input is too long.
pub(super) struct Refusal(Failure);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure.unprocessable())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// For the API description: the response that [`Refusal`] adds.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "the variant is the description")]
enum TooLong {
    /// An input is too long for the model or its cache.
    #[response(status = 422)]
    TooLong(#[to_schema] FailureBody),
}

fn no_prompts(field: &str, name: Option<String>) -> Result<(), Failure> {
    name.map_or(Ok(()), |name| {
        let problem = format!("expected none, because prompts have no names here, found {name:?}");
        Err(Failure::field(field, problem))
    })
}

/// Embeds texts.
#[utoipa::path(post, path = "/embed", tag = "embedding", request_body = EmbedRequest,
    responses((status = 200, body = EmbedResponse), Failures, TooLong))]
pub(super) async fn embed(
    loaded: Loaded,
    Body(body): Body<EmbedRequest>,
) -> Result<Response, Refusal> {
    no_prompts("prompt_name", body.prompt_name)?;
    let how = Embed::default()
        .instruction(body.instruction.unwrap_or_default())
        .normalize(body.normalize.unwrap_or(true))
        .max_length(loaded.max_length())
        .dimensions(body.dimensions);
    let options = RequestOptions { priority: body.priority, timeout: body.timeout };
    let (start, truncate) = (Instant::now(), body.truncate.unwrap_or(false));
    let texts = loaded.encode("inputs", body.inputs, &how, truncate).await?;
    let tokenize = start.elapsed();
    let answers = loaded.submit(Work::Embed { texts, options: how }, options)?;
    let (found, summary) = answers.embeddings().await?;
    let timing = server_timing(tokenize, &summary.timings);
    let answer = || EmbedResponse(found.into_iter().map(|e| e.vector).collect());
    Ok(loaded.render(timing, answer).await?)
}

/// Compares a sentence with others by cosine similarity.
#[utoipa::path(post, path = "/similarity", tag = "embedding", request_body = SimilarityRequest,
    responses((status = 200, body = SimilarityResponse), Failures, TooLong))]
pub(super) async fn similarity(
    loaded: Loaded,
    Body(body): Body<SimilarityRequest>,
) -> Result<Response, Refusal> {
    let (inputs, parameters) = (body.inputs, body.parameters.unwrap_or_default());
    no_prompts("parameters.prompt_name", parameters.prompt_name)?;
    let how = |instruction: Option<String>| {
        Embed::default()
            .instruction(instruction.unwrap_or_default())
            .max_length(loaded.max_length())
    };
    let (one, others) = (how(parameters.instruction), how(parameters.sentences_instruction));
    let options = RequestOptions { priority: body.priority, timeout: body.timeout };
    let (start, truncate) = (Instant::now(), parameters.truncate.unwrap_or(false));
    let (source, sentences) = (inputs.source_sentence.into(), inputs.sentences.into());
    let mut texts = loaded.encode("inputs.source_sentence", source, &one, truncate).await?;
    texts.extend(loaded.encode("inputs.sentences", sentences, &others, truncate).await?);
    let tokenize = start.elapsed();
    // The two option sets differ only in their instructions, which are already part of the texts.
    let answers = loaded.submit(Work::Embed { texts, options: one }, options)?;
    let (found, summary) = answers.embeddings().await?;
    let timing = server_timing(tokenize, &summary.timings);
    let mut vectors = found.into_iter().map(|e| e.vector);
    let source = vectors.next().unwrap_or_default();
    let answer = move || SimilarityResponse(vectors.map(|v| dot(&source, &v)).collect());
    Ok(loaded.render(timing, answer).await?)
}

/// Ranks texts by relevance to a query.
#[utoipa::path(post, path = "/rerank", tag = "rank", request_body = RankRequest,
    responses((status = 200, body = RankResponse), Failures, TooLong))]
pub(super) async fn rerank(
    loaded: Loaded,
    Body(body): Body<RankRequest>,
) -> Result<Response, Refusal> {
    let question = Question {
        query: body.query,
        field: "texts",
        passages: body.texts,
        max_tokens: None,
        options: RequestOptions { priority: body.priority, timeout: body.timeout },
    };
    let Ranking { mut ranked, mut passages, timing, .. } = loaded.rank(question).await?;
    let raw = body.raw_scores.unwrap_or(false);
    let score = move |r: &Ranked| if raw { r.score } else { r.probability };
    Ranked::sort_by(&mut ranked, score);
    let texts = body.return_text.unwrap_or(false);
    let rank = move |r: Ranked| Rank {
        index: r.index,
        score: score(&r),
        text: texts.then(|| std::mem::take(&mut passages[r.index])),
    };
    let answer = move || RankResponse(ranked.into_iter().map(rank).collect());
    Ok(loaded.render(timing, answer).await?)
}

/// Returns the model and the limits of this server.
#[utoipa::path(get, path = "/info", tag = "server",
    responses((status = 200, body = Info), Failures))]
pub(super) async fn info(loaded: Loaded) -> Json<Info> {
    let (engine, settings) = (loaded.engine(), &loaded.app.settings);
    let dtype = match engine.products().many {
        Compute::F32 => "float32",
        Compute::F16 => "float16",
        Compute::Bf16 => "bfloat16",
        Compute::Int8 => "int8",
    };
    Json(Info {
        model_id: settings.name.clone(),
        model_sha: None,
        model_dtype: dtype,
        model_type: ModelType { embedding: EmbeddingModel { pooling: "mean" } },
        max_concurrent_requests: settings.limits.queue_requests,
        max_input_length: loaded.max_length(),
        max_batch_tokens: settings.limits.batch_tokens,
        max_batch_requests: None,
        max_client_batch_size: settings.max_inputs,
        auto_truncate: false,
        tokenization_workers: rayon::current_num_threads(),
        version: env!("CARGO_PKG_VERSION"),
        sha: None,
        docker_label: None,
    })
}
