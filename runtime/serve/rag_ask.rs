//! `/v1/rag/ask`: answers questions from the store's documents.

use super::answers::{first_timing, stages};
use super::body::{Body, Loaded};
use super::chat::{Chat, ChatChoice, ChatPart, logprobs};
use super::failure::{Failure, Failures};
use super::openai::{self, Chunk, Completion, Head, Usage};
use super::params::Params;
use super::rag::Store;
use super::stream::{self, StreamOptions};
use axum::Json;
use axum::http::HeaderName;
use axum::response::sse;
use axum::response::{IntoResponse, Response};
use gritlm::schedule::{Cancel, Scheduler, Ticket, Work};
use gritlm::{Engine, Sampling};
use gritlm_rag::{
    Ask, Asked, Filter, Find, Hit, Mode, Order, Passage, Passes, Positions, Prepared, Result,
    Scheduled, Searcher, Snapshot,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// Maximum number of documents per question: all their caches are in memory before they go to the
/// device.
const MAX_DOCUMENTS: usize = 64;

/// A question about the store's documents. Of the fields for answers, `n` must be 1.
#[derive(Deserialize, ToSchema)]
pub(super) struct AskRequest {
    /// The question.
    #[schema(min_length = 1)]
    query: String,
    /// What to reuse instead of computing it again: nothing, the query's embedding pass, the
    /// documents' passes, or both in the named order. Reusing the documents' passes needs a store
    /// with caches (`gritlm index --cache doc`).
    #[schema(default = "none")]
    cache: Option<CacheName>,
    /// Order of the query and the documents in the prompt; only with `"cache": "none"`.
    #[schema(default = "doc-query")]
    order: Option<OrderName>,
    /// Number of documents (chunks of the store) to answer from, the best first; 0 for none.
    #[schema(minimum = 0, maximum = 64, default = 1)]
    documents: Option<usize>,
    /// Whether to join caches as the paper's code does, with overlapping positions.
    #[schema(default = false)]
    as_published: Option<bool>,
    /// The instruction that the question is embedded with; the paper uses none.
    instruction: Option<String>,
    /// Search only documents whose metadata have all of these values, each a text, a number or a
    /// boolean.
    #[schema(value_type = Option<Object>)]
    filter: Option<Map<String, Value>>,
    /// Whether to ask the model if each of the best `4 * documents` chunks is relevant, and to
    /// answer from the most relevant.
    #[schema(default = false)]
    rerank: Option<bool>,
    /// Whether to score all chunks, even if the store has a graph for approximate search.
    #[schema(default = false)]
    exact: Option<bool>,
    /// The first words of the answer, which the model continues.
    answer_prefix: Option<String>,
    /// Whether to return the log-probabilities of the tokens.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// With `logprobs`: number of most likely tokens to return with each token.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    #[serde(flatten)]
    #[schema(value_type = Params)]
    rest: Map<String, Value>,
}

/// Which earlier passes to reuse.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum CacheName {
    None,
    Query,
    Doc,
    QueryDoc,
    DocQuery,
}

/// Order of the query and the documents in the prompt.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum OrderName {
    QueryDoc,
    DocQuery,
}

/// An answer and its sources. `prompt_tokens` counts all tokens that precede the answer, and
/// `prompt_tokens_details.cached_tokens` those of them that were reused.
#[derive(Serialize, ToSchema)]
pub(super) struct AskResponse {
    #[serde(flatten)]
    answer: Completion<ChatChoice>,
    /// The documents, the best first.
    documents: Vec<Cited>,
}

/// A part of an answer, as in a chat. The first part has the documents and no choice.
#[derive(Serialize, ToSchema)]
pub(super) struct AskPart {
    #[serde(flatten)]
    part: Chunk<ChatPart>,
    /// The documents, the best first; only in the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    documents: Option<Vec<Cited>>,
}

/// For the API description: a server-sent event of a streamed answer.
#[derive(ToSchema)]
#[expect(dead_code, reason = "the fields are the description")]
pub(super) struct AskEvent {
    /// An `AskPart` as JSON. The last event has `[DONE]`, or an object with `error` if the request
    /// fails midway.
    data: String,
}

/// A chunk of a document.
#[derive(Serialize, ToSchema)]
struct Cited {
    /// Path of the document.
    path: String,
    /// Index of the chunk in its document, from 0.
    chunk: u32,
    /// Title of the document.
    title: String,
    /// Inner product of the chunk's vector and the question's.
    score: f32,
    /// With `rerank`: the model's probability that it is relevant.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    probability: Option<f32>,
}

