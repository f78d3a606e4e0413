//! `/metrics` and `/stats`: well-formed to the letter, and the counts are those of what was asked.

use crate::serve::Server;
use gritlm::{Device, Engine, Options};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

/// Samples by name and labels, as they are written.
type Samples = BTreeMap<String, f64>;

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// The pairs of `a="b",c="d"`; no value of ours has a quote, a backslash or a comma.
#[track_caller]
fn labels(text: &str) -> Vec<(&str, &str)> {
    let pairs = text.split(',').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or_else(|| panic!("{text}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.unwrap_or_else(|| panic!("no quotes: {text}"));
        assert!(is_name(name) && !value.contains(['"', '\\', '\n']), "{text}");
        (name, value)
    });
    let pairs: Vec<_> = pairs.collect();
    let names: HashSet<&str> = pairs.iter().map(|(name, _)| *name).collect();
    assert_eq!(names.len(), pairs.len(), "a label twice: {text}");
    pairs
}

/// What a family's samples are checked against.
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    /// Of a histogram, by the labels but `le`: the last bucket's bound and value, and the count.
    buckets: BTreeMap<Vec<(&'a str, &'a str)>, (f64, f64)>,
    counts: BTreeMap<Vec<(&'a str, &'a str)>, f64>,
}

impl<'a> Family<'a> {
    #[track_caller]
    fn sample(&mut self, line: &'a str) -> (String, f64) {
        let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        let value: f64 = value.parse().unwrap_or_else(|e| panic!("{e}: {line}"));
        let (name, pairs) = match key.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').unwrap())),
            None => (key, Vec::new()),
        };
        let suffix = name.strip_prefix(self.name);
        let suffix = suffix.unwrap_or_else(|| panic!("not of {}: {line}", self.name));
        match (self.kind, suffix) {
            ("gauge", "") => {}
            ("counter", "_total") => assert!(value >= 0.0, "{line}"),
            ("histogram", "_bucket") => {
                let (bound, rest): (Vec<_>, Vec<_>) =
                    pairs.into_iter().partition(|(name, _)| *name == "le");
                let bound: f64 = bound[0].1.replace('+', "").parse().unwrap();
                if let Some((last, count)) = self.buckets.insert(rest, (bound, value)) {
                    assert!(bound > last && value >= count, "buckets do not add up: {line}");
                }
            }
            ("histogram", "_sum") => assert!(value >= 0.0, "{line}"),
            ("histogram", "_count") => {
                self.counts.insert(pairs, value);
            }
            other => panic!("{other:?}: {line}"),
        }
        (key.to_string(), value)
    }

    /// Each histogram is whole.
    #[track_caller]
    fn end(self) {
        let last = self.buckets.into_iter().map(|(labels, (bound, count))| {
            assert_eq!(bound, f64::INFINITY, "{}: {labels:?}", self.name);
            (labels, count)
        });
        assert_eq!(last.collect::<BTreeMap<_, _>>(), self.counts, "{}", self.name);
    }
}

/// The samples of OpenMetrics' text; fails on a line that is not as it should be.
#[track_caller]
fn parse(text: &str) -> Samples {
    let body = text.strip_suffix("# EOF\n").expect("no end");
    let (mut samples, mut families) = (Samples::new(), HashSet::new());
    let mut family: Option<Family<'_>> = None;
    let mut help = "";
    for line in body.strip_suffix('\n').unwrap().split('\n') {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words[..] {
            ["#", "HELP", name, text] => {
                assert!(is_name(name) && name.starts_with("gritlm_"), "{line}");
                assert!(text.ends_with('.') && !text.ends_with(".."), "{line}");
                help = name;
            }
            ["#", "TYPE", name, kind] => {
                assert_eq!(name, help, "a type without its help");
                assert!(families.insert(name), "{name} twice");
                let (buckets, counts) = Default::default();
                let ended = family.replace(Family { name, kind, buckets, counts });
                ended.into_iter().for_each(Family::end);
            }
            ["#", "UNIT", name, unit] => {
                assert_eq!(name, help, "a unit without its help");
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
            }
            _ => {
                let (key, value) = family.as_mut().expect(line).sample(line);
                assert!(samples.insert(key, value).is_none(), "twice: {line}");
            }
        }
    }
    family.unwrap().end();
    samples
}

const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[track_caller]
fn scrape(server: &Server, key: &str) -> Samples {
    let key = format!("Bearer {key}");
    let answer = server.get_with("/metrics", &[("accept", OPEN), ("authorization", &key)]);
    assert_eq!((answer.status, answer.header("content-type")), (200, OPEN), "{}", answer.text);
    parse(&answer.text)
}

