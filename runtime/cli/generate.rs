//! `gritlm generate`.

use super::args::{Generate, Global};
use super::check_interrupt;
use super::output::{Out, STDIN};
use crate::error::{Error, Result};
use gritlm::{Finish, Generation, Grammar, Piece, Prompt};
use gritlm_model::ops::SampledToken;
use gritlm_rag::text;
use serde_json::Value;
use std::io::Read;

pub(super) fn run(args: &Generate, global: &Global, out: &mut Out) -> Result<()> {
    let mut how = args.sampling.sampling(args.logprobs);
    how.check()?;
    let schema = args.json_schema.as_deref().map(schema).transpose()?;
    let text = match &args.prompt {
        Some(text) => text.clone(),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map_err(Error::io(STDIN))?;
            decode(bytes, STDIN)?
        }
    };
    let prompt = if args.raw { Prompt::Raw(text) } else { Prompt::User(text) };
    let engine = super::open(global)?;
    how.grammar = schema.map(|schema| Grammar::json_schema(&engine, &schema)).transpose()?;
    let answer = engine.generate(&prompt, &how)?;
    if !out.json() {
        stream(answer, out)?;
        return out.line("");
    }

    let prompt_tokens = answer.prompt_tokens();
    let (mut text, mut drawn, mut finish) = (String::new(), Vec::new(), Finish::Length);
    for piece in answer {
        check_interrupt()?;
        let Piece { text: more, token, finish: end } = piece?;
        text += &more;
        drawn.push(token);
        finish = end.unwrap_or(finish);
    }
    out.object(&Answer {
        text,
        tokens: drawn.iter().map(|d| d.token).collect(),
        finish_reason: finish,
        prompt_tokens,
        logprobs: (args.logprobs > 0).then(|| drawn.iter().map(Logprob::of).collect()),
    })
}

/// Reads the schema that `--json-schema` gives or names.
fn schema(asked: &str) -> Result<Value> {
    let (what, text) = match asked.trim_start().starts_with('{') {
        true => ("--json-schema", asked.into()),
        false => (asked, decode(std::fs::read(asked).map_err(Error::io(asked))?, asked)?),
    };
    let wrong = |e: serde_json::Error| Error::Input { what: what.into(), problem: e.to_string() };
    serde_json::from_str(&text).map_err(wrong)
}

fn decode(bytes: Vec<u8>, what: &str) -> Result<String> {
    text::decode(bytes).map_err(|e| Error::Input {
        what: what.into(),
        problem: format!("not {} (byte {})", e.encoding(), e.at + 1),
    })
}

/// Prints an answer as it is generated, and returns how many tokens it has.
pub(super) fn stream(answer: Generation<'_>, out: &mut Out) -> Result<usize> {
    let mut tokens = 0;
    for piece in answer {
        check_interrupt()?;
        out.piece(&piece?.text)?;
        tokens += 1;
    }
    Ok(tokens)
}

#[derive(serde::Serialize)]
struct Answer {
    text: String,
    tokens: Vec<u32>,
    finish_reason: Finish,
    prompt_tokens: usize,
    logprobs: Option<Vec<Logprob>>,
}

#[derive(serde::Serialize)]
struct Logprob {
    token: u32,
    logprob: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    top: Vec<Logprob>,
}

impl Logprob {
    fn of(drawn: &SampledToken) -> Self {
        let one = |token, logprob| Self { token, logprob, top: Vec::new() };
        let top = drawn.top.iter().map(|&(token, logprob)| one(token, logprob)).collect();
        Self { top, ..one(drawn.token, drawn.logprob) }
    }
}
