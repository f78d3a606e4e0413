//! The table of all shaders: the files that each is made of, its bindings, and the values of its
//! constants with which it can be compiled.
//!
//! There is no preprocessor. A shader is the concatenation of its files, and its variants differ
//! in `override` constants and in whether they use subgroups. [`variants`] lists every variant
//! that this crate can ask a driver for, so that tests compile them all, with naga and in a
//! browser.

use crate::tune::{LANES, SORT_LANES, Tiles};
use crate::{codes, pages};
use gritlm_model::weights::Dtype;

/// Kind of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The op's parameters, a uniform at a dynamic offset; always binding 0.
    Params,
    /// Storage that the shader reads.
    Read,
    /// Storage that the shader reads and writes.
    Write,
}

/// A file of WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its name without `.wgsl`.
    pub stem: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// The file of this stem.
macro_rules! file {
    ($stem:expr) => {
        File { stem: $stem, text: include_str!(concat!($stem, ".wgsl")) }
    };
}

/// One shader, before its constants have values.
#[derive(Debug)]
pub struct Shader {
    /// Its file stem; a matrix product also names its form (`matmul`, `matvec` and so on).
    pub name: &'static str,
    /// The file that must come first.
    head: Option<File>,
    parts: &'static [File],
    /// The files that differ without and with subgroups, if the shader has both forms.
    forms: Option<[File; 2]>,
    /// Its bindings in order, all in group 0.
    pub bindings: &'static [Kind],
}

impl Shader {
    /// Defines a custom shader for [`crate::Wgpu::launch`].
    pub const fn new(
        name: &'static str,
        parts: &'static [File],
        bindings: &'static [Kind],
    ) -> Self {
        Self { name, head: None, parts, forms: None, bindings }
    }

    /// Returns whether it multiplies in half precision, for which the adapter must have f16 in
    /// shaders.
    pub fn is_f16(&self) -> bool {
        self.name.ends_with(" f16") || self.is_matrix()
    }

    /// Returns whether it needs cooperative matrices, an experimental feature of wgpu.
    pub fn is_matrix(&self) -> bool {
        self.name.ends_with(" matrix")
    }

    /// Returns whether it has a form with subgroups and one without.
    pub fn has_forms(&self) -> bool {
        self.forms.is_some()
    }

    /// Returns the layout of its bind group.
    pub fn layout(&self) -> Vec<wgpu::BindGroupLayoutEntry> {
        let entry = |(binding, kind): (u32, &Kind)| {
            let (ty, has_dynamic_offset) = match kind {
                Kind::Params => (wgpu::BufferBindingType::Uniform, true),
                Kind::Read => (wgpu::BufferBindingType::Storage { read_only: true }, false),
                Kind::Write => (wgpu::BufferBindingType::Storage { read_only: false }, false),
            };
            let ty = wgpu::BindingType::Buffer { ty, has_dynamic_offset, min_binding_size: None };
            let visibility = wgpu::ShaderStages::COMPUTE;
            wgpu::BindGroupLayoutEntry { binding, visibility, ty, count: None }
        };
        (0..).zip(self.bindings).map(entry).collect()
    }

    /// Returns its files in order, of the form with or without subgroups where it has both.
    pub fn files(&self, subgroups: bool) -> impl Iterator<Item = File> {
        let form = self.forms.map(|forms| forms[usize::from(subgroups)]);
        let first = self.head.into_iter().chain([file!("common")]).chain(form);
        first.chain(self.parts.iter().copied())
    }

    /// Returns the WGSL text, in the form with or without subgroups where it has both.
    pub fn source(&self, subgroups: bool) -> String {
        self.files(subgroups).map(|file| file.text).collect()
    }
}

/// Returns the checks that naga writes into a shader: of accesses, not of loops and divisors. A
/// matrix product takes 2.7 times as long on lavapipe if naga bounds its loops.
pub fn runtime_checks() -> wgpu::ShaderRuntimeChecks {
    let mut checks = wgpu::ShaderRuntimeChecks::checked();
    checks.force_loop_bounding = false;
    checks.int_div_checks = false;
    checks
}

/// A shader with values for its constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Name of the shader.
    pub shader: &'static str,
    /// Whether it uses subgroups. Without them it runs on any adapter.
    pub subgroups: bool,
    /// Its `override` constants; those not listed keep their defaults.
    pub constants: Vec<(&'static str, f64)>,
}

/// Writes a readable name such as "linear matmul DTYPE=0 WX=16 WY=16 STAGED=1".
impl std::fmt::Display for Variant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.shader)?;
        if self.subgroups {
            f.write_str(" subgroups")?;
        }
        self.constants.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
    }
}

