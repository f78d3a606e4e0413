//! The engine holds one loaded copy of the weights and uses it for embedding and for generation.

use crate::backend::{self, Load, Loaded, Loading, Visit};
use crate::batch::{Output, Sequence};
use crate::cache::{KvCache, KvPool, KvSnapshot};
use crate::checkpoint::{Checkpoint, fingerprint};
use crate::corpus::Corpus;
use crate::forward::{Model, Probe};
use crate::grammar::Vocabulary;
use crate::options::{Attn, Options};
use crate::{Error, Result};
use gritlm_model::chat_template::ChatTemplate;
use gritlm_model::config::Config;
use gritlm_model::measure::{Created, Measure, OpTime};
use gritlm_model::ops::{Mask, Match, PAGE, Products};
use gritlm_model::tokenizer::Tokenizer;
use gritlm_model::weights::{Dtype, Weights};
use pollster::block_on;
use std::fmt;
use std::sync::Arc;
use tokio::sync::{Mutex, MutexGuard};

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
    chat_template: Option<ChatTemplate>,
    model: Mutex<Box<dyn Model>>,
    pool: Arc<KvPool>,
    options: Options,
    why_device: String,
    loading: Loading,
    /// Whether the device runs on rayon's threads.
    threads: bool,
    pub(crate) fingerprint: u128,
    generates: bool,
    #[cfg_attr(not(feature = "grammar"), expect(dead_code, reason = "for grammars"))]
    vocabulary: Vocabulary,
}

impl Engine {
    /// Opens a model: a folder with a checkpoint in the published layout or with a GGUF file, such
    /// a file, a Hugging Face id (from the local cache if it is there, else downloaded), with a
    /// colon and a name for one GGUF file of it, or `demo`, which is built into the binary.
    ///
    /// # Errors
    /// When an option is invalid, there is no such model or device, a file of the checkpoint is
    /// missing or invalid, or the device is out of memory.
    pub fn open(model: &str, options: &Options) -> Result<Self> {
        block_on(Self::open_async(model, options))
    }

