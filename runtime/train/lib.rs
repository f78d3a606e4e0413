//! GRIT training: one model learns to embed and to generate.

mod adapters;
mod batches;
mod data;
mod encode;
mod error;
mod evaluate;
mod memory;
mod merge;
mod metrics;
mod mine;
mod objective;
mod pack;
mod parameters;
mod pass;
mod router;
mod run;
mod save;
mod scratch;
mod state;
mod tensorboard;
mod trainer;

pub use adapters::Adapt;
pub use batches::{Batch, Batches, Batching, Group};
pub use data::{Data, Generative, Kind, MAX_LINE, Pair, Passage, Place, Spoken};
pub use encode::{Answer, Encoded, Encoder, Lengths, Text};
pub use error::{Error, Result};
pub use evaluate::Retrieval;
pub use gritlm_model::adapter::Lora;
pub use memory::Plan;
pub use merge::{Merged, merge};
pub use metrics::{Evaluation, StepMetrics};
pub use mine::{Mined, Mining, mine};
pub use objective::{GenerativeLoss, Objective, Parts};
pub use run::{Ended, Event, Next, Options, train, write_checkpoint};
pub use scratch::scratch;
pub use trainer::{Losses, Trainer};
