//! What is found, and what each cache does to the answer.

use super::{Result, corpus, folder, open};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvCache;
use gritlm::model::prompt;
use gritlm::{Attn, Device, Engine, Piece, Prompt, Sampling};
use gritlm_rag::{
    Ask, CacheKind, Find, Hit, Identity, Indexer, KvFormat, Mode, Order, Part, Passage, Positions,
    Searcher, join,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Quality {
    /// A checkpoint, as for `gritlm`.
    #[arg(long, default_value = "demo")]
    model: String,
    /// JSONL with packages instead of the embedded corpus.
    #[arg(long, value_name = "FILE")]
    corpus: Option<PathBuf>,
    /// So many packages of the corpus, the first; all, if left out.
    #[arg(long)]
    packages: Option<usize>,
    /// How keys and values are stored.
    #[arg(long, default_value = "bf16")]
    kv_format: KvFormat,
    /// Which attention embeds.
    #[arg(long, default_value = "bbcc")]
    attn: Attn,
    /// Put the summary in front of the question, which then half answers it.
    #[arg(long)]
    with_summary: bool,
}

/// As the model was trained and is measured.
const INSTRUCTION: &str = "Find the software package that fits the description.";

/// With the most tokens that an answer gets.
const QUESTIONS: [(&str, usize); 2] =
    [("In which section would it be?", 8), ("What is it, in one line?", 24)];

/// Beside the modes: document and question without retrieval's words around them, and the question
/// alone. Between the two lies what a document is good for.
const CONTROLS: [&str; 2] = ["document, question", "question"];

struct Package {
    summary: String,
    section: String,
    /// What is indexed.
    text: String,
}

impl Package {
    /// From "name: summary. description\nSection: section\nHomepage: …".
    fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_once('\n')?;
        let (name, said) = head.split_once(": ")?;
        let (summary, description) = said.split_once(". ")?;
        let section = rest.strip_prefix("Section: ")?.lines().next()?;
        Some(Self {
            summary: summary.into(),
            section: section.into(),
            text: format!("{name}: {description}"),
        })
    }

    /// From the line of a file.
    fn record(line: &str) -> Result<Self> {
        let Record { name, short, long, section } = serde_json::from_str(line)?;
        // net for contrib/net, as in training.
        let section = section.rsplit('/').next().unwrap_or_default().into();
        Ok(Self { summary: short, section, text: format!("{name}: {long}") })
    }

    /// What a question is to be answered with.
    fn answer(&self, question: usize) -> String {
        if question == 0 { self.section.clone() } else { format!("{}.", self.summary) }
    }
}

/// A package of a file.
#[derive(serde::Deserialize)]
struct Record {
    name: String,
    short: String,
    long: String,
    section: String,
}

/// What became of a question in one mode, over all documents.
#[derive(Clone, Default)]
struct Figures {
    /// Answers that are, word for word, what was expected.
    right: usize,
    /// Of the expected answer's tokens.
    nats: f64,
    tokens: usize,
    /// Tokens that stand in the same place of plain RAG's answer in the same order, of the longer
    /// one's.
    same: usize,
    places: usize,
    same_answers: usize,
}

impl Quality {
    fn packages(&self) -> Result<Vec<Package>> {
        let most = self.packages.unwrap_or(usize::MAX);
        let packages: Vec<Package> = match &self.corpus {
            Some(file) => {
                let lines = fs::read_to_string(file)?;
                lines.lines().take(most).map(Package::record).collect::<Result<_>>()?
            }
            None => {
                let package = |text: &String| Package::parse(text).ok_or("expected a package");
                corpus()?.iter().take(most).map(package).collect::<std::result::Result<_, _>>()?
            }
        };
        match packages.is_empty() {
            true => Err("expected packages".into()),
            false => Ok(packages),
        }
    }