use Kind::{Params, Read, Write};

const CODES: File = file!("codes");
const PRODUCT: File = file!("product");
const MATMUL: File = file!("matmul");
const MATVEC: File = file!("matvec");
const MATRIX: File = file!("matrix");
const DENSE: File = file!("dense");
const GROUPED: File = file!("grouped");
const ORDER: File = file!("order");
const LN: File = file!("ln");
const PAIR: File = file!("attention_pair");
const ROUND: File = file!("round");
const PAGES: File = file!("pages");
const VECTORS: File = file!("attention_vectors");
const DOUT: File = file!("attention_dout");

/// Sums across a workgroup, without and with subgroups.
const REDUCE: Option<[File; 2]> = Some([file!("reduce_workgroup"), file!("reduce_subgroup")]);
/// How `matmul` reads rows of activations: each invocation reads all eight of them, or with
/// subgroups one and passes it round.
const SHARE_NONE: File = file!("share_none");
const SHARE: Option<[File; 2]> = Some([SHARE_NONE, file!("share_subgroup")]);
/// How the invocations of `attention` exchange values: through workgroup memory or within a
/// subgroup.
const TELL: Option<[File; 2]> = Some([file!("attention_workgroup"), file!("attention_subgroup")]);

/// Bindings of a product whose op writes one buffer.
const TO_ONE: &[Kind] = &[Params, Read, Read, Read, Write];
/// Bindings of `qkv`; q, keys, values and the batch follow the weights.
const TO_PAGES: &[Kind] = &[Params, Read, Read, Read, Write, Write, Write, Read];
/// Bindings of an expert's product; the output and the routing follow the weights.
const BY_EXPERT: &[Kind] = &[Params, Read, Read, Read, Write, Read];

/// Defines an op's product in all its forms.
macro_rules! product {
    ($op:literal, [$($rows:expr),*], $bindings:expr) => {
        [
            Shader {
                name: concat!($op, " matmul"),
                head: Some(file!("real_f32")),
                parts: &[CODES, PRODUCT, MATMUL, $($rows,)* file!($op)],
                forms: SHARE,
                bindings: $bindings,
            },
            Shader {
                name: concat!($op, " matvec"),
                head: None,
                parts: &[CODES, PRODUCT, MATVEC, $($rows,)* file!($op)],
                forms: REDUCE,
                bindings: $bindings,
            },
            Shader {
                name: concat!($op, " matmul f16"),
                head: Some(file!("real_f16")),
                parts: &[
                    SHARE_NONE,
                    CODES,
                    PRODUCT,
                    MATMUL,
                    $($rows,)*
                    file!($op),
                ],
                forms: None,
                bindings: $bindings,
            },
            Shader {
                name: concat!($op, " matrix"),
                head: Some(file!("real_matrix")),
                parts: &[CODES, PRODUCT, MATRIX, $($rows,)* file!($op)],
                forms: None,
                bindings: $bindings,
            },
        ]
    };
}

/// The forms of a product: for many rows, for few rows, for many rows in half precision, and for
/// matrix units.
pub(crate) type Product = [Shader; 4];

pub(crate) static LINEAR: Product = product!("linear", [DENSE], TO_ONE);
pub(crate) static LINEAR_ADD: Product = product!("linear_add", [DENSE], TO_ONE);
pub(crate) static GATE_UP: Product = product!("gate_up", [DENSE], TO_ONE);
pub(crate) static QKV: Product = product!("qkv", [DENSE, ROUND], TO_PAGES);
pub(crate) static EXPERT_GATE_UP: Product = product!("expert_gate_up", [GROUPED], BY_EXPERT);
pub(crate) static EXPERT_DOWN: Product = product!("expert_down", [GROUPED], BY_EXPERT);

macro_rules! shader {
    ($const:ident, $name:literal, $forms:expr, [$($more:expr),*], [$($kind:ident),*]) => {
        pub(crate) static $const: Shader = Shader {
            name: $name,
            head: None,
            parts: &[$($more,)* file!($name)],
            forms: $forms,
            bindings: &[Params, $($kind),*],
        };
    };
}

shader!(EMBED, "embed", None, [CODES], [Read, Read, Write]);
shader!(RMSNORM, "rmsnorm", REDUCE, [], [Read, Read, Read, Write]);
shader!(QKV_CODES, "qkv_codes", None, [ROUND, PAGES], [Read, Read, Write, Write, Read]);
shader!(ATTENTION, "attention", TELL, [PAGES], [Read, Read, Read, Read, Write]);
shader!(ATTENTION_REDUCE, "attention_reduce", None, [PAGES], [Read, Read, Write]);
shader!(ROUTE, "route", None, [], [Read, Write]);
shader!(EXPERT_SORT, "expert_sort", None, [], [Write, Write]);
shader!(EXPERT_ADD, "expert_add", None, [], [Read, Read, Write]);
shader!(POOL, "pool", REDUCE, [], [Read, Read, Write]);
shader!(SAMPLE, "sample", REDUCE, [ORDER], [Read, Read, Write, Write]);
shader!(SEARCH, "search", REDUCE, [ORDER], [Read, Read, Write]);

