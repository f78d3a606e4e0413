//! Reads and writes a [`Record`], and provides what all forms of the report share.

use super::record::{Limits, Peer, Record, Row, VERSION};
use crate::{Error, Result};
use gritlm_model::files::keep;
use serde_json::Value;
use std::fs::read;
use std::path::Path;

impl Record {
    /// Reads a file that [`Record::write`] wrote.
    ///
    /// # Errors
    /// When the file cannot be read, and as [`Record::parse`].
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(&read(path).map_err(Error::io(path))?, path)
    }

    /// Parses a record from the bytes of the file `path`.
    ///
    /// # Errors
    /// One line that names the file and the field: not JSON, another version, missing fields or
    /// fields of another type, figures that cannot have been measured.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self> {
        let wrong = |problem| input(path, problem);
        let value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(not_json(&e)))?;
        let object = "a record of gritlm bench, a JSON object with version";
        let version = value.get("version").ok_or_else(|| wrong(format!("expected {object}")))?;
        if version.as_u64() != Some(VERSION.into()) {
            return Err(wrong(format!("version: expected {VERSION}, found {version}")));
        }
        // The record is parsed from the text and not from the value, so that the message has line
        // and column.
        let record: Self = serde_json::from_slice(bytes)
            .map_err(|e| wrong(format!("not a record of gritlm bench: {e}")))?;
        record.check(path)?;
        Ok(record)
    }

    /// Writes the record atomically as JSON, and creates the folders of the file.
    ///
    /// # Errors
    /// When the file cannot be written, or the record holds what [`Record::parse`] would refuse.
    pub fn write(&self, path: &Path) -> Result<()> {
        self.check(path)?;
        let mut text = self.json();
        text.push('\n');
        keep(path, text.as_bytes()).map_err(Error::io(path))
    }

    /// Returns the record as JSON with one field per line.
    pub fn json(&self) -> String {
        // A record holds only strings and numbers, which serialization cannot refuse.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Checks that every figure is a finite number that is not negative, and that times are above
    /// 0.
    fn check(&self, path: &Path) -> Result<()> {
        let figure = |name: String, value: f64, least: &str| {
            let right =
                value.is_finite() && if least == "above 0" { value > 0.0 } else { value >= 0.0 };
            match right {
                true => Ok(()),
                false => {
                    Err(input(path, format!("{name}: expected a number {least}, found {value}")))
                }
            }
        };
        for limits in &self.devices {
            let name = |field| format!("devices, {}, {field}", limits.device);
            figure(name("copy_gb_s"), limits.copy_gb_s, "from 0")?;
            figure(name("matmul_gflop_s"), limits.matmul_gflop_s, "from 0")?;
        }
        for row in &self.rows {
            let name = |field| format!("rows, {} {} {}, {field}", row.device, row.op, row.shape);
            figure(name("us"), row.us, "above 0")?;
            for (field, value) in [
                ("spread", row.spread),
                ("bytes", row.bytes),
                ("flops", row.flops),
                ("share", row.share),
                ("tokens_s", row.tokens_s.unwrap_or(0.0)),
                ("error", row.error.unwrap_or(0.0)),
            ] {
                figure(name(field), value, "from 0")?;
            }
        }
        for step in &self.steps {
            for op in &step.ops {
                let name =
                    |field| format!("steps, {} {} {}, {field}", step.device, step.step, op.op);
                figure(name("us"), op.us, "from 0")?;
                figure(name("bytes"), op.bytes, "from 0")?;
                figure(name("flops"), op.flops, "from 0")?;
            }
        }
        for peer in &self.peers {
            let name = format!("peers, {} {} {}, us", peer.peer, peer.op, peer.shape);
            figure(name, peer.us, "above 0")?;
        }
        Ok(())
    }

    /// Returns the limits of a device; only its name is set if they were not measured.
    pub fn limits(&self, device: &str) -> Limits {
        let known = self.devices.iter().find(|l| l.device == device).cloned();
        known.unwrap_or_else(|| Limits { device: device.into(), ..Limits::default() })
    }

    /// Returns all devices with limits, rows or steps; those with limits come first.
    pub fn all_devices(&self) -> Vec<Limits> {
        let named = self.devices.iter().map(|l| &l.device);
        let rows = self.rows.iter().map(|r| &r.device);
        let all = unique(named.chain(rows).chain(self.steps.iter().map(|s| &s.device)));
        all.into_iter().map(|device| self.limits(device)).collect()
    }

    /// Returns the suites of a device, each with its rows, in the order of measurement.
    pub fn suites(&self, device: &str) -> Vec<(&str, Vec<&Row>)> {
        let rows = || self.rows.iter().filter(|r| r.device == device);
        let suites = unique(rows().map(|r| &r.suite)).into_iter();
        suites.map(|s| (s.as_str(), rows().filter(|r| &r.suite == s).collect())).collect()
    }

    /// Returns the peers that did the same work on such a device, fastest first.
    pub fn beside(&self, row: &Row) -> Vec<&Peer> {
        let limits = self.limits(&row.device);
        let same = |p: &&Peer| p.op == row.op && p.shape == row.shape && p.ran_on(&limits);
        let mut peers: Vec<&Peer> = self.peers.iter().filter(same).collect();
        peers.sort_by(|a, b| a.us.total_cmp(&b.us));
        peers
    }

    /// Returns the peers' figures that match none of our rows.
    pub fn alone(&self) -> Vec<&Peer> {
        let beside: Vec<&Peer> = self.rows.iter().flat_map(|row| self.beside(row)).collect();
        let is_beside = |peer: &Peer| beside.iter().any(|other| std::ptr::eq(*other, peer));
        self.peers.iter().filter(|peer| !is_beside(peer)).collect()
    }
}