    pub(crate) fn run(&self, device: &Device) -> Result<Value> {
        let engine = open(&self.model, device, self.attn)?;
        let packages = self.packages()?;
        let folder = folder()?;
        let (store, file) = (folder.path().join("store"), folder.path().join("packages.jsonl"));
        let lines = packages.iter().enumerate().map(|(i, package)| {
            let line = json!({"id": i, "text": package.text});
            format!("{line}\n")
        });
        fs::write(&file, lines.collect::<String>())?;
        let identity =
            Identity { cache: CacheKind::Doc, kv: self.kv_format, ..Identity::of(&engine) };
        Indexer::open(&engine, &store, &identity)?.run(&[file], &mut |_| Ok(()))?;
        let searcher = Searcher::open(&engine, &store)?;

        let how = Find::default().top_k(10).instruction(INSTRUCTION);
        let mut found = Vec::new();
        let mut recall = [0; 2];
        for (i, package) in packages.iter().enumerate() {
            let hits = searcher.search(&package.summary, &how)?;
            let hits: Vec<(usize, Hit)> =
                hits.into_iter().map(|hit| Ok((number(&hit)?, hit))).collect::<Result<_>>()?;
            let rank = hits.iter().position(|(number, _)| *number == i);
            recall[0] += usize::from(rank == Some(0));
            recall[1] += usize::from(rank.is_some());
            found.push(hits.into_iter().next().ok_or("nothing was found")?);
        }
        let n = packages.len();
        let share = |count: usize| count as f64 / n as f64;
        let mut sections = BTreeMap::new();
        for (number, _) in &found {
            *sections.entry(&packages[*number].section).or_insert(0) += 1;
        }
        let commonest = share(sections.into_values().max().unwrap_or(0));
        println!(
            "{n} packages, keys and values in {}, on {}\nfound by the summary: at rank 1 {:.1} %, \
             in the first ten {:.1} %\nthe commonest section of the documents found: {:.1} %",
            self.kv_format,
            engine.device(),
            100.0 * share(recall[0]),
            100.0 * share(recall[1]),
            100.0 * commonest
        );

        let mut rows = Vec::new();
        for (question, (text, _)) in QUESTIONS.iter().enumerate() {
            let mut names: Vec<String> = ways().iter().map(name).collect();
            names.extend(CONTROLS.map(String::from));
            let mut figures = vec![Figures::default(); names.len()];
            for (package, (number, hit)) in packages.iter().zip(&found) {
                let query = match self.with_summary {
                    true => format!("{}\n\n{text}", package.summary),
                    false => (*text).into(),
                };
                let expected = packages[*number].answer(question);
                ask(&searcher, &engine, (question, &query), hit, &expected, &mut figures)?;
            }
            println!(
                "\n{text}\n{:<28} {:>8} {:>14} {:>14} {:>14}",
                "", "match %", "nats per token", "same tokens %", "same answers %"
            );
            for (name, f) in names.iter().zip(&figures) {
                let (loss, same) = (f.nats / f.tokens as f64, f.same as f64 / f.places as f64);
                println!(
                    "{:<28} {:>8.1} {loss:>14.3} {:>14.1} {:>14.1}",
                    name,
                    100.0 * share(f.right),
                    100.0 * same,
                    100.0 * share(f.same_answers)
                );
                rows.push(json!({
                    "question": text, "mode": name, "match": share(f.right),
                    "nats_per_token": loss, "same_tokens": same,
                    "same_answers": share(f.same_answers),
                }));
            }
        }
        Ok(json!({
            "packages": n, "kv_format": self.kv_format, "device": engine.device(),
            "with_summary": self.with_summary, "recall_1": share(recall[0]),
            "recall_10": share(recall[1]), "commonest_section": commonest, "rows": rows,
        }))
    }
}

/// A package's number, which is its line's id.
fn number(hit: &Hit) -> Result<usize> {
    Ok(hit.chunk.document.rsplit('#').next().unwrap_or_default().parse()?)
}

/// All modes, plain RAG in both orders first; where caches are joined, at both positions.
fn ways() -> Vec<Ask> {
    let ways = Mode::ALL.into_iter().flat_map(|mode| {
        let joins = matches!(mode, Mode::QueryDoc | Mode::DocQuery);
        let positions = [Positions::Turned, Positions::AsPublished];
        positions
            .into_iter()
            .take(1 + usize::from(joins))
            .map(move |positions| Ask::default().mode(mode).positions(positions))
    });
    ways.collect()
}

fn name(way: &Ask) -> String {
    match (way.mode, way.positions) {
        (Mode::Plain(Order::QueryDoc), _) => "none (query-doc)".into(),
        (Mode::Plain(Order::DocQuery), _) => "none (doc-query)".into(),
        (mode, Positions::AsPublished) => format!("{mode}, as published"),
        (mode, Positions::Turned) => mode.to_string(),
    }
}

