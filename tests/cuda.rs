//! The CUDA backend: the case table, the reference models, replayed steps, errors. On the emulator,
//! which is built here (`emulator.rs`); on a machine with an NVIDIA GPU on that.

use crate::emulator::{self, A100, Emulator, H200, Model, SMALL, SMALL_HOPPER};
use crate::ops::check;
use crate::support::{Reference, close, say};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::measure::Created;
use gritlm::model::ops::{LinearAdd, Mask, Ops};
use gritlm::model::reference::relative_error;
use gritlm::model::weights::Dtype;
use gritlm::{Device, Embed, Engine, Options as EngineOptions, Prompt, Sampling, Stage};
use gritlm_bench::case::Op;
use gritlm_bench::laboratory::cuda::is_product;
use gritlm_kernels::tune::Form;
use gritlm_kernels::{Cuda, Options};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Largest relative error of an op whose operands, or whose result, are bf16.
const BF16: f64 = 8e-3;

/// Orders of threads and blocks that the emulator tries.
const SEEDS: [u64; 3] = [1, 2, 3];

/// Where the backend runs here.
struct Place {
    /// None on a GPU.
    emulator: Option<&'static Emulator>,
    /// What the emulator is.
    model: Model,
}

impl Place {
    /// None where there is neither a GPU, with its compiler, nor a compiler for the emulator: the test
    /// is then skipped by name, and in CI fails.
    fn find(test: &str) -> Option<Self> {
        if emulator::has_gpu() {
            let nvrtc = gritlm_kernels::compile::Nvrtc::open();
            if let Err(problem) = &nvrtc {
                say(&format!("SKIPPED {test}: {problem}"));
            }
            return nvrtc.is_ok().then_some(Self { emulator: None, model: SMALL });
        }
        emulator::install(test).map(|emulator| Self { emulator: Some(emulator), model: SMALL })
    }

    fn seeds(&self) -> &[u64] {
        if self.emulator.is_some() { &SEEDS } else { &SEEDS[..1] }
    }

    fn seed(&self, seed: u64) {
        if let Some(emulator) = self.emulator {
            emulator.seed(seed);
        }
    }

    /// From here on the emulator is this device, with the forms and splits that it chooses.
    fn be(&mut self, model: Model) {
        self.model = model;
        if let Some(emulator) = self.emulator {
            emulator.be(model);
        }
    }

    fn kernels(&self) -> Option<PathBuf> {
        self.emulator.map(|emulator| emulator.kernels(self.model))
    }

    fn open(&self, form: Option<Form>) -> Cuda {
        let kernels = self.kernels();
        Cuda::open(&Options::default().kernels(kernels).form(form)).unwrap()
    }

    fn engine_options(&self) -> EngineOptions {
        EngineOptions::default().device(Device::Cuda(0)).kernels(self.kernels())
    }

    fn reference(&self, name: &str) -> Reference {
        Reference::open_with(name, self.engine_options())
    }
}

impl Drop for Place {
    /// The next test of this thread chooses its device as on a machine without the emulator.
    fn drop(&mut self) {
        if let Some(emulator) = self.emulator {
            emulator.show(false);
        }
    }
}

#[test]
fn every_case_on_cuda() {
    let Some(mut place) = Place::find("cuda::every_case_on_cuda") else { return };
    for (seed, model) in place.seeds().to_vec().into_iter().zip([SMALL, A100, H200]) {
        place.seed(seed);
        place.be(model);
        say(&format!("cuda: thread order of seed {seed}, {model:?}"));
        check(&place.open(None), BF16, |case| {
            case.bf16 = true;
            true
        });
    }
    place.be(SMALL_HOPPER);
    check(&place.open(None), BF16, |case| {
        case.bf16 = true;
        matches!(case.op, Op::Attention(..))
    });
}

