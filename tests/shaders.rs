//! The WGSL backend: every variant is valid, its parameters are the shader's, and the adapters that
//! are here compute the case table.

use crate::formats::{tensor, weights};
use crate::support::{Reference, devices, long, say};
use gritlm::batch::{Output, Sequence, Want};
use gritlm::cache::KvSnapshot;
use gritlm::model::ops::{
    Attention, Compute, GateUp, KvShape, LinearAdd, Mask, Ops, Pooling, SampleParams,
};
use gritlm::model::weights::{Dtype, Tensor};
use gritlm::{Device, Embed, Engine, Options as EngineOptions, Prompt, Sampling};
use gritlm_bench::case::{Case, Op, Seq};
use gritlm_shaders::shader::{File, Kind, Shader, Variant, shaders, variants};
use gritlm_shaders::tune::Tiles;
use gritlm_shaders::{Adapter, Half, Options, Wgpu, adapters};
use naga::back::pipeline_constants::process_overrides;
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{AddressSpace, StorageAccess, TypeInner};
use pollster::block_on;
use std::collections::HashMap;

/// Opens every adapter that can be used.
pub(crate) fn open_all() -> Vec<Wgpu> {
    let open = |a: &Adapter| block_on(Wgpu::open(&Options::default().name(a.label()))).unwrap();
    block_on(adapters()).iter().filter(|a| a.lacks.is_none()).map(open).collect()
}

/// Says which adapters a test covered; without any, that it was skipped.
pub(crate) fn covered(test: &str, gpus: &[Wgpu]) {
    if gpus.is_empty() {
        say(&format!("SKIPPED {test}: no wgpu adapter here (Debian: mesa-vulkan-drivers)"));
    }
}

/// Says which adapters there are. Where `GRITLM_EXPECT_ADAPTERS` lists parts of labels, separated by
/// commas, each must be there: a driver that is missing is then no pass.
#[test]
fn adapters_are_listed() {
    let expected = std::env::var("GRITLM_EXPECT_ADAPTERS").unwrap_or_default();
    for part in expected.split(',').filter(|part| !part.is_empty()) {
        let found =
            block_on(adapters()).iter().any(|a| a.label().contains(part) && a.lacks.is_none());
        assert!(found, "no adapter {part:?} among {:?}", block_on(adapters()));
    }
    for a in block_on(adapters()) {
        let lacks = a.lacks.as_ref().map_or(String::new(), |l| format!(", cannot be used: {l}"));
        say(&format!("adapter: {}, {}, subgroups {:?}{lacks}", a.label(), a.driver, a.subgroups));
    }
}

pub(crate) fn parse(text: &str, name: &str) -> naga::Module {
    naga::front::wgsl::parse_str(text)
        .unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(text)))
}

pub(crate) fn validator(shader: &Shader, subgroups: bool) -> Validator {
    let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    capabilities.set(Capabilities::SUBGROUP, subgroups);
    capabilities.set(Capabilities::SHADER_FLOAT16, shader.is_f16());
    capabilities.set(Capabilities::COOPERATIVE_MATRIX, shader.is_matrix());
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator
        .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
        .subgroup_operations(naga::valid::SubgroupOperationSet::all());
    validator
}

/// naga accepts every variant, with subgroups and without, and once its constants have values.
#[test]
fn every_variant_is_valid() {
    let all = variants();
    let mut modules = HashMap::new();
    for (shader, subgroups) in shaders().into_iter().flat_map(|s| [(s, false), (s, true)]) {
        let module = parse(&shader.source(subgroups), shader.name);
        let info = validator(shader, subgroups)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{}: {e:?}", shader.name));
        modules.insert((shader.name, subgroups), (shader, module, info));
    }
    for Variant { shader, subgroups, constants } in &all {
        let (table, module, info) = &modules[&(*shader, *subgroups)];
        let constants = constants.iter().map(|(n, v)| (n.to_string(), *v)).collect();
        let entry = Some((naga::ShaderStage::Compute, "main"));
        let (fixed, _) = process_overrides(module, info, entry, &constants)
            .unwrap_or_else(|e| panic!("{shader} {constants:?}: {e:?}"));
        validator(table, *subgroups)
            .validate(&fixed)
            .unwrap_or_else(|e| panic!("{shader} {constants:?}: {e:?}"));
    }
    say(&format!("shaders: {} in {} variants", shaders().len(), all.len()));
}

