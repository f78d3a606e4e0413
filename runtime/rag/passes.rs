//! Who runs the model's passes: an engine by itself, or a scheduler in one batch with all other
//! work.

use crate::{Error, Result};
use gritlm::schedule::{Cancel, Event, Events, Request, Scheduler, Work};
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
        let mut found: Vec<Option<Embedding>> = vec![None; texts.len()];
        self.embed_encoded(&texts, how, &mut |pass| {
            pass.into_iter().for_each(|(index, embedding)| found[index] = Some(embedding));
            Ok(())
        })?;
        Ok(found.into_iter().flatten().collect())
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
    /// Cancels what waits or runs; then the call returns [`Error::Cancelled`].
    pub cancel: Cancel,
}

impl Scheduled<'_> {
    /// Returns work as a request with the common priority, deadline and cancellation.
    pub fn request(&self, work: Work) -> Request {
        let (priority, deadline, cancel) = (self.priority, self.deadline, self.cancel.clone());
        Request { work, priority, deadline, cancel }
    }

    fn submit(&self, work: Work) -> Result<Events> {
        Ok(self.scheduler.submit(self.request(work))?)
    }
}

impl Passes for Scheduled<'_> {
    fn engine(&self) -> &Engine {
        self.scheduler.engine()
    }

    fn embed_texts(&self, texts: Vec<Encoded>, how: &Embed) -> Result<Vec<Embedding>> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::with_capacity(texts.len());
        for event in self.submit(Work::Embed { texts, how: how.clone() })? {
            match event {
                Event::Embedding { embedding, .. } => found.push(embedding),
                Event::Finished(_) => return Ok(found),
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
        // The events of a cancelled request just end.
        Err(Error::Cancelled)
    }

    fn rank_prompts(&self, prompts: Vec<Vec<u32>>) -> Result<Vec<Ranked>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let mut ranked = Vec::with_capacity(prompts.len());
        for event in self.submit(Work::Rank { prompts })? {
            match event {
                Event::Ranked(one) => ranked.push(one),
                Event::Finished(_) => {
                    Ranked::sort_by(&mut ranked, |r| r.score);
                    return Ok(ranked);
                }
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
        Err(Error::Cancelled)
    }
}