/// The chooser takes one form for each shape; here every form computes every product that it may.
#[test]
fn every_form_of_a_product() {
    let Some(mut place) = Place::find("cuda::every_form_of_a_product") else { return };
    for form in Form::all() {
        place.be(if form.tile.is_hopper() { H200 } else { SMALL });
        say(&format!("cuda: products as {form}"));
        check(&place.open(Some(form)), BF16, |case| {
            case.bf16 = true;
            is_product(case)
        });
    }
}

/// Hidden states and embeddings are nearer to the f32 truth than Hugging Face's own in bf16, whose
/// error the references hold.
#[test]
fn closer_than_hugging_face_in_bf16() {
    let Some(place) = Place::find("cuda::closer_than_hugging_face_in_bf16") else { return };
    for (&seed, model) in SEEDS.iter().zip(["mistral-tiny", "mistral-odd", "mixtral-tiny"]) {
        place.seed(seed);
        let reference = place.reference(model);
        let columns = reference.engine.config().dim;
        let window = reference.engine.config().window.map(|w| w as u32);
        let masks = [
            ("causal", Mask::Causal { window: None }),
            ("causal_window", Mask::Causal { window }),
            ("bidirectional", Mask::Bidirectional { window: None }),
            ("bidirectional_window", Mask::Bidirectional { window }),
        ];
        for (name, mask) in masks {
            if !reference.has(&format!("hf_bf16_error.{name}.hidden")) {
                continue;
            }
            let bound = f64::from(reference.f32(&format!("hf_bf16_error.{name}.hidden"))[0]);
            let mut routers = Vec::new();
            let hidden = run(&reference, mask, &Want::Hidden, &mut routers);
            let expected = reference.unpadded(&format!("{name}.hidden"), columns);
            let found = relative_error(&hidden, &expected);
            say(&format!("cuda: {model} {name}: error {found:.2e}, Hugging Face's {bound:.2e}"));
            let rows = hidden.len() / columns;
            let other = rows_of_other_experts(&reference, name, &routers, rows);
            let kept = |values: &[f32]| -> Vec<f32> {
                let rows = values.chunks(columns).enumerate();
                rows.filter(|(r, _)| !other.contains(r)).flat_map(|(_, v)| v).copied().collect()
            };
            let (hidden, expected) = (kept(&hidden), kept(&expected));
            close(&format!("{model} {name}.hidden"), &hidden, &expected, bound);
        }
        let name = "embedding.mean.normalized";
        let bound = f64::from(reference.f32(&format!("hf_bf16_error.{name}"))[0]);
        let skips = reference.ids("instruction_lengths");
        let texts = reference.texts();
        let mut caches: Vec<_> = texts.iter().map(|_| reference.engine.cache()).collect();
        let mut sequences: Vec<Sequence<'_>> = (texts.iter().zip(&mut caches).zip(skips))
            .map(|((tokens, cache), skip)| Sequence {
                tokens,
                cache,
                mask: Mask::Bidirectional { window: None },
                want: Want::Embedding {
                    skip: skip as usize,
                    pooling: gritlm::Pooling::Mean,
                    normalize: true,
                },
            })
            .collect();
        let vectors = values(reference.engine.run(&mut sequences).unwrap());
        close(&format!("{model} {name}"), &vectors, &reference.f32(name), bound);
    }
}

