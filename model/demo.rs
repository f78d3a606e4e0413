//! The embedded demo model: 3.8 million parameters of GritLM's shape, and a small real corpus.
//!
//! It is **not** GritLM-7B; `demo/README.md` says what it was trained on and how well it does.

/// `config.json`.
pub const CONFIG: &[u8] = include_bytes!("demo/config.json");

/// `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("demo/tokenizer.json");

/// `corpus.jsonl`: descriptions of 400 software packages, one JSON object (`id`, `text`) a line.
pub const CORPUS: &str = include_str!("demo/corpus.jsonl");

/// Bytes aligned for vector loads; `include_bytes!` alone guarantees no alignment.
#[repr(C, align(64))]
struct Aligned<B: ?Sized>(B);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("demo/model.safetensors"));

/// `model.safetensors`, used in place.
pub static WEIGHTS: &[u8] = &ALIGNED.0;
