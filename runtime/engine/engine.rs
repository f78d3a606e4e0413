//! The engine: one loaded copy of the weights, for embedding and for generating.

use crate::backend::{self, Device, Load, Loaded};
use crate::batch::{Output, Sequence};
use crate::cache::{KvCache, KvPool, KvSnapshot};
use crate::forward::{Corpus, Model, Probe};
use crate::grammar::Vocabulary;
use crate::{Error, Result, hub, synth};
use gritlm_model::config::Config;
use gritlm_model::demo;
use gritlm_model::hash::fnv1a;
use gritlm_model::ops::{Created, Mask, OpTime, PAGE};
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::Weights;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Which attention embeds and which generates, in the original's letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Attn {
    /// Bidirectional embedding, causal generation: GritLM as published.
    #[default]
    Bbcc,
    /// Causal throughout, for checkpoints trained so.
    Cccc,
}

impl FromStr for Attn {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "bbcc" => Ok(Self::Bbcc),
            "cccc" => Ok(Self::Cccc),
            found => Err(Error::Option {
                option: "attn",
                expected: "bbcc or cccc".into(),
                found: found.into(),
            }),
        }
    }
}

/// More than any model has positions, and few enough to count their pages.
const MAX_KV_TOKENS: usize = 1 << 31;

/// How to open a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Where to compute.
    pub device: Device,
    /// Which attention embeds.
    pub attn: Attn,
    /// Tokens that a pass may hold, unless one text alone is longer. More of them read the weights
    /// less often and take more memory: some 0.7 MB each at GritLM-7B's size.
    pub batch_tokens: usize,
    /// Tokens that the KV pages hold; memory is taken as they are first used.
    pub kv_tokens: usize,
    /// Round the rotary frequencies to bfloat16, as casting a whole Hugging Face model does
    /// (`model.bfloat16()`, `model.half()` likewise) and loading it with a `torch_dtype` does not.
    /// For comparing with outputs made that way; GritLM itself is loaded, not cast.
    pub bf16_frequencies: bool,
    /// Whether downloads and loading may draw progress bars on a terminal.
    pub progress: bool,
    /// Time every op on a GPU; see [`Engine::profile`].
    pub profile: bool,
    /// On a GPU, multiply in half precision where there are many rows (embedding, prefill): faster
    /// where the adapter has f16 or matrix units, and about 1e-3 off.
    pub f16: bool,
    /// On a GPU, measure which tiles are fastest before loading (some seconds), and keep them in the
    /// cache folder for later starts on the same adapter.
    pub tune: bool,
    /// On a GPU, split weight matrices into buffers of at most so many bytes, where the adapter
    /// itself would take larger ones.
    pub matrix_bytes: Option<u64>,
    /// On CUDA, a folder of kernels that `gritlm kernels build` has made, where the compiler (NVRTC)
    /// is not to be asked.
    pub kernels: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let (device, attn) = (Device::default(), Attn::default());
        Self {
            device,
            attn,
            batch_tokens: 1024,
            kv_tokens: 16384,
            bf16_frequencies: false,
            progress: false,
            profile: false,
            tune: false,
            f16: false,
            matrix_bytes: None,
            kernels: None,
        }
    }
}

impl Options {
    fn check(&self) -> Result<()> {
        for (option, tokens) in [("batch_tokens", self.batch_tokens), ("kv_tokens", self.kv_tokens)]
        {
            if tokens == 0 {
                let expected = "a positive number of tokens".into();
                return Err(Error::Option { option, expected, found: "0".into() });
            }
        }
        if self.kv_tokens > MAX_KV_TOKENS {
            return Err(Error::Option {
                option: "kv_tokens",
                expected: format!("at most {MAX_KV_TOKENS}"),
                found: self.kv_tokens.to_string(),
            });
        }
        Ok(())
    }
}

