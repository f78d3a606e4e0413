//! Conversations to embed: one, or several.

use super::chat::{Message, Role, join};
use super::failure::Failure;
use super::input::{Input, rest};
use super::options;
use gritlm_model::prompt::embed_prefix;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt;
use utoipa::ToSchema;

/// Messages of one conversation, or of several.
pub(super) struct Conversations {
    /// Whether the request has one conversation rather than an array of conversations.
    single: bool,
    all: Vec<Vec<Message>>,
}

/// Messages of one conversation, or of several conversations.
#[derive(serde::Deserialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "the variants are the description")]
pub(super) enum ConversationsShape {
    One(Vec<Message>),
    Several(Vec<Vec<Message>>),
}

impl Conversations {
    /// Returns the texts to embed, with their instructions in front if they have any.
    pub(super) fn texts(self) -> Result<Input, Failure> {
        let Self { single, all } = self;
        let place = |i: usize| if single { "messages".into() } else { format!("messages[{i}]") };
        let texts = all.into_iter().enumerate().map(|(i, messages)| text(&place(i), messages));
        Ok(Input::of(single, texts.collect::<Result<_, _>>()?))
    }
}

/// Returns a conversation's text. The system messages in front of it are the instruction.
fn text(place: &str, messages: Vec<Message>) -> Result<String, Failure> {
    let (mut instruction, mut text) = (String::new(), String::new());
    for (i, Message { role, content, rest }) in messages.into_iter().enumerate() {
        options::MESSAGES.refuse(&rest, &format!("{place}[{i}]."))?;
        let content = content.map(String::from).unwrap_or_default();
        match role {
            Role::System | Role::Developer if text.is_empty() => join(&mut instruction, content),
            Role::User => join(&mut text, content),
            _ => {
                let problem = "expected the user's messages, and before them the system's";
                return Err(Failure::field(format!("{place}[{i}].role"), problem));
            }
        }
    }
    Ok(match instruction.is_empty() || text.is_empty() {
        true => text,
        false => embed_prefix(&instruction) + &text,
    })
}

impl<'de> Deserialize<'de> for Conversations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OneOrMany)
    }
}

/// Decides by the first element whether the array has messages or conversations.
struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Conversations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of messages, or of arrays of messages")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Conversations, A::Error> {
        match seq.next_element()? {
            None => Ok(Conversations { single: false, all: Vec::new() }),
            Some(Element::Message(first)) => {
                Ok(Conversations { single: true, all: vec![rest(vec![first], seq)?] })
            }
            Some(Element::Conversation(first)) => {
                Ok(Conversations { single: false, all: rest(vec![first], seq)? })
            }
        }
    }
}

enum Element {
    Message(Message),
    Conversation(Vec<Message>),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message or an array of messages")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Element, A::Error> {
                Message::deserialize(MapAccessDeserializer::new(map)).map(Element::Message)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
                Vec::deserialize(SeqAccessDeserializer::new(seq)).map(Element::Conversation)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Err(E::invalid_type(serde::de::Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
