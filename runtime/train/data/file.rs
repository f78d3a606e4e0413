//! A file of samples: where its lines are, and a line read when it is asked for.

use super::line::{self, Rules, Sample};
use super::{Generative, Kind, MAX_LINE, Passage, Place, Spoken};
use crate::encode::Encoder;
use crate::{Error, Result};
use gritlm_model::hash::fnv1a;
use rayon::prelude::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of lines that are checked at a time, on all threads.
const BLOCK: usize = 8 << 20;

/// A file whose samples are all valid.
#[derive(Debug)]
pub(super) struct File {
    path: Arc<Path>,
    /// What the samples are.
    pub(super) kind: Kind,
    /// A hash of the samples.
    pub(super) hash: u128,
    lines: Vec<Line>,
    left_out: usize,
    /// Why the first sample was left out, with its line.
    first_left_out: Option<(usize, String)>,
    open: Mutex<fs::File>,
}

/// A sample's line.
#[derive(Clone, Copy, Debug)]
struct Line {
    /// Offset of its first byte.
    start: u64,
    /// Number of bytes.
    bytes: u32,
    /// Its number, from 1.
    number: u32,
}

impl File {
    /// Opens a file and checks every line.
    pub(super) fn open(path: &Path, encoder: &Encoder<'_>, rules: Rules) -> Result<Self> {
        let io = || Error::io(path);
        let none = |problem: &str| Error::NoData { path: path.into(), problem: problem.into() };
        // Before it is opened: a pipe would wait for its writer.
        if !path.metadata().map_err(io())?.is_file() {
            return Err(none("expected a file or a folder, found a pipe or a device"));
        }
        let open = fs::File::open(path).map_err(io())?;
        let mut reader = BufReader::with_capacity(1 << 20, &open);
        let path: Arc<Path> = path.into();
        let (mut kind, mut hash, mut lines) = (None, 0, Vec::new());
        let (mut left_out, mut first_left_out) = (0, None);
        let (mut start, mut number) = (0, 0);
        loop {
            let block = block(&mut reader, &path, &mut start, &mut number)?;
            if block.is_empty() {
                break;
            }
            let place = |line: &Line| Place { path: path.clone(), line: line.number as usize };
            let check = |(line, bytes): &(Line, Vec<u8>)| -> Result<_> {
                let place = place(line);
                let parsed = line::parse(bytes, rules, place.clone());
                let (kind, sample) = parsed.map_err(|problem| place.error(problem))?;
                Ok((kind, unfit(&sample, encoder)?, fnv1a(bytes.iter().copied())))
            };
            let checked: Vec<Result<_>> = block.par_iter().map(check).collect();
            let mut hashes = vec![hash];
            for ((line, _), checked) in block.iter().zip(checked) {
                let (found, unfit, hash) = checked?;
                let first = *kind.get_or_insert(found);
                if found != first {
                    let (first, found) = (first.key(), found.key());
                    return Err(place(line).error(format!(
                        "expected \"{first}\", as in the lines before, found \"{found}\"; a file \
                         holds samples of one kind"
                    )));
                }
                match unfit {
                    None => {
                        lines.push(*line);
                        hashes.push(hash);
                    }
                    Some(problem) => {
                        left_out += 1;
                        first_left_out.get_or_insert((line.number as usize, problem));
                    }
                }
            }
            hash = fnv1a(hashes.into_iter().flat_map(u128::to_le_bytes));
        }
        let Some(kind) = kind else {
            return Err(none("expected a sample in each line, found an empty file"));
        };
        let open = Mutex::new(open);
        let file = Self { path, kind, hash, lines, left_out, first_left_out, open };
        match file.lines.is_empty() {
            false => Ok(file),
            true => Err(none(&format!("expected samples, found {}", file.left_out()))),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of samples.
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Reads a sample.
    pub(super) fn read(&self, index: usize, rules: Rules) -> Result<Sample> {
        let Line { start, bytes, number } = self.lines[index];
        let mut line = vec![0; bytes as usize];
        // One position for all threads: the standard library has no reads at an offset that every
        // system knows. A read is short beside the pass that needs it.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.seek(SeekFrom::Start(start)).map_err(Error::io(&*self.path))?;
        match open.read_exact(&mut line) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Err(self.changed()),
            Err(e) => return Err(Error::io(&*self.path)(e)),
        }
        drop(open);
        let place = Place { path: self.path.clone(), line: number as usize };
        match line::parse(&line, rules, place) {
            Ok((kind, sample)) if kind == self.kind => Ok(sample),
            _ => Err(self.changed()),
        }
    }

    /// Returns the error of a file that is not what it was when it was opened.
    pub(super) fn changed(&self) -> Error {
        Error::Changed { path: self.path.to_path_buf() }
    }

    /// Returns how many samples were left out, and why the first, if any were.
    pub(super) fn note(&self) -> Option<String> {
        (self.left_out > 0).then(|| format!("{}: {}", self.path.display(), self.left_out()))
    }

    fn left_out(&self) -> String {
        let all = self.lines.len() + self.left_out;
        let (line, problem) = self.first_left_out.clone().unwrap_or_default();
        format!("{} of {all} samples left out, the first in line {line}: {problem}", self.left_out)
    }
}

/// Reads lines until they have [`BLOCK`] bytes, leaving blank ones out. Returns none at the end.
fn block(
    reader: &mut impl BufRead,
    path: &Path,
    start: &mut u64,
    number: &mut u32,
) -> Result<Vec<(Line, Vec<u8>)>> {
    let (mut lines, mut total) = (Vec::new(), 0);
    while total < BLOCK {
        let mut line = Vec::new();
        let mut limited = reader.take(MAX_LINE as u64 + 1);
        let read = limited.read_until(b'\n', &mut line).map_err(Error::io(path))?;
        if read == 0 {
            break;
        }
        *number = number.checked_add(1).ok_or_else(|| {
            let problem = format!("expected at most {} lines, found more", u32::MAX);
            Error::NoData { path: path.into(), problem }
        })?;
        if read > MAX_LINE {
            let place = Place { path: path.into(), line: *number as usize };
            let problem =
                format!("expected a line of at most {MAX_LINE} bytes, found a longer one");
            return Err(place.error(problem));
        }
        let begins = *start;
        *start += read as u64;
        total += read;
        line.truncate(line.trim_ascii_end().len());
        if !super::unmarked(&line).trim_ascii().is_empty() {
            let bytes = line.len() as u32;
            lines.push((Line { start: begins, bytes, number: *number }, line));
        }
    }
    Ok(lines)
}

/// Returns why a valid sample is left out, if it is.
fn unfit(sample: &Sample, encoder: &Encoder<'_>) -> Result<Option<String>> {
    let lengths = *encoder.lengths();
    let (query, passage) =
        (("query_max_len", lengths.query_max_len), ("passage_max_len", lengths.passage_max_len));
    match sample {
        Sample::Pair(pair) => {
            let passages = pair.positives.iter().chain(&pair.negatives);
            let all = passages.map(|one| (one, passage));
            for (one, limit) in std::iter::once((&pair.query, query)).chain(all) {
                if let Some(problem) = unfit_passage(one, limit, encoder)? {
                    return Ok(Some(problem));
                }
            }
            Ok(None)
        }
        Sample::Generative(generative) => {
            let Generative { document, spoken, .. } = generative;
            if let Some(document) = document
                && let Some(problem) = unfit_passage(document, passage, encoder)?
            {
                return Ok(Some(problem));
            }
            match spoken {
                Spoken::Text(text) if text.trim().is_empty() => {
                    Ok(Some("the text is empty".into()))
                }
                _ => encoder.opening_fills(generative),
            }
        }
    }
}

fn unfit_passage(
    passage: &Passage,
    (name, limit): (&str, usize),
    encoder: &Encoder<'_>,
) -> Result<Option<String>> {
    if passage.text.trim().is_empty() {
        return Ok(Some("a text to embed is empty".into()));
    }
    let fills = encoder.instruction_fills(&passage.instruction, limit)?;
    Ok(fills.then(|| format!("an instruction fills `{name}` {limit}")))
}