/// Asks one document in all ways, and without retrieval's words around it.
fn ask(
    searcher: &Searcher<'_>,
    engine: &Engine,
    (question, query): (usize, &str),
    hit: &Hit,
    expected: &str,
    figures: &mut [Figures],
) -> Result<()> {
    let reference = answer_of(engine, expected)?;
    let how = Sampling::greedy().max_tokens(QUESTIONS[question].1);
    let mut answers: Vec<Vec<u32>> = Vec::new();
    let mut add = |mode: Mode, started, pieces: Vec<Piece>| -> Result<()> {
        let rows = forced(engine, started, &reference)?;
        // The reference stands where the answer would: both see the same first distribution.
        let first = &pieces.first().ok_or("an empty answer")?.token;
        let (expected_first, here) = (first.logprob, log_probability(&rows[0], first.token));
        if (here - f64::from(expected_first)).abs() > 1e-3 {
            let problem = format!("expected log-probability {expected_first}, found {here}");
            return Err(format!("{mode:?}: {problem}").into());
        }
        let f = &mut figures[answers.len()];
        let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
        f.right += usize::from(text.trim() == expected);
        f.nats -= (rows.iter().zip(&reference)).map(|(r, &t)| log_probability(r, t)).sum::<f64>();
        f.tokens += reference.len();
        answers.push(pieces.iter().map(|piece| piece.token.token).collect());
        let answer = &answers[answers.len() - 1];
        let plain = match mode {
            Mode::Plain(Order::QueryDoc) | Mode::Query | Mode::QueryDoc => &answers[0],
            Mode::Plain(Order::DocQuery) | Mode::Doc | Mode::DocQuery => &answers[1],
        };
        f.same += plain.iter().zip(answer).filter(|(a, b)| a == b).count();
        f.places += plain.len().max(answer.len());
        f.same_answers += usize::from(plain == answer);
        Ok(())
    };
    for way in ways() {
        let passage = Passage::of(searcher.reader(), &hit.chunk, way.mode)?;
        let started = start(engine, &way, query, &passage)?;
        let answer = gritlm_rag::ask(engine, query, &way)?.answer(engine, &[passage], &how)?;
        add(way.mode, started, answer.collect::<gritlm::Result<_>>()?)?;
    }
    for text in [format!("{}\n\n{query}", hit.chunk.text), query.into()] {
        let prompt = Prompt::user(text);
        let started = (engine.cache(), engine.tokenize_prompt(&prompt, false)?);
        let answer = engine.generate(&prompt, &how)?;
        add(Mode::default(), started, answer.collect::<gritlm::Result<_>>()?)?;
    }
    Ok(())
}

/// The ids of an answer as the model is trained on it, `</s>` included: those that follow its opening
/// where both are one string.
fn answer_of(engine: &Engine, text: &str) -> Result<Vec<u32>> {
    const OPENING: &str = "<|assistant|>\n";
    let opening = engine.tokenizer().encode_continued(OPENING)?;
    let both = engine.tokenizer().encode_continued(&format!("{OPENING}{text}"))?;
    let same = both.iter().zip(&opening).take_while(|(a, b)| a == b).count();
    Ok(both.into_iter().skip(same).chain(engine.config().eos.first().copied()).collect())
}

/// What an answer goes on from: what the mode reuses, and what is left to read.
fn start(
    engine: &Engine,
    way: &Ask,
    query: &str,
    passage: &Passage,
) -> Result<(KvCache, Vec<u32>)> {
    let asked = way.document(engine, query)?.kv.ok_or("a pass without keys and values")?;
    let asked = Part { cache: &asked, skip: 0 };
    let document = |skip| {
        let kv = passage.kv.as_ref().ok_or("a document without keys and values")?;
        Ok::<_, Box<dyn Error>>(Part { cache: &kv.cache, skip })
    };
    let parts = match way.mode {
        Mode::Plain(_) => vec![],
        Mode::Query => vec![asked],
        Mode::Doc => vec![document(0)?],
        Mode::QueryDoc => vec![asked, document(1)?],
        Mode::DocQuery => vec![document(0)?, asked],
    };
    let rest = way.mode.prompt(query, &[prompt::document(&passage.title, &passage.text)]);
    if parts.is_empty() {
        return Ok((engine.cache(), engine.tokenizer().encode(&rest)?));
    }
    let joined = join(&parts, way.positions, &engine.frequencies())?;
    Ok((engine.import(&joined)?, engine.tokenizer().encode_continued(&rest)?))
}

/// The logits of each of the reference's tokens, `(reference, vocab)`, where it is the answer.
fn forced(
    engine: &Engine,
    (mut cache, mut tokens): (KvCache, Vec<u32>),
    reference: &[u32],
) -> Result<Vec<Vec<f32>>> {
    let before = tokens.len() - 1;
    tokens.extend(&reference[..reference.len() - 1]);
    let (mask, want) = (engine.generation_mask(), Want::AllLogits);
    let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want };
    match engine.run(&mut [sequence])?.pop() {
        Some(Output::Logits(logits)) => {
            let rows = logits.chunks_exact(engine.config().vocab).skip(before);
            Ok(rows.map(<[f32]>::to_vec).collect())
        }
        other => Err(format!("expected logits, found {other:?}").into()),
    }
}

fn log_probability(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above = |logit: f32| f64::from(logit) - f64::from(max);
    above(logits[token as usize]) - logits.iter().map(|&l| above(l).exp()).sum::<f64>().ln()
}
