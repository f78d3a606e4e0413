//! Largest values that a config may have: far above any published model, and small enough that
//! sizes computed from them do not overflow.

pub(crate) const DIM: usize = 1 << 20;
pub(crate) const LAYERS: usize = 1 << 10;
pub(crate) const HEADS: usize = 1 << 16;
pub(crate) const HEAD_DIM: usize = 1 << 12;
pub(crate) const HIDDEN: usize = 1 << 24;
pub(crate) const VOCAB: usize = 1 << 24;
pub(crate) const EXPERTS: usize = 1 << 8;
/// Of positions and windows, in tokens.
pub(crate) const TOKENS: usize = 1 << 31;
