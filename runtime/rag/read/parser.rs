//! Parses HTML and PDF. A file can make these parsers run for long, take much memory or crash, so
//! they run either in a child process, which has limits of its own and takes nothing down with
//! it, or in this process.

#[cfg(unix)]
mod child;
#[cfg(unix)]
mod wire;

use super::{html, pdf};
use crate::Result;
#[cfg(unix)]
pub use child::serve_parser;
use std::process::Command;
use std::time::Duration;

/// Limits for parsing one HTML or PDF document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParseLimits {
    /// CPU time of the parser, in whole seconds; enforced only in a child process. Its wall-clock
    /// time may be thirty times as long, in case it has to wait for a core.
    pub cpu: Duration,
    /// Maximum bytes of memory of the parser's process, itself included; enforced only in a child
    /// process.
    pub memory: u64,
    /// Maximum bytes of text.
    pub text: usize,
}

impl Default for ParseLimits {
    /// Returns limits of 10 s, 1 GiB of memory and 64 MiB of text.
    fn default() -> Self {
        Self { cpu: Duration::from_secs(10), memory: 1 << 30, text: 64 << 20 }
    }
}

impl ParseLimits {
    /// Checks that a document may have this many bytes of text.
    pub(super) fn check_text(&self, bytes: usize) -> Result<(), String> {
        match bytes > self.text {
            true => Err(format!("it has more than {} of text", mib(self.text as u64))),
            false => Ok(()),
        }
    }
}

/// Formats a size for messages, in whole MiB if it is at least 1 MiB.
fn mib(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mib => format!("{mib} MiB"),
    }
}

/// Formats that are read by third-party parsers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Html,
    Pdf,
}

impl Format {
    /// Returns the format for a file extension in lower case.
    pub(super) fn of(extension: &str) -> Option<Self> {
        match extension {
            "html" | "htm" | "xhtml" => Some(Self::Html),
            "pdf" => Some(Self::Pdf),
            _ => None,
        }
    }
}

/// A document's title, if it has one, and its text; or a description of what is wrong with it.
pub(super) type Parsed = Result<(Option<String>, String), String>;

/// Parses HTML and PDF; see [`super::super::Indexer::set_parser`].
///
/// Both kinds of parser bound what a document makes them do: the bytes that its streams decode
/// to, how often and how deep its forms are drawn, the codes and widths of its fonts, and its
/// text. Only a child process ([`Parser::in_child`]) also limits time and memory, and only there
/// can the parser not take the program down.
#[derive(Debug, Default)]
pub struct Parser {
    limits: ParseLimits,
    #[cfg(unix)]
    child: Option<child::Child>,
}

impl Parser {
    /// Creates a parser that runs in this process.
    pub fn new(limits: ParseLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Creates a parser that runs in a child process, which `command` starts and which calls
    /// [`serve_parser`]. The process starts with the first document, and again after a document
    /// has ended it. Systems other than Unix have no such limits; there, documents are parsed in
    /// this process.
    ///
    /// ```no_run
    /// use gritlm_rag::{ParseLimits, Parser};
    /// use std::process::Command;
    ///
    /// // `gritlm parse-documents` is such a program.
    /// let mut command = Command::new("gritlm");
    /// command.arg("parse-documents");
    /// let parser = Parser::in_child(command, ParseLimits::default());
    /// ```
    pub fn in_child(command: Command, limits: ParseLimits) -> Self {
        #[cfg(unix)]
        return Self { limits, child: Some(child::Child::of(command)) };
        #[cfg(not(unix))]
        return {
            let _ = command;
            Self::new(limits)
        };
    }

    /// Parses a document. An outer error is the child's and not caused by the document.
    pub(super) fn parse(&self, format: Format, bytes: &[u8]) -> Result<Parsed> {
        #[cfg(unix)]
        if let Some(child) = &self.child {
            return child.parse(format, bytes, &self.limits);
        }
        Ok(parse(format, bytes, &self.limits))
    }
}

/// Parses a document in this process.
fn parse(format: Format, bytes: &[u8], limits: &ParseLimits) -> Parsed {
    let (title, text) = match format {
        Format::Html => html::text(bytes),
        Format::Pdf => (None, pdf::text(bytes, limits)?),
    };
    limits.check_text(text.len())?;
    Ok((title, text))
}
