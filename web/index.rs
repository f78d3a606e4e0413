//! Documents in memory: their vectors to find them by, and the keys and values of their embedding
//! passes to answer from.

use crate::answer::{self, Cancel, Events, next, object};
use crate::exception;
use crate::how::{self, Generation};
use gritlm::cache::KvSnapshot;
use gritlm::schedule::{Event, Past, Scheduler, Work};
use gritlm::{Embed, Encoded, Error, Result, dot};
use gritlm_model::prompt;
use js_sys::Array;
use std::cell::RefCell;
use wasm_bindgen::prelude::*;

struct Document {
    tokens: Vec<u32>,
    vector: Vec<f32>,
    kv: KvSnapshot,
}

/// Documents that one model has embedded.
#[wasm_bindgen]
pub struct Index {
    scheduler: Scheduler,
    documents: RefCell<Vec<Document>>,
}

impl Index {
    pub(crate) fn new(scheduler: Scheduler) -> Self {
        Self { scheduler, documents: RefCell::default() }
    }

    /// Embeds texts whole, up to the model's positions. Those that were cancelled are missing.
    async fn embed(
        &self,
        texts: &[String],
        keep_kv: bool,
        cancel: &Cancel,
    ) -> Result<Vec<(Encoded, gritlm::Embedding)>, JsError> {
        let engine = self.scheduler.engine();
        let positions = engine.config().max_positions;
        let how = Embed::default().max_length(positions).keep_kv(keep_kv);
        let encoded = engine.encode_texts(texts, &how).map_err(exception)?;
        if let Some(long) = encoded.iter().find(|text| text.truncated > 0) {
            let tokens = long.tokens.len() + long.truncated;
            return Err(exception(Error::LongPrompt { tokens, limit: positions }));
        }
        let work = Work::Embed { texts: encoded.clone(), options: how };
        let mut stream =
            self.scheduler.stream(crate::request(work, cancel)).map_err(exception)?;
        let mut found = Vec::with_capacity(texts.len());
        while let Some(event) = next(&mut stream).await {
            match event {
                Event::Embedding { embedding, .. } => found.push(embedding),
                Event::Failed(error) => return Err(exception(error)),
                _ => {}
            }
        }
        Ok(encoded.into_iter().zip(found).collect())
    }

    /// Returns numbers and scores of the documents, the best first.
    async fn best(&self, question: String, cancel: &Cancel) -> Result<Vec<(usize, f32)>, JsError> {
        let asked = self.embed(&[question], false, cancel).await?;
        let Some((_, embedding)) = asked.first() else { return Ok(Vec::new()) };
        let documents = self.documents.borrow();
        let scores = documents.iter().map(|document| dot(&document.vector, &embedding.vector));
        let mut scored: Vec<(usize, f32)> = scores.enumerate().collect();
        scored.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(scored)
    }
}

#[wasm_bindgen]
impl Index {
    /// Adds documents. Where it is cancelled, none is added.
    ///
    /// # Errors
    /// When a text is empty or longer than the model's positions, or its pass fails.
    pub async fn add(&self, texts: Vec<String>, cancel: &Cancel) -> Result<(), JsError> {
        if texts.is_empty() {
            return Ok(());
        }
        let found = self.embed(&texts, true, cancel).await?;
        if found.len() == texts.len() {
            let documents = found.into_iter().filter_map(|(encoded, embedding)| {
                let (tokens, vector, kv) = (encoded.tokens, embedding.vector, embedding.kv?);
                Some(Document { tokens, vector, kv })
            });
            self.documents.borrow_mut().extend(documents);
        }
        Ok(())
    }

    /// Returns the documents nearest to a question, at most `count`, as objects with `index` and
    /// `score`.
    ///
    /// # Errors
    /// When the question is empty or too long, or its pass fails.
    pub async fn search(
        &self,
        question: String,
        count: usize,
        cancel: &Cancel,
    ) -> Result<Array, JsError> {
        let best = self.best(question, cancel).await?;
        let found = best.into_iter().take(count);
        let found = found.map(|(index, score)| {
            object(&[("index", (index as u32).into()), ("score", score.into())])
        });
        Ok(found.collect())
    }

    /// Answers a question from one document: the answer continues the keys and values of its
    /// embedding pass, and the document is not read again. `options` is the JSON of a `Generation`.
    ///
    /// # Errors
    /// When there is no such document, an option is invalid, or the scheduler refuses.
    pub fn answer(
        &self,
        index: usize,
        question: &str,
        options: &str,
        cancel: &Cancel,
    ) -> Result<Events, JsError> {
        let sampling = how::parse::<Generation>(options)?.sampling();
        let rest = prompt::rag_after_doc(question);
        let tokenizer = self.scheduler.engine().tokenizer();
        let prompt = tokenizer.encode_continued(&rest).map_err(exception)?;
        let documents = self.documents.borrow();
        let document = documents.get(index).ok_or_else(|| {
            let found = documents.len();
            exception(format!("index: expected a document's number below {found}, found {index}"))
        })?;
        let past = Past { cache: document.kv.clone(), tokens: document.tokens.clone() };
        let work = Work::Generate { prompt, sampling, past: Some(past) };
        answer::submit(&self.scheduler, work, cancel)
    }
}
