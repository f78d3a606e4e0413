//! The options of opening a device.

use crate::own::Own;
use crate::tune::Tiles;

/// Options for opening a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Part of the adapter's name or backend, in any case; if empty, the best adapter is opened.
    pub name: String,
    /// Whether to time every launch; see [`Measure::profile`](gritlm_model::measure::Measure::profile).
    pub profile: bool,
    /// Whether to multiply in half precision where there are many rows, on matrix units where the
    /// adapter has them. Sums stay f32; relative errors are then about 1e-3.
    pub f16: Half,
    /// Maximum bytes of a buffer with a part of a matrix, where this is below the adapter's own
    /// limit.
    pub matrix_bytes: Option<u64>,
    /// Additions and multiplications of a submit, instead of as many as take some 100 ms, so that no
    /// driver takes the device for hung.
    pub submit_flops: Option<u64>,
    /// Tiles to use instead of those stored for the adapter, or its defaults.
    pub tiles: Option<Tiles>,
    /// Whether to measure which tiles are fastest, and to store them; see [`Wgpu::tune`](crate::Wgpu::tune).
    pub tune: bool,
    /// A user's own files in place of the shaders' own. Their loops must end and their divisors be
    /// at least 1, as ours; accesses stay checked.
    pub own: Vec<Own>,
}

gritlm_model::setters!(Options {
    profile: bool,
    f16: Half,
    matrix_bytes: Option<u64>,
    submit_flops: Option<u64>,
    tiles: Option<Tiles>,
    tune: bool,
    own: Vec<Own>,
} into {
    name: String,
});

/// Where half precision is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Half {
    /// Nowhere.
    #[default]
    Never,
    /// On adapters that have it.
    IfAvailable,
    /// An adapter without it is refused.
    Required,
}
