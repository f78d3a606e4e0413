//! Arguments of what deals with documents: `search`, `index`, `ask`.

use super::SamplingArgs;
use super::values::{Above, Budget, bytes, parse, unmarked};
use crate::rag::{CacheKind, Filter, KvFormat, Mode, Order, VectorFormat};
use crate::{Attn, Embed};
use clap::Args as Group;
use gritlm_model::prompt;
use std::path::PathBuf;

#[derive(Group)]
pub(crate) struct Search {
    /// What to look for
    #[arg(value_parser = unmarked)]
    pub(crate) query: String,
    /// A file (its lines are searched) or a folder (its files are)
    #[arg(required_unless_present = "store", conflicts_with = "store")]
    pub(crate) path: Option<PathBuf>,
    /// Results, at most
    #[arg(long, value_name = "K", default_value_t = 5)]
    pub(crate) top_k: usize,
    /// What the query is for
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "Given a query, find the text that answers it."
    )]
    pub(crate) instruction: String,
    /// Tokens of a text; the rest is cut off
    #[arg(long, value_name = "N", default_value_t = Embed::default().max_length)]
    pub(crate) max_length: usize,
    /// Search this store
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
    /// Only documents whose field KEY is VALUE; several, and all must fit
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>, conflicts_with = "path")]
    pub(crate) filter: Vec<Filter>,
    /// Only this file, or those in this folder
    #[arg(long, value_name = "PATH", conflicts_with = "path")]
    pub(crate) below: Option<PathBuf>,
    /// Ask the model of the best, four times as many, whether they are relevant
    #[arg(long, conflicts_with = "path")]
    pub(crate) rerank: bool,
    /// Look at all chunks, also where the store has a graph for approximate search
    #[arg(long, conflicts_with = "path")]
    pub(crate) exact: bool,
}

#[derive(Group)]
pub(crate) struct Index {
    /// Files, and folders with all that is in them
    #[arg(value_name = "PATH", required_unless_present_any = ["status", "verify", "compact"])]
    pub(crate) paths: Vec<PathBuf>,
    /// The store's folder
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// What to keep beside text and embedding: none, or doc: each chunk's KV cache, to answer from
    /// without reading the document again [default: none]
    #[arg(long, value_name = "KIND", value_parser = parse::<CacheKind>)]
    pub(crate) cache: Option<CacheKind>,
    /// Tokens of a chunk as it is embedded, tag and title counted [default: 512]
    #[arg(long, value_name = "N")]
    pub(crate) chunk: Option<usize>,
    /// Tokens that neighbouring chunks share [default: 0]
    #[arg(long, value_name = "N")]
    pub(crate) overlap: Option<usize>,
    /// How embeddings are kept: f32, bf16 or int8 [default: f32]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<VectorFormat>)]
    pub(crate) vectors: Option<VectorFormat>,
    /// How KV caches are kept: f32, bf16 or int8 [default: bf16]
    #[arg(long, value_name = "FORMAT", value_parser = parse::<KvFormat>)]
    pub(crate) kv_format: Option<KvFormat>,
    /// Bytes of KV caches to keep, as 20GB or 4GiB, or none for all; beyond, the least used go
    #[arg(long, value_name = "BYTES", value_parser = parse::<Budget>)]
    pub(crate) kv_budget: Option<Budget>,
    /// Chunks above which search is approximate, by a graph, or none for exact search; filters are
    /// always exact [default: none]
    #[arg(long, value_name = "N", value_parser = parse::<Above>)]
    pub(crate) approximate_above: Option<Above>,
    /// bbcc (bidirectional embedding) or cccc (causal throughout) [default: bbcc]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(crate) attn: Option<Attn>,
    /// Read files, too, that links lead to outside the given paths
    #[arg(long)]
    pub(crate) follow: bool,
    /// CPU time that an HTML or PDF file may take to parse, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) parse_seconds: u64,
    /// Memory that it may take to parse, the program's own included
    #[arg(long, value_name = "BYTES", default_value = "1GiB", value_parser = bytes)]
    pub(crate) parse_memory: u64,
    /// Text that may come of it
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub(crate) parse_text: u64,
    /// Say what is in the store
    #[arg(long, conflicts_with_all = ["paths", "verify", "compact"])]
    pub(crate) status: bool,
    /// Read all of the store and compare it with its checksums
    #[arg(long, conflicts_with_all = ["paths", "compact"])]
    pub(crate) verify: bool,
    /// Free the room of what was replaced, removed or evicted
    #[arg(long, conflicts_with = "paths")]
    pub(crate) compact: bool,
}

#[derive(Group)]
pub(crate) struct AskArgs {
    /// The question
    #[arg(value_parser = unmarked)]
    pub(crate) query: String,
    /// The folder of `gritlm index`
    #[arg(long, value_name = "DIR")]
    pub(crate) store: PathBuf,
    /// What is reused instead of read again: none, query, doc, query-doc or doc-query
    #[arg(long, value_name = "MODE", default_value = "none", value_parser = parse::<Mode>)]
    pub(crate) cache: Mode,
    /// With `--cache none`: query-doc or doc-query [default: doc-query]
    #[arg(long, value_name = "ORDER", value_parser = parse::<Order>)]
    pub(crate) order: Option<Order>,
    /// Documents to answer from, the best first; 0 for none
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) documents: usize,
    /// Only documents whose field KEY is VALUE; several, and all must fit
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse::<Filter>)]
    pub(crate) filter: Vec<Filter>,
    /// Only this file, or those in this folder
    #[arg(long, value_name = "PATH")]
    pub(crate) below: Option<PathBuf>,
    /// Ask the model of each of the best four times as many whether it is relevant, and take the
    /// most relevant
    #[arg(long)]
    pub(crate) rerank: bool,
    /// Look at all chunks, also where the store has a graph for approximate search
    #[arg(long)]
    pub(crate) exact: bool,
    /// Join caches as the paper's code does, with positions that overlap
    #[arg(long)]
    pub(crate) as_published: bool,
    /// What the question's vector is for
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) instruction: String,
    /// The answer's first words, which the model goes on from [without TEXT: "The answer is"]
    #[arg(long, value_name = "TEXT", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = prompt::ANSWER_IS)]
    pub(crate) answer_prefix: Option<String>,
    /// bbcc or cccc, as the store was made [default: the store's]
    #[arg(long, value_name = "MODE", value_parser = parse::<Attn>)]
    pub(crate) attn: Option<Attn>,
    /// Say on stderr what it took: times, tokens computed, tokens reused
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}
