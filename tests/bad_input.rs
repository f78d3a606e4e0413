//! Bad input: whatever a checkpoint, a text or a place to write to is like, the program ends with
//! one line that says what is wrong, the right exit code, nothing on stdout and no partial file.

use crate::cli::{Ran, objects, run};
use crate::support::data;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const HEAD: &str = "lm_head.weight";
const NORM: &str = "model.norm.weight";

/// A copy of a tiny checkpoint, to be broken.
pub(crate) struct Broken {
    pub(crate) folder: TempDir,
}

impl Broken {
    pub(crate) fn new(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in ["config.json", "tokenizer.json", WEIGHTS] {
            fs::copy(data(model).join(file), folder.path().join(file)).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn odd() -> Self {
        Self::new("mistral-odd")
    }

    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub(crate) fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).unwrap()
    }

    pub(crate) fn write(&self, file: &str, bytes: impl AsRef<[u8]>) -> &Self {
        fs::write(self.path(file), bytes).unwrap();
        self
    }

    pub(crate) fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&self.read(file)).unwrap()
    }

    /// Sets a field of the config; `None` takes it out.
    pub(crate) fn config(&self, field: &str, value: Option<Value>) -> &Self {
        let mut config = self.json("config.json");
        let fields = config.as_object_mut().unwrap();
        match value {
            Some(value) => _ = fields.insert(field.into(), value),
            None => _ = fields.remove(field),
        }
        self.write("config.json", config.to_string())
    }

    /// Header and data of the weights.
    fn weights(&self) -> (Map<String, Value>, Vec<u8>) {
        let bytes = self.read(WEIGHTS);
        let header = 8 + header_len(&bytes);
        (serde_json::from_slice(&bytes[8..header]).unwrap(), bytes[header..].to_vec())
    }

    /// Changes the header of the weights; the data stays.
    fn header(&self, change: impl FnOnce(&mut Map<String, Value>)) -> &Self {
        let (mut header, data) = self.weights();
        change(&mut header);
        self.write(WEIGHTS, file(&serde_json::to_vec(&header).unwrap(), &data))
    }

    /// Makes two shards of it, the head and the rest, and an index that is right.
    fn shards(&self) -> Value {
        let (mut header, data) = self.weights();
        let head = header.remove(HEAD).unwrap();
        let (from, to) = (offset(&head, 0), offset(&head, 1));
        assert_eq!(from, 0, "the rest begins where the head ends");
        let one: Map<String, Value> = [(HEAD.to_string(), head)].into_iter().collect();
        self.write("a.safetensors", file(&serde_json::to_vec(&one).unwrap(), &data[..to]));
        header.remove("__metadata__");
        for tensor in header.values_mut() {
            let moved = [offset(tensor, 0) - to, offset(tensor, 1) - to];
            tensor["data_offsets"] = json!(moved);
        }
        self.write("b.safetensors", file(&serde_json::to_vec(&header).unwrap(), &data[to..]));
        fs::remove_file(self.path(WEIGHTS)).unwrap();
        let mut map: Map<String, Value> =
            header.into_iter().map(|(name, _)| (name, "b.safetensors".into())).collect();
        map.insert(HEAD.into(), "a.safetensors".into());
        let index = json!({ "metadata": {}, "weight_map": map });
        self.write(INDEX, index.to_string());
        index
    }

    fn embed(&self) -> Ran {
        let model = self.folder.path().to_str().unwrap();
        run(&["embed", "--model", model, "--format", "json", "a text"], "")
    }

    /// Embedding and inspecting both end with one line that says this.
    #[track_caller]
    pub(crate) fn fails(&self, parts: &[&str]) {
        self.embed().fails(1, parts);
        let model = self.folder.path().to_str().unwrap();
        run(&["inspect", "--model", model], "").fails(1, parts);
    }
}

fn header_len(bytes: &[u8]) -> usize {
    u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize
}

fn offset(tensor: &Value, which: usize) -> usize {
    tensor["data_offsets"][which].as_u64().unwrap() as usize
}

/// A safetensors file.
fn file(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// The copies and shards that the other tests break are whole: what fails there fails for the
/// reason named.
#[test]
fn unbroken_copies_work() {
    let whole = Broken::odd();
    let expected = whole.embed().ok();
    whole.shards();
    assert_eq!(whole.embed().ok(), expected);
    // A header of odd length leaves every tensor at an odd address, which the format allows.
    for padding in 1..4 {
        let odd = Broken::odd();
        let (header, data) = odd.weights();
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len() + padding, b' ');
        odd.write(WEIGHTS, file(&header, &data));
        assert_eq!(odd.embed().ok(), expected, "{padding}");
    }
}

