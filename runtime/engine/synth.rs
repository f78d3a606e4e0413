//! Random checkpoints in the published layout, for benchmarks and capacity tests: speed and
//! memory depend on a model's shape, not on its trained weights.

use crate::backend::{self, Load, Loaded, Visit};
use crate::checkpoint::fingerprint;
use crate::{Engine, Error, Options, Result};
use gritlm_model::config::{Config, Experts, Family, RopeScaling};
use gritlm_model::hash::fnv1a;
use gritlm_model::measure::Measure;
use gritlm_model::ops::Ops;
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::{Dtype, Expected, Tensor, Weights, expected};
use pollster::block_on;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Names of the shapes that [`shape`] returns.
pub const SHAPES: [&str; 5] = ["gritlm-7b", "gritlm-8x7b", "1b", "tiny", "tiny-moe"];

/// Number of bytes that are filled while the previous block is written. A block must be small
/// enough to stay in a CPU cache: with 4 MiB, 4.4 GB cost 2.9 s of system time instead of 1.3 s
/// (medians of 8, on a busy machine).
const BLOCK: usize = 1 << 20;
/// Bytes reserved for everything else in the memory that holds the model.
const ROOM: u64 = 256 << 20;
/// Number of bytes that a thread fills at a time, which fit its own cache.
const PIECE: usize = 64 << 10;

/// Summary of a written checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Number of files in the folder.
    pub files: usize,
    /// Size of all tensors in bytes.
    pub bytes: u64,
    /// Number of parameters of the model.
    pub parameters: u64,
}

/// Returns the config of one of [`SHAPES`], or None for another name.
pub fn shape(like: &str) -> Option<Config> {
    let [dim, layers, heads, kv_heads, head_dim, hidden, vocab, max_positions] = match like {
        "gritlm-7b" | "gritlm-8x7b" => [4096, 32, 32, 8, 128, 14336, 32000, 32768],
        "1b" => [2048, 22, 16, 4, 128, 5632, 32000, 8192],
        "tiny" | "tiny-moe" => [256, 4, 4, 2, 64, 768, 4096, 4096],
        _ => return None,
    };
    let mixture = matches!(like, "gritlm-8x7b" | "tiny-moe");
    Some(Config {
        family: if mixture { Family::Mixtral } else { Family::Mistral },
        dim,
        layers,
        heads,
        kv_heads,
        head_dim,
        hidden,
        vocab,
        rope_theta: if like == "gritlm-8x7b" { 1e6 } else { 1e4 },
        rope_scaling: None,
        norm_eps: 1e-5,
        window: (like == "gritlm-7b").then_some(4096),
        max_positions,
        bos: 1,
        eos: vec![2],
        tied: false,
        experts: mixture.then_some(Experts { count: 8, top_k: 2 }),
    })
}

/// Returns the config of [`shape`] with another number of layers.
///
/// # Errors
/// When the shape is unknown, or `layers` is not from 1 to 1024.
pub fn config(like: &str, layers: Option<usize>) -> Result<Config> {
    let Some(mut config) = shape(like) else {
        let (expected, found) = (format!("one of {}", SHAPES.join(", ")), like.into());
        return Err(Error::Option { option: "like", expected, found });
    };
    config.layers = layers.unwrap_or(config.layers);
    if !(1..=1024).contains(&config.layers) {
        let (expected, found) = ("a number from 1 to 1024".into(), config.layers.to_string());
        return Err(Error::Option { option: "layers", expected, found });
    }
    Ok(config)
}

