//! Implements `/v1/completions`.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::input::{Input, Texts};
use super::openai::{self, ChoiceDelta, Chunk, Completion, Job, Shape};
use super::params::Params;
use axum::response::Response;
use gritlm::{Engine, Finish, Piece, Prompt, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// OpenAI's default of `max_tokens`.
const MAX_TOKENS: usize = 16;

/// Texts to continue.
#[derive(Deserialize, ToSchema)]
pub(super) struct CompletionRequest {
    /// Verbatim text, which gets only `<s>` in front, or token ids, which are taken as they are;
    /// one prompt or several.
    prompt: Input,
    /// Return the tokens' log-probabilities, and those of this many of the most likely tokens.
    #[schema(minimum = 0, maximum = 5)]
    logprobs: Option<u32>,
    /// Whether `text` begins with the prompt. With `logprobs`, the prompt's tokens are returned as
    /// well, each with its log-probability given the tokens before it. With `max_tokens` 0 nothing
    /// is generated, so that a given text is scored.
    #[schema(default = false)]
    echo: Option<bool>,
    /// An extension: whether to put `<s>` in front of text.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    #[serde(flatten)]
    #[schema(value_type = Params)]
    rest: Map<String, Value>,
}

/// A continuation, or a part of it.
#[derive(Serialize, ToSchema)]
pub(super) struct TextChoice {
    index: usize,
    text: String,
    #[schema(required)]
    logprobs: Option<TextLogprobs>,
    /// In a stream, null in all parts of a choice but the last, which has no text.
    #[schema(required)]
    finish_reason: Option<Finish>,
}

/// The tokens and their log-probabilities. Each list has one entry for each sampled token,
/// including the one that ends the text; with `echo`, the entries of the prompt come first.
#[derive(Default, Serialize, ToSchema)]
pub(super) struct TextLogprobs {
    /// The text of each token on its own; U+FFFD for a part of a character.
    tokens: Vec<String>,
    /// Log-probabilities under the model, before penalty, temperature and filters; null for a
    /// prompt's first token, which has no context.
    token_logprobs: Vec<Option<f32>>,
    /// Log-probabilities of the most likely tokens, and of the sampled one; null if none were
    /// requested.
    #[schema(required)]
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Number of characters of `text` that were certain before the token.
    text_offset: Vec<usize>,
}

/// The shape of this endpoint's answers.
struct Text;

impl Shape for Text {
    const INPUT: &'static str = "prompt";
    const ID: &'static str = "cmpl-";
    const OBJECT: [&'static str; 2] = ["text_completion"; 2];
    type Logprobs = TextLogprobs;
    type Choice = TextChoice;
    type Part = TextChoice;

    fn logprobs(engine: &Engine, pieces: &[Piece], start: usize) -> Result<TextLogprobs> {
        let text = |id: u32| Ok::<_, gritlm::Error>(engine.tokenizer().token(id)?.0);
        let (mut all, mut offset) = (TextLogprobs::default(), start);
        let mut tops = Vec::new();
        for Piece { text: more, token, .. } in pieces {
            let known = Some(token.logprob).filter(|logprob| !logprob.is_nan());
            let (drawn, logprob) = (text(token.token)?, known.map(openai::finite));
            let mut top = BTreeMap::new();
            for &(id, logprob) in &token.top {
                // Tokens that are parts of characters can have the same text; the most likely one
                // is kept.
                top.entry(text(id)?).or_insert(openai::finite(logprob));
            }
            if let Some(logprob) = logprob.filter(|_| !top.is_empty()) {
                top.entry(drawn.clone()).or_insert(logprob);
            }
            tops.push(Some(top).filter(|top| !top.is_empty()));
            all.tokens.push(drawn);
            all.token_logprobs.push(logprob);
            all.text_offset.push(offset);
            offset += more.chars().count();
        }
        all.top_logprobs = tops.iter().any(Option::is_some).then_some(tops);
        Ok(all)
    }

    fn choice(
        index: usize,
        text: String,
        logprobs: Option<TextLogprobs>,
        finish: Finish,
    ) -> TextChoice {
        TextChoice { index, text, logprobs, finish_reason: Some(finish) }
    }

    fn part(index: usize, delta: ChoiceDelta<TextLogprobs>) -> TextChoice {
        let ChoiceDelta { text, logprobs, finish, .. } = delta;
        TextChoice { index, text: text.unwrap_or_default(), logprobs, finish_reason: finish }
    }
}

/// Continues texts as they are.
///
/// A prompt and its continuation form one text: the continuation includes, for example, the space
/// that its first word begins with.
///
/// With `stream` the answer is a stream of server-sent events, each with a part of a choice; the
/// last one is `[DONE]`.
#[utoipa::path(post, path = "/v1/completions", tag = "generate",
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The continuations.", content(
            (Completion<TextChoice> = "application/json"),
            (Chunk<TextChoice> = "text/event-stream"),
        )),
        Failures,
    ))]
pub(super) async fn completions(
    loaded: Loaded,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, Failure> {
    let params = Params::parse(request.rest)?;
    loaded.check_model(params.model.as_deref())?;
    if let Some(logprobs) = request.logprobs.filter(|&n| n > 5) {
        return Err(Failure::field("logprobs", format!("expected 0 to 5, found {logprobs}")));
    }
    let how = params.sampling(MAX_TOKENS, request.logprobs.unwrap_or(0))?;
    let (limit, vocab) = (loaded.app.settings.max_inputs, loaded.engine().config().vocab);
    request.prompt.check("prompt", limit, vocab)?;
    let prompts = match request.prompt.texts {
        Texts::Text(texts) => texts.into_iter().map(Prompt::Raw).collect(),
        Texts::Ids(all) => all.into_iter().map(Prompt::Tokens).collect(),
    };
    let echo = request.echo.unwrap_or(false);
    let bos = request.add_special_tokens.unwrap_or(true);
    let job = Job { echo, bos, ..Job::new(prompts, how, request.logprobs.is_some()) };
    openai::answer::<Text>(loaded, job, params).await
}
