//! Answers a question from documents: embeds the query, loads the keys and values that the mode
//! reuses, prefills the rest of the prompt, and streams the answer.

use super::{Chunk, Mode, Part, Positions, Reader, Usage, join};
use crate::batch::{Output, Sequence};
use crate::cache::{Cache, KvCache};
use crate::embed::Encoded;
use crate::{Attn, Embed, Engine, Error, Generation, Piece, Result, Sampling};
use gritlm_model::prompt;
use std::borrow::Cow;
use std::time::{Duration, Instant};

/// How to answer from documents.
#[derive(Clone, Debug, Default, PartialEq)]
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
    pub cache: KvCache,
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

impl From<KvCache> for Stored {
    /// Wraps a cache that was already in memory: no bytes and no time are counted for it.
    fn from(cache: KvCache) -> Self {
        Self { cache, bytes: 0, took: Duration::ZERO }
    }
}

/// An embedded question: its vector and, if the mode reuses them, the keys and values of its
/// pass.
pub struct Asked<'a> {
    engine: &'a Engine,
    how: Ask,
    query: String,
    tokens: Vec<u32>,
    vector: Vec<f32>,
    cache: Option<Cache>,
    usage: Usage,
    asked: Instant,
    embedded: Instant,
}

impl Engine {
    /// Embeds a question. Find documents with its [`Asked::vector`], then call [`Asked::answer`].
    ///
    /// ```
    /// use gritlm::rag::{Ask, Mode, Passage};
    /// use gritlm::{Engine, Options, Sampling};
    ///
    /// let engine = Engine::open("demo", &Options::default())?;
    /// let asked = engine.ask("chess on the desktop", &Ask { mode: Mode::Doc, ..Ask::default() })?;
    /// assert_eq!(asked.vector().len(), engine.config().dim);
    /// let found = Passage { title: "xboard".into(), text: "plays chess".into(), kv: None };
    /// let mut answer = asked.answer(&[found], &Sampling { max_tokens: 8, ..Sampling::greedy() })?;
    /// for piece in &mut answer {
    ///     print!("{}", piece?.text);
    /// }
    /// println!("\n{} tokens were not read again", answer.usage().tokens_reused);
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    ///
    /// # Errors
    /// When the query is empty, is longer than the model's positions, or there are not enough
    /// free KV pages.
    pub fn ask(&self, query: &str, how: &Ask) -> Result<Asked<'_>> {
        let asked = Instant::now();
        let embed = how.embed(self, how.instruction.clone());
        let encoded = whole(self, query, &embed)?;
        let (vector, cache) = pass(self, &encoded, &embed)?;
        let embedded = Instant::now();
        let mut usage = Usage { tokens_computed: encoded.tokens.len(), ..Usage::default() };
        usage.times.embed = embedded - asked;
        Ok(Asked {
            engine: self,
            how: how.clone(),
            query: query.into(),
            tokens: encoded.tokens,
            vector,
            cache: how.mode.reuses_query().then_some(cache),
            usage,
            asked,
            embedded,
        })
    }
}

impl Ask {
    /// Embeds a document and returns its vector with the keys and values of the pass, as an index
    /// keeps them. `text` is [`prompt::document`] of its title and text.
    ///
    /// # Errors
    /// When the text is empty, is longer than the model's positions, or there are not enough free
    /// KV pages.
    pub fn document(&self, engine: &Engine, text: &str) -> Result<(Vec<f32>, KvCache)> {
        let how = self.embed(engine, String::new());
        let (vector, cache) = pass(engine, &whole(engine, text, &how)?, &how)?;
        Ok((vector, engine.export(&cache)?))
    }

    /// Returns the options of an embedding pass. The limit is the model's positions, not the 512
    /// tokens at which the original implementation truncates its caches.
    fn embed(&self, engine: &Engine, instruction: String) -> Embed {
        let max_length = engine.config().max_positions;
        Embed { instruction, max_length, attn: self.attn, ..Embed::default() }
    }
}

/// Encodes a text; it is an error if the text would be truncated.
fn whole(engine: &Engine, text: &str, how: &Embed) -> Result<Encoded> {
    let encoded = engine.encode_texts(&[text], how)?.remove(0);
    match encoded.truncated {
        0 => Ok(encoded),
        more => {
            Err(Error::LongPrompt { tokens: encoded.tokens.len() + more, limit: how.max_length })
        }
    }
}

/// Runs an embedding pass and returns the vector with the KV cache.
fn pass(engine: &Engine, encoded: &Encoded, how: &Embed) -> Result<(Vec<f32>, Cache)> {
    let mut cache = engine.cache();
    let want = encoded.want(how, engine.config().dim);
    let mask = engine.mask_for(how);
    let sequence = Sequence { tokens: &encoded.tokens, cache: &mut cache, mask, want };
    match engine.run(&mut [sequence])?.pop() {
        Some(Output::Embedding(vector)) => Ok((encoded.finish(0, vector, how)?.vector, cache)),
        _ => Err(Error::NotFinite { what: "embedding".into() }),
    }
}

