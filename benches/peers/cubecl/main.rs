//! peer-cubecl: how fast cubecl multiplies matrices on wgpu, for comparison with our WGSL backend.
//!
//! A (m, k) row-major times B, in f32; B both as weights lie, (n, k), and as (k, n). Each shape runs
//! every strategy that cubek-matmul offers for matrices, and its autotune; each is checked against a
//! product in f64, then timed twice, and the ones close to the fastest are timed again with all
//! repeats. A line per shape goes to standard output, all candidates go to the JSON:
//!
//!     cargo run --release -- [--adapter NAME] [--output FILE]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Parser;
use cubecl::prelude::*;
use cubecl::std::tensor::TensorHandle;
use cubecl::{CubeTuneId, Device, client::Client, device::WgpuDevice, future};
use cubek_matmul::definition::MatmulElems;
use cubek_matmul::kernels::plan::{MatmulCall, MatmulCallInput};
use cubek_matmul::kernels::select::selector::MatmulTable;
use cubek_matmul::kernels::tensor::PlainTensor;
use cubek_matmul::kernels::{CubeStagedMatmulRoutineSettings, UnitRegistersMatmulRoutineSettings};
use cubek_matmul::launch::launch_ref;
use cubek_matmul::multi_level::Strategy as Levels;
use cubek_matmul::multi_level::routines::TileSizeSelection as Tile;
use cubek_matmul::multi_level::routines::batch::double_unit::DoubleUnitSelectionArgs as DoubleUnit;
use cubek_matmul::multi_level::routines::batch::simple::SimpleArgs;
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitSelectionArgs as SimpleUnit;
use cubek_matmul::routine::BlueprintStrategy::Inferred;
use cubek_matmul::strategy::Strategy;
use cubek_matmul::tiled::Strategy as Tiled;
use cubek_std::{Hardware, InputBinding};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

/// The crates do not export their versions; these repeat the exact pins in Cargo.toml.
const CUBECL_VERSION: &str = "0.12.0-pre.1";
const MATMUL_VERSION: &str = "0.4.0-pre.1";

/// m, n, k: a square, and the matrices of a model of a billion parameters with 128 rows.
const SHAPES: [[usize; 3]; 5] = [
    [1024, 1024, 1024],
    [128, 3072, 2048],
    [128, 2048, 2048],
    [128, 11264, 2048],
    [128, 2048, 5632],
];

/// Entries of a product that are checked.
const SAMPLES: usize = 500;

/// Candidates within this factor of the fastest are timed again.
const CLOSE: f64 = 1.2;

/// Measures cubecl's matrix products on wgpu.
#[derive(Parser)]
struct Args {
    /// Part of the adapter's name; cubecl's default adapter otherwise
    #[arg(long)]
    adapter: Option<String>,
    /// Timed products of each of the fastest candidates
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Write the JSON here too
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            eprintln!("peer-cubecl: {}", message.lines().next().unwrap_or_default());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let device = find(args.adapter.as_deref())?;
    let Device::Wgpu(wg) = &device else { bail!("x") };
    let setup = cubecl::wgpu::init_setup::<cubecl::wgpu::AutoGraphicsApi>(wg, Default::default());
    std::thread::spawn(move || loop {
        let _ = setup.device.poll(cubecl::wgpu::wgpu::PollType::Poll);
        std::thread::sleep(std::time::Duration::from_millis(5));
    });
    let client = device.client();
    let adapter = client.properties().identity.name.clone();
    println!("{adapter}, {}, cubecl {CUBECL_VERSION}", client.name());
    // Candidates that fail inside cubecl panic; `attempt` reports them.
    if std::env::var_os("LOUD").is_none() { std::panic::set_hook(Box::new(|_| ())); }
    let mut rows = Vec::new();
    for shape in SHAPES {
        rows.push(measure(&device, &client, shape, args.repeats as usize)?);
    }
    let report = json!({
        "peer": "cubecl", "version": CUBECL_VERSION, "cubek-matmul": MATMUL_VERSION,
        "device": "wgpu", "adapter": adapter, "runtime": client.name(), "dtype": "f32", "rows": rows,
    });
    args.output.as_deref().map_or(Ok(()), |path| write(&report, path))
}

