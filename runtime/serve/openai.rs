//! The code that OpenAI's chat and completions endpoints share: it turns prompts into choices,
//! whole or streamed.

use super::answers::{Many, first_timing, server_timing};
use super::body::Loaded;
use super::echo::Echo;
use super::failure::Failure;
use super::params::Params;
use super::stream::{self, StreamOptions};
use axum::Json;
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use gritlm::schedule::{Event, Summary, Work};
use gritlm::{Engine, Finish, Piece, Prompt, Result, Sampling};
use gritlm_model::ops::SampledToken;
use serde::Serialize;
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use utoipa::ToSchema;

/// The form that an endpoint gives to the pieces of an answer.
pub(super) trait Shape: 'static {
    /// The field of the body that holds the prompt.
    const INPUT: &'static str;
    /// The prefix of answers' ids.
    const ID: &'static str;
    /// The `object` of an answer, and of a part of a stream.
    const OBJECT: [&'static str; 2];
    type Logprobs: Send;
    type Choice: Serialize + Send;
    type Part: Serialize + Send;

    /// Returns the log-probabilities of an answer's tokens; the first begins at character `start`
    /// of the choice.
    fn logprobs(engine: &Engine, pieces: &[Piece], start: usize) -> Result<Self::Logprobs>;

    fn choice(
        index: usize,
        text: String,
        logprobs: Option<Self::Logprobs>,
        finish: Finish,
    ) -> Self::Choice;

    fn part(index: usize, delta: ChoiceDelta<Self::Logprobs>) -> Self::Part;
}

/// What a part of a stream adds to a choice.
pub(super) struct ChoiceDelta<L> {
    /// Whether this is the first part of the choice.
    pub(super) first: bool,
    pub(super) text: Option<String>,
    pub(super) logprobs: Option<L>,
    pub(super) finish: Option<Finish>,
}

/// An answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Completion<C> {
    #[serde(flatten)]
    pub(super) head: Head,
    /// Choices in the order of the prompts, `n` for each.
    pub(super) choices: Vec<C>,
    pub(super) usage: Usage,
}

/// A part of an answer: the data of a server-sent event. The last event's data is `[DONE]`, or an
/// object with `error` if the request fails midway.
#[derive(Serialize, ToSchema)]
pub(super) struct Chunk<C> {
    #[serde(flatten)]
    pub(super) head: Head,
    /// One choice; none in the chunk that reports the usage.
    pub(super) choices: Vec<C>,
    /// With `include_usage`: null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub(super) usage: Option<Option<Usage>>,
}

/// The fields that identify an answer; they are the same in all its parts.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct Head {
    id: String,
    /// The type of the object.
    object: &'static str,
    /// Unix time at which the answer was created.
    created: u64,
    model: String,
}

impl Head {
    pub(super) fn new<S: Shape>(loaded: &Loaded, stream: bool) -> Self {
        Self {
            id: format!("{}{:032x}", S::ID, fastrand::u128(..)),
            object: S::OBJECT[usize::from(stream)],
            created: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            model: loaded.app.settings.name.clone(),
        }
    }
}

/// The tokens that a request used.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct Usage {
    /// Tokens of the prompts, each counted once.
    prompt_tokens: usize,
    /// Tokens of all choices.
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptTokens,
}

/// Details of the prompts' tokens.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
pub(super) struct PromptTokens {
    /// Tokens of the prompts that were found in the KV cache.
    cached_tokens: usize,
}

