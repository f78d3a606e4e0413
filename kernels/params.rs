//! Parameter structs: written once in Rust and once in CUDA C++, and compared by the compiler; see
//! [`crate::source::text`].

/// An address on the device; `Global<T>` in a kernel's parameters.
#[repr(transparent)]
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, bytemuck::Pod, bytemuck::Zeroable,
)]
pub struct Pointer(pub u64);

impl Pointer {
    /// Points at nothing.
    pub const NULL: Self = Self(0);
}

/// A struct that a kernel takes by value.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The struct's name, the same in CUDA C++.
    pub name: &'static str,
    /// Its fields in order, with their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
    /// Its bytes.
    pub size: usize,
}

/// Defines parameters: pointers first, then an even number of 32-bit fields, so that there is no
/// padding; `Self::LAYOUT` says where they are.
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name {
            $($(#[$about])* pub(crate) $field: $type,)*
        }

        impl $name {
            pub(crate) const LAYOUT: $crate::params::Layout = $crate::params::Layout {
                name: stringify!($name),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
                size: size_of::<$name>(),
            };
        }
    };
}

pub(crate) use params;
