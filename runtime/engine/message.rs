//! Conversations as lists of messages, and the two formats that make prompts of them: the
//! checkpoint's chat template, and GritLM's own.

use crate::{Error, Prompt};
use gritlm_model::chat_template;
use std::str::FromStr;

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Whoever set up the conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

/// A message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who wrote it.
    pub role: Role,
    /// The text.
    pub content: String,
}

/// The format of prompts that are conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChatFormat {
    /// That of the checkpoint's chat template, and GritLM's where there is none.
    #[default]
    Checkpoint,
    /// GritLM's, whatever template the checkpoint has.
    GritLm,
}

impl FromStr for ChatFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "checkpoint" => Ok(Self::Checkpoint),
            "gritlm" => Ok(Self::GritLm),
            found => Err(Error::Option {
                option: "chat_template",
                expected: "checkpoint or gritlm".into(),
                found: found.into(),
            }),
        }
    }
}

impl Prompt {
    /// Returns the messages of a conversation as a chat template takes them, or `None` where the
    /// prompt is verbatim text or ids. An answer that has not begun is left out.
    pub(crate) fn messages(&self) -> Option<Vec<chat_template::Message<'_>>> {
        let one = |role, content| chat_template::Message { role, content };
        let turn = |(question, answer)| [one("user", question), one("assistant", answer)];
        let (past, text, answer) = match self {
            Self::User(text) => (&[][..], text, ""),
            Self::Chat { past, text } => (past.as_slice(), text, ""),
            Self::Begun { past, text, answer } => (past.as_slice(), text, answer.as_str()),
            Self::Messages(messages) => {
                let begun = messages.iter().rposition(|message| !message.is_unsaid());
                let messages = &messages[..begun.map_or(0, |last| last + 1)];
                return Some(messages.iter().map(Message::borrowed).collect());
            }
            Self::Raw(_) | Self::Tokens(_) => return None,
        };
        let mut messages: Vec<_> =
            past.iter().flat_map(|(q, a)| turn((q.as_str(), a.as_str()))).collect();
        messages.push(one("user", text));
        messages.extend((!answer.is_empty()).then(|| one("assistant", answer)));
        Some(messages)
    }
}

impl Message {
    fn borrowed(&self) -> chat_template::Message<'_> {
        let role = match self.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        chat_template::Message { role, content: &self.content }
    }

    /// Returns whether this is an answer without a word.
    fn is_unsaid(&self) -> bool {
        self.role == Role::Assistant && self.content.is_empty()
    }
}

/// Builds the alternating turns of both sides in GritLM's format, which has no system: its text
/// becomes part of the user's turn. The user's turn comes first and may be empty; messages of one
/// side in a row are one turn, with a blank line between them.
pub(crate) fn turns(messages: &[Message]) -> Prompt {
    let (mut past, mut text, mut answer) = (Vec::new(), String::new(), None);
    for message in messages {
        if message.role == Role::Assistant {
            join(answer.get_or_insert_default(), &message.content);
            continue;
        }
        if let Some(answer) = answer.take() {
            past.push((std::mem::take(&mut text), answer));
        }
        join(&mut text, &message.content);
    }
    match answer {
        None => Prompt::Chat { past, text },
        Some(answer) => Prompt::Begun { past, text, answer },
    }
}

/// Appends to a turn, after a blank line if neither is empty.
fn join(turn: &mut String, more: &str) {
    if !turn.is_empty() && !more.is_empty() {
        turn.push_str("\n\n");
    }
    turn.push_str(more);
}
