//! peer-cubecl: how fast cubecl multiplies matrices on wgpu, for comparison with our WGSL kernels.
//!
//! A (m, k) row-major times B in f32, with B as weights lie, (n, k), and as (k, n). Every strategy
//! of cubek-matmul for matrices runs on both, `--autotune` adds the fastest of its newer routines.
//! Each is checked against a product in f64 and timed twice; those close to the fastest are timed
//! again, and a line per shape tells the fastest of them. The JSON has them all:
//!
//!     cargo run --release -- [--adapter NAME] [--autotune] [--output FILE]

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;
use cubecl::wgpu::{AutoGraphicsApi, WgpuDevice, init_setup, wgpu::PollType};
use cubecl::{CubeTuneId, Device, client::Client, future};
use cubek_matmul::kernels::plan::{MatmulCall, MatmulCallInput};
use cubek_matmul::kernels::{CubeStagedMatmulRoutineSettings, UnitRegistersMatmulRoutineSettings};
use cubek_matmul::kernels::{select::selector::MatmulTable, tensor::PlainTensor};
use cubek_matmul::multi_level::routines::batch::double_unit::DoubleUnitSelectionArgs as DoubleUnit;
use cubek_matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs as SimpleUnit;
use cubek_matmul::multi_level::{Strategy as Levels, routines::TileSizeSelection as Tile};
use cubek_matmul::{definition::MatmulElems, launch::launch_ref, tiled::Strategy as Tiled};
use cubek_matmul::{routine::BlueprintStrategy::Inferred, strategy::Strategy};
use cubek_std::{Hardware, InputBinding};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// The crates do not export their versions; these repeat the exact pins in Cargo.toml.
const VERSION: &str = "0.12.0-pre.1";
const MATMUL_VERSION: &str = "0.4.0-pre.1";

/// m, n, k: a square, and 128 rows times the matrices of a model of about a billion parameters.
const SHAPES: [[usize; 3]; 5] = [
    [1024, 1024, 1024],
    [128, 3072, 2048],
    [128, 2048, 2048],
    [128, 11264, 2048],
    [128, 2048, 5632],
];

