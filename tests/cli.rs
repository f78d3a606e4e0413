//! The command line, through the program itself: every command, flag and format that is a contract.

use crate::support::{data, with_a_yes};
use assert_cmd::Command;
use gritlm::model::ops::Mask;
use gritlm::{Attn, Embed, Engine, Options, Pooling, Prompt, Sampling};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::Duration;

const CORPUS: &str = "chess for the desktop\ncapture network packets\nedit XML documents\n";

/// What a run of the program left behind.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs the program with bytes on stdin.
pub(crate) fn run<A: AsRef<str>>(args: &[A], stdin: impl Into<Vec<u8>>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args.iter().map(AsRef::as_ref)).write_stdin(stdin);
    // No setting of whoever runs the tests; and a program that hangs fails instead.
    command.env_remove("GRITLM_MODEL").env("HF_HUB_OFFLINE", "1").env("COLUMNS", "100");
    let output = command.timeout(Duration::from_secs(300)).output().unwrap();
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Ran {
    /// It worked; returns stdout.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.stderr);
        assert!(self.problems().is_empty(), "{}", self.stderr);
        self.stdout
    }

    /// It failed as it should: this exit code, nothing on stdout, one line that says all `parts`.
    #[track_caller]
    pub(crate) fn fails(self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}{}", self.stdout, self.stderr);
        assert_eq!(self.stdout, "");
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        let [problem] = self.problems()[..] else {
            panic!("expected one line, found:\n{}", self.stderr);
        };
        assert!(problem.starts_with("error: "), "{problem}");
        assert!(!problem.contains(char::is_control), "{problem:?}");
        for part in parts {
            assert!(problem.contains(part), "expected {part:?} in: {problem}");
        }
    }

    /// The lines on stderr that are neither the device's nor notes.
    pub(crate) fn problems(&self) -> Vec<&str> {
        let fine = |line: &&str| {
            !line.starts_with("note: ")
                && !line.contains(" on cpu (")
                && !line.contains(" on wgpu (")
        };
        self.stderr.lines().filter(fine).collect()
    }
}

/// One JSON object a line.
pub(crate) fn objects(stdout: &str) -> Vec<Value> {
    stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    keys
}

fn numbers(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The embeddings that `embed --format json` prints with more arguments.
#[track_caller]
fn vectors(args: &[&str], stdin: &str) -> Vec<Vec<f32>> {
    let stdout = run(&[&["embed", "--format", "json"], args].concat(), stdin).ok();
    objects(&stdout).iter().map(|line| numbers(&line["embedding"])).collect()
}

/// What the library computes for the same.
fn expected(model: &str, texts: &[&str], how: &Embed) -> Vec<Vec<f32>> {
    let engine = Engine::open(model, &Options::default()).unwrap();
    engine.embed(texts, how).unwrap().into_iter().map(|e| e.vector).collect()
}

fn answer(args: &[&str]) -> Value {
    let stdout = run(&[&["generate", "--format", "json"], args].concat(), "").ok();
    let [answer] = &objects(&stdout)[..] else { panic!("expected one line, found {stdout}") };
    answer.clone()
}

fn model(name: &str) -> String {
    data(name).to_str().unwrap().into()
}

#[test]
fn embed_prints_the_objects_of_the_contract() {
    let stdout = run(&["embed", "--format", "json", "a text", "another"], "").ok();
    let lines = objects(&stdout);
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let found = engine.embed(&["a text", "another"], &Embed::default()).unwrap();
    assert_eq!(lines.len(), 2);
    for (index, (line, expected)) in lines.iter().zip(found).enumerate() {
        assert_eq!(keys(line), ["embedding", "index", "tokens"]);
        assert_eq!(line["index"], index);
        assert_eq!(line["tokens"], expected.tokens);
        assert_eq!(numbers(&line["embedding"]), expected.vector);
    }
    // In this order, for those who read with the eye or with `cut`.
    assert!(stdout.starts_with("{\"index\":0,\"embedding\":["), "{stdout}");

    let text = run(&["embed", "a text", "another"], "").ok();
    let rows: Vec<Vec<f32>> =
        text.lines().map(|l| l.split(' ').map(|n| n.parse().unwrap()).collect()).collect();
    assert_eq!(rows, vectors(&["a text", "another"], ""));
}

#[test]
fn embed_takes_texts_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = vectors(&["one", "zwei ☃"], "");
    let sources = [
        ("one\nzwei ☃\n", "lines"),
        ("one\r\nzwei ☃", "Windows lines, no newline at the end"),
        ("{\"text\":\"one\"}\n{\"id\":7,\"text\":\"zwei \\u2603\"}\n", "JSONL"),
    ];
    for (content, what) in sources {
        assert_eq!(vectors(&[], content), arguments, "{what} on stdin");
        let file = folder.path().join("texts");
        fs::write(&file, content).unwrap();
        let from_file = vectors(&["--input", file.to_str().unwrap()], "");
        assert_eq!(from_file, arguments, "{what} in a file");
    }
    run(&["embed"], "{\"text\":\"a\"}\nb\n").fails(1, &["standard input, line 2", "JSON object"]);
    run(&["embed"], "").fails(1, &["texts", "none"]);
}

