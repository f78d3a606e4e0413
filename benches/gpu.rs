//! Measures the WGSL backend on one adapter against its limits and against simpler alternatives.
//!
//!     cargo bench --bench gpu [-- FILTER…] [--device NAME] [--repeats N] [--output FILE]
//!
//! * **copy**: bytes per second of the adapter's own copy, and of a shader in which each
//!   invocation copies 16 bytes, an upper bound for any shader.
//! * **matmul**: f32 × f32 at 1024³, and the 1b model's products with 128 rows, in f32 and with
//!   its bf16 weights; `benches/peers/cubecl` times the same shapes.
//! * **matvec**: the 1b model's products with one row, as a share of the copies.
//! * **attention**: the fused kernel against three launches (scores, softmax, weighted sum) that
//!   store the score matrix and use the same matrix product.
//! * **decode**: a step of the 1b model: its share of the copies, its launches, and the host time
//!   to record and submit them.
//!
//! Each figure is the median of the repeats; measurements that are compared alternate. Inputs are
//! random. `matmul` and `attention` check their results before timing.

use gritlm::batch::{Output, Sequence, Want};
use gritlm::model::measure::Measure;
use gritlm::model::ops::{
    Attention, GateUp, KvShape, Layout, LinearAdd, Mask, Ops, PAGE, SampleParams, Span,
};
use gritlm::model::weights::{Dtype, Tensor};
use gritlm::{Device, Engine};
use gritlm_shaders::shader::{File, Kind, Shader};
use gritlm_shaders::{Buffer, Matrix, Options, Wgpu};
use half::bf16;
use pollster::block_on;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Copies 16 bytes per invocation.
static COPY: Shader = Shader::new(
    "copy",
    &[File {
        stem: "copy",
        text: "@group(0) @binding(0) var<uniform> count: vec4<u32>;
@group(0) @binding(1) var<storage, read> a: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read_write> b: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let i = flat(group, groups) * 64u + index;
    if i < count.x {
        b[i] = a[i];
    }
}",
    }],
    &[Kind::Params, Kind::Read, Kind::Write],
);

/// Scaled softmax of each row of a square matrix, in place: the second of the three launches.
static SOFTMAX: Shader = Shader::new(
    "softmax",
    &[File {
        stem: "softmax",
        text: "struct Rows { rows: u32, keys: u32, scale: f32, causal: u32 }
@group(0) @binding(0) var<uniform> p: Rows;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;

var<workgroup> parts: array<f32, 64>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let at = group.x * p.keys;
    let seen = select(p.keys, group.x + 1u, p.causal == 1u);
    var largest = -3e38;
    for (var c = index; c < seen; c += 64u) {
        largest = max(largest, x[at + c]);
    }
    parts[index] = largest;
    workgroupBarrier();
    for (var i = 0u; i < 64u; i += 1u) {
        largest = max(largest, parts[i]);
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var c = index; c < p.keys; c += 64u) {
        let weight = select(0.0, exp((x[at + c] - largest) * p.scale), c < seen);
        x[at + c] = weight;
        sum += weight;
    }
    parts[index] = sum;
    workgroupBarrier();
    sum = 0.0;
    for (var i = 0u; i < 64u; i += 1u) {
        sum += parts[i];
    }
    for (var c = index; c < seen; c += 64u) {
        x[at + c] /= sum;
    }
}",
    }],
    &[Kind::Params, Kind::Write],
);

struct Bench {
    gpu: Wgpu,
    filters: Vec<String>,
    repeats: usize,
    rows: Vec<Value>,
    /// Bytes per second of the adapter's copy and of the copying shader.
    copies: [f64; 2],
}

