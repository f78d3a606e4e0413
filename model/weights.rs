//! Memory-mapped weights: safetensors or GGUF. The name, type and shape of every tensor are
//! checked, but no file is ever read whole.
//!
//! A checkpoint is a folder with `model.safetensors`, or with shards and an index that names
//! them, or one with a GGUF file ([`crate::gguf`]). [`Weights::open`] maps the files, parses their
//! headers (the `safetensors` crate refuses headers that are truncated, overlapping or absurdly
//! long) and compares them with the shapes that the config implies. A [`Tensor`] is a view that
//! keeps its file mapped.
//!
//! A checkpoint of the bare model (`MistralModel`, not `MistralForCausalLM`) has names without
//! `model.` and no `lm_head`. It is accepted; without the head it yields no logits.

mod halves;

use crate::config::Config;
pub use crate::format::{Dtype, decode};
use crate::gguf::Gguf;
use crate::{Error, Result, files};
use halves::Halves;
use memmap2::Mmap;
use safetensors::{SafeTensors, tensor::Dtype as Stored};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Owner of a tensor's bytes: a mapped file, the binary itself, or the heap.
#[derive(Clone)]
enum Source {
    Map(Arc<Mmap>),
    Static(&'static [u8]),
    Heap(Arc<Vec<u8>>),
    Halves(Arc<Halves>),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Map(map) => map,
            Self::Static(bytes) => bytes,
            Self::Heap(bytes) => bytes,
            Self::Halves(halves) => halves.ordered(),
        }
    }
}

/// One tensor: a view of a mapped file, of the binary or of a block on the heap. Cloning copies
/// no data. The rows of q and k from a GGUF file are a copy in the published order, made when
/// they are first read.
#[derive(Clone)]
pub struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    source: Source,
    range: Range<usize>,
}

impl Tensor {
    /// Creates a tensor that owns its values, for tests and tools. `values.len()` is the product
    /// of `shape`.
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Self {
        Self::from_bytes(Dtype::F32, shape, bytemuck::cast_slice(values))
    }

    /// Creates a tensor that owns its bytes, for tests and tools.
    pub fn from_bytes(dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        debug_assert_eq!(dtype.bytes(shape.iter().product()), bytes.len());
        Self::of_block(dtype, shape, &Arc::new(bytes.to_vec()), 0)
    }

    /// Creates a tensor of a part of `block`, from byte `at` on. Other tensors may share the
    /// block.
    pub fn of_block(dtype: Dtype, shape: &[usize], block: &Arc<Vec<u8>>, at: usize) -> Self {
        let range = at..at + dtype.bytes(shape.iter().product());
        debug_assert!(range.end <= block.len());
        debug_assert!(shape.last().is_none_or(|cols| cols % dtype.block() == 0));
        let source = Source::Heap(Arc::clone(block));
        Self { dtype, shape: shape.to_vec(), source, range }
    }

    /// Creates a tensor of a part of a mapped file.
    pub(crate) fn mapped(
        dtype: Dtype,
        shape: &[usize],
        map: &Arc<Mmap>,
        range: Range<usize>,
    ) -> Self {
        debug_assert_eq!(range.len(), dtype.bytes(shape.iter().product()));
        Self { dtype, shape: shape.to_vec(), source: Source::Map(Arc::clone(map)), range }
    }

    /// Returns the matrix with the even rows of each head of `head_dim` rows in front of the odd
    /// ones.
    pub(crate) fn with_halves_apart(mut self, head_dim: usize) -> Self {
        if let Source::Map(map) = &self.source {
            let row_bytes = self.dtype.bytes(self.matrix_shape().1);
            let halves = Halves::new(map, self.range.clone(), row_bytes, head_dim);
            self.source = Source::Halves(Arc::new(halves));
            self.range = 0..self.range.len();
        }
        self
    }

    /// Returns whether [`Tensor::stored`] has the rows of each head in pairs.
    pub(crate) fn is_in_pairs(&self) -> bool {
        matches!(self.source, Source::Halves(_))
    }

    /// Returns the format of the stored elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Returns the elements or blocks, little-endian, row-major.
    pub fn bytes(&self) -> &[u8] {
        &self.source.bytes()[self.range.clone()]
    }

    /// Returns the elements or blocks in the order of the file, which for the rows of q and k in
    /// a GGUF file is another than that of [`Tensor::bytes`], but takes no copy.
    pub fn stored(&self) -> &[u8] {
        match &self.source {
            Source::Halves(halves) => halves.stored(),
            _ => self.bytes(),
        }
    }