/// Writes a checkpoint of one of [`SHAPES`] to the folder `output`, which must be empty or not
/// exist. `layers` replaces the shape's own number of layers. `progress` is called with the
/// number of bytes written and the total, and its error ends the work. A `seed` gives the same
/// bytes on every machine. Until the checkpoint is complete, its files are in
/// `<output>.partial-<process id>`, beside `output`.
///
/// # Errors
/// When the shape is unknown, `layers` is not from 1 to 1024, `output` exists and is not an empty
/// folder, or a file cannot be written. Nothing is then left behind.
pub fn write(
    like: &str,
    layers: Option<usize>,
    seed: u64,
    output: &Path,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Report> {
    write_config(&config(like, layers)?, seed, output, 5_000_000_000, progress) // Hugging Face's "5GB"
}

/// Writes a checkpoint as [`write()`] does, for any shape, in files of at most `shard_bytes`
/// bytes of tensors, or of a single larger tensor.
///
/// # Errors
/// As [`write()`], and when the config is invalid or its `vocab` is less than 260.
pub fn write_config(
    config: &Config,
    seed: u64,
    output: &Path,
    shard_bytes: u64,
    progress: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<Report> {
    let mut texts = vec![
        ("config.json", format!("{:#}\n", config_json(config))),
        ("tokenizer.json", tokenizer_json(config.vocab).to_string()),
    ];
    // These checks prevent writing a checkpoint that could not be opened.
    Config::parse(texts[0].1.as_bytes(), &output.join(texts[0].0))?;
    Tokenizer::parse(texts[1].1.as_bytes(), &output.join(texts[1].0), config)?;
    let tensors = expected(config);
    let shards = shards(&tensors, shard_bytes);
    let total = tensors.iter().map(bytes).sum();
    if shards.len() > 1 {
        let map = shards.iter().flat_map(|(file, all)| all.iter().map(move |t| (&t.name, file)));
        let map = map.collect::<BTreeMap<_, _>>();
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        texts.push(("model.safetensors.index.json", format!("{index:#}\n")));
    }
    if output.read_dir().map_or(output.exists(), |mut entries| entries.next().is_some()) {
        return Err(Error::io(output)(io::Error::other("exists, and is no empty folder")));
    }
    // If `output` is a link, the partial folder is beside its target, because a folder cannot be
    // renamed into another file system.
    let output = output.canonicalize().unwrap_or_else(|_| output.components().collect());
    let partial = output.with_added_extension(format!("partial-{}", std::process::id()));
    fs::create_dir(&partial).map_err(Error::io(&partial))?;
    let partial = Partial(partial);
    let files = texts.len() + shards.len();
    for (name, text) in texts {
        let path = partial.0.join(name);
        fs::write(&path, text).map_err(Error::io(&path))?;
    }
    let (mut done, mut written) = (0, Vec::new());
    for (name, tensors) in shards {
        let path = partial.0.join(name);
        let mut wrote = |bytes| {
            done += bytes;
            progress(done, total)
        };
        written.push((save(&path, tensors, seed, &mut wrote)?, path));
    }
    // A benchmark that runs next must not share the disk with data that is still being written.
    written.into_iter().try_for_each(|(file, path)| file.sync_all().map_err(Error::io(path)))?;
    let _ = fs::remove_dir(&output); // not every system renames over an empty folder
    fs::rename(&partial.0, &output).map_err(Error::io(&output))?;
    Ok(Report { files, bytes: total, parameters: config.parameters() })
}

/// Returns the tokenizer that [`write()`] writes: each byte of a text is a token.
///
/// # Errors
/// When the config has too few tokens for all bytes.
pub fn tokenizer(config: &Config) -> Result<Tokenizer> {
    let text = tokenizer_json(config.vocab).to_string();
    Ok(Tokenizer::parse(text.as_bytes(), Path::new("tokenizer.json"), config)?)
}

impl Engine {
    /// Creates a model of one of [`SHAPES`] with random weights and without files, for
    /// measurements. Its answers are nonsense, but take as long as those of any model of this
    /// shape. `layers` replaces the shape's own number of layers. Texts are tokenized byte by
    /// byte.
    ///
    /// A GPU gets all matrices from one random block in memory, which saves the time of making
    /// each of them. The CPU computes on this memory itself, and would find a block that it reads
    /// again and again in its caches, so there each matrix has a block of its own.
    ///
    /// # Errors
    /// When an option is invalid, there is no such shape or device, or the model with its KV
    /// pages does not fit the memory that the device reports; the message then says how many
    /// layers would fit.
    pub fn random(like: &str, layers: Option<usize>, options: &Options) -> Result<Self> {
        let open = async |load: Load<'_>| backend::open_async(options, load).await;
        Self::with_random_weights(like, layers, options, open)
    }

    /// Does what [`Engine::random`] does on a backend of the caller's own.
    ///
    /// # Errors
    /// As [`Engine::random`].
    pub fn random_on<O: Measure + 'static>(
        ops: O,
        like: &str,
        layers: Option<usize>,
        options: &Options,
    ) -> Result<Self> {
        let open = async |load: Load<'_>| load.visit(ops, "given by the caller".into()).await;
        Self::with_random_weights(like, layers, options, open)
    }

    fn with_random_weights(
        like: &str,
        layers: Option<usize>,
        options: &Options,
        open: impl AsyncFnOnce(Load<'_>) -> Result<Loaded>,
    ) -> Result<Self> {
        options.check()?;
        if let Some(adapter) = &options.adapter {
            let expected = "none for a model with random weights".into();
            let found = adapter.display().to_string();
            return Err(Error::Option { option: "adapter", expected, found });
        }
        let config = config(like, layers)?;
        let tokenizer = tokenizer(&config)?;
        let name = match layers {
            Some(1) => format!("{like} with 1 layer"),
            Some(layers) => format!("{like} with {layers} layers"),
            None => like.into(),
        };
        let fingerprint = fingerprint(&config, None, None);
        let mut engine = block_on(Self::load(name, config, tokenizer, None, options, open))?;
        engine.fingerprint = fingerprint;
        Ok(engine)
    }
}

/// Returns random weights in memory. With `apart`, every tensor has its own bytes, the same that
/// [`write()`] writes with seed 0. Otherwise all matrices are parts of one block of the size of
/// the largest, and products are as large as their input where the input has `dim` columns.
pub(crate) fn weights(config: &Config, apart: bool) -> Result<Weights> {
    let make = |tensor: &Expected| {
        let (mut block, fill) = (vec![0; bytes(tensor) as usize], filler(tensor, 0));
        let pieces = block.par_chunks_mut(PIECE).enumerate();
        pieces.for_each(|(i, piece)| fill((i * PIECE) as u64, piece));
        Arc::new(block)
    };
    let own = |tensor: &Expected| Tensor::of_block(Dtype::Bf16, &tensor.shape, &make(tensor), 0);
    if apart {
        return Ok(Weights::made(config, own)?);
    }
    let largest = expected(config).iter().map(bytes).max().unwrap_or_default();
    let rows = largest.div_ceil(2 * config.dim as u64) as usize;
    let block = make(&Expected { name: "block".into(), shape: vec![rows, config.dim] });
    Ok(Weights::made(config, |tensor| {
        // Norm weights are near 1, and they are small tensors.
        if tensor.shape.len() == 1 {
            return own(tensor);
        }
        let places = (block.len() as u64 - bytes(tensor)) / 64 + 1;
        let at = fnv1a(tensor.name.bytes()) as u64 % places * 64;
        Tensor::of_block(Dtype::Bf16, &tensor.shape, &block, at as usize)
    })?)
}

/// Returns an error if a model with random weights does not fit the device's memory. The check is
/// skipped on devices that do not report their free memory.
pub(crate) fn check_memory<O: Ops>(ops: &O, config: &Config, options: &Options) -> Result<()> {
    let Some(free) = ops.free_memory() else { return Ok(()) };
    let c = config;
    let kv_type = options.kv_type.or(ops.page_dtypes().first().copied()).unwrap_or(Dtype::F32);
    let kv = (options.kv_tokens * c.kv_bytes_per_token(kv_type)) as u64;
    let all: u64 = expected(c).iter().map(bytes).sum();
    let one: u64 = expected(&Config { layers: 1, ..c.clone() }).iter().map(bytes).sum();
    let none: u64 = expected(&Config { layers: 0, ..c.clone() }).iter().map(bytes).sum();
    debug_assert_eq!(all, none + c.layers as u64 * (one - none));
    // The row holds x, h, q, the output of attention, and the inner activations of the
    // feed-forward.
    let row = 2 * c.dim + 2 * c.heads * c.head_dim + c.experts.map_or(1, |e| e.top_k) * c.hidden;
    let rest = none + (options.batch_tokens * row * 4) as u64 + ROOM;
    fits(c.layers, one - none + kv / c.layers as u64, rest, free)
}

/// Checks that `layers` layers of `layer` bytes each and `rest` bytes fit into `free` bytes.
///
/// # Errors
/// When they do not fit; the message says how many layers would.
pub fn fits(layers: usize, layer: u64, rest: u64, free: u64) -> Result<()> {
    let needed = rest.saturating_add(layer.saturating_mul(layers as u64));
    if needed <= free {
        return Ok(());
    }
    let gb = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    let would = match free.saturating_sub(rest) / layer.max(1) {
        0 => "not even `layers` 1 would fit; lower `kv_tokens`".into(),
        layers => format!("`layers` {layers} would fit"),
    };
    Err(Error::Option {
        option: "like",
        expected: format!("a model that fits the {} of memory that are free ({would})", gb(free)),
        found: format!("one of {layers} layers that takes {} with its KV pages", gb(needed)),
    })
}

/// A folder that is removed when this value is dropped, unless it has been renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Returns the bytes of a tensor in bf16.
fn bytes(tensor: &Expected) -> u64 {
    tensor.shape.iter().map(|&n| n as u64).product::<u64>() * 2
}

/// Distributes the tensors over files, in their order.
fn shards(tensors: &[Expected], limit: u64) -> Vec<(String, &[Expected])> {
    let mut size = 0;
    let together = |last: &Expected, next: &Expected| {
        size += bytes(last);
        let fits = size + bytes(next) <= limit;
        size *= u64::from(fits);
        fits
    };
    let groups: Vec<_> = tensors.chunk_by(together).collect();
    let name = |i| match groups.len() {
        1 => "model.safetensors".into(),
        count => format!("model-{i:05}-of-{count:05}.safetensors"),
    };
    (1..).zip(&groups).map(|(i, &tensors)| (name(i), tensors)).collect()
}

/// Returns the header of a file of tensors: the length of a JSON text, then the text.
fn header(tensors: &[Expected]) -> Vec<u8> {
    let mut json = json!({ "__metadata__": { "format": "pt" } });
    let mut end = 0;
    for t in tensors {
        let start = end;
        end += bytes(t);
        json[&t.name] = json!({ "dtype": "BF16", "shape": t.shape, "data_offsets": [start, end] });
    }
    let mut json = json.to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' '); // aligns the tensors
    [&(json.len() as u64).to_le_bytes(), &*json].concat()
}

/// Writes a file of tensors, and fills the next block while one is written. `wrote` is called
/// with the bytes of each block.
fn save(
    path: &Path,
    all: &[Expected],
    seed: u64,
    wrote: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<File> {
    let mut file = File::create_new(path).map_err(Error::io(path))?;
    file.write_all(&header(all)).map_err(Error::io(path))?;
    let (mut full, mut next) = (Vec::new(), Vec::new());
    for tensor in all {
        let (bytes, fill) = (bytes(tensor), filler(tensor, seed));
        for start in (0..bytes).step_by(BLOCK) {
            next.resize((bytes - start).min(BLOCK as u64) as usize, 0);
            let pieces = next.par_chunks_mut(PIECE).enumerate();
            let fill = |(i, piece): (usize, _)| fill(start + (i * PIECE) as u64, piece);
            let (saved, ()) = rayon::join(|| file.write_all(&full), || pieces.for_each(fill));
            saved.map_err(Error::io(path))?;
            wrote(full.len() as u64)?;
            std::mem::swap(&mut full, &mut next);
        }
    }
    file.write_all(&full).map_err(Error::io(path))?;
    wrote(full.len() as u64)?;
    Ok(file)
}

/// Returns a function that fills a piece of the tensor, given the byte where the piece starts, a
/// multiple of 8. Values are uniform and have no period. Each depends only on the seed, the
/// tensor's name and its own position, so the number of threads and the order of writing do not
/// matter.
fn filler(tensor: &Expected, seed: u64) -> impl Fn(u64, &mut [u8]) + Sync {
    let key = tensor.name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)));
    // The range extends √3 standard deviations to each side of the middle. With a standard
    // deviation of 1/√columns, a product is as large as its input, so nothing overflows in any
    // number of layers.
    let (middle, half) = match tensor.shape[..] {
        [] | [_] => (1.0, 0.1),
        _ if tensor.name == "model.embed_tokens.weight" => (0.0, 0.5 * 3_f32.sqrt()),
        [.., columns] => (0.0, (3.0 / columns as f32).sqrt()),
    };
    let step = half / 32768.0;
    let low = middle - half + step / 2.0; // half a step up, for symmetry
    move |start, piece| {
        for (place, word) in (start / 8..).zip(piece.chunks_mut(8)) {
            word.copy_from_slice(&mix(key ^ place).to_le_bytes()[..word.len()]);
        }
        // This loop is separate and reads unsigned numbers so that it vectorises; a core fills 4
        // GB/s.
        for value in piece.as_chunks_mut::<2>().0 {
            let x = low + f32::from(u16::from_le_bytes(*value)) * step;
            *value = (((x.to_bits() + 0x8000) >> 16) as u16).to_le_bytes(); // rounds to bf16
        }
    }
}

