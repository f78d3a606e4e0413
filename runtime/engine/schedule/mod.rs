//! The scheduler: many requests share one copy of the weights and one batch.
//!
//! The scheduler does continuous batching, on a thread of its own ([`Scheduler::start`]) or while a
//! future is polled ([`Scheduler::polled`]). Each step is one pass over a
//! packed batch, which consists of the next token of every running answer (decode), parts of
//! prompts (prefill), and whole texts to embed or to rank. Each sequence has its own mask.
//! [`Limits::batch_tokens`] describes how a step is shared.
//!
//! ```
//! use gritlm::schedule::{Event, Limits, Scheduler, Work};
//! use gritlm::{Embed, Engine, Options, Prompt, Sampling};
//!
//! let engine = Engine::open("demo", &Options::default())?;
//! let how = Embed::default();
//! let texts = engine.encode_texts(&["chess interface"], &how)?;
//! let prompt = engine.tokenize_prompt(&Prompt::user("Describe the package pdfgrep."), false)?;
//!
//! let scheduler = Scheduler::start(engine, Limits::default())?;
//! let sampling = Sampling::greedy().max_tokens(8);
//! let answer = Work::Generate { prompt, sampling, past: None };
//! let answer = scheduler.submit(answer.into())?;
//! let vectors = scheduler.submit(Work::Embed { texts, options: how }.into())?;
//! for event in answer.chain(vectors) {
//!     match event {
//!         Event::Prompt(scores) => println!("{} tokens are scored", scores.len()),
//!         Event::Piece(piece) => print!("{}", piece.text),
//!         Event::Embedding { embedding, .. } => println!("{} numbers", embedding.vector.len()),
//!         Event::Ranked(ranked) => println!("{}", ranked.probability),
//!         Event::Finished(summary) => println!("{} tokens in", summary.prompt_tokens),
//!         Event::Failed(error) => return Err(error.into()),
//!     }
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod drive;
mod job;
mod pass;
mod prefix;
mod request;
mod stats;
mod step;

use crate::batch::check_tokens;
use crate::continuation::Continuation;
use crate::rerank::Judge;
use crate::{Engine, Error, Result};
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use futures_core::Stream;
use gritlm_model::ops::{DeviceError, PAGE};
use job::{Arrival, Client};
use stats::Recent;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use tokio::sync::Notify;

pub use request::{Cancel, Event, Past, Refused, Request, Work};
pub use stats::{Refusals, Stats, Step, StepTokens, Summary, Timings};

/// With at least this many tokens, each kind of work gets a share of every step.
const MIN_BATCH_TOKENS: usize = 16;

/// Limits of a step and of the queue.
///
/// An answer reserves the KV pages for its whole length when it starts. A text that finds too few
/// free pages preempts the youngest answers of its own or a lower priority, but only those that
/// have sampled 32 tokens since they got their pages. A preempted answer resumes after the text,
/// and its tokens are the same as without preemption.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Token budget of a step. Each running answer first gets one token; at most
    /// `batch_tokens / 2` answers run. While both wait, prompts and texts each get half of the
    /// rest, and either gets what the other leaves. Prompts are split over steps; texts run
    /// whole. A text that is longer than its share accumulates the shares of the steps in which
    /// it does not run, and then runs, beyond the budget if it must: no text is too long for a
    /// step.
    pub batch_tokens: usize,
    /// Maximum number of requests in the queue.
    pub queue_requests: usize,
    /// Maximum number of tokens of all requests in the queue together; a request that waits alone
    /// may have more.
    pub queue_tokens: usize,
}

gritlm_model::setters!(Limits { batch_tokens: usize, queue_requests: usize, queue_tokens: usize });

impl Default for Limits {
    fn default() -> Self {
        Self { batch_tokens: 1024, queue_requests: 512, queue_tokens: 1 << 20 }
    }
}

/// A handle to a scheduler; clones refer to the same one. When the last handle is dropped, the
/// scheduler completes the accepted requests and ends.
#[derive(Clone)]
pub struct Scheduler {
    handle: Arc<Handle>,
}

