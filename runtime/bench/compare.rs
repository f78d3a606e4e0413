//! Compares two records: which rows have become slower or faster.
//!
//! A row counts as changed if its time moved by more than [`allowed`]: one and a half times the
//! sum of both spreads, and at least 5 %. A spread is the interquartile range, 1.35 σ of a normal
//! distribution. With the same spread in both records the bound is 4 σ of a single timing, while
//! a median of seven moves by 0.5 σ. The bound is this wide because quartiles only reflect the
//! noise within a run: clocks, other programs and memory placement differ from run to run. The
//! minimum of 5 % covers these differences where the repeats agree to 0.1 %. The bound is a ratio,
//! the same for slower and faster: comparing two records in either direction reports the same
//! rows.

use super::record::{Limits, Record, Row};
use super::report::{gb_s, gflop_s, percent, time};
use super::table::plain;
use std::fmt;

/// Least relative change that counts, however close the repeats.
const LEAST: f64 = 0.05;

/// How a row has changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Slower by more than the spreads explain.
    Regression,
    /// Faster by more than the spreads explain.
    Improvement,
    /// Only in the new record.
    New,
    /// Only in the old record.
    Gone,
}

/// A row that has changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// How it has changed.
    pub kind: Kind,
    /// Device, suite, op and shape.
    pub row: [String; 4],
    /// Median time in microseconds in the old record; 0 for a new row.
    pub old_us: f64,
    /// Median time in microseconds in the new record; 0 for a row that is gone.
    pub new_us: f64,
    /// The change that the spreads explain, as a share of the smaller time.
    pub allowed: f64,
}

/// Result of [`compare`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Comparison {
    /// The rows that changed: regressions first, then the other kinds; the largest change first
    /// within each kind.
    pub changes: Vec<Change>,
    /// Number of rows in both records.
    pub compared: usize,
    /// What makes the records less comparable: another host, another device, other limits.
    pub notes: Vec<String>,
}

/// Returns the change that the spreads explain, as a share of the smaller time.
pub fn allowed(old: &Row, new: &Row) -> f64 {
    (1.5 * (old.spread + new.spread)).max(LEAST)
}

/// Compares the rows that both records have: those of the same device, suite, op and shape.
pub fn compare(old: &Record, new: &Record) -> Comparison {
    let key = |row: &Row| [&row.device, &row.suite, &row.op, &row.shape].map(String::clone);
    let find =
        |record: &'_ Record, row: &Row| record.rows.iter().position(|other| key(other) == key(row));
    let mut found = Comparison { notes: notes(old, new), ..Comparison::default() };
    for now in &new.rows {
        let row = key(now);
        let Some(before) = find(old, now).map(|at| &old.rows[at]) else {
            let change = Change { kind: Kind::New, row, old_us: 0.0, new_us: now.us, allowed: 0.0 };
            found.changes.push(change);
            continue;
        };
        found.compared += 1;
        let allowed = allowed(before, now);
        let kind = match (now.us / before.us, before.us / now.us) {
            (slower, _) if slower > 1.0 + allowed => Kind::Regression,
            (_, faster) if faster > 1.0 + allowed => Kind::Improvement,
            _ => continue,
        };
        found.changes.push(Change { kind, row, old_us: before.us, new_us: now.us, allowed });
    }
    for before in old.rows.iter().filter(|row| find(new, row).is_none()) {
        let (kind, row) = (Kind::Gone, key(before));
        found.changes.push(Change { kind, row, old_us: before.us, new_us: 0.0, allowed: 0.0 });
    }
    found.changes.sort_by(|a, b| {
        let by_kind = (a.kind as u8).cmp(&(b.kind as u8));
        by_kind.then(b.factor().total_cmp(&a.factor()))
    });
    found
}

impl Change {
    /// Returns the larger time divided by the smaller; 0 if the row is in only one record.
    fn factor(&self) -> f64 {
        let (low, high) = (self.old_us.min(self.new_us), self.old_us.max(self.new_us));
        if low > 0.0 { high / low } else { 0.0 }
    }
}

impl Comparison {
    /// Returns whether any row has become slower by more than the spreads explain.
    pub fn has_regression(&self) -> bool {
        self.count(Kind::Regression) > 0
    }

    fn count(&self, kind: Kind) -> usize {
        self.changes.iter().filter(|change| change.kind == kind).count()
    }

    /// Returns the comparison as human-readable lines.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = self.notes.clone();
        lines.extend(self.changes.iter().map(Change::to_string));
        let (slower, faster) = (self.count(Kind::Regression), self.count(Kind::Improvement));
        let same = self.compared - slower - faster;
        let (new, gone) = (self.count(Kind::New), self.count(Kind::Gone));
        let both = format!("{} rows in both: {slower} slower, {faster} faster", self.compared);
        lines.push(format!("{both}, {same} within the spread; {new} new, {gone} gone"));
        lines
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let row = self.row.iter().map(|part| plain(part)).collect::<Vec<_>>().join(" ");
        let (old, new) = (time(self.old_us), time(self.new_us));
        let allowed = percent(self.allowed);
        let factor = self.factor();
        match self.kind {
            Kind::Regression => {
                write!(
                    f,
                    "REGRESSION {row}: {old} -> {new}, {factor:.2}x slower (allowed {allowed})"
                )
            }
            Kind::Improvement => {
                write!(f, "faster {row}: {old} -> {new}, {factor:.2}x faster (allowed {allowed})")
            }
            Kind::New => write!(f, "new {row}: {new}"),
            Kind::Gone => write!(f, "gone {row}: was {old}"),
        }
    }
}

fn notes(old: &Record, new: &Record) -> Vec<String> {
    let mut notes = Vec::new();
    if old.host != new.host {
        notes.push(format!("another host: {} -> {}", plain(&old.host), plain(&new.host)));
    }
    for now in &new.devices {
        let Some(before) = old.devices.iter().find(|l| l.device == now.device) else { continue };
        let device = plain(&now.device);
        if before.name != now.name {
            let (old, new) = (plain(&before.name), plain(&now.name));
            notes.push(format!("{device}: another device: {old} -> {new}"));
        }
        let limit = |what: &str, of: fn(&Limits) -> f64, text: fn(f64) -> String| {
            let (old, new) = (of(before), of(now));
            let moved = old.max(new) > old.min(new) * (1.0 + LEAST);
            moved.then(|| format!("{device}: {what} moved: {} -> {}", text(old), text(new)))
        };
        notes.extend(limit("the copy limit", |l| l.copy_gb_s, gb_s));
        notes.extend(limit("the matmul limit", |l| l.matmul_gflop_s, gflop_s));
    }
    notes
}
