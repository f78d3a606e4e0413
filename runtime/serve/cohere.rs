//! Reranking as Cohere's clients ask for it, and Jina's and vLLM's, who took over the shape.

use super::answers::Wish;
use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::options;
use super::rank::{Question, Ranking};
use crate::Ranked;
use axum::response::Response;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

/// Documents to rank. Options of other servers that would change the ranking are refused unless they
/// ask for nothing, as `rank_fields`, `max_chunks_per_doc` and `instruction`; other fields are
/// ignored.
#[derive(Deserialize, ToSchema)]
pub(super) struct RerankRequest {
    /// The model's name, as `/v1/models` tells it.
    model: Option<String>,
    /// What the documents are to be relevant to. The model sees its first 600 characters.
    #[schema(min_length = 1)]
    query: String,
    /// The model sees the first 600 characters of each.
    #[schema(min_items = 1)]
    documents: Vec<Document>,
    /// Return only so many results; all if not given.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// The model sees only so many tokens of a document, even where 600 characters have more.
    #[schema(minimum = 1, default = 4096)]
    max_tokens_per_doc: Option<usize>,
    /// Return the documents, too.
    #[schema(default = false)]
    return_documents: Option<bool>,
    /// An extension: higher is earlier. One level is worth 64 steps of waiting.
    #[schema(default = 0)]
    priority: Option<i32>,
    /// An extension: seconds after which the answer is of no use any more.
    #[schema(minimum = 0)]
    timeout: Option<f32>,
    #[serde(flatten)]
    #[schema(ignore)]
    rest: Map<String, Value>,
}

/// A document: a string, or an object with a `text`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the variants are the description")]
enum DocumentShape {
    Text(String),
    Object(TextObject),
}

/// A document's text; other fields are not looked at.
#[derive(Deserialize, Serialize, ToSchema)]
struct TextObject {
    text: String,
}

#[derive(ToSchema)]
#[schema(value_type = DocumentShape)]
struct Document(String);

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Document;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an object with a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Document, E> {
                Ok(Document(text.into()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Document, E> {
                Ok(Document(text))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Document, A::Error> {
                let object = TextObject::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Document(object.text))
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// Results, most relevant first.
#[derive(Serialize, ToSchema)]
pub(super) struct RerankResponse {
    /// Of this answer.
    id: String,
    /// The model's name.
    model: String,
    results: Vec<RerankResult>,
    usage: RerankUsage,
    meta: Meta,
}

/// A document's relevance.
#[derive(Serialize, ToSchema)]
struct RerankResult {
    /// Which document, from 0.
    index: usize,
    /// The probability that the model answers yes, and not no, when asked whether the document is
    /// relevant to the query.
    #[schema(minimum = 0, maximum = 1)]
    relevance_score: f32,
    /// Where `return_documents` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    document: Option<TextObject>,
}

/// Tokens.
#[derive(Serialize, ToSchema)]
struct RerankUsage {
    /// Of all questions, each with the query and a document.
    prompt_tokens: usize,
    /// The same.
    total_tokens: usize,
}

/// What Cohere's clients look for.
#[derive(Serialize, ToSchema)]
struct Meta {
    api_version: ApiVersion,
    tokens: MetaTokens,
}

/// Which of the two paths was called.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiVersion {
    pub(super) version: &'static str,
}

/// Tokens, again.
#[derive(Serialize, ToSchema)]
pub(super) struct MetaTokens {
    pub(super) input_tokens: usize,
}

/// Ranks documents by relevance to a query.
#[utoipa::path(post, path = "/v2/rerank", tag = "rank", request_body = RerankRequest,
    responses((status = 200, body = RerankResponse), Failures))]
pub(super) async fn rerank(
    loaded: Loaded,
    Body(body): Body<RerankRequest>,
) -> Result<Response, Failure> {
    answer(loaded, body, "2").await
}

/// As `/v2/rerank`.
#[utoipa::path(post, path = "/v1/rerank", tag = "rank", request_body = RerankRequest,
    responses((status = 200, body = RerankResponse), Failures))]
pub(super) async fn rerank_v1(
    loaded: Loaded,
    Body(body): Body<RerankRequest>,
) -> Result<Response, Failure> {
    answer(loaded, body, "1").await
}

async fn answer(
    loaded: Loaded,
    body: RerankRequest,
    version: &'static str,
) -> Result<Response, Failure> {
    options::RANKS.refuse(&body.rest, "")?;
    loaded.check_model(body.model.as_deref())?;
    for (field, found) in [("top_n", body.top_n), ("max_tokens_per_doc", body.max_tokens_per_doc)] {
        if found == Some(0) {
            return Err(Failure::field(field, "expected 1 or more, found 0"));
        }
    }
    let question = Question {
        query: body.query,
        field: "documents",
        passages: body.documents.into_iter().map(|Document(text)| text).collect(),
        max_tokens: body.max_tokens_per_doc,
        wish: Wish { priority: body.priority, timeout: body.timeout },
    };
    let ranking = loaded.rank(question).await?;
    let Ranking { mut ranked, mut passages, tokens, timing } = ranking;
    Ranked::sort_by(&mut ranked, |r| r.probability);
    ranked.truncate(body.top_n.unwrap_or(usize::MAX));
    let documents = body.return_documents.unwrap_or(false);
    let result = move |r: Ranked| RerankResult {
        index: r.index,
        relevance_score: r.probability,
        document: documents.then(|| TextObject { text: std::mem::take(&mut passages[r.index]) }),
    };
    let model = loaded.app.settings.name.clone();
    let answer = move || RerankResponse {
        id: format!("rerank-{:032x}", fastrand::u128(..)),
        model,
        results: ranked.into_iter().map(result).collect(),
        usage: RerankUsage { prompt_tokens: tokens, total_tokens: tokens },
        meta: Meta {
            api_version: ApiVersion { version },
            tokens: MetaTokens { input_tokens: tokens },
        },
    };
    loaded.render(timing, answer).await
}
