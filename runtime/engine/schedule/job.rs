//! Requests that the scheduler holds: waiting prompts, running answers, and texts.

use super::drive::Drive;
use super::prefix::Prefixes;
use super::{Cancel, Event, Past, Summary, Timings, Work};
use crate::batch::{Output, Want};
use crate::cache::KvCache;
use crate::continuation::{Context, Continuation};
use crate::rerank::Judge;
use crate::{Embed, Encoded, Engine, Error, Piece, Result};
use gritlm_model::ops::{Mask, PAGE, SampledToken};
use web_time::Instant;

/// Order within a kind, the smallest first: the step of arrival, [`AGE`] earlier for each level
/// of priority, and the number of the request. The key never changes, so a request that has
/// waited long enough precedes every new one.
pub(super) type QueueKey = (i64, u64);

/// Number of steps of waiting that one level of priority is worth.
pub(super) const AGE: i64 = 64;

/// A request on its way to the scheduler's thread.
pub(super) struct Arrival {
    pub(super) id: u64,
    pub(super) work: Work,
    pub(super) client: Client,
}

/// The client of a request: where its events go, and until when it wants them.
pub(super) struct Client {
    sink: Box<dyn FnMut(Event) + Send>,
    /// That of its ticket, and one that it shares with others.
    cancels: [Cancel; 2],
    pub(super) priority: i32,
    deadline: Option<Instant>,
    submitted: Instant,
    /// Number of steps when the request arrived.
    pub(super) arrived: u64,
    /// Time and number of the request's first pass.
    started: Option<(Instant, u64)>,
    /// Time at which the first token was sampled.
    first: Option<Instant>,
    /// Events of this step, which are delivered after the step has been counted.
    out: Vec<Event>,
    ended: bool,
}

impl Client {
    pub(super) fn new(
        sink: Box<dyn FnMut(Event) + Send>,
        cancels: [Cancel; 2],
        priority: i32,
        deadline: Option<Instant>,
    ) -> Self {
        let submitted = Instant::now();
        let (started, first, out) = (None, None, Vec::new());
        let (arrived, ended) = (0, false);
        Self { sink, cancels, priority, deadline, submitted, arrived, started, first, out, ended }
    }

    pub(super) fn is_gone(&self) -> bool {
        self.cancels.iter().any(Cancel::is_cancelled)
    }

    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Records the first pass of the request; later calls do nothing.
    pub(super) fn start(&mut self, step: u64) {
        self.started.get_or_insert_with(|| (Instant::now(), step));
    }

    pub(super) fn send(&mut self, event: Event) {
        if matches!(event, Event::Piece(_)) {
            self.first.get_or_insert_with(Instant::now);
        }
        self.out.push(event);
    }

    pub(super) fn fail(&mut self, error: Error) {
        self.send(Event::Failed(error));
        self.ended = true;
    }

    /// Ends the request, whose last step was number `step`.
    pub(super) fn finish(&mut self, step: u64, mut summary: Summary) {
        let now = Instant::now();
        let (started, first_step) = self.started.unwrap_or((now, step + 1));
        let first = self.first.unwrap_or(now);
        summary.queued_steps = first_step - 1 - self.arrived;
        summary.steps = step + 1 - first_step;
        summary.timings = Timings {
            queued: started - self.submitted,
            prefill: first - started,
            decode: now - first,
        };
        self.send(Event::Finished(summary));
        self.ended = true;
    }

    pub(super) fn deliver(&mut self) {
        for event in self.out.drain(..) {
            (self.sink)(event);
        }
    }
}

/// A prompt that waits for pages, or a preempted answer that waits for them again.
pub(super) struct Prompting<'a> {
    pub(super) client: Client,
    /// Keys and values that precede the prompt.
    pub(super) past: Option<Past>,
    /// Tokens of the prompt, followed by the tokens sampled so far; after a preemption with a
    /// past, only those that have not run.
    pub(super) prompt: Vec<u32>,
    pub(super) answer: Continuation<'a>,
    /// Number of reused tokens when the answer first got its pages; None before that.
    cached_tokens: Option<usize>,
}

