//! Everything that defines a GritLM model, without any GPU code.
//!
//! * [`config`] parses and checks `config.json`.
//! * [`weights`] maps and checks safetensors.
//! * [`mod@format`] takes apart and makes the formats of stored weights.
//! * [`gguf`] reads and writes GGUF files: metadata and tensors in one file.
//! * [`adapter`] reads low-rank adapters and merges them into weights.
//! * [`quantize`] chooses the format of each matrix that is quantised here.
//! * [`tokenizer`] converts between text and token ids.
//! * [`prompt`] builds GritLM's prompt formats.
//! * [`chat_template`] renders a checkpoint's own prompt format.
//! * [`ops`] declares the fused operations of a forward pass, a trait that each backend implements.
//! * [`measure`] declares what benches ask of a backend beside them.
//! * [`host`] is what both GPU backends do on the host.
//! * [`tiles`] splits attention into tiles for the GPU backends.
//! * [`mod@reference`] specifies each operation as a plain formula in f64.
//! * [`cpu`] is the fast backend for machines without a GPU.
//! * [`demo`] embeds a tiny model of GritLM's shape in the binary.
//! * [`files`] manages the cache folder.
//!
//! # Vocabulary
//! All languages of the project use one set of names for dimensions. Arrays are row-major,
//! outermost dimension first.
//!
//! | name | GritLM-7B | meaning |
//! |---|---|---|
//! | `tokens` | | rows of a batch: all sequences, packed end to end, no padding |
//! | `dim` | 4096 | width of the residual stream |
//! | `heads`, `kv_heads` | 32, 8 | query heads, key/value heads (grouped queries) |
//! | `head_dim` | 128 | width of a head |
//! | `hidden` | 14336 | width of the feed-forward (of one expert, in a mixture) |
//! | `vocab` | 32000 | |
//! | `layers` | 32 | |
//! | `experts`, `top_k` | 8, 2 (8x7B) | |
//! | `pages`, [`ops::PAGE`] | 128 | KV pages, and tokens in one |

pub mod adapter;
pub mod chat_template;
pub mod config;
pub mod cpu;
pub mod demo;
mod error;
pub mod files;
pub mod format;
pub mod gguf;
pub mod hash;
pub mod host;
pub mod measure;
pub mod ops;
pub mod prompt;
pub mod quantize;
pub mod reference;
mod setters;
pub mod tiles;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
