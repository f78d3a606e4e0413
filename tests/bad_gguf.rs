//! Damaged GGUF files: each is refused in one line that names the file and the fault.

use crate::cli::run;
use crate::gguf_file::{Experts, Gguf, T, V, converted, text};
use gritlm::model::gguf;
use gritlm::model::weights::Weights;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Opens what `path` names as an engine does, up to the tokenizer.
fn open(path: &Path) -> Result<(), String> {
    let opened = || {
        let Some(file) = gguf::Gguf::find(path)? else { panic!("{}", path.display()) };
        let gguf = gguf::Gguf::open(&file)?;
        let config = gguf.config()?;
        Weights::open(path, &config)
    };
    opened().map(drop).map_err(|e| e.to_string())
}

/// The line that a damaged file ends with has all of this.
#[track_caller]
fn refused(path: &Path, parts: &[&str]) {
    let error = open(path).expect_err("a damaged file was opened");
    assert!(!error.contains('\n'), "{error}");
    assert!(error.len() < 600, "{error}");
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

fn odd() -> Gguf {
    converted("mistral-odd", Experts::Stacked)
}

fn written(folder: &TempDir, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    path
}

#[track_caller]
fn bytes_fail(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec!["model.gguf: "];
    all.extend(parts);
    refused(&written(&folder, bytes), &all);
}

/// A file with this damage is refused with a line that has all of this, and the file without it
/// is not.
#[track_caller]
fn fails(damage: impl FnOnce(&mut Gguf), parts: &[&str]) {
    let mut file = odd();
    damage(&mut file);
    bytes_fail(&file.bytes(), parts);
}

#[track_caller]
fn value_fails(key: &str, value: Option<V>, parts: &[&str]) {
    let mut all = vec![key];
    all.extend(parts);
    fails(|file| _ = file.set(key, value), &all);
}

#[test]
fn a_sound_file_opens() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(open(&written(&folder, &odd().bytes())), Ok(()));
    assert_eq!(open(folder.path()), Ok(()));
    // Version 2 differs in nothing that matters here.
    let older = Gguf { version: 2, ..odd() };
    assert_eq!(open(&written(&folder, &older.bytes())), Ok(()));
}

#[test]
fn other_formats_and_versions() {
    bytes_fail(b"", &["the magic", "expected 4 bytes", "found 0"]);
    bytes_fail(b"GG", &["the magic", "found 2"]);
    bytes_fail(b"{\"model_type\": \"llama\"}", &["expected it to begin with \"GGUF\"", "mo"]);
    fails(|file| file.magic = *b"ggjt", &["GGUF", "\"ggjt\""]);
    fails(|file| file.magic = *b"FUGG", &["GGUF", "\"FUGG\""]);
    fails(|file| file.version = 1, &["expected version 2 or 3, found 1"]);
    fails(|file| file.version = 4, &["expected version 2 or 3, found 4"]);
    fails(|file| file.version = 3_u32.swap_bytes(), &["little-endian", "version 3 in big-endian"]);
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4368439584\n";
    bytes_fail(pointer.as_bytes(), &["Git LFS pointer"]);
}

#[test]
fn counts_beyond_the_file() {
    let many = u64::MAX;
    fails(|file| file.tensor_count = Some(many), &["the number of tensors", &many.to_string()]);
    fails(|file| file.tensor_count = Some(1 << 40), &["the number of tensors", "1099511627776"]);
    fails(|file| file.pair_count = Some(1 << 62), &["key-value pairs", "4611686018427387904"]);
    // One more than there are: what follows is read as another.
    let pairs = odd().pairs.len() as u64;
    fails(|file| file.pair_count = Some(pairs + 1), &["expected"]);
    fails(|file| file.pair_count = Some(pairs - 1), &["expected"]);
    let count = odd().tensors.len() as u64;
    fails(|file| file.tensor_count = Some(count + 1), &["expected"]);
    fails(|file| file.tensor_count = Some(count - 1), &["expected"]);
}

/// Each length of each part is the place of a cut.
#[test]
fn files_that_end_early() {
    let whole = odd().bytes();
    let header = odd().header().len();
    let dense = 0..2000.min(header);
    let cuts =
        dense.chain((2000..header).step_by(97)).chain([header, header + 64, whole.len() / 2]);
    let path = Path::new("model.gguf");
    for cut in cuts {
        let error = gguf::parse(&whole[..cut], path).expect_err("a cut file").to_string();
        assert!(error.starts_with("model.gguf: ") && !error.contains('\n'), "{cut}: {error}");
    }
    bytes_fail(&whole[..header - 3], &["cut off"]);
    // Nothing follows the last tensor, so each missing byte is one of its own.
    for missing in [1, 65] {
        let cut = &whole[..whole.len() - missing];
        bytes_fail(cut, &["tensor token_embd.weight", "bytes at byte", "cut off"]);
    }
}

