//! Damaged safetensors files: headers, tensors, offsets, values and shards.

use super::{Broken, HEAD, INDEX, NORM, WEIGHTS, file, header_len, offset};
use crate::cli::run;
use serde_json::{Value, json};
use std::fs;

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
