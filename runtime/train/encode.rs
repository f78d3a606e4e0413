//! Samples as token ids: what a pass is run on, and which tokens are learned.

use crate::batches::Batch;
use crate::data::{Generative, Passage, Place, Spoken};
use crate::{Error, Result};
use gritlm_model::config::Config;
use gritlm_model::prompt;
use gritlm_model::tokenizer::Tokenizer;
use rayon::prelude::*;

/// Maximum lengths in tokens; what is longer is cut off. `<s>`, tags and instructions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lengths {
    /// Of a query.
    pub query_max_len: usize,
    /// Of a passage, or a document.
    pub passage_max_len: usize,
    /// Of a text or conversation. The document that it is about is not counted, but both together
    /// have at most the model's positions.
    pub generative_max_len: usize,
}

gritlm_model::setters!(Lengths {
    query_max_len: usize,
    passage_max_len: usize,
    generative_max_len: usize,
});

impl Default for Lengths {
    /// Returns the paper's lengths.
    fn default() -> Self {
        Self { query_max_len: 256, passage_max_len: 2048, generative_max_len: 2048 }
    }
}

impl Lengths {
    /// Returns these lengths, none above the positions of the model.
    #[must_use]
    pub fn within(self, config: &Config) -> Self {
        let most = config.max_positions;
        Self {
            query_max_len: self.query_max_len.min(most),
            passage_max_len: self.passage_max_len.min(most),
            generative_max_len: self.generative_max_len.min(most),
        }
    }

    /// Returns the characters at which a text to embed is cut before it is tokenized, as in the
    /// original.
    pub(crate) fn most_chars(&self) -> usize {
        let longest = self.query_max_len.max(self.passage_max_len).max(self.generative_max_len);
        longest.saturating_mul(10)
    }
}

/// A text to embed as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text {
    /// Ids of `<s>`, tags, instruction and text; at least one.
    pub tokens: Vec<u32>,
    /// Number of leading tokens that pooling leaves out; fewer than there are tokens.
    pub skip: usize,
}

/// A text or conversation as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The document whose keys and values the tokens continue, if they do. Its mask is that of
    /// embeddings; the tokens attend to all of it.
    pub document: Option<Text>,
    /// Ids of `<s>`, unless a document comes first, and of the turns, with `</s>` after each
    /// answer.
    pub tokens: Vec<u32>,
    /// For each token, whether predicting it from those before it is learned. The first token is
    /// never.
    pub targets: Vec<bool>,
}

impl Answer {
    /// Returns the number of tokens that are learned.
    pub fn learned(&self) -> usize {
        self.targets.iter().filter(|&&target| target).count()
    }
}

/// A batch as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The queries, in the batch's order.
    pub queries: Vec<Text>,
    /// The passages, as many for each query as the data's group: its positive one, then its
    /// negative ones.
    pub passages: Vec<Text>,
    /// The texts and conversations, in the batch's order.
    pub answers: Vec<Answer>,
}

/// Encodes samples for one model.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    config: &'a Config,
    lengths: Lengths,
}

impl<'a> Encoder<'a> {
    /// Returns an encoder for the model that the tokenizer and the config belong to.
    ///
    /// # Errors
    /// When a length is 0, or more than the model has positions.
    pub fn new(tokenizer: &'a Tokenizer, config: &'a Config, lengths: Lengths) -> Result<Self> {
        for (option, length) in [
            ("query_max_len", lengths.query_max_len),
            ("passage_max_len", lengths.passage_max_len),
            ("generative_max_len", lengths.generative_max_len),
        ] {
            if !(1..=config.max_positions).contains(&length) {
                return Err(Error::Option {
                    option,
                    expected: format!("1 to {}, the positions of the model", config.max_positions),
                    found: length.to_string(),
                });
            }
        }
        Ok(Self { tokenizer, config, lengths })
    }

    /// Returns the maximum lengths.
    pub fn lengths(&self) -> &Lengths {
        &self.lengths
    }

    /// Encodes a query. The ids are those that [`gritlm::Engine::encode_texts`] gives for the same
    /// instruction, text and limit.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of the text.
    pub fn query(&self, query: &Passage) -> Result<Text> {
        self.embedded(query, self.lengths.query_max_len)
    }

    /// Encodes a passage or document, like [`Encoder::query`].
    ///
    /// # Errors
    /// As [`Encoder::query`].
    pub fn passage(&self, passage: &Passage) -> Result<Text> {
        self.embedded(passage, self.lengths.passage_max_len)
    }

    /// Encodes a text or conversation. The ids of a conversation are those of the prompts that
    /// [`gritlm::Engine::tokenize_prompt`] makes in GritLM's own format, with the answers, which
    /// lose white space at their ends as in the original. After a document the first of the user's
    /// texts is a question to it, as where an answer continues a cached document.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of the text.
    pub fn answer(&self, sample: &Generative) -> Result<Answer> {
        let document = sample.document.as_ref().map(|one| self.passage(one)).transpose()?;
        let limit = self.room(document.as_ref().map_or(0, |text| text.tokens.len()));
        let start = self.tokenizer.start().iter().filter(|_| document.is_none());
        let mut tokens: Vec<u32> = start.copied().collect();
        let mut targets = vec![false; tokens.len()];
        match &sample.spoken {
            Spoken::Text(text) => {
                let text = self.tokenizer.beginning(text, limit);
                tokens.extend(self.tokenizer.encode_continued(text)?);
                targets.resize(tokens.len(), true);
            }
            Spoken::Turns(turns) => {
                for (i, (question, answer)) in turns.iter().enumerate() {
                    if tokens.len() >= limit {
                        break;
                    }
                    let opening = opening(i, question, document.is_some());
                    let turn = self.turn(&format!("{opening}{}", answer.trim()), limit)?;
                    // The answer's tokens are those that follow what the model has read when it
                    // begins to answer.
                    let read = self.turn(&opening, limit)?;
                    let read = turn.iter().zip(&read).take_while(|(a, b)| a == b).count();
                    targets.resize(tokens.len() + read, false);
                    tokens.extend(turn);
                    tokens.extend(self.config.eos.first());
                    targets.resize(tokens.len(), true);
                }
            }
        }
        tokens.truncate(limit);
        targets.truncate(limit);
        if let Some(first) = targets.first_mut() {
            *first = false;
        }
        Ok(Answer { document, tokens, targets })
    }

