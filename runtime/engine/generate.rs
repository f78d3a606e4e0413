//! Generation: prompt in, text out piece by piece; and chat, which goes on from turn to turn.

use crate::cache::KvCache;
use crate::continuation::{Context, Continuation};
use crate::{Engine, Error, Grammar, Result};
use gritlm_model::ops::{Mask, SampledToken};
use gritlm_model::prompt;

/// What to generate from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// The user's turn; GritLM's tags go around it. What is spelled like `</s>` in it is text.
    User(String),
    /// The user's turn in a conversation.
    Chat {
        /// What the user said, and what was answered, so far.
        past: Vec<(String, String)>,
        /// What the user says now.
        text: String,
    },
    /// A conversation whose last answer has begun: the answer is what follows.
    Begun {
        /// What the user said, and what was answered, so far.
        past: Vec<(String, String)>,
        /// What the user says now.
        text: String,
        /// The first words of the answer to it.
        answer: String,
    },
    /// Verbatim text; only `<s>` goes in front. The answer goes on from it as it stands: with the
    /// space, say, that a first word begins with.
    Raw(String),
    /// Token ids as they are. The answer goes on from their text.
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

    /// Of all its texts.
    pub fn bytes(&self) -> usize {
        let turns = |past: &[(String, String)]| -> usize {
            past.iter().map(|(question, answer)| question.len() + answer.len()).sum()
        };
        match self {
            Self::User(text) | Self::Raw(text) => text.len(),
            Self::Chat { past, text } => turns(past) + text.len(),
            Self::Begun { past, text, answer } => turns(past) + text.len() + answer.len(),
            Self::Tokens(_) => 0,
        }
    }

    /// Whether the answer goes on from the prompt's text as it stands.
    pub fn is_verbatim(&self) -> bool {
        match self {
            Self::User(_) | Self::Chat { .. } => false,
            Self::Begun { answer, .. } => !answer.is_empty(),
            Self::Raw(_) | Self::Tokens(_) => true,
        }
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
    /// What the answer must be; it ends where that is complete. Other tokens are not drawn, and the
    /// log-probabilities of those that are remain the model's own.
    pub grammar: Option<Grammar>,
    /// How many of the most likely tokens to report with each.
    pub logprobs: u32,
    /// Also tell the log-probabilities of the prompt's tokens, from the second on, with so many of
    /// the most likely ones; see [`Generation::prompt_logprobs`]. Prefixes that other requests have
    /// computed are computed again.
    pub prompt_logprobs: Option<u32>,
    /// Ignore the end-of-sequence token, unless a grammar is complete with it.
    pub ignore_eos: bool,
    /// The answer's text goes on from the prompt's as it stands: a space in front of it is kept,
    /// which a chat's answer loses. [`Engine::generate`] does so in any case with
    /// [`Prompt::Raw`], [`Prompt::Tokens`] and [`Prompt::Begun`]; the scheduler, which sees ids
    /// only, where it is set.
    pub verbatim: bool,
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
            grammar: None,
            logprobs: 0,
            prompt_logprobs: None,
            ignore_eos: false,
            verbatim: false,
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
    ///
    /// # Errors
    /// When one does not.
    pub fn check(&self) -> Result<()> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0, at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            (
                "repetition_penalty",
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
            return Err(Error::Option { option: "stop", expected, found });
        }
        Ok(())
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended it, a stop text did, or its grammar is complete.
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
    pub token: SampledToken,
    /// Set on the last piece.
    pub finish: Option<Finish>,
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
    answer: Continuation<'a>,
    failed: bool,
}

impl<'a> Generation<'a> {
    /// Answers what `ids` add to the context. On an error the context is as before.
    fn new(engine: &'a Engine, mut context: Held<'a>, ids: &[u32], how: &Sampling) -> Result<Self> {
        let c = context.get();
        let answer = Continuation::new(engine, how, c.tokens() + ids.len())?.after(ids);
        // Room for the whole answer now, rather than an error in the middle of it.
        c.cache.reserve(answer.room() - c.cache.tokens())?;
        ids.iter().for_each(|&id| c.push(id));
        Ok(Self { engine, context, answer, failed: false })
    }

    /// Tokens of the prompt, `<s>`, tags and, in a chat, earlier turns counted.
    pub fn prompt_tokens(&self) -> usize {
        self.answer.prompt_tokens()
    }

