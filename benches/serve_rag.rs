//! Measures `gritlm serve --store` under load from clients that embed, chat and ask from cached
//! documents (`cache: doc`), all against one process; first without the clients that ask, then
//! with them.
//!
//! Every answer is compared with that of the library. If the server reports it, the bench counts
//! how many rows of each step belonged to answers from caches: `--program` can be an older
//! version, which answered from documents outside the scheduler.
//!
//!     cargo bench --bench serve_rag -- --model target/bench/1b --seconds 60

#[path = "serve/clients.rs"]
mod clients;
#[path = "serve/server.rs"]
mod server;

use clap::Parser;
use clients::{Seen, agent, chat, embed};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use gritlm_rag::{
    Ask, CacheKind, Find, Identity, Indexer, Mode, Passage, Searcher, Source, Stamp, ask,
    content_hash,
};
use serde_json::{Value, json};
use server::{Server, Target};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    target: Target,
    /// Program to measure, instead of the one of this build.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Number of clients of each kind: those that embed, those that chat, those that ask.
    #[arg(long, default_values_t = [10, 11, 11])]
    clients: Vec<usize>,
    /// Seconds that each of the two phases takes.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Tokens per answer.
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
}

/// Number of different texts, prompts and documents.
const INPUTS: usize = 16;

struct Expected {
    texts: Vec<(String, Vec<f32>)>,
    prompts: Vec<(String, String)>,
    questions: Vec<(String, String)>,
}

fn topic(i: usize) -> String {
    let about = ["chess", "a network", "sound", "a parser", "an editor", "maps", "mail", "fonts"];
    format!("Package {i} is about {}, and the manual says how. ", about[i % about.len()])
}

/// Indexes the documents and gets the expected answers from the library.
fn expected(args: &Args, store: &Path) -> Expected {
    let device = args.target.device.parse::<Device>().expect("a device");
    let engine = Engine::open(&args.target.model, &Options::default().device(device));
    let engine = engine.expect("the model opens");
    let greedy = Sampling::greedy().max_tokens(args.max_tokens).ignore_eos(true);
    let identity = Identity { cache: CacheKind::Doc, ..Identity::of(&engine) };
    let document = |i: usize| {
        let text = topic(i).repeat(12);
        let stamp = Stamp { hash: content_hash(text.as_bytes()), ..Stamp::default() };
        let (path, title, metadata) = (i.to_string(), format!("p{i}"), Value::Null);
        Source { path, title, text, metadata, stamp }
    };
    let mut indexer = Indexer::open(&engine, store, &identity).expect("a store");
    indexer.put((0..INPUTS).map(document).collect(), &mut |_| Ok(())).expect("documents");
    drop(indexer);
    let searcher = Searcher::open(&engine, store).expect("the store");
    let how = Ask::default().mode(Mode::Doc);
    let question = |i: usize| {
        let query = format!("What is package {i} about?");
        let asked = ask(&engine, &query, &how).expect("a vector");
        let find = Find::default().top_k(2);
        let hits = searcher.nearest(asked.vector(), &find).expect("documents");
        let passages = hits.iter().map(|hit| Passage::of(searcher.reader(), &hit.chunk, how.mode));
        let passages: Vec<Passage> = passages.collect::<Result<_, _>>().expect("caches");
        let answer = asked.answer(&engine, &passages, &greedy).expect("an answer");
        (query, answer.map(|piece| piece.expect("a piece").text).collect())
    };
    let text = |i: usize| {
        let text = topic(i + 40).repeat(1 + i % 4);
        let vector = engine.embed(&[&text], &Embed::default()).expect("a vector").remove(0).vector;
        (text, vector)
    };
    let prompt = |i: usize| {
        let prompt = topic(i + 80);
        let answer = engine.generate(&Prompt::user(prompt.as_str()), &greedy).expect("an answer");
        let answer = answer.map(|piece| piece.expect("a piece").text).collect();
        (prompt, answer)
    };
    Expected {
        texts: (0..INPUTS).map(text).collect(),
        prompts: (0..INPUTS).map(prompt).collect(),
        questions: (0..INPUTS).map(question).collect(),
    }
}

/// Asks a question and compares the answer.
fn question(
    url: &str,
    (query, expected): &(String, String),
    max_tokens: usize,
    seen: &Seen,
    answered: &Mutex<Vec<f64>>,
) -> Result<(), ureq::Error> {
    let start = Instant::now();
    let body = json!({
        "query": query, "cache": "doc", "documents": 2, "temperature": 0, "max_tokens": max_tokens,
        "ignore_eos": true
    });
    let request = agent().post(format!("{url}/v1/rag/ask"));
    let request = request.header("content-type", "application/json");
    let mut response = request.send(body.to_string())?;
    let body: Value = serde_json::from_str(&response.body_mut().read_to_string()?).expect("JSON");
    let right = body["choices"][0]["message"]["content"].as_str() == Some(expected);
    seen.wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
    answered.lock().expect("no client panics").push(start.elapsed().as_secs_f64());
    Ok(())
}

