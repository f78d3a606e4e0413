//! Answers a question from documents: embeds the query, loads the keys and values that the mode
//! reuses, prefills the rest of the prompt, and streams the answer.

use super::{Chunk, Mode, Part, Passes, Positions, Reader, Result, Usage, join};
use gritlm::cache::KvSnapshot;
use gritlm::schedule::Past;
use gritlm::{Attn, Embed, Embedding, Encoded, Engine, Generation, Piece, Sampling};
use gritlm_model::prompt;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// How to answer from documents.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Ask {
    /// Which embedding passes the answer reuses.
    pub mode: Mode,
    /// The positions of the keys in joined caches.
    pub positions: Positions,
    /// The instruction that the query is embedded with; the paper uses none.
    pub instruction: String,
    /// Overrides the engine's attention for embedding. With [`Attn::Cccc`], reusing a single pass
    /// does not change the answer: it is the same as without a cache.
    pub attn: Option<Attn>,
    /// The first words of the answer, which the model continues: [`prompt::ANSWER_IS`] in the
    /// paper's runs.
    pub answer_prefix: String,
}

gritlm_model::setters!(Ask {
    mode: Mode,
    positions: Positions,
    attn: Option<Attn>,
} into {
    instruction: String,
    answer_prefix: String,
});

/// A document to answer from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// The document's title; may be empty.
    pub title: String,
    /// The document's text.
    pub text: String,
    /// Keys and values of the embedding pass over [`prompt::document`] of title and text. Where a
    /// mode needs them and they are missing, they are computed.
    pub kv: Option<Stored>,
}

/// A cache read from a store.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// The keys and values.
    pub cache: KvSnapshot,
    /// Bytes read from the store.
    pub bytes: u64,
    /// How long the read took.
    pub took: Duration,
}

impl Passage {
    /// Returns a chunk of a store as a passage. It carries the chunk's keys and values if the
    /// mode reuses those of documents and the store still has them.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn of(store: &Reader, chunk: &Chunk, mode: Mode) -> Result<Self> {
        let (title, text) = (chunk.title.clone(), chunk.text.clone());
        let kv = if mode.reuses_documents() { Stored::read(store, chunk.id)? } else { None };
        Ok(Self { title, text, kv })
    }
}

impl Stored {
    /// Reads a chunk's keys and values; returns None if they are not kept or were evicted.
    ///
    /// # Errors
    /// When the record is damaged.
    pub fn read(store: &Reader, chunk: u64) -> Result<Option<Self>> {
        let started = Instant::now();
        let per_token = store.identity().kv_bytes_per_token();
        Ok(store.kv(chunk)?.map(|cache| Self {
            bytes: per_token * cache.tokens() as u64,
            took: started.elapsed(),
            cache,
        }))
    }
}

impl From<KvSnapshot> for Stored {
    /// Wraps a cache that was already in memory: no bytes and no time are counted for it.
    fn from(cache: KvSnapshot) -> Self {
        Self { cache, bytes: 0, took: Duration::ZERO }
    }
}

/// An embedded question: its vector and, if the mode reuses them, the keys and values of its
/// pass.
pub struct Asked {
    how: Ask,
    query: String,
    tokens: Vec<u32>,
    vector: Vec<f32>,
    kv: Option<KvSnapshot>,
    usage: Usage,
    asked: Instant,
    embedded: Instant,
}

/// What is left to generate of an answer: a [`Work::Generate`](gritlm::schedule::Work::Generate)
/// for a scheduler.
#[derive(Clone, Debug)]
pub struct Prepared {
    /// What the answer goes on from; None if nothing is reused.
    pub past: Option<Past>,
    /// Tokens of the rest of the prompt.
    pub prompt: Vec<u32>,
    /// What has been computed, read and reused so far, and how long that took.
    pub usage: Usage,
    asked: Instant,
}