/// Applies the final hash of splitmix64, a permutation: different positions get different bits.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Returns `config.json` as Hugging Face writes it.
fn config_json(c: &Config) -> Value {
    // The numbers go through decimal text: widened directly, the f32 1e-5 would become
    // 0.000009999999747378752.
    let wide = |x: f32| x.to_string().parse().unwrap_or(f64::from(x));
    let kind = c.family.to_string();
    let mut json = json!({
        "architectures": [format!("{kind}ForCausalLM")], "model_type": kind.to_lowercase(),
        "hidden_size": c.dim, "intermediate_size": c.hidden, "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads, "num_key_value_heads": c.kv_heads, "head_dim": c.head_dim,
        "vocab_size": c.vocab, "max_position_embeddings": c.max_positions, "hidden_act": "silu",
        "rope_theta": wide(c.rope_theta), "rms_norm_eps": wide(c.norm_eps), "bos_token_id": c.bos,
        "sliding_window": c.window, "tie_word_embeddings": c.tied, "torch_dtype": "bfloat16",
        "eos_token_id": if let [one] = c.eos[..] { json!(one) } else { json!(c.eos) },
    });
    if let Some(experts) = c.experts {
        json["num_local_experts"] = experts.count.into();
        json["num_experts_per_tok"] = experts.top_k.into();
    }
    if let Some(scaling) = &c.rope_scaling {
        json["rope_scaling"] = scaling_json(scaling);
    }
    json
}