#[test]
fn embed_writes_npy_and_safetensors() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let rows = vectors(&[], CORPUS);
    let flat: Vec<u8> = rows.concat().iter().flat_map(|v| v.to_le_bytes()).collect();

    assert_eq!(run(&["embed", "--output", &path("v.npy")], CORPUS).ok(), "");
    let npy = fs::read(path("v.npy")).unwrap();
    assert_eq!(npy[..8], *b"\x93NUMPY\x01\x00");
    let end = 10 + usize::from(u16::from_le_bytes([npy[8], npy[9]]));
    assert_eq!(end % 64, 0);
    let header = std::str::from_utf8(&npy[10..end]).unwrap();
    let dict = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 192), }";
    assert_eq!(header.trim_end(), dict);
    assert!(header.ends_with('\n'));
    assert!(npy[end..] == flat, "other numbers than the JSON");

    // An old file is replaced.
    fs::write(path("v.safetensors"), "old").unwrap();
    assert_eq!(run(&["embed", "--output", &path("v.safetensors")], CORPUS).ok(), "");
    let file = fs::read(path("v.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names(), ["embeddings"]);
    let tensor = tensors.tensor("embeddings").unwrap();
    assert_eq!(tensor.shape(), [3, 192]);
    assert!(tensor.data() == flat, "other numbers than the JSON");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "something was left beside");
}

/// More texts than the KV cache has pages: they take turns.
#[test]
fn embed_many_short_texts() {
    let alone = vectors(&["a", "b"], "");
    for flags in [&[][..], &["--kv-tokens", "128"]] {
        let many = vectors(flags, &"a\nb\n".repeat(500));
        assert_eq!(many.len(), 1000);
        assert!(many.chunks(2).all(|pair| pair == alone));
    }
}

/// Each flag does what the library's option of that name does, bit for bit.
#[test]
fn embed_flags() {
    let default = Embed::default();
    let odd = model("mistral-odd");
    let cases: Vec<(&str, &[&str], Embed)> = vec![
        ("demo", &["--instruction", "Find it."], Embed::with_instruction("Find it.")),
        ("demo", &["--pooling", "mean"], default.clone()),
        (
            "demo",
            &["--pooling", "weighted-mean"],
            Embed { pooling: Pooling::WeightedMean, ..default.clone() },
        ),
        ("demo", &["--pooling", "cls"], Embed { pooling: Pooling::Cls, ..default.clone() }),
        (
            "demo",
            &["--pooling", "last-token"],
            Embed { pooling: Pooling::LastToken, ..default.clone() },
        ),
        ("demo", &["--no-normalize"], Embed { normalize: false, ..default.clone() }),
        ("demo", &["--dimensions", "7"], Embed { dimensions: Some(7), ..default.clone() }),
        ("demo", &["--attn", "cccc"], Embed { attn: Some(Attn::Cccc), ..default.clone() }),
        (
            "demo",
            &["--window", "3"],
            Embed { mask: Some(Mask::Bidirectional { window: Some(3) }), ..default.clone() },
        ),
        ("demo", &["--max-length", "7"], Embed { max_length: 7, ..default.clone() }),
        (&odd, &["--instruction", "Find it."], Embed::with_instruction("Find it.")),
        (&odd, &["--batch-tokens", "1"], default.clone()),
    ];
    let texts = ["a longer text, with many words in it", "another"];
    let mut seen: Vec<(&str, Vec<f32>)> = Vec::new();
    for (model, flags, how) in cases {
        let args = [&["--model", model], flags, &texts].concat();
        let found = vectors(&args, "");
        assert_eq!(found, expected(model, &texts, &how), "{flags:?}");
        let length: f32 = found[0].iter().map(|v| v * v).sum::<f32>().sqrt();
        assert_eq!((length - 1.0).abs() < 1e-3, how.normalize, "{flags:?}: length {length}");
        assert_eq!(found[0].len(), how.dimensions.unwrap_or(found[0].len()));
        // No flag goes unheard: but for the default, all vectors differ.
        assert!(!seen.contains(&(model, found[0].clone())), "{flags:?} changes nothing");
        seen.push((model, found[0].clone()));
    }
}