#[test]
fn config_values() {
    let long = "x".repeat(100_000);
    let cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("hidden_size", Some(json!(0)), "from 1 to"),
        ("hidden_size", Some(json!(-160)), "found -160"),
        ("hidden_size", Some(json!(1u64 << 60)), "from 1 to"),
        ("hidden_size", Some(json!(1e300)), "from 1 to"),
        ("hidden_size", Some(json!(160.5)), "found 160.5"),
        ("hidden_size", Some(json!("160")), "found \"160\""),
        ("hidden_size", Some(json!([160])), "found [160]"),
        ("hidden_size", Some(json!(true)), "found true"),
        ("hidden_size", Some(Value::Null), "found nothing"),
        ("hidden_size", None, "found nothing"),
        ("num_hidden_layers", Some(json!(0)), "found 0"),
        ("num_hidden_layers", Some(json!(u64::MAX)), "from 1 to"),
        ("num_attention_heads", Some(json!(0)), "found 0"),
        ("num_attention_heads", None, "found nothing"),
        ("num_key_value_heads", Some(json!(0)), "found 0"),
        ("num_key_value_heads", Some(json!(3)), "a divisor of num_attention_heads 4"),
        ("num_key_value_heads", Some(json!(8)), "a divisor of num_attention_heads 4"),
        ("head_dim", Some(json!(127)), "an even number"),
        ("head_dim", Some(json!(0)), "found 0"),
        ("head_dim", Some(json!(-2)), "found -2"),
        ("intermediate_size", Some(json!(0)), "found 0"),
        ("vocab_size", Some(json!(0)), "found 0"),
        ("vocab_size", Some(json!(u64::MAX)), "from 1 to"),
        ("rope_theta", Some(json!(0)), "a positive number, found 0"),
        ("rope_theta", Some(json!(-1)), "found -1"),
        ("rope_theta", Some(json!(1e300)), "found 1e"),
        ("rope_theta", Some(json!("big")), "found \"big\""),
        ("rope_scaling", Some(json!({ "type": "yarn" })), "no scaling"),
        ("rms_norm_eps", Some(json!(0)), "found 0"),
        ("rms_norm_eps", Some(json!(1e-300)), "a positive number"),
        ("rms_norm_eps", None, "found nothing"),
        ("sliding_window", Some(json!(0)), "found 0"),
        ("sliding_window", Some(json!(-1)), "found -1"),
        ("max_position_embeddings", Some(json!(0)), "found 0"),
        ("max_position_embeddings", None, "found nothing"),
        ("bos_token_id", Some(json!(389)), "below vocab_size 389, found 389"),
        ("bos_token_id", Some(json!(-1)), "found -1"),
        ("bos_token_id", None, "found nothing"),
        ("eos_token_id", Some(json!([2, 389])), "found 389"),
        ("eos_token_id", Some(json!("</s>")), "found \"</s>\""),
        ("hidden_act", Some(json!("gelu")), "expected \"silu\", found gelu"),
        ("model_type", Some(json!("llama")), "\"mistral\" or \"mixtral\", found llama"),
        ("model_type", Some(json!(7)), "found 7"),
        ("model_type", None, "found nothing"),
        ("model_type", Some(json!(long)), "found xxx"),
        // Control characters would break the line, or recolour the terminal.
        ("model_type", Some(json!("mis\ntral\u{1b}[31m")), "found mis"),
    ];
    for (field, value, found) in cases {
        Broken::odd().config(field, value.clone()).fails(&["config.json", field, found]);
    }
    let mixtral = || Broken::new("mixtral-tiny");
    let cases = [
        ("num_local_experts", json!(0), "found 0"),
        ("num_experts_per_tok", json!(0), "found 0"),
        ("num_experts_per_tok", json!(9), "at most num_local_experts 8"),
    ];
    for (field, value, found) in cases {
        mixtral().config(field, Some(value)).fails(&["config.json", field, found]);
    }
    // Without head_dim it is dim / heads, which must be whole.
    let odd = Broken::odd();
    odd.config("head_dim", None).config("num_attention_heads", Some(json!(3)));
    odd.config("num_key_value_heads", Some(json!(1)));
    odd.fails(&["config.json", "hidden_size", "a multiple of num_attention_heads 3"]);
    // Sizes that are possible, but not these weights'.
    Broken::odd().config("hidden_size", Some(json!(164))).fails(&["tensor", "[389, 164]"]);
    Broken::odd().config("num_hidden_layers", Some(json!(1))).fails(&["layers.1", "surplus"]);
    Broken::odd().config("num_hidden_layers", Some(json!(3))).fails(&["layers.2", "nothing"]);
    Broken::odd().config("num_hidden_layers", Some(json!(1024))).fails(&["layers.", "nothing"]);
}