impl<'a> Prompting<'a> {
    pub(super) fn new(
        client: Client,
        past: Option<Past>,
        prompt: Vec<u32>,
        answer: Continuation<'a>,
    ) -> Self {
        Self { client, past, prompt, answer, cached_tokens: None }
    }
}

impl Prompting<'_> {
    /// Returns the attention window under which the prompt's prefix may be shared, or None if it
    /// may not be shared.
    pub(super) fn window(&self) -> Option<Option<u32>> {
        match self.answer.mask() {
            Mask::Causal { window } if self.past.is_none() => Some(window),
            Mask::Causal { .. } | Mask::Bidirectional { .. } => None,
        }
    }
}

/// An answer that has its pages.
pub(super) struct Answering<'a> {
    pub(super) client: Client,
    pub(super) context: Context,
    pub(super) answer: Continuation<'a>,
    /// Number of the answer's tokens in this step's pass.
    pub(super) part: usize,
    window: Option<Option<u32>>,
    /// Whether a [`Past`] precedes the prompt.
    has_past: bool,
    /// All tokens from the prompt on, whether they have run or not.
    ids: Vec<u32>,
    /// Number of full pages that the prefix cache has been given.
    known: usize,
    cached_tokens: usize,
    /// Number of tokens that had been sampled when the answer got its pages.
    drawn_before: usize,
}

/// Number of tokens that an answer samples before it can be preempted again, which spreads the
/// cost of recomputing it.
const TURN: usize = 32;

impl<'a> Answering<'a> {
    /// Starts a waiting answer. `cache` holds the keys and values that precede the prompt or
    /// those of the prompt's prefix, and has pages reserved for the rest and the answer.
    pub(super) fn new(waiting: Prompting<'a>, cache: KvCache) -> Self {
        let window = waiting.window();
        let Prompting { client, past, prompt, answer, cached_tokens } = waiting;
        let has_past = past.is_some();
        let (held, computed) = (cache.tokens(), if has_past { 0 } else { cache.tokens() });
        let mut context = Context::new(cache);
        past.iter().flat_map(|past| &past.tokens).for_each(|&id| context.see(id));
        prompt[..computed].iter().for_each(|&id| context.see(id));
        prompt[computed..].iter().for_each(|&id| context.push(id));
        let known = computed / PAGE;
        let cached_tokens = cached_tokens.unwrap_or(held);
        let (part, ids, drawn_before) = (0, prompt, answer.drawn());
        Self {
            client,
            context,
            answer,
            part,
            window,
            has_past,
            ids,
            known,
            cached_tokens,
            drawn_before,
        }
    }

    /// Returns true if only the token sampled last is left to run.
    pub(super) fn decodes(&self) -> bool {
        self.answer.drawn() > 0 && self.context.pending() == 1
    }

    /// Returns whether the answer continues a [`Past`].
    pub(super) fn has_past(&self) -> bool {
        self.has_past
    }

    /// Returns whether a text of this priority may preempt the answer: it must have had its turn,
    /// and it must be able to get the same keys and values again. Without a past they are
    /// recomputed, which is exact because its tokens do not attend to later ones. With a past
    /// they are copied to memory, which is possible unless a sliding window has dropped some.
    pub(super) fn yields_to(&self, priority: i32) -> bool {
        let returns = match self.has_past {
            true => !self.context.cache.has_holes(),
            false => self.window.is_some(),
        };
        self.answer.drawn() >= self.drawn_before + TURN
            && returns
            && self.client.priority <= priority
    }

