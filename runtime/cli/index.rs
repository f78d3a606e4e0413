//! `gritlm index`: indexes files into a store, and shows what is in it.

use super::args::{Above, Budget, Global, Index};
use super::inspect::{gib, grouped};
use super::note;
use super::output::{Out, Progress};
use crate::error::{Error, Result};
use gritlm::Engine;
use gritlm_rag::{
    CacheKind, Event, Identity, Indexer, ParseLimits, Parser, Plan, Reader, Writer, verify,
};
use serde::Serialize;
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

pub(super) fn run(args: &Index, global: &Global, out: &mut Out) -> Result<()> {
    let store = &args.store;
    if args.status {
        let reader = Reader::open(store)?;
        let mut all = object(&reader.status()?)?;
        all["identity"] = object(reader.identity())?;
        return show(&all, out);
    }
    if args.verify {
        let report = verify(store)?;
        let mut all = object(&report)?;
        all["sound"] = report.is_sound().into();
        show(&all, out)?;
        return match report.problems.len() {
            0 => Ok(()),
            n => Err(wrong(store, format!("{n} parts are not as they were written"))),
        };
    }
    if args.compact {
        let identity = Reader::open(store)?.identity().clone();
        return show(&object(&Writer::open(store, &identity)?.compact()?)?, out);
    }
    index(args, global, out)
}

fn index(args: &Index, global: &Global, out: &mut Out) -> Result<()> {
    let engine = super::open(global)?;
    let identity = identity(args, &engine);
    let mut indexer = Indexer::open(&*engine, &args.store, &identity)?;
    indexer.set_parser(parser(args)?);
    indexer.follow_links(args.follow);
    if identity.cache == CacheKind::Doc {
        let mut progress = Progress::bytes("counting tokens");
        let plan = indexer.plan(&args.paths, &mut |read, total| Ok(progress.of(read, total)?))?;
        drop(progress);
        check_room(args, &plan)?;
    }
    if let Some(Budget(bytes)) = args.kv_budget {
        indexer.writer().set_budget(bytes)?;
    }
    if let Some(Above(chunks)) = args.approximate_above {
        indexer.writer().set_approximate(chunks)?;
    }
    let start = Instant::now();
    let mut progress = Progress::bytes("indexing");
    let mut graph = Progress::new("graph", 0);
    let done = indexer.run(&args.paths, &mut |event| match event {
        Event::Problem { path, problem } => {
            progress.note(format_args!("{path}: {problem}"));
            Ok(())
        }
        Event::Progress { read, total, done } => {
            let seconds = start.elapsed().as_secs_f64().max(1e-3);
            let rate = |n: u64| n as f64 / seconds;
            let (chunks, tokens) = (rate(done.chunks), rate(done.tokens));
            progress.of(read, total)?;
            progress.say(format!("{chunks:.1} chunks/s, {tokens:.0} tokens/s"));
            Ok(())
        }
        Event::Graph { done, total } => Ok(graph.of(done, total)?),
    })?;
    drop((progress, graph));
    let seconds = start.elapsed().as_secs_f64();
    if out.json() {
        let mut all = object(&done)?;
        all["seconds"] = seconds.into();
        out.object(&all)?;
    } else {
        out.line(format!(
            "{} added, {} replaced, {} unchanged, {} removed",
            done.added, done.replaced, done.unchanged, done.removed
        ))?;
        out.line(format!(
            "{} chunks, {} tokens in {seconds:.1} s: {:.1} chunks/s, {:.0} tokens/s",
            grouped(done.chunks),
            grouped(done.tokens),
            done.chunks as f64 / seconds,
            done.tokens as f64 / seconds
        ))?;
        if done.binary > 0 {
            note(format_args!("note: {} files are no text and left out", done.binary));
        }
        if done.outside > 0 {
            note(format_args!(
                "note: {} links lead outside the given paths and are left out; --follow reads them",
                done.outside
            ));
        }
    }
    match done.failed {
        0 => Ok(()),
        n => Err(wrong(
            &args.store,
            format!("{n} paths, files or lines could not be read, see above"),
        )),
    }
}

