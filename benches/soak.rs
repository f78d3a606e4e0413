//! Soak-tests `gritlm serve`. It applies an ordinary load, with clients that disconnect early,
//! first without attackers and then with them. One honest client's latency is measured
//! throughout.
//!
//! The attackers send hostile requests: bodies of 12 MB that are one text, bodies that never end,
//! compression bombs, JSON nested a thousand levels deep, headers sent byte by byte. Each
//! attacker pauses between two attacks. The bodies are generated once, so that they cost this
//! machine little more than sending them.
//!
//! **At the same load.** Requests for thousands of vectors and for long streams are work that the
//! server has to do for any client. They therefore come in both phases, at the same fixed times
//! and from the same number of clients. Without attackers these clients read their answers; with
//! attackers they never read and keep their connections for a minute. The attackers only add work
//! that the server refuses.
//!
//! At the end it prints the honest client's p99 with attackers relative to that without; the
//! memory at the end relative to that at minute five (at half time for a shorter run), each the
//! mean over a minute; and descriptors and threads at both times.
//!
//!     cargo bench --bench soak -- --minutes 30

#[path = "serve/server.rs"]
mod server;

use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use server::{Server, Target};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    target: Target,
    /// Minutes of the phase with attackers; the phase without takes a quarter of that.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Number of ordinary clients; half of them embed, half of them chat, and one request in four
    /// is abandoned early.
    #[arg(long, default_value_t = 4)]
    clients: usize,
    /// Number of clients that send a large request every ten seconds, in both phases.
    #[arg(long, default_value_t = 2)]
    heavy: usize,
    /// Number of attackers.
    #[arg(long, default_value_t = 8)]
    attackers: usize,
    /// Seconds that an attacker pauses after an attack.
    #[arg(long, default_value_t = 0.5)]
    pause: f64,
}

/// Interval between large requests, the same in both phases.
const HEAVY: Duration = Duration::from_secs(10);
/// Interval between samples of the server's resources.
const LOOK: Duration = Duration::from_secs(5);

/// Resources that the server uses.
#[derive(Clone, Copy)]
struct Taken {
    /// Seconds since the phase's start.
    at: f64,
    /// Resident memory in MB, descriptors and threads.
    values: [u64; 3],
}

impl Server {
    fn taken(&self, at: f64) -> Taken {
        let folder = format!("/proc/{}", self.child.id());
        let entries = |name: &str| {
            std::fs::read_dir(format!("{folder}/{name}")).map_or(0, |all| all.count() as u64)
        };
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|r| r.trim().strip_suffix("kB")?.trim().parse().ok());
        let memory = kilobytes.unwrap_or(0_u64) / 1000;
        Taken { at, values: [memory, entries("fd"), entries("task")] }
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(120))).build().into()
}

/// What happened in a phase.
#[derive(Default)]
struct Seen {
    over: AtomicBool,
    /// Seconds that each embedding of the honest client took.
    waits: Mutex<Vec<f64>>,
    /// Embeddings of the honest client that failed.
    failed: AtomicU64,
    /// Ordinary requests that were answered, refused or abandoned.
    ordinary: [AtomicU64; 3],
    heavy: AtomicU64,
    attacks: AtomicU64,
}

