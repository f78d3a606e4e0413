//! Arguments of `bench` and of what it measures with.

use super::values::count;
use clap::{Args as Group, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Single operations: the case table, a model's shapes (`--like`), or your own (`--shape`)
    Ops {
        /// The ops of this shape of model: gritlm-7b, gritlm-8x7b, 1b, tiny or tiny-moe
        #[arg(long, value_name = "SHAPE", conflicts_with = "shape")]
        like: Option<String>,
        /// An op and its sizes, as linear_add:128x4096x14336 (rows, inner, outer); several allowed
        #[arg(long, value_name = "OP:SIZES")]
        shape: Vec<String>,
        /// Rows of a pass, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [1, 4, 16, 64, 512])]
        rows: Vec<u32>,
        /// Lengths of the sequences of attention, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [512, 2048])]
        contexts: Vec<u32>,
        /// Sequences that attention decodes together, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [1, 8, 32])]
        batches: Vec<u32>,
        /// Only ops and shapes that contain this
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        #[command(flatten)]
        how: BenchHow,
    },
    /// A whole model: embedding, prefill, decoding, time to the first token
    Model {
        /// Random weights of this shape, instead of `--model`
        #[arg(long, value_name = "SHAPE")]
        like: Option<String>,
        /// Layers of it, instead of all
        #[arg(long, value_name = "N", requires = "like")]
        layers: Option<usize>,
        /// The smallest sizes only
        #[arg(long)]
        quick: bool,
        #[command(flatten)]
        how: BenchHow,
    },
    /// From files to the first answer, with cold and with warm files
    Load {
        /// Random weights of this shape, instead of `--model`
        #[arg(long, value_name = "SHAPE")]
        like: Option<String>,
        /// Layers of it, instead of all
        #[arg(long, value_name = "N", requires = "like")]
        layers: Option<usize>,
        #[command(flatten)]
        how: BenchHow,
    },
    /// Answers from documents: what each cache saves, at the GRIT paper's lengths
    Rag {
        /// Random weights of this shape, instead of `--model`
        #[arg(long, value_name = "SHAPE")]
        like: Option<String>,
        /// Layers of it, instead of all
        #[arg(long, value_name = "N", requires = "like")]
        layers: Option<usize>,
        /// Tokens of the long side
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        lengths: Vec<u32>,
        /// The smallest sizes only
        #[arg(long, conflicts_with = "lengths")]
        quick: bool,
        /// Where the store is made, and removed again [default: the system's temporary folder]
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
        #[command(flatten)]
        how: BenchHow,
    },
    /// A record of before, as table, page or comparison
    Show {
        /// What `--json` has written
        record: PathBuf,
        #[command(flatten)]
        output: BenchOutput,
    },
    /// Write the tables of a folder of records into its RESULTS.md
    Results {
        /// The folder
        #[arg(default_value = "benches/record")]
        records: PathBuf,
    },
}

#[derive(Group)]
pub(crate) struct BenchHow {
    /// Times of each figure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeats: u32,
    /// MiB that are copied before each time, so that no cache holds what is read
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(crate) displace: u64,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

#[derive(Group)]
pub(crate) struct BenchOutput {
    /// Write the record to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) html: Option<PathBuf>,
    /// What another program needs for the same: its JSON, or llama-bench's; several allowed
    #[arg(long, value_name = "FILE")]
    pub(crate) peer: Vec<PathBuf>,
    /// A record of before, to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
    /// Exit with 1 if anything is slower than there by more than the spread
    #[arg(long, requires = "compare")]
    pub(crate) fail_on_regression: bool,
}

#[derive(Subcommand)]
pub(crate) enum Kernels {
    /// Compile every kernel and say what each takes of a multiprocessor
    #[command(after_help = "Example:
  gritlm kernels build --arch sm_80,sm_90a --output kernels
  gritlm generate --device cuda --kernels kernels --prompt \"Once upon\"")]
    Build {
        /// Architectures: sm_80 is for A100, sm_89 for RTX 40, sm_90a for H100
        #[arg(long, value_name = "A", value_delimiter = ',', default_value = "sm_80,sm_90a")]
        arch: Vec<String>,
        /// The folder for `--kernels`
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
}
