//! Arguments, as `--help` shows them. Names and meanings are a contract; see the README.

use crate::schedule::Limits;
use crate::serve::Settings;
use crate::{Attn, Device, Embed, Error, Options, Pooling, Result, Sampling};
use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use gritlm_model::ops::Mask;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// Serves GritLM from one copy of the weights: embeddings and generation.
#[derive(Parser)]
#[command(name = "gritlm", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) global: Global,
}

const EXAMPLES: &str = "Examples:
  gritlm demo
  gritlm embed --model GritLM/GritLM-7B --format json \"a text\"
  gritlm generate --model DIR --prompt \"What is the capital of France?\"
  gritlm search \"packet capture\" notes/

Threads: RAYON_NUM_THREADS. Downloads: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE.";

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

#[derive(Group)]
#[command(next_help_heading = "Model and device")]
pub(super) struct Global {
    /// A checkpoint's folder, a Hugging Face id (cache first, then download), or `demo`
    #[arg(long, global = true, value_name = "M", default_value = "demo", env = "GRITLM_MODEL")]
    pub(super) model: String,
    /// auto, cpu, cuda[:N] or wgpu[:NAME]; see `gritlm devices`. For `bench` several, with commas
    #[arg(long, global = true, value_name = "D", default_value = "auto", value_parser = parse::<Devices>)]
    #[arg(env = "GRITLM_DEVICE")]
    pub(super) device: Devices,
    /// Tokens of one pass; more are faster and take more memory
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().batch_tokens)]
    #[arg(env = "GRITLM_BATCH_TOKENS")]
    batch_tokens: usize,
    /// Tokens that the KV pages hold
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().kv_tokens)]
    #[arg(env = "GRITLM_KV_TOKENS")]
    kv_tokens: usize,
    /// On a GPU, say on stderr at the end where its time went, op by op
    #[arg(long, global = true)]
    pub(super) profile: bool,
    /// On a GPU, multiply in half precision: faster where the adapter has it, about 1e-3 off
    #[arg(long, global = true, env = "GRITLM_F16")]
    f16: bool,
    /// On a GPU, first measure which shapes of tiles are fastest, and keep them for later starts
    #[arg(long, global = true, env = "GRITLM_TUNE")]
    tune: bool,
    /// On CUDA, kernels that `gritlm kernels build` has made, instead of compiling them here
    #[arg(long, global = true, value_name = "DIR", env = "GRITLM_KERNELS")]
    kernels: Option<PathBuf>,
    /// What stdout gets
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
}

impl Global {
    pub(super) fn options(&self) -> Options {
        Options {
            device: self.device.0[0].clone(),
            batch_tokens: self.batch_tokens,
            kv_tokens: self.kv_tokens,
            progress: true,
            profile: self.profile,
            tune: self.tune,
            f16: self.f16,
            kernels: self.kernels.clone(),
            ..Options::default()
        }
    }
}

#[derive(Subcommand)]
pub(super) enum Command {
    /// See what GritLM does, on an embedded model: embed, find by meaning, generate
    #[command(after_help = "Examples:\n  gritlm demo\n  gritlm demo \"capture network packets\"")]
    Demo(Demo),
    /// Turn texts into vectors
    #[command(after_help = "Examples:
  gritlm embed \"a text\" \"another\"
  gritlm embed --input texts.jsonl --output vectors.npy
  gritlm embed --instruction \"Given a question, retrieve passages\" --format json < questions.txt")]
    Embed(EmbedArgs),
    /// Answer a prompt
    #[command(after_help = "Examples:
  gritlm generate --prompt \"What is the capital of France?\"
  gritlm generate --prompt \"Once upon\" --raw --temperature 0.8 --seed 1 --max-tokens 50
  gritlm generate --prompt \"List three\" --stop \"4.\" --logprobs 2 --format json
  gritlm generate --prompt \"Name a city\" --json-schema city.json
  gritlm generate --prompt \"Is it true?\" --json-schema '{\"enum\": [true, false, null]}'")]
    Generate(Generate),
    /// Talk with the model; the history stays in the KV cache
    Chat(SamplingArgs),
    /// Cosine similarities of texts, each with each
    #[command(after_help = "Example:\n  gritlm similarity \"a cat\" \"a kitten\" \"a train\"")]
    Similarity(Similarity),
    /// Find lines of a file, or files of a folder, by meaning
    #[command(after_help = "Examples:
  gritlm search \"out of memory\" server.log --top-k 10
  gritlm search \"holiday plans\" notes/