/// Rotary frequencies beyond any sense must not end in embeddings of nothing.
#[test]
fn config_theta_below_one() {
    Broken::odd().config("rope_theta", Some(json!(1e-38))).fails(&[
        "config.json",
        "rope_theta",
        "found 1e-38",
    ]);
}

#[test]
fn config_files() {
    let whole = Broken::odd().read("config.json");
    let mut cases = vec![b"".to_vec(), b"hello".to_vec(), b"\xff\xfe{}".to_vec()];
    cases.extend([b"[]".to_vec(), b"null".to_vec(), b"\0".repeat(1000), b"[".repeat(100_000)]);
    cases.extend([1, 20, whole.len() / 2, whole.len() - 2].map(|len| whole[..len].to_vec()));
    cases.push([whole.as_slice(), b"}"].concat());
    // NaN and infinity are no JSON.
    let text = String::from_utf8(whole).unwrap();
    for number in ["NaN", "Infinity", "1e999"] {
        cases.push(text.replace("10000.0", number).into_bytes());
    }
    for bytes in cases {
        Broken::odd().write("config.json", bytes).fails(&["config.json", "not JSON"]);
    }
    Broken::odd().write("config.json", "{}").fails(&["config.json", "model_type", "nothing"]);
    let missing = Broken::odd();
    fs::remove_file(missing.path("config.json")).unwrap();
    missing.fails(&["config.json", "No such file"]);
}

#[test]
fn tokenizers() {
    let broken = Broken::odd();
    let mut tokenizer = broken.json("tokenizer.json");
    tokenizer["model"]["vocab"]["ß"] = json!(389);
    broken.write("tokenizer.json", tokenizer.to_string());
    broken.fails(&["tokenizer.json", "\"ß\"", "below vocab_size 389", "found 389"]);

    let whole = broken.read("tokenizer.json");
    for bytes in [&b""[..], b"hello", b"{}", b"[1]", b"\xff", &whole[..whole.len() / 2]] {
        broken.write("tokenizer.json", bytes).fails(&["tokenizer.json", "not a tokenizer"]);
    }
    tokenizer["model"]["type"] = json!("none\nsuch");
    broken.write("tokenizer.json", tokenizer.to_string());
    broken.fails(&["tokenizer.json", "not a tokenizer"]);
    fs::remove_file(broken.path("tokenizer.json")).unwrap();
    broken.fails(&["tokenizer.json", "No such file"]);
}

#[test]
fn weights_cut_off_or_too_long() {
    let whole = Broken::odd().read(WEIGHTS);
    let data = 8 + header_len(&whole);
    for len in [0, 1, 7, 8, 9, 100, data - 1, data, data + 1, whole.len() / 2, whole.len() - 1] {
        Broken::odd().write(WEIGHTS, &whole[..len]).fails(&[WEIGHTS, &len.to_string()]);
    }
    let long = [whole.as_slice(), b"!"].concat();
    Broken::odd().write(WEIGHTS, &long).fails(&[WEIGHTS, &long.len().to_string()]);
}