/// What Rust sends is what the shader reads: the uniform's fields, offsets and size; and the kinds
/// of its bindings are those of the table.
#[test]
fn params_and_bindings_agree() {
    let layouts: HashMap<_, _> = gritlm_shaders::params().iter().map(|l| (l.name, *l)).collect();
    for shader in shaders() {
        let module = parse(&shader.source(true), shader.name);
        let mut found = vec![None; shader.bindings.len()];
        for (_, variable) in module.global_variables.iter() {
            let Some(binding) = &variable.binding else { continue };
            assert_eq!(binding.group, 0);
            found[binding.binding as usize] = Some(match variable.space {
                AddressSpace::Uniform => Kind::Params,
                AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => {
                    Kind::Write
                }
                _ => Kind::Read,
            });
            if variable.space == AddressSpace::Uniform {
                let ty = &module.types[variable.ty];
                let layout = layouts[ty.name.as_deref().unwrap()];
                let TypeInner::Struct { members, span } = &ty.inner else { panic!("{ty:?}") };
                let fields: Vec<(&str, usize)> = (members.iter())
                    .map(|m| (m.name.as_deref().unwrap(), m.offset as usize))
                    .collect();
                assert_eq!(fields, layout.fields, "{}: {}", shader.name, layout.name);
                assert_eq!(*span as usize, layout.size, "{}: {}", shader.name, layout.name);
            }
        }
        let expected: Vec<_> = shader.bindings.iter().copied().map(Some).collect();
        assert_eq!(found, expected, "{}", shader.name);
    }
}

/// The adapters as engines take them.
fn wgpu_devices() -> Vec<Device> {
    devices().into_iter().map(|(device, _)| device).filter(|d| *d != Device::Cpu).collect()
}

/// A pass with everything in it: two poolings, a drawn token after a past, logits.
fn mixed_pass(engine: &Engine) -> (Vec<Output>, Vec<KvSnapshot>) {
    let ids: Vec<u32> = (0..150).map(|i| 3 + i * 7 % 90).collect();
    let draw = SampleParams {
        seen: vec![5, 9],
        penalty: 1.2,
        temperature: 0.7,
        top_k: 40,
        top_p: 0.9,
        min_p: 0.01,
        uniform: 0.4,
        logprobs: 3,
        given: None,
    };
    let embedding = |pooling| Want::Embedding { skip: 1, pooling, normalize: true };
    let (causal, both) = (Mask::Causal { window: None }, Mask::Bidirectional { window: None });
    let parts = [
        (&ids[..], both, embedding(Pooling::Mean)),
        (&ids[..40], causal, Want::Token(draw)),
        (&ids[..7], both, embedding(Pooling::WeightedMean)),
        (&ids[..1], causal, Want::Logits),
    ];
    let mut caches: Vec<_> = parts.iter().map(|_| engine.cache()).collect();
    let mut sequences: Vec<Sequence<'_>> = (parts.iter().zip(&mut caches))
        .map(|((tokens, mask, want), cache)| Sequence {
            tokens,
            cache,
            mask: *mask,
            want: want.clone(),
        })
        .collect();
    let outputs = engine.run(&mut sequences).unwrap();
    (outputs, caches.iter().map(|c| engine.export(c).unwrap()).collect())
}

