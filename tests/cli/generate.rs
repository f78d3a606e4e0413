//! `gritlm generate` and `gritlm chat`: their objects, ends and flags.

use super::{expected, keys, model, objects, run, vectors};
use gritlm::{Embed, Engine, Options, Prompt, Sampling};
use serde_json::Value;

fn answer(args: &[&str]) -> Value {
    let stdout = run(&[&["generate", "--format", "json"], args].concat(), "").ok();
    let [answer] = &objects(&stdout)[..] else { panic!("expected one line, found {stdout}") };
    answer.clone()
}

#[test]
fn generate_prints_the_object_of_the_contract() {
    let prompt = "Describe the package pdfgrep.";
    let engine = Engine::open("demo", &Options::default()).unwrap();
    let how = Sampling::greedy().max_tokens(12).logprobs(2);
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
    let how = Sampling::greedy().max_tokens(20);
    let pieces: Vec<String> = engine
        .generate(&Prompt::user(prompt), &how)
        .unwrap()
        .map(|piece| piece.unwrap().text)
        .collect();
    let whole = pieces.concat();
    let mut spanning = 0;
    for pair in pieces.windows(2).filter(|pair| pair.iter().all(|piece| !piece.is_empty())) {
        let stop = pair[0].chars().last().unwrap().to_string() + &pair[1][..1];
        let stop_is = format!("--stop={stop}");
        let args = ["--prompt", prompt, "--max-tokens", "20", "--stop", "no such", &stop_is];
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
    let how = Sampling::greedy().max_tokens(8);
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
