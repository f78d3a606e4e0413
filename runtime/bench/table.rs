//! Renders a record as text for a terminal: at most [`WIDTH`] columns, a block for each suite of
//! a device.

use super::page::rate;
use super::record::{Limits, Record, Row, Step};
use super::report::{
    bytes, column_unit, digits, error, flops, gb_s, gflop_s, percent, ratio, time,
};

/// Columns of the widest line.
pub const WIDTH: usize = 110;

/// Width of the name before the figures.
const NAMES: usize = 40;

/// Width of each figure; two spaces separate them.
const COLUMNS: [usize; 7] = [7, 6, 7, 10, 6, 7, 11];

/// Returns the whole report.
pub fn table(record: &Record) -> String {
    let mut out = Lines::default();
    let program = [&record.program, &record.date, &record.host].map(|s| plain(s));
    out.wrapped(0, "gritlm bench", &program);
    for device in record.all_devices() {
        out.line(String::new());
        out.wrapped(0, "", &heading(&device));
        for (suite, rows) in record.suites(&device.device) {
            out.line(String::new());
            // All rows of a suite have the same unit, so that figures can be compared down the
            // column.
            let (rate, size) = column_unit(rows.iter().map(|row| row.gflop_s()));
            let names = ["median", "spread", "bytes", "flops", "GB/s", rate, "share"];
            out.line(format!("{:NAMES$}{}", plain(suite), columns(names)));
            // Shapes begin in the same column if that leaves them room.
            let length = |text: &str| plain(text).chars().count();
            let op = rows.iter().map(|row| length(&row.op)).max().unwrap_or(0);
            let shape = rows.iter().map(|row| length(&row.shape)).max().unwrap_or(0);
            let op = if op + 2 + shape <= NAMES { op } else { 0 };
            for row in rows {
                row_lines(&mut out, record, row, op, size);
            }
        }
        for step in record.steps.iter().filter(|s| s.device == device.device) {
            out.line(String::new());
            step_lines(&mut out, step);
        }
    }
    let alone = record.alone();
    if !alone.is_empty() {
        out.line(String::new());
        out.line("Peers that did what nothing here did".into());
        for peer in alone {
            let what = [&peer.op, &peer.shape, &peer.device].map(|s| plain(s));
            out.wrapped(2, &format!("{} {}", plain(&peer.peer), time(peer.us)), &what);
        }
    }
    if !record.missing.is_empty() {
        out.line(String::new());
        out.line("Not measured".into());
        record.missing.iter().for_each(|line| out.wrapped(2, "", &[plain(line)]));
    }
    out.text
}

/// Returns a device and its limits, as parts of a heading.
pub(super) fn heading(limits: &Limits) -> Vec<String> {
    let [device, name] = [&limits.device, &limits.name].map(|text| plain(text));
    let kind = device.split(':').next().unwrap_or_default();
    let mut parts = vec![match (name.is_empty(), name.starts_with(kind)) {
        (true, _) => device,
        // `cuda:0 (NVIDIA H100)` says enough on its own.
        (false, true) => name,
        (false, false) => format!("{device}: {name}"),
    }];
    if limits.copy_gb_s > 0.0 {
        parts.push(format!("copies {}", gb_s(limits.copy_gb_s)));
    }
    if limits.matmul_gflop_s > 0.0 {
        let by = match limits.matmul_by.as_str() {
            "" => String::new(),
            by => format!(" ({})", plain(by)),
        };
        parts.push(format!("matmul {}{by}", gflop_s(limits.matmul_gflop_s)));
    }
    parts.extend(limits.pinned_gb_s.map(|rate| format!("from pinned memory {}", gb_s(rate))));
    parts
}

