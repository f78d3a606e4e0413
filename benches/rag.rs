//! `gritlm_rag` with the demo model: what it finds and what each cache does to the answer, and how
//! a store grows.
//!
//!     cargo bench --bench rag -- quality [--packages N] [--kv-format int8] [--json FILE]
//!     cargo bench --bench rag -- scale [--most 10000] [--json FILE]
//!
//! * **quality**: the embedded corpus, packages that the model was not trained on. Of each, name
//!   and description are indexed, with their keys and values; the one-line summary, which is left
//!   out, is what to find it by. Of the best document found two things are asked in each mode that
//!   it implies and does not say: its section and its summary. `match`: answers that are, word for
//!   word, the document's; `nats per token`: of that answer, `</s>` counted, where it follows what
//!   the mode has read or reused; `same`: as plain RAG's greedy answer in its order. Beside the
//!   modes stand document and question without retrieval's words, and the question alone.
//!   With all 400 packages a share is known to some 2.5 points.
//! * **scale**: stores of 1,000 chunks and more, of words drawn with a fixed seed. Indexing,
//!   searching and searching approximately are processes of their own, so that each has its own
//!   memory. Of approximate search, and of exact search over rounded vectors: how many of the ten
//!   that exact search over f32 finds.

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
    /// As `gritlm` takes it.
    #[arg(long, global = true, default_value = "cpu")]
    device: Device,
    /// A file for the figures.
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    /// `cargo bench` passes it.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Subcommand)]
enum Command {
    /// What is found, and what each cache does to the answer.
    Quality(Quality),
    /// Stores of 1,000, 10,000 and 100,000 chunks.
    Scale {
        /// Chunks of the largest.
        #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u64).range(1000..))]
        most: u64,
    },
    /// A process of `scale`.
    #[command(hide = true)]
    Index { folder: PathBuf, chunks: usize },
    /// A process of `scale`.
    #[command(hide = true)]
    Search { folder: PathBuf, chunks: usize },
    /// A process of `scale`.
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

fn open(device: &Device, attn: Attn) -> gritlm::Result<Engine> {
    Engine::open("demo", &Options { device: device.clone(), attn, ..Options::default() })
}

/// A folder beside what is built, on the same disk, that goes when the bench ends.
fn folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?)
}

/// The texts of the embedded corpus.
fn corpus() -> Result<Vec<String>> {
    let line = |line| -> Result<String> {
        let package: Value = serde_json::from_str(line)?;
        Ok(package["text"].as_str().ok_or("a package without text")?.into())
    };
    demo::CORPUS.lines().map(line).collect()
}
