//! Implements `/v1/chat/completions`.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::openai::{self, ChoiceDelta, Chunk, Completion, Job, Shape};
use super::options;
use super::params::{Params, TextOr};
use axum::response::Response;
use gritlm::{Engine, Finish, Piece, Prompt, Result, Sampling};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// A conversation to be continued.
#[derive(Deserialize, ToSchema)]
pub(super) struct ChatRequest {
    /// The conversation. If the last message is the assistant's, the answer continues it. Where the
    /// model has a chat template, it decides which roles may follow each other. GritLM was trained
    /// without a system prompt: the text of a system or developer message becomes part of the
    /// user's turn, in order, or is that turn. Consecutive messages of one side form one turn, with
    /// a blank line between them. If the assistant begins, an empty user's turn is put in front.
    #[schema(min_items = 1)]
    messages: Vec<Message>,
    /// Whether to return the tokens' log-probabilities.
    #[schema(default = false)]
    logprobs: Option<bool>,
    /// With `logprobs`: how many of the most likely tokens to return with each token.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u32>,
    /// vLLM's option: whether the answer is a message of its own. The role of the last message
    /// decides this; a value that contradicts it is refused.
    add_generation_prompt: Option<bool>,
    /// vLLM's option: whether the answer continues the last message. The role of the last message
    /// decides this; a value that contradicts it is refused.
    continue_final_message: Option<bool>,
    #[serde(flatten)]
    #[schema(value_type = Params)]
    rest: Map<String, Value>,
}

/// A message of one side.
#[derive(Deserialize, ToSchema)]
pub(super) struct Message {
    pub(super) role: Role,
    /// The text. It may be null, empty or left out if the role is `assistant`, in which case the
    /// assistant said nothing.
    pub(super) content: Option<TextOr<ContentPart>>,
    #[serde(flatten)]
    #[schema(ignore)]
    pub(super) rest: Map<String, Value>,
}

/// Who wrote a message.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// A part of a message. The parts are joined with nothing between them.
#[derive(Clone, PartialEq, Deserialize, ToSchema)]
pub(super) struct ContentPart {
    r#type: PartType,
    text: String,
}

/// The kind of a part: only text is supported.
#[derive(Clone, Copy, PartialEq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum PartType {
    Text,
}

impl From<TextOr<ContentPart>> for String {
    fn from(content: TextOr<ContentPart>) -> Self {
        match content {
            TextOr::Text(text) => text,
            TextOr::List(parts) => parts.into_iter().map(|part| part.text).collect(),
        }
    }
}

/// An answer.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatChoice {
    index: usize,
    message: Answer,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    finish_reason: Finish,
}

/// The model's message.
#[derive(Serialize, ToSchema)]
pub(super) struct Answer {
    /// `assistant`.
    role: &'static str,
    content: String,
}

/// A part of an answer.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatPart {
    index: usize,
    delta: Delta,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    /// Set in the last part, which has no text.
    #[schema(required)]
    finish_reason: Option<Finish>,
}

/// What this part adds to the answer.
#[derive(Serialize, ToSchema)]
pub(super) struct Delta {
    /// `assistant`, in the first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    content: Option<String>,
}

/// The tokens and their log-probabilities.
#[derive(Serialize, ToSchema)]
pub(super) struct ChatLogprobs {
    /// All sampled tokens, including the one that ends the answer.
    content: Vec<TokenLogprob>,
}

/// A sampled token, and the most likely tokens at its position.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenLogprob {
    #[serde(flatten)]
    drawn: Likely,
    /// The most likely tokens, likeliest first.
    top_logprobs: Vec<Likely>,
}

/// A token and its log-probability.
#[derive(Serialize, ToSchema)]
pub(super) struct Likely {
    /// The token's text; U+FFFD for a part of a character.
    token: String,
    /// Log-probability under the model, before penalty, temperature and filters.
    logprob: f32,
    /// The bytes of the token's text; null if the vocabulary does not tell.
    #[schema(required)]
    bytes: Option<Vec<u8>>,
}

impl Likely {
    fn new(engine: &Engine, id: u32, logprob: f32) -> Result<Self> {
        let (token, bytes) = engine.tokenizer().token(id)?;
        Ok(Self { token, logprob: openai::finite(logprob), bytes })
    }
}

/// The shape of this endpoint's answers.
pub(super) struct Chat;