#[test]
fn what_is_cut_off_is_reported() {
    let ran = run(&["embed", "--max-length", "8", "--format", "json"], "a\na b c d e f g h i\n");
    assert!(
        ran.stderr.contains("note: 1 of 2 texts were cut to 8 tokens (--max-length)"),
        "{}",
        ran.stderr
    );
    assert_eq!(objects(&ran.ok())[1]["tokens"], 8);
    let ran = run(&["embed", "short"], "");
    assert!(!ran.stderr.contains("cut"), "{}", ran.stderr);
}

#[test]
fn generate_prints_the_object_of_the_contract() {
    let prompt = "Describe the package pdfgrep.";
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let how = Sampling { max_tokens: 12, logprobs: 2, ..Sampling::greedy() };
    let generation = engine.generate(&Prompt::user(prompt), &how).unwrap();
    let prompt_tokens = generation.prompt_tokens();
    let pieces: Vec<_> = generation.map(Result::unwrap).collect();

    let args = ["--prompt", prompt, "--max-tokens", "12"];
    let found = answer(&[&args[..], &["--logprobs", "2"]].concat());
    assert_eq!(keys(&found), ["finish_reason", "logprobs", "prompt_tokens", "text", "tokens"]);
    assert_eq!(found["text"], pieces.iter().map(|p| p.text.as_str()).collect::<String>());
    assert_eq!(found["prompt_tokens"], prompt_tokens);
    assert_eq!(found["finish_reason"], "length");
    let tokens: Vec<u32> = serde_json::from_value(found["tokens"].clone()).unwrap();
    assert_eq!(tokens, pieces.iter().map(|p| p.token.token).collect::<Vec<_>>());
    let steps = found["logprobs"].as_array().unwrap();
    assert_eq!(steps.len(), tokens.len());
    for (step, piece) in steps.iter().zip(&pieces) {
        assert_eq!(keys(step), ["logprob", "token", "top"]);
        assert_eq!(step["token"], piece.token.token);
        assert_eq!(step["logprob"].as_f64().unwrap() as f32, piece.token.logprob);
        let top = step["top"].as_array().unwrap();
        assert_eq!(top.len(), 2);
        for (one, &(token, logprob)) in top.iter().zip(&piece.token.top) {
            assert_eq!(keys(one), ["logprob", "token"]);
            assert_eq!(one["token"], token);
            assert_eq!(one["logprob"].as_f64().unwrap() as f32, logprob);
        }
    }

    let without = answer(&args);
    assert_eq!(without["logprobs"], Value::Null);
    assert_eq!(keys(&without), keys(&found));
    assert_eq!(without["text"], found["text"]);

    // Streamed as text, and from stdin.
    let streamed = run(&[&["generate"], &args[..]].concat(), "").ok();
    assert_eq!(streamed, format!("{}\n", found["text"].as_str().unwrap()));
    assert_eq!(run(&["generate", "--max-tokens", "12"], prompt).ok(), streamed);
}

#[test]
fn generate_ends_where_it_should() {
    let prompt = "Describe the package pdfgrep.";
    let none = answer(&["--prompt", prompt, "--max-tokens", "0"]);
    assert_eq!((&none["text"], &none["tokens"]), (&"".into(), &Value::Array(Vec::new())));
    assert_eq!(none["finish_reason"], "length");
    assert_eq!(run(&["generate", "--prompt", prompt, "--max-tokens", "0"], "").ok(), "\n");
    let one = answer(&["--prompt", prompt, "--max-tokens", "1"]);
    assert_eq!(one["tokens"].as_array().unwrap().len(), 1);

    // The demo ends this answer itself.
    let section = "Generic Mapping Tools\n\nIn which section would it be?";
    let ended = answer(&["--prompt", section, "--max-tokens", "50"]);
    assert_eq!(ended["finish_reason"], "stop");
    assert!(ended["tokens"].as_array().unwrap().len() < 50);

    // A stop text that begins in one token and ends in the next.
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let how = Sampling { max_tokens: 20, ..Sampling::greedy() };
    let pieces: Vec<String> = engine
        .generate(&Prompt::user(prompt), &how)
        .unwrap()
        .map(|piece| piece.unwrap().text)
        .collect();
    let whole = pieces.concat();
    let mut spanning = 0;
    for pair in pieces.windows(2).filter(|pair| pair.iter().all(|piece| !piece.is_empty())) {
        let stop = pair[0].chars().last().unwrap().to_string() + &pair[1][..1];
        let args = ["--prompt", prompt, "--max-tokens", "20", "--stop", "no such", "--stop", &stop];
        let cut = answer(&args);
        assert_eq!(cut["text"], whole[..whole.find(&stop).unwrap()], "stop {stop:?}");
        assert_eq!(cut["finish_reason"], "stop");
        let streamed = run(&[&["generate"], &args[..]].concat(), "").ok();
        assert_eq!(streamed, format!("{}\n", cut["text"].as_str().unwrap()));
        spanning += 1;
        if spanning == 3 {
            break;
        }
    }
    assert_eq!(spanning, 3, "{pieces:?}");
}