impl Peer {
    /// Returns whether it ran on this device or on one of its kind. The peer names the device as
    /// `--device` takes it (`cuda`, `cpu`) or by its name (`NVIDIA H100`, `CUDA (NVIDIA H100)`), in
    /// whole or in part. A peer without a device is assumed to match.
    pub(super) fn ran_on(&self, limits: &Limits) -> bool {
        let [said, device, name] =
            [&self.device, &limits.device, &limits.name].map(|text| text.trim().to_lowercase());
        let kind = device.split(':').next().unwrap_or_default();
        let inner = said.split_once(" (").and_then(|(_, inner)| inner.strip_suffix(')'));
        let inner = inner.unwrap_or(&said);
        let has = |text: &str, part: &str| !part.is_empty() && text.contains(part);
        match said.as_str() {
            "" => true,
            "cuda" | "wgpu" => said == kind,
            // The record does not hold the name of our CPU, and a software GPU can have `CPU` in its
            // own name.
            cpu if cpu == "cpu" || cpu.starts_with("cpu ") => kind == "cpu",
            _ => said == device || has(inner, &name) || has(&name, inner),
        }
    }
}

/// Returns how much faster than a peer we are: its time divided by ours.
pub(super) fn ratio(peer: &Peer, row: &Row) -> f64 {
    peer.us / row.us
}

/// Returns each text once, in order of first occurrence.
fn unique<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<&'a String> {
    let mut all = Vec::new();
    for text in texts {
        if !all.contains(&text) {
            all.push(text);
        }
    }
    all
}

/// Returns an error about the contents of a file.
pub(super) fn input(path: &Path, problem: String) -> Error {
    Error::from(gritlm::Error::Input { what: path.display().to_string(), problem })
}

/// Returns why a file is not JSON, in one line.
pub(super) fn not_json(error: &serde_json::Error) -> String {
    match error.is_eof() {
        true => format!("not JSON: it ends too early: {error}"),
        false => format!("not JSON: {error}"),
    }
}

/// Formats a number with three significant digits.
pub(super) fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 || v == 0.0 => 2,
        v if v >= 0.0005 => 3,
        _ => return format!("{value:.1e}"),
    };
    if value == 0.0 { "0".into() } else { format!("{value:.decimals$}") }
}

/// Formats a value with the largest of these units in which it is at least 1. Each unit has its
/// size in units of `value`.
fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    // A value that would round to 1000 takes the next unit.
    let fits = |&&(size, _): &&(f64, &str)| value >= 0.9995 * size;
    let (size, unit) = units.iter().rev().find(fits).unwrap_or(&units[0]);
    format!("{} {unit}", digits(value / size))
}

/// Formats a time in microseconds.
pub(super) fn time(us: f64) -> String {
    scaled(us, &[(1e-3, "ns"), (1.0, "µs"), (1e3, "ms"), (1e6, "s")])
}

/// Formats a number of bytes.
pub(super) fn bytes(bytes: f64) -> String {
    scaled(bytes, &[(1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")])
}

/// Formats a number of operations.
pub(super) fn flops(flops: f64) -> String {
    let units = [(1.0, "FLOP"), (1e3, "kFLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP")];
    scaled(flops, &units)
}

/// Formats a rate in 10⁹ bytes per second.
pub(super) fn gb_s(rate: f64) -> String {
    scaled(rate, &[(1e-3, "MB/s"), (1.0, "GB/s")])
}

/// Formats a rate in 10⁹ operations per second.
pub(super) fn gflop_s(rate: f64) -> String {
    scaled(rate, &[(1e-3, "MFLOP/s"), (1.0, "GFLOP/s"), (1e3, "TFLOP/s")])
}

/// Returns the unit for a column of such rates: its name, and its size in 10⁹ operations per
/// second.
pub(super) fn column_unit(rates: impl Iterator<Item = f64>) -> (&'static str, f64) {
    if rates.fold(0.0, f64::max) < 1e4 { ("GFLOP/s", 1.0) } else { ("TFLOP/s", 1e3) }
}

/// Formats a relative error.
pub(super) fn error(error: f64) -> String {
    if error == 0.0 { "0".into() } else { format!("{error:.0e}") }
}

/// Formats a share or a spread.
pub(super) fn percent(share: f64) -> String {
    match 100.0 * share {
        p if p >= 9.95 || p == 0.0 => format!("{p:.0} %"),
        p => format!("{p:.1} %"),
    }
}
