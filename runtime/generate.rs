//! Generation: prompt in, text out piece by piece; and chat, which goes on from turn to turn.

use crate::batch::{Output, Sequence, Want};
use crate::cache::Cache;
use crate::{Engine, Error, Result};
use gritlm_model::ops::{Draw, Drawn, Mask};
use gritlm_model::prompt;
use gritlm_model::tokenizer::Stream;

/// What to generate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// The user's turn; GritLM's tags go around it.
    User(String),
    /// Verbatim text; only `<s>` goes in front.
    Raw(String),
    /// Token ids as they are.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// The user's turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(text.into())
    }

    /// Verbatim text.
    pub fn raw(text: impl Into<String>) -> Self {
        Self::Raw(text.into())
    }
}

/// How tokens are drawn, and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Tokens to draw, at most.
    pub max_tokens: usize,
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keep the k most likely; 0 for all.
    pub top_k: u32,
    /// Keep the fewest most likely that reach this probability; 1 for all.
    pub top_p: f32,
    /// Keep those at least this share of the most likely one's probability; 0 for all.
    pub min_p: f32,
    /// Divides the logits of tokens seen before; 1 for none.
    pub repetition_penalty: f32,
    /// Same seed, same text.
    pub seed: u64,
    /// Texts that end the answer; they are not part of it.
    pub stop: Vec<String>,
    /// How many of the most likely tokens to report with each.
    pub logprobs: u32,
    /// Go on when the model ends its answer.
    pub ignore_eos: bool,
    /// Instead of [`Engine::generation_mask`].
    pub mask: Option<Mask>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            max_tokens: 256,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            logprobs: 0,
            ignore_eos: false,
            mask: None,
        }
    }
}

impl Sampling {
    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Whether every option means something; generating checks it, too.
    pub(crate) fn check(&self) -> Result<()> {
        let rules = [
            ("--temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("--top-p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("--min-p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "--repetition-penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0",
            ),
        ];
        for (option, found, right, expected) in rules {
            if !right || !found.is_finite() {
                let (expected, found) = (format!("a number {expected}"), found.to_string());
                return Err(Error::Option { option, expected, found });
            }
        }
        if self.stop.iter().any(String::is_empty) {
            let (expected, found) = ("a text".into(), "an empty one".into());
            return Err(Error::Option { option: "--stop", expected, found });
        }
        Ok(())
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it, or a stop text did.
    Stop,
    /// `max_tokens`, or the model has no more positions.
    Length,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Text that has become certain: whole characters, and no part of a stop text. May be empty.
    pub text: String,
    /// The token drawn in this step.
    pub token: Drawn,
    /// Set on the last piece.
    pub finish: Option<Finish>,
}

/// A sequence that is being generated: what is in the cache, and what is not yet.
#[derive(Debug)]
struct Context {
    cache: Cache,
    /// Tokens still to be run: the prompt's, then each drawn one.
    pending: Vec<u32>,
    /// Ids that occurred, sorted, for the repetition penalty.
    seen: Vec<u32>,
}

impl Context {
    fn new(cache: Cache) -> Self {
        Self { cache, pending: Vec::new(), seen: Vec::new() }
    }

    fn push(&mut self, id: u32) {
        self.pending.push(id);
        if let Err(at) = self.seen.binary_search(&id) {
            self.seen.insert(at, id);
        }
    }

    /// Tokens so far, run or not.
    fn tokens(&self) -> usize {
        self.cache.tokens() + self.pending.len()
    }
}

/// An answer's own context, or a chat's.
#[derive(Debug)]
enum Held<'a> {
    Own(Context),
    Lent(&'a mut Context),
}

impl Held<'_> {
    fn get(&mut self) -> &mut Context {
        match self {
            Self::Own(context) => context,
            Self::Lent(context) => context,
        }
    }
}

/// An answer in the making: an iterator of [`Piece`]s. Dropping it ends the answer.
pub struct Generation<'a> {
    engine: &'a Engine,
    context: Held<'a>,
    how: Sampling,
    text: Stream<'a>,
    /// Decoded text that might be the beginning of a stop text.
    held: String,
    prompt_tokens: usize,
    /// Tokens that may be drawn: `max_tokens`, or fewer where positions run out.
    limit: usize,
    drawn: usize,
    over: bool,
}