#[test]
fn generate_flags() {
    let drawn = |flags: &[&str]| {
        let args = ["--prompt", "Describe the package pdfgrep.", "--max-tokens", "16"];
        answer(&[&args, flags].concat())["tokens"].clone()
    };
    let greedy = drawn(&[]);
    let hot = drawn(&["--temperature", "1", "--seed", "1"]);
    assert_ne!(hot, greedy);
    assert_eq!(hot, drawn(&["--temperature", "1", "--seed", "1"]));
    assert_ne!(hot, drawn(&["--temperature", "1", "--seed", "2"]));
    assert_ne!(hot, drawn(&["--temperature", "0.5", "--seed", "1"]));
    assert_eq!(greedy, drawn(&["--temperature", "0", "--seed", "2"]));
    // One candidate left is the greedy one, whichever way.
    for flags in [["--top-k", "1"], ["--top-p", "0.000001"], ["--min-p", "1"]] {
        assert_eq!(drawn(&[&["--temperature", "1"], &flags[..]].concat()), greedy, "{flags:?}");
    }
    assert_ne!(drawn(&["--repetition-penalty", "3"]), greedy);
    assert_ne!(drawn(&["--window", "2"]), greedy);
    assert_ne!(drawn(&["--raw"]), greedy);
    let raw = answer(&["--prompt", "x", "--raw", "--max-tokens", "1"])["prompt_tokens"].clone();
    let engine = Engine::open("demo", &Options::default()).unwrap();
    assert_eq!(raw, engine.tokenizer().encode("x").unwrap().len());
}

#[test]
fn every_checkpoint_embeds_and_generates() {
    for name in ["mistral-tiny", "mistral-odd", "mixtral-tiny"] {
        let model = model(name);
        let found = vectors(&["--model", &model, "a text"], "");
        assert_eq!(found, expected(&model, &["a text"], &Embed::default()), "{name}");
        let said = answer(&["--model", &model, "--prompt", "a text", "--max-tokens", "4"]);
        assert_eq!(said["tokens"].as_array().unwrap().len(), 4, "{name}");
    }
}

#[test]
fn chat_goes_on() {
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let how = Sampling { max_tokens: 8, ..Sampling::greedy() };
    let mut chat = engine.chat();
    let mut said = String::new();
    for turn in ["Describe the package pdfgrep.", "Go on."] {
        said.extend(chat.say(turn, &how).unwrap().map(|piece| piece.unwrap().text));
        said.push('\n');
    }
    let turns = "Describe the package pdfgrep.\nGo on.\n";
    let found = run(&["chat", "--max-tokens", "8"], turns).ok();
    assert_eq!(found, said);
    // The second answer knows the first turn.
    let alone = run(&["chat", "--max-tokens", "8"], "Go on.\n").ok();
    assert!(!found.ends_with(&format!("\n{alone}")), "{found}");
    assert_eq!(run(&["chat"], "").ok(), "");
}

#[test]
fn similarity_is_symmetric() {
    let texts = ["a cat", "a kitten", "chess"];
    let stdout =
        run(&[&["similarity", "--no-normalize", "--format", "json"], &texts[..]].concat(), "").ok();
    let rows: Vec<Vec<f32>> = objects(&stdout).iter().map(|o| numbers(&o["similarity"])).collect();
    assert_eq!(rows.len(), 3);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row.len(), 3);
        assert!((row[i] - 1.0).abs() < 1e-5, "{row:?}");
        for (j, &cosine) in row.iter().enumerate() {
            assert_eq!(cosine, rows[j][i]);
            assert!(i == j || cosine < 0.99, "{rows:?}");
        }
    }
    let text = run(&[&["similarity"], &texts[..]].concat(), "").ok();
    let table: Vec<Vec<f32>> =
        text.lines().map(|l| l.split_whitespace().map(|n| n.parse().unwrap()).collect()).collect();
    for (printed, exact) in table.iter().flatten().zip(rows.iter().flatten()) {
        assert!((printed - exact).abs() <= 5.1e-5, "{text}");
    }
}