fn http(path: &str, status: u16) -> String {
    format!("gritlm_http_requests_total{{path=\"{path}\",status=\"{status}\"}}")
}

#[track_caller]
fn has(samples: &Samples, expected: &[(&str, f64)]) {
    for (key, value) in expected {
        assert_eq!(samples.get(*key), Some(value), "{key} in {samples:#?}");
    }
}

/// Exactly these answers were counted, and as many durations; but for those of the start.
#[track_caller]
fn answered(samples: &Samples, expected: &[(&str, u16, u32)]) {
    let of = |family: &str| {
        let of = samples.iter().filter(|(key, _)| key.starts_with(family));
        let of = of.filter(|(key, _)| !key.contains("/ready"));
        of.map(|(key, &value)| (key.clone(), value)).collect::<Samples>()
    };
    let counts = expected.iter().map(|&(path, status, n)| (http(path, status), f64::from(n)));
    assert_eq!(of("gritlm_http_requests_total"), counts.collect());
    let mut times = Samples::new();
    for (path, _, n) in expected {
        let key = format!("gritlm_http_request_duration_seconds_count{{path=\"{path}\"}}");
        *times.entry(key).or_default() += f64::from(*n);
    }
    assert_eq!(of("gritlm_http_request_duration_seconds_count"), times);
}

#[test]
fn answers_are_counted_by_path_and_status() {
    // Two servers in a row: each counts for itself.
    for _ in 0..2 {
        let server = Server::start(&["--api-key", "key"]);
        let first = scrape(&server, "key");
        answered(&first, &[]);
        has(&first, &[("gritlm_ready", 1.0), ("gritlm_steps_total", 0.0)]);
        for path in ["/health", "/health", "/v1/models", "/no/1", "/no/2?a=%22", "/stats"] {
            server.get(path);
        }
        server.post("/health", &json!({}));
        let known = [
            ("/metrics", 200, 1),
            ("/health", 200, 2),
            ("/health", 405, 1),
            ("/v1/models", 401, 1),
            ("/stats", 401, 1),
            ("other", 404, 2),
        ];
        answered(&scrape(&server, "key"), &known);
        // Whoever does not know the newer format gets the older.
        let old = server.get_with("/metrics", &[("authorization", "Bearer key")]);
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        assert_eq!((old.status, old.header("content-type")), (200, kind));
        assert!(old.text.contains("\ngritlm_ready 1\n") && !old.text.contains("EOF"));
    }
}

/// The sum over a histogram, with nothing said about times.
fn observed(samples: &Samples, name: &str, labels: &str) -> f64 {
    samples[&format!("gritlm_{name}_count{labels}")]
}

#[test]
fn requests_are_counted_to_the_last_token() {
    let server = Server::start(&["--max-body-bytes", "4096"]);
    let embed = |input: Value| server.post("/v1/embeddings", &json!({"input": input}));
    let ask = |tokens: usize| {
        let messages = json!([{"role": "user", "content": "packages packages packages"}]);
        let body = json!({"messages": messages, "max_tokens": tokens, "temperature": 0,
            "ignore_eos": true});
        server.post("/v1/chat/completions", &body)
    };
    let texts = [embed(json!("a text")).ok(), embed(json!(["a text", "another one"])).ok()];
    let answers = [ask(1).ok(), ask(300).ok()];
    embed(json!([])).fails(400, &[]);
    embed(json!("word ".repeat(2500))).fails(413, &[]);
    // Four tokens each.
    embed(json!("\u{1f980}".repeat(600))).fails(400, &[]);
    let tokens = |of: &[Value], field: &str| {
        of.iter().map(|answer| answer["usage"][field].as_f64().unwrap()).sum::<f64>()
    };
    let samples = scrape(&server, "");
    let (embedded, prompts) = (tokens(&texts, "prompt_tokens"), tokens(&answers, "prompt_tokens"));
    assert_eq!(tokens(&answers, "completion_tokens"), 301.0);
    has(
        &samples,
        &[
            (&http("/v1/embeddings", 200), 2.0),
            (&http("/v1/embeddings", 400), 2.0),
            (&http("/v1/embeddings", 413), 1.0),
            (&http("/v1/chat/completions", 200), 2.0),
            ("gritlm_requests_taken_total", 4.0),
            ("gritlm_requests_ended_total{end=\"finished\"}", 4.0),
            ("gritlm_requests_ended_total{end=\"cancelled\"}", 0.0),
            ("gritlm_requests_refused_total{reason=\"queue_full\"}", 0.0),
            ("gritlm_requests_waiting{kind=\"embed\"}", 0.0),
            ("gritlm_answers_running", 0.0),
            ("gritlm_tokens_total{kind=\"embed\"}", embedded),
            // Each answer's last token has not been run.
            ("gritlm_tokens_total{kind=\"decode\"}", 299.0),
            ("gritlm_tokens_total{kind=\"prefill\"}", prompts),
            ("gritlm_step_tokens{kind=\"decode\"}", 1.0),
            ("gritlm_time_to_first_token_seconds_count", 2.0),
            // One has no token after its first.
            ("gritlm_time_per_output_token_seconds_count", 1.0),
            ("gritlm_prompt_tokens_sum{kind=\"embed\"}", embedded),
            ("gritlm_prompt_tokens_sum{kind=\"generate\"}", prompts),
        ],
    );
    for name in ["request_latency_seconds", "queue_time_seconds", "prompt_tokens"] {
        for (kind, count) in [("embed", 2.0), ("generate", 2.0), ("rank", 0.0)] {
            let found = observed(&samples, name, &format!("{{kind=\"{kind}\"}}"));
            assert_eq!(found, count, "{name} {kind}");
        }
    }
    assert!(samples["gritlm_busy_seconds_total"] > 0.0);
    let live = server.get("/stats").ok();
    let steps = live["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 256);
    assert_eq!(steps[255]["step"], live["stats"]["steps"]);
    let sum = |kind: &str| steps.iter().map(|step| step[kind].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("embed"), sum("prefill"), sum("decode")), (0, 0, 256));
    let since = steps[250]["step"].as_u64().unwrap();
    let fresh = server.get(&format!("/stats?since={since}")).ok();
    assert_eq!(fresh["steps"].as_array().unwrap()[..], steps[251..]);
}