/// Rows that go through other experts than in f32 in some layer. It begins with a row whose second
/// and third expert are nearer to each other than bf16 tells apart; rows that see it may follow.
fn rows_of_other_experts(
    reference: &Reference,
    mask: &str,
    routers: &[f32],
    rows: usize,
) -> BTreeSet<usize> {
    let Some(experts) = reference.engine.config().experts else { return BTreeSet::new() };
    let truth = reference.unpadded(&format!("{mask}.router_logits"), experts.count);
    let order = |logits: &[f32]| {
        let mut order: Vec<usize> = (0..experts.count).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order
    };
    let (mut other, mut first) = (BTreeSet::new(), None);
    let pairs = truth.chunks(experts.count).zip(routers.chunks(experts.count));
    for (n, (truth, found)) in pairs.enumerate() {
        let [order, found] = [truth, found].map(order);
        let (chosen, rest) = order.split_at(experts.top_k);
        if chosen.iter().any(|e| !found[..experts.top_k].contains(e)) {
            other.insert(n % rows);
            first.get_or_insert(truth[chosen[experts.top_k - 1]] - truth[rest[0]]);
        }
    }
    if let Some(margin) = first {
        say(&format!("cuda: {} of {rows} rows choose otherwise, first by {margin}", other.len()));
        assert!(margin < 0.02 && other.len() * 20 < rows);
    }
    other
}

/// The reference's texts as one packed batch.
fn run(reference: &Reference, mask: Mask, want: &Want, routers: &mut Vec<f32>) -> Vec<f32> {
    let texts = reference.texts();
    let mut caches: Vec<_> = texts.iter().map(|_| reference.engine.cache()).collect();
    let mut sequences: Vec<Sequence<'_>> = texts
        .iter()
        .zip(&mut caches)
        .map(|(tokens, cache)| Sequence { tokens, cache, mask, want: want.clone() })
        .collect();
    let mut probe = |stage, values: Vec<f32>| {
        if let Stage::RouterLogits(_) = stage {
            routers.extend(values);
        }
    };
    values(reference.engine.run_probed(&mut sequences, &mut probe).unwrap())
}

fn values(outputs: Vec<Output>) -> Vec<f32> {
    let values = outputs.into_iter().flat_map(|output| match output {
        Output::Hidden(values) | Output::Logits(values) | Output::Embedding(values) => values,
        other => panic!("expected numbers, found {other:?}"),
    });
    values.collect()
}

/// Greedy tokens of the references: those of the f32 truth, but where two tokens' logits are nearer
/// to each other than bf16 can tell (then the test says so and follows the reference no further).
#[test]
fn greedy_tokens_and_document_caches() {
    let Some(place) = Place::find("cuda::greedy_tokens_and_document_caches") else { return };
    for model in ["mistral-tiny", "mistral-odd", "mixtral-tiny"] {
        let reference = place.reference(model);
        let engine = &reference.engine;
        let document = reference.ids("doc_cache.document");
        let mut read = engine.cache();
        let (mask, want) = (Mask::Bidirectional { window: None }, Want::Nothing);
        engine.run(&mut [Sequence { tokens: &document, cache: &mut read, mask, want }]).unwrap();
        let stored = engine.import(&engine.export(&read).unwrap()).unwrap();
        for (name, cache) in [("generate", engine.cache()), ("doc_cache", stored)] {
            let expected = reference.ids(&format!("{name}.tokens"));
            let how = Sampling::greedy().max_tokens(expected.len()).ignore_eos(true).logprobs(2);
            let prompt = Prompt::Tokens(reference.ids(&format!("{name}.prompt")));
            let pieces = engine.generate_after(cache, &prompt, &how).unwrap().map(Result::unwrap);
            let mut same = 0;
            for (piece, &token) in pieces.zip(&expected) {
                let [(_, first), (_, second)] = piece.token.top[..] else {
                    panic!("two likeliest")
                };
                if piece.token.token != token {
                    let margin = first - second;
                    assert!(margin < 0.05, "{model} {name}: token {same}, margin {margin}");
                    break;
                }
                same += 1;
            }
            say(&format!("cuda: {model} {name}: {same} of {} greedy tokens", expected.len()));
            assert!(same >= 8, "{model} {name}: {same} of {}", expected.len());
        }
    }
}

