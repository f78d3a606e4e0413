//! What both GPU backends do on the host: records that kernels read, results that they write, and
//! the layouts of rows and of KV pages.
//!
//! * [`mod@params`] describes parameter structs, which are written once in Rust and once in a
//!   kernel's language.
//! * [`pool`] and [`sample`] encode the spans and the sampling parameters of a batch; [`sample`]
//!   also decodes the sampled tokens.
//! * [`rows`] pads rows of activations to a stride, and removes the padding.
//! * [`pages`] converts between the pages of the KV cache and the order of an exported cache.
//! * [`routing`] says how many words the routing of a mixture takes.

pub mod pages;
pub mod params;
pub mod pool;
pub mod routing;
pub mod rows;
pub mod sample;
