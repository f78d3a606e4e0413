//! The table of CUDA sources. NVRTC, or the emulator's g++, compiles a source from [`text`] and
//! [`HEADERS`]. The text includes assertions that the source's parameter structs match those of
//! Rust.

use crate::attention::{AttentionMaps, AttentionParams};
use crate::embed::Embed;
use crate::expert::Gather;
use crate::narrow::Narrow;
use crate::params::Layout;
use crate::pool::Pool;
use crate::product::{Product, ProductMaps};
use crate::rmsnorm::RmsNormParams;
use crate::route::{Add, RouteParams, Sort};
use crate::sample::SamplingParams;
use crate::search::{Scores, Select};
use gritlm_model::hash::fnv1a;
use gritlm_model::ops::{DeviceError, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A source file with all its entry points.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Its file stem.
    pub stem: &'static str,
    /// Its text.
    pub file: Cow<'static, str>,
    /// Parameter structs of its entry points.
    pub params: &'static [Layout],
    /// Where the text is, if it is a user's own: the compiler's lines name it, and what lies beside it
    /// can be included, in place of the project's headers too.
    pub path: Option<PathBuf>,
}

impl Source {
    /// Returns a user's own file in place of the source with this stem.
    ///
    /// # Errors
    /// When there is no source with this stem, or the file cannot be read.
    pub fn own(stem: &str, path: &Path) -> Result<Self> {
        let Some(source) = SOURCES.iter().find(|source| source.stem == stem) else {
            let stems: Vec<&str> = SOURCES.iter().map(|source| source.stem).collect();
            return Err(DeviceError(format!(
                "expected the name of a kernel ({}), found {stem}",
                stems.join(", ")
            )));
        };
        let file = std::fs::read_to_string(path)
            .map_err(|e| DeviceError(format!("{}: {e}", path.display())))?;
        Ok(Self { file: file.into(), path: Some(path.into()), ..source.clone() })
    }

    /// Returns the folder of a user's own file.
    pub(crate) fn folder(&self) -> Option<&Path> {
        let folder = self.path.as_ref()?.parent()?;
        Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
    }

    /// Returns names and texts of the headers that are passed to the compiler. Those that lie beside a
    /// user's own file it finds itself.
    pub(crate) fn headers(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let beside = |name: &str| self.folder().is_some_and(|folder| folder.join(name).exists());
        HEADERS.iter().copied().filter(move |(name, _)| !beside(name))
    }
}

/// Defines the table from one line per source: its stem and its parameter structs.
macro_rules! sources {
    ($($stem:ident: $($params:ty),*;)*) => {
        static SOURCES: &[Source] = &[$(Source {
            stem: stringify!($stem),
            file: Cow::Borrowed(include_str!(concat!(stringify!($stem), ".cu"))),
            params: &[$(<$params>::LAYOUT),*],
            path: None,
        }),*];
    };
}

macro_rules! headers {
    ($($stem:ident)*) => {
        /// Names and texts of the headers that the sources include.
        pub static HEADERS: &[(&str, &str)] = &[$((
            concat!(stringify!($stem), ".cuh"),
            include_str!(concat!(stringify!($stem), ".cuh")),
        )),*];
    };
}

sources! {
    attention: AttentionParams, AttentionMaps;
    embed: Embed;
    expert_add: Add;
    expert_down: Product, ProductMaps;
    expert_gate_up: Product, ProductMaps;
    expert_gather: Gather;
    expert_sort: Sort;
    gate_up: Product, ProductMaps;
    linear_add: Product, ProductMaps;
    logits: Product, ProductMaps;
    narrow: Narrow;
    pool: Pool;
    qkv: Product, ProductMaps;
    rmsnorm: RmsNormParams;
    route: RouteParams;
    sample: SamplingParams;
    search: Scores, Select;
}

headers!(
    attention attention_hopper common matmul matmul_hopper matmul_hopper_few memory order product ptx
    ptx_hopper
);

/// Returns all sources.
pub fn all() -> &'static [Source] {
    SOURCES
}

/// Offset of a field, in the words of each compiler: NVRTC has no `offsetof`.
const OFFSET: &str = "
#ifdef __CUDACC_RTC__
#define OFFSET(type, field) __INTADDR__(&static_cast<type *>(0)->field)
#else
#define OFFSET(type, field) __builtin_offsetof(type, field)
#endif
";

/// Returns the text to compile: the file, then assertions that its structs match those of Rust.
pub fn text(source: &Source) -> String {
    let mut text = source.file.to_string();
    text += OFFSET;
    let mut assert = |condition: String, what: String| {
        text += &format!("static_assert({condition}, \"{what} is not the one of Rust\");\n");
    };
    for Layout { name, fields, size } in source.params {
        assert(format!("sizeof({name}) == {size}"), name.to_string());
        for (field, offset) in *fields {
            assert(format!("OFFSET({name}, {field}) == {offset}"), format!("{name}::{field}"));
        }
    }
    text
}

/// Returns a hash of this source, its headers and the architecture, which does not depend on the
/// compiler. The manifest of a folder of compiled kernels stores it.
pub fn key(source: &Source, arch: &str) -> String {
    let text = text(source);
    let headers = HEADERS.iter().flat_map(|(name, text)| [*name, *text]);
    hash([source.stem, &text, arch].into_iter().chain(headers).map(str::as_bytes))
}

/// Returns the 128-bit FNV-1a hash of the parts and their lengths, in hexadecimal. It is the same
/// in every version of this program, unlike the hashes of the standard library.
pub(crate) fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let bytes = parts
        .into_iter()
        .flat_map(|part| (part.len() as u64).to_le_bytes().into_iter().chain(part.iter().copied()));
    format!("{:032x}", fnv1a(bytes))
}