    /// Log-probabilities of the prompt's tokens from the second on, where
    /// [`Sampling::prompt_logprobs`] asks for them; all are there with the first piece, or, where
    /// `max_tokens` is 0, when the iterator has ended.
    ///
    /// ```
    /// use gritlm::{Engine, Options, Prompt, Sampling};
    /// let engine = Engine::open("demo", &Options::default())?;
    /// let score = Sampling { max_tokens: 0, prompt_logprobs: Some(1), ..Sampling::greedy() };
    /// let mut scored = engine.generate(&Prompt::raw("Package: pdfgrep"), &score)?;
    /// assert!(scored.next().is_none());
    /// let sum: f32 = scored.prompt_logprobs().iter().map(|token| token.logprob).sum();
    /// assert!(sum < 0.0);
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    pub fn prompt_logprobs(&self) -> &[SampledToken] {
        self.answer.scores()
    }

    /// Runs what is pending, in passes of the engine's batch size, and draws the next token; None
    /// where none is to be drawn.
    fn step(&mut self) -> Result<Option<Piece>> {
        let budget = self.engine.options().batch_tokens;
        let context = self.context.get();
        while !self.answer.is_over() {
            let tokens = context.part(budget, &self.answer);
            let outputs = self.engine.run(&mut [context.sequence(tokens, &self.answer)])?;
            context.ran(tokens);
            for output in outputs {
                if let Some(piece) = self.answer.push(output, context)? {
                    return Ok(Some(piece));
                }
            }
        }
        Ok(None)
    }
}

impl Iterator for Generation<'_> {
    type Item = Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.answer.is_over() {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
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
        let ids = match self.context.last() {
            None => self.engine.tokenize_prompt(&Prompt::user(text), false)?,
            Some(last) => {
                self.engine.check_bytes("prompt", text.len())?;
                // An answer that was cut short gets its end, as in training.
                let end = self.engine.config().eos.first().filter(|_| !tokenizer.is_eos(last));
                let mut ids: Vec<u32> = end.copied().into_iter().collect();
                ids.extend(tokenizer.encode_turn(&prompt::next_user(text))?);
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
        cache: KvCache,
        prompt: &Prompt,
        how: &Sampling,
    ) -> Result<Generation<'_>> {
        let ids = self.tokenize_prompt(prompt, !cache.is_empty())?;
        if ids.is_empty() {
            let problem = "expected at least one token, found none".into();
            return Err(Error::Input { what: "prompt".into(), problem });
        }
        let verbatim = how.verbatim || prompt.is_verbatim();
        self.generate_seen(cache, &[], &ids, &Sampling { verbatim, ..how.clone() })
    }

    /// Generates what follows `ids` on top of a cache whose tokens are `seen`, which the repetition
    /// penalty counts.
    ///
    /// # Errors
    /// As [`Engine::generate`].
    pub fn generate_seen(
        &self,
        cache: KvCache,
        seen: &[u32],
        ids: &[u32],
        how: &Sampling,
    ) -> Result<Generation<'_>> {
        let mut context = Context::new(cache);
        seen.iter().for_each(|&id| context.see(id));
        Generation::new(self, Held::Own(context), ids, how)
    }

    /// The ids of a prompt, as [`Engine::generate`] runs them; where it `continues` a cache,
    /// nothing goes in front.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of a text.
    pub fn tokenize_prompt(&self, prompt: &Prompt, continues: bool) -> Result<Vec<u32>> {
        let tokenizer = self.tokenizer();
        self.check_bytes("prompt", prompt.bytes())?;
        let mut ids = Vec::from_iter((!continues).then_some(self.config().bos));
        let turns = match prompt {
            Prompt::User(text) => vec![prompt::user(text)],
            Prompt::Chat { past, text } => prompt::chat(past, text),
            Prompt::Begun { past, text, answer } => {
                let mut turns = prompt::chat(past, text);
                turns.last_mut().into_iter().for_each(|turn| turn.push_str(answer));
                turns
            }
            Prompt::Raw(text) => {
                ids.extend(tokenizer.encode_continued(text)?);
                return Ok(ids);
            }
            Prompt::Tokens(ids) => return Ok(ids.clone()),
        };
        for (i, turn) in turns.iter().enumerate() {
            ids.extend(self.config().eos.first().filter(|_| i > 0));
            ids.extend(tokenizer.encode_turn(turn)?);
        }
        Ok(ids)
    }

    /// Starts a conversation.
    pub fn chat(&self) -> Chat<'_> {
        Chat { engine: self, context: Context::new(self.cache()) }
    }
}
