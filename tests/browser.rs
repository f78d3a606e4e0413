//! The shaders in a browser: its WebGPU (Chromium's, by Tint) compiles them, and runs a few kernels
//! against their formulas in f64. naga, which the other tests go through, is laxer.
//!
//! The browser's adapter is a CPU that takes half a second for a pipeline, so mostly there are
//! pipelines of some variants only, with every value of every constant among them;
//! `GRITLM_BROWSER=all cargo test --release browser` makes them all, in some minutes.

use crate::support::{close, say};
use gritlm_shaders::shader::{Kind, Shader, Variant, shaders, variants};
use half::bf16;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// After this the browser is given up, and after so much more per pipeline.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_EACH: Duration = Duration::from_secs(3);

/// What the page sends when it is done.
#[derive(Debug, Deserialize)]
struct Report {
    adapter: String,
    subgroups: bool,
    f16: bool,
    modules: usize,
    pipelines: usize,
    errors: Vec<String>,
    /// Number of the run, whether with subgroups, the words of its last buffer.
    results: Vec<(usize, bool, Vec<u32>)>,
}

/// `CHROMIUM`, else where Debian puts it, else what is on the path.
pub(crate) fn chromium() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("CHROMIUM").filter(|set| !set.is_empty()) {
        return Some(set.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    std::iter::once("/usr/bin/chromium".into())
        .chain(folders.flat_map(|f| ["chromium", "google-chrome"].map(|name| f.join(name))))
        .find(|file| file.is_file())
}

/// A browser without a window, debugged through a pipe: its stdin and stdout. It ends with the
/// pipe: so it does also where this process is killed.
pub(crate) fn command(program: &Path, profile: &Path) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$0" --remote-debugging-pipe "$@" 3<&0 4>&1 1>&2"#])
        .arg(program)
        // A browser that is killed leaves what it has there.
        .env("TMPDIR", profile)
        .args(["--headless", "--no-sandbox", "--disable-gpu-sandbox", "--no-first-run"])
        .args(["--disable-quic", "--disable-sync", "--disable-background-networking"])
        .arg("--disable-component-update")
        .arg(format!("--user-data-dir={}", profile.display()));
    command
}

/// A browser on a page, ended when dropped.
struct Browser {
    process: Child,
    _profile: TempDir,
}

impl Browser {
    fn open(program: &Path, url: &str) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let process = command(program, profile.path())
            .args(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"])
            .arg(url)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        Self { process, _profile: profile }
    }

    /// What the page sent; fails where the browser ends or time is up before.
    fn report(mut self, reports: &Receiver<String>, patience: Duration) -> Report {
        let start = Instant::now();
        loop {
            if let Ok(report) = reports.recv_timeout(Duration::from_secs(1)) {
                return serde_json::from_str(&report).unwrap();
            }
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "the browser ended without a report: {ended:?}");
            assert!(start.elapsed() < patience, "no report from the browser in {patience:?}");
        }
    }
}

impl Report {
    /// Whether this browser's adapter takes a shader in this form.
    fn takes(&self, shader: &Shader, subgroups: bool) -> bool {
        self.subgroups >= subgroups && self.f16 >= shader.is_f16()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers one request: the page, its work, or thanks for the report, which goes to `reports`.
fn answer(mut stream: TcpStream, work: &str, reports: &Sender<String>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first)?;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let page = include_str!("browser.html");
    let (status, kind, body) = match first.split(' ').take(2).collect::<Vec<_>>()[..] {
        ["GET", "/"] => ("200 OK", "text/html", page),
        ["GET", "/work.json"] => ("200 OK", "application/json", work),
        ["POST", "/report"] => {
            let mut report = String::new();
            reader.take(length).read_to_string(&mut report)?;
            // Nobody listens any more where patience was at an end.
            let _ = reports.send(report);
            ("200 OK", "text/plain", "")
        }
        _ => ("404 Not Found", "text/plain", ""),
    };
    let bytes = body.len();
    write!(stream, "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {bytes}\r\n")?;
    write!(stream, "Connection: close\r\n\r\n{body}")
}

/// Serves the page on a loopback port, which counts as secure, to the end of the tests.
fn serve(work: String) -> (String, Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (sender, receiver) = channel();
    let work = Arc::new(work);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A thread each: browsers open connections before they have a use for them.
            let (work, sender) = (Arc::clone(&work), sender.clone());
            std::thread::spawn(move || answer(stream, &work, &sender));
        }
    });
    (url, receiver)
}

/// A shader for the page. A browser wants to be told of subgroups, naga refuses to be. And it cannot
/// see that a loop from an invocation's own start is the same for all where constants make it so.
fn text(shader: &Shader, subgroups: bool) -> Value {
    let enable = match subgroups {
        true => "enable subgroups;\ndiagnostic(off, subgroup_uniformity);\n",
        false => "",
    };
    let kinds = shader.bindings.iter().map(|kind| match kind {
        Kind::Params => "uniform",
        Kind::Read => "read-only-storage",
        Kind::Write => "storage",
    });
    json!({
        "name": shader.name,
        "subgroups": subgroups,
        "f16": shader.is_f16(),
        "source": enable.to_string() + &shader.source(subgroups),
        "bindings": kinds.collect::<Vec<_>>(),
    })
}