    /// Returns rows and columns; a vector is one row.
    pub fn matrix_shape(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        (self.shape.iter().rev().skip(1).product(), cols)
    }

    /// Returns all elements as f32. The conversion is exact for plain elements and rounds
    /// quantised ones once.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.shape.iter().product()];
        decode(self.dtype, self.bytes(), &mut out);
        out
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?})", self.dtype, self.shape)
    }
}

/// A tensor that a config requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Name in the published layout.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
}

/// Returns every tensor of a checkpoint with this config, in the order of the forward pass.
pub fn expected(config: &Config) -> Vec<Expected> {
    let c = config;
    let mut all = Vec::new();
    let mut add = |name: String, shape: &[usize]| all.push(Expected { name, shape: shape.into() });
    add(TABLE.into(), &[c.vocab, c.dim]);
    for layer in 0..c.layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        add(name("input_layernorm"), &[c.dim]);
        add(name("self_attn.q_proj"), &[c.heads * c.head_dim, c.dim]);
        add(name("self_attn.k_proj"), &[c.kv_heads * c.head_dim, c.dim]);
        add(name("self_attn.v_proj"), &[c.kv_heads * c.head_dim, c.dim]);
        add(name("self_attn.o_proj"), &[c.dim, c.heads * c.head_dim]);
        add(name("post_attention_layernorm"), &[c.dim]);
        match c.experts {
            None => {
                add(name("mlp.gate_proj"), &[c.hidden, c.dim]);
                add(name("mlp.up_proj"), &[c.hidden, c.dim]);
                add(name("mlp.down_proj"), &[c.dim, c.hidden]);
            }
            Some(experts) => {
                add(name("block_sparse_moe.gate"), &[experts.count, c.dim]);
                for e in 0..experts.count {
                    let name = |w: &str| name(&format!("block_sparse_moe.experts.{e}.{w}"));
                    add(name("w1"), &[c.hidden, c.dim]);
                    add(name("w3"), &[c.hidden, c.dim]);
                    add(name("w2"), &[c.dim, c.hidden]);
                }
            }
        }
    }
    add("model.norm.weight".into(), &[c.dim]);
    if !c.tied {
        add(HEAD.into(), &[c.vocab, c.dim]);
    }
    all
}

/// Prefix of all names but the head's, unless the checkpoint is of the bare model.
const PREFIX: &str = "model.";
pub(crate) const TABLE: &str = "model.embed_tokens.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// The checked tensors of one checkpoint.
#[derive(Debug)]
pub struct Weights {
    path: PathBuf,
    /// Keyed by the names in the files; for GGUF by the names of the published layout.
    tensors: BTreeMap<String, Tensor>,
    shards: Vec<(PathBuf, u64)>,
}

/// Index of a sharded checkpoint: tensor name → file name.
type Index = BTreeMap<String, String>;

impl Weights {
    /// Maps and checks the checkpoint in `folder`, or the GGUF file of that name.
    ///
    /// # Errors
    /// When a file is missing or is not safetensors or GGUF, the folder has several models in
    /// GGUF, or when a tensor is missing, surplus, in two
    /// shards, in another shard than the index says, or of another type or shape than `config`
    /// requires.
    pub fn open(folder: &Path, config: &Config) -> Result<Self> {
        if let Some(file) = Gguf::find(folder)? {
            return Self::of_gguf(&Gguf::open(&file)?, config);
        }
        let single = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        let mut weights =
            Self { path: folder.into(), tensors: BTreeMap::new(), shards: Vec::new() };
        if index_path.exists() {
            let text = std::fs::read(&index_path).map_err(Error::io(&index_path))?;
            let index = parse_index(&text, &index_path)?;
            for shard in index.values().collect::<BTreeSet<_>>() {
                weights.add_file(&folder.join(shard), Some((&index, shard)))?;
            }
            if let Some((name, file)) = index.iter().find(|(n, _)| !weights.has(n)) {
                return Err(Error::Tensor {
                    path: index_path,
                    tensor: name.clone(),
                    expected: format!("it in {file}, as the index says"),
                    found: "no such tensor there".into(),
                });
            }
        } else {
            weights.add_file(&single, None)?;
        }
        weights.check(config)?;
        Ok(weights)
    }

