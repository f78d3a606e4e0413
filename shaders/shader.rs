//! The table of all shaders: of which files each is made, what it binds, and the values of its
//! constants with which it is ever compiled.
//!
//! There is no preprocessor: a shader is its files one after the other, and what differs between
//! two variants are `override` constants. [`variants`] lists every variant that this crate can ask
//! a driver for, so that tests compile them all, with naga and in a browser.

use crate::tune::{LANES, Tiles};
use gritlm_model::weights::Dtype;

/// What a binding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The op's parameters, a uniform at a dynamic offset; always binding 0.
    Params,
    /// Storage that the shader reads.
    Read,
    /// Storage that the shader reads and writes.
    Write,
}

/// One shader, before its constants have values.
#[derive(Debug)]
pub struct Shader {
    /// The stem of its file; products also name the file that computes them.
    pub name: &'static str,
    parts: &'static [&'static str],
    /// Whether it adds across a workgroup, and so comes with and without subgroups.
    pub reduces: bool,
    /// Its bindings in order, all in group 0.
    pub bindings: &'static [Kind],
}

impl Shader {
    /// A shader of one's own, for [`crate::Wgpu::launch`].
    pub const fn new(
        name: &'static str,
        parts: &'static [&'static str],
        bindings: &'static [Kind],
    ) -> Self {
        Self { name, parts, reduces: false, bindings }
    }

    /// The WGSL text.
    pub fn source(&self, subgroups: bool) -> String {
        let reduce = match (self.reduces, subgroups) {
            (false, _) => "",
            (true, false) => include_str!("reduce_workgroup.wgsl"),
            (true, true) => include_str!("reduce_subgroup.wgsl"),
        };
        let mut text = include_str!("common.wgsl").to_string() + reduce;
        self.parts.iter().for_each(|part| text += part);
        text
    }
}

/// A shader with values for its constants.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Which shader.
    pub shader: &'static str,
    /// Its `override` constants; those not named keep their defaults.
    pub constants: Vec<(&'static str, f64)>,
}

use Kind::{Params, Read, Write};

const PRODUCT: &str = include_str!("product.wgsl");
const MATMUL: &str = include_str!("matmul.wgsl");
const MATVEC: &str = include_str!("matvec.wgsl");
const DENSE: &str = include_str!("dense.wgsl");
const GROUPED: &str = include_str!("grouped.wgsl");
const ORDER: &str = include_str!("order.wgsl");

/// Bindings of a product whose op writes one buffer.
const TO_ONE: &[Kind] = &[Params, Read, Read, Read, Write];
/// Those of `qkv`: q, keys, values, batch.
const TO_PAGES: &[Kind] = &[Params, Read, Read, Read, Write, Write, Write, Read];
/// Those of an expert's product: out, routing.
const BY_EXPERT: &[Kind] = &[Params, Read, Read, Read, Write, Read];

/// An op's product in both forms.
macro_rules! product {
    ($op:literal, $rows:expr, $bindings:expr) => {
        [
            Shader {
                name: concat!($op, " matmul"),
                parts: &[PRODUCT, MATMUL, $rows, include_str!(concat!($op, ".wgsl"))],
                reduces: false,
                bindings: $bindings,
            },
            Shader {
                name: concat!($op, " matvec"),
                parts: &[PRODUCT, MATVEC, $rows, include_str!(concat!($op, ".wgsl"))],
                reduces: true,
                bindings: $bindings,
            },
        ]
    };
}

/// The two forms of a product: for many rows and for few.
pub(crate) type Product = [Shader; 2];

pub(crate) static LINEAR: Product = product!("linear", DENSE, TO_ONE);
pub(crate) static LINEAR_ADD: Product = product!("linear_add", DENSE, TO_ONE);
pub(crate) static GATE_UP: Product = product!("gate_up", DENSE, TO_ONE);
pub(crate) static QKV: Product = product!("qkv", DENSE, TO_PAGES);
pub(crate) static EXPERT_GATE_UP: Product = product!("expert_gate_up", GROUPED, BY_EXPERT);
pub(crate) static EXPERT_DOWN: Product = product!("expert_down", GROUPED, BY_EXPERT);

