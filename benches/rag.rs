//! Measures `gritlm_rag` with the demo model: retrieval quality, the effect of each cache on the
//! answer, and how a store scales.
//!
//!     cargo bench --bench rag -- quality [--packages N] [--kv-format int8] [--json FILE]
//!         [--model M] [--corpus FILE.jsonl]
//!     cargo bench --bench rag -- scale [--most 10000] [--json FILE]
//!
//! * **quality**: uses the packages of the embedded corpus, on which the demo model was not trained,
//!   or those of a file: a package a line with `name`, `short`, `long` and `section`, as
//!   `examples/train/packages.py` reads them.
//!   Name and description of each package are indexed, with their keys and values. The one-line
//!   summary is left out and serves as the query. Each mode is asked two things about the best
//!   document found that it implies but does not state: its section and its summary. `match` is
//!   the share of answers that equal the document's word for word; `nats per token` is the loss
//!   of the document's answer, `</s>` included, after what the mode has read or reused; `same` is
//!   the share of answers that equal plain RAG's greedy answer in the same order. Two controls
//!   are measured along with the modes: document and question without the words that retrieval
//!   puts around them, and the question alone. With all 400 packages a share has an uncertainty
//!   of about 2.5 points.
//! * **scale**: stores of 1,000 chunks and more, made of random words with a fixed seed. Indexing,
//!   exact search and approximate search each run in a process of their own, so that their memory
//!   can be told apart. For approximate search, and for exact search over rounded vectors, it
//!   reports how many of the ten best documents of exact search over f32 they find.

#[path = "rag/quality.rs"]
mod quality;
#[path = "rag/scale.rs"]
mod scale;

use clap::{Parser, Subcommand, value_parser};
use gritlm::model::demo;
use gritlm::{Attn, Device, Engine, Options};
use quality::Quality;
use scale::{approximate, index, scale, search};
use serde_json::Value;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
    /// Device, as for `gritlm`.
    #[arg(long, global = true, default_value = "cpu")]
    device: Device,
    /// File to write the figures to.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// Passed by `cargo bench`.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Retrieval quality, and the effect of each cache on the answer.
    Quality(Quality),
    /// Stores of 1,000, 10,000 and 100,000 chunks.
    Scale {
        /// Chunks of the largest store.
        #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1000..))]
        most: u64,
    },
    /// Runs as a process of `scale`.
    #[command(hide = true)]
    Index { folder: PathBuf, chunks: usize },
    /// Runs as a process of `scale`.
    #[command(hide = true)]
    Search { folder: PathBuf, chunks: usize },
    /// Runs as a process of `scale`.
    #[command(hide = true)]
    Approximate { folder: PathBuf, chunks: usize },
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = &args.device;
    let figures = match &args.command {
        Command::Quality(quality) => quality.run(device)?,
        Command::Scale { most } => scale(*most as usize, device)?,
        Command::Index { folder, chunks } => return print(&index(folder, *chunks, device)?),
        Command::Search { folder, chunks } => return print(&search(folder, *chunks, device)?),
        Command::Approximate { folder, chunks } => {
            return print(&approximate(folder, *chunks, device)?);
        }
    };
    if let Some(path) = &args.json {
        fs::write(path, format!("{figures:#}\n"))?;
    }
    Ok(())
}

fn print(figures: &Value) -> Result<()> {
    println!("{figures}");
    Ok(())
}

fn open(model: &str, device: &Device, attn: Attn) -> gritlm::Result<Engine> {
    Engine::open(model, &Options::default().device(device.clone()).attn(attn))
}

/// Creates a folder inside the target folder, on the same disk, that is removed when the bench
/// ends.
fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// Returns the texts of the embedded corpus.
fn corpus() -> Result<Vec<String>> {
    let line = |line| -> Result<String> {
        let package: Value = serde_json::from_str(line)?;
        Ok(package["text"].as_str().ok_or("a package without text")?.into())
    };
    demo::CORPUS.lines().map(line).collect()
}
