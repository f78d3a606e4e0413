//! What a config leaves out, says twice or asks for in vain: the class's own defaults, the rotary
//! embedding, the tokens that end an answer, and tokens that the model has no row for.

use crate::bad_input::Broken;
use crate::cli::{objects, run};
use crate::support::{data, mistral_tokenizer};
use gritlm::model::config::{Config, Family, RopeScaling};
use gritlm::model::tokenizer::Tokenizer;
use gritlm::{Device, Engine, Finish, Grammar, Options, Prompt, Sampling};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::Path;

/// A config with some fields set, and those that are `None` taken out.
fn config(model: &str, fields: &[(&str, Option<Value>)]) -> Result<Config, String> {
    let text = fs::read(data(model).join("config.json")).unwrap();
    let mut json: Map<String, Value> = serde_json::from_slice(&text).unwrap();
    for (field, value) in fields {
        match value {
            Some(value) => _ = json.insert((*field).into(), value.clone()),
            None => _ = json.remove(*field),
        }
    }
    let text = serde_json::to_vec(&json).unwrap();
    Config::parse(&text, Path::new("config.json")).map_err(|e| e.to_string())
}

/// It is refused in one line that says all of this.
#[track_caller]
fn refused(fields: &[(&str, Option<Value>)], parts: &[&str]) {
    let error = config("mistral-odd", fields).unwrap_err();
    assert!(!error.contains('\n'), "{error}");
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in: {error}");
    }
}

const PLACES: [&str; 2] = ["rope_parameters", "rope_scaling"];

#[test]
fn rotary_scaling_of_other_kinds_is_refused_by_name() {
    let kinds = ["dynamic", "yarn", "longrope", "proportional", "mrope", "new"];
    for place in PLACES {
        for key in ["rope_type", "type"] {
            for kind in kinds {
                let scaling = json!({ key: kind, "factor": 2.0, "rope_theta": 10000.0 });
                refused(&[(place, Some(scaling))], &[place, kind, "no scaling"]);
            }
            for kind in [json!(null), json!(7), json!("")] {
                let found = format!("found {kind}");
                refused(&[(place, Some(json!({ key: kind })))], &[place, &found]);
            }
        }
        for (parameters, found) in [
            (json!({ "rope_type": "default", "type": "linear" }), "linear"),
            (json!({ "rope_type": "default", "factor": 2.0 }), "factor"),
            (json!({ "type": "default", "mrope_section": [16, 24, 24] }), "mrope_section"),
            (json!({ "full_attention": { "rope_type": "default" } }), "full_attention"),
            (json!({ "rope_type": "default", "partial_rotary_factor": 0.5 }), "0.5"),
            (json!("linear"), "linear"),
            (json!(["linear", 2.0]), "linear"),
        ] {
            refused(&[(place, Some(parameters))], &[place, found]);
        }
    }
    refused(&[("partial_rotary_factor", Some(json!(0.5)))], &["partial_rotary_factor", "0.5"]);
    // Through the program: no vector comes of it.
    let scaled = Broken::odd();
    scaled.config("rope_parameters", Some(json!({ "rope_type": "yarn", "factor": 2.0 })));
    scaled.fails(&["config.json", "rope_parameters", "yarn"]);
}