Embeddings are kept beside PATH and made again only for what has changed.")]
    Search(Search),
    /// Order passages by relevance to a query, by asking the model yes or no
    #[command(after_help = "Example:\n  gritlm rerank \"who wrote it?\" --input passages.txt")]
    Rerank(Rerank),
    /// Serve embeddings and answers over HTTP, to OpenAI's, TEI's and Cohere's clients
    #[command(after_help = "Examples:
  gritlm serve --model GritLM/GritLM-7B --port 8080
  gritlm serve --port 0 --api-key \"$KEY\" --max-queue 64

The first line on stdout is the address. SIGTERM or Ctrl-C: what is under way is finished, within
--grace; a second one ends at once. Pages: / to try it, /docs, /metrics.")]
    Serve(Serve),
    /// Config, tensors, sizes and memory of a checkpoint
    Inspect(Inspect),
    /// Every backend, and whether it can be used here
    Devices,
    /// Write a checkpoint of random weights, for benchmarks and capacity tests
    #[command(
        after_help = "Example:\n  gritlm synth --like gritlm-7b --layers 2 --output /tmp/small"
    )]
    Synth(Synth),
    /// Measure ops, models and loading beside the device's limits and other programs
    #[command(
        subcommand,
        after_help = "Examples:
  gritlm bench ops --device cpu,wgpu,cuda --like gritlm-7b --html report.html
  gritlm bench model --model DIR --json now.json --compare before.json --fail-on-regression
  gritlm bench load --model DIR"
    )]
    Bench(Bench),
    /// Compile the CUDA kernels, for machines that have no compiler
    #[command(subcommand)]
    Kernels(Kernels),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  gritlm completions bash > ~/.local/share/bash-completion/completions/gritlm"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(Group)]
pub(super) struct Demo {
    /// Queries of your own, instead of the built-in ones
    pub(super) queries: Vec<String>,
}

/// Where texts come from: arguments, a file, or stdin.
#[derive(Group)]
pub(super) struct Texts {
    /// Texts; without any, they are read from --input or stdin
    #[arg(value_name = "TEXT")]
    pub(super) texts: Vec<String>,
    /// A file with one text a line, or JSON objects with `text`, one a line
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    pub(super) input: Option<PathBuf>,
}

#[derive(Group)]
pub(super) struct EmbedOptions {
    /// What the vectors are for (for queries; documents want none)
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    instruction: String,
    /// How hidden states become one vector
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean)]
    pooling: PoolingArg,
    /// Leave vectors at the length they come out with
    #[arg(long)]
    no_normalize: bool,
    /// Tokens of a text, instruction included; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Embed::default().max_length)]
    max_length: usize,
    /// bbcc (bidirectional embedding) or cccc (causal throughout)
    #[arg(long, value_name = "MODE", default_value = "bbcc", value_parser = parse::<Attn>)]
    attn: Attn,
    /// Attention window: none or tokens [default: none; in cccc the config's]
    #[arg(long, value_name = "W", value_parser = parse::<Window>)]
    window: Option<Window>,
    /// Keep only so many leading numbers
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
}

impl EmbedOptions {
    pub(super) fn embed(&self) -> Embed {
        let mask = self.window.map(|Window(window)| match self.attn {
            Attn::Bbcc => Mask::Bidirectional { window },
            Attn::Cccc => Mask::Causal { window },
        });
        Embed {
            instruction: self.instruction.clone(),
            pooling: self.pooling.into(),
            normalize: !self.no_normalize,
            max_length: self.max_length,
            attn: Some(self.attn),
            mask,
            dimensions: self.dimensions,
        }
    }
}

#[derive(Group)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    pub(super) texts: Texts,
    #[command(flatten)]
    pub(super) how: EmbedOptions,
    /// Write to FILE.npy or FILE.safetensors instead of stdout
    #[arg(long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PoolingArg {
    Mean,
    WeightedMean,
    Cls,
    LastToken,
}

