//! Models beside each other on held-out samples: the paper's claim in small, that one model embeds
//! like one that only embeds and answers like one that only answers.
//!
//!     cargo bench --bench grit -- --data DIR --model grit=A --model embedding=B --model generation=C
//!         [--pairs 500] [--answers 171] [--prompts FILE]
//!
//! * **recall, nDCG**: queries find their passages among all passages of the data.
//! * **loss**: nats per learned token of the answers, in GritLM's format.
//! * The intervals hold 95 % of what 10,000 samples of queries, or of answers, drawn with
//!   replacement, give for the first model minus another (paired bootstrap).
//! * With `--prompts`, a prompt a line, each model answers greedily, in its own chat format.

use gritlm::batch::{Output, Sequence, Want};
use gritlm::{Device, Embed, Encoded, Engine, Options, Prompt, Sampling};
use gritlm_train::{Answer, Data, Encoder, Lengths, Retrieval, Text};
use std::fs;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Samples of the bootstrap.
const SAMPLES: usize = 10_000;

#[derive(clap::Parser)]
struct Args {
    /// A folder of held-out data, as for `gritlm train`
    #[arg(long)]
    data: PathBuf,
    /// A model and what it is called; the others are compared with the first
    #[arg(long = "model", value_name = "NAME=MODEL", required = true)]
    models: Vec<String>,
    /// Pairs of the data that are measured
    #[arg(long, default_value_t = 500)]
    pairs: usize,
    /// Conversations of the data that are measured
    #[arg(long, default_value_t = 500)]
    answers: usize,
    /// A file of prompts, one a line
    #[arg(long)]
    prompts: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured of one model.
struct Measured {
    name: String,
    /// For each query, how many passages are at least as near as the one that it should find.
    ranks: Vec<usize>,
    /// For each conversation, the sum of its learned tokens' losses, and their number.
    losses: Vec<(f64, usize)>,
}

fn main() -> Result<()> {
    let args: Args = clap::Parser::parse();
    let prompts = match &args.prompts {
        Some(file) => fs::read_to_string(file)?,
        None => String::new(),
    };
    let mut all = Vec::new();
    for model in &args.models {
        let (name, path) = model.split_once('=').ok_or("expected NAME=MODEL")?;
        let engine = Engine::open(path, &Options::default().device(Device::Cpu))?;
        let encoder = Encoder::new(
            engine.tokenizer(),
            engine.config(),
            Lengths::default().within(engine.config()),
        )?;
        let data = Data::open(&args.data, &encoder, 1)?;
        let ranks = ranks(&engine, &encoder, &data, args.pairs)?;
        let losses = (0..data.generative().min(args.answers))
            .map(|i| loss(&engine, &encoder.answer(&data.text(i)?)?))
            .collect::<Result<_>>()?;
        all.push(Measured { name: name.into(), ranks, losses });
        for prompt in prompts.lines() {
            let sampling = Sampling::greedy().max_tokens(64);
            let answer = engine.generate(&Prompt::user(prompt), &sampling)?;
            let text: String =
                answer.map(|piece| piece.map(|p| p.text)).collect::<gritlm::Result<_>>()?;
            println!("{name}: {prompt}\n    {}", text.trim().replace('\n', "\n    "));
        }
    }

    println!("| model | recall@1 | recall@10 | nDCG@10 | loss |");
    println!("|---|---|---|---|---|");
    for found in &all {
        let shares = MEASURES.map(|gain| format!("{:.3}", mean(&found.ranks, gain)));
        println!("| {} | {} | {:.4} |", found.name, shares.join(" | "), mean_loss(&found.losses));
    }
    println!("| {} minus | recall@1 | recall@10 | nDCG@10 | loss |", all[0].name);
    println!("|---|---|---|---|---|");
    for other in &all[1..] {
        let gains = MEASURES.map(|gain| {
            let pairs: Vec<(f64, f64)> =
                all[0].ranks.iter().zip(&other.ranks).map(|(&a, &b)| (gain(a), gain(b))).collect();
            interval(pairs.len(), |drawn| {
                let sum = drawn.iter().map(|&i| pairs[i].0 - pairs[i].1).sum::<f64>();
                sum / drawn.len() as f64
            })
        });
        let losses = interval(other.losses.len(), |drawn| {
            let of = |all: &[(f64, usize)]| {
                mean_loss(&drawn.iter().map(|&i| all[i]).collect::<Vec<_>>())
            };
            of(&all[0].losses) - of(&other.losses)
        });
        println!("| {} | {} | {losses} |", other.name, gains.join(" | "));
    }
    Ok(())
}

/// What a query is worth whose passage has so many before it.
type Gain = fn(usize) -> f64;

/// Recall@1, recall@10 and nDCG@10.
const MEASURES: [Gain; 3] = [
    |rank| f64::from(u8::from(rank < 1)),
    |rank| f64::from(u8::from(rank < 10)),
    |rank| if rank < 10 { 1.0 / (rank as f64 + 2.0).log2() } else { 0.0 },
];

fn mean(ranks: &[usize], gain: Gain) -> f64 {
    ranks.iter().map(|&rank| gain(rank)).sum::<f64>() / ranks.len() as f64
}

fn mean_loss(losses: &[(f64, usize)]) -> f64 {
    let count: usize = losses.iter().map(|loss| loss.1).sum();
    losses.iter().map(|loss| loss.0).sum::<f64>() / count as f64
}

/// Returns the middle and the 95 % interval of `value` over samples of `len` indices.
fn interval(len: usize, value: impl Fn(&[usize]) -> f64) -> String {
    let mut rng = fastrand::Rng::with_seed(0);
    let mut values: Vec<f64> = (0..SAMPLES)
        .map(|_| value(&(0..len).map(|_| rng.usize(..len)).collect::<Vec<_>>()))
        .collect();
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[(share * (SAMPLES - 1) as f64).round() as usize];
    let whole = value(&(0..len).collect::<Vec<_>>());
    format!("{whole:+.3} ({:+.3} to {:+.3})", at(0.025), at(0.975))
}

/// Returns the ranks of the passages that the first queries should find.
fn ranks(engine: &Engine, encoder: &Encoder<'_>, data: &Data, pairs: usize) -> Result<Vec<usize>> {
    let mut retrieval = Retrieval::new(data, encoder)?;
    retrieval.queries.truncate(pairs);
    let embed = |texts: &[Text]| -> Result<Vec<f32>> {
        let encoded = |t: &Text| Encoded { tokens: t.tokens.clone(), skip: t.skip, truncated: 0 };
        let texts: Vec<Encoded> = texts.iter().map(encoded).collect();
        let found = engine.embed_encoded(&texts, &Embed::default(), &mut |_| Ok(()))?;
        Ok(found.into_iter().flat_map(|embedding| embedding.vector).collect())
    };
    let (queries, passages) = (embed(&retrieval.queries)?, embed(&retrieval.passages)?);
    Ok(retrieval.ranks(engine.config().dim, &queries, &passages))
}

/// Returns the sum of the losses of a conversation's learned tokens, and their number.
fn loss(engine: &Engine, answer: &Answer) -> Result<(f64, usize)> {
    let targets = answer.tokens[1..].to_vec();
    let want = Want::Scores { targets, logprobs: 0, then: Box::new(Want::Nothing) };
    let (mut cache, mask) = (engine.cache(), engine.generation_mask());
    let sequence = Sequence { tokens: &answer.tokens, cache: &mut cache, mask, want };
    let Some(Output::Scores(scores, _)) = engine.run(&mut [sequence])?.pop() else {
        return Err("expected scores".into());
    };
    let learned = scores.iter().zip(&answer.targets[1..]).filter(|(_, learned)| **learned);
    Ok((learned.map(|(score, _)| -f64::from(score.logprob)).sum(), answer.learned()))
}