/// Appends the number of rows from caches of each step after `since`, and updates `since`.
fn rows(url: &str, since: &mut u64, rows: &mut Vec<u64>) {
    let Ok(mut response) = agent().get(format!("{url}/stats?since={since}")).call() else { return };
    let text = response.body_mut().read_to_string().unwrap_or_default();
    let live: Value = serde_json::from_str(&text).unwrap_or_default();
    for step in live["steps"].as_array().into_iter().flatten() {
        *since = step["step"].as_u64().unwrap_or(*since);
        rows.extend(step["from_cache"].as_u64());
    }
}

/// Runs the clients of each kind and returns the median time per token of chats, in seconds.
fn load(name: &str, args: &Args, server: &Server, counts: [usize; 3], expected: &Expected) -> f64 {
    let (seen, answered, over) = (Seen::default(), Mutex::default(), AtomicBool::new(false));
    let mut in_steps = Vec::new();
    let start = Instant::now();
    scope(|scope| {
        let kinds = counts.into_iter().enumerate();
        let all = kinds.flat_map(|(kind, count)| (0..count).map(move |client| (kind, client)));
        for (kind, client) in all {
            let (seen, answered, over) = (&seen, &answered, &over);
            scope.spawn(move || {
                let mut at = client * 7;
                while !over.load(Ordering::Relaxed) {
                    let (url, i) = (&server.url, at % INPUTS);
                    let sent = match kind {
                        0 => embed(url, &expected.texts[i], seen),
                        1 => chat(url, &expected.prompts[i], args.max_tokens, seen),
                        _ => {
                            let asked = &expected.questions[i];
                            question(url, asked, args.max_tokens, seen, answered)
                        }
                    };
                    if let Err(error) = sent {
                        seen.fail(&error);
                    }
                    at += 5;
                }
            });
        }
        let mut since = 0;
        while start.elapsed() < Duration::from_secs(args.seconds) {
            sleep(Duration::from_millis(500));
            rows(&server.url, &mut since, &mut in_steps);
        }
        over.store(true, Ordering::Relaxed);
    });
    let seconds = start.elapsed().as_secs_f64();
    let mut answered = answered.into_inner().expect("no client panics");
    answered.sort_by(f64::total_cmp);
    let count = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "{name}: {} embeddings, {} chats, {} answers from caches in {seconds:.1} s; 429: {}; wrong: \
         {}; errors: {}",
        count(&seen.embeddings),
        count(&seen.chats),
        answered.len(),
        count(&seen.refused),
        count(&seen.wrong),
        count(&seen.failed),
    );
    seen.print();
    let at = |all: &[f64], share: f64| {
        all.get((share * all.len() as f64) as usize).copied().unwrap_or(f64::NAN)
    };
    let [median, late] = [0.5, 0.95].map(|share| at(&answered, share) * 1e3);
    println!("  {:<20} p50 {median:>9.1} ms  p95 {late:>9.1} ms", "answer from a cache");
    let shared = in_steps.iter().filter(|&&rows| rows > 1).count();
    println!(
        "  steps with rows of more than one such answer, or of its prompt: {shared} of {}; most rows: \
         {}",
        in_steps.len(),
        in_steps.iter().max().unwrap_or(&0)
    );
    let mut times = seen.times[1].lock().expect("no client panics").clone();
    times.sort_by(f64::total_cmp);
    at(&times, 0.5)
}

fn main() {
    let args = Args::parse();
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let expected = expected(&args, &store);
    let program = args.program.as_deref().unwrap_or(server::program());
    println!(
        "{} of {} on {}, clients that embed, chat, ask: {:?}, {} s each, answers of {} tokens",
        program.display(),
        args.target.model,
        args.target.device,
        args.clients,
        args.seconds,
        args.max_tokens
    );
    let store = store.to_str().expect("UTF-8");
    let more = ["--kv-tokens", "65536", "--max-batch-tokens", "256", "--store", store];
    let server = Server::start(program, &args.target, &more, None);
    let [embed, chat, ask] = [0, 1, 2].map(|kind| args.clients.get(kind).copied().unwrap_or(0));
    let without = load("without questions", &args, &server, [embed, chat, 0], &expected);
    let with = load("with questions", &args, &server, [embed, chat, ask], &expected);
    println!("time per token of chats, with / without questions: {:.2}", with / without);
}