impl From<PoolingArg> for Pooling {
    fn from(arg: PoolingArg) -> Self {
        match arg {
            PoolingArg::Mean => Self::Mean,
            PoolingArg::WeightedMean => Self::WeightedMean,
            PoolingArg::Cls => Self::Cls,
            PoolingArg::LastToken => Self::LastToken,
        }
    }
}

#[derive(Group)]
pub(super) struct SamplingArgs {
    /// Tokens to draw, at most
    #[arg(long, value_name = "N", default_value_t = Sampling::default().max_tokens)]
    max_tokens: usize,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep the fewest most likely tokens that reach probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Above 1 makes repeated tokens less likely
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Same seed, same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// End the answer before this text; may be given again
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Attention window: none or tokens [default: the config's]
    #[arg(long, value_name = "W", value_parser = parse::<Window>)]
    window: Option<Window>,
}

impl SamplingArgs {
    pub(super) fn sampling(&self, logprobs: u32) -> Sampling {
        Sampling {
            max_tokens: self.max_tokens,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            stop: self.stop.clone(),
            logprobs,
            mask: self.window.map(|Window(window)| Mask::Causal { window }),
            ..Sampling::default()
        }
    }
}

#[derive(Group)]
pub(super) struct Generate {
    /// The user's turn; read from stdin when left out
    #[arg(long, value_name = "P")]
    pub(super) prompt: Option<String>,
    /// Take the prompt verbatim, without GritLM's tags
    #[arg(long)]
    pub(super) raw: bool,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    /// A JSON schema that the answer follows: a file, or the schema itself if it begins with {
    #[arg(long, value_name = "FILE|JSON")]
    pub(super) json_schema: Option<String>,
    /// Report the N most likely tokens of each step (with --format json)
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) logprobs: u32,
}

#[derive(Group)]
pub(super) struct Similarity {
    #[command(flatten)]
    pub(super) texts: Texts,
    #[command(flatten)]
    pub(super) how: EmbedOptions,
}

#[derive(Group)]
pub(super) struct Search {
    /// What to look for
    pub(super) query: String,
    /// A file (its lines are searched) or a folder (its files are)
    pub(super) path: PathBuf,
    /// Results, at most
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(super) top_k: usize,
    /// What the query is for
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Given a query, find the text that answers it."
    )]
    pub(super) instruction: String,
    /// Tokens of a text; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Embed::default().max_length)]
    pub(super) max_length: usize,
}

#[derive(Group)]
pub(super) struct Rerank {
    /// What to look for
    pub(super) query: String,
    #[command(flatten)]
    pub(super) texts: Texts,
    /// Results, at most [default: all]
    #[arg(long, value_name = "K")]
    pub(super) top_k: Option<usize>,
}

#[derive(Group)]
#[command(next_help_heading = "Serving")]
pub(super) struct Serve {
    /// Address to listen on; 0.0.0.0 for all of this machine's
    #[arg(long, value_name = "H", default_value = "127.0.0.1", env = "GRITLM_HOST")]
    pub(super) host: String,
    /// Port to listen on; 0 for a free one
    #[arg(long, value_name = "P", default_value_t = 8080, env = "GRITLM_PORT")]
    pub(super) port: u16,
    /// The model's name in requests and answers [default: --model, of a folder its last part]
    #[arg(long, value_name = "NAME", env = "GRITLM_MODEL_NAME")]
    pub(super) model_name: Option<String>,
    /// A key that requests must bear; several with commas, or given again
    #[arg(long, value_name = "K", env = "GRITLM_API_KEY", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    pub(super) api_key: Vec<String>,
    /// An origin whose pages may call, or *; several with commas, or given again
    #[arg(long, value_name = "URL", env = "GRITLM_CORS_ORIGIN", value_delimiter = ',')]
    pub(super) cors_origin: Vec<String>,
    /// Requests that may wait; more are refused with 429
    #[arg(long, value_name = "N", env = "GRITLM_MAX_QUEUE")]
    #[arg(default_value_t = Limits::default().queue_requests)]
    pub(super) max_queue: usize,
    /// Tokens that may wait, in all requests together
    #[arg(long, value_name = "N", env = "GRITLM_MAX_QUEUE_TOKENS")]
    #[arg(default_value_t = Limits::default().queue_tokens)]
    pub(super) max_queue_tokens: usize,
    /// Tokens of a step, of all requests together [default: --batch-tokens]
    #[arg(long, value_name = "N", env = "GRITLM_MAX_BATCH_TOKENS")]
    pub(super) max_batch_tokens: Option<usize>,
    /// Inputs of one request; more are refused with 413
    #[arg(long, value_name = "N", env = "GRITLM_MAX_INPUTS")]
    #[arg(default_value_t = Settings::default().max_inputs)]
    pub(super) max_inputs: usize,
    /// Bytes of a request's body; more are refused with 413
    #[arg(long, value_name = "N", env = "GRITLM_MAX_BODY_BYTES")]
    #[arg(default_value_t = Settings::default().max_body_bytes)]
    pub(super) max_body_bytes: usize,
    /// Connections at once; more wait
    #[arg(long, value_name = "N", env = "GRITLM_MAX_CONNECTIONS")]
    #[arg(default_value_t = Settings::default().connections)]
    pub(super) max_connections: usize,
    /// Seconds that a client may take to send a request's head, and then its body
    #[arg(long, value_name = "S", env = "GRITLM_PATIENCE", default_value = "30")]
    #[arg(value_parser = seconds)]
    pub(super) patience: Duration,
    /// Seconds that requests under way have after SIGTERM
    #[arg(long, value_name = "S", env = "GRITLM_GRACE", default_value = "30")]
    #[arg(value_parser = seconds)]
    pub(super) grace: Duration,
}