impl Seen {
    fn over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Returns a text of `words` words.
fn text(words: usize) -> String {
    (0..words)
        .map(|_| ["chess", "network", "packet", "desktop"][fastrand::usize(..4)].to_owned() + " ")
        .collect()
}

fn honest(url: &str, seen: &Seen) {
    let agent = agent();
    while !seen.over() {
        let start = Instant::now();
        let body = json!({"input": text(60)}).to_string();
        let answer = agent
            .post(format!("{url}/v1/embeddings"))
            .header("content-type", "application/json")
            .send(body);
        let came = answer.is_ok_and(|mut answer| {
            answer.status() == 200
                && answer.body_mut().read_to_string().is_ok_and(|t| t.contains("embedding"))
        });
        match came {
            true => seen.waits.lock().expect("nobody panics").push(start.elapsed().as_secs_f64()),
            false => _ = seen.failed.fetch_add(1, Ordering::Relaxed),
        }
        sleep(Duration::from_millis(100));
    }
}

fn ordinary(url: &str, index: usize, seen: &Seen) {
    let agent = agent();
    while !seen.over() {
        let leaves = fastrand::usize(..4) == 0;
        let (path, body) = match index % 2 {
            0 => ("/v1/embeddings", json!({"input": [text(16), text(120), text(300)]})),
            _ => (
                "/v1/chat/completions",
                json!({"messages": [{"role": "user", "content": text(40)}], "max_tokens": 64,
                    "stream": true, "ignore_eos": true}),
            ),
        };
        let request = agent.post(format!("{url}{path}")).header("content-type", "application/json");
        let Ok(answer) = request.send(body.to_string()) else { continue };
        let mut all = Vec::new();
        let limit = if leaves { 200 } else { u64::MAX };
        let _ = answer.into_parts().1.into_reader().take(limit).read_to_end(&mut all);
        let whole = String::from_utf8_lossy(&all);
        let end = match (leaves, whole.contains("[DONE]") || whole.contains("\"embedding\"")) {
            (true, _) => 2,
            (false, true) => 0,
            (false, false) => 1,
        };
        seen.ordinary[end].fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends a request over a new connection.
fn post(url: &str, path: &str, more: &str, body: &[u8]) -> std::io::Result<TcpStream> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n{more}\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    Ok(stream)
}

/// Sends a large request every [`HEAVY`]; reads the answer, or keeps the connection without
/// reading.
fn heavy(url: &str, index: usize, reads: bool, seen: &Seen) {
    let vectors = json!({"input": vec!["a"; 2048]}).to_string();
    let stream = json!({
        "messages": [{"role": "user", "content": text(40)}], "max_tokens": 256, "n": 4,
        "ignore_eos": true, "stream": true, "logprobs": true, "top_logprobs": 20
    });
    let stream = stream.to_string();
    let mut held = VecDeque::new();
    let start = Instant::now();
    for turn in 0.. {
        while start.elapsed() < HEAVY * turn {
            if seen.over() {
                return;
            }
            sleep(Duration::from_millis(100));
        }
        let (path, body) = match (index + turn as usize) % 2 {
            0 => ("/v1/embeddings", &vectors),
            _ => ("/v1/chat/completions", &stream),
        };
        let Ok(mut asked) = post(url, path, "", body.as_bytes()) else { continue };
        seen.heavy.fetch_add(1, Ordering::Relaxed);
        if reads {
            let _ = std::io::copy(&mut asked, &mut std::io::sink());
        } else {
            held.push_back(asked);
            if held.len() > 6 {
                held.pop_front();
            }
        }
    }
}

/// Hostile bodies, with their paths and additional header lines.
struct Hostile(Vec<(&'static str, &'static str, Vec<u8>)>);

impl Hostile {
    fn new() -> std::io::Result<Self> {
        let long = "word ".repeat(12_000_000 / 5);
        let json = |value: Value| value.to_string().into_bytes();
        let chat = json!({"messages": [{"role": "user", "content": long}]});
        let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
        let blanks = vec![b' '; 1 << 20];
        for _ in 0..64 {
            bomb.write_all(&blanks)?;
        }
        let deep = "[".repeat(1000) + &"]".repeat(1000);
        Ok(Self(vec![
            ("/v1/chat/completions", "", json(chat)),
            ("/v1/embeddings", "", json(json!({"input": "x", "instruction": long}))),
            ("/tokenize", "", json(json!({"prompt": long}))),
            ("/v1/embeddings", "content-encoding: gzip\r\n", bomb.finish()?),
            ("/v1/embeddings", "", format!("{{\"input\": {deep}}}").into_bytes()),
        ]))
    }
}

/// Runs one random attack, and waits for the first byte of the answer or the end of the
/// connection.
fn attack(url: &str, hostile: &Hostile) -> std::io::Result<()> {
    let address = url.trim_start_matches("http://");
    let mut stream = match hostile.0.get(fastrand::usize(..hostile.0.len() + 2)) {
        Some((path, more, body)) => post(url, path, more, body)?,
        None if fastrand::bool() => {
            // This body never ends.
            let mut stream = TcpStream::connect(address)?;
            write!(
                stream,
                "POST /v1/embeddings HTTP/1.1\r\nhost: {address}\r\n\
                 content-type: application/json\r\ncontent-length: 16000000\r\n\r\n"
            )?;
            stream.write_all(&vec![b'['; 4 << 20])?;
            stream
        }
        None => {
            let mut stream = TcpStream::connect(address)?;
            for byte in b"POST /v1/embeddings HTTP/1.1\r\nx-a: b" {
                stream.write_all(&[*byte])?;
                sleep(Duration::from_millis(50));
            }
            stream
        }
    };
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.read(&mut [0]).map(|_| ())
}

fn attacker(url: &str, hostile: &Hostile, pause: Duration, seen: &Seen) {
    while !seen.over() {
        // The server may hang up on an attacker, so an error is fine.
        let _ = attack(url, hostile);
        seen.attacks.fetch_add(1, Ordering::Relaxed);
        sleep(pause);
    }
}

/// Runs one phase; returns what the clients saw, and the resources of the server over time.
fn phase(
    server: &Server,
    args: &Args,
    hostile: Option<&Hostile>,
    time: Duration,
) -> (Seen, Vec<Taken>) {
    let (seen, mut taken) = (Seen::default(), Vec::new());
    scope(|scope| {
        let seen = &seen;
        scope.spawn(|| honest(&server.url, seen));
        for i in 0..args.clients {
            scope.spawn(move || ordinary(&server.url, i, seen));
        }
        for i in 0..args.heavy {
            scope.spawn(move || heavy(&server.url, i, hostile.is_none(), seen));
        }
        for hostile in hostile.iter().flat_map(|all| std::iter::repeat_n(all, args.attackers)) {
            let pause = Duration::from_secs_f64(args.pause);
            scope.spawn(move || attacker(&server.url, hostile, pause, seen));
        }
        let (start, mut said) = (Instant::now(), 0);
        while start.elapsed() < time {
            sleep(LOOK.min(time - start.elapsed()));
            let now = server.taken(start.elapsed().as_secs_f64());
            taken.push(now);
            let minute = (now.at / 60.0) as u64;
            if minute > said || start.elapsed() >= time {
                said = minute;
                let (minutes, [memory, files, threads]) = (now.at / 60.0, now.values);
                println!("{minutes:5.1} min: {memory} MB, {files} descriptors, {threads} threads");
            }
        }
        seen.over.store(true, Ordering::Relaxed);
    });
    (seen, taken)
}

/// Returns the time in milliseconds within which this share of the embeddings completed.
fn quantile(waits: &mut [f64], share: f64) -> f64 {
    waits.sort_by(f64::total_cmp);
    let last = waits.len().saturating_sub(1);
    waits.get((last as f64 * share).round() as usize).map_or(f64::NAN, |wait| wait * 1e3)
}

/// Returns the means over the last `minute` seconds before `end`.
fn around(taken: &[Taken], end: f64, minute: f64) -> [f64; 3] {
    let within = |taken: &&Taken| taken.at > end - minute && taken.at <= end + 0.1;
    let rows: Vec<&Taken> = taken.iter().filter(within).collect();
    let mean = |i: usize| rows.iter().map(|t| t.values[i] as f64).sum::<f64>() / rows.len() as f64;
    [mean(0), mean(1), mean(2)]
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let server = Server::start(server::program(), &args.target, &[], None);
    let hostile = Hostile::new()?;
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let mut tails = Vec::new();
    let mut taken = Vec::new();
    for (name, hostile, time) in
        [("without attackers", None, time / 4), ("with attackers", Some(&hostile), time)]
    {
        println!("{name}, {:.1} minutes", time.as_secs_f64() / 60.0);
        let (seen, rows) = phase(&server, &args, hostile, time);
        let mut waits = seen.waits.into_inner().expect("nobody panics");
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| quantile(&mut waits, share));
        let [whole, refused, left] = seen.ordinary.map(AtomicU64::into_inner);
        println!(
            "honest client: {} embeddings, {} failed, p50 {p50:.1} ms, p90 {p90:.1} ms, p99 \
             {p99:.1} ms; ordinary: {whole} answered, {refused} refused, {left} left; {} heavy; {} \
             attacks",
            waits.len(),
            seen.failed.into_inner(),
            seen.heavy.into_inner(),
            seen.attacks.into_inner()
        );
        tails.push(p99);
        taken = rows;
    }
    println!("p99 with attackers to that without: {:.2} (at most 3)", tails[1] / tails[0]);
    let end = time.as_secs_f64();
    let (early, minute) = (f64::min(300.0, end / 2.0), f64::min(60.0, end / 4.0));
    let [first, last] = [early, end].map(|at| around(&taken, at, minute));
    println!(
        "memory at the end to that at {:.1} min: {:.0} MB to {:.0} MB, {:.2} (at most 1.2)",
        early / 60.0,
        last[0],
        first[0],
        last[0] / first[0]
    );
    println!(
        "descriptors and threads at the end: {:.0} and {:.0}; at {:.1} min: {:.0} and {:.0}",
        last[1],
        last[2],
        early / 60.0,
        first[1],
        first[2]
    );
    Ok(())
}
