//! How a store grows.

use super::{Result, corpus, folder, open};
use gritlm::{Attn, Device, Embed, Engine};
use gritlm_rag::{
    Find, Identity, Indexer, NewChunk, NewDocument, Reader, Searcher, Stamp, VectorFormat, Writer,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::error::Error;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{self, Stdio};
use std::time::Instant;

/// Texts of 12 to 40 tokens, of words of the embedded corpus; always the same.
fn texts(engine: &Engine, n: usize) -> Result<impl Iterator<Item = String>> {
    let corpus = corpus()?.join(" ");
    let words: BTreeSet<&str> = corpus.split(|c: char| !c.is_ascii_alphabetic()).collect();
    let count = |text: &str| Ok::<_, Box<dyn Error>>(engine.tokenizer().encode(text)?.len());
    // Within a text.
    let tokens = |word| Ok((format!(" {word}"), count(&format!("a {word}"))? - count("a")?));
    let words = words.into_iter().filter(|word| word.len() > 2).map(tokens);
    let words: Vec<(String, usize)> = words.collect::<Result<_>>()?;
    let mut random = fastrand::Rng::with_seed(7);
    Ok((0..n).map(move |_| {
        let (mut text, mut left) = (String::new(), random.usize(12..=40));
        // Some words are one token.
        while left > 0 {
            let (word, tokens) = &words[random.usize(..words.len())];
            if let Some(rest) = left.checked_sub(*tokens) {
                text.push_str(word);
                left = rest;
            }
        }
        text.split_off(1)
    }))
}

/// MB of this process: `VmRSS` (resident), `VmHWM` (the most that was), `RssFile` (mapped files).
fn memory(name: &str) -> f64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kilobytes.map_or(f64::NAN, |kb: f64| kb * 1024.0 / 1e6)
}

pub(crate) fn index(folder: &Path, chunks: usize, device: &Device) -> Result<Value> {
    let engine = open("demo", device, Attn::default())?;
    let (store, file) = (folder.join("store"), folder.join("texts.jsonl"));
    let mut lines = BufWriter::new(File::create(&file)?);
    for text in texts(&engine, chunks)? {
        writeln!(lines, "{}", json!({"text": text}))?;
    }
    lines.into_inner()?.sync_all()?;
    let before = memory("VmRSS");
    let start = Instant::now();
    let mut indexer = Indexer::open(&engine, &store, &Identity::of(&engine))?;
    let done = indexer.run(&[file], &mut |_| Ok(()))?;
    let seconds = start.elapsed().as_secs_f64();
    drop(indexer);
    if done.chunks != chunks as u64 {
        return Err(format!("expected {chunks} chunks, found {done:?}").into());
    }
    let most = memory("VmHWM");
    let status = Reader::open(&store)?.status()?;
    Ok(json!({
        "chunks": chunks, "tokens": done.tokens, "index_seconds": seconds,
        "chunks_per_second": chunks as f64 / seconds,
        "tokens_per_second": done.tokens as f64 / seconds,
        "index_mb_before": before, "index_mb_most": most,
        "store_bytes": status.database_bytes + status.vector_bytes + status.segment_bytes,
        "database_bytes": status.database_bytes, "vector_bytes": status.vector_bytes,
    }))
}

/// Questions of each kind.
const QUERIES: usize = 200;

