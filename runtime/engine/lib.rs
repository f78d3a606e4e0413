//! Serves GritLM from one loaded copy of the weights: embeddings with bidirectional attention and
//! generation with causal attention, in the same batch.
//!
//! ```
//! use gritlm::{Embed, Engine, Options, Prompt, Sampling};
//!
//! let engine = Engine::open("demo", &Options::default())?;
//! let queries = ["chess interface for the desktop"];
//! let how = Embed::with_instruction("Find the software package that fits the description.");
//! let found = engine.embed(&queries, &how)?;
//! println!("{} numbers from {} tokens", found[0].vector.len(), found[0].tokens);
//!
//! let prompt = Prompt::user("Describe the package pdfgrep.");
//! for piece in engine.generate(&prompt, &Sampling::greedy().max_tokens(8))? {
//!     print!("{}", piece?.text);
//! }
//! # Ok::<(), gritlm::Error>(())
//! ```
//!
//! [`Engine::open`] takes the folder of a checkpoint, a GGUF file, a Hugging Face id, or `demo`, a
//! tiny model that is built into the binary. [`Engine::run`] is the low-level interface: it runs sequences
//! of token ids, each with a mask of its own, in one pass.

mod arithmetic;
pub mod backend;
pub mod batch;
pub mod cache;
mod checkpoint;
mod continuation;
mod corpus;
mod embed;
mod engine;
mod error;
mod forward;
mod generate;
#[cfg(feature = "grammar")]
mod grammar;
#[cfg(not(feature = "grammar"))]
#[path = "grammar/none.rs"]
mod grammar;
#[cfg(feature = "hub")]
mod hub;
#[cfg(not(feature = "hub"))]
#[path = "hub/none.rs"]
mod hub;
pub mod layer;
mod message;
mod options;
#[cfg(feature = "cuda")]
pub mod predict;
mod quantize;
mod rerank;
pub mod schedule;
pub mod synth;
mod unlock;

pub use arithmetic::Arithmetic;
pub use backend::{Device, DeviceInfo, Loading, devices, devices_async};
pub use checkpoint::Checkpoint;
pub use corpus::Corpus;
pub use embed::{Embed, Embedding, Encoded, dot};
pub use engine::Engine;
pub use error::{Error, Result};
pub use forward::{Probe, Stage};
pub use generate::{Chat, Finish, Generation, Piece, Prompt, Sampling};
pub use grammar::Grammar;
pub use gritlm_model as model;
pub use gritlm_model::ops::Pooling;
pub use message::{ChatFormat, Message, Role};
pub use options::{Attn, Options};
pub use quantize::{Quantized, quantize};
pub use rerank::Ranked;
pub use unlock::UnlockOnDrop;
