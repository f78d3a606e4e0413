//! The code that the ranking endpoints share: it takes a query and passages, and returns the
//! model's judgement of each passage.

use super::answers::{RequestOptions, server_timing};
use super::body::Loaded;
use super::failure::Failure;
use axum::http::HeaderValue;
use gritlm::schedule::Work;
use gritlm::{Engine, Ranked};
use rayon::prelude::*;
use std::time::Instant;

/// The most bytes of the 600 characters of a passage that the prompt contains.
const MOST_LOOKED_AT: usize = 4 * 600;

/// A query and the passages to rank.
pub(super) struct Question {
    pub(super) query: String,
    /// The field of the body that holds the passages.
    pub(super) field: &'static str,
    pub(super) passages: Vec<String>,
    /// The most tokens of a passage that are used; None for the first 600 characters.
    pub(super) max_tokens: Option<usize>,
    pub(super) options: RequestOptions,
}

/// The ranked passages.
pub(super) struct Ranking {
    /// One result per passage, in the order of the passages.
    pub(super) ranked: Vec<Ranked>,
    pub(super) passages: Vec<String>,
    /// Tokens of all prompts together.
    pub(super) tokens: usize,
    pub(super) timing: HeaderValue,
}

impl Loaded {
    pub(super) async fn rank(&self, question: Question) -> Result<Ranking, Failure> {
        let Question { query, field, passages, max_tokens, options } = question;
        if query.is_empty() {
            return Err(Failure::field("query", "expected at least one character, found none"));
        }
        if passages.is_empty() {
            return Err(Failure::field(field, "expected at least one passage, found none"));
        }
        Failure::check_inputs(field, passages.len(), self.app.settings.max_inputs)?;
        let (start, limit) = (Instant::now(), self.max_length());
        // Only the first characters of each passage are used, unless its tokens are counted.
        let most = if max_tokens.is_some() { usize::MAX } else { MOST_LOOKED_AT };
        let bytes = passages.iter().map(|passage| passage.len().min(most)).sum();
        let encode = move |engine: &Engine| {
            let prompts = match max_tokens {
                None => engine.encode_passages(&query, &passages)?,
                Some(n) => {
                    let cut = passages.par_iter().map(|passage| first(engine, passage, n));
                    engine.encode_passages(&query, &cut.collect::<Result<Vec<String>, _>>()?)?
                }
            };
            match prompts.iter().position(|prompt| prompt.len() > limit) {
                None => Ok((prompts, passages)),
                Some(index) => {
                    let (place, found) = (format!("{field}[{index}]"), prompts[index].len());
                    let more = " with the question and the query";
                    Err(Failure::long_context(&place, found, limit, more))
                }
            }
        };
        let (prompts, passages) = self.blocking_of(bytes, encode).await?;
        let tokenize = start.elapsed();
        let (ranked, summary) = self.submit(Work::Rank { prompts }, options)?.ranked().await?;
        let timing = server_timing(tokenize, &summary.timings);
        Ok(Ranking { ranked, passages, tokens: summary.prompt_tokens, timing })
    }
}

/// Returns the text of the first `n` tokens of `text`.
fn first(engine: &Engine, text: &str, n: usize) -> Result<String, Failure> {
    let tokenizer = engine.tokenizer();
    let begins = tokenizer.beginning(text, n);
    let ids = tokenizer.encode_continued(begins).map_err(gritlm::Error::from)?;
    match ids.get(..n) {
        None => Ok(text.into()),
        // The cut may have split a character.
        Some(ids) => {
            let text = tokenizer.decode(ids).map_err(gritlm::Error::from)?;
            Ok(text.trim_end_matches(char::REPLACEMENT_CHARACTER).into())
        }
    }
}