    /// Maps one safetensors file, whatever its tensors are.
    ///
    /// # Errors
    /// When the file is missing or is not safetensors, or a tensor is neither F32, F16 nor BF16.
    pub(crate) fn of_file(path: &Path) -> Result<Self> {
        let mut weights = Self { path: path.into(), tensors: BTreeMap::new(), shards: Vec::new() };
        weights.add_file(path, None)?;
        Ok(weights)
    }

    /// Checks the tensors of a GGUF file. They keep it mapped.
    ///
    /// # Errors
    /// When a tensor is missing, surplus, or of another shape than `config` requires.
    pub fn of_gguf(gguf: &Gguf, config: &Config) -> Result<Self> {
        Ok(Self {
            path: gguf.metadata().path().into(),
            tensors: gguf.weights(config)?,
            shards: gguf.files().map(|(path, bytes)| (path.into(), bytes)).collect(),
        })
    }

    /// Checks a checkpoint in memory, of one safetensors file. Errors name `path`.
    ///
    /// # Errors
    /// As [`Weights::open`].
    pub fn from_static(bytes: &'static [u8], path: &Path, config: &Config) -> Result<Self> {
        let mut weights = Self { path: path.into(), tensors: BTreeMap::new(), shards: Vec::new() };
        weights.add(Source::Static(bytes), path, None)?;
        weights.check(config)?;
        Ok(weights)
    }

    /// Builds weights without files: `make` returns each tensor that the config requires, in its
    /// shape.
    ///
    /// # Errors
    /// When a tensor has another shape.
    pub fn made(config: &Config, make: impl Fn(&Expected) -> Tensor) -> Result<Self> {
        let tensors = expected(config).into_iter().map(|want| {
            let tensor = make(&want);
            (want.name, tensor)
        });
        let tensors = tensors.collect();
        let weights = Self { path: "memory".into(), tensors, shards: Vec::new() };
        weights.check(config)?;
        Ok(weights)
    }

    /// Returns the folder or file that the weights come from.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether the checkpoint can produce logits: it has `lm_head`, or the embedding
    /// table is tied to it.
    pub fn has_head(&self, config: &Config) -> bool {
        config.tied || self.has(HEAD)
    }