impl<'a> Asked<'a> {
    /// Returns the query's vector `(dim)`, L2-normalised, to find documents with.
    pub fn vector(&self) -> &[f32] {
        &self.vector
    }

    /// Answers from `documents`, best first. Without documents, the question is answered as
    /// [`Engine::generate`] would answer it.
    ///
    /// # Errors
    /// When a document's cache was made by another model, a sampling option is invalid, or the
    /// whole prompt does not fit.
    pub fn answer(mut self, documents: &[Passage], how: &Sampling) -> Result<Answer<'a>> {
        how.check()?;
        let (engine, mode) = (self.engine, self.how.mode);
        let read: Duration = documents.iter().flat_map(|d| &d.kv).map(|kv| kv.took).sum();
        self.usage.times.retrieve = self.embedded.elapsed().saturating_sub(read);
        let texts: Vec<String> =
            documents.iter().map(|d| prompt::document(&d.title, &d.text)).collect();

        let mut seen = Vec::new();
        let (cache, rest) = match documents {
            [] => (engine.cache(), prompt::user(&self.query)),
            _ => (self.reused(documents, &texts, &mut seen)?, mode.prompt(&self.query, &texts)),
        };
        let rest = rest + &self.how.answer_prefix;
        let ids = match cache.is_empty() {
            true => engine.tokenizer().encode(&rest)?,
            false => engine.tokenizer().encode_continued(&rest)?,
        };
        self.usage.tokens_reused = cache.tokens();
        self.usage.tokens_computed += ids.len();
        let generation = engine.generate_seen(cache, &seen, &ids, how)?;
        Ok(Answer { generation, usage: self.usage, asked: self.asked, drawn: 0 })
    }

    /// Joins the caches that the mode reuses and imports them to the device. Appends their tokens
    /// to `seen`, because the repetition penalty counts them as if they had been read.
    fn reused(
        &mut self,
        documents: &[Passage],
        texts: &[String],
        seen: &mut Vec<u32>,
    ) -> Result<Cache> {
        let (engine, mode) = (self.engine, self.how.mode);
        if mode.reuses_query() {
            seen.extend(&self.tokens);
        }
        let mut caches = Vec::new();
        if mode.reuses_documents() {
            let how = self.how.embed(engine, String::new());
            for (document, text) in documents.iter().zip(texts) {
                caches.push(self.document(document, text)?);
                seen.extend(whole(engine, text, &how)?.tokens);
            }
        }
        let started = Instant::now();
        let query = self.cache.take();
        let cache = match (mode, query) {
            (Mode::Query, Some(query)) => query,
            (Mode::QueryDoc | Mode::DocQuery, Some(query)) => {
                let first = engine.export(&query)?;
                // Frees the pages of the query for the joined cache.
                drop(query);
                self.joined(&caches, Some(&first))?
            }
            _ if mode.reuses_documents() => self.joined(&caches, None)?,
            _ => engine.cache(),
        };
        self.usage.times.load += started.elapsed();
        Ok(cache)
    }

    /// Returns a document's keys and values, from the store if it has them; otherwise computes
    /// them.
    fn document<'d>(&mut self, document: &'d Passage, text: &str) -> Result<Cow<'d, KvCache>> {
        if let Some(kv) = &document.kv {
            self.usage.bytes_read += kv.bytes;
            self.usage.times.load += kv.took;
            return Ok(Cow::Borrowed(&kv.cache));
        }
        let started = Instant::now();
        let (_, cache) = self.how.document(self.engine, text)?;
        self.usage.times.embed += started.elapsed();
        self.usage.tokens_computed += cache.tokens();
        self.usage.recomputed += 1;
        Ok(Cow::Owned(cache))
    }

    /// Joins all parts in the mode's order and imports the result to the device.
    fn joined(&self, documents: &[Cow<'_, KvCache>], query: Option<&KvCache>) -> Result<Cache> {
        let part = |skip| move |cache| Part { cache, skip };
        let documents = documents.iter().map(Cow::as_ref);
        let parts: Vec<Part<'_>> = match self.how.mode {
            // Only the query keeps its `<s>`; the documents' are skipped.
            Mode::QueryDoc => {
                query.into_iter().map(part(0)).chain(documents.map(part(1))).collect()
            }
            _ => documents.chain(query).map(part(0)).collect(),
        };
        match parts[..] {
            [Part { cache, skip: 0 }] => self.engine.import(cache),
            _ => {
                let frequencies = self.engine.frequencies();
                self.engine.import(&join(&parts, self.how.positions, &frequencies)?)
            }
        }
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
    type Item = Result<Piece>;

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
