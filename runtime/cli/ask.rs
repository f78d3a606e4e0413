//! `gritlm ask`: finds documents in a store and answers from them.

use super::args::{AskArgs, Global};
use super::output::Out;
use super::{check_interrupt, note};
use crate::error::{Error, Result};
use gritlm_rag::{Ask, Find, Hit, Mode, Passage, Positions, Reader, Searcher, Times, Usage};
use serde::{Serialize, Serializer};
use std::path::Path;
use std::time::Duration;

pub(super) fn run(args: &AskArgs, global: &Global, out: &mut Out) -> Result<()> {
    let sampling = args.sampling.sampling(0);
    sampling.check()?;
    let how = args.how()?;
    // Open the store first, so that a mistake is reported before a model is loaded.
    let store = Reader::open(&args.store)?;
    how.mode.check(store.identity())?;
    let attn = args.attn.unwrap_or(store.identity().attn);
    drop(store);
    let engine = super::open(global)?;
    let searcher = Searcher::open(&*engine, &args.store)?;
    let store = searcher.reader();
    store.check(&engine, attn)?;

    let asked = gritlm_rag::ask(&*engine, &args.query, &how.attn(Some(attn)))?;
    let found = searcher.find(&args.query, asked.vector(), &args.find())?;
    if found.is_empty() && args.documents > 0 {
        let (what, problem) = ("the store".into(), "it has no document that fits".into());
        return Err(Error::Input { what, problem });
    }
    let passages = found.iter().map(|hit| Passage::of(store, &hit.chunk, args.cache));
    let passages = passages.collect::<gritlm_rag::Result<Vec<_>>>()?;
    let mut answer = asked.answer(&engine, &passages, &sampling)?;
    drop(passages);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    for piece in &mut answer {
        check_interrupt()?;
        let piece = piece?;
        tokens.push(piece.token.token);
        if out.json() {
            text += &piece.text;
        } else {
            out.piece(&piece.text)?;
        }
    }
    let (usage, drawn) = (answer.usage(), tokens.len());
    if out.json() {
        let documents = found.iter().map(|Hit { chunk, score, probability }| Cited {
            path: &chunk.document,
            chunk: chunk.index,
            score: *score,
            probability: *probability,
        });
        out.object(&Answer {
            answer: text,
            documents: documents.collect(),
            tokens_computed: usage.tokens_computed,
            tokens_reused: usage.tokens_reused,
            ms: Milliseconds(usage.times),
            tokens,
        })?;
    } else {
        out.line("")?;
        let here = std::env::current_dir().unwrap_or_default();
        for (number, Hit { chunk, score, probability }) in (1..).zip(&found) {
            let score = probability.unwrap_or(*score);
            let path = Path::new(&chunk.document);
            let path = path.strip_prefix(&here).unwrap_or(path).display();
            out.line(format!("[{number}] {path}#{} {score:.3}", chunk.index))?;
        }
    }
    // Flush, so that on a terminal the answer comes before the notes about it.
    out.finish()?;
    if usage.recomputed > 0 {
        let count = usage.recomputed;
        note(format_args!("note: caches evicted from the store and computed again: {count}"));
    }
    if args.explain {
        explain(args.cache, usage, drawn);
    }
    Ok(())
}

impl AskArgs {
    fn find(&self) -> Find {
        let (filters, below) = (self.filter.clone(), self.below.clone());
        let (rerank, exact) = (self.rerank, self.exact);
        Find::default()
            .top_k(self.documents)
            .filters(filters)
            .below(below)
            .rerank(rerank)
            .exact(exact)
    }

    fn how(&self) -> Result<Ask> {
        let mode = match (self.cache, self.order) {
            (mode @ Mode::Plain(_), order) => mode.ordered(order.unwrap_or_default()),
            (mode, None) => mode,
            (mode, Some(_)) => {
                return Err(Error::Option {
                    option: "--order",
                    expected: "--cache none, which alone leaves it open".into(),
                    found: format!("--cache {mode}"),
                });
            }
        };
        Ok(Ask::default()
            .mode(mode)
            .positions(match self.as_published {
                true => Positions::AsPublished,
                false => Positions::Turned,
            })
            .instruction(self.instruction.clone())
            .attn(None)
            .answer_prefix(self.answer_prefix.clone().unwrap_or_default()))
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    answer: String,
    tokens: Vec<u32>,
    documents: Vec<Cited<'a>>,
    tokens_computed: usize,
    tokens_reused: usize,
    ms: Milliseconds,
}

#[derive(Serialize)]
struct Cited<'a> {
    path: &'a str,
    chunk: u32,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    probability: Option<f32>,
}

struct Milliseconds(Times);

impl Serialize for Milliseconds {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let rounded = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
        to.collect_map(self.0.named().map(|(name, time)| (name, rounded(time))))
    }
}

/// Prints on stderr what the answer took.
fn explain(mode: Mode, usage: &Usage, tokens: usize) {
    note(format_args!(
        "cache {mode}: {} tokens computed, {} reused, {:.1} MB read, {tokens} tokens answered",
        usage.tokens_computed,
        usage.tokens_reused,
        usage.bytes_read as f64 / 1e6,
    ));
    for (name, time) in usage.times.named() {
        let name = name.replace('_', " ");
        note(format_args!("{name:<12} {:>10.1} ms", time.as_secs_f64() * 1e3));
    }
}