/// As JavaScript has them: an object with a value for each name.
fn object<T: Copy + Into<f64>>(constants: &[(&str, T)]) -> Value {
    let value = |&(name, value): &(&str, T)| (name.to_string(), json!(value.into()));
    Value::Object(constants.iter().map(value).collect())
}

/// Variants with each shader among them, and with each value of each constant; the ops' products
/// share their constants. The last of a form has the largest tile, so it is there, too.
fn some_of(all: &[Variant]) -> Vec<Variant> {
    let form = |v: &Variant| (v.shader.rsplit(' ').next().unwrap(), v.subgroups);
    let last = |v: &&Variant| all.iter().rfind(|other| form(other) == form(v)) == Some(*v);
    let mut seen = HashSet::new();
    let mut has_new = |v: &&Variant| {
        let mut new = seen.insert(((v.shader, v.subgroups), "", 0));
        for (name, value) in &v.constants {
            new |= seen.insert((form(v), *name, value.to_bits()));
        }
        new
    };
    all.iter().filter(last).chain(all).filter(|v| has_new(v)).cloned().collect()
}

/// One launch and what it should leave in its last buffer.
struct Run {
    shader: &'static str,
    /// Whether in both forms, or only without subgroups: what is passed round takes larger ones.
    both: bool,
    constants: Vec<(&'static str, u32)>,
    grid: [u32; 2],
    buffers: Vec<Vec<u32>>,
    expected: Vec<f32>,
}

impl Run {
    fn json(&self) -> Value {
        json!({
            "shader": self.shader,
            "both": self.both,
            "constants": object(&self.constants),
            "grid": self.grid,
            "buffers": self.buffers,
        })
    }
}

/// The words of parameters with these fields; the others are 0.
fn params(name: &str, fields: &[(&str, u32)]) -> Vec<u32> {
    let layout = gritlm_shaders::params().into_iter().find(|l| l.name == name).unwrap();
    let mut words = vec![0; layout.size / 4];
    for (field, value) in fields {
        let (_, offset) = layout.fields.iter().find(|(n, _)| n == field).unwrap();
        words[offset / 4] = *value;
    }
    words
}

/// Some numbers from −1 to 1 that bf16 holds.
fn numbers(count: u32, seed: u32) -> Vec<f32> {
    let number = |i: u32| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
    (0..count).map(|i| bf16::from_f32(number(i)).to_f32()).collect()
}

/// Rows padded with zeros to `stride` columns.
fn padded(values: &[f32], cols: u32, stride: u32) -> Vec<f32> {
    let row = |row: &[f32]| {
        let mut row = row.to_vec();
        row.resize(stride as usize, 0.0);
        row
    };
    values.chunks(cols as usize).flat_map(row).collect()
}

fn words(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Two bf16 a word.
fn packed(values: &[f32]) -> Vec<u32> {
    let bits = |v: f32| u32::from(bf16::from_f32(v).to_bits());
    values.chunks(2).map(|pair| bits(pair[0]) | bits(pair[1]) << 16).collect()
}

fn rmsnorm() -> Run {
    let (rows, dim, stride, eps) = (3, 36, 40, 1e-5f32);
    let (x, weight) = (numbers(rows * dim, 1), numbers(dim, 2));
    let row = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
        let length = (squares / f64::from(dim) + f64::from(eps)).sqrt();
        let scaled = row.iter().zip(&weight).map(|(&v, &w)| f64::from(v) / length * f64::from(w));
        scaled.map(|v| v as f32).collect::<Vec<_>>()
    };
    let expected: Vec<f32> = x.chunks(dim as usize).flat_map(row).collect();
    let fields = [
        ("rows", rows),
        ("dim", dim),
        ("x_stride", stride / 4),
        ("h_stride", stride / 4),
        ("eps", eps.to_bits()),
    ];
    let weight = packed(&padded(&weight, dim, stride));
    Run {
        shader: "rmsnorm",
        both: true,
        constants: vec![("DTYPE", 0), ("LANES", 64), ("GATHER", 0)],
        grid: [rows, 1],
        buffers: vec![
            params("RmsNormParams", &fields),
            words(&padded(&x, dim, stride)),
            weight.clone(),
            weight,
            vec![0; (rows * stride) as usize],
        ],
        expected: padded(&expected, dim, stride),
    }
}

/// A product of `rows` rows in one of its forms, by workgroups of so many rows and outputs.
fn linear(
    shader: &'static str,
    rows: u32,
    constants: &[(&'static str, u32)],
    tile: [u32; 2],
) -> Run {
    let (inner, outer, stride, out_stride) = (75, 37, 80, 40);
    let (a, w) = (numbers(rows * inner, 3), numbers(outer * inner, 4));
    let product = |a: &[f32], w: &[f32]| {
        a.iter().zip(w).map(|(&a, &w)| f64::from(a) * f64::from(w)).sum::<f64>() as f32
    };
    let row = |a: &[f32]| w.chunks(inner as usize).map(|w| product(a, w)).collect::<Vec<_>>();
    let expected: Vec<f32> = a.chunks(inner as usize).flat_map(row).collect();
    let fields = [
        ("rows", rows),
        ("inner8", stride / 8),
        ("outer", outer),
        ("a_stride", stride / 4),
        ("w_stride", stride / 8),
        ("out_stride", out_stride),
    ];
    let w = packed(&padded(&w, inner, stride));
    let is_few = shader.ends_with("matvec");
    let (tiles, across) = (rows.div_ceil(tile[0]), outer.div_ceil(tile[1]));
    Run {
        shader,
        both: is_few,
        constants: [&[("DTYPE", 0)], constants].concat(),
        grid: if is_few { [tiles, across] } else { [across, tiles] },
        buffers: vec![
            params("Product", &fields),
            words(&padded(&a, inner, stride)),
            w.clone(),
            w,
            vec![0; (rows * out_stride) as usize],
        ],
        expected: padded(&expected, outer, out_stride),
    }
}

fn runs() -> Vec<Run> {
    let matmul = |staged| {
        let constants = [("WX", 8), ("WY", 8), ("STAGED", staged)];
        linear("linear matmul", 70, &constants, [64, 64])
    };
    let matvec = |lanes, groups| {
        let constants = [("LANES", lanes), ("GROUPS", groups), ("ROWS", 4)];
        linear("linear matvec", 3, &constants, [4, 8 * groups])
    };
    vec![rmsnorm(), matmul(0), matmul(1), matvec(1, 32), matvec(32, 1), matvec(64, 1)]
}

#[test]
fn every_shader_compiles_in_a_browser() {
    let Some(program) = chromium() else {
        return say(
            "SKIPPED browser::every_shader_compiles_in_a_browser: no Chromium here (Debian: \
                    chromium; elsewhere CHROMIUM=its program)",
        );
    };
    // Cooperative matrices are wgpu's own.
    let portable = || shaders().into_iter().filter(|s| !s.is_matrix());
    let plain = portable().map(|s| (s, false));
    let with = portable().filter(|s| s.has_forms()).map(|s| (s, true));
    let texts: Vec<(&Shader, bool)> = plain.chain(with).collect();
    let of =
        |v: &Variant| texts.iter().find(|(s, with)| (s.name, *with) == (v.shader, v.subgroups));
    let all: Vec<Variant> = variants().into_iter().filter(|v| of(v).is_some()).collect();
    let chosen = match std::env::var("GRITLM_BROWSER") {
        Ok(which) if which == "all" => all.clone(),
        _ => some_of(&all),
    };
    let runs = runs();
    let work = json!({
        "shaders": texts.iter().map(|&(shader, with)| text(shader, with)).collect::<Vec<_>>(),
        "variants": (chosen.iter())
            .map(|v| {
                let constants = object(&v.constants);
                json!({"shader": v.shader, "subgroups": v.subgroups, "constants": constants})
            })
            .collect::<Vec<_>>(),
        "runs": runs.iter().map(Run::json).collect::<Vec<_>>(),
    });

    let start = Instant::now();
    let (url, reports) = serve(work.to_string());
    let patience = PATIENCE + PATIENCE_EACH * 2 * chosen.len() as u32;
    let report = Browser::open(&program, &url).report(&reports, patience);

    let errors = &report.errors;
    assert!(errors.is_empty(), "{} errors:\n{}", errors.len(), errors.join("\n"));
    let takes = |v: &&Variant| of(v).is_some_and(|(s, with)| report.takes(s, *with));
    let due = |variants: &[Variant]| variants.iter().filter(takes).count();
    assert_eq!(report.modules, texts.iter().filter(|(s, with)| report.takes(s, *with)).count());
    assert_eq!(report.pipelines, due(&chosen));
    let forms = |run: &Run| if run.both && report.subgroups { 2 } else { 1 };
    assert_eq!(report.results.len(), runs.iter().map(forms).sum::<usize>());
    for (which, subgroups, words) in &report.results {
        let Run { shader, constants, expected, .. } = &runs[*which];
        let out: Vec<f32> = words.iter().map(|w| f32::from_bits(*w)).collect();
        let name = format!("{shader} {constants:?}, subgroups {subgroups}");
        close(&name, &out, expected, 1e-5);
    }
    say(&format!(
        "browser covered: {} modules, {} of {} pipelines (GRITLM_BROWSER=all for all), {} launches; \
         {}, subgroups {}, f16 {}, {:.0} s",
        report.modules,
        report.pipelines,
        due(&all),
        report.results.len(),
        report.adapter,
        report.subgroups,
        report.f16,
        start.elapsed().as_secs_f64()
    ));
}
