//! Defines the arguments, as `--help` shows them. Names and meanings are a contract; see the
//! README.

mod bench;
mod rag;
mod serve;
mod train;
mod values;

pub(super) use bench::*;
pub(super) use rag::*;
pub(super) use serve::*;
pub(super) use train::*;
pub(super) use values::*;

use clap::{Args as Group, Parser, Subcommand};
use gritlm::{Arithmetic, Attn, ChatFormat, Embed, Options, Sampling};
use gritlm_model::ops::Mask;
use gritlm_model::quantize::Quantization;
use gritlm_model::weights::Dtype;
use std::path::PathBuf;

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

#[derive(Group)]
#[command(next_help_heading = "Model and device")]
pub(super) struct Global {
    /// A checkpoint's folder, a GGUF file, a Hugging Face id (cache first, then download), with
    /// `:FILE` for one GGUF file of it, or `demo`
    #[arg(long, global = true, value_name = "M", default_value = "demo", env = "GRITLM_MODEL")]
    pub(super) model: String,
    /// auto, cpu, cuda[:N] or wgpu[:NAME]; see `gritlm devices`. `bench` takes several, separated
    /// by commas
    #[arg(long, global = true, value_name = "D", default_value = "auto", value_parser = parse::<Devices>)]
    #[arg(env = "GRITLM_DEVICE")]
    pub(super) device: Devices,
    /// Tokens per pass; more are faster and take more memory
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().batch_tokens)]
    #[arg(env = "GRITLM_BATCH_TOKENS")]
    batch_tokens: usize,
    /// Capacity of the KV cache, in tokens
    #[arg(long, global = true, value_name = "N", default_value_t = Options::default().kv_tokens)]
    #[arg(env = "GRITLM_KV_TOKENS")]
    kv_tokens: usize,
    /// Format that the matrices get while loading: q8_0, q4_0, q4_k_m and so on, as `quantize`
    /// makes them [default: the checkpoint's own]
    #[arg(long, global = true, value_name = "TYPE", value_parser = quantization)]
    #[arg(env = "GRITLM_WEIGHTS")]
    pub(super) weights: Option<Quantization>,
    /// A low-rank adapter in PEFT's format, to merge into the weights while loading
    #[arg(long, global = true, value_name = "DIR", env = "GRITLM_ADAPTER")]
    pub(super) adapter: Option<PathBuf>,
    /// On a GPU, print the time of each op on stderr at the end
    #[arg(long, global = true)]
    pub(super) profile: bool,
    /// Numbers of matrix products: f32 (exact), f16 (wgpu: hidden states differ by 1e-3), bf16
    /// (CUDA), int8 (CPU, quantised weights: decoding only) or auto (the fastest) [default: f32; on
    /// CUDA bf16]
    #[arg(long, global = true, value_name = "C", value_parser = parse::<Arithmetic>)]
    #[arg(env = "GRITLM_COMPUTE")]
    pub(super) compute: Option<Arithmetic>,
    /// Format of the KV cache: f32, or on the CPU and with wgpu f16, bf16 or q8_0, which change
    /// hidden states by 0.0003, 0.002 and 0.009 [default: f32; on CUDA bf16]
    #[arg(long, global = true, value_name = "T", value_parser = kv_type, env = "GRITLM_KV_TYPE")]
    pub(super) kv_type: Option<Dtype>,
    /// With wgpu, first measure which tile shapes are fastest, and keep the result for later
    /// starts
    #[arg(long, global = true, env = "GRITLM_TUNE")]
    tune: bool,
    /// On CUDA, use the kernels in this folder, made by `gritlm kernels build`, instead of
    /// compiling them
    #[arg(long, global = true, value_name = "DIR", env = "GRITLM_KERNELS")]
    kernels: Option<PathBuf>,
    /// Format of conversations: `checkpoint` (the model's chat template, and GritLM's format where
    /// it has none) or `gritlm`
    #[arg(long, global = true, value_name = "F", default_value = "checkpoint")]
    #[arg(value_parser = parse::<ChatFormat>, env = "GRITLM_CHAT_TEMPLATE")]
    chat_template: ChatFormat,
    /// Format of the output on stdout
    #[arg(long, global = true, value_enum, default_value_t = Format::Text)]
    pub(super) format: Format,
}