impl Shape for Chat {
    const INPUT: &'static str = "messages";
    const ID: &'static str = "chatcmpl-";
    const OBJECT: [&'static str; 2] = ["chat.completion", "chat.completion.chunk"];
    type Logprobs = ChatLogprobs;
    type Choice = ChatChoice;
    type Part = ChatPart;

    fn logprobs(engine: &Engine, pieces: &[Piece], _: usize) -> Result<ChatLogprobs> {
        let token = |piece: &Piece| {
            let drawn = Likely::new(engine, piece.token.token, piece.token.logprob)?;
            let top = piece.token.top.iter();
            let top = top.map(|&(id, logprob)| Likely::new(engine, id, logprob));
            Ok(TokenLogprob { drawn, top_logprobs: top.collect::<Result<_>>()? })
        };
        Ok(ChatLogprobs { content: pieces.iter().map(token).collect::<Result<_>>()? })
    }

    fn choice(
        index: usize,
        text: String,
        logprobs: Option<ChatLogprobs>,
        finish: Finish,
    ) -> ChatChoice {
        let message = Answer { role: "assistant", content: text };
        ChatChoice { index, message, logprobs, finish_reason: finish }
    }

    fn part(index: usize, delta: ChoiceDelta<ChatLogprobs>) -> ChatPart {
        let ChoiceDelta { first, text, logprobs, finish } = delta;
        let delta = Delta { role: first.then_some("assistant"), content: text };
        ChatPart { index, delta, logprobs, finish_reason: finish }
    }
}

/// Continues a conversation.
///
/// With `stream` the answer is a stream of server-sent events, each with a `chat.completion.chunk`;
/// the last one is `[DONE]`. The conversation is put into the format of the model's chat template
/// or, without one, into GritLM's; no text of a message can end a turn.
#[utoipa::path(post, path = "/v1/chat/completions", tag = "generate",
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer.", content(
            (Completion<ChatChoice> = "application/json"),
            (Chunk<ChatPart> = "text/event-stream"),
        )),
        Failures,
    ))]
pub(super) async fn chat(
    loaded: Loaded,
    Body(request): Body<ChatRequest>,
) -> Result<Response, Failure> {
    let params = Params::parse(request.rest)?;
    loaded.check_model(params.model.as_deref())?;
    let (logprobs, top) = logprobs(request.logprobs, request.top_logprobs)?;
    let how = params.sampling(Sampling::default().max_tokens, top)?;
    let messages = conversation(request.messages)?;
    let begun = messages.last().is_some_and(|last| last.role == gritlm::Role::Assistant);
    for (field, found, right) in [
        ("add_generation_prompt", request.add_generation_prompt, !begun),
        ("continue_final_message", request.continue_final_message, begun),
    ] {
        if found.is_some_and(|found| found != right) {
            let last = if begun { "an assistant's" } else { "a user's" };
            let problem = format!("expected {right} where the last message is {last}");
            return Err(Failure::field(field, problem));
        }
    }
    let prompts = vec![Prompt::Messages(messages)];
    openai::answer::<Chat>(loaded, Job::new(prompts, how, logprobs), params).await
}

/// Returns whether to return the tokens' log-probabilities, and how many of the most likely tokens
/// with each.
pub(super) fn logprobs(told: Option<bool>, top: Option<u32>) -> Result<(bool, u32), Failure> {
    let told = told.unwrap_or(false);
    match top {
        None => Ok((told, 0)),
        Some(_) if !told => {
            Err(Failure::field("top_logprobs", "expected \"logprobs\": true beside it"))
        }
        Some(top @ 0..=20) => Ok((told, top)),
        Some(top) => Err(Failure::field("top_logprobs", format!("expected 0 to 20, found {top}"))),
    }
}

/// Checks the messages of a conversation.
fn conversation(messages: Vec<Message>) -> Result<Vec<gritlm::Message>, Failure> {
    if messages.is_empty() {
        return Err(Failure::field("messages", "expected at least one, found none"));
    }
    let check = |(i, message): (usize, Message)| {
        options::MESSAGES.refuse(&message.rest, &format!("messages[{i}]."))?;
        let role = match message.role {
            Role::System | Role::Developer => gritlm::Role::System,
            Role::User => gritlm::Role::User,
            Role::Assistant => gritlm::Role::Assistant,
        };
        let problem = match message.content {
            None if role == gritlm::Role::Assistant => {
                return Ok(gritlm::Message { role, content: String::new() });
            }
            None => "expected a string or an array, found none",
            Some(TextOr::List(parts)) if parts.is_empty() && role != gritlm::Role::Assistant => {
                "expected at least one part, found none"
            }
            Some(content) => return Ok(gritlm::Message { role, content: content.into() }),
        };
        Err(Failure::field(format!("messages[{i}].content"), problem))
    };
    messages.into_iter().enumerate().map(check).collect()
}

/// Appends to a turn, after a blank line if neither is empty.
pub(super) fn join(turn: &mut String, more: String) {
    if !turn.is_empty() && !more.is_empty() {
        turn.push_str("\n\n");
    }
    turn.push_str(&more);
}