/// Llama 3.2's scaling.
fn llama3() -> Value {
    json!({ "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192 })
}

#[test]
fn rotary_scaling_is_read_in_every_place() {
    let llama = RopeScaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192 };
    let linear = json!({ "type": "linear", "factor": 2.5 });
    for (parameters, scaling) in
        [(llama3(), llama), (linear.clone(), RopeScaling::Linear { factor: 2.5 })]
    {
        for model in ["mistral-odd", "mixtral-tiny"] {
            for place in PLACES {
                let found = config(model, &[(place, Some(parameters.clone()))]).unwrap();
                assert_eq!(found.rope_scaling.as_ref(), Some(&scaling));
            }
            let both = PLACES.map(|place| (place, Some(parameters.clone())));
            assert_eq!(config(model, &both).unwrap().rope_scaling, Some(scaling.clone()));
        }
        let plain = (PLACES[0], Some(json!({ "rope_type": "default", "rope_theta": 10000.0 })));
        refused(&[plain, (PLACES[1], Some(parameters))], &[PLACES[1], "another scaling"]);
    }
    let with = |key: &str, value: Value| {
        let mut parameters = llama3();
        parameters[key] = value;
        [(PLACES[1], Some(parameters))]
    };
    for key in ["factor", "low_freq_factor", "high_freq_factor"] {
        for wrong in [json!(0), json!(-1), json!("8"), json!(null), json!(1e300)] {
            refused(&with(key, wrong.clone()), &[PLACES[1], key, &format!("found {wrong}")]);
        }
    }
    refused(&with("factor", json!(0.5)), &["from 1 to 1000000", "found 0.5"]);
    refused(&with("low_freq_factor", json!(4.0)), &["above low_freq_factor 4", "found 4"]);
    for wrong in [json!(0), json!(0.5), json!(1_u64 << 40), json!(null)] {
        refused(&with("original_max_position_embeddings", wrong), &["original_max_position"]);
    }
    refused(&with("beta_fast", json!(32)), &["only rope_type", "beta_fast: 32"]);
    for key in ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
    {
        let mut parameters = llama3();
        parameters.as_object_mut().unwrap().remove(key);
        refused(&[(PLACES[1], Some(parameters))], &[key, "found nothing"]);
    }
    refused(&[(PLACES[0], Some(json!({ "type": "linear" })))], &["factor", "found nothing"]);
}

#[test]
fn scaled_frequencies() {
    let frequencies = |scaling: Value| {
        let fields = [("rope_theta", Some(json!(500_000.0))), ("rope_scaling", Some(scaling))];
        config("mistral-odd", &fields).unwrap().rope_frequencies()
    };
    let plain = frequencies(Value::Null);
    let linear = frequencies(json!({ "type": "linear", "factor": 4.0 }));
    let quarter: Vec<f32> = plain.iter().map(|f| f / 4.0).collect();
    assert_eq!(linear, quarter);
    // Turns in the 8192 tokens: more than 4 stay, fewer than 1 are divided.
    let (mut kept, mut mixed, mut divided) = (0, 0, 0);
    for (d, found) in frequencies(llama3()).into_iter().enumerate() {
        let frequency = 500_000_f64.powf(-2.0 * d as f64 / 128.0);
        let turns = 8192.0 * frequency / std::f64::consts::TAU;
        let share = ((turns - 1.0) / 3.0).clamp(0.0, 1.0);
        let expected = frequency * (share + (1.0 - share) / 32.0);
        let error = (f64::from(found) / expected - 1.0).abs();
        assert!(error < 2e-6, "{d}: {found}, expected {expected}");
        match share {
            1.0 => kept += 1,
            0.0 => divided += 1,
            _ => mixed += 1,
        }
    }
    assert_eq!((kept, mixed, divided), (29, 6, 29));
}

/// `mistral-odd` as a Llama: the same weights, and the same computation.
fn llama(fields: &[(&str, Option<Value>)]) -> Result<Config, String> {
    let own = [("model_type", Some(json!("llama")))];
    config("mistral-odd", &[&own, fields].concat())
}

#[test]
fn llamas_differ_in_what_they_leave_out() {
    let whole = llama(&[]).unwrap();
    let mistral = config("mistral-odd", &[]).unwrap();
    assert_eq!(whole, Config { family: Family::Llama, ..mistral });
    let absent = |field| llama(&[(field, None)]).unwrap();
    assert_eq!(absent("num_key_value_heads").kv_heads, whole.heads);
    assert_eq!(absent("sliding_window").window, None);
    assert_eq!(absent("max_position_embeddings").max_positions, 2048);
    assert_eq!(absent("rms_norm_eps").norm_eps, 1e-6);
    assert_eq!(absent("rope_theta").rope_theta, 1e4);
    assert_eq!((absent("bos_token_id").bos, absent("eos_token_id").eos), (1, vec![2]));
    let heads = [("head_dim", None), ("num_attention_heads", Some(json!(5)))];
    let heads = [&heads[..], &[("num_key_value_heads", None)]].concat();
    assert_eq!(llama(&heads).unwrap().head_dim, 160 / 5);
    // Its class has none, whatever the file says.
    assert_eq!(llama(&[("sliding_window", Some(json!(64)))]).unwrap().window, None);
    for field in ["attention_bias", "mlp_bias"] {
        assert_eq!(llama(&[(field, Some(json!(false)))]).as_ref(), Ok(&whole));
        let error = llama(&[(field, Some(json!(true)))]).unwrap_err();
        assert!(error.contains(field) && error.contains("found true"), "{error}");
    }
    for field in ["bos_token_id", "eos_token_id"] {
        let error = llama(&[(field, Some(Value::Null))]).unwrap_err();
        assert!(error.contains(field) && error.contains("found nothing"), "{error}");
    }
    refused(&[("model_type", Some(json!("qwen2")))], &["\"llama\", \"mistral\" or", "qwen2"]);
    // The fingerprints of stores, which hash this text, stay those of before there were Llamas.
    let mistral = format!("{:?}", config("mistral-odd", &[]).unwrap());
    assert!(mistral.starts_with("Config { dim: 160, layers: 2, heads: 4, kv_heads: 1, "));
    assert!(mistral.ends_with("experts: None, instruction_apart: false }"), "{mistral}");
    assert!(format!("{whole:?}").ends_with("family: Llama }"));

    let folder = Broken::odd();
    folder.config("model_type", Some(json!("llama")));
    assert_eq!(answer(&folder), answer(&Broken::odd()));
    let path = folder.folder.path().to_str().unwrap();
    assert!(run(&["inspect", "--model", path], "").ok().contains(": Llama, "));
}

#[test]
fn the_plain_rotary_embedding_may_be_said() {
    let plain = config("mistral-odd", &[]).unwrap();
    for place in PLACES {
        for parameters in [
            json!({ "rope_type": "default" }),
            json!({ "type": "default" }),
            json!({ "rope_type": "default", "type": "default" }),
            json!({ "rope_type": "default", "rope_theta": 10000.0 }),
            json!({ "rope_type": "default", "partial_rotary_factor": 1.0 }),
            json!({ "rope_theta": 10000 }),
            json!({}),
            json!(null),
        ] {
            let found = config("mistral-odd", &[(place, Some(parameters.clone()))]);
            assert_eq!(found.as_ref(), Ok(&plain), "{place}: {parameters}");
        }
    }
    let whole = [("partial_rotary_factor", Some(json!(1.0)))];
    assert_eq!(config("mistral-odd", &whole), Ok(plain));
}

#[test]
fn rotary_bases_are_heard_in_every_place_and_agree() {
    for place in PLACES {
        for theta in [10000.0, 500_000.0, 1e6] {
            let inside = (place, Some(json!({ "rope_type": "default", "rope_theta": theta })));
            let alone = [("rope_theta", None), inside.clone()];
            assert_eq!(config("mistral-odd", &alone).unwrap().rope_theta, theta as f32);
            let twice = [("rope_theta", Some(json!(theta))), inside.clone()];
            assert_eq!(config("mistral-odd", &twice).unwrap().rope_theta, theta as f32);
            let nulled = [("rope_theta", Some(Value::Null)), inside.clone()];
            assert_eq!(config("mistral-odd", &nulled).unwrap().rope_theta, theta as f32);
            let other = [("rope_theta", Some(json!(2000.0))), inside];
            refused(&other, &["rope_theta", "2000", &theta.to_string(), place]);
        }
        for wrong in [json!(null), json!(0), json!(-1), json!("big"), json!(1e300)] {
            let inside = json!({ "rope_type": "default", "rope_theta": wrong });
            refused(&[(place, Some(inside))], &[place, &format!("found {wrong}")]);
        }
    }
    let (one, other) = (json!({ "rope_theta": 1e5 }), json!({ "rope_theta": 1e6 }));
    let both = [("rope_theta", None), (PLACES[0], Some(one)), (PLACES[1], Some(other))];
    refused(&both, &["rope_theta", "100000", "1000000"]);
}

#[test]
fn what_is_left_out_is_the_classes_own() {
    let absent = |model, field| config(model, &[(field, None)]);
    assert_eq!(absent("mistral-odd", "sliding_window").unwrap().window, Some(4096));
    assert_eq!(absent("mistral-tiny", "sliding_window").unwrap().window, Some(4096));
    assert_eq!(absent("mixtral-tiny", "sliding_window").unwrap().window, None);
    assert_eq!(absent("mistral-odd", "rope_theta").unwrap().rope_theta, 1e4);
    assert_eq!(absent("mixtral-tiny", "rope_theta").unwrap().rope_theta, 1e6);
    let parameters = ("rope_parameters", Some(json!({ "rope_type": "default" })));
    let found = config("mixtral-tiny", &[("rope_theta", None), parameters]).unwrap();
    assert_eq!(found.rope_theta, 1e6);

    // None, where the file says so.
    for model in ["mistral-odd", "mistral-tiny", "mixtral-tiny"] {
        let none = config(model, &[("sliding_window", Some(Value::Null))]).unwrap();
        assert_eq!(none.window, None);
        let heads = [("num_key_value_heads", Some(Value::Null))];
        let found = config(model, &heads).unwrap();
        assert_eq!(found.kv_heads, found.heads);
    }
    refused(&[("rope_theta", Some(Value::Null))], &["rope_theta", "found null"]);

    // Eight heads of keys and values, however many heads there are.
    for model in ["mistral-odd", "mixtral-tiny"] {
        for heads in [8, 16, 32] {
            let fields =
                [("num_key_value_heads", None), ("num_attention_heads", Some(json!(heads)))];
            assert_eq!(config(model, &fields).unwrap().kv_heads, 8, "{model}, {heads} heads");
        }
        let fields = [("num_key_value_heads", None), ("num_attention_heads", Some(json!(4)))];
        let error = config(model, &fields).unwrap_err();
        assert!(error.contains("num_key_value_heads") && error.contains("found 8"), "{error}");
    }
}

/// A greedy answer of 12 tokens, or until it ends, from a folder.
fn answer(model: &Broken) -> (Vec<u64>, String) {
    let folder = model.folder.path().to_str().unwrap();
    let args = ["generate", "--model", folder, "--device", "cpu", "--format", "json"];
    let args = [&args[..], &["--max-tokens", "12", "--prompt", "Who?"]].concat();
    let answer = objects(&run(&args, "").ok()).remove(0);
    let tokens = answer["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    (tokens.collect(), answer["finish_reason"].as_str().unwrap().into())
}

#[test]
fn an_answer_ends_where_the_generation_config_says() {
    let (tokens, reason) = answer(&Broken::odd());
    assert_eq!((tokens.len(), reason.as_str()), (12, "length"));
    let end = tokens[4];
    assert!(!tokens[..4].contains(&end), "{tokens:?}");
    let ended = (tokens[..5].to_vec(), "stop".to_string());
    for eos in [json!(end), json!([end]), json!([2, end]), json!([end, 2])] {
        let model = Broken::odd();
        model.write("generation_config.json", json!({ "eos_token_id": eos }).to_string());
        assert_eq!(answer(&model), ended, "{eos}");
        let config = Config::open(&model.path("config.json")).unwrap();
        // The config's is the one between turns.
        assert_eq!(config.eos, [2, end as u32], "{eos}");
        // It may be the only one that has it.
        for nothing in [None, Some(Value::Null)] {
            model.config("eos_token_id", nothing);
            assert_eq!(answer(&model), ended, "{eos}");
        }
    }
    // The config's own, where the other says nothing.
    for text in ["{}", "{\"eos_token_id\": null, \"temperature\": 0.6}", "{\"eos_token_id\": []}"] {
        let model = Broken::odd();
        model.write("generation_config.json", text);
        assert_eq!(Config::open(&model.path("config.json")).unwrap().eos, [2], "{text}");
    }
    for (text, parts) in [
        ("", &["not JSON"][..]),
        ("[]", &["not JSON"]),
        ("{\"eos_token_id\": \"</s>\"}", &["eos_token_id", "found \"</s>\""]),
        ("{\"eos_token_id\": -1}", &["eos_token_id", "found -1"]),
        ("{\"eos_token_id\": [2, 389]}", &["eos_token_id", "below vocab_size 389", "found 389"]),
    ] {
        let model = Broken::odd();
        model.write("generation_config.json", text);
        model.fails(&[&["generation_config.json"], parts].concat());
    }
    let nowhere = Broken::odd();
    nowhere.config("eos_token_id", None).write("generation_config.json", "{}");
    nowhere.fails(&["config.json", "eos_token_id", "found nothing"]);
}

/// `mistral-odd`'s tokenizer, with more added tokens and more in its vocabulary.
fn tokenizer(added: &[(&str, u64, bool)], own: &[(&str, u64)], merges: &[[&str; 2]]) -> Vec<u8> {
    let text = fs::read(data("mistral-odd/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    for &(content, id, special) in added {
        json["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false
        }));
    }
    for &(token, id) in own {
        json["model"]["vocab"][token] = json!(id);
    }
    json["model"]["merges"].as_array_mut().unwrap().extend(merges.iter().map(|pair| json!(pair)));
    json.to_string().into_bytes()
}

#[test]
fn tokens_that_nobody_can_produce_do_not_matter() {
    let odd = config("mistral-odd", &[]).unwrap();
    let file = Path::new("tokenizer.json");
    let whole = Tokenizer::open(&data("mistral-odd/tokenizer.json"), &odd).unwrap();
    let pad = ("<pad>", 389, true);
    for (added, own) in [
        (&[pad][..], &[][..]),
        (&[("<|im_start|>", 389, true), ("<|im_end|>", 390, false)], &[]),
        (&[pad, ("[PAD]", 390, true), ("<extra>", 391, false)], &[]),
        // In the vocabulary, too; or there alone, where no merge makes it.
        (&[pad], &[("<pad>", 389)]),
        (&[], &[("<pad>", 389), ("of no merge", 390)]),
        (&[], &[("far", 1 << 20)]),
    ] {
        let text = tokenizer(added, own, &[]);
        let found = Tokenizer::parse(&text, file, &odd).unwrap();
        let spelled = added.iter().map(|t| t.0).chain(own.iter().map(|t| t.0));
        for token in spelled {
            // Spelled in a text it is text, as where the tokenizer does not have it.
            for text in [token.to_string(), format!("a {token}b{token}{token} "), "<s>".into()] {
                assert_eq!(found.encode(&text).unwrap(), whole.encode(&text).unwrap());
                assert_eq!(found.encode_turn(&text).unwrap(), whole.encode_turn(&text).unwrap());
                assert_eq!(found.ends(&text).unwrap(), whole.ends(&text).unwrap());
            }
            assert_eq!(found.id(token), None);
        }
        assert_eq!((found.vocab(), found.longest()), (whole.vocab(), whole.longest()));
        assert_eq!(found.token_bytes().unwrap(), whole.token_bytes().unwrap());
    }
    // What a text can ask for stops loading, as another model's tokenizer does.
    for (own, merges) in
        [(&[("é", 389)][..], &[][..]), (&[("<0x61>", 389)], &[]), (&[("xy", 389)], &[["x", "y"]])]
    {
        let text = String::from_utf8(tokenizer(&[pad], own, merges)).unwrap();
        let text = text.replace("<unused100>", "x").replace("<unused101>", "y").into_bytes();
        let error = Tokenizer::parse(&text, file, &odd).err().unwrap().to_string();
        assert!(error.contains("expected an id below vocab_size 389"), "{own:?}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }

    // Mistral's, with the padding token that many fine-tuned models have.
    let mistral = Config { vocab: 32000, ..odd };
    let text = mistral_tokenizer();
    let whole = Tokenizer::parse(&text, file, &mistral).unwrap();
    let mut json: Value = serde_json::from_slice(&text).unwrap();
    json["added_tokens"].as_array_mut().unwrap().push(json!({
        "id": 32000, "content": "<pad>", "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false
    }));
    let padded = Tokenizer::parse(json.to_string().as_bytes(), file, &mistral).unwrap();
    for text in ["<pad>", "hello <pad> world", "no padding"] {
        assert_eq!(padded.encode(text).unwrap(), whole.encode(text).unwrap());
    }
}

#[test]
fn a_model_with_a_surplus_padding_token_does_everything() {
    let folder = Broken::odd();
    folder.write("tokenizer.json", tokenizer(&[("<pad>", 389, true)], &[], &[]));
    let options = Options::default().device(Device::Cpu);
    let path = folder.folder.path().to_str().unwrap();
    let (engine, whole) = (
        Engine::open(path, &options).unwrap(),
        Engine::open(data("mistral-odd").to_str().unwrap(), &options).unwrap(),
    );
    let texts = ["<pad>", "a<pad>", "b"];
    let how = gritlm::Embed::default();
    assert_eq!(engine.embed(&texts, &how).unwrap(), whole.embed(&texts, &how).unwrap());
    let say = |engine: &Engine| {
        let grammar = Some(Grammar::json_schema(engine, &json!({ "type": "boolean" })).unwrap());
        let how = Sampling::greedy().grammar(grammar);
        let answer = engine.generate(&Prompt::user("Is it <pad>?"), &how).unwrap();
        answer.map(Result::unwrap).map(|p| (p.text, p.finish)).collect::<Vec<_>>()
    };
    let said = say(&engine);
    assert_eq!(said, say(&whole));
    assert_eq!(said.last().unwrap().1, Some(Finish::Stop));
}
