//! Draws the pictures of the page as SVG: the roofline, the bars of peers, the breakdown of a
//! step.

use super::page::escape;
use super::record::{Limits, Peer, Record, Row, Step};
use super::report::{gb_s, gflop_s, percent, ratio, time};
use super::table::{plain, share};
use std::ops::Range;

/// Width of every picture; the height depends on the content.
const WIDTH: f64 = 1080.0;

/// Width of a character of 12-pixel text, bold and in a wide font.
const CHARACTER: f64 = 8.0;

/// Longest bar, as a multiple of our time; the bar of a slower peer ends in a point.
const LONGEST: f64 = 3.0;

/// Returns a picture of this height, with a title and a description for screen readers.
fn svg(id: &str, title: &str, description: &str, height: f64, body: &str) -> String {
    let (title, description) = (escape(title), escape(description));
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\">\
         <title id=\"{id}-t\">{title}</title><desc id=\"{id}-d\">{description}</desc>{body}</svg>\n"
    )
}

fn text(x: f64, y: f64, class: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(text))
}

/// Returns straight lines from point to point.
fn path(class: &str, points: &[[f64; 2]]) -> String {
    let points: Vec<String> = points.iter().map(|[x, y]| format!("{x:.1} {y:.1}")).collect();
    format!("<path class=\"{class}\" d=\"M{}\"/>", points.join("L"))
}

fn rect(class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2], title: &str) -> String {
    let title = escape(title);
    format!(
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
         height=\"{height:.1}\"><title>{title}</title></rect>"
    )
}

/// A logarithmic axis.
struct Log {
    from: Range<f64>,
    to: [f64; 2],
}

impl Log {
    /// Returns an axis over these pixels that contains all values and begins and ends at powers
    /// of ten.
    fn around(values: impl Iterator<Item = f64>, to: [f64; 2]) -> Self {
        let logs: Vec<f64> = values.map(f64::log10).collect();
        let least = logs.iter().copied().fold(f64::INFINITY, f64::min);
        let most = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let start = (least - 0.1).floor();
        Self { from: start..(most + 0.1).ceil().max(start + 1.0), to }
    }

    fn at(&self, value: f64) -> f64 {
        let share = (value.log10() - self.from.start) / (self.from.end - self.from.start);
        self.to[0] + share * (self.to[1] - self.to[0])
    }

    /// Returns the powers of ten on the axis.
    fn marks(&self) -> impl Iterator<Item = f64> {
        (self.from.start as i32..=self.from.end as i32).map(|power| 10f64.powi(power))
    }
}

/// Returns operations per byte and 10⁹ operations per second, if the row has both.
fn place(row: &Row) -> Option<[f64; 2]> {
    let at = [row.flops / row.bytes, row.gflop_s()];
    at.iter().all(|value| value.is_normal()).then_some(at)
}

