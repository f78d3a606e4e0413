//! Texts in a body: one or many, in characters or in token ids.

use super::failure::Failure;
use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use std::borrow::Cow;
use std::fmt;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};
use utoipa::{PartialSchema, ToSchema};

/// What a field holds.
#[derive(Debug)]
pub(super) struct Input {
    /// One, not an array of one.
    single: bool,
    pub(super) texts: Texts,
}

/// All of a kind.
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
    /// What it may be.
    pub(super) const KINDS: &str =
        "a string, an array of strings, of token ids or of arrays of token ids";

    /// Texts, which may have been one that was no array.
    pub(super) fn of(single: bool, texts: Vec<String>) -> Self {
        Self { single, texts: Texts::Text(texts) }
    }

    /// Where text `index` stands in the body, from the field's name.
    pub(super) fn place(&self, field: &str, index: usize) -> String {
        if self.single { field.into() } else { format!("{field}[{index}]") }
    }

    /// Of all texts; token ids count as the four bytes that they are.
    pub(super) fn bytes(&self) -> usize {
        match &self.texts {
            Texts::Text(all) => all.iter().map(String::len).sum(),
            Texts::Ids(all) => all.iter().map(|ids| 4 * ids.len()).sum(),
        }
    }

    /// Leaves at most so many bytes of each text; tells the first that had more, and how many.
    pub(super) fn cut(&mut self, bytes: usize) -> Option<(usize, usize)> {
        let Texts::Text(all) = &mut self.texts else { return None };
        let mut first = None;
        for (index, text) in all.iter_mut().enumerate().filter(|(_, text)| text.len() > bytes) {
            first.get_or_insert((index, text.len()));
            text.truncate(text.floor_char_boundary(bytes));
        }
        first
    }

    /// Whether there is something, not too many, nothing empty, and no id beyond the vocabulary.
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

/// The first element says what the others are; by themselves they tell where they are wrong.
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

/// All elements, of which the first have been read.
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

/// A token id. Nothing that has to be rounded or wrapped to be one.
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
