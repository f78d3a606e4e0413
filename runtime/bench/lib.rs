//! Measures speed relative to hardware limits and to other programs, for `gritlm bench`.

pub mod backward;
pub mod case;
pub mod cases;
pub mod compare;
mod error;
mod expected;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
pub mod laboratory;
pub mod limits;
pub mod load;
pub mod model;
pub mod ops;
pub mod page;
pub mod peer;
mod plot;
pub mod rag;
pub mod record;
pub mod report;
pub mod results;
pub mod shape;
pub mod table;
pub mod time;

pub use error::{Error, Result};