impl Usage {
    /// Sums over all choices, `n` per prompt.
    pub(super) fn new(summaries: &[Summary], n: usize) -> Self {
        let prompts = || summaries.iter().step_by(n);
        let prompt_tokens = prompts().map(|s| s.prompt_tokens).sum();
        let completion_tokens = summaries.iter().map(|s| s.output_tokens).sum();
        let cached_tokens = prompts().map(|s| s.cached_tokens).sum();
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = PromptTokens { cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}

/// The prompts to answer, and the form of the answers.
pub(super) struct Job {
    pub(super) prompts: Vec<Prompt>,
    pub(super) how: Sampling,
    /// Whether to return the log-probabilities of the tokens.
    pub(super) logprobs: bool,
    /// Whether each answer begins with its prompt.
    pub(super) echo: bool,
    /// Whether to put `<s>` in front of verbatim text.
    pub(super) bos: bool,
}

impl Job {
    /// Returns a job whose answers begin after their prompts, without `echo`.
    pub(super) fn new(prompts: Vec<Prompt>, how: Sampling, logprobs: bool) -> Self {
        Self { prompts, how, logprobs, echo: false, bos: true }
    }
}

/// Answers each prompt `n` times.
pub(super) async fn answer<S: Shape>(
    loaded: Loaded,
    job: Job,
    mut params: Params,
) -> Result<Response, Failure> {
    let Job { prompts, mut how, logprobs, echo, bos } = job;
    let (n, settings) = (params.choices()?, &loaded.app.settings);
    // More requests than that never fit into the queue together.
    Failure::check_inputs("n", prompts.len() * n, settings.limits.queue_requests)?;

    let start = Instant::now();
    let format = params.response_format.take();
    // The prompts are all of one kind.
    how.verbatim = prompts.iter().all(Prompt::is_verbatim);
    let bytes = prompts.iter().map(Prompt::bytes).sum();
    let prepare = move |engine: &Engine| {
        let grammar = format.map(|format| format.grammar(engine)).transpose()?;
        let (mut all, mut echoes) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            let ids = engine.tokenize_prompt(prompt, !bos)?;
            if echo {
                echoes.push(Echo::new(engine, prompt, &ids)?);
            }
            all.push(ids);
        }
        Ok((grammar.flatten(), all, echoes))
    };
    let (grammar, prompts, echoes) = loaded.blocking_of(bytes, prepare).await?;
    how.grammar = grammar;
    how.prompt_logprobs = (echo && logprobs).then_some(how.logprobs);
    let tokenize = start.elapsed();
    check_lengths::<S>(&loaded, &prompts, n)?;
    let works = prompts.into_iter().flat_map(|prompt| {
        let how = &how;
        (0..n as u64).map(move |i| {
            let how = how.clone().seed(how.seed.wrapping_add(i));
            Work::Generate { prompt: prompt.clone(), sampling: how, past: None }
        })
    });
    let submitted = Instant::now();
    let many = loaded.submit_all(works, params.options())?;

    let head = Head::new::<S>(&loaded, params.stream());
    if params.stream() {
        let options = StreamOptions { n, logprobs, usage: params.include_usage(), echoes };
        let timing = || first_timing(tokenize, submitted.elapsed());
        return stream::respond::<S>(loaded, many, head, options, None, timing).await;
    }
    let (mut answers, summaries) = collect(many).await?;
    if echo {
        let echoes = echoes.iter().flat_map(|echo| std::iter::repeat_n(echo, n));
        for (echo, answer) in echoes.zip(&mut answers) {
            let pieces = echo.pieces(&answer.prompt);
            answer.pieces.splice(..0, pieces);
        }
    }
    let timings = summaries.iter().map(|s| s.timings).max_by_key(|t| t.first_token() + t.decode);
    let timing = server_timing(tokenize, &timings.unwrap_or_default());
    let choices =
        loaded.blocking(move |engine| Ok(choices::<S>(engine, answers, logprobs)?)).await?;
    let usage = Usage::new(&summaries, n);
    let header = [(HeaderName::from_static("server-timing"), timing)];
    Ok((header, Json(Completion { head, choices, usage })).into_response())
}

/// Refuses prompts that the queue could never take, before they are copied `n` times.
fn check_lengths<S: Shape>(loaded: &Loaded, prompts: &[Vec<u32>], n: usize) -> Result<(), Failure> {
    let positions = loaded.engine().config().max_positions;
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if longest >= positions {
        return Err(Failure::long_context(S::INPUT, longest, positions, ""));
    }
    let tokens = prompts.iter().map(Vec::len).sum::<usize>() * n;
    let limit = loaded.app.settings.limits.queue_tokens;
    if prompts.len() * n > 1 && tokens > limit {
        let found = format!("the prompts have {tokens} tokens, {n} times each");
        return Err(Failure::too_long(S::INPUT, format!("{found}; the queue takes {limit}")));
    }
    Ok(())
}

/// A choice, collected from the scheduler's events.
#[derive(Clone, Default)]
pub(super) struct Answered {
    /// The scores of its prompt, if they were asked for.
    prompt: Vec<SampledToken>,
    pieces: Vec<Piece>,
}

/// Waits for all choices. Returns them with a summary of each.
pub(super) async fn collect(mut many: Many) -> Result<(Vec<Answered>, Vec<Summary>), Failure> {
    let mut answers = vec![Answered::default(); many.len()];
    let mut summaries = vec![Summary::default(); many.len()];
    let mut left = many.len();
    while left > 0 {
        let (index, event) = many.next().await?;
        match event {
            Event::Prompt(scores) => answers[index].prompt = scores,
            Event::Piece(piece) => answers[index].pieces.push(piece),
            Event::Finished(summary) => {
                summaries[index] = summary;
                left -= 1;
            }
            _ => {}
        }
    }
    Ok((answers, summaries))
}

/// Returns the choices in the form of the endpoint.
pub(super) fn choices<S: Shape>(
    engine: &Engine,
    answers: Vec<Answered>,
    logprobs: bool,
) -> Result<Vec<S::Choice>> {
    let choice = |(index, Answered { pieces, .. }): (usize, Answered)| {
        let logprobs = logprobs.then(|| S::logprobs(engine, &pieces, 0)).transpose()?;
        let finish = pieces.last().and_then(|piece| piece.finish).unwrap_or(Finish::Length);
        let text = pieces.into_iter().map(|piece| piece.text).collect();
        Ok(S::choice(index, text, logprobs, finish))
    };
    answers.into_iter().enumerate().map(choice).collect()
}

/// Clamps a log-probability to -9999, OpenAI's value for nearly impossible tokens: JSON has no
/// infinity.
pub(super) fn finite(logprob: f32) -> f32 {
    logprob.max(-9999.0)
}