struct Handle {
    engine: Arc<Engine>,
    limits: Limits,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("engine", &self.handle.engine)
            .field("limits", &self.handle.limits)
            .finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// State that the steps share with the handles.
struct Shared {
    inbox: Mutex<Inbox>,
    /// Told when a request arrives, and when the scheduler is closed.
    wake: Notify,
    /// Told when the device is lost.
    lost: Notify,
}

struct Inbox {
    arrivals: Vec<Arrival>,
    /// Number of accepted requests, which is the next one's id.
    taken: u64,
    closed: bool,
    lost: bool,
    refused: Refusals,
    /// Counters as the thread last published them; `arrivals` are not included.
    told: Stats,
    recent: Recent,
}

/// What the steps need.
struct Run {
    engine: Arc<Engine>,
    limits: Limits,
    shared: Arc<Shared>,
}

impl Run {
    async fn with(self, drive: impl drive::Drive) {
        step::run(&self.engine, &self.limits, &self.shared, &drive).await;
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // The inbox is consistent between any two statements, so a poisoned lock can be used.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.inbox().closed = true;
        self.wake.notify_one();
    }

    fn lose(&self) {
        self.inbox().lost = true;
        self.lost.notify_waiters();
    }
}

impl Scheduler {
    /// Starts the scheduler's thread, which takes over the engine.
    ///
    /// # Errors
    /// When `batch_tokens` is too small, or the system cannot start a thread.
    pub fn start(engine: Engine, limits: Limits) -> Result<Self> {
        let (scheduler, run) = Self::with(engine, limits)?;
        let thread = std::thread::Builder::new()
            .name("gritlm-engine".into())
            .spawn(move || pollster::block_on(run.with(drive::Thread)))
            .map_err(|e| DeviceError(format!("no thread for the scheduler: {e}")))?;
        *scheduler.handle.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(scheduler)
    }

    /// Returns a scheduler without a thread, and the future that runs its steps while it is polled:
    /// for a browser, or an event loop that has the device to itself. The future ends when the
    /// scheduler is closed ([`Scheduler::close`], or no handle is left) and all requests have
    /// ended. Where requests wait for pages that passes outside the scheduler hold, a deadline is
    /// noticed once some are freed.
    ///
    /// ```
    /// use gritlm::schedule::{Limits, Scheduler, Work};
    /// use gritlm::{Embed, Engine, Options};
    ///
    /// let engine = Engine::open("demo", &Options::default())?;
    /// let texts = engine.encode_texts(&["chess interface"], &Embed::default())?;
    /// let (scheduler, steps) = Scheduler::polled(engine, Limits::default())?;
    /// let work = Work::Embed { texts, options: Embed::default() };
    /// let events = scheduler.submit(work.into())?;
    /// scheduler.close();
    /// pollster::block_on(steps);
    /// assert_eq!(events.count(), 2); // the embedding, and the end
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// When `batch_tokens` is too small.
    pub fn polled(
        engine: Engine,
        limits: Limits,
    ) -> Result<(Self, impl Future<Output = ()> + use<>)> {
        Self::polled_in_turns(engine, limits, async || ())
    }

    /// Does what [`Scheduler::polled`] does, and awaits `turn` after each pass. Where the device is
    /// the CPU, passes are done when they are polled; `turn` then lets other work of an event loop
    /// go on between them.
    ///
    /// # Errors
    /// As [`Scheduler::polled`].
    pub fn polled_in_turns<T: AsyncFn()>(
        engine: Engine,
        limits: Limits,
        turn: T,
    ) -> Result<(Self, impl Future<Output = ()> + use<T>)> {
        let (scheduler, run) = Self::with(engine, limits)?;
        Ok((scheduler, run.with(drive::Polled(turn))))
    }

    fn with(engine: Engine, limits: Limits) -> Result<(Self, Run)> {
        if limits.batch_tokens < MIN_BATCH_TOKENS {
            return Err(Error::Option {
                option: "batch_tokens",
                expected: format!("at least {MIN_BATCH_TOKENS} tokens in a step"),
                found: limits.batch_tokens.to_string(),
            });
        }
        let engine = Arc::new(engine);
        let inbox = Mutex::new(Inbox {
            arrivals: Vec::new(),
            taken: 0,
            closed: false,
            lost: false,
            refused: Refusals::default(),
            told: Stats::default(),
            recent: Recent::new(),
        });
        let shared = Arc::new(Shared { inbox, wake: Notify::new(), lost: Notify::new() });
        let run = Run {
            engine: Arc::clone(&engine),
            limits: limits.clone(),
            shared: Arc::clone(&shared),
        };
        let thread = Mutex::new(None);
        Ok((Self { handle: Arc::new(Handle { engine, limits, shared, thread }) }, run))
    }

