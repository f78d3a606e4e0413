//! A soak of `gritlm serve`: ordinary load with clients that leave, without attackers and then with
//! them, and one honest client whose latency is measured all the while.
//!
//! Attackers send what is hostile on purpose: bodies of 12 MB that are one text, bodies that never
//! end, compressed bombs, JSON nested a thousand levels deep, requests for thousands of vectors whose
//! answers nobody reads, heads that trickle in. Once a minute it prints the server's memory,
//! descriptors and threads; at the end, what the honest client saw in both phases.
//!
//!     cargo bench --bench soak -- --minutes 30

#[path = "serve/server.rs"]
mod server;

use clap::Parser;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use server::Server;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

#[derive(Parser)]
struct Args {
    /// As `gritlm serve` takes it.
    #[arg(long, default_value = "demo")]
    model: String,
    /// As `gritlm serve` takes it.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// How long the phase with attackers goes on; the one without takes a quarter of it.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Ordinary clients; half of them embed, half of them chat, and one in four leaves early.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Attackers.
    #[arg(long, default_value_t = 8)]
    attackers: usize,
    /// `cargo bench` passes it.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Server {
    /// Resident MB, descriptors and threads.
    fn taken(&self) -> [u64; 3] {
        let folder = format!("/proc/{}", self.child.id());
        let entries = |name: &str| {
            std::fs::read_dir(format!("{folder}/{name}")).map_or(0, |all| all.count() as u64)
        };
        let status = std::fs::read_to_string(format!("{folder}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = resident.and_then(|r| r.trim().strip_suffix("kB")?.trim().parse().ok());
        [kilobytes.unwrap_or(0_u64) / 1000, entries("fd"), entries("task")]
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false);
    config.timeout_global(Some(Duration::from_secs(120))).build().into()
}

/// What happened in a phase.
#[derive(Default)]
struct Seen {
    /// Seconds that the honest client's embeddings took.
    waits: Mutex<Vec<f64>>,
    /// Its embeddings that did not come.
    failed: AtomicU64,
    /// Ordinary requests that were answered, refused or left.
    ordinary: [AtomicU64; 3],
    attacks: AtomicU64,
}

/// A text of about so many words.
fn text(words: usize) -> String {
    (0..words)
        .map(|_| ["chess", "network", "packet", "desktop"][fastrand::usize(..4)].to_owned() + " ")
        .collect()
}

fn honest(url: &str, seen: &Seen, over: &AtomicBool) {
    let agent = agent();
    while !over.load(Ordering::Relaxed) {
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

fn ordinary(url: &str, index: usize, seen: &Seen, over: &AtomicBool) {
    let agent = agent();
    while !over.load(Ordering::Relaxed) {
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

/// One attack, chosen by chance.
fn attack(url: &str) -> std::io::Result<()> {
    let address = url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut post = |path: &str, more: &str, body: &[u8]| -> std::io::Result<()> {
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{more}\r\n",
            body.len()
        )?;
        stream.write_all(body)
    };
    let long = || "word ".repeat(12_000_000 / 5);
    let chat = |content: &str| json!({"messages": [{"role": "user", "content": content}]});
    let json = |value: Value| value.to_string().into_bytes();
    let mut first = [0; 1];
    match fastrand::usize(..8) {
        0 => post("/v1/chat/completions", "", &json(chat(&long())))?,
        1 => post("/v1/embeddings", "", &json(json!({"input": "x", "instruction": long()})))?,
        2 => post("/tokenize", "", &json(json!({"prompt": long()})))?,
        3 => {
            let mut bomb = GzEncoder::new(Vec::new(), Compression::best());
            let zeros = vec![b' '; 1 << 20];
            for _ in 0..64 {
                bomb.write_all(&zeros)?;
            }
            post("/v1/embeddings", "content-encoding: gzip\r\n", &bomb.finish()?)?;
        }
        4 => {
            let deep = "[".repeat(1000) + &"]".repeat(1000);
            post("/v1/embeddings", "", format!("{{\"input\": {deep}}}").as_bytes())?;
        }
        5 => {
            // Thousands of numbers that nobody reads.
            let texts = vec!["a"; 2048];
            post("/v1/embeddings", "", &json(json!({"input": texts})))?;
            sleep(Duration::from_secs(20));
            return Ok(());
        }
        6 => {
            // A body that never ends.
            write!(
                stream,
                "POST /v1/embeddings HTTP/1.1\r\nhost: {address}\r\n\
                 content-type: application/json\r\ncontent-length: 16000000\r\n\r\n"
            )?;
            stream.write_all(&vec![b'['; 4 << 20])?;
            sleep(Duration::from_secs(20));
            return Ok(());
        }
        _ => {
            for byte in b"POST /v1/embeddings HTTP/1.1\r\nx-a: b" {
                stream.write_all(&[*byte])?;
                sleep(Duration::from_millis(50));
            }
            return Ok(());
        }
    }
    stream.read_exact(&mut first)
}

fn attacker(url: &str, seen: &Seen, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        // A server that hangs up on an attacker is right.
        let _ = attack(url);
        seen.attacks.fetch_add(1, Ordering::Relaxed);
    }
}

/// One phase; returns what was seen, and what the server took at each minute.
fn phase(server: &Server, args: &Args, attackers: usize, time: Duration) -> (Seen, Vec<[u64; 3]>) {
    let (seen, over, mut taken) = (Seen::default(), AtomicBool::new(false), Vec::new());
    scope(|scope| {
        scope.spawn(|| honest(&server.url, &seen, &over));
        for i in 0..args.clients {
            let (seen, over) = (&seen, &over);
            scope.spawn(move || ordinary(&server.url, i, seen, over));
        }
        for _ in 0..attackers {
            scope.spawn(|| attacker(&server.url, &seen, &over));
        }
        let start = Instant::now();
        while start.elapsed() < time {
            sleep(Duration::from_secs(60).min(time - start.elapsed()));
            let now = server.taken();
            let [memory, descriptors, threads] = now;
            let minutes = start.elapsed().as_secs_f64() / 60.0;
            println!(
                "{minutes:5.1} min: {memory} MB, {descriptors} descriptors, {threads} threads"
            );
            taken.push(now);
        }
        over.store(true, Ordering::Relaxed);
    });
    (seen, taken)
}

/// Milliseconds that this share of the embeddings took at most.
fn quantile(waits: &mut [f64], share: f64) -> f64 {
    waits.sort_by(f64::total_cmp);
    let last = waits.len().saturating_sub(1);
    waits.get((last as f64 * share).round() as usize).map_or(f64::NAN, |wait| wait * 1e3)
}

fn main() {
    let args = Args::parse();
    let server = Server::start(&args.model, &args.device, &[], None);
    let time = Duration::from_secs_f64(args.minutes * 60.0);
    let mut p99 = Vec::new();
    let mut rows = Vec::new();
    for (name, attackers, time) in
        [("without attackers", 0, time / 4), ("with attackers", args.attackers, time)]
    {
        println!("{name}, {:.1} minutes", time.as_secs_f64() / 60.0);
        let (seen, taken) = phase(&server, &args, attackers, time);
        let mut waits = seen.waits.into_inner().expect("nobody panics");
        let [p50, tail] = [0.5, 0.99].map(|share| quantile(&mut waits, share));
        let [whole, refused, left] = seen.ordinary.map(AtomicU64::into_inner);
        println!(
            "honest client: {} embeddings, {} failed, p50 {p50:.1} ms, p99 {tail:.1} ms; ordinary: \
             {whole} answered, {refused} refused, {left} left; {} attacks",
            waits.len(),
            seen.failed.into_inner(),
            seen.attacks.into_inner()
        );
        p99.push(tail);
        rows = taken;
    }
    println!("p99 with attackers ÷ without: {:.2} (bound 3)", p99[1] / p99[0]);
    if let (Some(early), Some(late)) = (rows.get(4), rows.last()) {
        println!(
            "memory at the end ÷ at minute 5: {:.2} (bound 1.2)",
            late[0] as f64 / early[0] as f64
        );
    }
}