#[test]
fn texts() {
    let key = b"\x14\x00\x00\x00\x00\x00\x00\x00general.architecture";
    let at = |bytes: &[u8]| bytes.windows(key.len()).position(|w| w == key).unwrap();
    let mut long = odd().bytes();
    let place = at(&long);
    long[place..place + 8].copy_from_slice(&(1_u64 << 63).to_le_bytes());
    bytes_fail(&long, &["key 0 of", "a text of at most", "9223372036854775808"]);
    let mut other = odd().bytes();
    let place = at(&other) + 8;
    other[place..place + 2].copy_from_slice(b"\xff\xfe");
    bytes_fail(&other, &["key 0 of", "UTF-8", "byte 0 of 20"]);
    fails(|file| file.pairs.push((String::new(), V::U8(1))), &["1 to 65535 bytes, found 0"]);
    let long = "k".repeat(70_000);
    fails(|file| file.pairs.push((long, V::U8(1))), &["1 to 65535 bytes, found 70000"]);
    let mut text = 5_u64.to_le_bytes().to_vec();
    text.extend(b"a\xc3\x28bc");
    value_fails("general.name", Some(V::Raw(8, text)), &["UTF-8", "byte 1 of 5"]);
}

#[test]
fn values() {
    value_fails("general.name", Some(V::Raw(13, vec![])), &["type from 0 to 12, found 13"]);
    value_fails("general.name", Some(V::Raw(u32::MAX, vec![])), &["found 4294967295"]);
    value_fails("general.flag", Some(V::Raw(7, vec![2])), &["0 or 1", "found 2"]);
    let array = |kind: u32, count: u64| {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes
    };
    value_fails("general.tags", Some(V::Raw(9, array(13, 0))), &["found 13"]);
    for kind in 0..13 {
        let huge = array(kind, 1 << 60);
        value_fails(
            "general.tags",
            Some(V::Raw(9, huge)),
            &["expected at most", "1152921504606846976"],
        );
    }
    let nested: Vec<u8> = (0..100_000).flat_map(|_| array(9, 1)).collect();
    value_fails("general.tags", Some(V::Raw(9, nested)), &["nested at most 4 deep"]);
    fails(
        |file| file.pairs.push(("general.name".into(), V::U8(1))),
        &["each key once", "\"general.name\" twice"],
    );
}

#[test]
fn alignments() {
    for wrong in [0, 1, 4, 24, 33, 1 << 17, u32::MAX] {
        let parts = ["general.alignment", "expected", &wrong.to_string()];
        fails(|file| _ = file.set("general.alignment", Some(V::U32(wrong))), &parts);
    }
    value_fails("general.alignment", Some(text("32")), &["\"32\""]);
    // A file that is aligned otherwise than it says.
    let other = |file: &mut Gguf| _ = file.set("general.alignment", Some(V::U32(1 << 16)));
    fails(other, &["divisible by the alignment 65536"]);
}

#[test]
fn lists_of_tensors() {
    let q = "blk.0.attn_q.weight";
    fails(|file| file.tensor(q).name = String::new(), &["a printable name of 1 to 64 bytes"]);
    fails(|file| file.tensor(q).name = "x".repeat(65), &["1 to 64 bytes", "xxx"]);
    fails(|file| file.tensor(q).name = "a\nb".into(), &["printable", "\"a\\nb\""]);
    fails(|file| file.tensor(q).name = "output.weight".into(), &["output.weight twice"]);
    fails(|file| file.tensor(q).dims = vec![], &[q, "1 to 4 dimensions", "found 0"]);
    fails(|file| file.tensor(q).dims = vec![1; 5], &[q, "1 to 4 dimensions", "found 5"]);
    fails(|file| file.tensor(q).dims = vec![0, 512], &[q, "sizes of at least 1", "[0, 512]"]);
    let most = u64::MAX;
    fails(|file| file.tensor(q).dims = vec![most, most], &[q, "fits into memory"]);
    fails(|file| file.tensor(q).dims = vec![most / 2, 1], &[q, "cut off"]);
    fails(|file| file.tensor(q).dims = vec![1 << 40, 1], &[q, "cut off"]);
    for (kind, found) in [(9, "Q8_1"), (15, "Q8_K"), (20, "IQ4_NL"), (28, "F64"), (39, "MXFP4")] {
        fails(|file| file.tensor(q).kind = kind, &[q, "one of BF16, F16, F32, Q8_0", found]);
    }
    fails(|file| file.tensor(q).kind = 7777, &[q, "found type 7777"]);
    // 160 columns are no whole blocks of 256.
    fails(|file| file.tensor(q).kind = 12, &[q, "whole blocks of 256 for Q4_K", "rows of 160"]);
    fails(|file| file.tensor(q).offset = Some(33), &[q, "divisible by the alignment 32", "33"]);
    fails(|file| file.tensor(q).offset = Some(1 << 40), &[q, "cut off"]);
    fails(|file| file.tensor(q).offset = Some(most - 31), &[q, "cut off"]);
    fails(|file| file.tensor(q).offset = Some(0), &["it behind ", "overlap"]);
    // In f32 it is twice as long and reaches into the next.
    fails(|file| file.tensor(q).kind = 0, &["overlap"]);
}