/// Plots the rows of a device under its limits; `None` if no row has operations and bytes.
pub(super) fn roofline(record: &Record, limits: &Limits, id: &str) -> Option<String> {
    let rows = record.rows.iter().filter(|row| row.device == limits.device);
    let dots: Vec<(&Row, [f64; 2])> = rows.filter_map(|row| Some((row, place(row)?))).collect();
    if dots.is_empty() {
        return None;
    }
    let (height, left, right, top, bottom) = (520.0, 84.0, WIDTH - 16.0, 34.0, 468.0);
    let (copy, matmul) = (limits.copy_gb_s, limits.matmul_gflop_s);
    let has_roofs = copy > 0.0 && matmul > 0.0;
    let ridge = matmul / copy;
    let xs = dots.iter().map(|(_, [x, _])| *x).chain(has_roofs.then_some(ridge));
    let x = Log::around(xs, [left, right]);
    let ys = dots.iter().map(|(_, [_, y])| *y).chain((matmul > 0.0).then_some(matmul));
    let y = Log::around(ys, [bottom, top]);

    let mut body = String::new();
    let roof = has_roofs.then(|| {
        // The sloping roof begins at the left side or at the bottom.
        let (low, high) = (10f64.powf(x.from.start), 10f64.powf(x.from.end));
        let first = low.max(10f64.powf(y.from.start) / copy);
        let corners = [[first, copy * first], [ridge, matmul], [high, matmul]];
        corners.map(|[a, b]| [x.at(a), y.at(b)])
    });
    if let Some([a, b, c]) = roof {
        body += &path("under", &[[a[0], bottom], a, b, c, [c[0], bottom]]);
    }
    for mark in x.marks() {
        body += &path("grid", &[[x.at(mark), top], [x.at(mark), bottom]]);
        body += &text(x.at(mark), bottom + 18.0, "small muted middle", &power(mark));
    }
    for mark in y.marks() {
        body += &path("grid", &[[left, y.at(mark)], [right, y.at(mark)]]);
        body += &text(left - 8.0, y.at(mark) + 4.0, "small muted end", &whole(&gflop_s(mark)));
    }
    body += &path("axis", &[[left, bottom], [right, bottom]]);
    body += &path("axis", &[[left, top], [left, bottom]]);
    let below = bottom + 40.0;
    body += &text(left.midpoint(right), below, "muted middle", "operations a byte");
    let mut taken = Vec::new();
    if let Some([a, b, c]) = roof {
        body += &path("roof", &[a, b, c]);
        body += &path("ridge", &[b, [b[0], bottom]]);
        body += &text(c[0] - 4.0, c[1] - 8.0, "end halo", &format!("matmul {}", gflop_s(matmul)));
        taken.push([c[0] - 150.0, c[1] - 20.0, c[0], c[1]]);
        for (p, q) in [(a, b), (b, c)] {
            // No label may cross the roof.
            taken.extend((0..=80).map(|n| {
                let part = f64::from(n) / 80.0;
                let [x, y] = [p[0] + part * (q[0] - p[0]), p[1] + part * (q[1] - p[1])];
                [x - 2.0, y - 2.0, x + 2.0, y + 2.0]
            }));
        }
        let turn = (b[1] - a[1]).atan2(b[0] - a[0]).to_degrees();
        let middle = [a[0].midpoint(b[0]), a[1].midpoint(b[1])];
        body += &format!(
            "<text class=\"middle halo\" transform=\"translate({:.1} {:.1}) rotate({turn:.1})\" \
             y=\"-8\">copies {}</text>",
            middle[0],
            middle[1],
            gb_s(copy)
        );
    }
    body += &legend(
        left,
        &[("copy", "bound by copies"), ("matmul", "bound by matmul"), ("other", "by neither")],
    );
    let pixels = |[a, b]: [f64; 2]| [x.at(a), y.at(b)];
    for (row, at) in &dots {
        let [px, py] = pixels(*at);
        taken.push([px - 5.0, py - 5.0, px + 5.0, py + 5.0]);
        body += &dot(&row.limit, [px, py], &tooltip(row));
    }
    // Each op has one label, at its slowest row, if there is room.
    let mut named: Vec<(&str, [f64; 2], f64)> = Vec::new();
    for (row, at) in &dots {
        match named.iter_mut().find(|(op, ..)| *op == row.op) {
            Some(other) if other.2 >= row.us => {}
            Some(other) => *other = (&row.op, pixels(*at), row.us),
            None => named.push((&row.op, pixels(*at), row.us)),
        }
    }
    for (op, [px, py], _) in named {
        let width = CHARACTER * plain(op).chars().count() as f64;
        let sides = [(8.0, 4.0), (-8.0 - width, 4.0), (-width / 2.0, -9.0), (-width / 2.0, 18.0)];
        let free = sides.into_iter().map(|(dx, dy)| [px + dx, py + dy]).find(|[tx, ty]| {
            let inside = *tx > left && tx + width < right && *ty > top + 12.0 && *ty < bottom;
            let fits =
                |b: &[f64; 4]| tx + width < b[0] || *tx > b[2] || *ty < b[1] || ty - 11.0 > b[3];
            inside && taken.iter().all(fits)
        });
        if let Some([tx, ty]) = free {
            taken.push([tx, ty - 11.0, tx + width, ty]);
            body += &text(tx, ty, "small halo", op);
        }
    }
    let mut about = format!("{} rows by operations a byte and operations a second.", dots.len());
    if has_roofs {
        let (copy, matmul) = (gb_s(copy), gflop_s(matmul));
        about += &format!(" The roof is at {copy} of copies and {matmul} of matrix products.");
    }
    about += " The tables below have all figures.";
    let title = format!("Roofline of {}", plain(&limits.device));
    Some(svg(id, &title, &about, height, &body))
}