pub(crate) fn search(folder: &Path, chunks: usize, device: &Device) -> Result<Value> {
    const OPENINGS: usize = 5;
    let engine = open("demo", device, Attn::default())?;
    let queries: Vec<String> = texts(&engine, chunks)?.step_by(chunks / QUERIES).collect();
    let (how, embed) = (Find::default().top_k(10), Embed::default());
    engine.embed(&queries[..1], &embed)?;
    let before = memory("VmRSS");
    let mut openings = Vec::new();
    for _ in 0..OPENINGS {
        let start = Instant::now();
        Searcher::open(&engine, &folder.join("store"))?;
        openings.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let searcher = Searcher::open(&engine, &folder.join("store"))?;
    let (mut embeddings, mut searches) = (Vec::new(), Vec::new());
    for query in &queries {
        let start = Instant::now();
        let vector = engine.embed(&[query], &embed)?.remove(0).vector;
        embeddings.push(start.elapsed().as_secs_f64() * 1e3);
        let start = Instant::now();
        let hits = searcher.nearest(&vector, &how)?;
        searches.push(start.elapsed().as_secs_f64() * 1e3);
        // Each is the text of a chunk.
        if hits.first().is_none_or(|hit| hit.chunk.text != *query) {
            return Err(format!("expected {query:?} first, found {:?}", hits.first()).into());
        }
    }
    let (after, mapped) = (memory("VmRSS"), memory("RssFile"));
    Ok(json!({
        "open_ms": at(&mut openings, 0.5),
        "embed_ms_p50": at(&mut embeddings, 0.5), "embed_ms_p99": at(&mut embeddings, 0.99),
        "search_ms_p50": at(&mut searches, 0.5), "search_ms_p99": at(&mut searches, 0.99),
        "search_mb_before": before, "search_mb_after": after, "search_mb_mapped": mapped,
    }))
}

/// The ten best of a store with a graph and of stores with rounded vectors, beside those of exact
/// search over f32: what it costs and what is missed. Half of the queries are texts of chunks, half
/// the first half of the words of one, which is the text of none.
pub(crate) fn approximate(folder: &Path, chunks: usize, device: &Device) -> Result<Value> {
    let engine = open("demo", device, Attn::default())?;
    let store = folder.join("store");
    let stored: Vec<String> = texts(&engine, chunks)?.step_by(chunks / QUERIES).collect();
    let half = |text: &String| -> String {
        let words: Vec<&str> = text.split(' ').collect();
        words[..words.len().div_ceil(2)].join(" ")
    };
    let halves: Vec<String> = stored.iter().map(half).collect();
    let embed = |texts: &[String]| -> Result<Vec<Vec<f32>>> {
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        Ok(engine.embed(&texts, &Embed::default())?.into_iter().map(|e| e.vector).collect())
    };
    let (stored, halves) = (embed(&stored)?, embed(&halves)?);
    let ten = |searcher: &Searcher<'_>, query: &[f32], exact| -> Result<Vec<u64>> {
        let how = Find::default().top_k(10).exact(exact);
        Ok(searcher.nearest(query, &how)?.into_iter().map(|hit| hit.chunk.id).collect())
    };
    let recall = |found: &Searcher<'_>, of: &Searcher<'_>, queries: &[Vec<f32>]| -> Result<f64> {
        let mut both = 0;
        for query in queries {
            let expected = ten(of, query, true)?;
            both += ten(found, query, false)?.iter().filter(|id| expected.contains(id)).count();
        }
        Ok(both as f64 / (10 * queries.len()) as f64)
    };

    let mut writer = Writer::open(&store, &Identity::of(&engine))?;
    writer.set_approximate(Some(0))?;
    let start = Instant::now();
    writer.update_graph(&mut |_, _| Ok(()))?;
    let seconds = start.elapsed().as_secs_f64();
    drop(writer);
    let start = Instant::now();
    let searcher = Searcher::open(&engine, &store)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let mut searches = Vec::new();
    for query in stored.iter().chain(&halves) {
        let start = Instant::now();
        ten(&searcher, query, false)?;
        searches.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut figures = json!({
        "graph_seconds": seconds, "graph_bytes": searcher.reader().status()?.graph_bytes,
        "approximate_open_ms": open_ms,
        "approximate_ms_p50": at(&mut searches, 0.5), "approximate_ms_p99": at(&mut searches, 0.99),
        "recall_stored": recall(&searcher, &searcher, &stored)?,
        "recall_half": recall(&searcher, &searcher, &halves)?,
    });
    for vectors in [VectorFormat::Bf16, VectorFormat::Int8] {
        let folder = folder.join(vectors.to_string());
        rounded(searcher.reader(), &folder, &Identity { vectors, ..Identity::of(&engine) })?;
        let rounded = Searcher::open(&engine, &folder)?;
        figures[format!("recall_{vectors}")] = recall(&rounded, &searcher, &halves)?.into();
    }
    Ok(figures)
}

/// A store with another's vectors, of the same ids.
fn rounded(of: &Reader, folder: &Path, identity: &Identity) -> Result<()> {
    let vectors = of.vectors()?;
    let chunks = (0..vectors.len()).map(|row| NewChunk {
        text: String::new(),
        tokens: 0,
        vector: vectors.row(row),
        kv: None,
    });
    let chunks: Vec<NewChunk> = chunks.collect();
    let (path, title) = ("all".into(), String::new());
    let all = NewDocument { path, title, stamp: Stamp::default(), metadata: Value::Null };
    Writer::open(folder, identity)?.put(&all, &chunks)?;
    match Reader::open(folder)?.vectors()?.ids() == vectors.ids() {
        true => Ok(()),
        false => Err("the stores' ids are not the same".into()),
    }
}

/// What `share` of the values are below.
fn at(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(share * values.len() as f64) as usize]
}