/// Writes the figures of one row and, on the lines below, what has no column.
fn row_lines(out: &mut Lines, record: &Record, row: &Row, width: usize, size: f64) {
    let or_empty = |value: f64, text: String| if value > 0.0 { text } else { String::new() };
    let figures = [
        time(row.us),
        percent(row.spread),
        or_empty(row.bytes, bytes(row.bytes)),
        or_empty(row.flops, flops(row.flops)),
        or_empty(row.bytes, digits(row.gb_s())),
        or_empty(row.flops, digits(row.gflop_s() / size)),
        share(row),
    ];
    let columns = columns(figures.each_ref().map(String::as_str));
    let name = format!("{:width$}  {}", plain(&row.op), plain(&row.shape));
    if name.chars().count() > NAMES {
        match name.chars().count() > WIDTH {
            true => out.wrapped(0, "", &[name]),
            false => out.line(name),
        }
        out.line(format!("{:NAMES$}{columns}", ""));
    } else {
        out.line(format!("{name:NAMES$}{columns}"));
    }
    let mut more: Vec<String> = (record.beside(row).iter())
        .map(|peer| format!("{:.2}x {}", ratio(peer, row), plain(&peer.peer)))
        .collect();
    more.extend(row.tokens_s.map(|rate| format!("{} tokens/s", digits(rate))));
    more.extend(row.error.map(|e| format!("error {}", error(e))));
    for text in [&row.variant, &row.note].into_iter().filter(|text| !text.is_empty()) {
        more.push(plain(text));
    }
    if !more.is_empty() {
        out.wrapped(4, "", &more);
    }
}

fn columns(figures: [&str; 7]) -> String {
    let each = figures.iter().zip(COLUMNS).map(|(figure, width)| format!("  {figure:>width$}"));
    each.collect()
}

/// Formats the share of the limit: `92 % copy`.
pub(super) fn share(row: &Row) -> String {
    match row.limit.as_str() {
        "" => String::new(),
        limit => format!("{} {}", percent(row.share), plain(limit)),
    }
}

fn step_lines(out: &mut Lines, step: &Step) {
    let total: f64 = step.ops.iter().map(|op| op.us).sum();
    out.wrapped(0, "", &[format!("{}: {}", plain(&step.step), time(total))]);
    let (unit, size) = column_unit(step.ops.iter().map(|op| op.flops / op.us / 1e3));
    let columns = [("launches", 9), ("time", 9), ("of all", 7), ("GB/s", 8), (unit, 9)];
    let columns = columns.map(|(name, width)| format!("  {name:>width$}"));
    out.line(format!("  {:22}{}", "", columns.concat()));
    for op in &step.ops {
        let of_all = if total > 0.0 { percent(op.us / total) } else { String::new() };
        out.line(format!(
            "  {:22}  {:>9}  {:>9}  {of_all:>7}  {:>8}  {:>9}",
            plain(&op.op),
            op.launches,
            time(op.us),
            rate(op.bytes, op.us * 1e3),
            rate(op.flops, op.us * 1e3 * size)
        ));
    }
}

/// Replaces control characters, which could move the cursor of a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Lines of at most [`WIDTH`] columns.
#[derive(Default)]
struct Lines {
    text: String,
}

impl Lines {
    fn line(&mut self, line: String) {
        self.text.push_str(line.trim_end());
        self.text.push('\n');
    }

    /// Appends a title and parts, separated by `; `. Lines that are too long wrap, with more
    /// indentation.
    fn wrapped(&mut self, indent: usize, title: &str, parts: &[String]) {
        let mut line = format!("{:indent$}{title}", "");
        let mut first = title.is_empty();
        let length = |text: &str| text.chars().count();
        for part in parts {
            let mut separator = if first { "" } else { "; " };
            first = false;
            for word in part.split(' ').filter(|w| !w.is_empty()) {
                let full = length(&line) + length(separator) + length(word) > WIDTH;
                if full && !line.trim().is_empty() {
                    self.line(line + separator);
                    line = " ".repeat(indent + 2);
                    separator = "";
                }
                let room = WIDTH - length(&line) - length(separator);
                line += separator;
                // A word wider than a line is truncated.
                line.extend(word.chars().take(room));
                separator = " ";
            }
        }
        self.line(line);
    }
}