#[test]
fn tensors_that_the_metadata_do_not_have() {
    let q = "blk.1.attn_q.weight";
    let without = |name: &'static str| {
        move |file: &mut Gguf| file.tensors.retain(|tensor| tensor.name != name)
    };
    fails(without("token_embd.weight"), &["tensor token_embd.weight", "[389, 160]", "nothing"]);
    fails(without("blk.1.attn_q.weight"), &[q, "[512, 160]", "found nothing"]);
    fails(
        |file| file.tensor(q).dims = vec![512, 160],
        &[q, "expected [512, 160], found [160, 512]"],
    );
    fails(|file| file.tensor(q).name = "blk.1.attn_q.bias".into(), &[q, "found nothing"]);
    let bias = |file: &mut Gguf| _ = file.add("blk.1.attn_q.bias", &[8], 0, vec![0; 32]);
    fails(bias, &["blk.1.attn_q.bias", "surplus tensor F32 [8]"]);
    let norm = |file: &mut Gguf| {
        let norm = file.tensor("output_norm.weight");
        (norm.kind, norm.bytes) = (8, vec![0; 160 / 32 * 34]);
    };
    fails(norm, &["output_norm.weight", "BF16, F16 or F32", "Q8_0"]);
    // More layers than there are.
    value_fails_on("llama.block_count", V::U32(3), &["blk.2.", "nothing"]);
    value_fails("llama.block_count", Some(V::U32(1000)), &["as many layers", "found 1000"]);
    value_fails_on("llama.block_count", V::U32(1), &["blk.1.", "surplus"]);
    value_fails_on(
        "llama.vocab_size",
        V::U32(400),
        &["token_embd.weight", "[400, 160]", "[389, 160]"],
    );
    value_fails_on("llama.feed_forward_length", V::U32(200), &["ffn_gate", "[200, 160]"]);
}

/// As [`value_fails`], where the line is about a tensor.
#[track_caller]
fn value_fails_on(key: &str, value: V, parts: &[&str]) {
    fails(|file| _ = file.set(key, Some(value)), parts);
}