impl<'a> Generation<'a> {
    /// Answers what `ids` add to the context. On an error the context is as before.
    fn new(engine: &'a Engine, mut context: Held<'a>, ids: &[u32], how: &Sampling) -> Result<Self> {
        how.check()?;
        let c = context.get();
        let (tokens, positions) = (c.tokens() + ids.len(), engine.config().max_positions);
        if tokens >= positions {
            return Err(Error::LongPrompt { tokens, limit: positions });
        }
        let limit = how.max_tokens.min(positions - tokens);
        // Room for the whole answer now, rather than an error in the middle of it. The last token
        // drawn is never run.
        c.cache.reserve(tokens - c.cache.tokens() + limit.saturating_sub(1))?;
        ids.iter().for_each(|&id| c.push(id));
        Ok(Self {
            prompt_tokens: tokens,
            context,
            how: how.clone(),
            text: engine.tokenizer().stream(),
            held: String::new(),
            limit,
            drawn: 0,
            over: limit == 0,
            engine,
        })
    }

    /// Tokens of the prompt, `<s>`, tags and, in a chat, earlier turns counted.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    fn step(&mut self) -> Result<Piece> {
        let token = self.draw()?;
        let id = token.token;
        self.drawn += 1;
        self.context.get().push(id);
        let ended = self.engine.tokenizer().is_eos(id) && !self.how.ignore_eos;
        let mut finish = None;
        if ended {
            finish = Some(Finish::Stop);
        } else {
            self.held += &self.text.push(id)?;
            if self.drawn == self.limit {
                finish = Some(Finish::Length);
            }
        }
        if finish.is_some() {
            self.held += &self.text.finish()?;
        }
        let text = match self.stop_at() {
            Some(at) => {
                self.held.truncate(at);
                finish = Some(Finish::Stop);
                std::mem::take(&mut self.held)
            }
            None if finish.is_some() => std::mem::take(&mut self.held),
            None => {
                let certain = self.held.len() - self.might_stop();
                self.held.drain(..certain).collect()
            }
        };
        self.over = finish.is_some();
        Ok(Piece { text, token, finish })
    }

    /// Runs what is pending, in passes of the engine's batch size, and draws the next token.
    fn draw(&mut self) -> Result<Drawn> {
        let draw = Draw {
            seen: match self.how.repetition_penalty {
                1.0 => Vec::new(),
                _ => self.context.get().seen.clone(),
            },
            penalty: self.how.repetition_penalty,
            temperature: self.how.temperature,
            top_k: self.how.top_k,
            top_p: self.how.top_p,
            min_p: self.how.min_p,
            uniform: uniform(self.how.seed, self.drawn as u64),
            logprobs: self.how.logprobs,
        };
        let (engine, budget) = (self.engine, self.engine.options().batch_tokens);
        let mask = self.how.mask.unwrap_or_else(|| engine.generation_mask());
        let Context { cache, pending, .. } = self.context.get();
        loop {
            let last = pending.len() <= budget;
            let tokens: Vec<u32> = pending[..pending.len().min(budget)].to_vec();
            let want = if last { Want::Token(draw.clone()) } else { Want::Nothing };
            let outputs = engine.run(&mut [Sequence { tokens: &tokens, cache, mask, want }])?;
            pending.drain(..tokens.len());
            if let Some(Output::Token(token)) = outputs.into_iter().next() {
                if !token.logprob.is_finite() {
                    return Err(Error::NotFinite { what: "answer".into() });
                }
                return Ok(token);
            }
        }
    }

    /// Where the first stop text begins in the held text.
    fn stop_at(&self) -> Option<usize> {
        self.how.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    /// Bytes at the end of the held text that a stop text might begin with.
    fn might_stop(&self) -> usize {
        let starts = |stop: &String| {
            let ends = stop.char_indices().map(|(i, _)| i).skip(1);
            ends.filter(|&i| self.held.ends_with(&stop[..i])).max()
        };
        self.how.stop.iter().filter_map(starts).max().unwrap_or(0)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let step = self.step();
        self.over |= step.is_err();
        Some(step)
    }
}

