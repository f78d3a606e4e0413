//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, in vLLM's shape for texts.

use super::body::{Body, Loaded};
use super::failure::{Failure, Failures};
use super::input::{Id, Ids};
use crate::Error;
use axum::Json;
use axum::response::{IntoResponse, Response};
use gritlm_model::prompt::CHAT_TEMPLATE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A text.
#[derive(Deserialize, ToSchema)]
pub(super) struct TokenizeRequest {
    /// The model's name, as `/v1/models` tells it.
    model: Option<String>,
    /// Taken verbatim; no tags go around it.
    prompt: String,
    /// Whether `<s>` goes in front. Ids for `/v1/embeddings` are to be without it.
    #[schema(default = true)]
    add_special_tokens: Option<bool>,
    /// Whether to tell how the vocabulary spells each token.
    #[schema(default = false)]
    return_token_strs: Option<bool>,
}

/// A text's tokens.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizeResponse {
    /// Their number.
    count: usize,
    /// Positions of the model.
    max_model_len: usize,
    /// Their ids.
    tokens: Vec<u32>,
    /// Their spellings, where `return_token_strs` asks for them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    token_strs: Option<Vec<String>>,
}

/// Token ids.
#[derive(Deserialize, ToSchema)]
pub(super) struct DetokenizeRequest {
    /// The model's name, as `/v1/models` tells it.
    model: Option<String>,
    /// Ids below the size of the vocabulary; at most twice as many as the model has positions.
    #[schema(value_type = Vec<Id>)]
    tokens: Ids,
}

/// Their text.
#[derive(Serialize, ToSchema)]
pub(super) struct DetokenizeResponse {
    /// Special tokens, `<s>` for one, are left out.
    prompt: String,
}

/// What clients that make prompts or count tokens themselves must know.
#[derive(Serialize, ToSchema)]
pub(super) struct TokenizerInfo {
    /// Begins a sequence.
    bos_token: Option<String>,
    /// Ends an answer.
    eos_token: Option<String>,
    /// None: nothing is padded.
    #[schema(required)]
    pad_token: Option<String>,
    /// Whether a text's tokens begin with `bos_token`, where nothing else is said.
    add_bos_token: bool,
    /// Positions of the model.
    model_max_length: usize,
    /// How a conversation becomes a prompt, in Jinja.
    chat_template: &'static str,
}

/// The tokenizer's special tokens, and the format of conversations.
#[utoipa::path(get, path = "/tokenizer_info", tag = "tokens",
    responses((status = 200, body = TokenizerInfo), Failures))]
pub(super) async fn tokenizer_info(loaded: Loaded) -> Json<TokenizerInfo> {
    let (config, tokenizer) = (loaded.engine().config(), loaded.engine().tokenizer());
    Json(TokenizerInfo {
        bos_token: tokenizer.piece(config.bos),
        eos_token: config.eos.first().and_then(|&id| tokenizer.piece(id)),
        pad_token: None,
        add_bos_token: true,
        model_max_length: config.max_positions,
        chat_template: CHAT_TEMPLATE,
    })
}

/// The token ids of a text.
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest,
    responses((status = 200, body = TokenizeResponse), Failures))]
pub(super) async fn tokenize(
    loaded: Loaded,
    Body(body): Body<TokenizeRequest>,
) -> Result<Response, Failure> {
    loaded.check_model(body.model.as_deref())?;
    let bytes = body.prompt.len();
    let work = move |engine: &crate::Engine| {
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

/// The text of token ids.
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
    let work = move |engine: &crate::Engine| {
        let prompt = engine.tokenizer().decode(&ids).map_err(Error::from)?;
        Ok(Json(DetokenizeResponse { prompt }).into_response())
    };
    loaded.blocking_of(bytes, work).await
}