#[test]
fn weights_with_absurd_headers() {
    let (header, data) = Broken::odd().weights();
    let header = serde_json::to_vec(&header).unwrap();
    let mut whole = file(&header, &data);
    for claim in [u64::MAX, 1 << 60, 100_000_001, 100_000_000, whole.len() as u64 - 7] {
        whole[..8].copy_from_slice(&claim.to_le_bytes());
        Broken::odd().write(WEIGHTS, &whole).fails(&[WEIGHTS, "header claims"]);
    }
    let mut not_utf8 = header.clone();
    let name = header.windows(HEAD.len()).position(|w| w == HEAD.as_bytes()).unwrap();
    not_utf8[name] = 0xff;
    Broken::odd().write(WEIGHTS, file(&not_utf8, &data)).fails(&[WEIGHTS, "not UTF-8"]);
    for text in ["", "hello", "[]", "{\"a\":1}", "{", "{\"a\":{\"dtype\":\"F32\"}}"] {
        Broken::odd()
            .write(WEIGHTS, file(text.as_bytes(), &data))
            .fails(&[WEIGHTS, "not a safetensors file"]);
    }
    let deep = file("[".repeat(100_000).as_bytes(), &data);
    Broken::odd().write(WEIGHTS, deep).fails(&[WEIGHTS, "not a safetensors file"]);
    Broken::odd().write(WEIGHTS, file(b"{}", b"")).fails(&["tensor", "nothing"]);
}

#[test]
fn weights_with_wrong_tensors() {
    Broken::odd()
        .header(|h| {
            let norm = h.remove(NORM).unwrap();
            h.insert("other".into(), norm);
        })
        .fails(&[NORM, "expected [160]", "found nothing"]);
    Broken::odd()
        .config("tie_word_embeddings", Some(json!(true)))
        .header(|h| {
            let head = h.remove(HEAD).unwrap();
            h.insert("one too many".into(), head);
        })
        .fails(&["one too many", "surplus"]);
    let misshapen = [json!([160, 389]), json!([62240]), json!([389, 160, 1]), json!([1, 389, 160])];
    for shape in misshapen {
        let found = format!("found {}", shape.to_string().replace(',', ", "));
        Broken::odd().header(|h| h[HEAD]["shape"] = shape).fails(&[
            HEAD,
            "expected [389, 160]",
            &found,
        ]);
    }
    // Of as many bytes, but numbers of another kind.
    for dtype in ["I16", "U16"] {
        Broken::odd().header(|h| h[HEAD]["dtype"] = json!(dtype)).fails(&[
            WEIGHTS,
            HEAD,
            "BF16, F16 or F32",
            dtype,
        ]);
    }
    for (dtype, shape) in [("I32", [389, 80]), ("F64", [389, 40]), ("I8", [389, 320])] {
        Broken::odd()
            .header(|h| {
                h[HEAD]["dtype"] = json!(dtype);
                h[HEAD]["shape"] = json!(shape);
            })
            .fails(&[WEIGHTS, HEAD, "BF16, F16 or F32", dtype]);
    }
    // Types that there are not, or whose size is not what the offsets say.
    for dtype in [json!("I32"), json!("F4"), json!("BF17"), json!("BF\n16"), json!(16), json!(null)]
    {
        Broken::odd()
            .header(|h| h[HEAD]["dtype"] = dtype)
            .fails(&[WEIGHTS, "not a safetensors file"]);
    }
    // A name is the file's, too.
    Broken::odd()
        .config("tie_word_embeddings", Some(json!(true)))
        .header(|h| {
            let head = h.remove(HEAD).unwrap();
            h.insert("broken\nline\u{1b}[31m".into(), head);
        })
        .fails(&["surplus", "line"]);
}

#[test]
fn weights_with_wrong_offsets() {
    let last = "model.layers.0.input_layernorm.weight";
    let cases: &[(&str, &str, Value)] = &[
        ("overlapping", last, json!([0, 320])),
        ("shifted by two", last, json!([248_962, 249_282])),
        ("a hole", HEAD, json!([2, 124_480])),
        ("backwards", HEAD, json!([124_480, 0])),
        ("negative", HEAD, json!([-2, 124_480])),
        ("beyond the end", HEAD, json!([0, 1u64 << 40])),
        ("overflowing", HEAD, json!([u64::MAX - 1, u64::MAX])),
        ("one", HEAD, json!([0])),
        ("three", HEAD, json!([0, 1, 2])),
        ("text", HEAD, json!("0")),
    ];
    for (what, tensor, offsets) in cases {
        let broken = Broken::odd();
        broken.header(|h| h[*tensor]["data_offsets"] = offsets.clone());
        println!("{what}");
        broken.fails(&[WEIGHTS, "not a safetensors file"]);
    }
    // Shapes whose product is beyond any number.
    for shape in [json!([1u64 << 40, 1u64 << 40]), json!([u64::MAX, 2]), json!([0, 160])] {
        Broken::odd()
            .header(|h| h[HEAD]["shape"] = shape)
            .fails(&[WEIGHTS, "not a safetensors file"]);
    }
}