#[derive(Group)]
pub(super) struct Inspect {
    /// List every tensor
    #[arg(long)]
    pub(super) tensors: bool,
}

#[derive(Group)]
pub(super) struct Synth {
    /// Whose shape: gritlm-7b, gritlm-8x7b, 1b, tiny or tiny-moe
    #[arg(long, value_name = "SHAPE")]
    pub(super) like: String,
    /// Layers, instead of the shape's
    #[arg(long, value_name = "N")]
    pub(super) layers: Option<usize>,
    /// Same seed, same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    pub(super) output: PathBuf,
}

#[derive(Subcommand)]
pub(super) enum Bench {
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
pub(super) struct BenchHow {
    /// Times of each figure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) repeats: u32,
    /// MiB that are copied before each time, so that no cache holds what is read
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub(super) displace: u64,
    #[command(flatten)]
    pub(super) output: BenchOutput,
}

#[derive(Group)]
pub(super) struct BenchOutput {
    /// Write the record to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// Write a page with plots to this file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// What another program needs for the same: its JSON, or llama-bench's; several allowed
    #[arg(long, value_name = "FILE")]
    pub(super) peer: Vec<PathBuf>,
    /// A record of before, to compare with
    #[arg(long, value_name = "FILE")]
    pub(super) compare: Option<PathBuf>,
    /// Exit with 1 if anything is slower than there by more than the spread
    #[arg(long, requires = "compare")]
    pub(super) fail_on_regression: bool,
}

#[derive(Subcommand)]
pub(super) enum Kernels {
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

/// One device or several, separated by commas; a comma may also be in an adapter's name.
#[derive(Clone, Debug)]
pub(super) struct Devices(pub(super) Vec<Device>);

impl FromStr for Devices {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut parts: Vec<String> = Vec::new();
        for part in text.split(',') {
            let kind = part.split(':').next().unwrap_or_default();
            match parts.last_mut() {
                Some(name) if !["auto", "cpu", "cuda", "wgpu"].contains(&kind) => {
                    *name += ",";
                    *name += part;
                }
                _ => parts.push(part.into()),
            }
        }
        Ok(Self(parts.iter().map(|part| part.parse()).collect::<Result<_>>()?))
    }
}

/// `none` or a number of tokens.
#[derive(Clone, Copy)]
struct Window(Option<u32>);

impl FromStr for Window {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("none", _) => Ok(Self(None)),
            (_, Ok(tokens)) if tokens > 0 => Ok(Self(Some(tokens))),
            _ => Err(Error::Option {
                option: "--window",
                expected: "none or a positive number".into(),
                found: text.into(),
            }),
        }
    }
}

/// Rows, tokens or sequences: with any of them a buffer's values can be counted in 32 bits.
fn count() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 17)
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    seconds.ok_or_else(|| format!("expected seconds, 0 or more, found {text:?}"))
}

/// clap wants the error as text.
fn parse<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: Error| e.to_string())
}
