//! Constrained generation: answers that follow a JSON schema.
//!
//! Before a token is sampled, the tokens that the schema does not allow are masked out; the
//! model's logits stay as they are. The grammar matches the bytes of tokens, so it works with any
//! vocabulary and allows any tokenization of the JSON.

mod schema;

use crate::{Engine, Error, Result};
use gritlm_model::tokenizer::Tokenizer;
use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// A grammar that an answer must match, for [`crate::Sampling::grammar`]. Clones are cheap.
///
/// An object's properties come in the order of the schema. The parts of the JSON are separated by
/// at most one space, or by a new line with up to 20 characters of indentation.
///
/// ```
/// use gritlm::{Engine, Grammar, Options, Prompt, Sampling};
///
/// let engine = Engine::open("demo", &Options::default())?;
/// let schema = serde_json::json!({
///     "type": "object",
///     "properties": { "section": { "enum": ["science", "games"] } },
///     "required": ["section"],
///     "additionalProperties": false
/// });
/// let grammar = Some(Grammar::json_schema(&engine, &schema)?);
/// let prompt = Prompt::user("Generic Mapping Tools\n\nIn which section would it be?");
/// let answer = engine.generate(&prompt, &Sampling::greedy().grammar(grammar))?;
/// let text = answer.map(|piece| Ok(piece?.text)).collect::<gritlm::Result<String>>()?;
/// let answer: serde_json::Value = serde_json::from_str(&text).expect("JSON");
/// assert!(["science", "games"].contains(&answer["section"].as_str().unwrap_or_default()));
/// # Ok::<(), gritlm::Error>(())
/// ```
#[derive(Clone)]
pub struct Grammar {
    inner: Arc<Inner>,
}

struct Inner {
    source: String,
    factory: Arc<ParserFactory>,
    /// The matcher's state at the beginning of an answer.
    start: Matcher,
}

/// Maximum size of a schema's text in bytes; larger ones take long to compile.
const MAX_BYTES: usize = 64 << 10;
/// Stack of the compiling thread. The compiler recurses for each schema that refers to the next;
/// 1200 of them overflow 4 MB.
const STACK: usize = 64 << 20;
/// White space between two parts of the JSON: one space, or a new line and its indentation.
/// Without the limit, a model that has lost its way could emit white space forever.
const SPACE: &str = r"\x20|\x0A[\x20\x09]{0,20}";

impl Grammar {
    /// Returns a grammar for JSON that follows `schema`.
    ///
    /// # Errors
    /// When the schema is invalid, too large, contradictory or without a finite answer, or uses a
    /// keyword that cannot be followed token by token: `not`, `uniqueItems`, external references,
    /// or `oneOf` whose options do not exclude each other. Only keywords that JSON Schema does
    /// not define are silently ignored.
    pub fn json_schema(engine: &Engine, schema: &Value) -> Result<Self> {
        let wrong = |problem: String| Error::Input { what: "JSON schema".into(), problem };
        schema::check_depth(schema).map_err(wrong)?;
        let source = schema.to_string();
        if source.len() > MAX_BYTES {
            let found = source.len();
            return Err(wrong(format!("expected at most {MAX_BYTES} bytes, found {found}")));
        }
        let factory = engine.vocabulary()?;
        let compile = || compile(&factory, schema);
        let thread = std::thread::Builder::new().stack_size(STACK);
        let start =
            std::thread::scope(|scope| thread.spawn_scoped(scope, compile).map(|t| t.join()))
                .map_err(|e| wrong(format!("no thread to compile it: {e}")))?
                .unwrap_or_else(|_| Err("it cannot be compiled".into()))
                .map_err(wrong)?;
        Ok(Self { inner: Arc::new(Inner { source, factory, start }) })
    }

    /// Returns a grammar for any JSON object.
    ///
    /// # Errors
    /// When the tokenizer's tokens have no bytes of their own, or the model has no
    /// end-of-sequence token.
    pub fn json_object(engine: &Engine) -> Result<Self> {
        Self::json_schema(engine, &json!({ "type": "object" }))
    }

    /// Returns the schema's text.
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Returns the state at the beginning of an answer of `engine`.
    pub(crate) fn guide(&self, engine: &Engine) -> Result<Guide> {
        if !Arc::ptr_eq(&engine.vocabulary()?, &self.inner.factory) {
            let problem = "it was made for another engine".into();
            return Err(Error::Input { what: "grammar".into(), problem });
        }
        // Each answer gets a lexer state of its own.
        Ok(Guide { matcher: self.inner.start.deep_clone(), next: None })
    }
}

impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        self.source() == other.source()
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grammar").field(&self.source()).finish()
    }
}