    /// Gives up the answer's pages, after which it waits again. The prefix cache keeps the pages
    /// until others need them; with a past, they are copied to memory. If the copy fails, the
    /// client and its error are returned.
    pub(super) async fn preempt(
        self,
        engine: &Engine,
        drive: &impl Drive,
    ) -> Result<Prompting<'a>, Box<(Client, Error)>> {
        let Self { client, context, answer, ids, cached_tokens, .. } = self;
        let (past, prompt) = match self.has_past {
            true => match drive.export(engine, &context.cache).await {
                Ok(cache) => {
                    let tokens = context.seen().to_vec();
                    let rest = ids[ids.len() - context.pending()..].to_vec();
                    (Some(Past { cache, tokens }), rest)
                }
                Err(error) => return Err(Box::new((client, error))),
            },
            false => (None, ids),
        };
        Ok(Prompting { client, past, prompt, answer, cached_tokens: Some(cached_tokens) })
    }

    /// Returns the number of KV pages that the answer holds.
    pub(super) fn pages(&self) -> usize {
        self.context.cache.pages()
    }

    /// Takes the output of a pass and returns the next piece of the answer, if there is one.
    pub(super) fn settle(
        &mut self,
        result: Result<Output>,
        prefixes: &mut Prefixes,
    ) -> Result<Option<Piece>> {
        let output = result?;
        self.context.ran(self.part);
        let tokens = self.context.cache.tokens();
        if let Some(window) = self.window
            && tokens / PAGE > self.known
        {
            self.known = tokens / PAGE;
            prefixes.insert(window, &self.ids[..tokens], &self.context.cache);
        }
        let piece = self.answer.push(output, &mut self.context)?;
        self.ids.extend(piece.as_ref().map(|piece| piece.token.token));
        Ok(piece)
    }

    /// Returns the prompt's scores, once, after the whole prompt has run.
    pub(super) fn scores(&mut self, whole: bool) -> Option<Vec<SampledToken>> {
        let told = self.answer.drawn() > 1 || !self.answer.scores_prompt();
        (whole && !told).then(|| self.answer.scores().to_vec())
    }

    pub(super) fn summary(&self) -> Summary {
        Summary {
            prompt_tokens: self.answer.prompt_tokens(),
            cached_tokens: self.cached_tokens,
            output_tokens: self.answer.drawn(),
            ..Summary::default()
        }
    }
}

/// Texts that run whole.
pub(super) struct Texts {
    pub(super) client: Client,
    pub(super) texts: Vec<Encoded>,
    pub(super) what: What,
    pub(super) mask: Mask,
    /// Index of the first text that has not been in a pass.
    pub(super) next: usize,
    /// Tokens of the texts from `next` on.
    pub(super) left: usize,
}

/// The kind of result that texts are run for.
pub(super) enum What {
    Embed(Embed),
    Rank(Judge),
}

impl Texts {
    /// Returns the output that a pass must produce for a text.
    pub(super) fn want(&self, index: usize, dim: usize) -> Want {
        match &self.what {
            What::Embed(how) => self.texts[index].want(how, dim),
            What::Rank(_) => Want::Logits,
        }
    }

    /// Turns the output of a pass for a text into its event.
    pub(super) async fn settle(
        &mut self,
        index: usize,
        result: Result<Output>,
        cache: &KvCache,
        engine: &Engine,
        drive: &impl Drive,
    ) -> Result<Event> {
        match (&self.what, result?) {
            (What::Embed(how), Output::Embedding(vector)) => {
                let mut embedding = self.texts[index].finish(index, vector, how)?;
                if how.keep_kv {
                    embedding.kv = Some(drive.export(engine, cache).await?);
                }
                Ok(Event::Embedding { index, embedding })
            }
            (What::Rank(judge), Output::Logits(logits)) => {
                Ok(Event::Ranked(judge.ranked(index, &logits)?))
            }
            (_, other) => Err(Error::Input {
                what: format!("text {index}"),
                problem: format!("expected the output that was asked for, found {other:?}"),
            }),
        }
    }

    pub(super) fn summary(&self) -> Summary {
        let prompt_tokens = self.texts.iter().map(|t| t.tokens.len()).sum();
        Summary { prompt_tokens, ..Summary::default() }
    }
}

/// A text in a pass.
pub(super) struct Part {
    pub(super) rank: QueueKey,
    pub(super) index: usize,
    pub(super) cache: KvCache,
}
