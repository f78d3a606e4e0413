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
mod ranges;
mod tensor;

use crate::config::Config;
pub use crate::format::{Dtype, decode};
use crate::gguf::Gguf;
use crate::{Error, Result, files};
use memmap2::Mmap;
use ranges::Away;
pub use ranges::{RangeFile, Ranges, Reading};
use safetensors::tensor::{Dtype as Stored, Metadata};
use safetensors::{SafeTensorError, SafeTensors};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tensor::Source;
pub use tensor::Tensor;

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
            weights.check_index(Some(&index), &index_path)?;
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

    /// Checks the checkpoint in one safetensors file, or in several, which are read in pieces: now
    /// their headers, and each tensor when it is loaded.
    ///
    /// # Errors
    /// As [`Weights::open`], and when a file cannot be read.
    pub async fn of_ranges(
        files: &[RangeFile],
        index: Option<&BTreeMap<String, String>>,
        path: &Path,
        config: &Config,
    ) -> Result<Self> {
        let mut weights = Self { path: path.into(), tensors: BTreeMap::new(), shards: Vec::new() };
        for file in files {
            let (first, size) = (file.safetensors_header().await?, file.size()?);
            let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let found = ranges::metadata(&first, size);
            let index = index.map(|index| (index, name));
            let source = Source::Away(Arc::new(Away::new(file, None)));
            weights.add(&first, size, found, &file.path, index, &source)?;
        }
        weights.check_index(index, path)?;
        weights.check(config)?;
        Ok(weights)
    }

    /// Checks the tensors of a GGUF file. They keep it mapped, or are read when they are loaded.
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
        weights.add_source(Source::Static(bytes), path, None)?;
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
        self.tensors.values().map(Tensor::size).sum()
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
        self.add_source(Source::Map(Arc::new(map)), path, index)
    }

    /// Adds the tensors of a safetensors file in memory.
    fn add_source(
        &mut self,
        source: Source,
        path: &Path,
        index: Option<(&Index, &str)>,
    ) -> Result<()> {
        let bytes = source.bytes();
        let found = SafeTensors::read_metadata(bytes);
        self.add(bytes, bytes.len(), found, path, index, &source)
    }

    /// Adds the tensors of a safetensors file of `size` bytes, whose header `found` is and whose
    /// beginning `bytes` is.
    fn add(
        &mut self,
        bytes: &[u8],
        size: usize,
        found: Result<(usize, Metadata), SafeTensorError>,
        path: &Path,
        index: Option<(&Index, &str)>,
        source: &Source,
    ) -> Result<()> {
        files::check_pointer(bytes, path)?;
        let format = |problem: String| Error::Format { path: path.into(), problem };
        let (header, metadata) = found
            .map_err(|e| format(format!("not a safetensors file: {}", explain(&e, bytes, size))))?;
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
        self.shards.push((path.into(), size as u64));
        Ok(())
    }

    /// Checks that every tensor which the index of the shards names has been found.
    fn check_index(&self, index: Option<&Index>, path: &Path) -> Result<()> {
        match index.and_then(|index| index.iter().find(|(name, _)| !self.has(name))) {
            None => Ok(()),
            Some((name, file)) => Err(Error::Tensor {
                path: path.into(),
                tensor: name.clone(),
                expected: format!("it in {file}, as the index says"),
                found: "no such tensor there".into(),
            }),
        }
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
fn explain(error: &SafeTensorError, bytes: &[u8], found: usize) -> String {
    use SafeTensorError as E;
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