/// Scores, places and texts.
#[track_caller]
fn search(query: &str, path: &Path, flags: &[&str]) -> Vec<(f64, String, String)> {
    let args = ["search", query, path.to_str().unwrap(), "--format", "json"];
    let stdout = run(&[&args, flags].concat(), "").ok();
    let field = |o: &Value, name: &str| o[name].as_str().unwrap().to_string();
    objects(&stdout)
        .iter()
        .map(|o| {
            assert_eq!(keys(o), ["place", "score", "text"]);
            (o["score"].as_f64().unwrap(), field(o, "place"), field(o, "text"))
        })
        .collect()
}

#[test]
fn search_over_lines() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    fs::write(&file, format!("\n{CORPUS}")).unwrap();
    let found = search("capture network packets", &file, &["--instruction", ""]);
    assert_eq!(found.len(), 3);
    // Line 1 is empty; the same text, without instruction, is the nearest there is.
    assert_eq!(found[0].1, format!("{}:3", file.display()));
    assert_eq!(found[0].2, "capture network packets");
    assert!((found[0].0 - 1.0).abs() < 1e-5);
    assert!(found[0].0 > found[1].0 && found[1].0 >= found[2].0);
    let best = search("capture network packets", &file, &["--instruction", "", "--top-k", "1"]);
    assert_eq!(best, found[..1]);

    let store = folder.path().join("notes.txt.gritlm-search.safetensors");
    let kept = fs::read(&store).unwrap();
    let written = fs::metadata(&store).unwrap().modified().unwrap();
    assert_eq!(search("capture network packets", &file, &["--instruction", ""]), found);
    assert!(fs::read(&store).unwrap() == kept);
    assert_eq!(fs::metadata(&store).unwrap().modified().unwrap(), written, "written again");

    // What is kept is used: zeros in the file are zeros in the scores.
    let mut zeros = kept.clone();
    let (header, metadata) = SafeTensors::read_metadata(&kept).unwrap();
    let (from, to) = metadata.info("embeddings").unwrap().data_offsets;
    zeros[8 + header + from..8 + header + to].fill(0);
    fs::write(&store, &zeros).unwrap();
    assert!(search("packets", &file, &[]).iter().all(|(score, ..)| *score == 0.0));
    // Only for the way that they were made.
    let other = search("packets", &file, &["--max-length", "30"]);
    assert!(other.iter().all(|(score, ..)| *score != 0.0), "{other:?}");

    // A changed line is made anew and found, the rest kept.
    fs::write(&store, &zeros).unwrap();
    fs::write(&file, CORPUS.replace("edit XML documents", "draw maps")).unwrap();
    let found = search("draw maps", &file, &["--instruction", ""]);
    assert_eq!(found[0].2, "draw maps");
    assert!((found[0].0 - 1.0).abs() < 1e-5 && found[1].0 == 0.0 && found[2].0 == 0.0, "{found:?}");

    // Whatever the kept file has become, it does no harm.
    let fresh = search("draw maps", &file, &["--max-length", "100"]);
    let good = fs::read(&store).unwrap();
    let huge = [&u64::MAX.to_le_bytes(), &good[8..]].concat();
    for broken in [b"".as_slice(), b"rubbish", &good[..good.len() - 1], &good[..20], &huge] {
        fs::write(&store, broken).unwrap();
        assert_eq!(search("draw maps", &file, &["--max-length", "100"]), fresh);
        assert!(fs::read(&store).unwrap() == good, "not mended");
    }

    let text = run(&["search", "draw maps", file.to_str().unwrap(), "--top-k", "1"], "").ok();
    assert!(text.trim_end().ends_with("notes.txt:3: draw maps"), "{text}");
    let many = search("draw maps", &file, &["--top-k", "4294967296"]);
    assert_eq!(many.len(), 3, "more results than there are, or can be counted in 32 bits");
}

#[test]
fn search_over_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let below = folder.path().join("below");
    fs::create_dir(&below).unwrap();
    let files = [("a.txt", "chess for the\ndesktop"), ("below/b.txt", "capture network packets")];
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    fs::write(folder.path().join(".hidden"), "draw maps").unwrap();
    fs::write(folder.path().join("empty"), " \n").unwrap();
    fs::write(folder.path().join("binary"), b"\xff\xfe\x00").unwrap();
    let args = ["search", "draw maps", folder.path().to_str().unwrap()];
    let ran = run(&args, "");
    assert!(ran.stderr.contains("binary: not UTF-8, left out"), "{}", ran.stderr);
    // A file's text stands on one line.
    assert!(ran.ok().contains("a.txt: chess for the desktop\n"));
    let store = folder.path().join(".gritlm-search.safetensors");
    let kept = fs::read(&store).unwrap();
    let found = search("capture network packets", folder.path(), &["--instruction", ""]);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].1, below.join("b.txt").display().to_string());
    assert_eq!(found[0].2, "capture network packets");
    assert!(fs::read(&store).unwrap() == kept);

    let nothing = tempfile::tempdir().unwrap();
    run(&["search", "x", nothing.path().to_str().unwrap()], "").fails(1, &["no text in it"]);
    run(&["search", "x", folder.path().join("nowhere").to_str().unwrap()], "")
        .fails(1, &["nowhere", "No such file"]);
}