#[test]
fn weights_that_are_no_files() {
    let broken = Broken::odd();
    fs::remove_file(broken.path(WEIGHTS)).unwrap();
    broken.fails(&[WEIGHTS, "No such file"]);
    fs::create_dir(broken.path(WEIGHTS)).unwrap();
    broken.fails(&[WEIGHTS]);
    let nowhere = broken.path("nowhere");
    run(&["embed", "x", "--model", nowhere.to_str().unwrap()], "").fails(1, &["nowhere"]);
    run(&["embed", "x", "--model", broken.path("config.json").to_str().unwrap()], "")
        .fails(1, &["config.json"]);
    run(&["embed", "x", "--model", ""], "").fails(1, &["model"]);
}

/// Weights that are not numbers must not become embeddings that are none, or endless `<unk>`.
#[test]
fn weights_that_are_not_numbers() {
    let broken = Broken::odd();
    let (header, mut data) = broken.weights();
    let nan = 0x7fc0_u16.to_le_bytes();
    let norm = &header[NORM];
    for pair in data[offset(norm, 0)..offset(norm, 1)].as_chunks_mut::<2>().0 {
        *pair = nan;
    }
    broken.write(WEIGHTS, file(&serde_json::to_vec(&header).unwrap(), &data));
    broken.embed().fails(1, &["not finite"]);
    let model = broken.folder.path().to_str().unwrap();
    run(&["generate", "--model", model, "--prompt", "x", "--format", "json"], "")
        .fails(1, &["not finite"]);
}

#[test]
fn shards() {
    let shared = |change: &dyn Fn(&Broken, &mut Value)| {
        let broken = Broken::odd();
        let mut index = broken.shards();
        change(&broken, &mut index);
        broken.write(INDEX, index.to_string());
        broken
    };
    shared(&|_, index| index["weight_map"][HEAD] = json!("c.safetensors"))
        .fails(&["c.safetensors", "No such file"]);
    for outside in
        ["../a.safetensors", "/a.safetensors", "x/../a.safetensors", "..", ".", "", "x/a", "a/"]
    {
        let broken = shared(&|_, index| index["weight_map"][HEAD] = json!(outside));
        broken.fails(&[INDEX, "expected a file name", &format!("{outside:?}")]);
    }
    shared(&|_, index| index["weight_map"][HEAD] = json!("c\n.safetensors")).fails(&["c"]);
    shared(&|_, index| index["weight_map"][HEAD] = json!("c\0.safetensors")).fails(&["c"]);
    // In two shards.
    shared(&|broken, _| {
        fs::copy(broken.path("a.safetensors"), broken.path("c")).map(drop).unwrap()
    })
    .embed()
    .ok();
    shared(&|broken, index| {
        fs::copy(broken.path("a.safetensors"), broken.path("c.safetensors")).unwrap();
        index["weight_map"]["c"] = json!("c.safetensors");
    })
    .fails(&["c.safetensors", HEAD, "expected it in a.safetensors", "found it here"]);
    // In another than the index says.
    shared(&|_, index| {
        index["weight_map"][HEAD] = json!("b.safetensors");
        index["weight_map"][NORM] = json!("a.safetensors");
    })
    .fails(&["a.safetensors", HEAD, "expected it in b.safetensors"]);
    // Not in the index.
    shared(&|_, index| _ = index["weight_map"].as_object_mut().unwrap().remove(NORM)).fails(&[
        "b.safetensors",
        NORM,
        "surplus",
    ]);
    // In the index only.
    shared(&|_, index| index["weight_map"]["more"] = json!("b.safetensors")).fails(&[
        INDEX,
        "more",
        "expected it in b.safetensors",
    ]);
    // No index at all.
    for text in ["", "hello", "[]", "{}", "{\"weight_map\":[]}", "{\"weight_map\":{\"a\":1}}"] {
        let broken = Broken::odd();
        broken.shards();
        broken.write(INDEX, text).fails(&[INDEX, "not a shard index"]);
    }
    shared(&|_, index| index["weight_map"] = json!({})).fails(&[INDEX, "weight_map is empty"]);
    // A shard that is cut off is named.
    let cut = shared(&|_, _| {});
    let shard = cut.read("b.safetensors");
    cut.write("b.safetensors", &shard[..shard.len() - 1]).fails(&["b.safetensors"]);
}

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

