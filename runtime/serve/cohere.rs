//! Implements reranking in the shape of Cohere's API, which Jina and vLLM adopted.

use super::answers::RequestOptions;
use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::options;
use super::rank::{Question, Ranking};
use axum::response::Response;
use gritlm::Ranked;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

/// Documents to rank. Options of other servers that would change the ranking, such as
/// `rank_fields`, `max_chunks_per_doc` and `instruction`, are refused unless their value has no
/// effect; other fields are ignored.
#[derive(Deserialize, ToSchema)]
pub(super) struct RerankRequest {
    /// The model's name, as `/v1/models` lists it.
    model: Option<String>,
    /// The query that documents are ranked for. The model sees its first 600 characters.
    #[schema(min_length = 1)]
    query: String,
    /// The documents. The model sees the first 600 characters of each.
    #[schema(min_items = 1)]
    documents: Vec<Document>,
    /// Number of results to return; all if not given.
    #[schema(minimum = 1)]
    top_n: Option<usize>,
    /// Number of tokens of a document that the model sees, even if its first 600 characters have
    /// more.
    #[schema(minimum = 1, default = 4096)]
    max_tokens_per_doc: Option<usize>,
    /// Whether to return the documents as well.
    #[schema(default = false)]
    return_documents: Option<bool>,
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

/// A document: a string, or an object with a `text`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the variants are the description")]
enum DocumentShape {
    Text(String),
    Object(TextObject),
}

/// A document's text; other fields are ignored.
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
    /// Identifier of this answer.
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
    /// Index of the document, from 0.
    index: usize,
    /// The probability that the model answers yes rather than no when asked whether the document is
    /// relevant to the query.
    #[schema(minimum = 0, maximum = 1)]
    relevance_score: f32,
    /// The document, if `return_documents` is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    document: Option<TextObject>,
}

/// Token counts.
#[derive(Serialize, ToSchema)]
struct RerankUsage {
    /// Tokens of all prompts, each of which has the query and one document.
    prompt_tokens: usize,
    /// The same as `prompt_tokens`.
    total_tokens: usize,
}

/// Fields that Cohere's clients read.
#[derive(Serialize, ToSchema)]
struct Meta {
    api_version: ApiVersion,
    tokens: MetaTokens,
}

/// The version of the path that was called.
#[derive(Serialize, ToSchema)]
pub(super) struct ApiVersion {
    pub(super) version: &'static str,
}

/// Token counts, where Cohere's clients read them.
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

/// Does the same as `/v2/rerank`.
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
        options: RequestOptions { priority: body.priority, timeout: body.timeout },
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
