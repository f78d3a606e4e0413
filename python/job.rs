//! An answer of the scheduler as it comes, for blocking code and for event loops.

use crate::error::{ended, raise};
use gritlm::schedule::{Event, Request, Scheduler, Ticket};
use gritlm::{Finish, Piece as Made};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// How long a call goes on before it lets Python's signal handlers run: short for a person who
/// presses Ctrl-C, long beside the microseconds that it costs.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The token of one step, and the text that has become final with it.
#[pyclass(frozen, get_all, module = "gritlm_rs")]
pub(crate) struct Piece {
    /// Whole characters that cannot be part of a stop text; may be empty.
    text: String,
    /// Id of the sampled token.
    token: u32,
    /// Its log-probability under the model, before temperature and filters.
    logprob: f32,
    /// The most likely tokens and their log-probabilities.
    top: Vec<(u32, f32)>,
    /// `"stop"` or `"length"` with the last piece, else `None`.
    finish_reason: Option<&'static str>,
}

#[pymethods]
impl Piece {
    fn __repr__(&self) -> String {
        format!("Piece(text={:?}, token={}, logprob={})", self.text, self.token, self.logprob)
    }
}

impl From<Made> for Piece {
    fn from(piece: Made) -> Self {
        let finish_reason = piece.finish.map(|finish| match finish {
            Finish::Stop => "stop",
            Finish::Length => "length",
        });
        let (token, logprob) = (piece.token.token, piece.token.logprob);
        Self { text: piece.text, token, logprob, top: piece.token.top, finish_reason }
    }
}

/// Tells an event loop that events have come. The scheduler's thread must not wait for the GIL, so
/// a thread of its own does, for all jobs.
#[derive(Default)]
struct Wake {
    told: AtomicBool,
    callback: OnceLock<Py<PyAny>>,
}

impl Wake {
    fn notify(self: &Arc<Self>) {
        if self.callback.get().is_some() && !self.told.swap(true, Ordering::AcqRel) {
            // The thread ends with the process.
            let _ = callers().send(Arc::clone(self));
        }
    }
}

/// Where the thread that calls callbacks takes its orders.
fn callers() -> &'static Sender<Arc<Wake>> {
    static CALLERS: OnceLock<Sender<Arc<Wake>>> = OnceLock::new();
    CALLERS.get_or_init(|| {
        let (sender, orders) = channel::<Arc<Wake>>();
        std::thread::spawn(move || {
            while let Ok(first) = orders.recv() {
                let all: Vec<Arc<Wake>> = std::iter::once(first).chain(orders.try_iter()).collect();
                // None while the interpreter shuts down.
                let _ = Python::try_attach(|py| {
                    for wake in all {
                        wake.told.store(false, Ordering::Release);
                        if let Some(callback) = wake.callback.get() {
                            // It fails where the loop is closed, and then nobody waits.
                            let _ = callback.call0(py);
                        }
                    }
                });
            }
        });
        sender
    })
}

/// Events of an answer that the scheduler makes.
#[pyclass(frozen, module = "gritlm_rs._native")]
pub(crate) struct Job {
    events: Mutex<Receiver<Event>>,
    ticket: Mutex<Option<Ticket>>,
    wake: Arc<Wake>,
    told: Mutex<Told>,
    #[pyo3(get)]
    prompt_tokens: usize,
}

/// A token of the prompt, its log-probability, and the most likely tokens with theirs.
type Score = (u32, f32, Vec<(u32, f32)>);

/// What a job has told besides its pieces.
#[derive(Default)]
struct Told {
    prompt: Vec<Score>,
    summary: Option<String>,
    /// Whether the last event has come.
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it guards is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    pub(crate) fn submit(
        scheduler: &Scheduler,
        request: Request,
        prompt_tokens: usize,
    ) -> Result<Self, gritlm::schedule::Refused> {
        let (sender, events) = channel();
        let wake = Arc::new(Wake::default());
        let waker = Arc::clone(&wake);
        let ticket = scheduler.submit_to(request, move |event| {
            // A job that was dropped has cancelled its request.
            let _ = sender.send(event);
            waker.notify();
        })?;
        let (events, ticket) = (Mutex::new(events), Mutex::new(Some(ticket)));
        Ok(Self { events, ticket, wake, told: Mutex::default(), prompt_tokens })
    }

    /// Returns an error if the events have ended although nobody has cancelled the request.
    fn ended(&self) -> PyResult<()> {
        if lock(&self.ticket).is_none() { Ok(()) } else { Err(ended()) }
    }

    /// Takes an event in; returns the piece that it is.
    fn take(&self, event: Event) -> PyResult<Option<Piece>> {
        let mut told = lock(&self.told);
        match event {
            Event::Piece(piece) => return Ok(Some(piece.into())),
            Event::Prompt(scores) => {
                told.prompt = scores.into_iter().map(|s| (s.token, s.logprob, s.top)).collect();
            }
            Event::Finished(summary) => {
                told.over = true;
                told.summary = serde_json::to_string(&summary).ok();
            }
            Event::Failed(error) => {
                told.over = true;
                return Err(raise(error));
            }
            Event::Embedding { .. } | Event::Ranked(_) => {}
        }
        Ok(None)
    }
}

#[pymethods]
impl Job {
    /// Waits for the next piece; `None` at the end.
    fn next(&self, py: Python<'_>) -> PyResult<Option<Piece>> {
        loop {
            if lock(&self.told).over {
                return Ok(None);
            }
            match py.detach(|| lock(&self.events).recv_timeout(TICK)) {
                Ok(event) => {
                    if let Some(piece) = self.take(event)? {
                        return Ok(Some(piece));
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    if let Err(interrupt) = py.check_signals() {
                        self.cancel();
                        return Err(interrupt);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return self.ended().map(|()| None),
            }
        }
    }

    /// Returns whether the answer is over, and the next piece if there is one already.
    fn poll(&self) -> PyResult<(bool, Option<Piece>)> {
        loop {
            let next = lock(&self.events).try_recv();
            match next {
                Ok(event) => {
                    if let Some(piece) = self.take(event)? {
                        return Ok((false, Some(piece)));
                    }
                }
                Err(TryRecvError::Empty) => return Ok((lock(&self.told).over, None)),
                Err(TryRecvError::Disconnected) => {
                    if !lock(&self.told).over {
                        self.ended()?;
                    }
                    return Ok((true, None));
                }
            }
        }
    }

    /// Lets another thread call `callback` whenever events may have come.
    fn on_event(&self, callback: Py<PyAny>) {
        let _ = self.wake.callback.set(callback);
        self.wake.notify();
    }

    /// Takes the request out of the batch before the next step.
    fn cancel(&self) {
        drop(lock(&self.ticket).take());
    }

    /// Log-probabilities of the prompt's tokens from the second on: token, its own, and the most
    /// likely ones.
    #[getter]
    fn prompt_logprobs(&self) -> Vec<Score> {
        lock(&self.told).prompt.clone()
    }

    /// Counts and times as JSON, once the answer is over.
    #[getter]
    fn summary(&self) -> Option<String> {
        lock(&self.told).summary.clone()
    }
}