/// The demo and the tiny models have no token for "yes"; that is one line, not a wrong order.
#[test]
fn rerank_needs_a_yes() {
    for model in ["demo".into(), model("mistral-odd")] {
        run(&["rerank", "a query", "a passage", "--model", &model], "")
            .fails(1, &["rerank", "no token for \"yes\""]);
    }
}

/// With the two words in the vocabulary it works.
#[test]
fn rerank_orders() {
    let folder = with_a_yes();
    let model = folder.path().to_str().unwrap();
    let passages = ["one", "two", "three"];
    let args = [&["rerank", "a query", "--model", model, "--format", "json"], &passages[..]];
    let stdout = run(&args.concat(), "").ok();
    let found = objects(&stdout);
    assert_eq!(found.len(), 3);
    let engine = Engine::open(model, &Options::default()).unwrap();
    for (line, expected) in found.iter().zip(engine.rerank("a query", &passages).unwrap()) {
        assert_eq!(keys(line), ["index", "probability", "score", "text"]);
        assert_eq!(line["index"], expected.index);
        assert_eq!(line["text"], passages[expected.index]);
        assert_eq!(line["score"].as_f64().unwrap() as f32, expected.score);
        assert!((0.0..=1.0).contains(&line["probability"].as_f64().unwrap()));
    }
    let scores: Vec<f64> = found.iter().map(|line| line["score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a > b), "{scores:?}");
    let best = run(&[&args.concat()[..], &["--top-k", "1"]].concat(), "").ok();
    assert_eq!(objects(&best), found[..1]);
    let text = run(&["rerank", "a query", "--model", model], passages.join("\n")).ok();
    assert_eq!(text.lines().count(), 3);
}

#[test]
fn inspect_says_what_is_there() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("model/demo");
    let cases = [
        ("demo".to_string(), demo, "Mistral", 192),
        (model("mistral-tiny"), data("mistral-tiny"), "Mistral", 128),
        (model("mistral-odd"), data("mistral-odd"), "Mistral", 160),
        (model("mixtral-tiny"), data("mixtral-tiny"), "Mixtral", 96),
    ];
    for (model, folder, architecture, dim) in cases {
        // All that is not header is numbers of two bytes.
        let file = fs::read(folder.join("model.safetensors")).unwrap();
        let parameters = (file.len() - 8 - SafeTensors::read_metadata(&file).unwrap().0) as u64 / 2;
        let args = ["inspect", "--model", &model, "--format", "json"];
        let found = &objects(&run(&args, "").ok())[0];
        assert_eq!(found["architecture"], architecture);
        assert_eq!(found["parameters"], parameters, "{model}");
        assert_eq!(found["config"]["dim"], dim);
        assert_eq!(found["bytes"], 2 * parameters);
        assert_eq!(found["dtypes"], serde_json::json!({ "BF16": 2 * parameters }));
        assert_eq!(found["files"].as_array().unwrap().len(), 1);
        assert_eq!(found["memory"][0]["device"], "cpu");
        assert_eq!(found.get("tensors"), None);
        let all = &objects(&run(&[&args[..], &["--tensors"]].concat(), "").ok())[0];
        let sizes = all["tensors"].as_array().unwrap().iter().map(|tensor| {
            let shape = tensor["shape"].as_array().unwrap();
            shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>()
        });
        assert_eq!(sizes.sum::<u64>(), parameters);

        let text = run(&["inspect", "--model", &model, "--tensors"], "").ok();
        assert!(text.starts_with(&format!("{model}: {architecture}, ")), "{text}");
        assert!(text.contains(&format!("dim {dim},")), "{text}");
        assert!(text.contains("model.embed_tokens.weight"), "{text}");
    }
}

#[test]
fn devices_lists_the_cpu() {
    let found = objects(&run(&["devices", "--format", "json"], "").ok());
    for device in &found {
        assert_eq!(keys(device), ["available", "description", "device"]);
    }
    let cpu = found.iter().find(|d| d["device"] == "cpu").unwrap();
    assert_eq!(cpu["available"], true);
    let text = run(&["devices"], "").ok();
    assert_eq!(text.lines().count(), found.len());
    assert!(text.starts_with("cpu    yes"), "{text}");
}

#[test]
fn demo_shows_itself() {
    let text = run(&["demo", "capture network packets"], "").ok();
    for part in ["It shows what GritLM does, not how well", "Embedded ", "tokens/s", " on cpu ("] {
        assert!(text.contains(part), "expected {part:?} in: {text}");
    }
    assert!(text.contains("Find: capture network packets\n"), "{text}");
    assert_eq!(text.matches("Find: ").count(), 1);
    run(&["demo", "--model", "elsewhere"], "").fails(2, &["--model", "elsewhere"]);
}

#[test]
fn completions_complete() {
    let script = run(&["completions", "bash"], "").ok();
    for part in ["_gritlm()", "--no-normalize", "complete -F _gritlm"] {
        assert!(script.contains(part), "expected {part:?}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell], "").ok().contains("gritlm"));
    }
}

#[test]
fn help_helps() {
    let whole = run(&["--help"], "").ok();
    let with_example =
        ["demo", "embed", "generate", "similarity", "search", "rerank", "synth", "completions"];
    for command in with_example.into_iter().chain(["chat", "inspect", "devices"]) {
        assert!(whole.contains(&format!("\n  {command} ")), "{command} is not in --help");
        let help = run(&[command, "--help"], "").ok();
        assert!(help.contains(&format!("Usage: gritlm {command}")), "{help}");
        assert!(!with_example.contains(&command) || help.contains("Example"), "{help}");
    }
    assert!(whole.contains("Examples:"));
    assert!(run(&["--version"], "").ok().starts_with("gritlm "));
    // Nothing asked: the help, but as an error of use.
    assert_eq!(run::<&str>(&[], "").code, 2);
}

#[test]
fn wrong_use_is_one_line() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["embed", "x", "--no-such-flag"], &["--no-such-flag"]),
        (&["no-such-command"], &["no-such-command"]),
        (&["search"], &["<QUERY>", "<PATH>"]),
        (&["search", "x"], &["<PATH>"]),
        (&["search", "x", ".", "--store", "s"], &["--store"]),
        (&["search", "x", ".", "--rerank"], &["--rerank"]),
        (&["search", "x", ".", "--exact"], &["--exact"]),
        (&["search", "x", ".", "--filter", "a=b"], &["--filter"]),
        (&["search", "x", ".", "--below", "a"], &["--below"]),
        (&["embed", "x", "--input", "file"], &["--input"]),
        (&["embed", "x", "--output"], &["--output"]),
        (&["embed", "x", "--output", "vectors.txt"], &["--output", ".npy", "vectors.txt"]),
        (&["embed", "x", "--device", "tpu"], &["--device", "cuda:N", "tpu"]),
        (&["embed", "x", "--device", "cuda:x"], &["--device", "cuda:x"]),
        (&["embed", "x", "--device", "cpu:0"], &["--device", "cpu:0"]),
        (&["embed", "x", "--window", "wide"], &["--window", "none", "wide"]),
        (&["embed", "x", "--window", "0"], &["--window", "positive"]),
        (&["embed", "x", "--window=-1"], &["--window", "-1"]),
        (&["embed", "x", "--pooling", "max"], &["--pooling", "max"]),
        (&["embed", "x", "--attn", "bbbb"], &["--attn", "bbcc", "bbbb"]),
        (&["embed", "x", "--max-length", "many"], &["--max-length", "many"]),
        (&["embed", "x", "--dimensions", "0"], &["--dimensions", "1 to 192"]),
        (&["embed", "x", "--dimensions", "193"], &["--dimensions", "193"]),
        (&["embed", "x", "--batch-tokens", "0"], &["--batch-tokens", "positive"]),
        (&["embed", "x", "--kv-tokens", "0"], &["--kv-tokens", "positive"]),
        (&["embed", "x", "--format", "xml"], &["--format", "xml"]),
        (&["generate", "--prompt", "x", "--temperature", "warm"], &["--temperature", "warm"]),
        (&["generate", "--prompt", "x", "--temperature=-1"], &["--temperature", "0 or more", "-1"]),
        (&["generate", "--prompt", "x", "--temperature", "NaN"], &["--temperature", "NaN"]),
        (&["generate", "--prompt", "x", "--temperature", "inf"], &["--temperature", "inf"]),
        (&["generate", "--prompt", "x", "--top-p", "0"], &["--top-p", "at most 1"]),
        (&["generate", "--prompt", "x", "--top-p", "1.5"], &["--top-p", "1.5"]),
        (&["generate", "--prompt", "x", "--min-p", "2"], &["--min-p", "2"]),
        (&["generate", "--prompt", "x", "--repetition-penalty", "0"], &["--repetition-penalty"]),
        (&["generate", "--prompt", "x", "--stop", ""], &["--stop", "empty"]),
        (&["generate", "--prompt", "x", "--seed", "-1"], &["-1"]),
        (&["completions", "tcsh"], &["tcsh", "bash"]),
        (&["synth", "--like", "1b"], &["--output"]),
    ];
    for (args, parts) in cases {
        run(args, "").fails(2, parts);
    }
}