/// Decode steps of one shape are launched one by one twice at most, then replayed as a graph: with
/// the same tokens, and without a new buffer.
#[test]
fn steps_are_replayed() {
    let Some(place) = Place::find("cuda::steps_are_replayed") else { return };
    let how = Sampling::greedy().max_tokens(24).ignore_eos(true);
    let tokens = |engine: &Engine| -> (Vec<u32>, Vec<Created>) {
        let pieces = engine.generate(&Prompt::raw("A walk in the"), &how).unwrap();
        pieces.map(|piece| (piece.unwrap().token.token, engine.created())).unzip()
    };
    let engine = Engine::open("demo", &place.engine_options()).unwrap();
    let (replayed, created) = tokens(&engine);
    let (half, last) = (created[12], created[23]);
    assert!(last.graphs > 0, "{last:?}");
    assert_eq!((half.buffers, half.graphs), (last.buffers, last.graphs));
    // Each step is one launch of a graph, and counts the launches in it.
    assert!(last.launches - half.launches > 11 * 8, "{half:?} {last:?}");

    let one_by_one = place.engine_options().profile(true);
    let engine = Engine::open("demo", &one_by_one).unwrap();
    let (launched, created) = tokens(&engine);
    assert_eq!(created[23].graphs, 0);
    assert_eq!(launched, replayed);
}

/// The same batch of every kind of sequence twice: the same bits.
#[test]
fn same_bits_twice() {
    let Some(place) = Place::find("cuda::same_bits_twice") else { return };
    let reference = place.reference("mixtral-tiny");
    let mut runs = Vec::new();
    for &seed in &SEEDS {
        place.seed(seed);
        let hidden =
            run(&reference, Mask::Bidirectional { window: None }, &Want::Hidden, &mut Vec::new());
        let logits =
            run(&reference, Mask::Causal { window: None }, &Want::AllLogits, &mut Vec::new());
        runs.push([hidden, logits].map(|v| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>()));
    }
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
}

/// The demo model on CUDA finds what it finds on the CPU.
#[test]
fn demo_embeddings_are_near_the_cpus() {
    let Some(place) = Place::find("cuda::demo_embeddings_are_near_the_cpus") else { return };
    let texts = ["chess interface for the desktop", "Generic Mapping Tools", "a"];
    let on = |options: EngineOptions| {
        let engine = Engine::open("demo", &options).unwrap();
        let found = engine.embed(&texts, &Embed::default()).unwrap();
        found.into_iter().flat_map(|e| e.vector).collect::<Vec<f32>>()
    };
    let cpu = EngineOptions::default().device(Device::Cpu);
    close("demo embeddings", &on(place.engine_options()), &on(cpu), BF16);
}

#[test]
fn what_does_not_fit_is_one_line() {
    let Some(place) = Place::find("cuda::what_does_not_fit_is_one_line") else { return };
    let options = place.engine_options().kv_tokens(1 << 30);
    let problem = Engine::open("demo", &options).err().unwrap().to_string();
    assert!(problem.contains("has no room for") && !problem.contains('\n'), "{problem}");
    // The device works on.
    let engine = Engine::open("demo", &place.engine_options()).unwrap();
    assert_eq!(engine.embed(&["a"], &Embed::default()).unwrap().len(), 1);

    let missing = Options::default().ordinal(99);
    let problem = Cuda::open(&missing).err().unwrap().to_string();
    assert!(problem.contains("expected a GPU number 99"), "{problem}");
}

