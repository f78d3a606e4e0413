//! A record as text for a terminal: at most [`WIDTH`] columns, a block for each suite of a device.

use super::record::{Limits, Record, Row, Step};
use super::report::{bytes, digits, flops, gb_s, gflop_s, percent, ratio, time};

/// Columns of the widest line.
pub const WIDTH: usize = 110;

/// Of what stands before the figures.
const NAMES: usize = 40;

/// Of each figure; two spaces stand between.
const COLUMNS: [(&str, usize); 7] = [
    ("median", 7),
    ("spread", 6),
    ("bytes", 7),
    ("flops", 10),
    ("GB/s", 6),
    ("GFLOP/s", 7),
    ("share", 11),
];

/// The whole report.
pub fn table(record: &Record) -> String {
    let mut out = Lines::default();
    let program = [&record.program, &record.date, &record.host].map(|s| plain(s));
    out.wrapped(0, "gritlm bench", &program);
    for device in record.all_devices() {
        out.line(String::new());
        out.wrapped(0, "", &heading(&device));
        for (suite, rows) in record.suites(&device.device) {
            out.line(String::new());
            let columns = COLUMNS.map(|(name, width)| format!("  {name:>width$}"));
            out.line(format!("{:NAMES$}{}", plain(suite), columns.concat()));
            rows.into_iter().for_each(|row| row_lines(&mut out, record, row));
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

/// A device and its limits.
pub(super) fn heading(limits: &Limits) -> Vec<String> {
    let mut parts = vec![format!("{}: {}", plain(&limits.device), plain(&limits.name))];
    if limits.name.is_empty() {
        parts = vec![plain(&limits.device)];
    }
    if limits.copy_gb_s > 0.0 {
        parts.push(format!("copies {}", gb_s(limits.copy_gb_s)));
    }
    if limits.matmul_gflop_s > 0.0 {
        parts.push(format!("matmul {}", gflop_s(limits.matmul_gflop_s)));
    }
    parts
}

/// The figures of one row; beneath, what has no column.
fn row_lines(out: &mut Lines, record: &Record, row: &Row) {
    let or_empty = |value: f64, text: String| if value > 0.0 { text } else { String::new() };
    let figures = [
        time(row.us),
        percent(row.spread),
        or_empty(row.bytes, bytes(row.bytes)),
        or_empty(row.flops, flops(row.flops)),
        or_empty(row.bytes, digits(row.gb_s())),
        or_empty(row.flops, digits(row.gflop_s())),
        share(row),
    ];
    let columns = figures.iter().zip(COLUMNS).map(|(figure, (_, width))| format!("  {figure:>width$}"));
    let columns: String = columns.collect();
    let name = format!("{}  {}", plain(&row.op), plain(&row.shape));
    if name.chars().count() > NAMES {
        out.wrapped(0, "", &[name]);
        out.line(format!("{:NAMES$}{columns}", ""));
    } else {
        out.line(format!("{name:NAMES$}{columns}"));
    }
    let mut more: Vec<String> = (record.beside(row).iter())
        .map(|peer| format!("{:.2}x {}", ratio(peer, row), plain(&peer.peer)))
        .collect();
    more.extend(row.tokens_s.map(|rate| format!("{} tokens/s", digits(rate))));
    more.extend(row.error.map(|error| format!("error {error:.0e}")));
    if !row.variant.is_empty() {
        more.push(plain(&row.variant));
    }
    if !more.is_empty() {
        out.wrapped(4, "", &more);
    }
}

/// `92 % copy`.
pub(super) fn share(row: &Row) -> String {
    match row.limit.as_str() {
        "" => String::new(),
        limit => format!("{} {}", percent(row.share), plain(limit)),
    }
}

fn step_lines(out: &mut Lines, step: &Step) {
    let total: f64 = step.ops.iter().map(|op| op.us).sum();
    out.wrapped(0, "", &[format!("{}: {}", plain(&step.step), time(total))]);
    let columns = [("launches", 9), ("time", 9), ("of all", 7), ("GB/s", 8), ("GFLOP/s", 9)];
    let columns = columns.map(|(name, width)| format!("  {name:>width$}"));
    out.line(format!("  {:22}{}", "", columns.concat()));
    for op in &step.ops {
        let rate = |count: f64| match count > 0.0 && op.us > 0.0 {
            true => digits(count / op.us / 1e3),
            false => String::new(),
        };
        let of_all = if total > 0.0 { percent(op.us / total) } else { String::new() };
        out.line(format!(
            "  {:22}  {:>9}  {:>9}  {of_all:>7}  {:>8}  {:>9}",
            plain(&op.op),
            op.launches,
            time(op.us),
            rate(op.bytes),
            rate(op.flops)
        ));
    }
}

/// A text of a file as a terminal may have it: without what would move its cursor.
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

    /// A title and parts, `; ` between them; what does not fit goes on, further in.
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
                // A word wider than a line is cut.
                line.extend(word.chars().take(room));
                separator = " ";
            }
        }
        self.line(line);
    }
}