#[test]
fn outputs_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    fs::create_dir(path("folder.npy")).unwrap();
    fs::write(path("file"), "").unwrap();
    let embed = |output: &str| run(&["embed", "x", "--output", output], "");
    embed(&path("none/v.npy")).fails(1, &["none/v.npy", "No such file"]);
    embed(&path("file/v.npy")).fails(1, &["file/v.npy"]);
    embed(&path("folder.npy")).fails(1, &["folder.npy", "directory"]);
    embed(&path("v.txt")).fails(2, &["--output", "v.txt"]);
    embed(&path(".npy")).fails(2, &["--output", ".npy"]);
    // What goes wrong after the file was opened leaves nothing, and the old one as it was.
    fs::write(path("old.npy"), "old").unwrap();
    for output in ["new.npy", "old.npy"] {
        run(&["embed", "--output", &path(output), ""], "").fails(1, &["empty"]);
        run(&["embed", "x", "--output", &path(output), "--dimensions", "999"], "").fails(2, &[]);
        run(&["embed", "x", "--output", &path(output), "--model", "no/../such"], "").fails(1, &[]);
    }
    assert_eq!(fs::read_to_string(path("old.npy")).unwrap(), "old");
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["file", "folder.npy", "old.npy"]);
}

/// A kept file that cannot be written costs a note, not the search.
#[test]
fn search_without_a_place_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "chess").unwrap();
    fs::create_dir(folder.path().join(".gritlm-search.safetensors")).unwrap();
    let ran = run(&["search", "chess", folder.path().to_str().unwrap()], "");
    assert!(ran.stderr.contains("note: embeddings are not kept: "), "{}", ran.stderr);
    assert!(ran.ok().contains("chess"));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// The program with its own pipes, for what a reader or a full disk does to it.
fn spawn(args: &[&str], stdout: Stdio, stderr: Stdio) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gritlm"));
    command.args(args).env_remove("GRITLM_MODEL");
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap()
}

/// `| head -1`: the reader has seen enough, and that is no failure.
#[test]
fn a_reader_that_goes_away() {
    let folder = tempfile::tempdir().unwrap();
    let texts = folder.path().join("texts");
    // Ten times what a pipe holds.
    fs::write(&texts, "a text\n".repeat(300)).unwrap();
    let input = ["--input", texts.to_str().unwrap()];
    let cases = [
        [&["embed"], &input[..]].concat(),
        [&["embed", "--format", "json"], &input[..]].concat(),
        [&["similarity"], &input[..]].concat(),
        vec!["generate", "--prompt", "Describe a package.", "--max-tokens", "200", "--raw"],
        vec!["inspect", "--tensors"],
        vec!["completions", "bash"],
        vec!["--help"],
        vec!["demo"],
    ];
    for args in cases {
        let mut child = spawn(&args, Stdio::piped(), Stdio::piped());
        let mut line = String::new();
        BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "{args:?}");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("error") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

/// `/dev/full` takes nothing: a disk that is full.
fn full() -> Option<Stdio> {
    let full = Path::new("/dev/full");
    if !full.exists() {
        crate::support::say("SKIPPED bad_input: there is no /dev/full here");
        return None;
    }
    Some(fs::OpenOptions::new().write(true).open(full).unwrap().into())
}

#[test]
fn a_full_disk_below_stdout() {
    let cases: [&[&str]; 6] = [
        &["embed", "x"],
        &["generate", "--prompt", "x", "--max-tokens", "3"],
        &["similarity", "x", "y"],
        &["inspect"],
        &["devices"],
        &["completions", "bash"],
    ];
    for args in cases {
        let Some(stdout) = full() else { return };
        let output = spawn(args, stdout, Stdio::piped()).wait_with_output().unwrap();
        let ran = Ran {
            code: output.status.code().unwrap_or(-1),
            stdout: String::new(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        };
        ran.fails(1, &["standard output", "No space left"]);
    }
}

/// Notes that nobody can take cost nothing; nor do error lines, but for the exit code.
#[test]
fn a_full_disk_below_stderr() {
    for (args, code) in [
        (["embed", "x", "--max-length=9"], 0),
        (["embed", "x", "--max-length=1"], 1),
        (["embed", "x", "--no-such-flag"], 2),
    ] {
        let Some(stderr) = full() else { return };
        let output = spawn(&args, Stdio::piped(), stderr).wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
        assert_eq!(output.stdout.is_empty(), code != 0);
    }
}
