//! peer-cubecl: how fast cubecl multiplies matrices on wgpu, for comparison with our WGSL kernels.
//!
//! A (m, k) row-major times B in f32, with B as weights lie, (n, k), and as (k, n). Every strategy
//! of cubek-matmul runs on both, is checked against a product in f64 and timed once; the ones close
//! to the fastest are timed again, and a line per shape tells the fastest. The JSON has them all,
//! the fastest's median as `gritlm bench --peer` takes it:
//!
//!     cargo run --release -- [--adapter NAME] [--only NAME] [--output FILE]

use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;
use cubecl::wgpu::{AutoGraphicsApi, WgpuDevice, init_setup, wgpu::PollType};
use cubecl::{Device, client::Client, future};
use cubek_matmul::definition::MatmulElems;
use cubek_matmul::kernels::{CubeStagedMatmulRoutine, UnitRegistersMatmulRoutine};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy as Levels;
use cubek_matmul::multi_level::routines::TileSizeSelection::{MaxTileSize, MinTileSize};
use cubek_matmul::multi_level::routines::batch::double_unit::DoubleUnitSelectionArgs as DoubleUnit;
use cubek_matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs as SimpleUnit;
use cubek_matmul::routine::BlueprintStrategy::Inferred;
use cubek_matmul::strategy::Strategy;
use cubek_matmul::tiled::Strategy as Tiled;
use cubek_std::{Hardware, InputBinding, routine::Routine};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// The crates do not export their versions; these repeat the exact pins in Cargo.toml.
const VERSION: &str = "0.12.0-pre.1";
const MATMUL_VERSION: &str = "0.4.0-pre.1";

/// gritlm's op and m, n, k: a square, and 128 rows times the matrices of a model of about a billion
/// parameters.
const SHAPES: [(&str, [usize; 3]); 5] = [
    ("linear_add", [1024, 1024, 1024]),
    ("qkv", [128, 3072, 2048]),
    ("linear_add", [128, 2048, 2048]),
    ("gate_up", [128, 11264, 2048]),
    ("linear_add", [128, 2048, 5632]),
];

/// Strategies within this factor of the fastest are timed again; another program may have slowed
/// them down.
const CLOSE: f64 = 2.0;

/// Measures cubecl's matrix products on wgpu.
#[derive(Parser)]
struct Args {
    /// Part of the adapter's name; cubecl's default adapter otherwise
    #[arg(long)]
    adapter: Option<String>,
    /// Only strategies with this in their names
    #[arg(long, default_value = "")]
    only: String,
    /// Timed products of each strategy that is close to the fastest
    #[arg(long, default_value = "10")]
    repeats: NonZeroUsize,
    /// Write the JSON here
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The first line only: where RUST_BACKTRACE is set, a backtrace follows it.
            let message = format!("{error:#}");
            eprintln!("peer-cubecl: {}", message.lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
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
    let client = Device::Wgpu(device).client();
    let runtime = client.name();
    println!("cubecl {VERSION}, cubek-matmul {MATMUL_VERSION}, {runtime}, {adapter}");
    let rows = SHAPES.iter().map(|(op, shape)| {
        let mut row = measure(&client, *shape, args)?;
        let [m, n, k] = shape;
        row["peer"] = json!(format!("cubecl {VERSION}, f32"));
        row["device"] = json!(format!("wgpu ({adapter})"));
        (row["op"], row["shape"]) = (json!(op), json!(format!("{m} x {k} -> {n}")));
        (row["cubek-matmul"], row["runtime"]) = (json!(MATMUL_VERSION), json!(runtime));
        Ok(row)
    });
    let report = json!(rows.collect::<Result<Vec<Value>>>()?);
    let Some(path) = &args.output else { return Ok(()) };
    // Renamed into place, so that a reader never sees half a report.
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, format!("{report}\n"))
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("writing {}", path.display()))
}

/// The first adapter with `name` in its name, capitals aside, or the default one.
fn find(name: Option<&str>) -> Result<WgpuDevice> {
    let Some(name) = name.map(str::to_lowercase) else { return Ok(WgpuDevice::default()) };
    let named = |x: &Device| x.description().is_some_and(|x| x.name.to_lowercase().contains(&name));
    let found = Device::enumerate_all().into_iter().find(named);
    let Some(Device::Wgpu(found)) = found else { bail!("no adapter has {name:?} in its name") };
    Ok(found)
}

