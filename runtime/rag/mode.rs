//! The ways to answer from documents: what is read again, and what is taken from a cache.

use super::{CacheKind, Identity};
use crate::{Error, Result};
use gritlm_model::prompt;
use std::fmt;
use std::str::FromStr;

/// Which stands first in a prompt, the query or the documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The query, then the documents.
    QueryDoc,
    /// The documents, then the query. In the paper as good as the other (30.47 and 30.50 % match),
    /// and its caching is the best of all (33.38 %).
    #[default]
    DocQuery,
}

impl FromStr for Order {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "query-doc" => Ok(Self::QueryDoc),
            "doc-query" => Ok(Self::DocQuery),
            found => Err(Error::Option {
                option: "--order",
                expected: "query-doc or doc-query".into(),
                found: found.into(),
            }),
        }
    }
}

/// What an answer reuses. All prompts are the paper's.
///
/// Each embedding pass begins with `<s>`, and its keys and values are part of the cache. What the
/// model then reads, with `Q` for the query's tokens, `D` for the document's and `…` for the rest of
/// the prompt; in brackets what comes from a cache:
///
/// ```text
/// Query       [<s> Q] D …
/// Doc         [<s> D] Q …
/// DocQuery    [<s> D][<s> Q] …     the second <s> stays, as in the paper's code, where it raised
///                                  the match from 14.13 to 18.39 %
/// QueryDoc    [<s> Q][D] …         the document's <s> is left out, as there; but the paper embedded
///                                  D without it, and here D's keys were computed with it in sight
/// ```
///
/// ```
/// use gritlm::rag::{Mode, Order};
/// assert_eq!("doc-query".parse::<Mode>()?, Mode::DocQuery);
/// assert_eq!("none".parse::<Mode>()?.ordered(Order::QueryDoc), Mode::Plain(Order::QueryDoc));
/// # Ok::<(), gritlm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: query and documents are read once more, as one prompt.
    Plain(Order),
    /// The query's embedding pass; the documents follow it.
    Query,
    /// The documents' embedding passes, made when they were indexed; the query follows them.
    Doc,
    /// Both: the query's, then the documents'.
    QueryDoc,
    /// Both: the documents', then the query's.
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

    /// The same mode, with this order where it reuses nothing; a cache says what is first.
    pub fn ordered(self, order: Order) -> Self {
        match self {
            Self::Plain(_) => Self::Plain(order),
            cached => cached,
        }
    }

    /// Whether the answer goes on from the query's embedding pass.
    pub fn reuses_query(self) -> bool {
        matches!(self, Self::Query | Self::QueryDoc | Self::DocQuery)
    }

    /// Whether the answer goes on from the documents' embedding passes.
    pub fn reuses_documents(self) -> bool {
        matches!(self, Self::Doc | Self::QueryDoc | Self::DocQuery)
    }

    /// Whether a store made so can serve the mode. One without caches is no help; single ones that
    /// were evicted are computed again.
    ///
    /// # Errors
    /// When it keeps no caches and the mode wants documents'.
    pub fn check(self, store: &Identity) -> Result<()> {
        match self.reuses_documents() && store.cache == CacheKind::None {
            false => Ok(()),
            true => Err(Error::Option {
                option: "--cache",
                expected: "none or query: the store keeps no caches (gritlm index --cache doc)"
                    .into(),
                found: self.to_string(),
            }),
        }
    }

    /// What is left to read. A prompt of its own in [`Mode::Plain`]; else it follows the caches.
    /// `documents` are texts with their titles.
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
            found => Err(Error::Option {
                option: "--cache",
                expected: "none, query, doc, query-doc or doc-query".into(),
                found: found.into(),
            }),
        }
    }
}

impl fmt::Display for Mode {
    /// As `--cache` takes it.
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
