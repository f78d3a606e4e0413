//! `/v1/rag/ask`: answers questions from the store's documents. [`super::rag`] describes how it
//! shares the device.

use super::answers::{Sink, first_timing, stages};
use super::body::{Body, Loaded};
use super::chat::{Chat, ChatChoice, ChatPart, logprobs};
use super::failure::{Failure, Failures};
use super::openai::{self, Chunk, Completion, Head, Usage};
use super::params::Params;
use super::rag::Store;
use super::stream::{self, Tell};
use crate::rag::{self, Ask, Filter, Find, Hit, Mode, Order, Passage, Positions, Searcher, Times};
use crate::schedule::{Event, Scheduler, Summary, Timings};
use crate::{Engine, Error, Result, Sampling};
use axum::Json;
use axum::http::HeaderName;
use axum::response::sse;
use axum::response::{IntoResponse, Response};
use gritlm_model::ops::PAGE;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Instant;
use tokio::sync::oneshot;
use utoipa::ToSchema;

/// The most documents per question: their caches are all in memory before they go to the device.
const MAX_DOCUMENTS: usize = 64;
/// The most attempts at a question. It needs pages for its embedding pass, then for its joined
/// caches, then for its answer, and each may find too few.
const ATTEMPTS: usize = 4;

/// A question to the store's documents. Of the fields for answers, `n` must be 1, and `priority`
/// is not supported.
#[derive(Deserialize, ToSchema)]
pub(super) struct AskRequest {
    /// The question.
    #[schema(min_length = 1)]
    query: String,
    /// What is reused instead of being computed again: nothing, the query's embedding pass, the
    /// documents' passes, or both in the named order. Reusing the documents' passes needs a store
    /// with caches (`gritlm index --cache doc`).
    #[schema(default = "none")]
    cache: Option<CacheName>,
    /// With `"cache": "none"`: which comes first in the prompt.
    #[schema(default = "doc-query")]
    order: Option<OrderName>,
    /// How many documents (chunks of the store) to answer from, the best first; 0 for none.
    #[schema(minimum = 0, maximum = 64, default = 1)]
    documents: Option<usize>,
    /// Join caches as the paper's code does, with overlapping positions.
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
    /// With `logprobs`: how many of the most likely tokens to return with each token.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    #[serde(flatten)]
    #[schema(value_type = Params)]
    rest: Map<String, Value>,
}

/// What is reused of earlier passes.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum CacheName {
    None,
    Query,
    Doc,
    QueryDoc,
    DocQuery,
}

/// Which comes first in the prompt.
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
    deadline: Option<Instant>,
}

