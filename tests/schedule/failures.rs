//! A failing pass, a panic, a lost device or weights that are no numbers fail the requests
//! concerned and no others.

use super::{FAILS, Gate, PANICS, demo, embed, end, fault, generate, greedy, ids, outcome, start};
use crate::faulty::faulty;
use crate::support::data;
use gritlm::model::ops::DeviceError;
use gritlm::schedule::{Request, Work};
use gritlm::{Device, Engine, Error, Options, Piece, Prompt};

#[test]
fn a_failure_is_its_own() {
    let engine = demo();
    let alone = engine.generate(&Prompt::Tokens(ids(1, 30)), &greedy(20)).unwrap();
    let alone: Vec<Piece> = alone.map(Result::unwrap).collect();
    let scheduler = start(faulty("demo", fault).unwrap(), 256);
    let gate = Gate::shut(&scheduler);
    let submit = |request: Request| scheduler.submit(request).unwrap();
    let good = [
        submit(Work::Generate { prompt: ids(1, 30), sampling: greedy(20), past: None }.into()),
        submit(embed([ids(2, 9), ids(3, 9)])),
    ];
    let bad = [
        submit(embed([ids(4, 9), FAILS.to_vec(), ids(5, 9)])),
        submit(Work::Generate { prompt: FAILS.to_vec(), sampling: greedy(20), past: None }.into()),
        submit(embed([PANICS.to_vec()])),
    ];
    gate.open();
    let [answer, texts] = good.map(|events| outcome(events).done());
    assert_eq!((answer.0, texts.1.len()), (alone, 2));
    for (events, embeddings) in bad.into_iter().zip([1, 0, 0]) {
        let found = outcome(events);
        assert!(matches!(found.error, Some(Error::Device(DeviceError(_)))), "{:?}", found.error);
        assert_eq!(found.embeddings.len(), embeddings);
    }
    assert_eq!(end(&scheduler).failed, 3);

    // A lost device.
    let scheduler = start(faulty("demo", |_| true).unwrap(), 256);
    let events = [1, 2, 3].map(|seed| scheduler.submit(generate(seed, 20, 5)).unwrap());
    for events in events {
        assert!(matches!(outcome(events).error, Some(Error::Device(_))));
    }
    assert_eq!(end(&scheduler).failed, 3);
}

/// A model whose weights hold NaN.
#[test]
fn what_is_no_number_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(data("mistral-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end_of_weights = bytes.len();
    bytes[end_of_weights - 64..].fill(0xff);
    std::fs::write(&path, bytes).unwrap();
    let options = Options::default().device(Device::Cpu);
    let engine = Engine::open(folder.path().to_str().unwrap(), &options).unwrap();
    let scheduler = start(engine, 64);
    for request in [generate(1, 5, 5), embed([ids(1, 5)])] {
        let found = outcome(scheduler.submit(request).unwrap());
        assert!(matches!(found.error, Some(Error::NotFinite { .. })), "{found:?}");
    }
    end(&scheduler);
}
