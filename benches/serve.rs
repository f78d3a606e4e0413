//! Measures `gritlm serve` under load from many clients, half of which embed texts while the
//! other half chat. It compares one process that does both with two processes that share the
//! machine and do one each.
//!
//! Every answer is compared with what the model returns for the same input when it is asked
//! alone.
//!
//!     cargo bench --bench serve -- --model target/bench/1b --seconds 60

#[path = "serve/clients.rs"]
mod clients;
#[path = "serve/server.rs"]
mod server;

use clap::Parser;
use clients::{Seen, chat, embed};
use gritlm::{Device, Embed, Engine, Options, Prompt, Sampling};
use server::{Server, Target};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    target: Target,
    /// Number of clients; half of them embed, half of them chat.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Seconds that each of the two measurements takes.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Number of different texts, and of different prompts.
    #[arg(long, default_value_t = 32)]
    inputs: usize,
    /// Tokens per answer.
    #[arg(long, default_value_t = 64)]
    max_tokens: usize,
    /// Tokens per step.
    #[arg(long, default_value_t = 256)]
    max_batch_tokens: usize,
    /// Give each of two processes threads for only half of the cores.
    #[arg(long)]
    half_threads: bool,
}

/// Inputs with their expected results.
struct Expected {
    texts: Vec<(String, Vec<f32>)>,
    prompts: Vec<(String, String)>,
}

/// Starts a server on the whole machine, or with `threads` threads.
fn start(args: &Args, threads: Option<usize>) -> Server {
    let tokens = args.max_batch_tokens.to_string();
    let more = ["--kv-tokens", "65536", "--max-batch-tokens", &tokens];
    Server::start(server::program(), &args.target, &more, threads)
}

impl Server {
    /// Returns the memory of the process in MB: resident, and proportional (shared pages, such as
    /// mapped weights, divided among the processes).
    fn memory(&self) -> [f64; 2] {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()));
        let text = text.unwrap_or_default();
        ["Rss:", "Pss:"].map(|name| {
            let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            line.trim().trim_end_matches("kB").trim().parse::<f64>().unwrap_or(f64::NAN) / 1e3
        })
    }
}

/// Asks the model each input alone.
fn expected(args: &Args) -> Expected {
    let options =
        Options::default().device(args.target.device.parse::<Device>().expect("a device"));
    let engine = Engine::open(&args.target.model, &options).expect("the model opens");
    // Words differ from input to input; texts have 16 to 500 tokens, prompts 16 to 64.
    let words = ["package", "library", "editor", "network", "chess", "server", "audio", "parser"];
    let text = |seed: usize, tokens: usize| {
        let mut text = format!("{seed}");
        let mut at = seed;
        while engine.tokenizer().encode(&text).expect("tokens").len() < tokens {
            at = at.wrapping_mul(25_214_903_917).wrapping_add(11);
            let _ = write!(text, " {}", words[(at >> 16) % words.len()]);
        }
        text
    };
    let spread = |i: usize, from: usize, to: usize| from + (to - from) * i / args.inputs.max(2);
    let how = Embed::default().max_length(1024);
    let greedy = Sampling::greedy().max_tokens(args.max_tokens).ignore_eos(true);
    let texts = (0..args.inputs).map(|i| {
        let text = text(i + 1, spread(i, 16, 500));
        let vector = engine.embed(&[&text], &how).expect("a vector").remove(0).vector;
        (text, vector)
    });
    let prompts = (0..args.inputs).map(|i| {
        let prompt = text(1000 + i, spread(i, 16, 64));
        let answer = engine.generate(&Prompt::user(prompt.as_str()), &greedy).expect("an answer");
        let answer = answer.map(|piece| piece.expect("a piece").text).collect();
        (prompt, answer)
    });
    Expected { texts: texts.collect(), prompts: prompts.collect() }
}

/// Runs the clients, prints one line of results, and returns the tokens per second in total.
fn load(args: &Args, name: &str, embedder: &Server, chatter: &Server, expected: &Expected) -> f64 {
    let (seen, over) = (Seen::default(), AtomicBool::new(false));
    let start = Instant::now();
    let mut memory = Vec::new();
    scope(|scope| {
        for client in 0..args.clients {
            let (seen, over) = (&seen, &over);
            scope.spawn(move || {
                // Clients begin at different inputs.
                let mut at = client * 7;
                while !over.load(Ordering::Relaxed) {
                    let sent = match client % 2 {
                        0 => embed(&embedder.url, &expected.texts[at % args.inputs], seen),
                        _ => {
                            let input = &expected.prompts[at % args.inputs];
                            chat(&chatter.url, input, args.max_tokens, seen)
                        }
                    };
                    if let Err(error) = sent {
                        seen.fail(&error);
                    }
                    at += 5;
                }
            });
        }
        for _ in 0..args.seconds {
            sleep(Duration::from_secs(1));
            let both = [embedder.memory(), chatter.memory()];
            memory.push(match std::ptr::eq(embedder, chatter) {
                true => both[0],
                false => [both[0][0] + both[1][0], both[0][1] + both[1][1]],
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    // The time includes waiting for the last client's answer.
    let seconds = start.elapsed().as_secs_f64();
    let tokens = seen.tokens.each_ref().map(|n| n.load(Ordering::Relaxed));
    let rate = tokens.iter().sum::<u64>() as f64 / seconds;
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "{name}: {} embeddings, {} chats in {seconds:.1} s; tokens/s: {rate:.0} ({:.0} of texts, \
         {:.0} of prompts, {:.0} of answers); 429: {}; wrong: {}; errors: {}",
        count(&seen.embeddings),
        count(&seen.chats),
        tokens[0] as f64 / seconds,
        tokens[1] as f64 / seconds,
        tokens[2] as f64 / seconds,
        count(&seen.refused),
        count(&seen.wrong),
        count(&seen.failed),
    );
    seen.print();
    let at = |share: f64| memory[((memory.len() - 1) as f64 * share) as usize];
    let [early, late] = [at(0.25), at(1.0)];
    println!(
        "  memory at a quarter: {:.0} MB resident, {:.0} MB with shared pages in parts; at the end: \
         {:.0} MB, {:.0} MB",
        early[0], early[1], late[0], late[1]
    );
    rate
}

fn main() {
    let args = Args::parse();
    let expected = expected(&args);
    println!(
        "{} on {}, {} clients, {} s each, steps of {} tokens, answers of {} tokens",
        args.target.model,
        args.target.device,
        args.clients,
        args.seconds,
        args.max_batch_tokens,
        args.max_tokens
    );
    let one = {
        let server = start(&args, None);
        load(&args, "one process", &server, &server, &expected)
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let halves = args.half_threads.then(|| (cores / 2).max(1));
    let two = {
        let servers = [start(&args, halves), start(&args, halves)];
        load(&args, "two processes", &servers[0], &servers[1], &expected)
    };
    println!("one process / two processes: {:.2}", one / two);
}