/// Returns a parser that runs this program in another process to parse HTML and PDF.
fn parser(args: &Index) -> Result<Parser> {
    let mut limits = ParseLimits::default();
    limits.cpu = Duration::from_secs(args.parse_seconds);
    limits.memory = args.parse_memory;
    limits.text = usize::try_from(args.parse_text).unwrap_or(usize::MAX);
    let program = std::env::current_exe().map_err(Error::io("this program"))?;
    let mut command = Command::new(program);
    command.arg("parse-documents");
    Ok(Parser::in_child(command, limits))
}

/// Returns what the store was made with, if there is one, with the given options applied. If the
/// result differs from the store, opening the store reports it.
fn identity(args: &Index, engine: &Engine) -> Identity {
    let fresh = || Identity::of(engine);
    let stored = Reader::open(&args.store).map_or_else(|_| fresh(), |r| r.identity().clone());
    Identity {
        attn: args.attn.unwrap_or(stored.attn),
        chunk: args.chunk.unwrap_or(stored.chunk),
        overlap: args.overlap.unwrap_or(stored.overlap),
        cache: args.cache.unwrap_or(stored.cache),
        vectors: args.vectors.unwrap_or(stored.vectors),
        kv: args.kv_format.unwrap_or(stored.kv),
        ..stored
    }
}

/// Prints how much a run is going to store, and checks that there is room.
fn check_room(args: &Index, plan: &Plan) -> Result<()> {
    if plan.documents == 0 {
        return Ok(());
    }
    let needed = plan.kv_bytes + plan.vector_bytes;
    note(format_args!(
        "note: to embed: {} documents, {} chunks, {} tokens; their KV caches take {}, vectors {}",
        grouped(plan.documents),
        grouped(plan.chunks),
        grouped(plan.tokens),
        gib(plan.kv_bytes),
        gib(plan.vector_bytes)
    ));
    let stored = || Reader::open(&args.store).and_then(|r| r.status()).ok()?.kv_budget;
    let budget = args.kv_budget.map_or_else(stored, |Budget(bytes)| bytes);
    if let Some(budget) = budget.filter(|&bytes| bytes < plan.kv_bytes) {
        return Err(Error::Option {
            option: "--kv-budget",
            expected: format!("at least {} for what has changed, or none", gib(plan.kv_bytes)),
            found: gib(budget),
        });
    }
    #[cfg(unix)]
    if let Ok(disk) = rustix::fs::statvfs(&args.store) {
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < needed {
            let problem = format!("{} are needed, the disk has {} left", gib(needed), gib(free));
            return Err(wrong(&args.store, problem));
        }
    }
    Ok(())
}

fn object(value: &impl Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|e| Error::Input { what: "standard output".into(), problem: e.to_string() })
}

/// Prints an object on one line as JSON, or its fields one per line.
fn show(all: &Value, out: &mut Out) -> Result<()> {
    if out.json() {
        return out.object(all);
    }
    fields("", all, out)
}

fn fields(indent: &str, all: &Value, out: &mut Out) -> Result<()> {
    for (name, value) in all.as_object().into_iter().flatten() {
        let label = name.replace('_', " ");
        match value {
            Value::Object(_) => {
                out.line(format!("{indent}{label}:"))?;
                fields("  ", value, out)?;
            }
            Value::Array(items) if items.iter().all(Value::is_object) => {
                for item in items {
                    let text = |key| item.get(key).and_then(Value::as_str);
                    let parts = ["file", "document", "problem"].into_iter().filter_map(text);
                    out.line(parts.collect::<Vec<_>>().join(": "))?;
                }
            }
            Value::Number(n)
                if name.ends_with("bytes") || ["before", "after"].contains(&&**name) =>
            {
                let size = n.as_u64().map_or_else(|| n.to_string(), gib);
                out.line(format!("{indent}{label:<20}{size}"))?;
            }
            Value::String(text) => out.line(format!("{indent}{label:<20}{text}"))?,
            Value::Null => out.line(format!("{indent}{label:<20}none"))?,
            value => out.line(format!("{indent}{label:<20}{value}"))?,
        }
    }
    Ok(())
}

fn wrong(store: &Path, problem: String) -> Error {
    Error::Input { what: store.display().to_string(), problem }
}
