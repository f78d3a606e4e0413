//! Provides the clients of the server benchmarks, which embed a text or chat, and counts their
//! results.

use gritlm::dot;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

pub(crate) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(true).build().into()
}

/// What the clients saw.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) embeddings: AtomicU64,
    pub(crate) chats: AtomicU64,
    /// Tokens of texts, of prompts, of answers.
    pub(crate) tokens: [AtomicU64; 3],
    pub(crate) refused: AtomicU64,
    pub(crate) wrong: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Seconds: time to first token, time per token, time of an embedding.
    pub(crate) times: [Mutex<Vec<f64>>; 3],
}

impl Seen {
    pub(crate) fn time(&self, kind: usize, time: f64) {
        self.times[kind].lock().expect("no client panics").push(time);
    }

    pub(crate) fn fail(&self, error: &ureq::Error) {
        match error {
            ureq::Error::StatusCode(429) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                // `Retry-After` asks for at least one second.
                sleep(Duration::from_secs(1));
            }
            other => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                eprintln!("error: {other}");
                sleep(Duration::from_millis(100));
            }
        }
    }

    /// Prints quantiles of the times.
    pub(crate) fn print(&self) {
        let names = ["time to first token", "time per token", "embedding"];
        for (name, times) in names.into_iter().zip(&self.times) {
            let mut times = times.lock().expect("no client panics").clone();
            times.sort_by(f64::total_cmp);
            let at = |share: f64| {
                times.get((share * times.len() as f64) as usize).map_or(f64::NAN, |t| t * 1e3)
            };
            println!(
                "  {name:<20} p50 {:>9.1} ms  p95 {:>9.1} ms  p99 {:>9.1} ms",
                at(0.50),
                at(0.95),
                at(0.99)
            );
        }
    }
}

pub(crate) fn embed(
    url: &str,
    (text, expected): &(String, Vec<f32>),
    seen: &Seen,
) -> Result<(), ureq::Error> {
    let start = Instant::now();
    let body = json!({"input": text, "encoding_format": "float"}).to_string();
    let request = agent().post(format!("{url}/v1/embeddings"));
    let mut response = request.header("content-type", "application/json").send(body)?;
    let body: Value = serde_json::from_str(&response.body_mut().read_to_string()?).expect("JSON");
    seen.time(2, start.elapsed().as_secs_f64());
    let vector: Vec<f32> = body["data"][0]["embedding"]
        .as_array()
        .map_or(Vec::new(), |v| v.iter().map(|x| x.as_f64().unwrap_or(f64::NAN) as f32).collect());
    // Both have length 1, and the vector of a wrong text is far away; NaN is not near either.
    let near = dot(&vector, expected) > 1.0 - 1e-4;
    seen.wrong.fetch_add(u64::from(!near), Ordering::Relaxed);
    seen.embeddings.fetch_add(1, Ordering::Relaxed);
    let tokens = body["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
    seen.tokens[0].fetch_add(tokens, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn chat(
    url: &str,
    (prompt, expected): &(String, String),
    max_tokens: usize,
    seen: &Seen,
) -> Result<(), ureq::Error> {
    let start = Instant::now();
    let body = json!({
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true}
    });
    let request = agent().post(format!("{url}/v1/chat/completions"));
    let request = request.header("content-type", "application/json");
    let mut response = request.send(body.to_string())?;
    let (mut text, mut first, mut done) = (String::new(), None, false);
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line?;
        let Some(chunk) = line.strip_prefix("data: ") else { continue };
        if chunk == "[DONE]" {
            done = true;
            break;
        }
        let chunk: Value = serde_json::from_str(chunk).expect("JSON");
        if let Some(piece) = chunk["choices"][0]["delta"]["content"].as_str() {
            first.get_or_insert_with(Instant::now);
            text += piece;
        }
        if let Some(tokens) = chunk["usage"]["completion_tokens"].as_u64() {
            let prompt = chunk["usage"]["prompt_tokens"].as_u64().unwrap_or(0);
            seen.tokens[1].fetch_add(prompt, Ordering::Relaxed);
            seen.tokens[2].fetch_add(tokens, Ordering::Relaxed);
            if let Some(first) = first
                && tokens > 1
            {
                seen.time(0, (first - start).as_secs_f64());
                seen.time(1, first.elapsed().as_secs_f64() / (tokens - 1) as f64);
            }
        }
    }
    seen.wrong.fetch_add(u64::from(!done || text != *expected), Ordering::Relaxed);
    seen.chats.fetch_add(1, Ordering::Relaxed);
    Ok(())
}
