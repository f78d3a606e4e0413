//! The WGSL backend of `gritlm`, for every GPU that wgpu reaches. Its shaders are not built yet: opening it says so.

/// Why the WGSL backend cannot be opened.
pub const NOT_BUILT: &str = "the WGSL backend is not built yet";
