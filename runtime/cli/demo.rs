//! `gritlm demo`: shows what GritLM does, on the embedded model and without a download.

use super::args::{Demo, Global};
use super::embed::embed;
use super::generate::stream;
use super::output::Out;
use crate::error::{Error, Result};
use gritlm::{Embed, Engine, Prompt, Sampling};
use gritlm_model::demo::CORPUS;
use gritlm_model::ops::Match;
use std::time::Instant;

const INSTRUCTION: &str = "Find the software package that fits the description.";

const QUERIES: [&str; 4] = [
    "chess interface for the desktop",
    "capture and generate network packets",
    "edit XML documents",
    "draw maps from geographic data",
];

#[derive(serde::Deserialize)]
struct Package {
    id: String,
    text: String,
}

impl Package {
    /// Returns the summary in "name: summary. description".
    fn summary(&self) -> &str {
        let rest = self.text.split_once(": ").map_or(self.text.as_str(), |(_, rest)| rest);
        rest.split_once(". ").map_or(rest, |(summary, _)| summary)
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
            out.line(format!("  {score:.3}  {:<28} {}", package.id, package.summary()))?;
            first.get_or_insert(package);
        }
    }

    if let Some(found) = first {
        let section = format!("{}\n\nIn which section would it be?", found.summary());
        answer(&engine, &section, 8, out)?;
        answer(&engine, &format!("Describe the package {}.", found.id), 96, out)?;
    }
    let (device, products) = (engine.device(), engine.products());
    out.lines(format!("\nAll on {device}; products in {products}. Next: gritlm --help"))
}

fn answer(engine: &Engine, text: &str, max_tokens: usize, out: &mut Out) -> Result<()> {
    out.piece(&format!("\nAsk: {}\nSay: ", text.replace('\n', " ")))?;
    let start = Instant::now();
    let how = Sampling::greedy().max_tokens(max_tokens).repetition_penalty(1.2);
    let tokens = stream(engine.generate(&Prompt::user(text), &how)?, out)?;
    let rate = tokens as f64 / start.elapsed().as_secs_f64();
    out.lines(format!("\n     ({tokens} tokens, {rate:.0} tokens/s)"))
}