/// All strategies for matrices, not those for vectors: the older ones with the settings that
/// cubek-matmul's own benchmarks compare, the newer ones with all that its autotune races on wgpu.
fn strategies(hw: &Hardware) -> Vec<Strategy> {
    let levels = [
        Levels::Naive,
        Levels::SimpleUnit(Inferred(SimpleUnit { tile_size: MinTileSize })),
        Levels::SimpleUnit(Inferred(SimpleUnit { tile_size: MaxTileSize })),
        Levels::DoubleUnit(Inferred(DoubleUnit { tile_size: MinTileSize })),
        Levels::DoubleUnit(Inferred(DoubleUnit { tile_size: MaxTileSize })),
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
    let staged = CubeStagedMatmulRoutine.settings(hw).into_iter().map(Tiled::Cmma);
    let registers = UnitRegistersMatmulRoutine.settings(hw).into_iter().map(Tiled::CpuGemm);
    let mut all = vec![Strategy::Auto];
    all.extend(levels.map(Strategy::from));
    all.extend(staged.chain(registers).map(Strategy::from));
    all
}

fn measure(client: &Client, [m, n, k]: [usize; 3], args: &Args) -> Result<Value> {
    let mut rng = StdRng::seed_from_u64(0);
    let mut random = |len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (a, b) = (random(m * k), random(n * k));
    let transposed: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
    // Position, value, and the sum of the terms' magnitudes.
    let entry = |at: usize| -> (usize, f64, f64) {
        let (row, column) = (&a[at / n * k..][..k], &b[at % n * k..][..k]);
        let terms = row.iter().zip(column).map(|(&x, &y)| f64::from(x) * f64::from(y));
        (at, terms.clone().sum(), terms.map(f64::abs).sum())
    };
    let entries: Vec<_> = (0..500).map(|_| entry(rng.random_range(0..m * n))).collect();

    let f32 = f32::elem_type_native();
    let tensor = |values: &[f32], shape: [usize; 2], strides: [usize; 2]| {
        let memory = client.create_from_slice(f32::as_bytes(values));
        TensorHandle::new(memory, shape, strides, f32)
    };
    let lhs = tensor(&a, [m, k], [k, 1]);
    let layouts =
        [("n,k", tensor(&b, [k, n], [1, k])), ("k,n", tensor(&transposed, [k, n], [n, 1]))];
    // The least and the median seconds of `repeats` products, after one that is checked.
    let time = |strategy: &Strategy, rhs: &TensorHandle, repeats: usize| -> Result<[f64; 2]> {
        // Not a number, so that no entry is right before it is computed.
        let out = tensor(&vec![f32::NAN; m * n], [m, n], [n, 1]);
        let multiply = || {
            let [a, b, out] = [&lhs, rhs, &out].map(|x| x.clone().binding());
            let (a, b) = (InputBinding::Normal(a, f32), InputBinding::Normal(b, f32));
            launch_ref(strategy, client, a, b, out, &mut MatmulElems::from_single_dtype(f32))
                .map_err(|error| anyhow!("{}", error.to_string().trim_end()))
        };
        multiply()?;
        let values = client.read_one(out.handle.clone())?;
        for &(at, value, magnitude) in &entries {
            let got = f32::from_bytes(&values)[at];
            let near = (f64::from(got) - value).abs() <= 1e-6 * magnitude;
            ensure!(near, "entry {at} is {got}, not {value}");
        }
        let mut seconds = vec![0.0; repeats];
        for seconds in &mut seconds {
            let start = Instant::now();
            multiply()?;
            future::block_on(client.sync())?;
            *seconds = start.elapsed().as_secs_f64();
        }
        seconds.sort_by(f64::total_cmp);
        Ok([seconds[0], seconds[(repeats - 1) / 2].midpoint(seconds[repeats / 2])])
    };

    let mut strategies = strategies(&Hardware::from_client(client));
    strategies.retain(|strategy| strategy.to_string().contains(&args.only));
    let (mut timed, mut failed) = (Vec::new(), Vec::new());
    for (layout, rhs) in &layouts {
        for strategy in &strategies {
            match time(strategy, rhs, 1) {
                Ok(seconds) => timed.push((seconds, strategy, layout, rhs)),
                Err(error) => failed.push(json!({
                    "strategy": strategy.to_string(), "b": layout, "error": error.to_string(),
                })),
            }
        }
    }
    timed.sort_by(|x, y| x.0[0].total_cmp(&y.0[0]));
    let bound = CLOSE * timed.first().context("no strategy works")?.0[0];
    let close = timed.partition_point(|x| x.0[0] <= bound);
    for (seconds, strategy, _, rhs) in &mut timed[..close] {
        *seconds = time(strategy, rhs, args.repeats.get())?;
    }
    timed[..close].sort_by(|x, y| x.0[0].total_cmp(&y.0[0]));

    let ([min, median], strategy, layout, _) = timed[0];
    let (rate, min, median) = ((2 * m * n * k) as f64 / min / 1e9, min * 1e3, median * 1e3);
    print!("m {m}, n {n}, k {k}: min {min:.1} ms, median {median:.1} ms, {rate:.1} GFLOP/s, ");
    println!("B ({layout}), {strategy}");
    let timed = timed.iter().map(|([min, median], strategy, layout, _)| {
        json!({"strategy": strategy.to_string(), "b": layout, "min_s": min, "median_s": median})
    });
    let timed: Vec<_> = timed.collect();
    Ok(json!({"us": median * 1e3, "fastest_first": timed, "failed": failed}))
}
