//! Generation, which turns a prompt into text piece by piece, and chat, which continues a
//! conversation turn by turn.

use crate::cache::KvCache;
use crate::continuation::{Context, Continuation};
use crate::message::{self, Message, Role};
use crate::{Engine, Error, Grammar, Result};
use gritlm_model::ops::{Mask, SampledToken};
use gritlm_model::prompt;

/// The input of a generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A user's turn, which is put into the checkpoint's chat template or, without one, into
    /// GritLM's tags. Special tokens that are spelled out in it, such as `</s>`, are plain text.
    User(String),
    /// A user's turn that continues a conversation.
    Chat {
        /// The turns so far: the user's text and the answer to it.
        past: Vec<(String, String)>,
        /// The user's next turn.
        text: String,
    },
    /// A conversation whose last answer has begun; the model continues it.
    Begun {
        /// The turns so far: the user's text and the answer to it.
        past: Vec<(String, String)>,
        /// The user's next turn.
        text: String,
        /// The first words of the answer to `text`.
        answer: String,
    },
    /// A conversation, to be answered or, where the last message is the assistant's, continued. In
    /// GritLM's format a system's text becomes part of the user's turn.
    Messages(Vec<Message>),
    /// Verbatim text, preceded only by `<s>`. The answer continues it exactly and keeps, for
    /// instance, the space before its first word.
    Raw(String),
    /// Token ids, used unchanged. The answer continues their text exactly.
    Tokens(Vec<u32>),
}

impl Prompt {
    /// Returns a prompt that is one user's turn.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User(text.into())
    }

    /// Returns a prompt that is verbatim text.
    pub fn raw(text: impl Into<String>) -> Self {
        Self::Raw(text.into())
    }

    /// Returns the length of all its texts in bytes; 0 for token ids.
    pub fn bytes(&self) -> usize {
        let turns = |past: &[(String, String)]| -> usize {
            past.iter().map(|(question, answer)| question.len() + answer.len()).sum()
        };
        match self {
            Self::User(text) | Self::Raw(text) => text.len(),
            Self::Chat { past, text } => turns(past) + text.len(),
            Self::Begun { past, text, answer } => turns(past) + text.len() + answer.len(),
            Self::Messages(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Self::Tokens(_) => 0,
        }
    }

    /// Returns whether the answer continues the prompt's text exactly.
    pub fn is_verbatim(&self) -> bool {
        match self {
            Self::User(_) | Self::Chat { .. } => false,
            Self::Begun { answer, .. } => !answer.is_empty(),
            Self::Messages(messages) => {
                let last = messages.iter().rev().take_while(|one| one.role == Role::Assistant);
                last.into_iter().any(|message| !message.content.is_empty())
            }
            Self::Raw(_) | Self::Tokens(_) => true,
        }
    }
}

/// How tokens are sampled, and when the answer ends.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// Maximum number of tokens to sample.
    pub max_tokens: usize,
    /// Divisor of the logits; 0 always selects the most likely token.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this fraction as probable as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Penalty on tokens seen before: it divides their positive logits and multiplies their
    /// negative ones; 1 has no effect.
    pub repetition_penalty: f32,
    /// Seed of the sampler; the same seed gives the same text.
    pub seed: u64,
    /// Texts that end the answer and are not part of it.
    pub stop: Vec<String>,
    /// Grammar that the answer must match; the answer ends when the grammar is complete. Tokens
    /// that the grammar excludes are not sampled, but the reported log-probabilities remain the
    /// model's own.
    pub grammar: Option<Grammar>,
    /// Number of most likely tokens to report with each token.
    pub logprobs: u32,
    /// Also reports the log-probabilities of the prompt's tokens from the second on, with this
    /// many of the most likely tokens for each; see [`Generation::prompt_logprobs`]. The whole
    /// prompt is then computed, without prefix caching.
    pub prompt_logprobs: Option<u32>,
    /// Ignores the end-of-sequence token, unless it completes a grammar.
    pub ignore_eos: bool,
    /// Whether the answer continues the prompt's text exactly: a space at its beginning is kept,
    /// which a chat's answer loses. [`Engine::generate`] always does this for [`Prompt::Raw`],
    /// [`Prompt::Tokens`], and [`Prompt::Begun`] with an answer that is not empty. The scheduler
    /// receives only token ids and does it where this is set.
    pub verbatim: bool,
    /// Mask to use instead of [`Engine::generation_mask`].
    pub mask: Option<Mask>,
}

gritlm_model::setters!(Sampling {
    max_tokens: usize,
    temperature: f32,
    top_k: u32,
    top_p: f32,
    min_p: f32,
    repetition_penalty: f32,
    seed: u64,
    stop: Vec<String>,
    grammar: Option<Grammar>,
    logprobs: u32,
    prompt_logprobs: Option<u32>,
    ignore_eos: bool,
    verbatim: bool,
    mask: Option<Mask>,
});

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
    /// Returns options that select the most likely token each time.
    pub fn greedy() -> Self {
        Self::default()
    }

    /// Checks that every option is valid. Generation checks this, too.
    ///
    /// # Errors
    /// When an option is out of range or a stop text is empty.
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

/// Reason why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "utoipa", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended the answer, a stop text came, or the grammar is complete.
    Stop,
    /// `max_tokens` was reached, or the model has no more positions.
    Length,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// Text that is final: whole characters that cannot be part of a stop text. May be empty.
    pub text: String,
    /// The token sampled in this step.
    pub token: SampledToken,
    /// Reason for the end; set on the last piece only.
    pub finish: Option<Finish>,
}

/// The context of an answer: its own, or one borrowed from a chat.
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

