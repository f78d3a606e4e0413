//! The step loop: it chooses the sequences of each pass and delivers the results.

use super::drive::Drive;
use super::job::{AGE, Answering, Arrival, Client, Part, Prompting, QueueKey, Texts, What};
use super::pass::{locked, outcomes, prepared};
use super::prefix::Prefixes;
use super::{Event, Limits, Shared, Stats, Step, StepTokens, Summary, Work};
use crate::batch::{Output, Sequence};
use crate::continuation::Continuation;
use crate::rerank::Judge;
use crate::{Encoded, Engine, Error, Result};
use gritlm_model::ops::PAGE;
use std::collections::BTreeMap;
use web_time::Instant;

/// Runs steps until the scheduler is closed or has no more handles, and all requests have ended.
pub(super) async fn run(engine: &Engine, limits: &Limits, shared: &Shared, drive: &impl Drive) {
    // No client may wait forever, however this thread ends.
    let _end = End(shared);
    let mut steps = Steps {
        engine,
        limits,
        shared,
        prompts: BTreeMap::new(),
        texts: BTreeMap::new(),
        running: BTreeMap::new(),
        leaving: Vec::new(),
        prefixes: Prefixes::default(),
        credit: 0,
        short: None,
        stuck: false,
        stats: Stats::default(),
        done: None,
    };
    while steps.receive(drive).await {
        steps.sweep();
        steps.admit();
        let parts = steps.pack(drive).await;
        // Requests that have their pages or are in this pass no longer count as waiting.
        steps.tell();
        steps.pass(parts, drive).await;
        steps.tell();
        steps.deliver();
    }
}

struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut inbox = self.0.inbox();
        inbox.closed = true;
        inbox.arrivals.clear();
    }
}

struct Steps<'a> {
    engine: &'a Engine,
    limits: &'a Limits,
    shared: &'a Shared,
    prompts: BTreeMap<QueueKey, Prompting<'a>>,
    texts: BTreeMap<QueueKey, Texts>,
    running: BTreeMap<QueueKey, Answering<'a>>,
    /// Clients whose last event has yet to be delivered.
    leaving: Vec<Client>,
    prefixes: Prefixes,
    /// Tokens that the first text, which is longer than its share, has accumulated.
    credit: usize,
    /// The text that found too few free pages in the last step. Prompts behind it wait, because
    /// their answers would take the pages each time some are freed.
    short: Option<QueueKey>,
    /// Whether nothing could run although requests wait, because passes outside the scheduler
    /// hold the pages.
    stuck: bool,
    stats: Stats,
    /// The pass that [`Steps::tell`] has not published yet.
    done: Option<Step>,
}