/// Returns the legend of the marks.
fn legend(mut x: f64, entries: &[(&str, &str)]) -> String {
    let mut body = String::new();
    for (class, what) in entries {
        body += &dot(class, [x + 6.0, 14.0], what);
        body += &text(x + 17.0, 18.0, "muted", what);
        x += 40.0 + 6.5 * what.len() as f64;
    }
    body
}

/// Returns a mark whose shape and colour depend on the limit.
fn dot(limit: &str, [x, y]: [f64; 2], title: &str) -> String {
    let title = escape(title);
    let (name, class, shape) = match limit {
        "copy" => ("circle", "copy", format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"")),
        "matmul" => {
            let (x, y) = (x - 4.5, y - 4.5);
            ("rect", "matmul", format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"9\" height=\"9\""))
        }
        _ => ("path", "other", format!("<path d=\"M{x:.1} {:.1}l6 6l-6 6l-6 -6z\"", y - 6.0)),
    };
    format!("{shape} class=\"dot {class}\"><title>{title}</title></{name}>")
}

fn tooltip(row: &Row) -> String {
    let rates = format!("{}, {}", gb_s(row.gb_s()), gflop_s(row.gflop_s()));
    let of = if row.limit.is_empty() { String::new() } else { format!(", {}", share(row)) };
    format!("{}, {}: {}, {rates}{of}", row.op, row.shape, time(row.us))
}

/// Formats a power of ten as `0.1` or `10`, and larger and smaller ones as `10⁴`.
fn power(value: f64) -> String {
    let power = value.log10().round();
    if (-2.0..4.0).contains(&power) {
        return value.to_string();
    }
    let raise = |c| match c {
        '-' => '⁻',
        c => "⁰¹²³⁴⁵⁶⁷⁸⁹".chars().nth(c as usize - '0' as usize).unwrap_or(c),
    };
    format!("10{}", power.to_string().chars().map(raise).collect::<String>())
}

/// Removes the decimals from a power of ten with its unit.
fn whole(rate: &str) -> String {
    rate.replace(".00 ", " ").replace(".0 ", " ")
}

/// Plots our time and each peer's for the same work as bars, in multiples of ours. Each op has a
/// picture of its own, so that a page break can come between them; `None` without peers.
pub(super) fn beside(record: &Record, limits: &Limits, id: &str) -> Option<String> {
    let rows = record.rows.iter().filter(|row| row.device == limits.device);
    let rows = rows.map(|row| (row, record.beside(row))).filter(|(_, peers)| !peers.is_empty());
    let mut ops: Vec<Vec<(&Row, Vec<&Peer>)>> = Vec::new();
    for (row, peers) in rows {
        let same = |op: &&mut Vec<(&Row, _)>| op[0].0.suite == row.suite && op[0].0.op == row.op;
        match ops.iter_mut().find(same) {
            Some(op) => op.push((row, peers)),
            None => ops.push(vec![(row, peers)]),
        }
    }
    let ratios = ops.iter().flatten().flat_map(|(row, all)| all.iter().map(|p| ratio(p, row)));
    let longest = ratios.reduce(f64::max)?.clamp(1.25, LONGEST);
    let pictures = ops.iter().enumerate().map(|(n, op)| bars(op, longest, &format!("{id}-{n}")));
    Some(pictures.collect())
}