/// The adapter with `name` in its name, capitals aside, or the default one.
fn find(name: Option<&str>) -> Result<Device> {
    let Some(name) = name else { return Ok(WgpuDevice::default().into()) };
    let mut names = Vec::new();
    for device in Device::enumerate_all() {
        let found = device.description().context("an adapter without a description")?.name;
        if found.to_lowercase().contains(&name.to_lowercase()) {
            return Ok(device);
        }
        names.push(found);
    }
    bail!("no adapter named {name:?}, only {names:?}")
}

#[derive(Clone)]
enum Candidate {
    Strategy(Strategy),
    Autotune,
}

/// All strategies for matrices, with the settings that cubek-matmul's own benchmarks compare; those
/// for vectors are left out.
fn candidates() -> Vec<(&'static str, Candidate)> {
    let simple = |multi_rows| Inferred(SimpleArgs { multi_rows, ..Default::default() });
    let unit = |tile_size| Levels::SimpleUnit(Inferred(SimpleUnit { tile_size }));
    let double_unit = |tile_size| Levels::DoubleUnit(Inferred(DoubleUnit { tile_size }));
    let strategies: [(&str, Strategy); 23] = [
        ("auto", Strategy::Auto),
        ("naive", Levels::Naive.into()),
        ("simple unit, small tiles", unit(Tile::MinTileSize).into()),
        ("simple unit, large tiles", unit(Tile::MaxTileSize).into()),
        ("double unit, small tiles", double_unit(Tile::MinTileSize).into()),
        ("double unit, large tiles", double_unit(Tile::MaxTileSize).into()),
        ("gemm", Levels::Gemm(Default::default()).into()),
        ("simple cyclic cmma", Levels::SimpleCyclicCmma(simple(false)).into()),
        ("simple cyclic cmma, multiple rows", Levels::SimpleCyclicCmma(simple(true)).into()),
        ("simple cyclic mma", Levels::SimpleCyclicMma(simple(false)).into()),
        ("simple cyclic mma, multiple rows", Levels::SimpleCyclicMma(simple(true)).into()),
        ("simple tma cmma", Levels::SimpleTmaCmma(Default::default()).into()),
        ("simple tma mma", Levels::SimpleTmaMma(Default::default()).into()),
        ("double cyclic cmma", Levels::DoubleCyclicCmma(Default::default()).into()),
        ("double cyclic mma", Levels::DoubleCyclicMma(Default::default()).into()),
        ("specialized cyclic cmma", Levels::SpecializedCyclicCmma(Default::default()).into()),
        ("specialized cyclic mma", Levels::SpecializedCyclicMma(Default::default()).into()),
        ("specialized tma cmma", Levels::SpecializedTmaCmma(Default::default()).into()),
        ("specialized tma mma", Levels::SpecializedTmaMma(Default::default()).into()),
        ("ordered double cmma", Levels::OrderedDoubleCmma(Default::default()).into()),
        ("ordered double mma", Levels::OrderedDoubleMma(Default::default()).into()),
        ("tiled cmma", Tiled::Cmma(CubeStagedMatmulRoutineSettings::DEFAULT).into()),
        ("tiled cpu gemm", Tiled::CpuGemm(UnitRegistersMatmulRoutineSettings::DEFAULT).into()),
    ];
    let strategies = strategies.map(|(name, strategy)| (name, Candidate::Strategy(strategy)));
    [("autotune", Candidate::Autotune)].into_iter().chain(strategies).collect()
}

/// One product with its inputs on the device and a sample of its entries.
struct Product<'a> {
    device: &'a Device,
    client: &'a Client,
    /// A (m, k) and B (k, n), whatever their strides.
    inputs: [TensorHandle; 2],
    shape: [usize; 3],
    /// Position, value, and the sum of the terms' magnitudes.
    samples: &'a [(usize, f64, f64)],
}

