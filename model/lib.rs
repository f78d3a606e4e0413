//! What a GritLM is, without any GPU.
//!
//! * [`config`]: `config.json`, checked. * [`weights`]: mapped safetensors, checked.
//! * [`tokenizer`]: text ↔ ids. * [`prompt`]: GritLM's formats.
//! * [`ops`]: the fused operations of a forward pass, as a trait that each backend implements.
//!   [`tiles`]: how GPU backends cut one of them, attention.
//! * [`reference`]: what each operation computes, as plain formulas in f64: the specification.
//! * [`cpu`]: the fast backend of a machine without a GPU.
//! * [`demo`]: a tiny model of GritLM's shape, in the binary. * [`files`]: the cache folder.
//!
//! # Vocabulary
//! One set of names for dimensions in all languages of the project; arrays are row-major, outermost
//! dimension first.
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

pub mod config;
pub mod cpu;
pub mod demo;
mod error;
pub mod files;
pub mod ops;
pub mod prompt;
pub mod reference;
pub mod tiles;
pub mod tokenizer;
pub mod weights;

pub use error::{Error, Result};