pub(crate) fn scale(most: usize, device: &Device) -> Result<Value> {
    println!(
        "on {}; search: the ten best of all, 200 queries\n\n{:>7} {:>9} {:>9} {:>10} {:>9} {:>9} \
         {:>8} {:>15} {:>15} {:>17}",
        open("demo", device, Attn::default())?.device(),
        "chunks",
        "chunks/s",
        "tokens/s",
        "peak MB",
        "store MB",
        "(vectors)",
        "open ms",
        "embed p50, p99",
        "search p50, p99",
        "MB, before, after"
    );
    let mut rows = Vec::new();
    for chunks in [1_000, 10_000, 100_000].into_iter().filter(|chunks| *chunks <= most) {
        let folder = folder()?;
        let mut row = child("index", folder.path(), chunks, device)?;
        for command in ["search", "approximate"] {
            let found = child(command, folder.path(), chunks, device)?;
            if let (Some(row), Value::Object(found)) = (row.as_object_mut(), found) {
                row.extend(found);
            }
        }
        let of = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        let two = |a, b| format!("{:.2}, {:.2}", of(a), of(b));
        println!(
            "{chunks:>7} {:>9.0} {:>9.0} {:>10.0} {:>9.1} {:>9.1} {:>8.1} {:>15} {:>15} {:>17}",
            of("chunks_per_second"),
            of("tokens_per_second"),
            of("index_mb_most"),
            of("store_bytes") / 1e6,
            of("vector_bytes") / 1e6,
            of("open_ms"),
            two("embed_ms_p50", "embed_ms_p99"),
            two("search_ms_p50", "search_ms_p99"),
            format!("{:.0}, {:.0}", of("search_mb_before"), of("search_mb_after"))
        );
        rows.push(row);
    }
    println!(
        "\napproximate, by a graph; recall@10 beside exact search over f32, of {QUERIES} stored \
         texts and {QUERIES} half texts\n\n{:>7} {:>9} {:>9} {:>8} {:>15} {:>15} {:>17}",
        "chunks",
        "build s",
        "graph MB",
        "open ms",
        "search p50, p99",
        "recall",
        "exact: bf16, int8"
    );
    for row in &rows {
        let of = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
        println!(
            "{:>7} {:>9.1} {:>9.1} {:>8.1} {:>15} {:>15} {:>17}",
            row["chunks"],
            of("graph_seconds"),
            of("graph_bytes") / 1e6,
            of("approximate_open_ms"),
            format!("{:.2}, {:.2}", of("approximate_ms_p50"), of("approximate_ms_p99")),
            format!("{:.4}, {:.4}", of("recall_stored"), of("recall_half")),
            format!("{:.4}, {:.4}", of("recall_bf16"), of("recall_int8"))
        );
    }
    Ok(Value::Array(rows))
}

/// One of the processes of `scale`.
fn child(command: &str, folder: &Path, chunks: usize, device: &Device) -> Result<Value> {
    let output = process::Command::new(std::env::current_exe()?)
        .args([command.as_ref(), folder.as_os_str()])
        .args([&chunks.to_string(), "--device", &device.to_string()])
        .stderr(Stdio::inherit())
        .output()?;
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout)?),
        false => Err(format!("{command} of {chunks} chunks: {}", output.status).into()),
    }
}
