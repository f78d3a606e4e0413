//! GRIT training: one model learns to embed and to generate.

mod batches;
mod data;
mod encode;
mod error;
mod pack;
mod parameters;
mod pass;

pub use batches::{Batch, Batches, Batching, Group};
pub use data::{Data, Generative, Kind, MAX_LINE, Pair, Passage, Place, Spoken};
pub use encode::{Answer, Encoded, Encoder, Lengths, Text};
pub use error::{Error, Result};
