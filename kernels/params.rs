//! Addresses in the parameter structs of kernels. The compiler compares each struct with its twin
//! in CUDA C++; see [`crate::source::text`].

pub use gritlm_model::host::params::Layout;

/// An address on the device; `Global<T>` in a kernel's parameters.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct Pointer(pub u64);

impl Pointer {
    /// The null pointer.
    pub const NULL: Self = Self(0);
}