    /// Does what [`Engine::open`] does, for async code.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_async(model: &str, options: &Options) -> Result<Self> {
        options.check()?;
        Self::of_checkpoint(model, Checkpoint::open(model, options.progress)?, options).await
    }

    /// Loads a checkpoint that is open, such as one of [`Checkpoint::of_ranges`]; `name` becomes
    /// the engine's.
    ///
    /// # Errors
    /// When an option is invalid, there is no such device or it is out of memory, or the weights
    /// cannot be read.
    pub async fn of_checkpoint(
        name: &str,
        checkpoint: Checkpoint,
        options: &Options,
    ) -> Result<Self> {
        let open = async |load: Load<'_>| backend::open_async(options, load).await;
        Self::load_checkpoint(name, checkpoint, options, open).await
    }

    /// Opens a model on a backend of the caller's own, for experiments with operations and for
    /// tests. [`Options::device`] does not count.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn on<O: Measure + 'static>(ops: O, model: &str, options: &Options) -> Result<Self> {
        let open = async |load: Load<'_>| load.visit(ops, "given by the caller".into()).await;
        options.check()?;
        let checkpoint = Checkpoint::open(model, options.progress)?;
        block_on(Self::load_checkpoint(model, checkpoint, options, open))
    }

    /// Loads a checkpoint onto the device that `open` opens.
    async fn load_checkpoint(
        model: &str,
        checkpoint: Checkpoint,
        options: &Options,
        open: impl AsyncFnOnce(Load<'_>) -> Result<Loaded>,
    ) -> Result<Self> {
        options.check()?;
        let mut checkpoint = checkpoint.with_adapter(options.adapter.as_deref())?;
        let chat_template = checkpoint.prompts_by(options.chat_template);
        let Checkpoint { config, tokenizer, weights, adapter, .. } = checkpoint;
        let fingerprint = fingerprint(&config, Some(&weights), adapter.as_ref());
        let name = model.into();
        let engine = Self::load(name, config, tokenizer, Some(&weights), options, open).await?;
        Ok(Self { chat_template, fingerprint, ..engine })
    }

    /// Loads a model onto the device that `open` opens; without `weights` it gets random ones.
    pub(crate) async fn load(
        name: String,
        config: Config,
        tokenizer: Tokenizer,
        weights: Option<&Weights>,
        options: &Options,
        open: impl AsyncFnOnce(Load<'_>) -> Result<Loaded>,
    ) -> Result<Self> {
        let generates = weights.is_none_or(|weights| weights.has_head(&config));
        let pages = options.kv_tokens.div_ceil(PAGE);
        let pool = KvPool::new(pages);
        let frequencies = frequencies(&config, options);
        let load = Load { options, config: &config, weights, frequencies, pool: &pool, pages };
        let Loaded { model, why, loading, threads } = open(load).await?;
        Ok(Self {
            name,
            config,
            tokenizer,
            chat_template: None,
            model: Mutex::new(model),
            pool,
            options: options.clone(),
            why_device: why,
            loading,
            threads,
            fingerprint: 0,
            generates,
            vocabulary: Vocabulary::default(),
        })
    }

    /// Returns the name that the model was opened by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the bytes of the weights and the time that loading them took.
    pub fn loading(&self) -> Loading {
        self.loading
    }

    /// Returns the checked config.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Returns the chat template in use, or `None` where conversations are in GritLM's format.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// Refuses a text that cannot fit the model's positions before it is tokenized, because
    /// tokenizing takes some 100 bytes of memory per byte of text.
    ///
    /// # Errors
    /// When the text has too many bytes for that. The message calls it `what`.
    pub fn check_bytes(&self, what: &'static str, bytes: usize) -> Result<()> {
        let positions = self.config.max_positions;
        let limit = self.tokenizer.most_bytes(positions);
        match bytes <= limit {
            true => Ok(()),
            false => Err(Error::LongText { what, bytes, limit, positions }),
        }
    }

    /// Returns whether the model has logits, which generation and ranking need. A checkpoint that
    /// was saved from the bare model has no `lm_head` and can only embed.
    pub fn generates(&self) -> bool {
        self.generates
    }

    /// Fails with [`Error::NoHead`] if the model has no logits.
    pub(crate) fn check_generates(&self) -> Result<()> {
        if self.generates { Ok(()) } else { Err(Error::NoHead) }
    }

    /// Returns the device in use and why it was chosen: "cpu (AVX-512, 2 threads): there is no
    /// GPU".
    pub fn device(&self) -> String {
        format!("{}: {}", self.model().device(), self.why_device)
    }

    /// Returns whether the device is lost, as after a reset by its driver. Every pass fails then, and
    /// the model must be opened again.
    pub fn is_lost(&self) -> bool {
        self.model().is_lost()
    }

    /// Returns the bytes that the KV pages take per token.
    pub fn kv_bytes_per_token(&self) -> usize {
        self.config.kv_bytes_per_token(self.model().page_dtype())
    }

    /// Returns the format of the KV pages.
    pub fn kv_type(&self) -> Dtype {
        self.model().page_dtype()
    }

    /// Returns in which numbers matrix products are computed.
    pub fn products(&self) -> Products {
        self.model().products()
    }

    /// Returns the rotary frequencies in use, `(head_dim / 2)`.
    pub fn frequencies(&self) -> Vec<f32> {
        frequencies(&self.config, &self.options)
    }

    /// Returns a hash that distinguishes this checkpoint from others. It covers the config and,
    /// of each tensor, the name and the first 64 bytes; and likewise the adapter.
    pub fn fingerprint(&self) -> u128 {
        self.fingerprint
    }

    /// Returns the options that the engine was opened with.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns an empty cache for [`Engine::run`].
    pub fn cache(&self) -> KvCache {
        KvCache::new(&self.pool)
    }

    /// Runs sequences of token ids in one pass, each with its own mask and its own output.
    /// Returns the outputs in the order of the sequences.
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
    /// When a sequence is empty, has ids outside the vocabulary, the cache of another engine or
    /// an invalid [`Want`](crate::batch::Want), or wants logits that the checkpoint does not have
    /// ([`Engine::generates`]); or when too few KV pages are free. Then nothing has changed. Also
    /// when the device fails: then each cache keeps the tokens that it had, but may hold more
    /// pages.
    pub fn run(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Output>> {
        self.block(|model| block_on(model.run(sequences, None)))
    }

    /// Does what [`Engine::run`] does, for async code. A call that comes while another one runs
    /// waits for its turn.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub async fn run_async(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<Output>> {
        self.model.lock().await.run(sequences, None).await
    }

    /// Like [`Engine::run`], but lets `probe` look at the activations inside.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_probed(
        &self,
        sequences: &mut [Sequence<'_>],
        probe: &mut Probe<'_>,
    ) -> Result<Vec<Output>> {
        self.block(|model| block_on(model.run(sequences, Some(probe))))
    }

    /// Copies a sequence's keys and values off the device.
    ///
    /// # Errors
    /// When a sliding window has freed a part of them, the cache belongs to another engine, or
    /// the device fails.
    pub fn export(&self, cache: &KvCache) -> Result<KvSnapshot> {
        self.block(|model| block_on(model.export(cache)))
    }

    /// Does what [`Engine::export`] does, for async code.
    ///
    /// # Errors
    /// As [`Engine::export`].
    pub async fn export_async(&self, cache: &KvCache) -> Result<KvSnapshot> {
        self.model.lock().await.export(cache).await
    }

    /// Copies the keys and values of a snapshot into pages of this engine.
    ///
    /// # Errors
    /// When they belong to a model of another shape, or too few KV pages are free.
    pub fn import(&self, from: &KvSnapshot) -> Result<KvCache> {
        self.model().import(from)
    }

    /// Returns, for each of `queries (m, dim)`, the `top_k` vectors of `corpus (n, dim)` with the
    /// largest inner products, best first. To search the same vectors again,
    /// see [`Engine::corpus`].
    ///
    /// # Errors
    /// When `dim` is 0 or a length is not a multiple of it, or the device fails.
    pub fn search(
        &self,
        dim: usize,
        queries: &[f32],
        corpus: &[f32],
        top_k: usize,
    ) -> Result<Vec<Vec<Match>>> {
        self.search_in(&self.corpus(dim, corpus.to_vec())?, queries, top_k)
    }

    /// Prepares vectors `(n, dim)` for [`Engine::search_in`]. A GPU copies them once; the CPU
    /// searches them where they are, even in a mapped file.
    ///
    /// ```
    /// let engine = gritlm::Engine::open("demo", &gritlm::Options::default())?;
    /// let corpus = engine.corpus(2, vec![1.0, 0.0, 0.6, 0.8])?;
    /// let found = engine.search_in(&corpus, &[0.0, 1.0], 1)?;
    /// assert_eq!((found[0][0].index, found[0][0].score), (1, 0.8));
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    ///
    /// # Errors
    /// When `dim` is 0 or the length is not a multiple of it, or the device is out of memory.
    pub fn corpus(
        &self,
        dim: usize,
        vectors: impl AsRef<[f32]> + Send + Sync + 'static,
    ) -> Result<Corpus> {
        self.model().corpus(dim, Arc::new(vectors))
    }

    /// Like [`Engine::search`], in vectors that [`Engine::corpus`] has prepared.
    ///
    /// # Errors
    /// When the corpus belongs to another engine, the length of `queries` is not a multiple of
    /// its width, or the device fails.
    pub fn search_in(
        &self,
        corpus: &Corpus,
        queries: &[f32],
        top_k: usize,
    ) -> Result<Vec<Vec<Match>>> {
        self.block(|model| block_on(model.search(top_k, queries, corpus)))
    }

    /// Does what [`Engine::search_in`] does, for async code.
    ///
    /// # Errors
    /// As [`Engine::search_in`].
    pub async fn search_in_async(
        &self,
        corpus: &Corpus,
        queries: &[f32],
        top_k: usize,
    ) -> Result<Vec<Vec<Match>>> {
        self.model.lock().await.search(top_k, queries, corpus).await
    }

    /// Returns the mask that generation uses: causal, with the config's window.
    pub fn generation_mask(&self) -> Mask {
        Mask::Causal { window: self.config.window.map(|w| w as u32) }
    }

    /// Returns the mask that embedding uses. For [`Attn::Bbcc`] it is bidirectional without a
    /// window, whatever the config says, as in the original with its default attention. For
    /// [`Attn::Cccc`] it is the mask of generation, so that reusing the keys and values of an
    /// embedding is exact.
    pub fn embedding_mask(&self, attn: Attn) -> Mask {
        match attn {
            Attn::Bbcc => Mask::Bidirectional { window: None },
            Attn::Cccc => self.generation_mask(),
        }
    }

    /// Returns the cost of each op on the device since the last call, the longest first. It is
    /// empty unless the engine was opened with [`Options::profile`] on a GPU.
    pub fn profile(&self) -> Vec<OpTime> {
        self.model().profile()
    }

    /// Returns how many objects the device has created so far. A repeated step creates no new
    /// ones.
    pub fn created(&self) -> Created {
        self.model().created()
    }

    /// Returns the vocabulary by bytes, for grammars.
    #[cfg(feature = "grammar")]
    pub(crate) fn vocabulary(&self) -> Result<Arc<llguidance::ParserFactory>> {
        self.vocabulary.get(&self.tokenizer, self.config.vocab, &self.config.eos)
    }

    /// Returns the number of tokens that all KV pages together hold.
    pub fn kv_tokens(&self) -> usize {
        self.pool.pages() * PAGE
    }

    /// Returns the pool of KV pages.
    pub(crate) fn pool(&self) -> &KvPool {
        &self.pool
    }

    /// Waits for the model. A pass that panicked has advanced no cache, so the next one starts
    /// from consistent state.
    fn model(&self) -> MutexGuard<'_, Box<dyn Model>> {
        block_on(self.model.lock())
    }

    /// Waits for the model and works with it, on rayon's threads where the device does. The lock
    /// is taken first: a thread of the pool that waited for it could be the one that the pass
    /// before needs.
    fn block<R: Send>(&self, work: impl FnOnce(&mut dyn Model) -> R + Send) -> R {
        let mut model = self.model();
        let model = &mut **model;
        match self.threads {
            // A parallel loop started outside the pool wakes it and sleeps until the loop is
            // done: some 160 times in a decode step of 22 layers.
            true => rayon::scope(|_| work(model)),
            false => work(model),
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("name", &self.name)
            .field("device", &self.why_device)
            .field("config", &self.config)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

fn frequencies(config: &Config, options: &Options) -> Vec<f32> {
    let mut frequencies = config.rope_frequencies();
    if options.bf16_frequencies {
        frequencies.iter_mut().for_each(|f| *f = half::bf16::from_f32(*f).to_f32());
    }
    frequencies
}
