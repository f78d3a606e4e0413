//! `gritlm similarity`, `gritlm search` without a store, and `gritlm rerank`.

use super::{CORPUS, keys, model, numbers, objects, run};
use crate::support::with_a_yes;
use gritlm::{Engine, Options};
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;

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
