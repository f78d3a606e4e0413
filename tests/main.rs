//! The integration tests, one binary. `cargo test --release --workspace` runs them all.

mod golden; // equal to Hugging Face, on its own outputs
mod mixing; // one batch, many masks; same bits alone and together
mod support; // error measure, reference files