/// A loaded model.
///
/// ```
/// use gritlm::{Embed, Engine, Options, Prompt, Sampling};
///
/// let engine = Engine::open("demo", &Options::default())?;
/// let found = engine.embed(&["chess interface for the desktop"], &Embed::default())?;
/// assert_eq!(found[0].vector.len(), engine.config().dim);
///
/// let question = "Generic Mapping Tools\n\nIn which section would it be?";
/// for piece in engine.generate(&Prompt::user(question), &Sampling::greedy())? {
///     print!("{}", piece?.text);
/// }
/// # Ok::<(), gritlm::Error>(())
/// ```
pub struct Engine {
    name: String,
    config: Config,
    tokenizer: Tokenizer,
    model: Mutex<Box<dyn Model>>,
    pool: Arc<KvPool>,
    options: Options,
    why_device: String,
    loading: (u64, Duration),
    fingerprint: u128,
    generates: bool,
    #[cfg_attr(not(feature = "grammar"), expect(dead_code, reason = "for grammars"))]
    vocabulary: Vocabulary,
}

/// A checkpoint on disk or in the binary, checked and not yet on a device.
pub struct Checkpoint {
    /// The model's sizes.
    pub config: Config,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its weights, mapped.
    pub weights: Weights,
}

impl Checkpoint {
    /// Opens and checks `model`: a folder, a Hugging Face id, or `demo`. `progress`: whether a
    /// download may draw a bar on a terminal.
    ///
    /// # Errors
    /// When there is no such model, or a file is not as it should be.
    pub fn open(model: &str, progress: bool) -> Result<Self> {
        if model == "demo" {
            let path = |file: &str| PathBuf::from("demo").join(file);
            let config = Config::parse(demo::CONFIG, &path("config.json"))?;
            let tokenizer = Tokenizer::parse(demo::TOKENIZER, &path("tokenizer.json"), &config)?;
            let weights = Weights::from_static(demo::WEIGHTS, &path("model.safetensors"), &config)?;
            return Ok(Self { config, tokenizer, weights });
        }
        Self::open_folder(&hub::resolve(model, progress)?)
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config = Config::open(&folder.join("config.json"))?;
        // The weights first: their errors are the ones that a broken download causes.
        let weights = Weights::open(folder, &config)?;
        let tokenizer = Tokenizer::open(&folder.join("tokenizer.json"), &config)?;
        Ok(Self { config, tokenizer, weights })
    }
}

impl Engine {
    /// Opens a model: a folder with a checkpoint as published, a Hugging Face id (local cache
    /// first, then a download), or `demo`, which is in the binary.
    ///
    /// # Errors
    /// When there is no such model or device, or the checkpoint is not as it should be.
    pub fn open(model: &str, options: &Options) -> Result<Self> {
        options.check()?;
        let Checkpoint { config, tokenizer, weights } = Checkpoint::open(model, options.progress)?;
        Self::load(model.into(), config, tokenizer, Some(&weights), options)
    }

    /// A model of one of [`synth::SHAPES`] with random weights and no file, to measure: it answers
    /// nonsense, in the time that a model of this shape takes. `layers` replaces the shape's own
    /// number. Texts are tokenized byte by byte.
    ///
    /// A GPU gets its matrices from one random block in memory, which saves the time of making them
    /// apart; the CPU, which would find a block that is read again and again in its caches, has a
    /// block for each.
    ///
    /// # Errors
    /// When there is no such shape or device, or the device tells its memory and the model with its
    /// KV pages does not fit; the message says how many layers would.
    pub fn random(like: &str, layers: Option<usize>, options: &Options) -> Result<Self> {
        options.check()?;
        let config = synth::config(like, layers)?;
        let tokenizer = synth::tokenizer(&config)?;
        let name = match layers {
            Some(1) => format!("{like} with 1 layer"),
            Some(layers) => format!("{like} with {layers} layers"),
            None => like.into(),
        };
        Self::load(name, config, tokenizer, None, options)
    }

    /// `weights`: None for random ones.
    fn load(
        name: String,
        config: Config,
        tokenizer: Tokenizer,
        weights: Option<&Weights>,
        options: &Options,
    ) -> Result<Self> {
        let fingerprint = fingerprint(&config, weights);
        let generates = weights.is_none_or(|weights| weights.has_head(&config));
        let pages = options.kv_tokens.div_ceil(PAGE);
        let pool = KvPool::new(pages);
        let frequencies = frequencies(&config, options);
        let load = Load { options, config: &config, weights, frequencies, pool: &pool, pages };
        let Loaded { model, why, loading } = backend::open(options, load)?;
        Ok(Self {
            name,
            config,
            tokenizer,
            model: Mutex::new(model),
            pool,
            options: options.clone(),
            why_device: why,
            loading,
            fingerprint,
            generates,
            vocabulary: Vocabulary::default(),
        })
    }