#[test]
fn a_server_that_loads_has_metrics() {
    use gritlm_serve::{Server, Settings};
    let settings = || Settings::default().grace(Duration::from_secs(60));
    // In one process, and apart.
    let servers = [(); 2].map(|()| Server::bind("127.0.0.1", 0, settings()).unwrap());
    let urls = servers.each_ref().map(|server| format!("http://{}", server.address()));
    let get = |url: &str, path: &str| {
        let request = ureq::get(format!("{url}{path}")).header("accept", OPEN);
        request.call().unwrap().body_mut().read_to_string().unwrap()
    };
    std::thread::scope(|scope| {
        let ends = servers.map(|server| {
            let (load, loading) = channel::<()>();
            let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
            let load_it = move || {
                let _ = loading.recv();
                Engine::open("demo", &Options::default().device(Device::Cpu))
            };
            let run = move || server.run(load_it, async { drop(stopped.await) }).unwrap();
            (load, stop, scope.spawn(run))
        });
        has(&parse(&get(&urls[0], "/metrics")), &[("gritlm_ready", 0.0), ("gritlm_kv_pages", 0.0)]);
        ends[0].0.send(()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let ready = loop {
            let samples = parse(&get(&urls[0], "/metrics"));
            if samples["gritlm_ready"] == 1.0 {
                break samples;
            }
            assert!(Instant::now() < deadline, "not ready");
        };
        assert!(ready["gritlm_kv_pages"] > 0.0 && ready[&http("/metrics", 200)] >= 1.0);
        let other = parse(&get(&urls[1], "/metrics"));
        has(&other, &[("gritlm_ready", 0.0)]);
        assert!(!other.contains_key(&http("/metrics", 200)));
        for (load, stop, end) in ends {
            drop((load, stop));
            end.join().unwrap();
        }
    });
}

#[test]
fn steps_are_told_to_whoever_has_the_key() {
    let server = Server::start(&["--api-key", "key"]);
    server.get("/stats").fails(401, &[]);
    let get = |path: &str| server.get_with(path, &[("authorization", "Bearer key")]);
    let live = get("/stats?since=3&other=1").ok();
    assert_eq!((&live["steps"], &live["stats"]["steps"]), (&json!([]), &json!(0)));
    assert_eq!(live["stats"]["busy_seconds"], 0.0);
    // Described as what it is.
    let described = &server.get("/openapi.json").ok()["paths"]["/stats"]["get"]["parameters"];
    let described = [&described[0]["name"], &described[0]["in"], &described[0]["required"]];
    assert_eq!(described, [&json!("since"), &json!("query"), &json!(false)]);
    for wrong in ["-1", "x", "", "1&since=2", "18446744073709551616"] {
        get(&format!("/stats?since={wrong}")).fails(400, &["since", "step's number"]);
    }
}
