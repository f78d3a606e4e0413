//! `gritlm embed`: its objects, its sources of texts, its files and its flags.

use super::{CORPUS, expected, keys, model, numbers, objects, run, vectors};
use gritlm::model::ops::Mask;
use gritlm::{Attn, Embed, Engine, Options, Pooling};
use safetensors::SafeTensors;
use std::fs;

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
        ("demo", &["--pooling", "weighted-mean"], default.clone().pooling(Pooling::WeightedMean)),
        ("demo", &["--pooling", "cls"], default.clone().pooling(Pooling::Cls)),
        ("demo", &["--pooling", "last-token"], default.clone().pooling(Pooling::LastToken)),
        ("demo", &["--no-normalize"], default.clone().normalize(false)),
        ("demo", &["--dimensions", "7"], default.clone().dimensions(Some(7))),
        ("demo", &["--attn", "cccc"], default.clone().attn(Some(Attn::Cccc))),
        (
            "demo",
            &["--window", "3"],
            default.clone().mask(Some(Mask::Bidirectional { window: Some(3) })),
        ),
        ("demo", &["--max-length", "7"], default.clone().max_length(7)),
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