fn compile(factory: &ParserFactory, schema: &Value) -> std::result::Result<Matcher, String> {
    schema::check(schema)?;
    let mut schema = match schema {
        Value::Object(schema) => schema.clone(),
        Value::Bool(true) => serde_json::Map::new(),
        Value::Bool(false) => return Err("it allows nothing".into()),
        other => return Err(one_line(&format!("expected an object, found {other}"))),
    };
    // The compiler reads its options from this key, which replaces one that the client sent.
    schema.insert("x-guidance".into(), json!({ "whitespace_pattern": SPACE }));
    let env = Some(factory.tok_env().clone());
    let init = GrammarInit::Serialized(TopLevelGrammar::from_json_schema(schema.into()));
    let parser =
        init.to_internal(env, factory.limits().clone()).and_then(|(grammar, mut lexer)| {
            // SentencePiece models begin a text with a space that is not shown.
            lexer.allow_initial_skip = true;
            factory.create_parser_from_init_default(GrammarInit::Internal(grammar, lexer))
        });
    let start = Matcher::new(Ok(parser.map_err(|e| one_line(&format!("{e:#}")))?));
    // Errors in the first tokens are better found now than during an answer. Too many optional
    // properties show at an object's first name.
    let mut first = start.deep_clone();
    let names = factory.tok_env().tok_trie().greedy_tokenize(b"{\"");
    let tried = first.compute_mask().and_then(|_| match first.try_consume_tokens(&names)? {
        _ if first.is_stopped() => Ok(()),
        _ => first.compute_mask().map(drop),
    });
    tried.map(|()| start).map_err(|e| one_line(&e.to_string()))
}

/// Returns the error on one line, without the parser's state.
fn one_line(message: &str) -> String {
    // The compiler's advice to programmers is removed as well.
    let rest = ["\n<", ". Enable ", "; consider "].iter().filter_map(|end| message.find(end)).min();
    let message = match &message[..rest.unwrap_or(message.len())] {
        "NoExtensionBias" => "no token may come next",
        message => message,
    };
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(300).collect()
}

/// An engine's vocabulary by bytes, made on first use.
#[derive(Default)]
pub(crate) struct Vocabulary {
    made: OnceLock<std::result::Result<Arc<ParserFactory>, String>>,
}

impl Vocabulary {
    pub(crate) fn get(
        &self,
        tokenizer: &Tokenizer,
        size: usize,
        eos: &[u32],
    ) -> Result<Arc<ParserFactory>> {
        let made = self.made.get_or_init(|| factory(tokenizer, size, eos).map(Arc::new));
        made.clone().map_err(|problem| Error::Input { what: "grammar".into(), problem })
    }
}

fn factory(
    tokenizer: &Tokenizer,
    size: usize,
    eos: &[u32],
) -> std::result::Result<ParserFactory, String> {
    let first = *eos.first().ok_or("the model has no token that ends an answer")?;
    let bytes = tokenizer.token_bytes().map_err(|e| e.to_string())?;
    // A token without bytes is never allowed. An end-of-sequence token must not be part of an
    // answer, and the trie holds fewer than 1024 bytes per token.
    let word = |(id, bytes): (u32, Option<Vec<u8>>)| {
        bytes.filter(|bytes| bytes.len() < 1024 && !eos.contains(&id)).unwrap_or_default()
    };
    let mut words: Vec<Vec<u8>> = (0..).zip(bytes).map(word).collect();
    words.resize(size, Vec::new());
    let trie = TokTrie::from(&TokRxInfo::new(size as u32, first), &words).with_eos_tokens(eos);
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| one_line(&format!("{e:#}")))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        initial_lexer_fuel: 200_000,
        step_lexer_fuel: 50_000,
        max_lexer_states: 1 << 16,
        verbose_errors: false,
        ..ParserLimits::default()
    };
    Ok(factory)
}

/// The state of one answer in its grammar.
pub(crate) struct Guide {
    matcher: Matcher,
    /// Tokens that may come next, if they have been computed.
    next: Option<Result<SimpleVob>>,
}

impl Guide {
    /// Computes the tokens that may come next. This takes a while and does not need the model.
    pub(crate) fn prepare(&mut self) {
        let matcher = &mut self.matcher;
        self.next.get_or_insert_with(|| matcher.compute_mask().map_err(|e| failed(&e.to_string())));
    }

    /// Returns the tokens that may come next.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob> {
        self.prepare();
        self.next.take().unwrap_or_else(|| Err(failed("nothing is known")))
    }

    /// Advances past a token that was allowed, and returns whether the answer is complete.
    pub(crate) fn push(&mut self, id: u32) -> Result<bool> {
        self.matcher.consume_token(id).map_err(|e| failed(&e.to_string()))?;
        Ok(self.matcher.is_stopped())
    }
}

fn failed(message: &str) -> Error {
    let problem = format!("the grammar cannot go on: {}", one_line(message));
    Error::Input { what: "answer".into(), problem }
}
