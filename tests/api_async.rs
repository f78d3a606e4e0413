//! The engine for async code: what is awaited is what blocking calls return.

use crate::faulty::faulty;
use crate::support::devices;
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvCache;
use gritlm::model::ops::Mask;
use gritlm::{Engine, Options};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

/// On one thread, as in a browser: calls that come at once wait their turn, and what is awaited is
/// what blocking calls return.
#[test]
fn async_calls_take_turns_on_one_thread() {
    fn sequence<'a>(tokens: &'a [u32], cache: &'a mut KvCache) -> [Sequence<'a>; 1] {
        [Sequence { tokens, cache, mask: Mask::Causal { window: None }, want: Want::Logits }]
    }
    let mut engines = vec![faulty("demo", |_| false).unwrap()];
    for (device, _) in devices() {
        let options = Options::default().device(device);
        engines.push(pollster::block_on(Engine::open_async("demo", &options)).unwrap());
    }
    for (n, engine) in engines.into_iter().enumerate() {
        let name = engine.device();
        let prompts: [&[u32]; 2] = [&[1, 7, 8, 9], &[1, 5]];
        let mut caches = [engine.cache(), engine.cache()];
        let [first, second] = caches.each_mut();
        let (mut a, mut b) = (sequence(prompts[0], first), sequence(prompts[1], second));
        let mut outputs: [Option<Vec<Output>>; 2] = [None, None];
        {
            let mut one: Pin<&mut dyn Future<Output = _>> = pin!(engine.run_async(&mut a));
            let mut two: Pin<&mut dyn Future<Output = _>> = pin!(engine.run_async(&mut b));
            let context = &mut Context::from_waker(Waker::noop());
            let mut waited = [0; 2];
            while outputs.iter().any(Option::is_none) {
                for (i, run) in [&mut one, &mut two].into_iter().enumerate() {
                    if outputs[i].is_none() {
                        match run.as_mut().poll(context) {
                            Poll::Ready(done) => outputs[i] = Some(done.unwrap()),
                            Poll::Pending => waited[i] += 1,
                        }
                    }
                }
                assert!(waited.iter().all(|&polls| polls < 1000), "{name}: nobody goes on");
            }
            // The second call came while the first one waited for the device.
            assert!(n > 0 || waited[0] > 0 && waited[1] > waited[0], "{name}: {waited:?}");
        }
        for ((output, tokens), cache) in outputs.into_iter().zip(prompts).zip(&caches) {
            let mut again = engine.cache();
            let expected = engine.run(&mut sequence(tokens, &mut again)).unwrap();
            assert_eq!(output.unwrap(), expected, "{name}");
            let exported = pollster::block_on(engine.export_async(cache)).unwrap();
            assert_eq!(exported, engine.export(&again).unwrap(), "{name}");
        }
        let corpus = engine.corpus(2, vec![1.0, 0.0, 0.6, 0.8]).unwrap();
        let found = pollster::block_on(engine.search_in_async(&corpus, &[0.0, 1.0], 2)).unwrap();
        assert_eq!(found, engine.search_in(&corpus, &[0.0, 1.0], 2).unwrap(), "{name}");
    }
    let devices = pollster::block_on(gritlm::devices_async());
    assert_eq!(devices.len(), gritlm::devices().len());
}