impl Steps<'_> {
    /// Accepts the requests that have arrived, and waits for one if there is nothing else to do.
    /// Returns false when the scheduler is closed and idle.
    async fn receive(&mut self, drive: &impl Drive) -> bool {
        if self.stuck {
            drive.wait(self.engine, self.shared, true).await;
        }
        let idle = self.prompts.is_empty() && self.texts.is_empty() && self.running.is_empty();
        loop {
            {
                let mut inbox = self.shared.inbox();
                if !idle || !inbox.arrivals.is_empty() {
                    for arrival in std::mem::take(&mut inbox.arrivals) {
                        self.accept(arrival);
                    }
                    inbox.told = self.told();
                    return true;
                }
                if inbox.closed {
                    return false;
                }
            }
            drive.wait(self.engine, self.shared, false).await;
        }
    }

    fn accept(&mut self, arrival: Arrival) {
        let Arrival { id, work, mut client } = arrival;
        client.arrived = self.stats.steps;
        let rank = (self.stats.steps as i64 - i64::from(client.priority) * AGE, id);
        let (left, before) = (work.tokens(), work.past_tokens());
        let mut fail = |mut client: Client, error| {
            client.fail(error);
            self.stats.failed += 1;
            self.leaving.push(client);
        };
        match work {
            Work::Embed { texts, options: how } => {
                let (mask, what) = (self.engine.mask_for(&how), What::Embed(how));
                self.texts.insert(rank, Texts { client, texts, what, mask, next: 0, left });
            }
            Work::Rank { prompts } => match Judge::new(self.engine) {
                Ok(judge) => {
                    let text = |tokens| Encoded { tokens, skip: 0, truncated: 0 };
                    let texts = prompts.into_iter().map(text).collect();
                    let (mask, what) = (self.engine.generation_mask(), What::Rank(judge));
                    self.texts.insert(rank, Texts { client, texts, what, mask, next: 0, left });
                }
                Err(error) => fail(client, error),
            },
            Work::Generate { prompt, sampling: how, past } => {
                match Continuation::new(self.engine, &how, before + prompt.len()) {
                    Ok(answer) if answer.is_over() => {
                        let prompt_tokens = before + left;
                        let summary = Summary { prompt_tokens, ..Summary::default() };
                        client.finish(self.stats.steps, summary);
                        self.stats.finished += 1;
                        self.leaving.push(client);
                    }
                    Ok(answer) => {
                        let answer = answer.after(&prompt);
                        self.prompts.insert(rank, Prompting::new(client, past, prompt, answer));
                    }
                    Err(error) => fail(client, error),
                }
            }
        }
    }

    /// Drops requests whose client is gone, fails requests past their deadline, and frees the pages
    /// of both.
    fn sweep(&mut self) {
        let now = Instant::now();
        let over = |c: &Client| c.is_gone() || c.is_late(now);
        let prompts = self.prompts.extract_if(.., |_, job| over(&job.client));
        let mut left: Vec<Client> = prompts.map(|(_, job)| job.client).collect();
        let texts = self.texts.extract_if(.., |_, job| over(&job.client));
        left.extend(texts.map(|(_, job)| job.client));
        let running = self.running.extract_if(.., |_, job| over(&job.client));
        left.extend(running.map(|(_, job)| job.client));
        for mut client in left {
            if client.is_gone() {
                self.stats.cancelled += 1;
            } else {
                client.fail(Error::Expired);
                self.stats.expired += 1;
                self.leaving.push(client);
            }
        }
    }

    /// Starts waiting answers, each with the pages for its prompt and its whole answer, so that
    /// no answer fails halfway for lack of pages. Pages that a sliding window has passed are
    /// freed on the way. Answers start in order: a smaller one does not overtake the next.
    fn admit(&mut self) {
        while self.running.len() < self.limits.batch_tokens / 2
            && let Some(entry) = self.prompts.first_entry()
            && self.short.is_none_or(|short| *entry.key() < short)
        {
            let waiting = entry.get();
            let room = waiting.answer.room();
            let mut cache = match waiting.window() {
                Some(window) if !waiting.answer.scores_prompt() => {
                    self.prefixes.find(self.engine, window, &waiting.prompt)
                }
                _ => self.engine.cache(),
            };
            let more = room - cache.tokens();
            if !self.prefixes.make_room(self.engine.pool(), cache.lacks(more)) {
                break;
            }
            if let Some(past) = &waiting.past {
                cache = match self.engine.import(&past.cache) {
                    Ok(cache) => cache,
                    Err(Error::NoRoom { .. }) => break,
                    Err(error) => {
                        let mut client = entry.remove().client;
                        client.fail(error);
                        self.stats.failed += 1;
                        self.leaving.push(client);
                        continue;
                    }
                };
            }
            if cache.reserve(room - cache.tokens()).is_err() {
                break;
            }
            let (rank, waiting) = entry.remove_entry();
            let imported = waiting.past.is_some();
            let counter = match imported {
                true => &mut self.stats.past_tokens,
                false => &mut self.stats.prefix_tokens,
            };
            *counter += cache.tokens() as u64;
            self.running.insert(rank, Answering::new(waiting, cache));
            if imported {
                // Each copy delays the step, so the next answer with a past starts in the next
                // step.
                break;
            }
        }
    }

    /// Divides the step's token budget; see [`Limits::batch_tokens`].
    async fn pack(&mut self, drive: &impl Drive) -> Vec<Part> {
        self.short = None;
        let (mut decode, mut prefills) = (0, false);
        for job in self.running.values_mut() {
            job.part = usize::from(job.decodes());
            decode += job.part;
            prefills |= !job.decodes();
        }
        let rest = self.limits.batch_tokens - decode;

        let (share, credit) = match prefills {
            true => (rest / 2, self.credit.saturating_add(rest / 2)),
            false => (rest, usize::MAX),
        };
        let mut parts = Vec::new();
        let mut embed = self.pack_texts(&mut parts, 0, share, credit, drive).await;
        self.credit = match parts.is_empty() && prefills && !self.texts.is_empty() {
            true => credit,
            false => 0,
        };
        let (mut left, mut prefill) = (rest.saturating_sub(embed), 0);
        for job in self.running.values_mut().filter(|job| !job.decodes()) {
            if left == 0 {
                break;
            }
            job.part = job.context.part(left, &job.answer);
            prefill += job.part;
            left = left.saturating_sub(job.part);
        }
        if left > 0 {
            embed = self.pack_texts(&mut parts, embed, embed + left, 0, drive).await;
        }
        // Texts may have preempted some of the answers counted above.
        let decode = self.running.values().filter(|job| job.decodes()).count();
        let from_cache = self.running.values().filter(|job| job.has_past());
        let from_cache = from_cache.map(|job| job.part).sum::<usize>() as u64;
        let [decode, prefill, embed] = [decode, prefill, embed].map(|tokens| tokens as u64);
        self.stats.last = StepTokens { decode, prefill, embed, from_cache };
        parts
    }

    /// Adds texts to the pass in order, and returns the number of text tokens in it. `used`
    /// tokens of texts are in it already; a text is added if the sum stays within `share` or, as
    /// the first text of the pass, if it has at most `credit` tokens.
    async fn pack_texts(
        &mut self,
        parts: &mut Vec<Part>,
        used: usize,
        share: usize,
        credit: usize,
        drive: &impl Drive,
    ) -> usize {
        // The texts are moved out of `self`, because adding one may preempt answers.
        let mut texts = std::mem::take(&mut self.texts);
        let used = self.pack_some(&mut texts, parts, (used, share, credit), drive).await;
        self.texts = texts;
        used
    }

    /// Implements [`Steps::pack_texts`] for the given texts.
    async fn pack_some(
        &mut self,
        texts: &mut BTreeMap<QueueKey, Texts>,
        parts: &mut Vec<Part>,
        (mut used, share, credit): (usize, usize, usize),
        drive: &impl Drive,
    ) -> usize {
        for (&rank, job) in texts {
            while let Some(text) = job.texts.get(job.next) {
                let tokens = text.tokens.len();
                if used + tokens > share && !(parts.is_empty() && tokens <= credit) {
                    return used;
                }
                let mut cache = self.engine.cache();
                let pages = tokens.div_ceil(PAGE);
                let room = self.prefixes.make_room(self.engine.pool(), pages)
                    // Only the first text of a pass preempts, so that answers make progress, too.
                    || parts.is_empty() && self.preempt(pages, job.client.priority, drive).await;
                if !room || cache.reserve(tokens).is_err() {
                    self.short = Some(rank);
                    return used;
                }
                job.client.start(self.stats.steps + 1);
                parts.push(Part { rank, index: job.next, cache });
                job.next += 1;
                job.left -= tokens;
                used += tokens;
            }
        }
        used
    }

    /// Preempts answers, the youngest first, until `pages` pages are free for a text of this
    /// priority. Returns false and preempts none if even all of them would not be enough. A
    /// preempted answer waits for pages again, ahead of all answers that came after it, and
    /// recomputes the tokens whose pages the prefix cache has evicted.
    async fn preempt(&mut self, pages: usize, priority: i32, drive: &impl Drive) -> bool {
        let pool = self.engine.pool();
        let yielding = self.running.iter().filter(|(_, job)| job.yields_to(priority));
        let (ranks, held): (Vec<QueueKey>, Vec<usize>) =
            yielding.map(|(&rank, job)| (rank, job.pages())).unzip();
        if pages > pool.free_pages() + self.prefixes.pages() + held.iter().sum::<usize>() {
            return false;
        }
        for rank in ranks.into_iter().rev() {
            let Some(job) = self.running.remove(&rank) else { continue };
            match job.preempt(self.engine, drive).await {
                Ok(waiting) => {
                    self.prompts.insert(rank, waiting);
                    self.stats.preemptions += 1;
                }
                Err(failed) => {
                    let (mut client, error) = *failed;
                    client.fail(error);
                    self.stats.failed += 1;
                    self.leaving.push(client);
                }
            }
            if self.prefixes.make_room(pool, pages) {
                return true;
            }
        }
        false
    }

    async fn pass(&mut self, mut parts: Vec<Part>, drive: &impl Drive) {
        let dim = self.engine.config().dim;
        let (mut sequences, mut guides) = (Vec::new(), Vec::new());
        for job in self.running.values_mut().filter(|job| job.part > 0) {
            job.client.start(self.stats.steps + 1);
            sequences.push(job.context.sequence(job.part, &job.answer));
            guides.push(job.answer.guide().take());
        }
        for Part { rank, index, cache } in &mut parts {
            let job = &self.texts[rank];
            let (tokens, want) = (&job.texts[*index].tokens, job.want(*index, dim));
            sequences.push(Sequence { tokens, cache, mask: job.mask, want });
        }
        let waits = !(self.prompts.is_empty() && self.texts.is_empty());
        self.stuck = sequences.is_empty() && waits;
        if sequences.is_empty() {
            return;
        }
        let start = Instant::now();
        let guides = prepared(guides);
        let results = outcomes(drive, self.engine, &mut sequences).await;
        let failed = |result: &Result<Output>| matches!(result, Err(Error::Device(_)));
        if results.iter().any(failed) && self.engine.is_lost() {
            self.shared.lose();
        }
        let mut guides = std::mem::take(&mut *locked(&guides)).into_iter();
        for job in self.running.values_mut().filter(|job| job.part > 0) {
            *job.answer.guide() = guides.next().flatten();
        }
        let time = start.elapsed();
        self.stats.busy += time;
        self.stats.steps += 1;
        self.stats.total.add(self.stats.last);
        self.done = Some(Step { step: self.stats.steps, tokens: self.stats.last, time });
        self.settle(parts, results, drive).await;
    }

    async fn settle(&mut self, parts: Vec<Part>, results: Vec<Result<Output>>, drive: &impl Drive) {
        let (stats, mut results) = (&mut self.stats, results.into_iter());
        for job in self.running.values_mut().filter(|job| job.part > 0) {
            let Some(result) = results.next() else { break };
            match job.settle(result, &mut self.prefixes) {
                Ok(piece) => {
                    let over = job.answer.is_over();
                    if let Some(scores) = job.scores(piece.is_some() || over) {
                        job.client.send(Event::Prompt(scores));
                    }
                    piece.into_iter().for_each(|piece| job.client.send(Event::Piece(piece)));
                    if over {
                        let summary = job.summary();
                        job.client.finish(stats.steps, summary);
                        stats.finished += 1;
                    }
                }
                Err(error) => {
                    job.client.fail(error);
                    stats.failed += 1;
                }
            }
        }
        for (Part { rank, index, cache }, result) in parts.into_iter().zip(results) {
            // Another text of the same request may have failed in this pass.
            let Some(job) = self.texts.get_mut(&rank).filter(|job| !job.client.has_ended()) else {
                continue;
            };
            match job.settle(index, result, &cache, self.engine, drive).await {
                Ok(event) => {
                    job.client.send(event);
                    if index + 1 == job.texts.len() {
                        let summary = job.summary();
                        job.client.finish(stats.steps, summary);
                        stats.finished += 1;
                    }
                }
                Err(error) => {
                    job.client.fail(error);
                    stats.failed += 1;
                }
            }
        }
        let running = self.running.extract_if(.., |_, job| job.client.has_ended());
        self.leaving.extend(running.map(|(_, job)| job.client));
        let texts = self.texts.extract_if(.., |_, job| job.client.has_ended());
        self.leaving.extend(texts.map(|(_, job)| job.client));
    }

    fn told(&self) -> Stats {
        let texts = || self.texts.values().filter(|job| job.left > 0);
        let prompts: usize = self.prompts.values().map(|job| job.prompt.len()).sum();
        Stats {
            waiting_generate: self.prompts.len(),
            waiting_embed: texts().count(),
            waiting_tokens: prompts + texts().map(|job| job.left).sum::<usize>(),
            running: self.running.len(),
            pages_prefix: self.prefixes.pages(),
            ..self.stats.clone()
        }
    }

    fn tell(&mut self) {
        let (told, done) = (self.told(), self.done.take());
        let mut inbox = self.shared.inbox();
        inbox.told = told;
        done.into_iter().for_each(|step| inbox.recent.push(step));
    }

    /// Delivers the step's events, after [`Steps::tell`] has published its counters.
    fn deliver(&mut self) {
        self.running.values_mut().for_each(|job| job.client.deliver());
        self.texts.values_mut().for_each(|job| job.client.deliver());
        self.leaving.drain(..).for_each(|mut client| client.deliver());
    }
}