/// Loading goes through pinned buffers of 8 MiB: a matrix of several, padded rows, other types.
#[test]
fn matrices_arrive_whole() {
    let Some(place) = Place::find("cuda::matrices_arrive_whole") else { return };
    let cuda = place.open(None);
    let (rows, cols) = (3001, 1999);
    let value = |i: usize| ((i * 7919) % 257) as f32 - 128.0;
    let values: Vec<f32> = (0..rows * cols).map(value).collect();
    for dtype in [Dtype::Bf16, Dtype::F16, Dtype::F32] {
        let bytes = gritlm_bench::case::stored_bytes(dtype, &values);
        let tensor = |first: usize, rows: usize| {
            let (from, to) = (dtype.bytes(first * cols), dtype.bytes((first + rows) * cols));
            gritlm::model::weights::Tensor::from_bytes(dtype, &[rows, cols], &bytes[from..to])
        };
        let table = cuda.matrix(&[tensor(0, 1000), tensor(1000, rows - 1000)]).unwrap();
        let tokens: Vec<u32> = (0..rows as u32).collect();
        let layout = gritlm::model::ops::Layout {
            positions: tokens.clone(),
            slots: tokens.clone(),
            spans: vec![],
            tables: vec![],
            frequencies: vec![],
            tokens,
        };
        let batch = cuda.batch(&layout).unwrap();
        let mut x = cuda.buffer(rows, cols).unwrap();
        cuda.embed(&batch, &table, &mut x);
        let found = pollster::block_on(cuda.read(&x, rows * cols)).unwrap();
        assert!(found == values, "{dtype}");
    }
}

/// What has been noted runs later: a matrix that is dropped meanwhile is given up after it.
#[test]
fn a_dropped_matrix_is_used_to_the_end() {
    let Some(place) = Place::find("cuda::a_dropped_matrix_is_used_to_the_end") else { return };
    let cuda = place.open(None);
    let (rows, inner, outer) = (3, 64, 96);
    let [values, a] = [96 * 64, 3 * 64].map(|n| (0..n).map(|i| (i % 7) as f32 - 3.0).collect());
    let values: Vec<f32> = values;
    let w = gritlm::model::weights::Tensor::from_f32(&[96, 64], &values);
    let multiply = |ops: &Cuda, dropped: bool| {
        let a = ops.upload(3, 64, &a).unwrap();
        let mut x = ops.upload(3, 96, &[0.0; 3 * 96]).unwrap();
        let matrix = ops.matrix(std::slice::from_ref(&w)).unwrap();
        ops.linear_add(LinearAdd { rows, inner, outer }, &a, &matrix, &mut x);
        let kept = (!dropped).then_some(matrix);
        let found = pollster::block_on(ops.read(&x, 3 * 96)).unwrap();
        drop(kept);
        found
    };
    assert_eq!(multiply(&cuda, true), multiply(&cuda, false));
}

/// The program itself: `devices` lists the GPU, `auto` takes it, it generates what the library does,
/// and `--profile` has a row for every op.
#[test]
fn the_program_finds_the_gpu() {
    let Some(place) = Place::find("cuda::the_program_finds_the_gpu") else { return };
    let run = |args: &[&str]| {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_gritlm"));
        command.args(args);
        if let Some(emulator) = place.emulator {
            command.env("GRITLM_EMULATOR", "1").env("LD_LIBRARY_PATH", emulator.library());
        }
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let listed = run(&["devices", "--format", "json"]).0;
    assert!(listed.contains(r#""device":"cuda:0""#), "{listed}");

    let folder = place.kernels().map(|k| k.to_str().unwrap().to_string());
    let kernels: Vec<&str> = folder.iter().flat_map(|f| ["--kernels", f]).collect();
    let ask = ["generate", "--prompt", "Describe the package knights.", "--max-tokens", "8"];
    let json = ["--format", "json", "--profile"];
    let (out, notes) = run(&[&ask[..], &json, &kernels].concat());
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let engine = Engine::open("demo", &place.engine_options()).unwrap();
    let how = Sampling::greedy().max_tokens(8);
    let pieces = engine.generate(&Prompt::user("Describe the package knights."), &how).unwrap();
    let tokens: Vec<u32> = pieces.map(|piece| piece.unwrap().token.token).collect();
    assert_eq!(found["tokens"], serde_json::json!(tokens));
    for part in ["cuda:0", "GB/s", "attention", "linear_add", "sample"] {
        assert!(notes.contains(part), "{notes}");
    }
}