#[test]
fn configs() {
    for other in ["qwen2", "gemma", "llama4", "mistral3", "bert", ""] {
        value_fails("general.architecture", Some(text(other)), &["\"llama\"", other]);
    }
    value_fails("general.architecture", Some(V::U32(1)), &["a string", "found 1"]);
    for (key, most) in [
        ("llama.embedding_length", "1048576"),
        ("llama.block_count", "1024"),
        ("llama.attention.head_count", "65536"),
        ("llama.attention.head_count_kv", "65536"),
        ("llama.attention.key_length", "4096"),
        ("llama.attention.value_length", "4096"),
        ("llama.rope.dimension_count", "4096"),
        ("llama.feed_forward_length", "16777216"),
        ("llama.vocab_size", "16777216"),
        ("llama.context_length", "2147483648"),
    ] {
        let expected = format!("a whole number from 1 to {most}");
        let i32s = V::I32s(vec![208, 208]);
        for (value, found) in [
            (V::U32(0), "found 0"),
            (V::U32(u32::MAX), "found 4294967295"),
            (V::I32(-1), "found -1"),
            (V::F32(2.5), "found 2.5"),
            (text("4"), "found \"4\""),
            (i32s, "found an array of 2 integers"),
            (V::Raw(10, vec![255; 8]), "found 18446744073709551615"),
        ] {
            value_fails(key, Some(value), &[&expected, found]);
        }
    }
    for key in [
        "general.architecture",
        "llama.embedding_length",
        "llama.block_count",
        "llama.attention.head_count",
        "llama.feed_forward_length",
        "llama.context_length",
        "llama.attention.layer_norm_rms_epsilon",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
    ] {
        value_fails(key, None, &["found nothing"]);
    }
    value_fails("llama.attention.head_count_kv", Some(V::U32(3)), &["divisor", "4", "found 3"]);
    value_fails("llama.attention.key_length", Some(V::U32(127)), &["an even width", "127"]);
    value_fails("llama.attention.value_length", Some(V::U32(64)), &["128", "found 64"]);
    value_fails("llama.rope.dimension_count", Some(V::U32(64)), &["128", "found 64"]);
    for key in ["llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"] {
        for wrong in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            value_fails(key, Some(V::F32(wrong)), &["number", "found"]);
        }
        value_fails(key, Some(V::Bool(true)), &["a number", "found true"]);
    }
    value_fails("llama.rope.freq_base", Some(V::F32(0.5)), &["at least 1", "0.5"]);
    for key in [
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.eot_token_id",
    ] {
        value_fails(key, Some(V::U32(389)), &["below the vocabulary's size 389", "found 389"]);
        value_fails(key, Some(V::I32(-1)), &["found -1"]);
    }
    value_fails("llama.logit_scale", Some(V::F32(0.5)), &["no such value", "0.5"]);
    value_fails("llama.attention.sliding_window", Some(V::I32(-4)), &["found -4"]);
    let untold = |file: &mut Gguf| {
        file.set("llama.vocab_size", None).set("tokenizer.ggml.tokens", None);
    };
    fails(untold, &["tokenizer.ggml.tokens", "an array of strings, found nothing"]);
}

#[test]
fn scaled_rotary_embeddings() {
    for kind in ["yarn", "longrope", "dynamic"] {
        value_fails("llama.rope.scaling.type", Some(text(kind)), &["\"linear\"", kind]);
    }
    for wrong in [-2.0, 0.5, f32::NAN, 1e30] {
        value_fails("llama.rope.scaling.factor", Some(V::F32(wrong)), &["number"]);
    }
    value_fails("llama.rope.scaling.attn_factor", Some(V::F32(1.2)), &["expected 1"]);
    let factors = |count: usize, value: f32| {
        move |file: &mut Gguf| {
            let bytes = (0..count).flat_map(|_| value.to_le_bytes()).collect();
            file.add("rope_freqs.weight", &[count as u64], 0, bytes);
        }
    };
    fails(factors(63, 1.0), &["rope_freqs.weight", "F32 [64], found F32 [63]"]);
    for wrong in [0.0, -1.0, f32::NAN] {
        fails(factors(64, wrong), &["rope_freqs.weight", "factors from 0.000001 to 1000000"]);
    }
    let both = |file: &mut Gguf| {
        factors(64, 2.0)(file);
        file.set("llama.rope.scaling.factor", Some(V::F32(2.0)));
    };
    fails(both, &["rope_freqs.weight", "no linear scaling beside it"]);
}

#[test]
fn experts() {
    #[track_caller]
    fn fails(form: Experts, damage: impl FnOnce(&mut Gguf), parts: &[&str]) {
        let mut file = converted("mixtral-tiny", form);
        damage(&mut file);
        bytes_fail(&file.bytes(), parts);
    }
    let set = |key: &'static str, value: u32| {
        move |file: &mut Gguf| _ = file.set(key, Some(V::U32(value)))
    };
    let stacked = Experts::Stacked;
    fails(stacked, set("llama.expert_used_count", 9), &["at most expert_count 8", "found 9"]);
    fails(stacked, set("llama.expert_count", 257), &["from 1 to 256", "found 257"]);
    fails(stacked, set("llama.expert_count", 7), &["[7, 96]", "[8, 96]"]);
    fails(stacked, set("llama.expert_count", 0), &["ffn_gate.weight", "nothing"]);
    let gates = "blk.1.ffn_gate_exps.weight";
    let fewer = |file: &mut Gguf| file.tensor(gates).dims[2] = 7;
    fails(stacked, fewer, &[gates, "[8, 128, 96]", "[7, 128, 96]"]);
    let flat = |file: &mut Gguf| file.tensor(gates).dims = vec![96, 8 * 128];
    fails(stacked, flat, &[gates, "[8, 128, 96]", "[1024, 96]"]);
    let one = "blk.1.ffn_gate.7.weight";
    let missing = |file: &mut Gguf| file.tensors.retain(|tensor| tensor.name != one);
    fails(Experts::Apart, missing, &[one, "[128, 96]", "nothing"]);
    let both = |file: &mut Gguf| {
        let more = converted("mixtral-tiny", Experts::Apart);
        file.tensors.extend(more.tensors.into_iter().filter(|tensor| tensor.name == one));
    };
    fails(stacked, both, &[one, "surplus"]);
}