/// Measures cubecl's matrix products on wgpu.
#[derive(Parser)]
struct Args {
    /// Part of the adapter's name; cubecl's default adapter otherwise
    #[arg(long)]
    adapter: Option<String>,
    /// Add cubek-matmul's autotune: a hundred kernels a shape, minutes each on a software GPU
    #[arg(long)]
    autotune: bool,
    /// Timed products of those close to the fastest
    #[arg(long, default_value = "10")]
    repeats: NonZeroUsize,
    /// Write the JSON here
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let device = find(args.adapter.as_deref())?;
    let setup = init_setup::<AutoGraphicsApi>(&device, Default::default());
    let adapter = setup.adapter.get_info().name;
    // cubecl's own polling thread can panic where a kernel runs for a second and leave everything
    // waiting for ever (gfx-rs/wgpu#9958, not in wgpu 30).
    thread::spawn(move || {
        while setup.device.poll(PollType::Poll).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let gpu = Gpu { client: Device::Wgpu(device.clone()).client(), device };
    let runtime = gpu.client.name();
    println!("cubecl {VERSION}, cubek-matmul {MATMUL_VERSION}, {runtime}, {adapter}");
    let rows = SHAPES.iter().map(|shape| measure(&gpu, *shape, &args));
    let report = json!({
        "peer": "cubecl", "version": VERSION, "cubek-matmul": MATMUL_VERSION, "device": "wgpu",
        "adapter": adapter, "runtime": runtime, "dtype": "f32",
        "rows": rows.collect::<Result<Vec<Value>>>()?,
    });
    let Some(path) = &args.output else { return Ok(()) };
    fs::write(path, format!("{report}\n")).with_context(|| format!("writing {}", path.display()))
}

/// The first adapter with `name` in its name, capitals aside, or the default one.
fn find(name: Option<&str>) -> Result<WgpuDevice> {
    let Some(name) = name.map(str::to_lowercase) else { return Ok(WgpuDevice::default()) };
    let named = |x: &Device| x.description().is_some_and(|x| x.name.to_lowercase().contains(&name));
    let found = Device::enumerate_all().into_iter().find(named);
    let Some(Device::Wgpu(found)) = found else { bail!("no adapter has {name:?} in its name") };
    Ok(found)
}

/// All strategies for matrices, with the settings that cubek-matmul's own benchmarks compare; those
/// for vectors are left out.
fn strategies() -> Vec<Strategy> {
    let levels = [
        Levels::Naive,
        Levels::SimpleUnit(Inferred(SimpleUnit { tile_size: Tile::MinTileSize })),
        Levels::SimpleUnit(Inferred(SimpleUnit { tile_size: Tile::MaxTileSize })),
        Levels::DoubleUnit(Inferred(DoubleUnit { tile_size: Tile::MinTileSize })),
        Levels::DoubleUnit(Inferred(DoubleUnit { tile_size: Tile::MaxTileSize })),
        Levels::Gemm(Default::default()),
        Levels::SimpleCyclicCmma(Default::default()),
        Levels::SimpleCyclicCmma(Inferred(SimpleArgs { multi_rows: true, ..Default::default() })),
        Levels::SimpleCyclicMma(Default::default()),
        Levels::SimpleCyclicMma(Inferred(SimpleArgs { multi_rows: true, ..Default::default() })),
        Levels::DoubleCyclicCmma(Default::default()),
        Levels::DoubleCyclicMma(Default::default()),
        Levels::SpecializedCyclicCmma(Default::default()),
        Levels::SpecializedCyclicMma(Default::default()),
        Levels::OrderedDoubleCmma(Default::default()),
        Levels::OrderedDoubleMma(Default::default()),
        Levels::SimpleTmaCmma(Default::default()),
        Levels::SimpleTmaMma(Default::default()),
        Levels::SpecializedTmaCmma(Default::default()),
        Levels::SpecializedTmaMma(Default::default()),
    ];
    let others = [
        Tiled::Cmma(CubeStagedMatmulRoutineSettings::DEFAULT).into(),
        Tiled::CpuGemm(UnitRegistersMatmulRoutineSettings::DEFAULT).into(),
        Strategy::Auto,
    ];
    levels.into_iter().map(Strategy::from).chain(others).collect()
}

struct Gpu {
    client: Client,
    device: WgpuDevice,
}

impl Gpu {
    fn tensor(&self, values: &[f32], shape: [usize; 2], strides: [usize; 2]) -> TensorHandle {
        let memory = self.client.create_from_slice(f32::as_bytes(values));
        TensorHandle::new(memory, shape, strides, f32::elem_type_native())
    }

    /// A, B and their product as autotune takes them.
    fn call(&self, tensors: &[TensorHandle; 3]) -> MatmulCall {
        let [lhs, rhs, out] = tensors.clone();
        MatmulCall {
            hw: Hardware::from_client(&self.client),
            client: self.client.clone(),
            tune_id: CubeTuneId::new(&self.client, &self.device),
            lhs: MatmulCallInput::plain(PlainTensor::of_handle(lhs)),
            rhs: MatmulCallInput::plain(PlainTensor::of_handle(rhs)),
            out: out.dtype,
            routes: None,
            destination: Some(out),
        }
    }

    /// Without a strategy by autotune's choice.
    fn launch(&self, strategy: Option<&Strategy>, tensors: &[TensorHandle; 3]) -> Result<()> {
        let Some(strategy) = strategy else {
            MatmulTable::ManyRows.launch(&self.call(tensors), Default::default());
            return Ok(());
        };
        let f32 = f32::elem_type_native();
        let [a, b, out] = tensors.clone().map(TensorHandle::binding);
        let (a, b) = (InputBinding::Normal(a, f32), InputBinding::Normal(b, f32));
        launch_ref(strategy, &self.client, a, b, out, &mut MatmulElems::from_single_dtype(f32))
            .map_err(|error| anyhow!("{}", error.to_string().trim_end()))
    }

    /// Autotune's choice, once it is made.
    fn chosen(&self, lhs: &TensorHandle, rhs: &TensorHandle) -> String {
        let call = self.call(&[lhs.clone(), rhs.clone(), lhs.clone()]);
        let chosen = MatmulTable::ManyRows.fastest_routine(&call, Default::default());
        chosen.map_or("autotune".into(), |(routine, _)| format!("autotune: {routine}"))
    }
}

fn measure(gpu: &Gpu, [m, n, k]: [usize; 3], args: &Args) -> Result<Value> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut random = |len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (a, b) = (random(m * k), random(n * k));
    let transposed: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
    let entry = |at: usize| -> (usize, f64, f64) {
        let (row, column) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
        let terms = row.iter().zip(column).map(|(&x, &y)| f64::from(x) * f64::from(y));
        (at, terms.clone().sum(), terms.map(f64::abs).sum())
    };
    let entries: Vec<_> = (0..500).map(|_| entry(rng.random_range(0..m * n))).collect();
    let (lhs, rhs) = (gpu.tensor(&a, [m, k], [k, 1]), gpu.tensor(&b, [k, n], [1, k]));
    let layouts = [("n,k", rhs), ("k,n", gpu.tensor(&transposed, [k, n], [n, 1]))];

    // The least and the median seconds of `repeats` products, after one that is checked.
    let time = |strategy: Option<&Strategy>, rhs: &TensorHandle, repeats: usize| -> Result<_> {
        // Not a number, so that no entry is right before it is computed.
        let out = gpu.tensor(&vec![f32::NAN; m * n], [m, n], [n, 1]);
        let tensors = [lhs.clone(), rhs.clone(), out.clone()];
        gpu.launch(strategy, &tensors)?;
        let out = gpu.client.read_one(out.handle)?;
        for &(at, value, magnitude) in &entries {
            let got = f32::from_bytes(&out)[at];
            let near = (f64::from(got) - value).abs() <= 1e-6 * magnitude;
            ensure!(near, "entry {at} is {got}, not {value}");
        }
        let mut seconds = vec![0.0; repeats];
        for seconds in &mut seconds {
            let start = Instant::now();
            gpu.launch(strategy, &tensors)?;
            future::block_on(gpu.client.sync())?;
            *seconds = start.elapsed().as_secs_f64();
        }
        seconds.sort_by(f64::total_cmp);
        Ok([seconds[0], seconds[(repeats - 1) / 2].midpoint(seconds[repeats / 2])])
    };
    let mut strategies: Vec<_> = strategies().into_iter().map(Some).collect();
    strategies.extend(args.autotune.then_some(None));
    let (mut timed, mut failed) = (Vec::new(), Vec::new());
    for (layout, rhs) in &layouts {
        for strategy in strategies.iter().map(Option::as_ref) {
            let seconds = time(strategy, rhs, 2);
            let name = strategy.map_or_else(|| gpu.chosen(&lhs, rhs), Strategy::to_string);
            match seconds {
                Ok(seconds) => timed.push((seconds, name, layout, strategy, rhs)),
                Err(error) => {
                    let error = error.to_string();
                    failed.push(json!({"strategy": name, "b": layout, "error": error}));
                }
            }
        }
    }
    timed.sort_by(|x, y| x.0[0].total_cmp(&y.0[0]));
    let bound = 1.2 * timed.first().context("no strategy works")?.0[0];
    let close = timed.partition_point(|x| x.0[0] <= bound);
    for (seconds, _, _, strategy, rhs) in &mut timed[..close] {
        *seconds = time(*strategy, rhs, args.repeats.get())?;
    }
    timed[..close].sort_by(|x, y| x.0[1].total_cmp(&y.0[1]));

    let ([min, median], name, layout, ..) = &timed[0];
    let (min, median, rate) = (min * 1e3, median * 1e3, (2 * m * n * k) as f64 / median / 1e9);
    print!("m {m}, n {n}, k {k}: min {min:.1} ms, median {median:.1} ms, {rate:.1} GFLOP/s, ");
    println!("{name}, B ({layout})");
    let timed = timed.iter().map(|([min, median], name, layout, ..)| {
        json!({"strategy": name, "b": layout, "min_s": min, "median_s": median})
    });
    let timed: Vec<_> = timed.collect();
    Ok(json!({"m": m, "n": n, "k": k, "fastest_first": timed, "failed": failed}))
}