    /// The model as it was asked for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of weights, and how long they took to the device once it was open; next to nothing on
    /// the CPU, which computes on the mapped files.
    pub fn loading(&self) -> (u64, Duration) {
        self.loading
    }

    /// The checked config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Refuses a text that cannot fit the model's positions before it is tokenized, which takes some
    /// 100 bytes of memory for each of its own.
    pub fn check_bytes(&self, what: &'static str, bytes: usize) -> Result<()> {
        let positions = self.config.max_positions;
        let limit = self.tokenizer.most_bytes(positions);
        match bytes <= limit {
            true => Ok(()),
            false => Err(Error::LongText { what, bytes, limit, positions }),
        }
    }

    /// Whether there are logits, which generating and ranking need. A checkpoint that was saved from
    /// the bare model has no `lm_head` and only embeds.
    pub fn generates(&self) -> bool {
        self.generates
    }

    /// An error where there are no logits.
    pub(crate) fn check_generates(&self) -> Result<()> {
        if self.generates { Ok(()) } else { Err(Error::NoHead) }
    }

    /// The device in use and why: "cpu (AVX-512, 2 threads): there is no GPU".
    pub fn device(&self) -> String {
        format!("{}: {}", self.model().device(), self.why_device)
    }

    /// Bytes that the KV pages take for one token.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.config.kv_bytes_per_token(self.model().cached_bytes())
    }

    /// The rotary frequencies in use, `(head_dim / 2)`.
    pub fn frequencies(&self) -> Vec<f32> {
        frequencies(&self.config, &self.options)
    }

    /// Tells this checkpoint from others: a hash of its config and of the head of every tensor.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// How it was opened.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// An empty cache for [`Engine::run`].
    pub fn cache(&self) -> KvCache {
        KvCache::new(&self.pool)
    }

    /// Runs sequences of token ids in one pass, whatever their masks and wishes.
    ///
    /// ```
    /// use gritlm::batch::{Output, Sequence, Want};
    /// use gritlm::model::ops::{Mask, Pooling};
    ///
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let (mut a, mut b) = (engine.cache(), engine.cache());
    /// let want = Want::Embedding { skip: 0, pooling: Pooling::Mean, normalize: true };
    /// let outputs = engine.run(&mut [
    ///     Sequence {
    ///         tokens: &[1, 7, 8],
    ///         cache: &mut a,
    ///         mask: Mask::Bidirectional { window: None },
    ///         want,
    ///     },
    ///     Sequence {
    ///         tokens: &[1, 9],
    ///         cache: &mut b,
    ///         mask: Mask::Causal { window: None },
    ///         want: Want::Logits,
    ///     },
    /// ])?;
    /// assert!(matches!(&outputs[0], Output::Embedding(v) if v.len() == engine.config().dim));
    /// assert!(matches!(&outputs[1], Output::Logits(v) if v.len() == engine.config().vocab));
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    ///
    /// # Errors
    /// When a sequence is empty, has ids beyond the vocabulary or another engine's cache, wants logits
    /// that the checkpoint has not ([`Engine::generates`]), or the KV pages do not suffice. Then
    /// nothing has changed.
    pub fn run(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Output>> {
        self.model().run(sequences, None)
    }

    /// [`Engine::run`], looking at the stages inside.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_probed(
        &self,
        sequences: &mut [Sequence<'_>],
        probe: &mut Probe<'_>,
    ) -> Result<Vec<Output>> {
        self.model().run(sequences, Some(probe))
    }

    /// Copies a sequence's keys and values off the device.
    ///
    /// # Errors
    /// When a sliding window has dropped a part, or the cache is another engine's.
    pub fn export(&self, cache: &KvCache) -> Result<KvSnapshot> {
        self.model().export(cache)
    }

    /// Puts exported keys and values into pages of this engine.
    ///
    /// # Errors
    /// When they are another model's, or do not fit.
    pub fn import(&self, from: &KvSnapshot) -> Result<KvCache> {
        self.model().import(from)
    }

    /// The `top_k` vectors of `corpus (n, dim)` with the largest inner product with each of
    /// `queries (m, dim)`: (index, product), best first. To search the same vectors again, see
    /// [`Engine::corpus`].
    ///
    /// # Errors
    /// When a length is no multiple of `dim`, or the device refuses.
    pub fn search(
        &self,
        dim: usize,
        queries: &[f32],
        corpus: &[f32],
        top_k: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>> {
        self.search_in(&self.corpus(dim, corpus.to_vec())?, queries, top_k)
    }

    /// Vectors `(n, dim)` on the device, for [`Engine::search_in`]. A GPU gets them once; on the CPU
    /// they stay where they are, in a mapped file, too.
    ///
    /// ```
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let corpus = engine.corpus(2, vec![1.0, 0.0, 0.6, 0.8])?;
    /// assert_eq!(engine.search_in(&corpus, &[0.0, 1.0], 1)?, [[(1, 0.8)]]);
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the length is no multiple of `dim`, or the device has no room.
    pub fn corpus(
        &self,
        dim: usize,
        vectors: impl AsRef<[f32]> + Send + Sync + 'static,
    ) -> Result<Corpus> {
        self.model().corpus(dim, Arc::new(vectors))
    }

    /// [`Engine::search`] of what is on the device.
    ///
    /// # Errors
    /// When the corpus is another engine's, the queries' length is no multiple of its width, or the
    /// device refuses.
    pub fn search_in(
        &self,
        corpus: &Corpus,
        queries: &[f32],
        top_k: usize,
    ) -> Result<Vec<Vec<(u32, f32)>>> {
        self.model().search(top_k, queries, corpus)
    }

    /// The mask that generation uses: causal with the config's window.
    pub fn generation_mask(&self) -> Mask {
        Mask::Causal { window: self.config.window.map(|w| w as u32) }
    }

    /// The mask that embedding uses: bidirectional without window, whatever the config says, as the
    /// original with its default attention; or in `cccc` the one that generation uses, which makes
    /// reusing its keys and values exact.
    pub fn embedding_mask(&self, attn: Attn) -> Mask {
        match attn {
            Attn::Bbcc => Mask::Bidirectional { window: None },
            Attn::Cccc => self.generation_mask(),
        }
    }

    /// What each op took on the device since the last call, the longest first; empty unless the
    /// engine was opened with [`Options::profile`] on a GPU.
    pub fn profile(&self) -> Vec<OpTime> {
        self.model().profile()
    }

    /// What the device has been asked to make so far; steps alike make nothing new.
    pub fn created(&self) -> Created {
        self.model().created()
    }

    /// The vocabulary by bytes, for grammars.
    #[cfg(feature = "grammar")]
    pub(crate) fn vocabulary(&self) -> Result<Arc<llguidance::ParserFactory>> {
        self.vocabulary.get(&self.tokenizer, self.config.vocab, &self.config.eos)
    }

    /// Tokens that all KV pages together hold.
    pub fn kv_tokens(&self) -> usize {
        self.pool.pages() * PAGE
    }

    /// The KV pages.
    pub(crate) fn pool(&self) -> &KvPool {
        &self.pool
    }

    fn model(&self) -> MutexGuard<'_, Box<dyn Model>> {
        // A pass that panicked has advanced no cache; the next one starts from whole state.
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn frequencies(config: &Config, options: &Options) -> Vec<f32> {
    let mut frequencies = config.rope_frequencies();
    if options.bf16_frequencies {
        frequencies.iter_mut().for_each(|f| *f = half::bf16::from_f32(*f).to_f32());
    }
    frequencies
}

/// Some 64 bytes of each tensor tell two trained models apart without reading 14 GB.
fn fingerprint(config: &Config, weights: Option<&Weights>) -> u128 {
    let mut seen = format!("{config:?}").into_bytes();
    for (name, tensor) in weights.into_iter().flat_map(Weights::tensors) {
        let bytes = tensor.bytes();
        seen.extend(name.bytes());
        seen.extend(&bytes[..bytes.len().min(64)]);
    }
    fnv1a(&seen)
}