impl From<&Hit> for Cited {
    fn from(hit: &Hit) -> Self {
        let chunk = &hit.chunk;
        let (path, title) = (chunk.document.clone(), chunk.title.clone());
        Self { path, chunk: chunk.index, title, score: hit.score, probability: hit.probability }
    }
}

/// A question whose fields have been checked.
struct Question {
    query: String,
    how: Ask,
    find: Find,
    sampling: Sampling,
    priority: i32,
    deadline: Option<Instant>,
}

/// Answers a question from the store's documents.
///
/// The answer has the form of a chat completion, with the documents added; `Server-Timing` has
/// its stages. With `stream` it comes as server-sent events, and the first one has the documents.
/// Without a store (`gritlm serve --store DIR`) the answer is 404.
#[utoipa::path(post, path = "/v1/rag/ask", tag = "rag",
    request_body = AskRequest,
    responses(
        (status = 200, description = "The answer.", content(
            (AskResponse = "application/json"),
            (AskEvent = "text/event-stream"),
        )),
        Failures,
    ))]
pub(super) async fn ask(
    loaded: Loaded,
    Body(mut request): Body<AskRequest>,
) -> Result<Response, Failure> {
    let start = Instant::now();
    let mut params = Params::parse(std::mem::take(&mut request.rest))?;
    loaded.check_model(params.model.as_deref())?;
    let store = loaded.store()?;
    let (logprobs, top) = logprobs(request.logprobs, request.top_logprobs)?;
    let mut question = request.question(&params, top)?;
    let format = params.response_format.take();
    if format.is_some() {
        let grammar = move |engine: &Engine| format.map(|f| f.grammar(engine)).transpose();
        question.sampling.grammar = loaded.blocking(grammar).await?.flatten();
    }
    let (scheduler, cancel) = (loaded.scheduler.clone(), Cancel::default());
    let ticket = Ticket::new(cancel.clone());
    let task = Arc::new(Task { question, scheduler, store, cancel });
    let finding = Arc::clone(&task);
    let found = blocking(move || finding.find()).await?;
    // The permit goes to the sink, which drops it when the answer has its pages. The semaphore is
    // never closed.
    let loading = Arc::clone(&task.store.loading).acquire_owned().await;
    let loading = loading.map_err(|_| Failure::lost())?;
    let preparing = Arc::clone(&task);
    let (documents, prepared) = blocking(move || preparing.prepare(found)).await?;

    let Prepared { past, prompt, usage, .. } = prepared;
    let how = task.question.sampling.clone();
    let request = task.passes().request(Work::Generate { prompt, sampling: how, past });
    let many = loaded.submit_watched(request, "ask", ticket, loading)?;
    let head = Head::new::<Chat>(&loaded, params.stream());
    if params.stream() {
        let (usage, echoes) = (params.include_usage(), Vec::new());
        let options = StreamOptions { n: 1, logprobs, usage, echoes };
        let usage = options.usage.then_some(None);
        let part = Chunk { head: head.clone(), choices: Vec::new(), usage };
        let first = sse::Event::default().json_data(AskPart { part, documents: Some(documents) });
        let timing = || first_timing(Default::default(), start.elapsed());
        return stream::respond::<Chat>(loaded, many, head, options, first.ok(), timing).await;
    }
    let (answers, summaries) = openai::collect(many).await?;
    let choices = move |engine: &Engine| Ok(openai::choices::<Chat>(engine, answers, logprobs)?);
    let choices = loaded.blocking(choices).await?;
    let timings = summaries.first().map(|summary| summary.timings).unwrap_or_default();
    let timing = stages(&[
        ("embed", usage.times.embed),
        ("search", usage.times.retrieve),
        ("load", usage.times.load),
        ("queue", timings.queued),
        ("prefill", timings.prefill),
        ("decode", timings.decode),
    ]);
    let answer = Completion { head, choices, usage: Usage::new(&summaries, 1) };
    let header = [(HeaderName::from_static("server-timing"), timing)];
    Ok((header, Json(AskResponse { answer, documents })).into_response())
}