/// Matrices in buffers of a few kilobytes, so that every product, the table and the experts are
/// made of many launches: the same bits as in one piece.
#[test]
fn split_matrices_give_the_same_bits() {
    for device in wgpu_devices() {
        for model in ["mistral-odd", "mixtral-tiny"] {
            let open = |matrix_bytes| {
                let model = crate::support::data(model);
                let options =
                    EngineOptions::default().device(device.clone()).matrix_bytes(matrix_bytes);
                Engine::open(model.to_str().unwrap(), &options).unwrap()
            };
            let whole = mixed_pass(&open(None));
            assert!(mixed_pass(&open(Some(6000))) == whole, "{model} on {device}");
        }
    }
}

/// Submits and dispatches of a thousand flops, so that a pass is cut everywhere where it can be: the
/// same bits as in one submit. On one adapter, all of them in the long form.
#[test]
fn cut_passes_give_the_same_bits() {
    let usable = block_on(adapters()).into_iter().filter(|a| a.lacks.is_none());
    for adapter in usable.take(if long() { usize::MAX } else { 1 }) {
        for model in ["mistral-odd", "mixtral-tiny"] {
            let pass = |flops| {
                let options = Options::default().name(adapter.label()).submit_flops(flops);
                let gpu = block_on(Wgpu::open(&options)).unwrap();
                let model = crate::support::data(model);
                let options = EngineOptions::default();
                let engine = Engine::on(gpu, model.to_str().unwrap(), &options).unwrap();
                let before = engine.created();
                let outputs = mixed_pass(&engine);
                let after = engine.created();
                (outputs, [after.submits - before.submits, after.launches - before.launches])
            };
            let (whole, [few, launches]) = pass(None);
            let (cut, [submits, dispatches]) = pass(Some(1000));
            let name = format!("{model} on {}", adapter.label());
            assert!(submits > 5 * few, "{name}: {submits} submits, {few} whole");
            assert!(dispatches > launches, "{name}: {dispatches} dispatches, {launches} whole");
            assert!(cut == whole, "{name}");
        }
    }
}

/// Stacks whose parts have several formats, as files in Q4_K_M have them, in one piece and in buffers
/// of a few rows: q and k beside v, gates and ups that differ, plain parts among quantised ones. On
/// one adapter, all of them in the long form.
#[test]
fn stacks_of_several_formats_match() {
    let (inner, rows) = (512, 5);
    let a = weights(rows * inner, 1);
    let stacks: [&[(Dtype, usize)]; 3] = [
        &[(Dtype::Q4K, 64), (Dtype::Q4K, 17), (Dtype::Q6K, 17)],
        &[(Dtype::Q8_0, 9), (Dtype::Bf16, 3), (Dtype::Q2K, 30), (Dtype::Iq4Xs, 1), (Dtype::F32, 5)],
        &[(Dtype::Q5_0, 40), (Dtype::Q4_1, 40)],
    ];
    for stack in stacks {
        let parts: Vec<Tensor> = (2..)
            .zip(stack)
            .map(|(seed, &(dtype, rows))| tensor(dtype, rows, inner, seed))
            .collect();
        let outer: usize = stack.iter().map(|(_, rows)| rows).sum();
        let p = LinearAdd { rows: rows as u32, inner: inner as u32, outer: outer as u32 };
        let values: Vec<f32> = parts.iter().flat_map(Tensor::to_f32).collect();
        let mut expected = vec![0.0; rows * outer];
        for (i, sum) in expected.iter_mut().enumerate() {
            let (a, w) = (&a[i / outer * inner..], &values[i % outer * inner..]);
            *sum = (0..inner).map(|k| f64::from(a[k]) * f64::from(w[k])).sum::<f64>() as f32;
        }
        let usable = block_on(adapters()).into_iter().filter(|a| a.lacks.is_none());
        for adapter in usable.take(if long() { usize::MAX } else { 1 }) {
            let compute = |limit| {
                let options = Options::default().name(adapter.label()).matrix_bytes(limit);
                let gpu = block_on(Wgpu::open(&options)).unwrap();
                let w = gpu.matrix(&parts).unwrap();
                let a = gpu.upload(rows, inner, &a).unwrap();
                let mut x = gpu.upload(rows, outer, &vec![0.0; rows * outer]).unwrap();
                gpu.linear_add(p, &a, &w, &mut x);
                block_on(gpu.read(&x, rows * outer)).unwrap()
            };
            let whole = compute(None);
            let name = format!("{stack:?} on {}", adapter.label());
            crate::support::close(&name, &whole, &expected, 1e-5);
            assert!(compute(Some(6000)) == whole, "{name}");
        }
    }
}