/// Every adapter is listed under a name that `--device` takes, and answers as the CPU does.
#[test]
fn every_device_answers_the_same() {
    let ask = ["generate", "--prompt", "Describe the package knights.", "--max-tokens", "12"];
    let said = run(&[&ask[..], &["--device", "cpu"]].concat(), "").ok();
    let listed = objects(&run(&["devices", "--format", "json"], "").ok());
    for device in gritlm::devices() {
        let found = listed.iter().find(|d| d["device"] == device.device).unwrap();
        assert_eq!(found["available"], device.available);
        if device.available {
            let again = run(&[&ask[..], &["--device", &device.device]].concat(), "").ok();
            assert_eq!(again, said, "{}", device.device);
        }
    }
}

#[test]
fn a_profile_is_a_table_on_stderr() {
    let args = ["embed", "a text", "--profile", "--device"];
    let on_cpu = run(&[&args[..], &["cpu"]].concat(), "");
    assert!(on_cpu.stderr.contains("--profile times the ops of a GPU"), "{}", on_cpu.stderr);
    let Some(device) = gritlm::devices().into_iter().find(|d| d.available && d.device != "cpu")
    else {
        return crate::support::say("SKIPPED cli::a_profile_is_a_table_on_stderr: no adapter");
    };
    let ran = run(&[&args[..], &[&device.device]].concat(), "");
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    for part in ["GFLOP/s", "attention", "gate_up", "share", "all"] {
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
}

/// Where the device has no memory left, one line says so. Held down by the address space, which
/// software GPUs take their memory from.
#[test]
#[cfg(target_os = "linux")]
fn no_device_memory_is_one_line() {
    let Some(adapter) =
        gritlm_shaders::adapters().into_iter().find(|a| a.cpu && a.backend == "vulkan")
    else {
        return crate::support::say("SKIPPED cli::no_device_memory_is_one_line: no lavapipe");
    };
    let program = env!("CARGO_BIN_EXE_gritlm");
    let script = format!(
        "ulimit -v 1600000; exec {program} generate --prompt x --kv-tokens 250000 --device 'wgpu:{}'",
        adapter.label()
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &script])
        .env("RAYON_NUM_THREADS", "2")
        .env("LP_NUM_THREADS", "2")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("out of device memory"), "{stderr}");
    assert!(stderr.contains("--kv-tokens") && !stderr.contains("panicked"), "{stderr}");
}