macro_rules! shader {
    ($const:ident, $name:literal, $reduces:literal, [$($more:expr),*], [$($kind:ident),*]) => {
        pub(crate) static $const: Shader = Shader {
            name: $name,
            parts: &[$($more,)* include_str!(concat!($name, ".wgsl"))],
            reduces: $reduces,
            bindings: &[Params, $($kind),*],
        };
    };
}

shader!(EMBED, "embed", false, [], [Read, Read, Write]);
shader!(RMSNORM, "rmsnorm", true, [], [Read, Read, Read, Write]);
shader!(ATTENTION, "attention", false, [], [Read, Read, Read, Read, Write]);
shader!(ATTENTION_REDUCE, "attention_reduce", false, [], [Read, Read, Write]);
shader!(ROUTE, "route", false, [], [Read, Write]);
shader!(EXPERT_SORT, "expert_sort", false, [], [Write, Write]);
shader!(EXPERT_ADD, "expert_add", false, [], [Read, Read, Write]);
shader!(POOL, "pool", true, [], [Read, Read, Write]);
shader!(SAMPLE, "sample", true, [ORDER], [Read, Read, Write, Write]);
shader!(SEARCH, "search", true, [ORDER], [Read, Read, Write]);

/// All shaders.
pub fn shaders() -> Vec<&'static Shader> {
    let products = [&LINEAR, &LINEAR_ADD, &GATE_UP, &QKV, &EXPERT_GATE_UP, &EXPERT_DOWN];
    let mut all: Vec<&Shader> = products.into_iter().flatten().collect();
    all.extend([&EMBED, &RMSNORM, &ATTENTION, &ATTENTION_REDUCE, &ROUTE]);
    all.extend([&EXPERT_SORT, &EXPERT_ADD, &POOL, &SAMPLE, &SEARCH]);
    all
}

/// How a shader is told how its weights are stored.
pub(crate) fn dtype(dtype: Dtype) -> (&'static str, f64) {
    let code = match dtype {
        Dtype::Bf16 => 0.0,
        Dtype::F16 => 1.0,
        Dtype::F32 => 2.0,
    };
    ("DTYPE", code)
}

/// Every variant that can be asked for, with any tiles of [`Tiles::all`].
pub fn variants() -> Vec<Variant> {
    let dtypes = [Dtype::Bf16, Dtype::F16, Dtype::F32].map(dtype);
    let tiles = Tiles::all();
    let mut all: Vec<Variant> = Vec::new();
    let mut add = |shader: &'static str, constants: Vec<(&'static str, f64)>| {
        let variant = Variant { shader, constants };
        if !all.contains(&variant) {
            all.push(variant);
        }
    };
    for shader in shaders() {
        match shader.name {
            name if name.ends_with(" matmul") => {
                for tile in tiles.iter().flat_map(|t| t.matmuls()) {
                    dtypes.iter().for_each(|&d| add(name, [&[d], &tile.constants()[..]].concat()));
                }
            }
            name if name.ends_with(" matvec") => {
                for tile in tiles.iter().flat_map(|t| t.matvecs()) {
                    dtypes.iter().for_each(|&d| add(name, [&[d], &tile.constants()[..]].concat()));
                }
            }
            "attention" => {
                for vectors in [1, 2, 4, 8, 16, 32, 64] {
                    for tile in tiles.iter().flat_map(|t| t.attentions(vectors)) {
                        for (mask, whole) in (0..4).flat_map(|m| [(m, 0.0), (m, 1.0)]) {
                            let more = [("MASK", f64::from(mask)), ("WHOLE", whole)];
                            add("attention", [&tile.constants()[..], &more].concat());
                        }
                    }
                }
            }
            "embed" => dtypes.iter().for_each(|&d| add("embed", vec![d])),
            "rmsnorm" => {
                for (d, gather) in dtypes.iter().flat_map(|&d| [(d, 0.0), (d, 1.0)]) {
                    add("rmsnorm", vec![d, ("LANES", f64::from(LANES)), ("GATHER", gather)]);
                }
            }
            name if shader.reduces => add(name, vec![("LANES", f64::from(LANES))]),
            name => add(name, vec![]),
        }
    }
    all
}