impl Global {
    pub(super) fn options(&self) -> Options {
        Options::default()
            .device(self.device.0[0].clone())
            .chat_template(self.chat_template)
            .batch_tokens(self.batch_tokens)
            .kv_tokens(self.kv_tokens)
            .weights(self.weights)
            .adapter(self.adapter.clone())
            .progress(true)
            .profile(self.profile)
            .tune(self.tune)
            .compute(self.compute)
            .kv_type(self.kv_type)
            .kernels(self.kernels.clone())
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
    /// Show the cosine similarity of each pair of texts
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
    /// Index files into a store: their texts, embeddings and, with --cache, KV caches
    #[command(after_help = "Examples:
  gritlm index notes/ papers/*.pdf --store DIR
  gritlm index corpus.jsonl --store DIR --cache doc --kv-format int8 --kv-budget 20GB
  gritlm index corpus.jsonl --store DIR --vectors bf16 --approximate-above 100000
  gritlm index --store DIR --status

Text, Markdown, HTML, PDF, and JSONL with `text`, perhaps `id`, `title` and fields to filter by. What
has not changed is skipped, and a run that was ended goes on where it was. What is gone from PATHS is
removed, but nothing below a path that cannot be read. --chunk, --overlap, --cache, --vectors,
--kv-format and --attn are the store's for good.")]
    Index(Index),
    /// Parse documents for `index`, in a process of its own
    #[cfg(unix)]
    #[command(hide = true)]
    ParseDocuments,
    /// Order passages by relevance to a query, by asking the model yes or no
    #[command(after_help = "Example:\n  gritlm rerank \"who wrote it?\" --input passages.txt")]
    Rerank(Rerank),
    /// Answer from the documents of a store, and cite them
    #[command(after_help = "Examples:
  gritlm ask \"what captures packets?\" --store notes.store
  gritlm ask \"what captures packets?\" --store notes.store --cache doc --documents 3 --explain

What --cache reuses, the keys and values of embedding passes, is not read again. With --attn bbcc
that changes the answer, since those passes saw the text in both directions; a cache that the store
has evicted is computed again. Behind the answer: [1] path#chunk score.")]
    Ask(AskArgs),
    /// Serve embeddings and answers over HTTP, for clients of the OpenAI, TEI and Cohere APIs
    #[command(after_help = "Examples:
  gritlm serve --model GritLM/GritLM-7B --port 8080
  gritlm serve --port 0 --api-key \"$KEY\" --max-queue 64

The first line on stdout is the address. SIGTERM or Ctrl-C: what is under way is finished, within
--grace; a second one ends at once. Pages: / to try it, /docs, /metrics.")]
    Serve(Serve),
    /// Show the config, tensors, sizes and memory of a checkpoint
    Inspect(Inspect),
    /// List every backend, and whether it can be used here
    Devices,
    /// Write a checkpoint with random weights, for benchmarks and capacity tests
    #[command(
        after_help = "Example:\n  gritlm synth --like gritlm-7b --layers 2 --output /tmp/small"
    )]
    Synth(Synth),
    /// Write a checkpoint as a GGUF file with its matrices in a smaller format
    #[command(after_help = "Examples:
  gritlm quantize GritLM/GritLM-7B gritlm-7b.Q4_K_M.gguf --to q4_k_m
  gritlm quantize DIR small.gguf --to q8_0

Types: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_xs; q4_k_m and
q5_k_m have the values and the down projections of half of the layers in Q6_K. The matrix of the
logits is at least Q6_K, vectors and routers are F32. Where rows have no whole blocks of 256, a type
with blocks of 32 takes their place. llama.cpp reads the file, too.")]
    Quantize(Quantize),
    /// Write a checkpoint with an adapter merged into its weights
    #[command(
        after_help = "Example:\n  gritlm merge GritLM/GritLM-7B merged/ --adapter my-adapter/\n
The adapter is a low-rank one in PEFT's format (adapter_config.json, adapter_model.safetensors). Each
matrix keeps its format. transformers loads the folder, too."
    )]
    Merge(Merge),
    /// Train a model to embed and to generate (GRIT)
    #[command(after_help = "Examples:
  gritlm train --model DIR --data my-texts/ --output trained/
  gritlm train --model DIR --data my-texts/ --output trained/ --batch 256 --eval-data held-out/

A line of a JSONL file is a pair, {\"query\": [INSTRUCTION, TEXT], \"pos\": […], \"neg\": […]}, a
conversation, {\"text\": [QUESTION, ANSWER, …]}, a text, {\"text\": TEXT}, or a conversation about a
document, {\"document\": …, \"text\": […]}; an instruction may be left out: see docs/training.md. The
output gets metrics.jsonl, event files of TensorBoard and at the end the trained checkpoint. After
Ctrl-C, or if the machine goes down, the same command goes on where it was.")]
    Train(Train),
    /// Find hard negatives for pairs by a model's own search
    #[command(after_help = "Example:
  gritlm mine --model DIR --data pairs.jsonl --output my-texts/hard.jsonl --negatives 2")]
    Mine(Mine),
    /// Measure ops, models and loading, compared with the device's limits and other programs
    #[command(
        subcommand,
        after_help = "Examples:
  gritlm bench ops --device cpu,wgpu,cuda --like gritlm-7b --html report.html
  gritlm bench model --model DIR --json now.json --compare before.json --fail-on-regression
  gritlm bench load --model DIR
  gritlm bench rag --like gritlm-7b --layers 2 --device cpu"
    )]
    Bench(Bench),
    /// Compile the CUDA kernels, for machines without a compiler
    #[command(subcommand)]
    Kernels(Kernels),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  gritlm completions bash > ~/.local/share/bash-completion/completions/gritlm"
    )]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Group)]
pub(super) struct Demo {
    /// Queries of your own, instead of the built-in ones
    #[arg(value_parser = unmarked)]
    pub(super) queries: Vec<String>,
}

/// Where texts come from: arguments, a file, or stdin.
#[derive(Group)]
pub(super) struct Texts {
    /// Texts; if there are none, they are read from --input or stdin
    #[arg(value_name = "TEXT", value_parser = unmarked)]
    pub(super) texts: Vec<String>,
    /// A file with one text per line, or with one JSON object with `text` per line
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    pub(super) input: Option<PathBuf>,
}

#[derive(Group)]
pub(super) struct EmbedOptions {
    /// The task that the vectors are for (only for queries; documents need none)
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    instruction: String,
    /// How hidden states are pooled into one vector
    #[arg(long, value_enum, default_value_t = PoolingArg::Mean)]
    pooling: PoolingArg,
    /// Do not L2-normalise the vectors
    #[arg(long)]
    no_normalize: bool,
    /// Maximum tokens per text, instruction included; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Embed::default().max_length)]
    max_length: usize,
    /// bbcc (bidirectional embedding) or cccc (causal throughout)
    #[arg(long, value_name = "MODE", default_value = "bbcc", value_parser = parse::<Attn>)]
    attn: Attn,
    /// Attention window: none or tokens [default: none; in cccc the config's]
    #[arg(long, value_name = "W", value_parser = parse::<Window>)]
    window: Option<Window>,
    /// Keep only the first N dimensions
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,
}

impl EmbedOptions {
    pub(super) fn embed(&self) -> Embed {
        let mask = self.window.map(|Window(window)| match self.attn {
            Attn::Bbcc => Mask::Bidirectional { window },
            Attn::Cccc => Mask::Causal { window },
        });
        Embed::default()
            .instruction(self.instruction.clone())
            .pooling(self.pooling.into())
            .normalize(!self.no_normalize)
            .max_length(self.max_length)
            .attn(Some(self.attn))
            .mask(mask)
            .dimensions(self.dimensions)
            .keep_kv(false)
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

#[derive(Group)]
pub(super) struct SamplingArgs {
    /// Maximum tokens to generate
    #[arg(long, value_name = "N", default_value_t = Sampling::default().max_tokens)]
    max_tokens: usize,
    /// Sampling temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the K most likely tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: u32,
    /// Keep the smallest set of most likely tokens that reaches probability P
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Keep tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    min_p: f32,
    /// Penalty for repeated tokens; above 1 makes them less likely
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    repetition_penalty: f32,
    /// Random seed; the same seed gives the same text
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
        Sampling::default()
            .max_tokens(self.max_tokens)
            .temperature(self.temperature)
            .top_k(self.top_k)
            .top_p(self.top_p)
            .min_p(self.min_p)
            .repetition_penalty(self.repetition_penalty)
            .seed(self.seed)
            .stop(self.stop.clone())
            .logprobs(logprobs)
            .mask(self.window.map(|Window(window)| Mask::Causal { window }))
    }
}

#[derive(Group)]
pub(super) struct Generate {
    /// The user's turn; read from stdin when left out
    #[arg(long, value_name = "P", value_parser = unmarked)]
    pub(super) prompt: Option<String>,
    /// Take the prompt verbatim, without GritLM's tags
    #[arg(long)]
    pub(super) raw: bool,
    #[command(flatten)]
    pub(super) sampling: SamplingArgs,
    /// A JSON schema that the answer follows: a file, or the schema itself if it begins with {
    #[arg(long, value_name = "FILE|JSON", value_parser = unmarked)]
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
pub(super) struct Rerank {
    /// What to look for
    #[arg(value_parser = unmarked)]
    pub(super) query: String,
    #[command(flatten)]
    pub(super) texts: Texts,
    /// Maximum number of results [default: all]
    #[arg(long, value_name = "K")]
    pub(super) top_k: Option<usize>,
}

#[derive(Group)]
pub(super) struct Inspect {
    /// List every tensor
    #[arg(long)]
    pub(super) tensors: bool,
}

#[derive(Group)]
pub(super) struct Quantize {
    /// A checkpoint's folder, a GGUF file, a Hugging Face id, or `demo`
    #[arg(value_name = "MODEL", value_parser = unmarked)]
    pub(super) source: String,
    /// The file to create
    #[arg(value_name = "OUT.gguf")]
    pub(super) output: PathBuf,
    /// Type of most matrices
    #[arg(long, value_name = "TYPE", value_parser = quantization)]
    pub(super) to: Quantization,
}

#[derive(Group)]
pub(super) struct Merge {
    /// A checkpoint's folder, a GGUF file that is not quantised, a Hugging Face id, or `demo`
    #[arg(value_name = "MODEL", value_parser = unmarked)]
    pub(super) source: String,
    /// The folder to create
    #[arg(value_name = "OUT")]
    pub(super) output: PathBuf,
}

#[derive(Group)]
pub(super) struct Synth {
    /// Shape of the model: gritlm-7b, gritlm-8x7b, 1b, tiny or tiny-moe
    #[arg(long, value_name = "SHAPE")]
    pub(super) like: String,
    /// Number of layers, instead of the shape's
    #[arg(long, value_name = "N")]
    pub(super) layers: Option<usize>,
    /// Random seed; the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The folder to create
    #[arg(long, value_name = "DIR")]
    pub(super) output: PathBuf,
}