    /// Returns the engine, for its config, tokenizer and device. Passes that a caller runs on it
    /// directly wait for the scheduler's passes, and the scheduler cannot use the KV pages that
    /// they hold.
    pub fn engine(&self) -> &Engine {
        &self.handle.engine
    }

    /// Returns the limits that the scheduler was started with.
    pub fn limits(&self) -> &Limits {
        &self.handle.limits
    }

    /// Queues a request and returns its events, for blocking code; [`Scheduler::stream`] does the
    /// same for async code.
    ///
    /// # Errors
    /// When the scheduler refuses the request.
    pub fn submit(&self, request: Request) -> Result<Events, Refused> {
        Ok(Events { stream: self.stream(request)? })
    }

    /// Queues a request and returns its events, for async code on any runtime. The channel is
    /// unbounded, so that no step waits for a slow reader.
    ///
    /// # Errors
    /// When the scheduler refuses the request.
    pub fn stream(&self, request: Request) -> Result<EventStream, Refused> {
        let (sender, receiver) = unbounded();
        let ticket = self.submit_to(request, move |event| {
            // A dropped receiver has dropped its ticket as well, which cancels the request.
            let _ = sender.unbounded_send(event);
        })?;
        Ok(EventStream { receiver, _ticket: ticket })
    }

    /// Queues a request and passes its events to `sink`, which the scheduler's thread calls
    /// between two steps. The sink must not wait; it may be, for instance, an unbounded sender of
    /// any kind. It is dropped after the last event.
    ///
    /// # Errors
    /// If the scheduler refuses the request.
    pub fn submit_to(
        &self,
        request: Request,
        sink: impl FnMut(Event) + Send + 'static,
    ) -> Result<Ticket, Refused> {
        let checked = self.check(&request.work);
        let shared = &self.handle.shared;
        let mut inbox = shared.inbox();
        if let Err(refused) = checked.and_then(|()| self.room(&inbox, request.work.tokens())) {
            inbox.refused.count(&refused);
            return Err(refused);
        }
        let own = Cancel::default();
        let Request { work, priority, deadline, cancel } = request;
        let client = Client::new(Box::new(sink), [own.clone(), cancel], priority, deadline);
        let id = inbox.taken;
        inbox.arrivals.push(Arrival { id, work, client });
        inbox.taken += 1;
        drop(inbox);
        shared.wake.notify_one();
        Ok(Ticket::new(own))
    }

    /// Checks that the request is valid and that an idle scheduler could run it.
    fn check(&self, work: &Work) -> Result<(), Refused> {
        let engine = self.engine();
        let config = engine.config();
        let room = match work {
            Work::Embed { texts, options: how } => {
                how.check(config.dim)?;
                self.longest(texts.iter().map(|text| (text.tokens.as_slice(), text.skip)))?
            }
            Work::Rank { prompts } => {
                Judge::new(engine)?;
                self.longest(prompts.iter().map(|prompt| (prompt.as_slice(), 0)))?
            }
            Work::Generate { prompt, sampling: how, past } => {
                check_tokens(prompt, 0, config).map_err(invalid)?;
                if let Some(past) = past {
                    past.cache.check_shape(config)?;
                }
                match Continuation::new(engine, how, work.past_tokens() + prompt.len()) {
                    Err(Error::LongPrompt { tokens, limit }) => {
                        return Err(Refused::TooLong { tokens, limit });
                    }
                    answer => answer?.room(),
                }
            }
        };
        let pages = engine.pool().pages();
        match room.div_ceil(PAGE) > pages {
            true => Err(Refused::NeverFits { tokens: room, kv_tokens: pages * PAGE }),
            false => Ok(()),
        }
    }

