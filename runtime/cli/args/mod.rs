//! Arguments, as `--help` shows them. Names and meanings are a contract; see the README.

use crate::rag::{CacheKind, Filter, KvFormat, Mode, Order, VectorFormat};
use crate::schedule::Limits;
use crate::serve::Settings;
use crate::{Attn, Device, Embed, Error, Options, Pooling, Result, Sampling};
use clap::{Args as Group, Parser, Subcommand, ValueEnum};
use gritlm_model::ops::Mask;
use gritlm_model::prompt;
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
  gritlm search \"holiday plans\" --store DIR --filter year=2024 --rerank

Embeddings are kept beside PATH and made again only for what has changed; or, with --store, in a
store that `gritlm index` has made.")]
    Search(Search),
    /// Keep texts, embeddings and, if asked to, KV caches of files in a store
    #[command(after_help = "Examples:
  gritlm index notes/ papers/*.pdf --store DIR
  gritlm index corpus.jsonl --store DIR --cache doc --kv-format int8 --kv-budget 20GB
  gritlm index corpus.jsonl --store DIR --vectors bf16 --approximate-above 100000
  gritlm index --store DIR --status

Text, Markdown, HTML, PDF, and JSONL with `text`, perhaps `id`, `title` and fields to filter by. What
has not changed is skipped, what is gone from PATHS is removed, and a run that was ended goes on where
it was. --chunk, --overlap, --cache, --vectors, --kv-format and --attn are the store's for good.")]
    Index(Index),
    /// Order passages by relevance to a query, by asking the model yes or no
    #[command(after_help = "Example:\n  gritlm rerank \"who wrote it?\" --input passages.txt")]
    Rerank(Rerank),
    /// Answer from the documents of a store, and say which they were
    #[command(after_help = "Examples:
  gritlm ask \"what captures packets?\" --store notes.store
  gritlm ask \"what captures packets?\" --store notes.store --cache doc --documents 3 --explain

What --cache reuses, the keys and values of embedding passes, is not read again. With --attn bbcc
that changes the answer, since those passes saw the text in both directions; a cache that the store
has evicted is computed again. Behind the answer: [1] path#chunk score.")]
    Ask(AskArgs),
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
  gritlm bench load --model DIR
  gritlm bench rag --like gritlm-7b --layers 2 --device cpu"
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
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pub(super) path: Option<PathBuf>,
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
    /// Search this store
    #[arg(long, value_name = "DIR")]
    pub(super) store: Option<PathBuf>,
    /// Only documents whose field KEY is VALUE; several, and all must fit
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>, requires = "store")]
    pub(super) filter: Vec<Filter>,
    /// Only this file, or those in this folder
    #[arg(long, value_name = "PATH", requires = "store")]
    pub(super) below: Option<PathBuf>,
    /// Ask the model of the best, four times as many, whether they are relevant
    #[arg(long, requires = "store")]
    pub(super) rerank: bool,
    /// Look at all chunks, also where the store has a graph for approximate search
    #[arg(long, requires = "store")]
    pub(super) exact: bool,
}

#[derive(Group)]
pub(super) struct Index {
    /// Files, and folders with all that is in them
    #[arg(value_name = "PATH", required_unless_present_any = ["status", "verify", "compact"])]
    pub(super) paths: Vec<PathBuf>,
    /// The store's folder
    #[arg(long, value_name = "DIR")]
    pub(super) store: PathBuf,
    /// What to keep beside text and embedding: none, or doc: each chunk's KV cache, to answer from
    /// without reading the document again [default: none]
    #[arg(long, value_name = "KIND", value_parser = parse::<CacheKind>)]
    pub(super) cache: Option<CacheKind>,
    /// Tokens of a chunk as it is embedded, tag and title counted [default: 512]
    #[arg(long, value_name = "N")]
    pub(super) chunk: Option<usize>,
    /// Tokens that neighbouring chunks share [default: 0]
    #[arg(long, value_name = "N")]
    pub(super) overlap: Option<usize>,
    /// How embeddings are kept: f32, bf16 or int8 [default: f32]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<VectorFormat>)]
    pub(super) vectors: Option<VectorFormat>,
    /// How KV caches are kept: f32, bf16 or int8 [default: bf16]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<KvFormat>)]
    pub(super) kv_format: Option<KvFormat>,
    /// Bytes of KV caches to keep, as 20GB or 4GiB, or none for all; beyond, the least used go
    #[arg(long, value_name = "BYTES", value_parser = parse::<Budget>)]
    pub(super) kv_budget: Option<Budget>,
    /// Chunks above which search is approximate, by a graph, or none for exact search; filters are
    /// always exact [default: none]
    #[arg(long, value_name = "N", value_parser = parse::<Above>)]
    pub(super) approximate_above: Option<Above>,
    /// bbcc (bidirectional embedding) or cccc (causal throughout) [default: bbcc]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(super) attn: Option<Attn>,
    /// Say what is in the store
    #[arg(long, conflicts_with_all = ["paths", "verify", "compact"])]
    pub(super) status: bool,
    /// Read all of the store and compare it with its checksums
    #[arg(long, conflicts_with_all = ["paths", "compact"])]
    pub(super) verify: bool,
    /// Free the room of what was replaced, removed or evicted
    #[arg(long, conflicts_with = "paths")]
    pub(super) compact: bool,
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
    /// A folder of `gritlm index`, to answer from its documents and to add to them
    #[arg(long, value_name = "DIR", env = "GRITLM_STORE")]
    pub(super) store: Option<PathBuf>,
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
pub(super) struct AskArgs {
    /// The question
    pub(super) query: String,
    /// The folder of `gritlm index`
    #[arg(long, value_name = "DIR")]
    pub(super) store: PathBuf,
    /// What is reused instead of read again: none, query, doc, query-doc or doc-query
    #[arg(long, value_name = "MODE", default_value = "none", value_parser = parse::<Mode>)]
    pub(super) cache: Mode,
    /// With `--cache none`: query-doc or doc-query [default: doc-query]
    #[arg(long, value_name = "ORDER", value_parser = parse::<Order>)]
    pub(super) order: Option<Order>,
    /// Documents to answer from, the best first; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) documents: usize,
    /// Only documents whose field KEY is VALUE; several, and all must fit
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>)]
    pub(super) filter: Vec<Filter>,
    /// Only this file, or those in this folder
    #[arg(long, value_name = "PATH")]
    pub(super) below: Option<PathBuf>,
    /// Ask the model of each of the best four times as many whether it is relevant, and take the
    /// most relevant
    #[arg(long)]
    pub(super) rerank: bool,
    /// Look at all chunks, also where the store has a graph for approximate search
    #[arg(long)]
    pub(super) exact: bool,
    /// Join caches as the paper's code does, with positions that overlap
    #[arg(long)]
    pub(super) as_published: bool,
    /// What the question's vector is for
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(super) instruction: String,
    /// The answer's first words, which the model goes on from [without TEXT: "The answer is"]
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = prompt::ANSWER_IS)]
    pub(super) answer_prefix: Option<String>,
    /// bbcc or cccc, as the store was made [default: the store's]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(super) attn: Option<Attn>,
    /// Say on stderr what it took: times, tokens computed, tokens reused
    #[arg(long)]
    pub(super) explain: bool,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
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

/// `none`, or bytes, perhaps with a unit: 20GB, 512MiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget(pub(super) Option<u64>);

impl FromStr for Budget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "none" {
            return Ok(Self(None));
        }
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => Some(1.0),
            "kb" => Some(1e3),
            "mb" => Some(1e6),
            "gb" => Some(1e9),
            "tb" => Some(1e12),
            "kib" => Some(1024.0),
            "mib" => Some(1024_f64.powi(2)),
            "gib" => Some(1024_f64.powi(3)),
            "tib" => Some(1024_f64.powi(4)),
            _ => None,
        };
        match (number.parse::<f64>(), unit) {
            (Ok(number), Some(unit)) => Ok(Self(Some((number * unit) as u64))),
            _ => Err(Error::Option {
                option: "--kv-budget",
                expected: "none or bytes, as 20GB or 4GiB".into(),
                found: text.into(),
            }),
        }
    }
}

/// `none`, or a number of chunks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Above(pub(super) Option<u64>);

impl FromStr for Above {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |_| Error::Option {
            option: "--approximate-above",
            expected: "none or a number of chunks".into(),
            found: text.into(),
        };
        match text {
            "none" => Ok(Self(None)),
            number => number.parse().map(Some).map(Self).map_err(wrong),
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