fn main() {
    // Cargo adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let (mut values, mut filters) = (Vec::new(), Vec::new());
    let mut rest = args.into_iter();
    while let Some(arg) = rest.next() {
        match arg.strip_prefix("--") {
            Some(flag) => values.push((flag.to_string(), rest.next().expect("a value"))),
            None => filters.push(arg),
        }
    }
    let value = |flag: &str| values.iter().find(|(f, _)| f == flag).map(|(_, v)| v.clone());
    let repeats = value("repeats").map_or(5, |n| n.parse().expect("--repeats: a number"));
    let name = value("device").unwrap_or_default();
    let gpu = block_on(Wgpu::open(&Options::default().name(name.clone()))).expect("an adapter");
    println!("{}", gpu.device());
    let mut bench = Bench { gpu, filters, repeats, rows: Vec::new(), copies: [0.0; 2] };
    bench.copy();
    bench.matmul();
    bench.matvec();
    bench.attention();
    if bench.wanted("decode") {
        bench.decode(&name);
    }
    if let Some(path) = value("output") {
        let record =
            json!({ "device": bench.gpu.device(), "repeats": repeats, "rows": bench.rows });
        std::fs::write(path, format!("{record:#}\n")).expect("--output: a file");
    }
}

/// Returns random values, the same in each run.
fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn close(a: &[f32], b: &[f32]) {
    let (mut difference, mut length) = (0.0, 0.0);
    for (&a, &b) in a.iter().zip(b) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        length += f64::from(b).powi(2);
    }
    let error = (difference / length).sqrt();
    assert!(error < 1e-5 && a.len() == b.len(), "wrong result: relative error {error:.1e}");
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f.as_str()))
    }

    /// Returns the seconds that `launch` takes on the device, recording included.
    fn time(&self, launch: &mut dyn FnMut()) -> f64 {
        let start = Instant::now();
        launch();
        block_on(self.gpu.finish()).expect("a step");
        start.elapsed().as_secs_f64()
    }

    /// Returns the median times of several alternatives, which run alternately.
    fn times<const N: usize>(&self, forms: [&mut dyn FnMut(); N]) -> [f64; N] {
        let mut all: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
        let mut forms = forms;
        for repeat in 0..=self.repeats {
            for (form, times) in forms.iter_mut().zip(&mut all) {
                let time = self.time(*form);
                // The first run compiles the kernels and is not counted.
                if repeat > 0 {
                    times.push(time);
                }
            }
        }
        all.map(|mut times| median(&mut times))
    }

    fn buffer(&self, rows: usize, cols: usize, seed: u64) -> Buffer {
        self.gpu.upload(rows, cols, &random(rows * cols, seed)).expect("room")
    }

    fn copy(&mut self) {
        let (rows, cols) = (4096, 4096);
        let bytes = (rows * cols * 4) as u64;
        let (a, b) = (self.buffer(rows, cols, 1), self.buffer(rows, cols, 2));
        let count = (bytes / 16) as u32;
        let params = [count, 0, 0, 0];
        let grid = (4096, count.div_ceil(64 * 4096));
        let mut launch = || {
            self.gpu.launch(&COPY, bytemuck::cast_slice(&params), &[&a, &b], grid);
        };
        let [time] = self.times([&mut launch]);
        let copied = self.gpu.copy_rate(bytes).expect("a copy");
        self.copies = [copied, 2.0 * bytes as f64 / time];
        println!(
            "copy: {:.1} GB/s by the adapter, {:.1} GB/s by a shader (read and written)",
            self.copies[0] / 1e9,
            self.copies[1] / 1e9
        );
        self.rows.push(json!({ "op": "copy", "gb_per_s": self.copies[0] / 1e9,
            "shader_gb_per_s": self.copies[1] / 1e9 }));
    }

    fn matrix(&self, dtype: Dtype, rows: usize, cols: usize) -> (Matrix, Vec<f32>) {
        let mut values = random(rows * cols, 7);
        let tensor = if dtype == Dtype::F32 {
            Tensor::from_f32(&[rows, cols], &values)
        } else {
            let rounded: Vec<bf16> = values.iter().map(|&v| bf16::from_f32(v)).collect();
            values = rounded.iter().map(|v| v.to_f32()).collect();
            Tensor::from_bytes(dtype, &[rows, cols], bytemuck::cast_slice(&rounded))
        };
        (self.gpu.matrix(&[tensor]).expect("room"), values)
    }

    fn matmul(&mut self) {
        let shapes = [
            (1024, 1024, 1024),
            (128, 3072, 2048),
            (128, 2048, 2048),
            (128, 11264, 2048),
            (128, 2048, 5632),
        ];
        for (m, n, k) in shapes {
            for dtype in [Dtype::F32, Dtype::Bf16] {
                let name = format!("matmul {m}x{n}x{k} {dtype}");
                if !self.wanted(&name) {
                    continue;
                }
                let (w, values) = self.matrix(dtype, n, k);
                let (a, mut x) = (self.buffer(m, k, 1), self.buffer(m, n, 2));
                let (rows, inner, outer) = (m as u32, k as u32, n as u32);
                let p = LinearAdd { rows, inner, outer };
                self.gpu.linear_add(p, &a, &w, &mut x);
                let (first, a_row) = (random(m * n, 2), random(m * k, 1));
                let expected: Vec<f32> = (0..n)
                    .map(|j| {
                        let products = a_row[..k].iter().zip(&values[j * k..][..k]);
                        let sum: f64 = products.map(|(&a, &w)| f64::from(a) * f64::from(w)).sum();
                        (f64::from(first[j]) + sum) as f32
                    })
                    .collect();
                close(&block_on(self.gpu.read(&x, n)).expect("a result"), &expected);
                let [time] = self.times([&mut || self.gpu.linear_add(p, &a, &w, &mut x)]);
                let rate = 2.0 * (m * n * k) as f64 / time / 1e9;
                println!("{name}: {:.2} ms, {rate:.1} GFLOP/s", time * 1e3);
                self.rows.push(json!({ "op": name, "median_s": time, "gflop_per_s": rate }));
            }
        }
    }

    fn matvec(&mut self) {
        let (dim, hidden) = (2048, 5632);
        for (n, k) in [(3072, dim), (dim, dim), (2 * hidden, dim), (dim, hidden), (32000, dim)] {
            let name = format!("matvec {n}x{k} BF16");
            if !self.wanted(&name) {
                continue;
            }
            let (w, _) = self.matrix(Dtype::Bf16, n, k);
            let (a, mut x) = (self.buffer(1, k, 1), self.buffer(1, n, 2));
            let p = LinearAdd { rows: 1, inner: k as u32, outer: n as u32 };
            let [time] = self.times([&mut || self.gpu.linear_add(p, &a, &w, &mut x)]);
            self.rows.push(self.share(&name, (2 * n * k) as f64, time));
        }
        let name = format!("matvec gate_up {hidden}x{dim} BF16");
        if self.wanted(&name) {
            let (w, _) = self.matrix(Dtype::Bf16, 2 * hidden, dim);
            let (a, mut x) = (self.buffer(1, dim, 1), self.buffer(1, hidden, 2));
            let p = GateUp { rows: 1, dim: dim as u32, hidden: hidden as u32 };
            let [time] = self.times([&mut || self.gpu.gate_up(p, &a, &w, &mut x)]);
            self.rows.push(self.share(&name, (4 * hidden * dim) as f64, time));
        }
    }

    /// Prints a line with the shares of both copies, and returns it as JSON.
    fn share(&self, name: &str, bytes: f64, time: f64) -> Value {
        let rate = bytes / time;
        let shares = self.copies.map(|copy| rate / copy);
        println!(
            "{name}: {:.3} ms, {:.2} GB/s, {:.2} of the adapter's copy, {:.2} of a shader's",
            time * 1e3,
            rate / 1e9,
            shares[0],
            shares[1]
        );
        json!({ "op": name, "median_s": time, "gb_per_s": rate / 1e9, "share_of_copy": shares[0],
            "share_of_shader_copy": shares[1] })
    }

    /// Times fused attention against three launches, for one head of 128 columns, so that the
    /// three launches need nothing beyond the matrix product.
    fn attention(&mut self) {
        let dim = 128;
        for (tokens, causal) in [(1024, false), (4096, false), (1024, true), (4096, true)] {
            let mask = if causal { "causal" } else { "bidirectional" };
            let name = format!("attention T={tokens} {mask}");
            if !self.wanted(&name) {
                continue;
            }
            let (k, v) = (random(tokens * dim, 3), random(tokens * dim, 4));
            let q = self.buffer(tokens, dim, 5);
            let pages = tokens / PAGE;
            let dtype = self.gpu.page_dtypes()[0];
            let shape = KvShape { layers: 1, pages, kv_heads: 1, head_dim: dim, dtype };
            let mut pool = self.gpu.pages(shape).expect("room");
            let table: Vec<u32> = (0..pages as u32).collect();
            self.gpu.import_pages(&mut pool, &table, tokens, 0, &[&k[..], &v[..]].concat());
            let rows = tokens as u32;
            let mask = match causal {
                true => Mask::Causal { window: None },
                false => Mask::Bidirectional { window: None },
            };
            let batch = self.gpu.batch(&Layout {
                tokens: vec![0; tokens],
                positions: (0..rows).collect(),
                slots: (0..rows).collect(),
                spans: vec![Span { row: 0, rows, past: 0, table: 0, mask }],
                tables: table,
                frequencies: vec![1.0; dim / 2],
            });
            let batch = batch.expect("room");
            let mut out = self.buffer(tokens, dim, 6);
            let p = Attention { heads: 1, kv_heads: 1, head_dim: dim as u32, layer: 0 };
            let mut fused = || self.gpu.attention(p, &q, &pool, &batch, &mut out);

            // Vᵀ, (dim, tokens): the second product needs the columns of V as rows.
            let turned: Vec<f32> =
                (0..dim * tokens).map(|i| v[i % tokens * dim + i / tokens]).collect();
            let [keys, values] = [(&k, tokens, dim), (&turned, dim, tokens)]
                .map(|(x, n, m)| self.gpu.matrix(&[Tensor::from_f32(&[n, m], x)]).expect("room"));
            let zeros =
                |n: usize, m: usize| self.gpu.upload(n, m, &vec![0.0; n * m]).expect("room");
            let mut scores = zeros(tokens, tokens);
            let mut mixed = zeros(tokens, dim);
            let scale = 1.0 / (dim as f32).sqrt();
            let params = [rows, rows, scale.to_bits(), u32::from(causal)];
            let inner = dim as u32;
            // The product accumulates, so only the first result is right; the time does not
            // depend on it.
            let mut three = || {
                let p = LinearAdd { rows, inner, outer: rows };
                self.gpu.linear_add(p, &q, &keys, &mut scores);
                self.gpu.launch(&SOFTMAX, bytemuck::cast_slice(&params), &[&scores], (rows, 1));
                let p = LinearAdd { rows, inner: rows, outer: inner };
                self.gpu.linear_add(p, &scores, &values, &mut mixed);
            };
            fused();
            three();
            let read = |x: &Buffer| block_on(self.gpu.read(x, tokens * dim)).expect("a result");
            close(&read(&out), &read(&mixed));
            let mut fused = || self.gpu.attention(p, &q, &pool, &batch, &mut out);
            let mut three = || {
                let p = LinearAdd { rows, inner, outer: rows };
                self.gpu.linear_add(p, &q, &keys, &mut scores);
                self.gpu.launch(&SOFTMAX, bytemuck::cast_slice(&params), &[&scores], (rows, 1));
                let p = LinearAdd { rows, inner: rows, outer: inner };
                self.gpu.linear_add(p, &scores, &values, &mut mixed);
            };
            let [one, apart] = self.times([&mut fused, &mut three]);
            let pairs = if causal { tokens * (tokens + 1) / 2 } else { tokens * tokens };
            let rate = 4.0 * (pairs * dim) as f64 / one / 1e9;
            let matrix = 4 * tokens * tokens;
            println!(
                "{name}: fused {:.2} ms, {rate:.1} GFLOP/s; three launches {:.2} ms and {} MiB of \
                 scores; ratio {:.2}",
                one * 1e3,
                apart * 1e3,
                matrix >> 20,
                apart / one
            );
            self.rows.push(json!({ "op": name, "median_s": one, "gflop_per_s": rate,
                "unfused_s": apart, "unfused_score_bytes": matrix, "ratio": apart / one }));
        }
    }

    /// Times a decode step of one sequence of the 1b model.
    fn decode(&mut self, name: &str) {
        let folder = checkpoint();
        // The file is read once, so that loading is timed from memory and not from disk.
        std::fs::read(folder.join("model.safetensors")).expect("weights");
        let device = Device::Wgpu(name.into());
        let options = gritlm::Options::default().device(device).kv_tokens(2048);
        let start = Instant::now();
        let engine = Engine::open(folder.to_str().expect("UTF-8"), &options).expect("a model");
        let config = engine.config();
        let weights = gritlm::model::weights::Weights::open(&folder, config).expect("weights");
        let loaded = start.elapsed().as_secs_f64();
        let load = weights.bytes() as f64 / loaded / 1e9;
        println!("load 1b: {loaded:.2} s, {load:.2} GB/s");
        self.rows.push(json!({ "op": "load 1b", "median_s": loaded, "gb_per_s": load }));
        let table = config.vocab * config.dim * 2;
        let bytes = weights.bytes() as f64 - if config.tied { 0.0 } else { table as f64 };
        let mut cache = engine.cache();
        let mut token = 1;
        let mut step = || {
            let draw = SampleParams::greedy();
            let (tokens, mask) = ([token], engine.generation_mask());
            let want = Want::Token(draw);
            let sequence = Sequence { tokens: &tokens, cache: &mut cache, mask, want };
            match engine.run(&mut [sequence]).expect("a step").remove(0) {
                Output::Token(drawn) => token = drawn.token,
                other => panic!("expected a token, found {other:?}"),
            }
        };
        let [time] = self.times([&mut step]);
        let mut row = self.share("decode 1b", bytes, time);
        let (launches, overhead) = self.overhead(config.layers);
        println!("decode 1b: {launches} launches recorded and submitted in {overhead:.0} µs");
        row["launches"] = launches.into();
        row["overhead_us"] = overhead.into();
        self.rows.push(row);
    }

    /// Returns the number of launches in a decode step of `layers` layers, and the host time in
    /// microseconds to record and submit as many with almost no work for the device.
    fn overhead(&self, layers: usize) -> (u64, f64) {
        let (w, _) = self.matrix(Dtype::Bf16, 8, 8);
        let (a, mut x) = (self.buffer(1, 8, 1), self.buffer(1, 8, 2));
        let launches = 8 * layers as u64 + 5;
        let p = LinearAdd { rows: 1, inner: 8, outer: 8 };
        let mut times = Vec::new();
        for _ in 0..=self.repeats {
            let start = Instant::now();
            for _ in 0..launches {
                self.gpu.linear_add(p, &a, &w, &mut x);
            }
            self.gpu.submit().expect("a submit");
            times.push(start.elapsed().as_secs_f64() * 1e6);
            block_on(self.gpu.finish()).expect("a step");
        }
        times.remove(0);
        (launches, median(&mut times))
    }
}

/// Returns the folder of a checkpoint of the 1b shape, which is written only once.
fn checkpoint() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/1b");
    if !folder.exists() {
        std::fs::create_dir_all(folder.parent().expect("a parent")).expect("target/bench");
        gritlm::synth::write("1b", None, 0, &folder, &mut |_, _| Ok(())).expect("a checkpoint");
    }
    folder
}