/// GritLM-7B's embedding table and stacked matrices are larger than the 128 MiB that lavapipe binds: a
/// layer of it loads in parts and matches the CPU.
#[test]
fn matrices_above_the_binding_limit_match() {
    let table = 32000 * 4096 * 2;
    let limited =
        block_on(adapters()).into_iter().find(|a| a.lacks.is_none() && a.binding_bytes < table);
    let Some(adapter) = limited else {
        say(
            "SKIPPED shaders::matrices_above_the_binding_limit_match: no adapter binds that little",
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("7b");
    gritlm::synth::write("gritlm-7b", Some(1), 1, &model, &mut |_, _| Ok(())).unwrap();
    let outputs = [Device::Cpu, Device::Wgpu(adapter.label())].map(|device| {
        let options = EngineOptions::default().device(device).kv_tokens(256);
        let engine = Engine::open(model.to_str().unwrap(), &options).unwrap();
        // The first rows of the table, and the last.
        let (mut cache, mask) = (engine.cache(), engine.generation_mask());
        let tokens = [1, 2, 16_500, 31_998, 31_999];
        let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want: Want::Logits };
        match engine.run(&mut [sequence]).unwrap().remove(0) {
            Output::Logits(logits) => logits,
            other => panic!("expected logits, found {other:?}"),
        }
    });
    crate::support::close(&adapter.label(), &outputs[1], &outputs[0], 1e-4);
    say(&format!("a layer of gritlm-7b, matrices in parts: {}", adapter.label()));
}

/// A step like the last one makes no buffer, bind group or pipeline, and is one submit.
#[test]
fn the_steady_state_creates_nothing() {
    for device in wgpu_devices() {
        for model in ["mistral-tiny", "mixtral-tiny"] {
            let engine = Reference::open_on(model, device.clone()).engine;
            let mut cache = engine.cache();
            let draw = |uniform| SampleParams {
                seen: vec![],
                penalty: 1.0,
                temperature: 1.0,
                top_k: 0,
                top_p: 0.9,
                min_p: 0.0,
                uniform,
                logprobs: 2,
                given: None,
            };
            let mut counts = Vec::new();
            for n in 0..12u32 {
                let want = Want::Token(draw(n as f32 / 12.0));
                let (tokens, mask) = ([3 + n], engine.generation_mask());
                let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want };
                engine.run(&mut [sequence]).unwrap();
                counts.push(engine.created());
            }
            let (before, after) = (counts[3], counts[11]);
            let made = |c: gritlm::model::measure::Created| (c.buffers, c.bind_groups, c.pipelines);
            assert!(made(before).0 > 0);
            assert_eq!(made(before), made(after), "{model} on {device}");
            assert_eq!(after.submits - before.submits, 8, "{model} on {device}: submits");
        }
    }
}

