//! Texts and prompts that are empty, too long or not UTF-8, and numbers beyond all sense.

use crate::cli::{objects, run};
use crate::support::data;
use std::fs;

/// The vectors of `embed` with more arguments: as many as given, all finite.
#[track_caller]
fn finite(args: &[&str], stdin: impl Into<Vec<u8>>, texts: usize) -> Vec<Vec<f32>> {
    let stdout = run(&[&["embed", "--format", "json"], args].concat(), stdin).ok();
    // A number that is none would be null, and no f32.
    let vectors: Vec<Vec<f32>> = objects(&stdout)
        .iter()
        .map(|line| serde_json::from_value(line["embedding"].clone()).unwrap())
        .collect();
    assert_eq!(vectors.len(), texts);
    for vector in &vectors {
        let length: f32 = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        assert!((length - 1.0).abs() < 1e-3, "length {length}");
    }
    vectors
}

#[test]
fn texts_of_little() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("lines"), "a line\n").unwrap();
    let lines = folder.path().join("lines");
    let odd = data("mistral-odd");
    for model in ["demo", odd.to_str().unwrap()] {
        let model = ["--model", model];
        run(&[&["embed"], &model[..], &[""]].concat(), "").fails(1, &["text 0", "empty"]);
        run(&[&["embed"], &model[..]].concat(), "a\n\nb\n").fails(1, &["text 1", "empty"]);
        let spaces = finite(&model, " \n     \n\t\n\u{3000}\na\0b\n\0\n", 6);
        assert_ne!(spaces[4], spaces[5]);
        let search = ["search", "", lines.to_str().unwrap(), "--instruction", ""];
        run(&[&search, &model[..]].concat(), "").fails(1, &["text 0", "empty"]);
    }
    let nul = run(&["generate", "--max-tokens", "2", "--format", "json"], "a\0b").ok();
    assert_eq!(objects(&nul)[0]["tokens"].as_array().unwrap().len(), 2);
}

#[test]
fn texts_beyond_the_limit() {
    let long = "many words ".repeat(500);
    let ran = run(&["embed", "--format", "json", &long], "");
    assert!(ran.stderr.contains("note: 1 of 1 texts were cut to 512 tokens"), "{}", ran.stderr);
    assert_eq!(objects(&ran.ok())[0]["tokens"], 512);
    finite(&[&long], "", 1);

    let args = ["embed", "a text", "--max-length", "512", "--instruction"];
    run(&[&args[..], &[&long]].concat(), "")
        .fails(1, &["instruction has", "--max-length 512", "none is left"]);
    run(&["embed", "a text", "--max-length", "0"], "").fails(1, &["--max-length 0"]);
    run(&["embed", &long, "--max-length", "1000", "--kv-tokens", "256"], "")
        .fails(1, &["room for 256 of 1000", "--kv-tokens"]);
}

#[test]
fn a_line_of_a_million() {
    for line in ["a".repeat(1_000_000), "ab c ".repeat(200_000)] {
        let found = finite(&[], format!("{line}\nshort\n"), 2);
        assert_ne!(found[0], found[1]);
        run(&["generate"], line).fails(1, &["the prompt has", "bytes", "2048 positions"]);
    }
}

#[test]
fn not_utf8() {
    run(&["embed"], b"fine\nbr\xffken\n").fails(1, &["standard input, line 2", "not UTF-8"]);
    run(&["generate"], b"br\xffken").fails(1, &["standard input", "not UTF-8", "byte 3"]);
    run(&["chat"], b"br\xffken\n").fails(1, &["standard input", "not UTF-8"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("texts");
    fs::write(&file, b"a\nb\n\xc3").unwrap();
    let path = file.to_str().unwrap();
    run(&["embed", "--input", path], "").fails(1, &["texts, line 3", "not UTF-8"]);
    run(&["search", "x", path], "").fails(1, &["texts, line 3", "not UTF-8"]);
    run(&["embed", "--input", folder.path().to_str().unwrap()], "").fails(1, &["directory"]);
    run(&["embed", "--input", "no/such/file"], "").fails(1, &["no/such/file", "No such file"]);
}

#[test]
fn prompts_that_do_not_fit() {
    let prompt = "many words ".repeat(1500);
    run(&["generate"], prompt.as_str()).fails(1, &["the model has 2048 positions"]);
    run(&["chat"], prompt).fails(1, &["the model has 2048 positions"]);
    run(&["generate", "--kv-tokens", "128"], "many words ".repeat(100))
        .fails(1, &["room for 128 of", "--kv-tokens"]);
    run(&["generate", "--kv-tokens", "128", "--prompt", "x", "--max-tokens", "500"], "")
        .fails(1, &["room for 128 of", "--kv-tokens"]);
    // No more than the model has positions, however many are asked for.
    let all = ["generate", "--kv-tokens", "128", "--prompt", "x", "--max-tokens", "999999999999"];
    run(&all, "").fails(1, &["room for 128 of 2047"]);
}

/// Numbers that are possible and beyond all sense.
#[test]
fn numbers_without_measure() {
    let most = u64::MAX.to_string();
    // Pages are counted in 32 bits: this is 2^32 of them, and as many as can be.
    for tokens in ["549755813888", &most] {
        run(&["embed", "x", "--kv-tokens", tokens], "").fails(2, &["--kv-tokens", tokens]);
    }
    finite(&["--batch-tokens", &most, "--max-length", &most, "--window", "4294967295", "x"], "", 1);
    let generate = ["generate", "--prompt", "x", "--max-tokens", "3", "--format", "json"];
    let tokens = |flags: &[&str]| {
        let stdout = run(&[&generate, flags].concat(), "").ok();
        objects(&stdout)[0]["tokens"].clone()
    };
    let greedy = tokens(&["--window", "4294967295", "--top-k", "4294967295"]);
    // As cold as can be is greedy.
    assert_eq!(tokens(&["--temperature", "1e-45"]), greedy);
    assert_eq!(tokens(&["--temperature", "1e-30"]), greedy);
    tokens(&["--temperature", "3e38"]);
    tokens(&["--temperature", "1", "--repetition-penalty", "3e38"]);
    tokens(&["--temperature", "1", "--repetition-penalty", "1e-45"]);
    let stdout = run(&[&generate[..], &["--logprobs", "4294967295"]].concat(), "").ok();
    let top = &objects(&stdout)[0]["logprobs"][0]["top"];
    assert_eq!(top.as_array().unwrap().len(), 4096);
}