#[test]
fn parts_of_a_split_file() {
    let parts = odd().parts(3);
    let name = |number: usize| format!("odd-{number:05}-of-00003.gguf");
    let write = |parts: &[Gguf]| {
        let folder = tempfile::tempdir().unwrap();
        for (i, part) in parts.iter().enumerate() {
            fs::write(folder.path().join(name(i + 1)), part.bytes()).unwrap();
        }
        folder
    };
    let sound = write(&parts);
    for number in 1..=3 {
        assert_eq!(open(&sound.path().join(name(number))), Ok(()), "part {number}");
    }
    assert_eq!(open(sound.path()), Ok(()));
    fs::remove_file(sound.path().join(name(2))).unwrap();
    refused(&sound.path().join(name(3)), &[&name(2), "No such file"]);

    let damaged = |which: usize, damage: &dyn Fn(&mut Gguf)| {
        let mut parts = parts.clone();
        damage(&mut parts[which]);
        write(&parts)
    };
    let folder = damaged(1, &|part| _ = part.set("split.no", Some(V::U16(2))));
    refused(folder.path(), &[&name(2), "split.no", "expected 1", "found 2"]);
    let folder = damaged(2, &|part| _ = part.set("split.count", Some(V::U16(4))));
    refused(folder.path(), &[&name(3), "split.count", "expected 3", "found 4"]);
    let folder = damaged(0, &|part| _ = part.set("split.count", None));
    refused(folder.path(), &[&name(1), "split.count", "expected 3", "found nothing"]);
    let folder = damaged(0, &|part| _ = part.set("split.tensors.count", Some(V::I32(9))));
    refused(folder.path(), &["split.tensors.count", "found 9"]);
    let folder = damaged(2, &|part| _ = part.tensors.pop());
    refused(folder.path(), &["split.tensors.count", "the tensors in all parts"]);
    let twice: T = parts[0].tensors[0].clone();
    let folder = damaged(1, &|part| part.tensors.push(twice.clone()));
    refused(folder.path(), &[&name(2), &twice.name, "it in one part", &name(1)]);
    let folder = damaged(1, &|part| part.version = 9);
    refused(folder.path(), &[&name(2), "found 9"]);

    // A part by another name.
    let folder = tempfile::tempdir().unwrap();
    refused(&written(&folder, &parts[0].bytes()), &["split.count", "-of-00003.gguf", "model.gguf"]);
}

#[test]
fn folders() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["b.gguf", "a.gguf", "a-00001-of-00002.gguf", "a-00002-of-00002.gguf"] {
        fs::write(folder.path().join(name), odd().bytes()).unwrap();
    }
    let found = ["found 3 GGUF files", "a-00001-of-00002.gguf, a.gguf, b.gguf"];
    refused(folder.path(), &found);
    let model = folder.path().to_str().unwrap();
    run(&["embed", "--model", model, "a text"], "").fails(1, &found);
}

/// Through the program, which says it on stderr.
#[test]
fn the_program_ends_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = written(&folder, &odd().bytes()[..5000]);
    for model in [file.to_str().unwrap(), folder.path().to_str().unwrap()] {
        let parts = ["model.gguf", "expected", "found"];
        run(&["embed", "--model", model, "a text"], "").fails(1, &parts);
        run(&["inspect", "--model", model], "").fails(1, &parts);
    }
}

/// A hostile file of 1 MB, whatever its bytes, takes no more than some multiple of that.
#[test]
fn every_byte_may_be_another() {
    let whole = odd().bytes();
    let header = odd().header().len();
    let path = Path::new("model.gguf");
    let mut bytes = whole;
    let mut opened = 0;
    for at in (0..header).step_by(3) {
        for value in [0, 0xFF, bytes[at] ^ 0x80] {
            let before = std::mem::replace(&mut bytes[at], value);
            match gguf::parse(&bytes, path) {
                Ok(_) => opened += 1,
                Err(error) => assert!(!error.to_string().contains('\n'), "{at}: {error}"),
            }
            bytes[at] = before;
        }
    }
    assert!(opened > 0, "names and numbers may be others");
}