// Of training.
shader!(OUTER, "outer", None, [CODES], [Read, Read, Read, Write]);
shader!(ROWS, "rows", None, [], [Read, Read, Write]);
shader!(GATE_UP_BACKWARD, "gate_up_backward", None, [], [Write, Write]);
shader!(QKV_BACKWARD, "qkv_backward", None, [], [Read, Read, Read, Read, Write]);
shader!(RMSNORM_BACKWARD, "rmsnorm_backward", REDUCE, [], [Read, Read, Read, Write, Write]);
shader!(RMSNORM_WEIGHT, "rmsnorm_weight", None, [], [Read, Read, Read, Write, Write]);
shader!(ROUTE_BACKWARD, "route_backward", None, [], [Read, Read, Read, Read, Write]);
shader!(EXPERT_BACKWARD, "expert_backward", REDUCE, [], [Read, Read, Write, Write, Write]);
shader!(
    ATTENTION_KEPT,
    "attention_kept",
    None,
    [LN, PAIR, VECTORS],
    [Read, Read, Read, Read, Write, Write]
);
shader!(ATTENTION_DELTA, "attention_delta", None, [PAIR], [Read, Read, Read, Write]);
shader!(
    ATTENTION_DQ,
    "attention_dq",
    None,
    [PAIR, VECTORS, DOUT],
    [Read, Read, Read, Read, Read, Read, Write]
);
shader!(
    ATTENTION_DKV,
    "attention_dkv",
    None,
    [PAIR, VECTORS, DOUT],
    [Read, Read, Read, Read, Read, Read, Write, Write]
);
shader!(CROSS_ENTROPY, "cross_entropy", None, [LN], [Write, Read, Write]);
shader!(CONTRASTIVE, "contrastive", REDUCE, [], [Write, Write, Write, Write]);
shader!(MERGE, "merge", None, [], [Read, Read, Read, Read, Write]);
shader!(MERGE_BACKWARD, "merge_backward", None, [], [Read, Read, Read, Read, Write]);
shader!(ADAMW, "adamw", None, [], [Read, Write, Write, Write]);
shader!(SQUARES, "squares", REDUCE, [], [Read, Write]);

/// Returns all shaders.
pub fn shaders() -> Vec<&'static Shader> {
    let products = [&LINEAR, &LINEAR_ADD, &GATE_UP, &QKV, &EXPERT_GATE_UP, &EXPERT_DOWN];
    let mut all: Vec<&Shader> = products.into_iter().flatten().collect();
    all.extend([&EMBED, &RMSNORM, &QKV_CODES, &ATTENTION, &ATTENTION_REDUCE, &ROUTE]);
    all.extend([&EXPERT_SORT, &EXPERT_ADD, &POOL, &SAMPLE, &SEARCH]);
    all.extend([&OUTER, &ROWS, &GATE_UP_BACKWARD, &QKV_BACKWARD, &RMSNORM_BACKWARD]);
    all.extend([&RMSNORM_WEIGHT, &ROUTE_BACKWARD, &EXPERT_BACKWARD, &ATTENTION_KEPT]);
    all.extend([&ATTENTION_DELTA, &ATTENTION_DQ, &ATTENTION_DKV, &CROSS_ENTROPY]);
    all.extend([&CONTRASTIVE, &ADAMW, &SQUARES, &MERGE, &MERGE_BACKWARD]);
    all
}

/// Returns the constants that tell a shader how its weights are stored.
pub(crate) fn stored(dtype: Dtype) -> Vec<(&'static str, f64)> {
    let plain = |code| vec![("DTYPE", code)];
    match (dtype, dtype.coding()) {
        (Dtype::Bf16, _) => plain(0.0),
        (Dtype::F16, _) => plain(1.0),
        (_, None) => plain(2.0),
        (_, Some(coding)) => [&plain(3.0)[..], &codes::constants(&coding)].concat(),
    }
}

/// Returns every variant that can be requested, with any tiles of [`Tiles::all`].
pub fn variants() -> Vec<Variant> {
    variants_of(&Tiles::all(), &Dtype::ALL)
}

