//! What each format of the weights loses: vectors, retrieval and loss on texts that the demo model
//! has not seen.
//!
//!     cargo bench --bench quality [-- --model M] [--attn cccc] [--weights q8_0,q4_k_m]
//!         [--texts 400] [--keep DIR]
//!
//! * **cosine**: of each vector to that of the checkpoint as it is; the mean, and the worst.
//! * **recall@10**: a package of the demo's corpus is found by its summary, which is left out of
//!   the indexed text.
//! * **loss**: nats per token of the corpus's texts, causal, each text by itself.
//!
//! With `--keep` the GGUF files stay in DIR, with the token ids of the loss in `texts.json`, so
//! that another program computes its own from the same: `benches/peers/llama_cpp/quality.py`. What
//! it wrote with `--output` is compared with `--peer FILE`: **answers** that are equal up to the
//! first token whose lead over the second is below 0.1.

use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::demo;
use gritlm::model::quantize::Quantization;
use gritlm::{Attn, Device, Embed, Embedding, Engine, Options, Prompt, Sampling, dot};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// As the demo model was trained.
const INSTRUCTION: &str = "Find the software package that fits the description.";

/// Longest text of the loss, in tokens.
const LONGEST: usize = 256;

const DEFAULT: &str = "bf16,q8_0,q6_k,q5_k_m,q5_1,q5_0,q4_k_m,q4_k,q4_1,q4_0,iq4_xs,q3_k,q2_k";