/// Whatever the device refuses is one line that says what to do, and the next request works.
#[test]
fn refusals_leave_the_device_usable() {
    for gpu in open_all() {
        let name = gpu.device();
        let says = |problem: String, parts: &[&str]| {
            assert!(!problem.contains('\n'), "{name}: {problem}");
            let missing = parts.iter().find(|part| !problem.contains(**part));
            assert!(missing.is_none(), "{name}: expected {missing:?} in: {problem}");
        };
        let dtype = Dtype::F32;
        let shape = KvShape { layers: 1, pages: 1 << 20, kv_heads: 8, head_dim: 128, dtype };
        let problem = gpu.pages(shape).unwrap_err().to_string();
        says(problem, &["`kv_tokens`", "would fit"]);
        let problem = gpu.pages(KvShape { head_dim: 320, pages: 1, ..shape }).unwrap_err();
        says(problem.to_string(), &["320", "256", "`device` cpu"]);
        let problem = gpu.buffer(1 << 20, 1 << 14).unwrap_err().to_string();
        says(problem, &["`batch_tokens`"]);

        const TEXT: &str = "@compute @workgroup_size(1) fn main() { x = 1; }";
        static BROKEN: Shader = Shader::new("broken", &[File { stem: "broken", text: TEXT }], &[]);
        gpu.launch(&BROKEN, &[], &[], (1, 1));
        let problem = block_on(gpu.finish()).unwrap_err().to_string();
        says(problem, &["broken", "does not compile", "`device` cpu"]);

        // And it still computes.
        let w = gpu.matrix(&[Tensor::from_f32(&[1, 2], &[3.0, 4.0])]).unwrap();
        let a = gpu.upload(1, 2, &[10.0, 100.0]).unwrap();
        let mut x = gpu.upload(1, 1, &[7.0]).unwrap();
        gpu.linear_add(LinearAdd { rows: 1, inner: 2, outer: 1 }, &a, &w, &mut x);
        assert_eq!(block_on(gpu.read(&x, 1)).unwrap(), [437.0], "{name}");

        assert!(!gpu.is_lost());
        gpu.lose();
        gpu.linear_add(LinearAdd { rows: 1, inner: 2, outer: 1 }, &a, &w, &mut x);
        for _ in 0..2 {
            let problem = block_on(gpu.read(&x, 1)).unwrap_err().to_string();
            says(problem, &["lost", "open the model again"]);
        }
        assert!(gpu.buffer(2, 2).is_err() && gpu.upload(1, 2, &[0.0; 2]).is_err());

        // Opened again, it is another device, with the first one still there.
        assert!(gpu.is_lost());
        let again = block_on(Wgpu::open(&Options::default().name(gpu.adapter().label()))).unwrap();
        let same = again.upload(1, 2, &[10.0, 100.0]).unwrap();
        assert_eq!(block_on(again.read(&same, 2)).unwrap(), [10.0, 100.0], "{name}");
        assert!(!again.is_lost());
    }
}

#[test]
fn unknown_adapters_are_named() {
    let options = Options::default().name("no such thing");
    let problem = block_on(Wgpu::open(&options)).err().unwrap().to_string();
    assert!(!problem.contains('\n'), "{problem}");
    assert!(problem.contains("no such thing") || problem.contains("no adapter"), "{problem}");
}

/// The profile names every op of a pass, with time and work.
#[test]
fn the_profile_covers_a_step() {
    for device in wgpu_devices() {
        let options = EngineOptions::default().device(device).profile(true);
        let engine = Engine::open("demo", &options).unwrap();
        engine.embed(&["a text"], &Embed::default()).unwrap();
        let how = Sampling::greedy().max_tokens(2);
        engine.generate(&Prompt::user("a"), &how).unwrap().for_each(|piece| {
            piece.unwrap();
        });
        let profile = engine.profile();
        for op in
            ["embed", "rmsnorm", "qkv", "attention", "linear_add", "gate_up", "pool", "logits"]
        {
            let row = profile.iter().find(|row| row.op == op).unwrap_or_else(|| panic!("{op}"));
            assert!(row.launches > 0 && row.nanoseconds > 0.0 && row.bytes > 0, "{row:?}");
        }
        assert!(engine.profile().is_empty());
    }
}