/// Returns the `rope_scaling` of a `config.json`. There is none for factors, which only GGUF files
/// have: [`write_config`] then fails, because no config has that type.
fn scaling_json(scaling: &RopeScaling) -> Value {
    match scaling {
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
            "high_freq_factor": high, "original_max_position_embeddings": original,
        }),
        RopeScaling::Factors(_) => json!({ "rope_type": "factors" }),
    }
}

/// Returns a `tokenizer.json` of Mistral's form without merges: a text becomes a space mark and
/// its UTF-8 bytes.
fn tokenizer_json(vocab: usize) -> Value {
    let mut names: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    names.extend((0..256).map(|byte| format!("<0x{byte:02X}>")).chain(["▁".into()]));
    names.extend((names.len()..vocab).map(|id| format!("<unused{}>", id - 260)));
    let added = [0, 1, 2].map(|id| {
        json!({ "id": id, "content": names[id], "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false })
    });
    let bos = |kind: usize| json!({ "SpecialToken": { "id": "<s>", "type_id": kind } });
    let text = |id: &str, kind: usize| json!({ "Sequence": { "id": id, "type_id": kind } });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "pre_tokenizer": null,
        "normalizer": { "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "▁" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "▁" } ] },
        "post_processor": { "type": "TemplateProcessing",
            "single": [bos(0), text("A", 0)], "pair": [bos(0), text("A", 0), bos(1), text("B", 1)],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } } },
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "byte_fallback": true,
            "vocab": names.iter().zip(0..).collect::<BTreeMap<_, u32>>(), "merges": [] },
    })
}