    /// Encodes a batch on all threads.
    ///
    /// # Errors
    /// When the tokenizer has no token for some part of a text, which the error names by file and
    /// line.
    pub fn batch(&self, batch: &Batch) -> Result<Encoded> {
        let at = |place: &Place, e: Error| match e {
            Error::Engine(e) => place.error(e.to_string()),
            other => other,
        };
        let pairs = batch.pairs.par_iter();
        let query = |group: &crate::batches::Group| {
            self.query(&group.query).map_err(|e| at(&group.place, e))
        };
        let queries = pairs.clone().map(query).collect::<Result<_>>()?;
        let passages =
            pairs.flat_map(|group| group.passages.par_iter().map(move |one| (group, one)));
        let passage = |(group, one): (&crate::batches::Group, &Passage)| {
            self.passage(one).map_err(|e| at(&group.place, e))
        };
        let passages = passages.map(passage).collect::<Result<_>>()?;
        let answer = |sample: &Generative| self.answer(sample).map_err(|e| at(&sample.place, e));
        let answers = batch.texts.par_iter().map(answer).collect::<Result<_>>()?;
        Ok(Encoded { queries, passages, answers })
    }

    /// Returns whether an instruction leaves no token of `limit` for the text.
    pub(crate) fn instruction_fills(&self, instruction: &str, limit: usize) -> Result<bool> {
        let prefix = prompt::embed_prefix(instruction);
        let start = self.tokenizer.start().len();
        // Only what has more bytes than the limit has tokens is worth tokenizing.
        Ok(prefix.len() + start >= limit && self.start(&prefix, limit)?.len() >= limit)
    }

    /// Returns why a conversation has no token of its first answer within the limits, if so.
    pub(crate) fn opening_fills(&self, sample: &Generative) -> Result<Option<String>> {
        let Spoken::Turns(turns) = &sample.spoken else { return Ok(None) };
        let question = turns.first().map_or("", |(question, _)| question);
        let document = sample.document.as_ref();
        let opening = opening(0, question, document.is_some());
        let start = if document.is_some() { 0 } else { self.tokenizer.start().len() };
        let limit = self.room(match document {
            // Only what has more bytes than the limit has tokens is worth tokenizing.
            Some(one) if self.bytes(one) + self.lengths.generative_max_len > self.positions() => {
                self.passage(one)?.tokens.len()
            }
            _ => 0,
        });
        if opening.len() + start < limit || self.turn(&opening, limit)?.len() + start < limit {
            return Ok(None);
        }
        Ok(Some(match limit == self.lengths.generative_max_len {
            true => format!("the user's first text fills `generative_max_len` {limit}"),
            false => {
                let positions = self.positions();
                format!("document and question fill the model's {positions} positions")
            }
        }))
    }

    /// Returns how long a conversation may be behind a document of so many tokens.
    fn room(&self, document: usize) -> usize {
        self.lengths.generative_max_len.min(self.positions().saturating_sub(document))
    }

    fn positions(&self) -> usize {
        self.config.max_positions
    }

    /// Returns the bytes of a whole text to embed, `<s>` included.
    fn bytes(&self, passage: &Passage) -> usize {
        let prefix = prompt::embed_prefix(&passage.instruction);
        self.tokenizer.start().len() + prefix.len() + passage.text.len()
    }

    fn embedded(&self, passage: &Passage, limit: usize) -> Result<Text> {
        let prefix = prompt::embed_prefix(&passage.instruction);
        let skip = self.start(&prefix, limit)?.len();
        let text = self.tokenizer.beginning(&passage.text, limit);
        let mut tokens = self.tokenizer.encode(&format!("{prefix}{text}"))?;
        tokens.truncate(limit);
        // A text without tokens, of characters that the tokenizer drops, passes the check of its
        // file; pooling then takes the last token of the prefix.
        let skip = skip.min(tokens.len().saturating_sub(1));
        Ok(Text { tokens, skip })
    }

    /// Encodes a prefix as far as `limit` tokens need it.
    fn start(&self, prefix: &str, limit: usize) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(self.tokenizer.beginning(prefix, limit))?)
    }

    /// Encodes a turn as far as `limit` tokens need it.
    fn turn(&self, text: &str, limit: usize) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode_turn(self.tokenizer.beginning(text, limit))?)
    }
}

/// Returns the user's turn, ready for the answer.
fn opening(index: usize, question: &str, document: bool) -> String {
    match index {
        0 if document => prompt::rag_after_doc(question),
        0 => prompt::user(question),
        _ => prompt::next_user(question),
    }
}