/// Half precision, where the adapter has it, is within its bound and not the same as without.
#[test]
fn half_precision_is_close() {
    let mut covered = Vec::new();
    for adapter in block_on(adapters()).into_iter().filter(|a| a.lacks.is_none()) {
        let open = |f16| block_on(Wgpu::open(&Options::default().name(adapter.label()).f16(f16)));
        let offered = if adapter.f16 { Compute::F16 } else { Compute::F32 };
        assert_eq!(open(Half::IfAvailable).unwrap().compute(), offered);
        if !adapter.f16 {
            let problem = open(Half::Required).err().unwrap().to_string();
            assert!(problem.contains("`compute` f32"), "{problem}");
            continue;
        }
        for dtype in [Dtype::Bf16, Dtype::Q5_0] {
            let case = Case::new(Op::GateUp(GateUp { rows: 40, dim: 160, hidden: 208 }), dtype);
            let [whole, half] =
                [Half::Never, Half::Required].map(|f16| case.run(&open(f16).unwrap()).unwrap());
            crate::support::close(&adapter.label(), &half, &case.expected(), 2e-3);
            assert_ne!(whole, half);
        }
        covered.push(adapter.label());
    }
    say(&format!("half precision covered on: {}", covered.join("; ")));
}

/// Every tile that tuning can choose computes the same product and the same attention. On one
/// adapter: it is the compiling that takes time.
#[test]
fn every_tile_computes_the_same() {
    if let Some(adapter) = block_on(adapters()).into_iter().find(|a| a.lacks.is_none()) {
        let mut seen: Vec<Vec<f32>> = Vec::new();
        let base = Tiles::default_for(true, 0);
        // Those that differ from it in one choice.
        let differs = |t: &Tiles| {
            let product = (t.matmul, t.staged) != (base.matmul, base.staged);
            let choices = [product, t.lanes != base.lanes, t.attention != base.attention];
            choices.into_iter().filter(|d| *d).count() == 1
        };
        let fits = |t: &Tiles| t.workgroup_bytes() <= adapter.workgroup_bytes;
        for tiles in Tiles::all().into_iter().filter(|t| differs(t) && fits(t)) {
            let name = adapter.label();
            let gpu =
                block_on(Wgpu::open(&Options::default().name(name).tiles(Some(tiles)))).unwrap();
            assert_eq!(gpu.tiles(), tiles);
            let (rows, inner, outer) = (70, 256, 50);
            let values = |n: usize, seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 37 + seed * 61) % 101) as f32 / 50.0 - 1.0).collect()
            };
            let a = gpu.upload(rows, inner, &values(rows * inner, 2)).unwrap();
            let mut out = Vec::new();
            // Codes of 8 bits, and such with a high region and numbers.
            let formats: [(_, &[usize]); 3] =
                [(Dtype::F32, &[1, 3, 9, rows]), (Dtype::Q8_0, &[1]), (Dtype::Q6K, &[1, rows])];
            for (dtype, all_rows) in formats {
                let w = gpu.matrix(&[tensor(dtype, outer, inner, 1)]).unwrap();
                for &rows in all_rows {
                    let mut x = gpu.upload(rows, outer, &values(rows * outer, 3)).unwrap();
                    let (inner, outer) = (inner as u32, outer as u32);
                    let p = LinearAdd { rows: rows as u32, inner, outer };
                    gpu.linear_add(p, &a, &w, &mut x);
                    out.extend(block_on(gpu.read(&x, rows * 50)).unwrap());
                }
            }
            let mask = Mask::Causal { window: Some(60) };
            let p = Attention { heads: 4, kv_heads: 2, head_dim: 64, layer: 1 };
            let seqs = vec![Seq { past: 30, rows: 130, mask }, Seq { past: 300, rows: 1, mask }];
            out.extend(Case::new(Op::Attention(p, seqs), Dtype::F32).run(&gpu).unwrap());
            if let Some(first) = seen.first() {
                let name = format!("{tiles:?} on {}", gpu.device());
                crate::support::close(&name, &out, first, 2e-6);
            }
            seen.push(out);
        }
        assert!(seen.len() > 10);
    }
}
