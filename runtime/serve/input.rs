//! The inputs of a body: one text or several, as strings or as token ids.

use super::failure::Failure;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use std::borrow::Cow;
use std::fmt;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

/// The value of a field.
#[derive(Debug)]
pub(super) struct Input {
    /// Whether the field held one text and not an array of texts.
    single: bool,
    pub(super) texts: Texts,
}

/// Texts, all of one kind.
#[derive(Debug)]
pub(super) enum Texts {
    Text(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl From<Vec<String>> for Input {
    fn from(texts: Vec<String>) -> Self {
        Self { single: false, texts: Texts::Text(texts) }
    }
}

impl From<String> for Input {
    fn from(text: String) -> Self {
        Self { single: true, texts: Texts::Text(vec![text]) }
    }
}

impl Input {
    /// The kinds of value that the field accepts, for messages.
    pub(super) const KINDS: &str =
        "a string, an array of strings, of token ids or of arrays of token ids";

    /// Returns an input of `texts`; `single` if the field held one text and not an array.
    pub(super) fn of(single: bool, texts: Vec<String>) -> Self {
        Self { single, texts: Texts::Text(texts) }
    }

    /// Returns the path of text `index` in the body, from the field's name.
    pub(super) fn place(&self, field: &str, index: usize) -> String {
        if self.single { field.into() } else { format!("{field}[{index}]") }
    }

    /// Returns the bytes of all texts; a token id counts as its four bytes.
    pub(super) fn bytes(&self) -> usize {
        match &self.texts {
            Texts::Text(all) => all.iter().map(String::len).sum(),
            Texts::Ids(all) => all.iter().map(|ids| 4 * ids.len()).sum(),
        }
    }

    /// Truncates each text to at most `bytes` bytes. Returns the index and the length in bytes of
    /// the first text that was longer.
    pub(super) fn cut(&mut self, bytes: usize) -> Option<(usize, usize)> {
        let Texts::Text(all) = &mut self.texts else { return None };
        let mut first = None;
        for (index, text) in all.iter_mut().enumerate().filter(|(_, text)| text.len() > bytes) {
            first.get_or_insert((index, text.len()));
            text.truncate(text.floor_char_boundary(bytes));
        }
        first
    }

    /// Checks that there is at least one input and at most `limit`, that none is empty, and that
    /// all token ids are below `vocab`.
    pub(super) fn check(&self, field: &str, limit: usize, vocab: usize) -> Result<(), Failure> {
        let count = match &self.texts {
            Texts::Text(all) => all.len(),
            Texts::Ids(all) => all.len(),
        };
        if count == 0 {
            return Err(Failure::field(field, "expected at least one input, found none"));
        }
        Failure::check_inputs(field, count, limit)?;
        let empty = match &self.texts {
            Texts::Text(all) => all.iter().position(String::is_empty),
            Texts::Ids(all) => all.iter().position(Vec::is_empty),
        };
        if let Some(index) = empty {
            let problem = "expected at least one character or token id, found none";
            return Err(Failure::field(self.place(field, index), problem));
        }
        let Texts::Ids(all) = &self.texts else { return Ok(()) };
        for (index, ids) in all.iter().enumerate() {
            if let Some(at) = ids.iter().position(|&id| id as usize >= vocab) {
                let place = format!("{}[{at}]", self.place(field, index));
                let problem = format!("expected a token id below {vocab}, found {}", ids[at]);
                return Err(Failure::field(place, problem));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OneOrMany)
    }
}

/// Reads one text or an array of texts. The first element decides the kind of the others, so that
/// an error names the element that is wrong.
struct OneOrMany;

impl<'de> Visitor<'de> for OneOrMany {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Input::KINDS)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Input, E> {
        Ok(text.to_string().into())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<Input, E> {
        Ok(text.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Input, A::Error> {
        Ok(match seq.next_element()? {
            None => Vec::<String>::new().into(),
            Some(Element::Text(text)) => rest(vec![text], seq)?.into(),
            Some(Element::Id(id)) => {
                let ids = rest(vec![id], seq)?.into_iter().map(|Id(id)| id).collect();
                Input { single: true, texts: Texts::Ids(vec![ids]) }
            }
            Some(Element::Ids(ids)) => {
                let all = rest(vec![ids], seq)?.into_iter().map(|Ids(ids)| ids).collect();
                Input { single: false, texts: Texts::Ids(all) }
            }
        })
    }
}

/// Returns all elements, the first of which have been read already.
pub(super) fn rest<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(
    mut all: Vec<T>,
    mut seq: A,
) -> Result<Vec<T>, A::Error> {
    while let Some(next) = seq.next_element()? {
        all.push(next);
    }
    Ok(all)
}

enum Element {
    Text(String),
    Id(Id),
    Ids(Ids),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Text(text.into()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Element, E> {
                Ok(Element::Text(text))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Element, E> {
                IdVisitor.visit_u64(number).map(Element::Id)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Element, A::Error> {
                IdsVisitor.visit_seq(seq).map(Element::Ids)
            }
        }

        deserializer.deserialize_any(Any)
    }
}

/// A token id: an integer that fits without rounding or wrapping.
pub(super) struct Id(pub(super) u32);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdVisitor)
    }
}

struct IdVisitor;

impl Visitor<'_> for IdVisitor {
    type Value = Id;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a token id")
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Id, E> {
        let wrong = |_| E::invalid_value(Unexpected::Unsigned(number), &self);
        u32::try_from(number).map(Id).map_err(wrong)
    }
}

/// An array of token ids.
pub(super) struct Ids(pub(super) Vec<u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor)
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ids, A::Error> {
        let mut ids = Vec::new();
        while let Some(Id(id)) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Ids(ids))
    }
}

impl PartialSchema for Input {
    fn schema() -> RefOr<Schema> {
        let text = || ObjectBuilder::new().schema_type(Type::String).min_length(Some(1));
        let array = || ArrayBuilder::new().min_items(Some(1));
        let ids = || array().items(Id::schema());
        let schema = OneOfBuilder::new()
            .item(text().description(Some("A text.")))
            .item(array().items(text()).description(Some("Texts.")))
            .item(ids().description(Some("A text's token ids.")))
            .item(array().items(ids()).description(Some("Texts' token ids.")));
        schema.into()
    }
}

impl ToSchema for Input {
    fn name() -> Cow<'static, str> {
        "Input".into()
    }
}

impl PartialSchema for Id {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .minimum(Some(0))
            .maximum(Some(u32::MAX))
            .into()
    }
}

impl ToSchema for Id {
    fn name() -> Cow<'static, str> {
        "TokenId".into()
    }
}
