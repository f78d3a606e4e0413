//! The CUDA backend of `gritlm`. Its kernels are not built yet: opening it says so.

/// Why the CUDA backend cannot be opened.
pub const NOT_BUILT: &str = "the CUDA backend is not built yet";