impl Product<'_> {
    fn launch(&self, candidate: &Candidate, out: &TensorHandle) -> Result<()> {
        let Candidate::Strategy(strategy) = candidate else {
            MatmulTable::ManyRows.launch(&self.call(out), Default::default());
            return Ok(());
        };
        let float = f32::elem_type_native();
        let [a, b] = self.inputs.clone().map(|x| InputBinding::Normal(x.binding(), float));
        let mut types = MatmulElems::from_single_dtype(float);
        launch_ref(strategy, self.client, a, b, out.clone().binding(), &mut types)
            .map_err(|error| anyhow!("{error}"))
    }

    fn call(&self, out: &TensorHandle) -> MatmulCall {
        let [lhs, rhs] =
            self.inputs.clone().map(|x| MatmulCallInput::plain(PlainTensor::of_handle(x)));
        MatmulCall {
            hw: Hardware::from_client(self.client),
            client: self.client.clone(),
            tune_id: CubeTuneId::new(self.client, self.device),
            lhs,
            rhs,
            out: f32::elem_type_native(),
            routes: None,
            destination: Some(out.clone()),
        }
    }

    /// The routine that autotune has settled on.
    fn winner(&self) -> String {
        let call = self.call(&self.inputs[0]);
        let winner = MatmulTable::ManyRows.fastest_routine(&call, Default::default());
        winner.map_or("not settled".into(), |(settings, _)| settings.to_string())
    }

    /// Seconds of each of `repeats` products, after one that is checked.
    fn time(&self, candidate: &Candidate, repeats: usize) -> Result<Vec<f64>> {
        let [m, n, _] = self.shape;
        // Not a number, so that no entry is right before it is computed.
        let out = tensor(self.client, &vec![f32::NAN; m * n], [m, n], [n, 1]);
        self.launch(candidate, &out)?;
        let bytes = self.client.read_one(out.handle.clone()).map_err(|error| anyhow!("{error}"))?;
        let values = f32::from_bytes(&bytes);
        for &(position, value, magnitude) in self.samples {
            let got = values[position];
            let near = (f64::from(got) - value).abs() <= 1e-6 * magnitude;
            ensure!(near, "wrong: entry {position} is {got}, not {value}");
        }
        let mut seconds = Vec::new();
        for _ in 0..repeats {
            let start = Instant::now();
            self.launch(candidate, &out)?;
            future::block_on(self.client.sync()).map_err(|error| anyhow!("{error}"))?;
            seconds.push(start.elapsed().as_secs_f64());
        }
        Ok(seconds)
    }

    /// `time`, with a panic as an error, and errors in one line.
    fn attempt(&self, candidate: &Candidate, repeats: usize) -> Result<Vec<f64>, String> {
        let timed = catch_unwind(AssertUnwindSafe(|| self.time(candidate, repeats)));
        let message = match timed {
            Ok(Ok(seconds)) => return Ok(seconds),
            Ok(Err(error)) => format!("{error:#}"),
            Err(panic) => match panic.downcast::<String>() {
                Ok(text) => *text,
                Err(panic) => panic.downcast::<&str>().map_or("panic".into(), |x| x.to_string()),
            },
        };
        Err(message.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

fn measure(device: &Device, client: &Client, shape: [usize; 3], repeats: usize) -> Result<Value> {
    let [m, n, k] = shape;
    let mut rng = StdRng::seed_from_u64(0);
    let mut random = |len| (0..len).map(|_| rng.random_range(-1.0..1.0)).collect::<Vec<f32>>();
    let (a, b) = (random(m * k), random(n * k));
    let transposed: Vec<f32> = (0..k * n).map(|i| b[i % n * k + i / n]).collect();
    let sample = |position: usize| {
        let row = a[position / n * k..][..k].iter();
        let terms =
            row.zip(&b[position % n * k..][..k]).map(|(&x, &y)| f64::from(x) * f64::from(y));
        (position, terms.clone().sum(), terms.map(f64::abs).sum())
    };
    let samples: Vec<_> = (0..SAMPLES).map(|_| sample(rng.random_range(0..m * n))).collect();
    let lhs = tensor(client, &a, [m, k], [k, 1]);
    let layouts = [
        ("n,k", tensor(client, &b, [k, n], [1, k])),
        ("k,n", tensor(client, &transposed, [k, n], [n, 1])),
    ];
    let products = layouts.map(|(layout, rhs)| {
        (layout, Product { device, client, inputs: [lhs.clone(), rhs], shape, samples: &samples })
    });

    let mut timed = Vec::new();
    let mut failed = Vec::new();
    for (layout, product) in &products {
        for (name, candidate) in candidates() {
            let t=Instant::now(); let r = product.attempt(&candidate, 2); eprintln!("{name} {layout} {:.1}s {r:?}", t.elapsed().as_secs_f64());
            match r {
                Ok(seconds) => timed.push((Spread::of(seconds), name, candidate, *layout, product)),
                Err(error) => failed.push(json!({"strategy": name, "b": layout, "error": error})),
            }
        }
    }
    ensure!(!timed.is_empty(), "no strategy works: {failed:?}");
    timed.sort_by(|x, y| x.0.min.total_cmp(&y.0.min));
    let bound = CLOSE * timed[0].0.min;
    let close = timed.partition_point(|x| x.0.min <= bound);
    for (spread, _, candidate, _, product) in &mut timed[..close] {
        *spread = Spread::of(product.attempt(candidate, repeats).map_err(|error| anyhow!(error))?);
    }
    timed[..close].sort_by(|x, y| x.0.median.total_cmp(&y.0.median));

    let candidates: Vec<Value> = timed
        .iter()
        .map(|(spread, name, candidate, layout, product)| {
            let name = match candidate {
                Candidate::Autotune => format!("{name}: {}", product.winner()),
                Candidate::Strategy(_) => name.to_string(),
            };
            json!({"strategy": name, "b": layout, "median_s": spread.median,
                   "min_s": spread.min, "max_s": spread.max, "repeats": spread.repeats})
        })
        .collect();
    let best = &timed[0].0;
    println!(
        "{m}x{n}x{k}: min {:.2} ms, median {:.2} ms, {:.2} GFLOP/s, B ({}), {}",
        best.min * 1e3,
        best.median * 1e3,
        (2 * m * n * k) as f64 / best.median / 1e9,
        timed[0].3,
        candidates[0]["strategy"].as_str().unwrap_or_default(),
    );
    Ok(json!({"m": m, "n": n, "k": k, "median_s": best.median, "min_s": best.min,
              "candidates": candidates, "failed": failed}))
}

/// `shape` and `strides` over `values`, on the device.
fn tensor(c: &Client, values: &[f32], shape: [usize; 2], strides: [usize; 2]) -> TensorHandle {
    let handle = c.create_from_slice(f32::as_bytes(values));
    TensorHandle::new(handle, shape, strides, f32::elem_type_native())
}

struct Spread {
    median: f64,
    min: f64,
    max: f64,
    repeats: usize,
}

impl Spread {
    /// Of at least one value.
    fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let last = seconds.len() - 1;
        let median = seconds[last / 2].midpoint(seconds[last.div_ceil(2)]);
        Self { median, min: seconds[0], max: seconds[last], repeats: seconds.len() }
    }
}

fn write(report: &Value, path: &Path) -> Result<()> {
    // Renamed into place, so that a reader never sees half a report.
    let temporary = path.with_added_extension(format!("{}.tmp", std::process::id()));
    fs::write(&temporary, format!("{report}\n"))
        .and_then(|()| fs::rename(&temporary, path))
        .inspect_err(|_| drop(fs::remove_file(&temporary)))
        .with_context(|| format!("writing {}", path.display()))
}
