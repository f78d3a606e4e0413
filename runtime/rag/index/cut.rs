//! Reads files and splits them into chunks, some documents at a time, on all threads.

use crate::Result;
use crate::chunk::Chunking;
use crate::read::{Entry, Item, Parser, read_file};
use crate::store::{Identity, NewDocument, Stamp};
use gritlm::{Encoded, Engine};
use rayon::prelude::*;
use std::collections::HashMap;

/// A chunk waiting to be embedded: its text and its encoded tokens.
pub(super) type Waiting = (String, Encoded);

/// The result of reading and splitting a file or a line.
pub(super) enum Cut {
    Document(NewDocument, Vec<Waiting>),
    /// Path, and the file's stamp if it was read.
    Unchanged(String, Option<Stamp>),
    Problem(String, String),
    Binary,
    /// Bytes of files that have been processed.
    Read(u64),
}

pub(super) fn tokens(chunks: &[Waiting]) -> u64 {
    chunks.iter().map(|(_, e)| e.tokens.len() as u64).sum()
}

/// What reading needs: the parser and the stored stamps.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) parser: &'a Parser,
    /// Stamps of the stored documents, by path.
    pub(super) stamps: &'a HashMap<String, Stamp>,
}

/// Reads files and splits those that have changed, some documents at a time, on all threads.
pub(super) fn cut_files(
    engine: &Engine,
    identity: &Identity,
    files: &[Entry],
    Reading { parser, stamps }: Reading<'_>,
    each: &mut dyn FnMut(Vec<Cut>) -> Result<()>,
) -> Result<()> {
    let how = Chunking { tokens: identity.chunk, overlap: identity.overlap };
    let mut group = Group { engine, how, items: Vec::new(), bytes: 0, each };
    for file in files {
        let same = |stamp: &Stamp| {
            stamp.modified != 0 && (stamp.modified, stamp.bytes) == (file.modified, file.bytes)
        };
        if stamps.get(&file.path).is_some_and(same) {
            group.push(&file.path, Item::Unchanged(file.path.clone(), None))?;
        } else {
            let unchanged =
                |path: &str, hash| stamps.get(path).is_some_and(|stamp| stamp.hash == hash);
            read_file(file, parser, &unchanged, &mut |item| group.push(&file.path, item))?;
        }
        group.items.push(Err(file.bytes));
    }
    group.flush()
}

/// Documents that are split together.
pub(super) struct Group<'a> {
    pub(super) engine: &'a Engine,
    pub(super) how: Chunking,
    /// Paths with what was read of them, or bytes of files that have been processed.
    pub(super) items: Vec<Result<(String, Item), u64>>,
    pub(super) bytes: usize,
    pub(super) each: &'a mut dyn FnMut(Vec<Cut>) -> Result<()>,
}

impl Group<'_> {
    pub(super) fn push(&mut self, path: &str, item: Item) -> Result<()> {
        if let Item::Document(source) = &item {
            self.bytes += source.text.len();
        }
        self.items.push(Ok((path.into(), item)));
        if self.items.len() >= 256 || self.bytes > 1 << 18 { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        let (engine, how) = (self.engine, self.how);
        let cut = std::mem::take(&mut self.items).into_par_iter().map(|item| match item {
            Err(bytes) => Cut::Read(bytes),
            Ok((_, Item::Unchanged(path, stamp))) => Cut::Unchanged(path, stamp),
            Ok((path, Item::Problem(problem))) => Cut::Problem(path, problem),
            Ok((_, Item::Binary)) => Cut::Binary,
            Ok((_, Item::Document(source))) => {
                let cut = how.title(engine, &source.title).and_then(|title| {
                    let cuts = how.cut(engine, &title, &source.text)?;
                    Ok((title, cuts))
                });
                match cut {
                    Err(error) => Cut::Problem(source.path, error.to_string()),
                    Ok((title, cuts)) => {
                        let (path, stamp, metadata) = (source.path, source.stamp, source.metadata);
                        let text = &source.text;
                        let chunks =
                            cuts.into_iter().map(|c| (text[c.bytes].to_string(), c.encoded));
                        Cut::Document(
                            NewDocument { path, title, stamp, metadata },
                            chunks.collect(),
                        )
                    }
                }
            }
        });
        (self.each)(cut.collect())
    }
}