/// Embeds a question. Find documents with its [`Asked::vector`], then call [`Asked::answer`].
///
/// ```
/// use gritlm::{Engine, Options, Sampling};
/// use gritlm_rag::{Ask, Mode, Passage, ask};
///
/// let engine = Engine::open("demo", &Options::default())?;
/// let how = Ask::default().mode(Mode::Doc);
/// let asked = ask(&engine, "chess on the desktop", &how)?;
/// assert_eq!(asked.vector().len(), engine.config().dim);
/// let found = Passage { title: "xboard".into(), text: "plays chess".into(), kv: None };
/// let sampling = Sampling::greedy().max_tokens(8);
/// let mut answer = asked.answer(&engine, &[found], &sampling)?;
/// for piece in &mut answer {
///     print!("{}", piece?.text);
/// }
/// println!("\n{} tokens were not read again", answer.usage().tokens_reused);
/// # Ok::<(), gritlm_rag::Error>(())
/// ```
///
/// # Errors
/// When the query is empty or longer than the model's positions, or its pass fails.
pub fn ask(passes: &dyn Passes, query: &str, how: &Ask) -> Result<Asked> {
    let asked = Instant::now();
    let engine = passes.engine();
    let embed = how.embed(engine).keep_kv(how.mode.reuses_query());
    let embed = embed.instruction(how.instruction.clone());
    let encoded = whole(engine, query, &embed)?;
    let tokens = encoded.tokens.clone();
    let embedding = passes.embed_texts(vec![encoded], &embed)?.remove(0);
    let embedded = Instant::now();
    let mut usage = Usage { tokens_computed: tokens.len(), ..Usage::default() };
    usage.times.embed = embedded - asked;
    let (how, query, vector, kv) = (how.clone(), query.into(), embedding.vector, embedding.kv);
    Ok(Asked { how, query, tokens, vector, kv, usage, asked, embedded })
}

impl Ask {
    /// Embeds a document and keeps the keys and values of the pass, as an index does. `text` is
    /// [`prompt::document`] of its title and text.
    ///
    /// # Errors
    /// When the text is empty or longer than the model's positions, or its pass fails.
    pub fn document(&self, passes: &dyn Passes, text: &str) -> Result<Embedding> {
        let how = self.embed(passes.engine()).keep_kv(true);
        let encoded = whole(passes.engine(), text, &how)?;
        Ok(passes.embed_texts(vec![encoded], &how)?.remove(0))
    }

    /// Returns the options of an embedding pass without instruction. The limit is the model's
    /// positions, not the 512 tokens at which the original implementation truncates its caches.
    fn embed(&self, engine: &Engine) -> Embed {
        Embed::default().max_length(engine.config().max_positions).attn(self.attn)
    }
}

/// Encodes a text; it is an error if the text would be truncated.
fn whole(engine: &Engine, text: &str, how: &Embed) -> Result<Encoded> {
    let encoded = engine.encode_texts(&[text], how)?.remove(0);
    match encoded.truncated {
        0 => Ok(encoded),
        more => {
            let tokens = encoded.tokens.len() + more;
            Err(gritlm::Error::LongPrompt { tokens, limit: how.max_length }.into())
        }
    }
}