/// Answers a question from the store's documents.
///
/// The answer is a chat's, with the documents beside it; `Server-Timing` has its stages. With
/// `stream` it comes as server-sent events, the documents in the first. Without a store (`gritlm
/// serve --store DIR`) the answer is 404.
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
    let turn = store.asking.next().await?;

    let (events, mut many) = loaded.events_of(loaded.app.metrics.watch_kind("ask"));
    let (cite, cited) = oneshot::channel();
    let scheduler = loaded.scheduler.clone();
    // The task ends at the first token after the receiver is dropped, which happens with this
    // handler or the stream.
    let task = tokio::task::spawn_blocking(move || {
        let mut client = Client { events, start };
        let answered = client.answer(&scheduler, &store, &question, cite);
        drop(turn);
        answered.map_err(|error| client.tell(Event::Failed(error))).unwrap_or_default()
    });
    let Ok(documents) = cited.await else {
        // The reason comes as an event.
        return Err(many.next().await.err().unwrap_or_else(Failure::lost));
    };
    let head = Head::new::<Chat>(&loaded, params.stream());
    if params.stream() {
        let (usage, echoes) = (params.include_usage(), Vec::new());
        let tell = Tell { n: 1, logprobs, usage, echoes };
        let usage = tell.usage.then_some(None);
        let part = Chunk { head: head.clone(), choices: Vec::new(), usage };
        let first = sse::Event::default().json_data(AskPart { part, documents: Some(documents) });
        let timing = || first_timing(Default::default(), start.elapsed());
        return stream::respond::<Chat>(loaded, many, head, tell, first.ok(), timing).await;
    }
    let (answers, summaries) = openai::collect(many).await?;
    let times = task.await.map_err(|_| Failure::lost())?;
    let choices = move |engine: &Engine| Ok(openai::choices::<Chat>(engine, answers, logprobs)?);
    let choices = loaded.blocking(choices).await?;
    let timing = stages(&[
        ("embed", times.embed),
        ("search", times.retrieve),
        ("load", times.load),
        ("prefill", times.prefill),
        ("decode", times.decode),
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
        let wish = params.wish();
        if wish.priority.is_some_and(|priority| priority != 0) {
            return Err(Failure::field("priority", "not supported here; leave it out"));
        }
        let top_k = self.documents.unwrap_or(1);
        if top_k > MAX_DOCUMENTS {
            let problem = format!("expected 0 to {MAX_DOCUMENTS}, found {top_k}");
            return Err(Failure::field("documents", problem));
        }
        let filters = self.filter.unwrap_or_default().into_iter().map(filter);
        let how = Ask {
            mode: mode(self.cache.unwrap_or(CacheName::None), self.order)?,
            positions: match self.as_published.unwrap_or(false) {
                true => Positions::AsPublished,
                false => Positions::Turned,
            },
            instruction: self.instruction.unwrap_or_default(),
            attn: None,
            answer_prefix: self.answer_prefix.unwrap_or_default(),
        };
        Ok(Question {
            query: self.query,
            how,
            find: Find {
                top_k,
                filters: filters.collect::<Result<_, _>>()?,
                rerank: self.rerank.unwrap_or(false),
                exact: self.exact.unwrap_or(false),
                ..Find::default()
            },
            sampling: params.sampling(Sampling::default().max_tokens, logprobs)?,
            deadline: wish.deadline()?,
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

/// The client that waits for the answer.
struct Client {
    events: Sink,
    /// When the request arrived.
    start: Instant,
}

impl Client {
    fn tell(&mut self, event: Event) {
        self.events.send(0, event);
    }

    /// Fails if the client has gone or the deadline has passed.
    fn check(&self, deadline: Option<Instant>) -> Result<()> {
        match deadline {
            _ if self.events.is_closed() => Err(Error::Interrupted),
            Some(deadline) if Instant::now() >= deadline => Err(Error::Expired),
            _ => Ok(()),
        }
    }

    /// Finds documents, sends them, and generates the answer. Returns the times of the stages.
    fn answer(
        &mut self,
        scheduler: &Scheduler,
        store: &Store,
        question: &Question,
        cite: oneshot::Sender<Vec<Cited>>,
    ) -> Result<Times> {
        self.check(question.deadline)?;
        let engine = scheduler.engine();
        let searcher = Searcher::on(engine, store.shelf(engine)?);
        question.how.mode.check(searcher.reader().identity())?;
        let began = self.start.elapsed();
        let (found, mut answer) = question.begin_with_room(scheduler, &searcher)?;
        // The receiver may be gone.
        let _ = cite.send(found.iter().map(Cited::from).collect());
        let mut output_tokens = 0;
        for piece in &mut answer {
            self.check(question.deadline)?;
            self.tell(Event::Piece(piece?));
            output_tokens += 1;
        }
        let usage = answer.usage();
        let Times { prefill, decode, first_token, .. } = usage.times;
        let timings =
            Timings { queued: began + first_token.saturating_sub(prefill), prefill, decode };
        let summary = Summary {
            prompt_tokens: answer.prompt_tokens(),
            cached_tokens: usage.tokens_reused,
            output_tokens,
            timings,
            ..Summary::default()
        };
        self.tell(Event::Finished(summary));
        Ok(usage.times)
    }
}

impl Question {
    /// Calls [`Question::begin`]. If it finds too few pages, prefixes that the scheduler keeps for
    /// later prompts are evicted for it.
    fn begin_with_room<'e>(
        &self,
        scheduler: &'e Scheduler,
        searcher: &Searcher<'e>,
    ) -> Result<(Vec<Hit>, rag::Answer<'e>)> {
        let (mut pages, mut last) = (0, 0);
        for _ in 1..ATTEMPTS {
            match self.begin(scheduler.engine(), searcher) {
                Err(Error::NoRoom { needed, free, total }) => {
                    // The next attempt needs the pages that this one held once more, so the needs
                    // add up. The same need twice in a row is not a further one: other requests
                    // have taken the pages.
                    if needed != last {
                        pages += needed.div_ceil(PAGE);
                    }
                    last = needed;
                    if pages * PAGE > total || !scheduler.make_room(pages) {
                        return Err(Error::NoRoom { needed: pages * PAGE, free, total });
                    }
                }
                begun => return begun,
            }
        }
        self.begin(scheduler.engine(), searcher)
    }

    fn begin<'e>(
        &self,
        engine: &'e Engine,
        searcher: &Searcher<'e>,
    ) -> Result<(Vec<Hit>, rag::Answer<'e>)> {
        let store = searcher.reader();
        let attn = Some(store.identity().attn);
        let asked = engine.ask(&self.query, &Ask { attn, ..self.how.clone() })?;
        let found = searcher.find(&self.query, asked.vector(), &self.find)?;
        if found.is_empty() && self.find.top_k > 0 {
            let problem = "the store has none that fits".into();
            return Err(Error::Input { what: "documents".into(), problem });
        }
        let passages = found.iter().map(|hit| Passage::of(store, &hit.chunk, self.how.mode));
        let passages = passages.collect::<Result<Vec<_>>>()?;
        let answer = asked.answer(&passages, &self.sampling)?;
        Ok((found, answer))
    }
}
