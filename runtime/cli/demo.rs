//! `gritlm demo`: shows what GritLM does, on the embedded model and without a download.

use super::args::{Demo, Global};
use super::embed::embed;
use super::generate::stream;
use super::output::Out;
use crate::error::{Error, Result};
use gritlm::{Embed, Engine, Prompt, Sampling};
use gritlm_model::demo::CORPUS;
use gritlm_model::ops::Match;
use gritlm_rag::{Ask, Mode, Passage, Stored};
use std::time::{Duration, Instant};

const INSTRUCTION: &str = "Find the software package that fits the description.";

const QUERIES: [&str; 4] = [
    "capture and generate network packets",
    "chess interface for the desktop",
    "edit XML documents",
    "draw maps from geographic data",
];

#[derive(serde::Deserialize)]
struct Package {
    id: String,
    text: String,
}

impl Package {
    /// Returns summary and description in "name: summary. description\nSection: …".
    fn parts(&self) -> (&str, &str) {
        let first = self.text.lines().next().unwrap_or_default();
        let rest = first.split_once(": ").map_or(first, |(_, rest)| rest);
        rest.split_once(". ").unwrap_or((rest, ""))
    }

    /// Returns the text that questions are asked about. It has neither summary nor section.
    fn passage(&self) -> String {
        format!("{}: {}", self.id, self.parts().1)
    }
}

pub(super) fn run(args: &Demo, global: &Global, out: &mut Out) -> Result<()> {
    if global.model != "demo" {
        return Err(Error::Option {
            option: "--model",
            expected: "none: the demo shows the embedded model".into(),
            found: global.model.clone(),
        });
    }
    let start = Instant::now();
    let engine = super::open(global)?;
    let opened = start.elapsed();
    let millions = engine.config().parameters() as f64 / 1e6;
    out.lines(format!(
        "A model of GritLM's shape with {millions:.1} million parameters, embedded in this program \
         (opened in {:.0} ms).\nIt shows what GritLM does, not how well: GritLM-7B has 7242 million.",
        opened.as_secs_f64() * 1e3
    ))?;

    let packages: Vec<Package> = CORPUS
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::Input { what: "demo corpus".into(), problem: e.to_string() })?;
    let texts: Vec<&str> = packages.iter().map(|p| p.text.as_str()).collect();
    let start = Instant::now();
    let documents = embed(&engine, &texts, &Embed::default())?;
    let seconds = start.elapsed().as_secs_f64();
    let tokens: usize = documents.iter().map(|e| e.tokens).sum();
    out.lines(format!(
        "\nEmbedded {} descriptions of software packages: {tokens} tokens in {seconds:.2} s, \
         {:.0} tokens/s.",
        documents.len(),
        tokens as f64 / seconds
    ))?;
    let corpus: Vec<f32> = documents.into_iter().flat_map(|e| e.vector).collect();

    let queries: Vec<&str> = match args.queries.is_empty() {
        true => QUERIES.to_vec(),
        false => args.queries.iter().map(String::as_str).collect(),
    };
    let mut first = None;
    for query in queries {
        let found = embed(&engine, &[query], &Embed::with_instruction(INSTRUCTION))?.remove(0);
        let best = engine.search(found.vector.len(), &found.vector, &corpus, 3)?.remove(0);
        out.lines(format!("\nFind: {query}"))?;
        for Match { index, score } in best {
            let package = &packages[index as usize];
            out.line(format!("  {score:.3}  {:<28} {}", package.id, package.parts().0))?;
            first.get_or_insert(package);
        }
    }

    if let Some(found) = first {
        out.lines(format!("\nRead: {}", found.passage()))?;
        let section = "In which section would it be?";
        read(&engine, &found.passage(), section, out)?;
        cached(&engine, &found.passage(), section, out)?;
        read(&engine, &found.passage(), &format!("Describe the package {}.", found.id), out)?;
    }
    let (device, products) = (engine.device(), engine.products());
    out.lines(format!("\nAll on {device}; products in {products}. Next: gritlm --help"))
}

/// Answers a question about a text that the prompt contains.
fn read(engine: &Engine, text: &str, question: &str, out: &mut Out) -> Result<()> {
    out.piece(&format!("\nAsk: {question}\nSay: "))?;
    let start = Instant::now();
    let prompt = Prompt::user(format!("{text}\n\n{question}"));
    let tokens = stream(engine.generate(&prompt, &how())?, out)?;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    out.lines(format!("\n     ({tokens} tokens, {rate:.0} tokens/s)"))
}

/// Answers a question about a text from the keys and values of the text's embedding pass.
fn cached(engine: &Engine, text: &str, question: &str, out: &mut Out) -> Result<()> {
    let ask = Ask::default().mode(Mode::Doc);
    let kv = ask.document(engine, text)?.kv;
    let kv = kv.map(|cache| Stored { cache, bytes: 0, took: Duration::ZERO });
    let passage = Passage { title: String::new(), text: text.into(), kv };
    out.piece(&format!("\nAsk: {question}\nSay: "))?;
    let asked = gritlm_rag::ask(engine, question, &ask)?;
    let mut answer = asked.answer(engine, &[passage], &how())?;
    for piece in &mut answer {
        out.piece(&piece?.text)?;
    }
    let usage = answer.usage();
    out.lines(format!(
        "\n     (from the keys and values of the embedding pass: {} tokens reused, {} computed)",
        usage.tokens_reused, usage.tokens_computed
    ))
}

fn how() -> Sampling {
    Sampling::greedy().max_tokens(96)
}