impl Asked {
    /// Returns the query's vector `(dim)`, L2-normalised, to find documents with.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// Answers from `documents`, best first, with the engine alone; [`Asked::prepare`] is for a
    /// scheduler. Without documents, the question is answered as [`Engine::generate`] would answer
    /// it.
    ///
    /// # Errors
    /// When a document's cache was made by another model, a sampling option is invalid, or the
    /// whole prompt does not fit.
    pub fn answer<'a>(
        self,
        engine: &'a Engine,
        documents: &[Passage],
        how: &Sampling,
    ) -> Result<Answer<'a>> {
        how.check()?;
        let Prepared { past, prompt, mut usage, asked } = self.prepare(engine, documents)?;
        let started = Instant::now();
        let (cache, seen) = match past {
            Some(Past { cache, tokens }) => (engine.import(&cache)?, tokens),
            None => (engine.cache(), Vec::new()),
        };
        usage.times.load += started.elapsed();
        let generation = engine.generate_seen(cache, &seen, &prompt, how)?;
        Ok(Answer { generation, usage, asked, drawn: 0 })
    }

    /// Prepares an answer from `documents`, best first: joins the keys and values that the mode
    /// reuses, computes those that a document lacks, and encodes the rest of the prompt.
    ///
    /// # Errors
    /// When a document's cache was made by another model, or a pass fails.
    pub fn prepare(mut self, passes: &dyn Passes, documents: &[Passage]) -> Result<Prepared> {
        let (engine, mode) = (passes.engine(), self.how.mode);
        let read: Duration = documents.iter().flat_map(|d| &d.kv).map(|kv| kv.took).sum();
        self.usage.times.retrieve = self.embedded.elapsed().saturating_sub(read);
        let texts: Vec<String> =
            documents.iter().map(|d| prompt::document(&d.title, &d.text)).collect();
        let (past, rest) = match documents {
            [] => (None, prompt::user(&self.query)),
            _ => (self.past(passes, documents, &texts)?, mode.prompt(&self.query, &texts)),
        };
        let rest = rest + &self.how.answer_prefix;
        let prompt = match past {
            None => engine.tokenizer().encode(&rest)?,
            Some(_) => engine.tokenizer().encode_continued(&rest)?,
        };
        self.usage.tokens_reused = past.as_ref().map_or(0, |past| past.cache.tokens());
        self.usage.tokens_computed += prompt.len();
        Ok(Prepared { past, prompt, usage: self.usage, asked: self.asked })
    }

    /// Joins the caches that the mode reuses. Their tokens are told as well, because the repetition
    /// penalty counts them as if they had been read.
    fn past(
        &mut self,
        passes: &dyn Passes,
        documents: &[Passage],
        texts: &[String],
    ) -> Result<Option<Past>> {
        let (engine, mode) = (passes.engine(), self.how.mode);
        let mut tokens = Vec::new();
        if mode.reuses_query() {
            tokens.extend(&self.tokens);
        }
        let mut caches = Vec::new();
        if mode.reuses_documents() {
            let how = self.how.embed(engine);
            let encoded: Vec<Encoded> =
                texts.iter().map(|text| whole(engine, text, &how)).collect::<Result<_>>()?;
            tokens.extend(encoded.iter().flat_map(|encoded| &encoded.tokens));
            caches = self.caches(passes, documents, encoded, &how)?;
        }
        let started = Instant::now();
        let query = self.kv.take();
        let cache = self.joined(engine, caches, query)?;
        self.usage.times.load += started.elapsed();
        Ok(cache.map(|cache| Past { cache, tokens }))
    }

    /// Returns the documents' keys and values, from the store if it has them; the others are
    /// computed, in one batch.
    fn caches<'d>(
        &mut self,
        passes: &dyn Passes,
        documents: &'d [Passage],
        encoded: Vec<Encoded>,
        how: &Embed,
    ) -> Result<Vec<Cow<'d, KvSnapshot>>> {
        let started = Instant::now();
        let all = documents.iter().zip(encoded);
        let missing: Vec<Encoded> =
            all.filter(|(document, _)| document.kv.is_none()).map(|(_, encoded)| encoded).collect();
        self.usage.recomputed += missing.len();
        let how = how.clone().keep_kv(true);
        let mut computed = match missing.is_empty() {
            true => Vec::new(),
            false => passes.embed_texts(missing, &how)?,
        }
        .into_iter();
        self.usage.times.embed += started.elapsed();
        let mut caches = Vec::with_capacity(documents.len());
        for document in documents {
            match &document.kv {
                Some(kv) => {
                    self.usage.bytes_read += kv.bytes;
                    self.usage.times.load += kv.took;
                    caches.push(Cow::Borrowed(&kv.cache));
                }
                // There is one for each document that has none.
                None => {
                    if let Some(embedding) = computed.next() {
                        self.usage.tokens_computed += embedding.tokens;
                        caches.extend(embedding.kv.map(Cow::Owned));
                    }
                }
            }
        }
        Ok(caches)
    }

    /// Joins all parts in the mode's order; None if there are none. A single cache is not copied.
    fn joined(
        &self,
        engine: &Engine,
        documents: Vec<Cow<'_, KvSnapshot>>,
        query: Option<KvSnapshot>,
    ) -> Result<Option<KvSnapshot>> {
        let (documents, query) = (documents.into_iter(), query.map(Cow::Owned).into_iter());
        let mut caches: Vec<(Cow<'_, KvSnapshot>, usize)> = match self.how.mode {
            // Only the query keeps its `<s>`; the documents' are skipped.
            Mode::QueryDoc => {
                query.map(|cache| (cache, 0)).chain(documents.map(|cache| (cache, 1))).collect()
            }
            _ => documents.chain(query).map(|cache| (cache, 0)).collect(),
        };
        if matches!(caches[..], [] | [(_, 0)]) {
            return Ok(caches.pop().map(|(cache, _)| cache.into_owned()));
        }
        let parts: Vec<Part<'_>> =
            caches.iter().map(|(cache, skip)| Part { cache, skip: *skip }).collect();
        Ok(Some(join(&parts, self.how.positions, &engine.frequencies())?))
    }
}

/// An answer being generated: an iterator of [`Piece`]s. Dropping it stops the generation.
pub struct Answer<'a> {
    generation: Generation<'a>,
    usage: Usage,
    asked: Instant,
    drawn: usize,
}

impl Answer<'_> {
    /// Returns what the answer has cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Returns the number of prompt tokens, computed or reused.
    pub fn prompt_tokens(&self) -> usize {
        self.generation.prompt_tokens()
    }
}

impl Iterator for Answer<'_> {
    type Item = gritlm::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        let started = Instant::now();
        let piece = self.generation.next()?;
        let times = &mut self.usage.times;
        if self.drawn == 0 {
            times.prefill = started.elapsed();
            times.first_token = self.asked.elapsed();
        } else {
            times.decode += started.elapsed();
        }
        self.drawn += 1;
        Some(piece)
    }
}
