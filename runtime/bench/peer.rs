//! Reads the figures that other programs measured, for `--peer FILE`.
//!
//! A file has one of these forms, told apart by their fields:
//! - a [`Record`], of which only the peers are used;
//! - [`Peer`] objects, in an array or one per line. `device` may be missing, and unknown fields
//!   are ignored. `{"peer": …, "op": …, "shape": …, "not_measured": "why"}` states that there is
//!   no figure and becomes a line of [`Record::missing`]. The scripts in `benches/peers` write
//!   this form;
//! - the output of `llama-bench -o json` or `-o jsonl`. A generation test (`-n`) becomes a
//!   [`decode`](shape::decode) of one sequence with `-d` tokens before it, with the time of one
//!   token; a prompt test (`-p`) becomes a [`prefill`](shape::prefill). If the name of the model
//!   file contains that of a model measured here, the shape is [`shape::of`] that model.

use super::record::{Peer, Record};
use super::report::{input, not_json};
use super::shape;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::Value;
use std::fs::read;
use std::path::Path;

/// A line of the scripts in `benches/peers`.
#[derive(Deserialize)]
struct Line {
    peer: String,
    #[serde(default)]
    device: String,
    op: String,
    shape: String,
    us: Option<f64>,
    not_measured: Option<String>,
}

/// The fields of a `llama-bench` test that are used.
#[derive(Deserialize)]
struct LlamaBench {
    #[serde(default)]
    build_number: u64,
    #[serde(default)]
    cpu_info: String,
    #[serde(default)]
    gpu_info: String,
    #[serde(default)]
    backends: String,
    #[serde(default)]
    model_filename: String,
    model_type: String,
    #[serde(default)]
    n_gpu_layers: i64,
    n_prompt: u64,
    n_gen: u64,
    #[serde(default)]
    n_depth: u64,
    avg_ns: f64,
    #[serde(default)]
    samples_ns: Vec<f64>,
}

/// Merges a peer's file into the record. A new figure replaces one of the same peer, device, op
/// and shape.
///
/// # Errors
/// One line that names the file and the row: not JSON, none of the known forms, a time that is
/// not a number above 0. The record is then unchanged.
pub fn merge(record: &mut Record, path: &Path) -> Result<()> {
    let bytes = read(path).map_err(Error::io(path))?;
    let (mut peers, mut missing) = (Vec::new(), Vec::new());
    let rows = match serde_json::from_slice::<Value>(&bytes) {
        Ok(Value::Object(fields))
            if fields.contains_key("version") && !fields.contains_key("op") =>
        {
            peers = Record::parse(&bytes, path)?.peers;
            Vec::new()
        }
        Ok(Value::Array(rows)) => rows,
        Ok(row) => vec![row],
        Err(whole) => lines(&bytes).ok_or_else(|| input(path, not_json(&whole)))?,
    };
    for (index, row) in rows.into_iter().enumerate() {
        let wrong = |problem| input(path, format!("row {}: {problem}", index + 1));
        match take(record, row).map_err(wrong)? {
            Taken::Peer(peer) if peer.us.is_finite() && peer.us > 0.0 => peers.push(peer),
            Taken::Peer(peer) => {
                return Err(wrong(format!("us: expected a number above 0, found {}", peer.us)));
            }
            Taken::Missing(line) => missing.push(line),
        }
    }
    for peer in peers {
        let work = |p: &Peer| [&p.peer, &p.device, &p.op, &p.shape].map(String::clone);
        record.peers.retain(|other| work(other) != work(&peer));
        record.peers.push(peer);
    }
    missing.retain(|line| !record.missing.contains(line));
    record.missing.append(&mut missing);
    Ok(())
}

/// Parses one JSON value per line; `None` if a line is not JSON or there are none.
fn lines(bytes: &[u8]) -> Option<Vec<Value>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let rows: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>().ok()?;
    (!rows.is_empty()).then_some(rows)
}

enum Taken {
    Peer(Peer),
    Missing(String),
}

fn take(record: &Record, row: Value) -> Result<Taken, String> {
    if row.get("n_gen").is_some() && row.get("n_prompt").is_some() {
        let test = serde_json::from_value(row).map_err(|e| format!("llama-bench: {e}"))?;
        return Ok(llama_bench(record, test));
    }
    let known = "expected peer, op, shape and us, or what llama-bench -o json prints";
    let row: Line = serde_json::from_value(row).map_err(|e| format!("{known}: {e}"))?;
    let Line { peer, device, op, shape, us, not_measured } = row;
    match (us, not_measured) {
        (Some(us), _) => Ok(Taken::Peer(Peer { peer, device, op, shape, us })),
        (None, Some(why)) => Ok(Taken::Missing(format!("{peer}, {op} {shape}: {why}"))),
        (None, None) => Err(format!("{known}: missing field `us`")),
    }
}

fn llama_bench(record: &Record, test: LlamaBench) -> Taken {
    let peer = format!("llama.cpp {}, {}", test.build_number, test.model_type);
    // The record holds medians; the average is for files without the samples.
    let mut samples = test.samples_ns;
    samples.sort_by(f64::total_cmp);
    let (low, high) = (samples.len().saturating_sub(1) / 2, samples.len() / 2);
    let ns = match samples.get(low..=high) {
        Some(middle) => middle.iter().sum::<f64>() / middle.len() as f64,
        None => test.avg_ns,
    };
    let (op, shape, times) = match (test.n_prompt, test.n_gen, test.n_depth) {
        (0, 0, _) => return Taken::Missing(format!("{peer}: a test of no tokens")),
        (0, tokens, depth) => ("decode", shape::decode(1, depth), tokens),
        (tokens, 0, 0) => ("prefill", shape::prefill(1, tokens), 1),
        (prompt, tokens, depth) => {
            let what = format!("-p {prompt} -n {tokens} -d {depth}");
            return Taken::Missing(format!("{peer}: {what} is no row of ours"));
        }
    };
    let on_cpu = test.gpu_info.is_empty() || test.n_gpu_layers == 0;
    let (kind, name) = match on_cpu {
        true => ("CPU", test.cpu_info),
        false => (test.backends.as_str(), test.gpu_info),
    };
    let device = if name.is_empty() { kind.into() } else { format!("{kind} ({name})") };
    // The file of a peer's weights is rarely named exactly as ours.
    let letters = |text: &str| text.to_lowercase().replace(['_', ' '], "-");
    let file = letters(&test.model_filename);
    let models = record.rows.iter().filter_map(|r| r.shape.rsplit_once(" of ").map(|(_, m)| m));
    let model = models.filter(|m| file.contains(&letters(m))).max_by_key(|m| m.len());
    let shape = model.map_or(shape.clone(), |model| shape::of(&shape, model));
    Taken::Peer(Peer { peer, device, op: op.into(), shape, us: ns / 1e3 / times as f64 })
}