/// `--tune` measures once and keeps what it found; a damaged file counts as none.
#[test]
fn tuned_tiles_are_kept() {
    let Some(adapter) = gritlm_shaders::adapters().into_iter().find(|a| a.lacks.is_none()) else {
        return crate::support::say("SKIPPED cli::tuned_tiles_are_kept: no adapter");
    };
    let cache = tempfile::tempdir().unwrap();
    let device = format!("wgpu:{}", adapter.label());
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(["embed", "a text", "--format", "json", "--device", &device]).args(more);
        let output = command.env("GRITLM_CACHE", cache.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let object: Value = serde_json::from_slice(&output.stdout).unwrap();
        numbers(&object["embedding"])
    };
    let untuned = run(&[]);
    assert!(!cache.path().join("tiles").exists());
    let tuned = run(&["--tune"]);
    let files: Vec<_> = fs::read_dir(cache.path().join("tiles")).unwrap().collect();
    let [Ok(file)] = &files[..] else { panic!("expected one file, found {files:?}") };
    let kept: Value = serde_json::from_slice(&fs::read(file.path()).unwrap()).unwrap();
    assert!(kept["matmul"].is_u64() && kept["lanes"].is_u64(), "{kept}");
    assert_eq!(run(&[]), tuned);
    fs::write(file.path(), "{\"matmul\": 7}").unwrap();
    assert_eq!(run(&[]), untuned);
    for text in [tuned, untuned] {
        crate::support::close("tuned", &text, &run(&[]), 1e-5);
    }
}
