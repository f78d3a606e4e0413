//! Arguments of `bench` and `kernels`.

use super::values::count;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
use super::values::{Own, parse};
use clap::{Args as Group, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand)]
pub(crate) enum Bench {
    /// Single operations: the case table, a model's shapes (`--like`), or your own (`--shape`)
    Ops {
        /// The ops of a model of this shape: gritlm-7b, gritlm-8x7b, 1b, tiny or tiny-moe
        #[arg(long, value_name = "SHAPE", conflicts_with = "shape")]
        like: Option<String>,
        /// An op and its sizes, like linear_add:128x4096x14336 (rows, inner, outer); may be given
        /// again
        #[arg(long, value_name = "OP:SIZES")]
        shape: Vec<String>,
        /// Rows per pass, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [1, 4, 16, 64, 512])]
        rows: Vec<u32>,
        /// Sequence lengths for attention, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [512, 2048])]
        contexts: Vec<u32>,
        /// Sequences per batch of decoding attention, with `--like`
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        #[arg(default_values_t = [1, 8, 32])]
        batches: Vec<u32>,
        /// Only ops and shapes that contain this
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        /// Your own CUDA source or WGSL file in place of ours, by its stem, like attention=my.cu or
        /// matmul=my.wgsl; may be given again
        ///
        /// Every case of the table that launches it is checked against the reference. Then both are
        /// timed in turn, WGSL on `--device wgpu[:NAME]`, CUDA on the GPU (`--device cuda`); without
        /// one, the interpreter of PTX runs the cases, and both are predicted for `--arch`.
        /// docs/kernels.md and docs/shaders.md say what a kernel or shader is given.
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        #[arg(long = "with", value_name = "STEM=FILE", value_parser = parse::<Own>)]
        #[arg(conflicts_with_all = ["json", "html", "peer", "compare"])]
        own: Vec<Own>,
        /// Architecture to compile and predict for without a GPU: sm_90a is an H200, sm_80 an A100
        #[cfg(any(feature = "cuda", feature = "wgpu"))]
        #[arg(long, value_name = "A", default_value = "sm_90a", requires = "own")]
        arch: String,
        #[command(flatten)]
        how: BenchHow,
    },
    /// A whole model: embedding, prefill, decoding, time to the first token
    Model {
        /// Random weights of this shape, instead of `--model`
        #[arg(long, value_name = "SHAPE")]
        like: Option<String>,
        /// Number of layers, instead of all
        #[arg(long, value_name = "N", requires = "like")]
        layers: Option<usize>,
        /// The smallest sizes only
        #[arg(long)]
        quick: bool,
        /// Only figures whose op and shape contain this, like `decode batch 1,`
        #[arg(long, value_name = "TEXT", default_value = "")]
        filter: String,
        #[command(flatten)]
        how: BenchHow,
    },
    /// Loading, from files to the first answer, with cold and with warm files
    Load {
        /// Random weights of this shape, instead of `--model`
        #[arg(long, value_name = "SHAPE")]
        like: Option<String>,
        /// Number of layers, instead of all
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
        /// Number of layers, instead of all
        #[arg(long, value_name = "N", requires = "like")]
        layers: Option<usize>,
        /// Lengths of the long side, in tokens
        #[arg(long, value_name = "N", value_delimiter = ',', value_parser = count())]
        lengths: Vec<u32>,
        /// The smallest sizes only
        #[arg(long, conflicts_with = "lengths")]
        quick: bool,
        /// Folder for the temporary store [default: the system's temporary folder]
        #[arg(long, value_name = "DIR")]
        folder: Option<PathBuf>,
        #[command(flatten)]
        how: BenchHow,
    },
    /// Show an earlier record as a table, page or comparison
    Show {
        /// A file that `--json` has written
        record: PathBuf,
        #[command(flatten)]
        output: BenchOutput,
    },
    /// Write the tables of a folder of records into its RESULTS.md
    Results {
        /// The folder of records
        #[arg(default_value = "benches/record")]
        records: PathBuf,
    },
}

#[derive(Group)]
pub(crate) struct BenchHow {
    /// Repetitions of each measurement
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repeats: u32,
    /// MiB to read before each repetition, so that no cache holds the operands
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
    /// Results of another program: its JSON, or llama-bench's; may be given again
    #[arg(long, value_name = "FILE")]
    pub(crate) peer: Vec<PathBuf>,
    /// An earlier record to compare with
    #[arg(long, value_name = "FILE")]
    pub(crate) compare: Option<PathBuf>,
    /// Exit with 1 if anything is slower than in that record by more than the spread
    #[arg(long, requires = "compare")]
    pub(crate) fail_on_regression: bool,
}

#[derive(Subcommand)]
pub(crate) enum Kernels {
    /// Compile every kernel and show the resources that each uses
    #[command(after_help = "Example:
  gritlm kernels build --arch sm_80,sm_90a --output kernels
  gritlm generate --device cuda --kernels kernels --prompt \"Once upon\"")]
    Build {
        /// Architectures: sm_80 is for A100, sm_89 for RTX 40, sm_90a for H100
        #[arg(long, value_name = "A", value_delimiter = ',', default_value = "sm_80,sm_90a")]
        arch: Vec<String>,
        /// The folder to write, later given as `--kernels`
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
    },
    /// Predict from the compiled kernels what a model's steps would take, without a GPU
    ///
    /// A model of the multiprocessor runs what the compiler made of each kernel. Every figure is a
    /// prediction, to be taken as ± 15 %. Needs NVRTC, and nvdisasm on the path (CUDA's toolkit, or the
    /// Python package nvidia-cuda-nvdisasm).
    #[cfg(feature = "cuda")]
    #[command(after_help = "Example:
  gritlm kernels report --like gritlm-7b
  gritlm kernels report --arch sm_80 --format json")]
    Report {
        /// Architecture, and with it the GPU: sm_90a is an H200, sm_80 an A100
        #[arg(long, value_name = "A", default_value = "sm_90a")]
        arch: String,
        /// Kernels for the instructions that this architecture has
        #[arg(long, value_name = "T", default_value = "sm_80", value_parser = ["sm_80"])]
        tier: String,
        /// Shape of the model: gritlm-7b, gritlm-8x7b, 1b, tiny or tiny-moe
        #[arg(long, value_name = "SHAPE", default_value = "gritlm-7b")]
        like: String,
    },
}