/// An answer being generated: an iterator of [`Piece`]s. Dropping it ends the answer.
pub struct Generation<'a> {
    engine: &'a Engine,
    context: Held<'a>,
    answer: Continuation<'a>,
    failed: bool,
}

impl<'a> Generation<'a> {
    /// Adds `ids` to the context and starts the answer. On an error the context is unchanged.
    fn new(engine: &'a Engine, mut context: Held<'a>, ids: &[u32], how: &Sampling) -> Result<Self> {
        let c = context.get();
        let answer = Continuation::new(engine, how, c.tokens() + ids.len())?.after(ids);
        // The whole answer's room is reserved now, so that it cannot run out midway.
        c.cache.reserve(answer.room() - c.cache.tokens())?;
        ids.iter().for_each(|&id| c.push(id));
        Ok(Self { engine, context, answer, failed: false })
    }

    /// Returns the number of prompt tokens, including `<s>`, tags and, in a chat, earlier turns.
    pub fn prompt_tokens(&self) -> usize {
        self.answer.prompt_tokens()
    }

    /// Returns the log-probabilities of the prompt's tokens from the second on, if
    /// [`Sampling::prompt_logprobs`] asks for them. They are complete with the first piece or, if
    /// `max_tokens` is 0, when the iterator has ended.
    ///
    /// ```
    /// use gritlm::{Engine, Options, Prompt, Sampling};
    /// let engine = Engine::open("demo", &Options::default())?;
    /// let score = Sampling::greedy().max_tokens(0).prompt_logprobs(Some(1));
    /// let mut scored = engine.generate(&Prompt::raw("Package: pdfgrep"), &score)?;
    /// assert!(scored.next().is_none());
    /// let sum: f32 = scored.prompt_logprobs().iter().map(|token| token.logprob).sum();
    /// assert!(sum < 0.0);
    /// # Ok::<(), gritlm::Error>(())
    /// ```
    pub fn prompt_logprobs(&self) -> &[SampledToken] {
        self.answer.scores()
    }

    /// Runs the pending tokens, in passes of the engine's batch size, and samples the next token.
    /// Returns None when the answer is over.
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

/// A conversation on one KV cache: each turn computes only its new tokens.
///
/// ```
/// use gritlm::{Engine, Options, Sampling};
/// let engine = Engine::open("demo", &Options::default())?;
/// let mut chat = engine.chat();
/// for text in ["Describe the package pdfgrep.", "In which section would it be?"] {
///     for piece in chat.say(text, &Sampling::greedy().max_tokens(4))? {
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
    /// Adds the user's next turn and returns the answer, an iterator of pieces.
    ///
    /// # Errors
    /// As [`Engine::generate`], for the whole conversation; it is then unchanged.
    pub fn say(&mut self, text: &str, how: &Sampling) -> Result<Generation<'_>> {
        let tokenizer = self.engine.tokenizer();
        let ids = match self.context.last() {
            None => self.engine.tokenize_prompt(&Prompt::user(text), false)?,
            Some(last) => {
                self.engine.check_bytes("prompt", text.len())?;
                if let Some(template) = self.engine.chat_template() {
                    // The template writes the token that ends an answer, which may be there.
                    let mut ids = template.encode_next(tokenizer, text)?;
                    if ids.first() == Some(&last) && tokenizer.is_eos(last) {
                        ids.remove(0);
                    }
                    return Generation::new(self.engine, Held::Lent(&mut self.context), &ids, how);
                }
                // An answer that was cut short gets its end-of-sequence token, as in training.
                let end = self.engine.config().eos.first().filter(|_| !tokenizer.is_eos(last));
                let mut ids: Vec<u32> = end.copied().into_iter().collect();
                ids.extend(tokenizer.encode_turn(&prompt::next_user(text))?);
                ids
            }
        };
        Generation::new(self.engine, Held::Lent(&mut self.context), &ids, how)
    }

    /// Returns the number of tokens of the conversation.
    pub fn tokens(&self) -> usize {
        self.context.tokens()
    }
}

impl Engine {
    /// Generates an answer piece by piece.
    ///
    /// # Errors
    /// When an option is invalid, the grammar belongs to another engine, the checkpoint has no
    /// head, the prompt is empty, cannot be tokenized or fills the model's positions, or too few
    /// KV pages are free for prompt and answer.
    pub fn generate(&self, prompt: &Prompt, how: &Sampling) -> Result<Generation<'_>> {
        self.generate_after(self.cache(), prompt, how)
    }

    /// Generates from a cache, for instance an imported document's. The prompt's tokens follow
    /// the cached ones, so no `<s>` is put in front of them.
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

    /// Generates what follows `ids` from a cache whose token ids are `seen`, which the repetition
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

    /// Returns the token ids of a prompt, as [`Engine::generate`] runs them. If the prompt
    /// `continues` a cache, no `<s>` is put in front.
    ///
    /// # Errors
    /// When a text has more bytes than the model's positions can hold, or the tokenizer has no
    /// token for some part of it.
    pub fn tokenize_prompt(&self, prompt: &Prompt, continues: bool) -> Result<Vec<u32>> {
        let (tokenizer, start) = (self.tokenizer(), self.tokenizer().start());
        self.check_bytes("prompt", prompt.bytes())?;
        if let (Some(template), Some(messages)) = (self.chat_template(), prompt.messages()) {
            let ids = template.encode(tokenizer, &messages)?;
            let cached = if continues { start } else { &[] };
            return Ok(ids.strip_prefix(cached).unwrap_or(&ids).to_vec());
        }
        let mut ids = if continues { Vec::new() } else { start.to_vec() };
        let turns = match prompt {
            Prompt::Messages(messages) => {
                return self.tokenize_prompt(&message::turns(messages), continues);
            }
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
