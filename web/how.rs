//! The options of calls, as JSON.

use crate::exception;
use gritlm::{Attn, Device, Embed, Error, Message, Options, Prompt, Result, Role, Sampling};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use wasm_bindgen::JsError;

/// Parses the JSON of options.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, JsError> {
    serde_json::from_str(text).map_err(|error| {
        let said = error.to_string();
        // The place is one in a text that the page has not written.
        exception(format!("options: {}", said.split(" at line").next().unwrap_or_default()))
    })
}

/// How a model is opened.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Opening {
    /// `auto`, `webgpu` or `cpu`.
    device: String,
    kv_tokens: usize,
    batch_tokens: usize,
}

impl Default for Opening {
    /// Fewer tokens than elsewhere: a browser shares its memory with other pages.
    fn default() -> Self {
        Self { device: "auto".into(), kv_tokens: 4096, batch_tokens: 512 }
    }
}

impl Opening {
    pub(crate) fn options(self) -> Result<Options> {
        let device = match self.device.as_str() {
            "auto" => Device::Auto,
            "cpu" => Device::Cpu,
            "webgpu" => Device::Wgpu(String::new()),
            found => {
                return Err(Error::Option {
                    option: "device",
                    expected: "auto, webgpu or cpu".into(),
                    found: found.into(),
                });
            }
        };
        let options = Options::default().device(device);
        Ok(options.kv_tokens(self.kv_tokens).batch_tokens(self.batch_tokens))
    }
}

/// How texts are embedded.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Embedding {
    instruction: String,
    normalize: bool,
    max_length: usize,
    dimensions: Option<usize>,
    attn: Option<String>,
}

impl Default for Embedding {
    fn default() -> Self {
        let Embed { instruction, normalize, max_length, dimensions, .. } = Embed::default();
        Self { instruction, normalize, max_length, dimensions, attn: None }
    }
}

impl Embedding {
    pub(crate) fn options(self) -> Result<Embed> {
        let attn = self.attn.map(|attn| attn.parse::<Attn>()).transpose()?;
        let embed = Embed::default().instruction(self.instruction).normalize(self.normalize);
        Ok(embed.max_length(self.max_length).dimensions(self.dimensions).attn(attn))
    }
}

/// How an answer is sampled.
#[derive(Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Generation {
    max_tokens: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    stop: Vec<String>,
}

impl Default for Generation {
    fn default() -> Self {
        let Sampling {
            max_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            stop,
            ..
        } = Sampling::default();
        Self { max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed, stop }
    }
}

impl Generation {
    pub(crate) fn sampling(self) -> Sampling {
        let sampling = Sampling::default().max_tokens(self.max_tokens);
        let sampling = sampling.temperature(self.temperature).top_k(self.top_k).top_p(self.top_p);
        let sampling = sampling.min_p(self.min_p).repetition_penalty(self.repetition_penalty);
        sampling.seed(self.seed).stop(self.stop)
    }
}

/// What an answer follows.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) enum Saying {
    /// A user's turn.
    User(String),
    /// Verbatim text.
    Raw(String),
    /// A conversation.
    Messages(Vec<Turn>),
}

/// A message of a conversation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Turn {
    role: String,
    content: String,
}

impl Saying {
    pub(crate) fn prompt(self) -> Result<Prompt> {
        Ok(match self {
            Self::User(text) => Prompt::User(text),
            Self::Raw(text) => Prompt::Raw(text),
            Self::Messages(turns) => {
                Prompt::Messages(turns.into_iter().map(Turn::message).collect::<Result<_>>()?)
            }
        })
    }
}

impl Turn {
    fn message(self) -> Result<Message> {
        let role = match self.role.as_str() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            found => {
                return Err(Error::Option {
                    option: "role",
                    expected: "system, user or assistant".into(),
                    found: found.into(),
                });
            }
        };
        Ok(Message { role, content: self.content })
    }
}
