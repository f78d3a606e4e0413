//! Arguments of the commands for documents: `search`, `index`, `ask`.

use super::SamplingArgs;
use super::values::{Above, Budget, bytes, parse, unmarked};
use clap::Args as Group;
use gritlm::{Attn, Embed};
use gritlm_model::prompt;
use gritlm_rag::{CacheKind, Filter, KvFormat, Mode, Order, VectorFormat};
use std::path::PathBuf;

#[derive(Group)]
pub(crate) struct Search {
    /// What to look for
    #[arg(value_parser = unmarked)]
    pub(crate) query: String,
    /// A file (its lines are searched) or a folder (its files are)
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pub(crate) path: Option<PathBuf>,
    /// Maximum number of results
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) top_k: usize,
    /// The task that the query is for
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Given a query, find the text that answers it."
    )]
    pub(crate) instruction: String,
    /// Maximum tokens per text; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Embed::default().max_length)]
    pub(crate) max_length: usize,
    /// Search this store instead of PATH
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Only documents whose field KEY is VALUE; if given again, all must match
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>, conflicts_with = "path")]
    pub(crate) filter: Vec<Filter>,
    /// Only this file, or the files in this folder
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    pub(crate) below: Option<PathBuf>,
    /// Rerank four times as many results: ask the model whether each is relevant
    #[arg(long, conflicts_with = "path")]
    pub(crate) rerank: bool,
    /// Search all chunks, even if the store has a graph for approximate search
    #[arg(long, conflicts_with = "path")]
    pub(crate) exact: bool,
}

#[derive(Group)]
pub(crate) struct Index {
    /// Files, and folders with everything in them
    #[arg(value_name = "PATH", required_unless_present_any = ["status", "verify", "compact"])]
    pub(crate) paths: Vec<PathBuf>,
    /// The store's folder
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// What to keep besides text and embedding: none, or doc for each chunk's KV cache, which
    /// saves reading the document again for an answer [default: none]
    #[arg(long, value_name = "KIND", value_parser = parse::<CacheKind>)]
    pub(crate) cache: Option<CacheKind>,
    /// Tokens per chunk as it is embedded, including tag and title [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) chunk: Option<usize>,
    /// Tokens that neighbouring chunks share [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) overlap: Option<usize>,
    /// Format of stored embeddings: f32, bf16 or int8 [default: f32]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<VectorFormat>)]
    pub(crate) vectors: Option<VectorFormat>,
    /// Format of stored KV caches, whatever the format of the pages (`--kv-type`) is: f32, bf16 or
    /// int8, with one scale for each head of a token [default: bf16]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<KvFormat>)]
    pub(crate) kv_format: Option<KvFormat>,
    /// Maximum bytes of KV caches, as 20GB or 4GiB, or none for no limit; beyond it, the least
    /// recently used are evicted
    #[arg(long, value_name = "BYTES", value_parser = parse::<Budget>)]
    pub(crate) kv_budget: Option<Budget>,
    /// Number of chunks above which search is approximate, with a graph, or none for exact
    /// search; searches with filters are always exact [default: none]
    #[arg(long, value_name = "N", value_parser = parse::<Above>)]
    pub(crate) approximate_above: Option<Above>,
    /// bbcc (bidirectional embedding) or cccc (causal throughout) [default: bbcc]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(crate) attn: Option<Attn>,
    /// Also follow links to files outside the given paths
    #[arg(long)]
    pub(crate) follow: bool,
    /// Maximum CPU time to parse an HTML or PDF file, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) parse_seconds: u64,
    /// Maximum memory to parse such a file, including the program's own
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    pub(crate) parse_memory: u64,
    /// Maximum text extracted from such a file
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub(crate) parse_text: u64,
    /// Show what is in the store
    #[arg(long, conflicts_with_all = ["paths", "verify", "compact"])]
    pub(crate) status: bool,
    /// Read the whole store and compare it with its checksums
    #[arg(long, conflicts_with_all = ["paths", "compact"])]
    pub(crate) verify: bool,
    /// Free the space of replaced, removed and evicted entries
    #[arg(long, conflicts_with = "paths")]
    pub(crate) compact: bool,
}

#[derive(Group)]
pub(crate) struct AskArgs {
    /// The question
    #[arg(value_parser = unmarked)]
    pub(crate) query: String,
    /// The store's folder, made by `gritlm index`
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// Whose KV caches to reuse: none, query, doc, query-doc or doc-query
    #[arg(long, value_name = "MODE", default_value = "none", value_parser = parse::<Mode>)]
    pub(crate) cache: Mode,
    /// With `--cache none`: query-doc or doc-query [default: doc-query]
    #[arg(long, value_name = "ORDER", value_parser = parse::<Order>)]
    pub(crate) order: Option<Order>,
    /// Documents to answer from, the best first; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) documents: usize,
    /// Only documents whose field KEY is VALUE; if given again, all must match
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>)]
    pub(crate) filter: Vec<Filter>,
    /// Only this file, or the files in this folder
    #[arg(long, value_name = "PATH")]
    pub(crate) below: Option<PathBuf>,
    /// Rerank four times as many documents: ask the model whether each is relevant, and take the
    /// most relevant
    #[arg(long)]
    pub(crate) rerank: bool,
    /// Search all chunks, even if the store has a graph for approximate search
    #[arg(long)]
    pub(crate) exact: bool,
    /// Join caches as the paper's code does, with overlapping positions
    #[arg(long)]
    pub(crate) as_published: bool,
    /// The task that the question's vector is for
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) instruction: String,
    /// The answer's first words, which the model continues [without TEXT: "The answer is"]
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = prompt::ANSWER_IS)]
    pub(crate) answer_prefix: Option<String>,
    /// bbcc or cccc, as the store was made [default: the store's]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(crate) attn: Option<Attn>,
    /// Print on stderr what it took: times, tokens computed, tokens reused
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}
