//! Damaged `config.json`, `generation_config.json` and `tokenizer.json`.

use super::Broken;
use serde_json::{Value, json};
use std::fs;

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
        ("model_type", Some(json!("qwen2")), "\"mistral\" or \"mixtral\", found qwen2"),
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
