//! Chat templates: the program in a checkpoint that turns a conversation into a prompt.

mod render;

use crate::config::Config;
use crate::gguf::Metadata;
use crate::tokenizer::{END, Hidden, Tokenizer};
use crate::{Error, Result, files};
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::ErrorKind::NotFound;
use std::path::Path;

/// A message of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Message<'a> {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: &'a str,
    /// The text.
    pub content: &'a str,
}

/// File whose `chat_template` is the template, unless [`OWN`] is there.
pub const CONFIG: &str = "tokenizer_config.json";

/// File that has the template alone.
pub const OWN: &str = "chat_template.jinja";

/// The chat template of a checkpoint, a program in Jinja.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChatTemplate {
    source: String,
    /// The special tokens that a template may name, such as `bos_token`, with their spellings.
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Returns the template of a checkpoint in a folder: `chat_template.jinja`, or else the
    /// `chat_template` of `tokenizer_config.json`, which may be a list with one named `default`.
    /// `None` where there is neither.
    ///
    /// # Errors
    /// When one of the files cannot be read or is invalid. Whether the template works is only
    /// seen when it is used.
    pub fn open(folder: &Path, config: &Config, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let path = folder.join(CONFIG);
        let own = folder.join(OWN);
        Self::of((read(&path)?, &path), (read(&own)?, &own), config, tokenizer)
    }

    /// Returns the template that these contents of `tokenizer_config.json` and of
    /// `chat_template.jinja` hold. Errors name the paths.
    ///
    /// # Errors
    /// As [`ChatTemplate::open`].
    pub fn of(
        (text, path): (Option<Vec<u8>>, &Path),
        (own, own_path): (Option<Vec<u8>>, &Path),
        config: &Config,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>> {
        let json: Map<String, Value> = match text.map(|text| utf8(text, path)).transpose()? {
            None => Map::new(),
            Some(text) => serde_json::from_str(&text).map_err(|e| Error::Format {
                path: path.into(),
                problem: format!("not JSON: {e}"),
            })?,
        };
        let own = own.map(|own| utf8(own, own_path)).transpose()?;
        let source = match (own, json.get("chat_template")) {
            (Some(source), _) => source,
            (None, None | Some(Value::Null)) => return Ok(None),
            (None, Some(Value::String(source))) => source.clone(),
            (None, Some(Value::Array(all))) => {
                let default = all.iter().find(|one| one["name"] == "default");
                match default.and_then(|one| one["template"].as_str()) {
                    Some(source) => source.into(),
                    None => return wrong(path, "a list with a template named \"default\""),
                }
            }
            (None, Some(_)) => return wrong(path, "a string or a list of named templates"),
        };
        let mut template = Self::new(source, config, tokenizer);
        for (name, token) in json.iter().filter(|(name, _)| name.ends_with("_token")) {
            // An added token is an object with its spelling as `content`.
            if let Some(spelling) = token.as_str().or_else(|| token["content"].as_str()) {
                template.tokens.insert(name.clone(), spelling.into());
            }
        }
        Ok(Some(template))
    }

    /// Returns the template of a GGUF file (`tokenizer.chat_template`), or `None` where it has
    /// none.
    ///
    /// # Errors
    /// When the value is no text.
    pub fn from_gguf(
        metadata: &Metadata,
        config: &Config,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Self>> {
        let key = "tokenizer.chat_template";
        if !metadata.has(key) {
            return Ok(None);
        }
        Ok(Some(Self::new(metadata.string(key)?.into(), config, tokenizer)))
    }

    /// Returns a template whose `bos_token` and `eos_token` are those of the config.
    pub fn new(source: String, config: &Config, tokenizer: &Tokenizer) -> Self {
        let ids = [("bos_token", Some(config.bos)), ("eos_token", config.eos.first().copied())];
        let spelled = ids
            .into_iter()
            .filter_map(|(name, id)| Some((name.to_string(), tokenizer.piece(id?)?)));
        Self { source, tokens: spelled.collect() }
    }

    /// Returns the template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Returns whether a user's turn comes out in GritLM's format, with or without `<s>`.
    pub fn is_gritlm(&self) -> bool {
        let Ok(text) = self.render(&[Message { role: "user", content: "Hi" }], true) else {
            return false;
        };
        let bos = self.tokens.get("bos_token").map_or("", String::as_str);
        text.strip_prefix(bos).unwrap_or(&text) == crate::prompt::user("Hi")
    }

    /// Returns the text of a conversation, where `add_generation_prompt` ready for the next
    /// answer.
    ///
    /// # Errors
    /// When the template does not parse, refuses the conversation, or exceeds a bound.
    pub fn render(&self, messages: &[Message<'_>], add_generation_prompt: bool) -> Result<String> {
        render::render(&self.source, &self.tokens, messages, add_generation_prompt)
    }

    /// Returns the token ids of a conversation, ready for the next answer or, where the last
    /// message is the assistant's, for the rest of it. Nothing is put in front of what the
    /// template writes. Special tokens that are spelled in messages are plain text.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`], when the template changes the message that is to be
    /// continued, or when the tokenizer has no token for some part of the text.
    pub fn encode(&self, tokenizer: &Tokenizer, messages: &[Message<'_>]) -> Result<Vec<u32>> {
        let (hidden, text) = self.hide(tokenizer, messages)?;
        let text = match messages.last() {
            Some(last) if last.role == "assistant" => self.cut(&text)?.0,
            _ => &text,
        };
        hidden.encode(text)
    }

    /// Returns the token ids of a user's turn that follows an answer: what the template writes
    /// after an answer (such as the token that ends it), and the turn.
    ///
    /// # Errors
    /// As [`ChatTemplate::encode`].
    pub fn encode_next(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
        let mut hidden = Hidden::new(tokenizer);
        let (answer, text) = (format!("Hello{END}"), hidden.hide(text));
        let turns = [("user", "Hello"), ("assistant", &answer), ("user", &text)];
        let messages = turns.map(|(role, content)| Message { role, content });
        let text = self.render(&messages, true)?;
        hidden.encode(self.cut(&text)?.1)
    }

    /// Renders a conversation with what its messages must not say hidden. A last message of the
    /// assistant's has the mark of its end.
    fn hide<'t>(
        &self,
        tokenizer: &'t Tokenizer,
        messages: &[Message<'_>],
    ) -> Result<(Hidden<'t>, String)> {
        let mut hidden = Hidden::new(tokenizer);
        let mut contents: Vec<String> =
            messages.iter().map(|message| hidden.hide(message.content)).collect();
        let begun = messages.last().is_some_and(|message| message.role == "assistant");
        if let Some(last) = contents.last_mut().filter(|_| begun) {
            last.push(END);
        }
        let both = messages.iter().zip(&contents);
        let messages: Vec<Message<'_>> =
            both.map(|(message, content)| Message { role: message.role, content }).collect();
        let text = self.render(&messages, !begun)?;
        Ok((hidden, text))
    }

    /// Returns what is in front of the mark of a message's end, and what is behind it.
    fn cut<'t>(&self, text: &'t str) -> Result<(&'t str, &'t str)> {
        text.split_once(END).filter(|(_, after)| !after.contains(END)).ok_or_else(|| {
            let problem = "expected each answer once and as it is, found it left out or changed";
            Error::Template(problem.into())
        })
    }
}

/// Reads a file, or returns `None` where there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Err(e) if e.kind() == NotFound => Ok(None),
        found => found.map(Some).map_err(Error::io(path)),
    }
}

fn utf8(text: Vec<u8>, path: &Path) -> Result<String> {
    files::check_pointer(&text, path)?;
    String::from_utf8(text)
        .map_err(|_| Error::Format { path: path.into(), problem: "not UTF-8".into() })
}

/// Returns an error about the template in `tokenizer_config.json`.
fn wrong<T>(path: &Path, expected: &str) -> Result<T> {
    let problem = format!("chat_template: expected {expected}");
    Err(Error::Format { path: path.into(), problem })
}
