//! Parameter structs, written once in Rust and once in CUDA C++. The compiler compares the two;
//! see [`crate::source::text`].

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

/// Layout of a struct that a kernel takes by value.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The struct's name, the same in CUDA C++.
    pub name: &'static str,
    /// Its fields in order, with their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
    /// Its size in bytes.
    pub size: usize,
}

/// Defines a parameter struct: pointers first, then an even number of 32-bit fields, so that
/// there is no padding. `Self::LAYOUT` describes its fields.
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
