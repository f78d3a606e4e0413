//! The ways to answer from documents: which parts of the prompt come from a cache and which are
//! read again.

use super::{CacheKind, Identity};
use crate::{Error, Result};
use gritlm_model::prompt;
use std::fmt;
use std::str::FromStr;

/// Whether the query or the documents come first in a prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The query, then the documents.
    QueryDoc,
    /// The documents, then the query. Without caches the paper finds both orders equally good
    /// (30.47 and 30.50 % match); with caches this order is the best of all (33.38 %).
    #[default]
    DocQuery,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "query-doc" => Ok(Self::QueryDoc),
            "doc-query" => Ok(Self::DocQuery),
            found => Err(gritlm::Error::Option {
                option: "order",
                expected: "query-doc or doc-query".into(),
                found: found.into(),
            }
            .into()),
        }
    }
}

/// What an answer reuses from embedding passes. All prompts are those of the paper.
///
/// Each embedding pass begins with `<s>`, whose keys and values are part of the cache. The
/// diagram shows what the model sees: `Q` stands for the query's tokens, `D` for the document's,
/// `…` for the rest of the prompt; brackets enclose what comes from a cache.
///
/// ```text
/// Query       [<s> Q] D …
/// Doc         [<s> D] Q …
/// DocQuery    [<s> D][<s> Q] …     the second <s> stays, as in the paper's code, where it raised
///                                  the match from 14.13 to 18.39 %
/// QueryDoc    [<s> Q][D] …         the document's <s> is left out, as there; but the paper
///                                  embedded D without it, and here D's keys were computed with
///                                  it in sight
/// ```
///
/// ```
/// use gritlm_rag::{Mode, Order};
/// assert_eq!("doc-query".parse::<Mode>()?, Mode::DocQuery);
/// assert_eq!("none".parse::<Mode>()?.ordered(Order::QueryDoc), Mode::Plain(Order::QueryDoc));
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reuses nothing: query and documents are read again, as one prompt.
    Plain(Order),
    /// Reuses the query's embedding pass; the documents follow it.
    Query,
    /// Reuses the documents' embedding passes, computed when they were indexed; the query follows
    /// them.
    Doc,
    /// Reuses both: the query's pass, then the documents'.
    QueryDoc,
    /// Reuses both: the documents' passes, then the query's.
    DocQuery,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 6] = [
        Self::Plain(Order::QueryDoc),
        Self::Plain(Order::DocQuery),
        Self::Query,
        Self::Doc,
        Self::QueryDoc,
        Self::DocQuery,
    ];

    /// Returns this mode, with `order` if it is [`Mode::Plain`]. In all other modes the cache
    /// determines what comes first.
    pub fn ordered(self, order: Order) -> Self {
        match self {
            Self::Plain(_) => Self::Plain(order),
            cached => cached,
        }
    }

    /// Returns whether the answer continues from the query's embedding pass.
    pub fn reuses_query(self) -> bool {
        matches!(self, Self::Query | Self::QueryDoc | Self::DocQuery)
    }

    /// Returns whether the answer continues from the documents' embedding passes.
    pub fn reuses_documents(self) -> bool {
        matches!(self, Self::Doc | Self::QueryDoc | Self::DocQuery)
    }

    /// Checks that a store with this identity can serve the mode. A mode that reuses documents
    /// needs a store that keeps caches; individual caches that were evicted are computed again.
    ///
    /// # Errors
    /// When the store keeps no caches and the mode reuses those of documents.
    pub fn check(self, store: &Identity) -> Result<()> {
        match self.reuses_documents() && store.cache == CacheKind::None {
            false => Ok(()),
            true => Err(gritlm::Error::Option {
                option: "cache",
                expected: "none or query: the store keeps no caches (index with `cache` doc)"
                    .into(),
                found: self.to_string(),
            }
            .into()),
        }
    }

    /// Returns the part of the prompt that is not cached: a whole prompt in [`Mode::Plain`],
    /// otherwise the text that follows the caches. `documents` are texts with their titles.
    pub fn prompt(self, query: &str, documents: &[String]) -> String {
        match self {
            Self::Plain(Order::QueryDoc) => prompt::rag_query_doc(query, documents),
            Self::Plain(Order::DocQuery) => prompt::rag_doc_query(documents, query),
            Self::Query => prompt::rag_after_query(documents),
            Self::Doc => prompt::rag_after_doc(query),
            Self::QueryDoc => prompt::rag_after_query_doc(),
            Self::DocQuery => prompt::rag_after_doc_query(),
        }
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::Plain(Order::default())
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "none" => Ok(Self::default()),
            "query" => Ok(Self::Query),
            "doc" => Ok(Self::Doc),
            "query-doc" => Ok(Self::QueryDoc),
            "doc-query" => Ok(Self::DocQuery),
            found => Err(gritlm::Error::Option {
                option: "cache",
                expected: "none, query, doc, query-doc or doc-query".into(),
                found: found.into(),
            }
            .into()),
        }
    }
}

impl fmt::Display for Mode {
    /// Writes the name that `--cache` accepts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "none",
            Self::Query => "query",
            Self::Doc => "doc",
            Self::QueryDoc => "query-doc",
            Self::DocQuery => "doc-query",
        })
    }
}