    /// Returns the tensor of this name in the published layout.
    ///
    /// # Errors
    /// When there is none. [`Weights::open`] has checked the names of [`expected`] except for the
    /// head, whose presence [`Weights::has_head`] reports.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        let name = self.stored(name);
        self.tensors.get(name).cloned().ok_or_else(|| Error::Tensor {
            path: self.path.clone(),
            tensor: name.into(),
            expected: "a tensor".into(),
            found: "nothing".into(),
        })
    }

    /// Replaces the tensor of this name in the published layout by one of the same shape.
    pub(crate) fn set(&mut self, name: &str, tensor: Tensor) {
        let name = self.stored(name).to_string();
        debug_assert_eq!(self.tensors.get(&name).map(Tensor::shape), Some(tensor.shape()));
        self.tensors.insert(name, tensor);
    }

    /// Iterates over all tensors with their names in the files, for GGUF with those of the
    /// published layout.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Returns the files and their sizes in bytes.
    pub fn shards(&self) -> &[(PathBuf, u64)] {
        &self.shards
    }

    /// Returns the total bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.tensors.values().map(|t| t.stored().len() as u64).sum()
    }

    /// Translates a name of the published layout into the name in the files.
    pub fn stored<'a>(&self, name: &'a str) -> &'a str {
        let bare = || name.strip_prefix(PREFIX).filter(|_| !self.has(TABLE));
        bare().filter(|_| self.has(&TABLE[PREFIX.len()..])).unwrap_or(name)
    }

    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn add_file(&mut self, path: &Path, index: Option<(&Index, &str)>) -> Result<()> {
        let file = File::open(path).map_err(Error::io(path))?;
        // SAFETY: the map is read-only and private to this process. Another process that truncates
        // the file while it is mapped would fault this one; checkpoints are not edited in place.
        let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
        self.add(Source::Map(Arc::new(map)), path, index)
    }

    fn add(&mut self, source: Source, path: &Path, index: Option<(&Index, &str)>) -> Result<()> {
        let bytes = source.bytes();
        files::check_pointer(bytes, path)?;
        let format = |problem: String| Error::Format { path: path.into(), problem };
        let (header, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|e| format(format!("not a safetensors file: {}", explain(&e, bytes))))?;
        for (name, info) in metadata.tensors() {
            let tensor = |expected: String, found: String| Error::Tensor {
                path: path.into(),
                tensor: name.clone(),
                expected,
                found,
            };
            let dtype = match info.dtype {
                Stored::BF16 => Dtype::Bf16,
                Stored::F16 => Dtype::F16,
                Stored::F32 => Dtype::F32,
                other => return Err(tensor("BF16, F16 or F32".into(), format!("{other:?}"))),
            };
            if let Some((index, shard)) = index {
                match index.get(&name) {
                    Some(file) if file == shard => {}
                    Some(file) => {
                        let expected = format!("it in {file}, as the index says");
                        return Err(tensor(expected, "it here".into()));
                    }
                    None => {
                        return Err(tensor(
                            "a name of the index".into(),
                            "a surplus tensor".into(),
                        ));
                    }
                }
            }
            let (first, last) = info.data_offsets;
            // The header's length field takes 8 bytes, and offsets count from the header's end.
            let range = 8 + header + first..8 + header + last;
            let (shape, source) = (info.shape.clone(), source.clone());
            self.tensors.insert(name, Tensor { dtype, shape, source, range });
        }
        self.shards.push((path.into(), bytes.len() as u64));
        Ok(())
    }

    /// Compares the tensors found with those that the config requires.
    fn check(&self, config: &Config) -> Result<()> {
        let fail = |tensor: &str, expected: String, found: String| {
            Err(Error::Tensor { path: self.path.clone(), tensor: tensor.into(), expected, found })
        };
        let expected = expected(config);
        for want in &expected {
            let name = self.stored(&want.name);
            match self.tensors.get(name) {
                None if name == HEAD => {}
                None => return fail(name, format!("{:?}", want.shape), "nothing".into()),
                Some(t) if t.shape != want.shape => {
                    return fail(name, format!("{:?}", want.shape), format!("{:?}", t.shape));
                }
                Some(_) => {}
            }
        }
        let names: BTreeSet<&str> = expected.iter().map(|w| self.stored(&w.name)).collect();
        // Tied checkpoints may store the head again, and old ones store the rotary frequencies.
        let harmless = |n: &str| (config.tied && n == HEAD) || n.ends_with(".rotary_emb.inv_freq");
        match self.tensors.keys().find(|n| !names.contains(n.as_str()) && !harmless(n)) {
            Some(n) => fail(n, "no tensor of that name".into(), "a surplus tensor".into()),
            None => Ok(()),
        }
    }
}

/// Reads the `weight_map` of `model.safetensors.index.json`. Errors name `path`.
///
/// # Errors
/// When the text is not such a JSON object, the map is empty, or it names a file outside the
/// folder.
pub fn parse_index(text: &[u8], path: &Path) -> Result<BTreeMap<String, String>> {
    #[derive(serde::Deserialize)]
    struct File {
        weight_map: Index,
    }
    files::check_pointer(text, path)?;
    let format = |problem: String| Error::Format { path: path.into(), problem };
    let file: File =
        serde_json::from_slice(text).map_err(|e| format(format!("not a shard index: {e}")))?;
    if file.weight_map.is_empty() {
        return Err(format("not a shard index: weight_map is empty".into()));
    }
    for shard in file.weight_map.values() {
        let plain = Path::new(shard).components().count() == 1
            && Path::new(shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain {
            return Err(format(format!("weight_map: expected a file name, found {shard:?}")));
        }
    }
    Ok(file.weight_map)
}

/// Rewords an error of the `safetensors` crate for users, with sizes where the file is truncated.
fn explain(error: &safetensors::SafeTensorError, bytes: &[u8]) -> String {
    use safetensors::SafeTensorError as E;
    let found = bytes.len();
    match error {
        E::HeaderTooSmall => format!("expected at least 8 bytes, found {found}"),
        E::HeaderTooLarge => "its header claims more than 100 MB".into(),
        E::InvalidHeaderLength => {
            let claimed = u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
            format!("its header claims {claimed} bytes, the file has {found}")
        }
        E::InvalidHeader(_) => "its header is not UTF-8".into(),
        E::InvalidHeaderDeserialization(e) => format!("its header is not JSON of tensors: {e}"),
        E::MetadataIncompleteBuffer => {
            format!("its tensors and its {found} bytes do not match (cut off, or too long)")
        }
        E::InvalidOffset(name) => {
            format!("tensor {name} overlaps another, leaves a hole or ends before it starts")
        }
        other => other.to_string(),
    }
}
