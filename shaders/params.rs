//! Parameter structs, written once in Rust and once in WGSL. A test compares the two.

/// Layout of a struct that a shader reads as its uniform.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// The struct's name, the same in WGSL.
    pub name: &'static str,
    /// Its fields in order, with their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
    /// Its size in bytes.
    pub size: usize,
}

/// Defines a parameter struct of 32-bit fields. `Self::LAYOUT` describes its fields.
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