impl AskRequest {
    fn question(self, params: &Params, logprobs: u32) -> Result<Question, Failure> {
        if params.choices()? != 1 {
            return Err(Failure::field("n", "expected 1: a question has one answer"));
        }
        let options = params.options();
        let top_k = self.documents.unwrap_or(1);
        if top_k > MAX_DOCUMENTS {
            let problem = format!("expected 0 to {MAX_DOCUMENTS}, found {top_k}");
            return Err(Failure::field("documents", problem));
        }
        let filters = self.filter.unwrap_or_default().into_iter().map(filter);
        let positions = match self.as_published.unwrap_or(false) {
            true => Positions::AsPublished,
            false => Positions::Turned,
        };
        let how = Ask::default()
            .mode(mode(self.cache.unwrap_or(CacheName::None), self.order)?)
            .positions(positions)
            .instruction(self.instruction.unwrap_or_default())
            .answer_prefix(self.answer_prefix.unwrap_or_default());
        Ok(Question {
            query: self.query,
            how,
            find: Find::default()
                .top_k(top_k)
                .filters(filters.collect::<Result<_, _>>()?)
                .rerank(self.rerank.unwrap_or(false))
                .exact(self.exact.unwrap_or(false)),
            sampling: params.sampling(Sampling::default().max_tokens, logprobs)?,
            priority: options.priority.unwrap_or(0),
            deadline: options.deadline()?,
        })
    }
}

fn mode(cache: CacheName, order: Option<OrderName>) -> Result<Mode, Failure> {
    let order = order.map(|order| match order {
        OrderName::QueryDoc => Order::QueryDoc,
        OrderName::DocQuery => Order::DocQuery,
    });
    match (cache, order) {
        (CacheName::None, order) => Ok(Mode::Plain(order.unwrap_or_default())),
        (_, Some(_)) => {
            Err(Failure::field("order", "expected \"cache\": \"none\", which alone leaves it open"))
        }
        (CacheName::Query, None) => Ok(Mode::Query),
        (CacheName::Doc, None) => Ok(Mode::Doc),
        (CacheName::QueryDoc, None) => Ok(Mode::QueryDoc),
        (CacheName::DocQuery, None) => Ok(Mode::DocQuery),
    }
}

fn filter((key, value): (String, Value)) -> Result<Filter, Failure> {
    let value = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        _ => {
            let field = format!("filter.{key}");
            return Err(Failure::field(field, "expected a text, a number or a truth value"));
        }
    };
    Ok(Filter { key, value })
}

/// Runs work that waits for the disk or for the scheduler on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Failure> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(|_| Failure::lost())??)
}

/// A question with the scheduler and the store that answer it.
struct Task {
    question: Question,
    scheduler: Scheduler,
    store: Arc<Store>,
    cancel: Cancel,
}

/// The documents that were found for a question.
struct Found {
    snapshot: Arc<Snapshot>,
    hits: Vec<Hit>,
    asked: Asked,
}

impl Task {
    /// Returns the scheduler with the question's priority, deadline and cancellation.
    fn passes(&self) -> Scheduled<'_> {
        let Question { priority, deadline, .. } = self.question;
        let cancel = self.cancel.clone();
        Scheduled { scheduler: &self.scheduler, priority, deadline, cancel }
    }

    /// Embeds the question and finds documents.
    fn find(&self) -> Result<Found> {
        let passes = self.passes();
        let Question { query, how, find, .. } = &self.question;
        let snapshot = self.store.snapshot(passes.engine())?;
        let identity = snapshot.reader().identity();
        how.mode.check(identity)?;
        let how = how.clone().attn(Some(identity.attn));
        let asked = gritlm_rag::ask(&passes, query, &how)?;
        let searcher = Searcher::on(&passes, Arc::clone(&snapshot));
        let hits = searcher.find(query, asked.vector(), find)?;
        if hits.is_empty() && find.top_k > 0 {
            let problem = "the store has none that fits".into();
            return Err(gritlm::Error::Input { what: "documents".into(), problem }.into());
        }
        Ok(Found { hits, asked, snapshot })
    }

    /// Loads the documents' caches and prepares the answer.
    fn prepare(&self, found: Found) -> Result<(Vec<Cited>, Prepared)> {
        let Found { snapshot, hits, asked } = found;
        let passes = self.passes();
        let (store, mode) = (snapshot.reader(), self.question.how.mode);
        let passages = hits.iter().map(|hit| Passage::of(store, &hit.chunk, mode));
        let passages = passages.collect::<Result<Vec<_>>>()?;
        let prepared = asked.prepare(&passes, &passages)?;
        Ok((hits.iter().map(Cited::from).collect(), prepared))
    }
}
