//! Parameter structs of kernels and shaders, written once in Rust and once in CUDA C++ or WGSL.
//! The compiler or a test compares the two.

/// Layout of a struct that a kernel or shader reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The struct's name, the same in both languages.
    pub name: &'static str,
    /// Its fields in order, with their offsets in bytes.
    pub fields: &'static [(&'static str, usize)],
    /// Its size in bytes.
    pub size: usize,
}

/// Defines a parameter struct without padding: pointers first, if there are any, then an even
/// number of 32-bit fields; or 32-bit fields only. `Self::LAYOUT` describes its fields.
///
/// ```
/// gritlm_model::params! {
///     /// Parameters of a kernel that scales rows.
///     Scale { rows: u32, factor: f32, }
/// }
/// assert_eq!(Scale::LAYOUT.name, "Scale");
/// assert_eq!(Scale::LAYOUT.fields, [("rows", 0), ("factor", 4)]);
/// ```
#[macro_export]
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
        pub(crate) struct $name {
            $($(#[$about])* pub(crate) $field: $type,)*
        }

        impl $name {
            pub(crate) const LAYOUT: $crate::host::params::Layout = $crate::host::params::Layout {
                name: stringify!($name),
                fields: &[$((stringify!($field), std::mem::offset_of!($name, $field)),)*],
                size: size_of::<$name>(),
            };
        }
    };
}
