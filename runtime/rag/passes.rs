//! Who runs the model's passes: an engine by itself, or a scheduler in one batch with all other
//! work.

use crate::Result;
use gritlm::schedule::{Cancel, Event, Request, Scheduler, Work};
use gritlm::{Embed, Embedding, Encoded, Engine, Ranked};
use std::time::Instant;

/// Runs embedding passes and judges passages. Indexing, searching and asking go through it, so that
/// they are the same in a program with an engine of its own and in a server.
pub trait Passes: Sync {
    /// Returns the engine, for its config, tokenizer and vector search.
    fn engine(&self) -> &Engine;

    /// Embeds texts of [`Engine::encode_texts`] and returns their embeddings in order.
    ///
    /// # Errors
    /// As [`Engine::embed_encoded`]; when a scheduler refuses, the deadline passes, or the work is
    /// cancelled.
    fn embed_texts(&self, texts: Vec<Encoded>, how: &Embed) -> Result<Vec<Embedding>>;

    /// Judges passages by prompts of [`Engine::encode_passages`], the most relevant first.
    ///
    /// # Errors
    /// As [`Engine::rerank`]; when a scheduler refuses, the deadline passes, or the work is
    /// cancelled.
    fn rank_prompts(&self, prompts: Vec<Vec<u32>>) -> Result<Vec<Ranked>>;
}

impl Passes for Engine {
    fn engine(&self) -> &Engine {
        self
    }

    fn embed_texts(&self, texts: Vec<Encoded>, how: &Embed) -> Result<Vec<Embedding>> {
        Ok(self.embed_encoded(&texts, how, &mut |_| Ok(()))?)
    }

    fn rank_prompts(&self, prompts: Vec<Vec<u32>>) -> Result<Vec<Ranked>> {
        Ok(self.rank_encoded(&prompts, &mut |_| Ok(()))?)
    }
}

/// A scheduler that runs the passes, with what all of them have in common.
#[derive(Clone)]
pub struct Scheduled<'a> {
    /// The scheduler.
    pub scheduler: &'a Scheduler,
    /// As [`Request::priority`].
    pub priority: i32,
    /// As [`Request::deadline`].
    pub deadline: Option<Instant>,
    /// Cancels what waits or runs; then the call returns [`gritlm::Error::Cancelled`].
    pub cancel: Cancel,
}

impl Scheduled<'_> {
    /// Returns work as a request with the common priority, deadline and cancellation.
    pub fn request(&self, work: Work) -> Request {
        let (priority, deadline, cancel) = (self.priority, self.deadline, self.cancel.clone());
        Request { work, priority, deadline, cancel }
    }

    /// Runs work and hands its results to `take`.
    fn run(&self, work: Work, take: &mut dyn FnMut(Event)) -> Result<()> {
        for event in self.scheduler.submit(self.request(work))? {
            match event {
                Event::Finished(_) => return Ok(()),
                Event::Failed(error) => return Err(error.into()),
                result => take(result),
            }
        }
        // The events of a cancelled request just end.
        Err(gritlm::Error::Cancelled.into())
    }
}

impl Passes for Scheduled<'_> {
    fn engine(&self) -> &Engine {
        self.scheduler.engine()
    }

    fn embed_texts(&self, texts: Vec<Encoded>, how: &Embed) -> Result<Vec<Embedding>> {
        let mut found = Vec::with_capacity(texts.len());
        if !texts.is_empty() {
            self.run(Work::Embed { texts, options: how.clone() }, &mut |event| {
                if let Event::Embedding { embedding, .. } = event {
                    found.push(embedding);
                }
            })?;
        }
        Ok(found)
    }

    fn rank_prompts(&self, prompts: Vec<Vec<u32>>) -> Result<Vec<Ranked>> {
        let mut ranked = Vec::with_capacity(prompts.len());
        if !prompts.is_empty() {
            self.run(Work::Rank { prompts }, &mut |event| {
                if let Event::Ranked(one) = event {
                    ranked.push(one);
                }
            })?;
        }
        Ranked::sort_by(&mut ranked, |r| r.score);
        Ok(ranked)
    }
}