/// Plots the bars of one op, up to `longest` times our time.
fn bars(rows: &[(&Row, Vec<&Peer>)], longest: f64, id: &str) -> String {
    let (left, right, bar) = (260.0, WIDTH - 270.0, 13.0);
    let unit = (right - left) / longest;
    let op = plain(&rows[0].0.op);
    let mut y = 22.0;
    let mut body = text(0.0, 14.0, "strong", &op);
    for (row, peers) in rows {
        body += &text(0.0, y + 11.0, "small muted", &cut(&row.shape, 40));
        body += &rect("ours", [left, y], [unit, bar], &tooltip(row));
        body += &text(left + unit + 8.0, y + 11.0, "", &time(row.us));
        for peer in peers {
            y += bar + 2.0;
            let times = ratio(peer, row);
            let (fill, class) = if times < 1.0 { ("faster", "slow") } else { ("peer", "") };
            let what = format!("{times:.2}x {} {}", time(peer.us), plain(&peer.peer));
            let end = left + unit * times.min(longest);
            body += &match times > longest {
                true => pointed(fill, [left, y], [end, bar], &what),
                false => rect(fill, [left, y], [end - left, bar], &what),
            };
            let room = ((WIDTH - end - 8.0) / CHARACTER) as usize;
            body += &text(end + 8.0, y + 11.0, class, &cut(&what, room));
        }
        y += bar + 9.0;
    }
    let axis = path("axis", &[[left, 18.0], [left, y - 5.0]]);
    let title = format!("{op} beside its peers");
    let about = "For each shape a bar for gritlm and one for each peer, as long as the time that \
                 it takes: longer is slower. The tables below have the ratios.";
    svg(id, &title, about, y, &(body + &axis))
}

/// Returns a bar with a pointed end, for one that is cut off.
fn pointed(class: &str, [x, y]: [f64; 2], [end, height]: [f64; 2], title: &str) -> String {
    let (half, shoulder, title) = (height / 2.0, end - height / 2.0, escape(title));
    let outline = format!("M{x:.1} {y:.1}H{shoulder:.1}l{half} {half}l-{half} {half}H{x:.1}Z");
    format!("<path class=\"{class}\" d=\"{outline}\"><title>{title}</title></path>")
}

/// Shortens a text to at most `room` characters.
fn cut(text: &str, room: usize) -> String {
    match text.chars().count() > room {
        true => text.chars().take(room - 1).chain(['…']).collect(),
        false => text.into(),
    }
}

/// Returns the ops of all steps, the largest share of time first. The place of an op determines
/// its colour.
pub(super) fn colours(record: &Record) -> Vec<&str> {
    let mut all: Vec<(&str, f64)> = Vec::new();
    for step in &record.steps {
        let total: f64 = step.ops.iter().map(|op| op.us).sum();
        for op in &step.ops {
            match all.iter_mut().find(|(name, _)| *name == op.op) {
                Some((_, share)) => *share += op.us / total,
                None => all.push((&op.op, op.us / total)),
            }
        }
    }
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all.into_iter().map(|(name, _)| name).collect()
}

/// Returns the class of an op's colour; the ops from the ninth on share the last.
pub(super) fn colour(colours: &[&str], op: &str) -> String {
    let place = colours.iter().position(|other| *other == op).unwrap_or(8);
    format!("c{}", place.min(8))
}

/// Returns one bar with the ops of a step by their share of its time.
pub(super) fn breakdown(step: &Step, colours: &[&str], id: &str) -> String {
    let total: f64 = step.ops.iter().map(|op| op.us).sum();
    let (mut x, height, mut body) = (0.0, 44.0, String::new());
    for op in &step.ops {
        let width = WIDTH * op.us / total;
        let what =
            format!("{}: {}, {} of the step", plain(&op.op), time(op.us), percent(op.us / total));
        // One pixel of background separates neighbours.
        let gap = if width > 4.0 { 1.0 } else { 0.0 };
        body += &rect(&colour(colours, &op.op), [x, 0.0], [width - gap, height], &what);
        let name = plain(&op.op);
        if CHARACTER * name.chars().count() as f64 + 12.0 < width {
            body += &text(x + 8.0, 18.0, "on strong", &name);
            body += &text(x + 8.0, 34.0, "on small", &percent(op.us / total));
        } else if width > 44.0 {
            body += &text(x + 8.0, 34.0, "on small", &percent(op.us / total));
        }
        x += width;
    }
    let longest = step.ops.first().map_or(String::new(), |op| {
        format!(" {} takes longest, {}.", plain(&op.op), percent(op.us / total))
    });
    let about = format!("Where {} of the step go, op by op.{longest}", time(total));
    svg(id, &plain(&step.step), &about, height, &body)
}