/// A number in [0, 1) from seed and step alone, so that an answer does not depend on what else is
/// being generated. SplitMix64's output function; 24 bits, all that an f32 can hold.
fn uniform(seed: u64, step: u64) -> f32 {
    let mut z = seed.wrapping_add((step + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 24) as f32
}

/// A conversation on one KV cache: each turn computes only what is new.
///
/// ```
/// use gritlm::{Engine, Options, Sampling};
/// let engine = Engine::open("demo", &Options::default())?;
/// let mut chat = engine.chat();
/// for text in ["Describe the package pdfgrep.", "In which section would it be?"] {
///     for piece in chat.say(text, &Sampling { max_tokens: 4, ..Sampling::greedy() })? {
///         print!("{}", piece?.text);
///     }
/// }
/// # Ok::<(), gritlm::Error>(())
/// ```
pub struct Chat<'a> {
    engine: &'a Engine,
    context: Context,
}

impl<'a> Chat<'a> {
    /// The user's next turn; the answer is the iterator's pieces.
    ///
    /// # Errors
    /// When an option means nothing or the conversation no longer fits; then it is as before.
    pub fn say(&mut self, text: &str, how: &Sampling) -> Result<Generation<'_>> {
        let tokenizer = self.engine.tokenizer();
        let ids = match self.context.pending.last() {
            None => tokenizer.encode(&prompt::user(text))?,
            Some(&last) => {
                // An answer that was cut short gets its end, as in training.
                let end = self.engine.config().eos.first().filter(|_| !tokenizer.is_eos(last));
                let mut ids: Vec<u32> = end.copied().into_iter().collect();
                ids.extend(tokenizer.encode_continued(&prompt::next_user(text))?);
                ids
            }
        };
        Generation::new(self.engine, Held::Lent(&mut self.context), &ids, how)
    }

    /// Tokens of the conversation.
    pub fn tokens(&self) -> usize {
        self.context.tokens()
    }
}

impl Engine {
    /// Generates an answer piece by piece.
    ///
    /// # Errors
    /// When an option means nothing, or the prompt does not fit.
    pub fn generate(&self, prompt: &Prompt, how: &Sampling) -> Result<Generation<'_>> {
        self.generate_after(self.cache(), prompt, how)
    }

    /// Generates on top of a cache, say an imported document's: the prompt's tokens follow it, so
    /// nothing goes in front of them.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn generate_after(
        &self,
        cache: Cache,
        prompt: &Prompt,
        how: &Sampling,
    ) -> Result<Generation<'_>> {
        let encode = |text: &str| match cache.is_empty() {
            true => self.tokenizer().encode(text),
            false => self.tokenizer().encode_continued(text),
        };
        let ids = match prompt {
            Prompt::User(text) => encode(&prompt::user(text))?,
            Prompt::Raw(text) => encode(text)?,
            Prompt::Tokens(ids) => ids.clone(),
        };
        if ids.is_empty() {
            let problem = "expected at least one token, found none".into();
            return Err(Error::Input { what: "prompt".into(), problem });
        }
        Generation::new(self, Held::Own(Context::new(cache)), &ids, how)
    }

    /// Starts a conversation.
    pub fn chat(&self) -> Chat<'_> {
        Chat { engine: self, context: Context::new(self.cache()) }
    }
}
