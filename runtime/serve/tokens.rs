//! The endpoints `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's format
//! for texts.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::input::{Id, Ids};
use axum::Json;
use axum::response::{IntoResponse, Response};
use gritlm::Error;
use gritlm_model::chat_template::ChatTemplate;
use gritlm_model::prompt::CHAT_TEMPLATE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text to tokenize.
#[derive(Deserialize, ToSchema)]
pub(super) struct TokenizeRequest {
    /// The model's name, as in `/v1/models`.
    model: Option<String>,
    /// The text, taken verbatim: no tags are put around it.
    prompt: String,
    /// Whether to put `<s>` in front. Ids for `/v1/embeddings` must be without it.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    /// Whether to return the vocabulary's spelling of each token.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

/// A text's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizeResponse {
    /// Number of tokens.
    count: usize,
    /// Number of positions of the model.
    max_model_len: usize,
    /// Token ids.
    tokens: Vec<u32>,
    /// Spellings of the tokens, if `return_token_strs` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token_strs: Option<Vec<String>>,
}

/// Token ids to turn into text.
#[derive(Deserialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// The model's name, as in `/v1/models`.
    model: Option<String>,
    /// Ids below the vocabulary's size, at most twice as many as the model has positions.
    #[schema(value_type = Vec<Id>)]
    tokens: Ids,
}

/// The text of token ids.
#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizeResponse {
    /// The text, without special tokens such as `<s>`.
    prompt: String,
}

/// The facts that clients need to build prompts or count tokens themselves.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizerInfo {
    /// The token that begins a sequence.
    bos_token: Option<String>,
    /// The end-of-sequence token.
    eos_token: Option<String>,
    /// Always null, as nothing is padded.
    #[schema(required)]
    pad_token: Option<String>,
    /// Whether a text's tokens begin with `bos_token` by default.
    add_bos_token: bool,
    /// Number of positions of the model.
    model_max_length: usize,
    /// The Jinja template that turns a conversation into a prompt.
    chat_template: String,
}

/// Returns the tokenizer's special tokens and the chat template.
#[utoipa::path(get, path = "/tokenizer_info", tag = "tokens",
    responses((status = 200, body = TokenizerInfo), Failures))]
pub(super) async fn tokenizer_info(loaded: Loaded) -> Json<TokenizerInfo> {
    let (config, tokenizer) = (loaded.engine().config(), loaded.engine().tokenizer());
    let template = loaded.engine().chat_template();
    Json(TokenizerInfo {
        bos_token: tokenizer.piece(config.bos),
        eos_token: config.eos.first().and_then(|&id| tokenizer.piece(id)),
        pad_token: None,
        add_bos_token: !tokenizer.start().is_empty(),
        model_max_length: config.max_positions,
        chat_template: template.map_or(CHAT_TEMPLATE, ChatTemplate::source).into(),
    })
}

/// Returns the token ids of a text.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse), Failures))]
pub(super) async fn tokenize(
    loaded: Loaded,
    Body(body): Body<TokenizeRequest>,
) -> Result<Response, Failure> {
    loaded.check_model(body.model.as_deref())?;
    let bytes = body.prompt.len();
    let work = move |engine: &gritlm::Engine| {
        engine.check_bytes("prompt", bytes)?;
        let tokenizer = engine.tokenizer();
        let tokens = match body.add_special_tokens.unwrap_or(true) {
            true => tokenizer.encode(&body.prompt),
            false => tokenizer.encode_continued(&body.prompt),
        };
        let tokens = tokens.map_err(Error::from)?;
        let spell = |&id| tokenizer.piece(id).unwrap_or_default();
        let spellings = || tokens.iter().map(spell).collect();
        let token_strs = body.return_token_strs.unwrap_or(false).then(spellings);
        let (count, max_model_len) = (tokens.len(), engine.config().max_positions);
        Ok(Json(TokenizeResponse { count, max_model_len, tokens, token_strs }).into_response())
    };
    loaded.blocking_of(bytes, work).await
}

/// Returns the text of token ids.
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest,
    responses((status = 200, body = DetokenizeResponse), Failures))]
pub(super) async fn detokenize(
    loaded: Loaded,
    Body(body): Body<DetokenizeRequest>,
) -> Result<Response, Failure> {
    loaded.check_model(body.model.as_deref())?;
    let Ids(ids) = body.tokens;
    let config = loaded.engine().config();
    let (vocab, positions) = (config.vocab, config.max_positions);
    let most = positions.saturating_mul(2);
    if ids.len() > most {
        let problem = format!(
            "expected at most {most} token ids, twice the model's {positions} positions, found {}",
            ids.len()
        );
        return Err(Failure::too_long("tokens", format!("tokens: {problem}")));
    }
    if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
        let problem = format!("expected a token id below {vocab}, found {}", ids[at]);
        return Err(Failure::field(format!("tokens[{at}]"), problem));
    }
    let bytes = 4 * ids.len();
    let work = move |engine: &gritlm::Engine| {
        let prompt = engine.tokenizer().decode(&ids).map_err(Error::from)?;
        Ok(Json(DetokenizeResponse { prompt }).into_response())
    };
    loaded.blocking_of(bytes, work).await
}