    /// Returns the length of the longest sequence that runs whole, in tokens, after checking each
    /// sequence and the number of its tokens that pooling leaves out.
    fn longest<'a>(
        &self,
        sequences: impl Iterator<Item = (&'a [u32], usize)>,
    ) -> Result<usize, Refused> {
        let config = self.engine().config();
        let (mut longest, limit) = (None, config.max_positions);
        for (tokens, skip) in sequences {
            check_tokens(tokens, skip, config).map_err(invalid)?;
            if tokens.len() > limit {
                return Err(Refused::TooLong { tokens: tokens.len(), limit });
            }
            longest = longest.max(Some(tokens.len()));
        }
        Ok(longest.ok_or_else(|| invalid("expected at least one text, found none".into()))?)
    }

    /// Checks that the queue has room for a request of `more` tokens.
    fn room(&self, inbox: &Inbox, more: usize) -> Result<(), Refused> {
        if inbox.closed {
            return Err(Refused::Draining);
        }
        let limits = self.limits();
        let stats = inbox.stats(self.engine());
        let (requests, tokens) =
            (stats.waiting_generate + stats.waiting_embed, stats.waiting_tokens);
        let full = requests >= limits.queue_requests
            || requests > 0 && tokens + more > limits.queue_tokens;
        match full {
            true => {
                Err(Refused::QueueFull { requests, tokens, retry_after: stats.time_for(tokens) })
            }
            false => Ok(()),
        }
    }

    /// Waits until a pass has failed because the device is lost. From then on every request fails; the
    /// model must be opened again, for a scheduler of its own.
    pub async fn lost(&self) {
        let shared = &self.handle.shared;
        // Made before the check, it hears of a loss that comes right after.
        let told = shared.lost.notified();
        if !shared.inbox().lost {
            told.await;
        }
    }

    /// Returns the scheduler's counters.
    pub fn stats(&self) -> Stats {
        self.handle.shared.inbox().stats(self.engine())
    }

    /// Returns the steps after number `step`, oldest first, as far as they are among the last
    /// 256. A caller that passes the number of the last step it has seen gets each step once. A
    /// step is listed before its events are delivered.
    pub fn steps_since(&self, step: u64) -> Vec<Step> {
        self.handle.shared.inbox().recent.since(step)
    }

    /// Refuses new requests; those that have been accepted go on.
    pub fn close(&self) {
        self.handle.shared.close();
    }

    /// Refuses new requests and, where the scheduler has a thread, waits until every accepted one
    /// has ended.
    pub fn drain(&self) {
        self.close();
        let mut thread = self.handle.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic has been reported on stderr, and the requests' events have ended.
            let _ = thread.join();
        }
    }
}

fn invalid(problem: String) -> Error {
    Error::Input { what: "request".into(), problem }
}

impl Inbox {
    fn stats(&self, engine: &Engine) -> Stats {
        let mut stats = self.told.clone();
        for arrival in &self.arrivals {
            match arrival.work {
                Work::Embed { .. } | Work::Rank { .. } => stats.waiting_embed += 1,
                Work::Generate { .. } => stats.waiting_generate += 1,
            }
            stats.waiting_tokens += arrival.work.tokens();
        }
        stats.submitted = self.taken;
        stats.refused = self.refused;
        stats.pages = engine.pool().pages();
        stats.pages_free = engine.pool().free_pages();
        stats
    }
}

/// Keeps requests alive. Dropping the ticket cancels them: they leave the batch before the next
/// step and free their KV pages.
#[derive(Debug)]
#[must_use = "dropping it cancels the request"]
pub struct Ticket {
    cancel: Cancel,
}

impl Ticket {
    /// Returns a ticket of all requests that carry a clone of `cancel`.
    pub fn new(cancel: Cancel) -> Self {
        Self { cancel }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// Events of a request as they occur, for async code: a [`Stream`] that ends after the last
/// event. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    receiver: UnboundedReceiver<Event>,
    _ticket: Ticket,
}

impl Stream for EventStream {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        Pin::new(&mut self.receiver).poll_next(context)
    }
}

/// Events of a request as they occur, for blocking code: an iterator that waits for the next
/// event. Dropping it cancels the request.
#[derive(Debug)]
pub struct Events {
    stream: EventStream,
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let next = std::future::poll_fn(|context| Pin::new(&mut self.stream).poll_next(context));
        pollster::block_on(next)
    }
}