#[derive(clap::Parser)]
struct Args {
    /// A checkpoint, as for `gritlm`
    #[arg(long, default_value = "demo")]
    model: String,
    /// Attention of the vectors: cccc for a model that was not trained with both directions
    #[arg(long, default_value = "bbcc")]
    attn: Attn,
    /// Formats to measure
    #[arg(long, value_delimiter = ',', default_value = DEFAULT)]
    weights: Vec<Quantization>,
    /// Number of texts of the corpus
    #[arg(long, default_value_t = 400)]
    texts: usize,
    /// A folder for the files
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Greedy tokens of another program on the files of an earlier run
    #[arg(long)]
    peer: Option<PathBuf>,
    /// Passed by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured of one model.
struct Measured {
    vectors: Vec<Vec<f32>>,
    recall: f64,
    loss: f64,
}

fn main() -> Result<()> {
    let args: Args = clap::Parser::parse();
    let packages: Vec<Package> =
        demo::CORPUS.lines().take(args.texts).map(Package::parse).collect::<Result<_>>()?;
    let temporary = tempfile::tempdir()?;
    let folder = args.keep.clone().unwrap_or_else(|| temporary.path().into());
    fs::create_dir_all(&folder)?;
    let engine = open(&args.model, args.attn)?;
    let texts: Vec<Vec<u32>> = packages
        .iter()
        .map(|package| {
            let mut ids = engine.tokenizer().encode(&package.whole)?;
            ids.truncate(LONGEST);
            Ok(ids)
        })
        .collect::<Result<_>>()?;
    fs::write(folder.join("texts.json"), serde_json::to_vec(&texts)?)?;
    let plain = measure(&engine, &packages, &texts)?;
    drop(engine);
    let peer: Option<Value> = match &args.peer {
        Some(file) => Some(serde_json::from_slice(&fs::read(file)?)?),
        None => None,
    };
    println!("| weights | MB | cosine, mean | worst | recall@10 | loss | answers |");
    println!("|---|---|---|---|---|---|---|");
    println!("| as they are | | | | {:.3} | {:.4} | |", plain.recall, plain.loss);
    for to in args.weights {
        let file = folder.join(format!("{to}.gguf"));
        let _ = fs::remove_file(&file); // of an earlier run
        let made = gritlm::quantize(&args.model, None, to, &file, &mut |_, _| Ok(()))?;
        let engine = open(file.to_str().ok_or("expected a UTF-8 path")?, args.attn)?;
        let found = measure(&engine, &packages, &texts)?;
        let cosines = found.vectors.iter().zip(&plain.vectors).map(|(a, b)| f64::from(dot(a, b)));
        let cosines: Vec<f64> = cosines.collect();
        let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
        let worst = cosines.iter().copied().fold(1.0, f64::min);
        let mb = made.bytes as f64 / 1e6;
        let (recall, loss) = (found.recall, found.loss);
        let answers = match &peer {
            Some(peer) => answers(&engine, peer, &format!("{to}.gguf"))?,
            None => String::new(),
        };
        println!(
            "| {to} | {mb:.1} | {mean:.5} | {worst:.4} | {recall:.3} | {loss:.4} | {answers} |"
        );
    }
    Ok(())
}

/// Compares greedy tokens with those of another program on the file of that name. Returns how many
/// answers are equal as far as they must be, of how many, and how many tokens that are.
fn answers(engine: &Engine, peer: &Value, file: &str) -> Result<String> {
    let all = peer.as_object().ok_or("expected an object")?;
    let Some((_, all)) = all.iter().find(|(path, _)| path.rsplit('/').next() == Some(file)) else {
        return Ok(String::new());
    };
    let all = all.as_array().ok_or("expected a list")?;
    let (mut equal, mut tokens) = (0, 0);
    for answer in all {
        let ids = |key: &str| serde_json::from_value::<Vec<u32>>(answer[key].clone());
        let leads: Vec<f64> = serde_json::from_value(answer["leads"].clone())?;
        let (prompt, expected) = (Prompt::Tokens(ids("prompt")?), ids("tokens")?);
        let sampling = Sampling::greedy().max_tokens(expected.len()).ignore_eos(true);
        let found: Vec<u32> = engine
            .generate(&prompt, &sampling)?
            .map(|piece| piece.map(|piece| piece.token.token))
            .collect::<gritlm::Result<_>>()?;
        let sure = leads.iter().take_while(|&&lead| lead >= 0.1).count();
        tokens += sure;
        equal += usize::from(found.get(..sure) == expected.get(..sure));
    }
    Ok(format!("{equal} of {}, {tokens} tokens", all.len()))
}

fn open(model: &str, attn: Attn) -> gritlm::Result<Engine> {
    Engine::open(model, &Options::default().device(Device::Cpu).attn(attn))
}

/// A package of the corpus.
struct Package {
    whole: String,
    summary: String,
    /// Everything but the summary.
    rest: String,
}

impl Package {
    /// Parses `{"text": "name: summary. description\nSection: …"}`.
    fn parse(line: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(line)?;
        let whole = json["text"].as_str().ok_or("expected a text")?.to_string();
        let (name, said) = whole.split_once(": ").ok_or("expected a name")?;
        let (summary, description) = said.split_once(". ").ok_or("expected a summary")?;
        let (summary, rest) = (summary.into(), format!("{name}: {description}"));
        Ok(Self { whole, summary, rest })
    }
}

fn measure(engine: &Engine, packages: &[Package], texts: &[Vec<u32>]) -> Result<Measured> {
    let vectors = |texts: Vec<&str>, embed: &Embed| -> Result<Vec<Vec<f32>>> {
        let found = engine.embed(&texts, embed)?;
        Ok(found.into_iter().map(|Embedding { vector, .. }| vector).collect())
    };
    let embed = Embed::default();
    let documents = vectors(packages.iter().map(|p| p.rest.as_str()).collect(), &embed)?;
    let embed = embed.instruction(INSTRUCTION);
    let queries = vectors(packages.iter().map(|p| p.summary.as_str()).collect(), &embed)?;
    let found = queries.iter().enumerate().filter(|(n, query)| {
        let own = dot(query, &documents[*n]);
        documents.iter().filter(|other| dot(query, other) > own).count() < 10
    });
    let recall = found.count() as f64 / packages.len() as f64;
    let (mut sum, mut count) = (0.0, 0);
    for text in texts.iter().filter(|text| text.len() > 1) {
        let mut cache = engine.cache();
        let want = Want::Scores {
            targets: text[1..].to_vec(),
            logprobs: 0,
            then: Box::new(Want::Nothing),
        };
        let mask = engine.generation_mask();
        let sequence = Sequence { tokens: text, cache: &mut cache, mask, want };
        if let Some(Output::Scores(scores, _)) = engine.run(&mut [sequence])?.pop() {
            sum -= scores.iter().map(|score| f64::from(score.logprob)).sum::<f64>();
            count += scores.len();
        }
    }
    let loss = sum / f64::from(u32::try_from(count)?);
    Ok(Measured { vectors: [documents, queries].concat(), recall, loss })
}