/// Returns the variants in f32 that a GPU with subgroups asks for while its tiles have not been
/// tuned, for weights of these formats, over KV pages in f32 or f16.
pub fn default_variants(formats: &[Dtype]) -> Vec<Variant> {
    let mut all = variants_of(&[Tiles::default_for(false, u32::MAX)], formats);
    // A tile says itself whether `matmul` and `attention` use subgroups; everything else does.
    let by_tile = |name: &str| name.ends_with(" matmul") || name == "attention";
    let is_default = |shader: &Shader, subgroups| {
        !shader.is_f16() && (subgroups || !shader.has_forms() || by_tile(shader.name))
    };
    let named = |name| shaders().into_iter().find(|shader| shader.name == name);
    all.retain(|v| named(v.shader).is_some_and(|shader| is_default(shader, v.subgroups)));
    let pages = [Dtype::F32, Dtype::F16].map(pages::constants);
    all.retain(|v| v.shader != "attention" || pages.iter().any(|p| v.constants.starts_with(p)));
    all
}

/// Returns the variants that an adapter with one of these tiles can ask for.
fn variants_of(tiles: &[Tiles], formats: &[Dtype]) -> Vec<Variant> {
    let mut formats: Vec<_> = formats.iter().copied().map(stored).collect();
    formats.sort_by(|a, b| format!("{a:?}").cmp(&format!("{b:?}")));
    formats.dedup();
    // Norms have no quantised weights.
    let plain = [Dtype::Bf16, Dtype::F16, Dtype::F32].map(stored);
    let mut all: Vec<Variant> = Vec::new();
    let mut add = |shader: &'static str, subgroups, constants: Vec<(&'static str, f64)>| {
        let variant = Variant { shader, subgroups, constants };
        if !all.contains(&variant) {
            all.push(variant);
        }
    };
    let lanes = ("LANES", f64::from(LANES));
    for shader in shaders() {
        let name = shader.name;
        let with = if shader.has_forms() { &[false, true][..] } else { &[false] };
        for &subgroups in with {
            let mut of_all = |constants: &[(&'static str, f64)]| {
                formats.iter().for_each(|f| add(name, subgroups, [&f[..], constants].concat()));
            };
            match name {
                name if name.ends_with(" matrix") => {
                    of_all(&[("LANES", 32.0)]);
                    of_all(&[("LANES", 64.0)]);
                }
                name if name.contains(" matmul") => {
                    for tile in tiles.iter().flat_map(|t| t.matmuls(subgroups)) {
                        of_all(&tile.constants());
                    }
                }
                name if name.ends_with(" matvec") => {
                    for tile in tiles.iter().flat_map(|t| t.matvecs(subgroups)) {
                        of_all(&tile.constants());
                    }
                }
                "attention" => {
                    let vectors = [1, 8, 16, 32, 64];
                    for tile in tiles
                        .iter()
                        .flat_map(|t| vectors.map(|v| t.attention(v, 64 * u32::from(subgroups))))
                        .flatten()
                    {
                        if tile.shuffle != subgroups {
                            continue;
                        }
                        for (mask, whole) in (0..4).flat_map(|m| [(m, 0.0), (m, 1.0)]) {
                            let more = [("MASK", f64::from(mask)), ("WHOLE", whole)];
                            for dtype in pages::DTYPES {
                                let stored = pages::constants(dtype);
                                add(
                                    name,
                                    subgroups,
                                    [&stored[..], &tile.constants(), &more].concat(),
                                );
                            }
                        }
                    }
                }
                "qkv_codes" => add(name, subgroups, pages::constants(Dtype::Q8_0)),
                "embed" => of_all(&[]),
                "outer" => {
                    of_all(&[("TRANSPOSED", 0.0)]);
                    let transposed = [&stored(Dtype::F32)[..], &[("TRANSPOSED", 1.0)]].concat();
                    add(name, subgroups, transposed);
                }
                "merge" => plain.iter().for_each(|d| add(name, subgroups, d.clone())),
                "rmsnorm_backward" => {
                    plain.iter().for_each(|d| add(name, subgroups, [&d[..], &[lanes]].concat()));
                }
                "rmsnorm" => {
                    for (d, gather) in plain.iter().flat_map(|d| [(d, 0.0), (d, 1.0)]) {
                        add(name, subgroups, [&d[..], &[lanes, ("GATHER", gather)]].concat());
                    }
                }
                "sample" | "search" => {
                    add(name, subgroups, vec![("LANES", f64::from(SORT_LANES))]);
                }
                name if shader.has_forms() => add(name, subgroups, vec![lanes]),
                name => add(name, subgroups, vec![]),
            }
        }
    }
    all
}
