//! Renders a record as one self-contained HTML page: no scripts, no network access, light and
//! dark, printable. Every text of a record is escaped.

use super::plot::{beside, breakdown, colour, colours, roofline};
use super::record::{Limits, Peer, Record, Row, Step};
use super::report::{
    bytes, column_unit, digits, error, flops, gb_s, gflop_s, percent, ratio, time,
};
use super::table::plain;

/// The style sheet of the page.
const STYLE: &str = include_str!("page.css");

/// Explains the figures to the reader.
const READING: &str = "Times are medians of the repeats; the spread is the distance of their \
     quartiles as a share of the median. Bytes and operations are the least that the op needs, so \
     rates are lower bounds. A share is that of the limit that was measured on the same device in \
     the same run. A ratio is the peer's time by gritlm's: above 1, gritlm is faster.";

/// Returns the whole page.
pub fn page(record: &Record) -> String {
    let devices = record.all_devices();
    let mut body = format!(
        "<header>\n<h1>gritlm bench</h1>\n<p class=\"muted\">{}, {}<br>{}</p>\n</header>\n",
        escape(&record.program),
        escape(&record.date),
        escape(&record.host)
    );
    body += &contents(record, &devices);
    if !record.missing.is_empty() {
        body += "<div class=\"missing\">\n<h3>Not measured</h3>\n<ul>\n";
        record.missing.iter().for_each(|line| body += &format!("<li>{}</li>\n", escape(line)));
        body += "</ul>\n</div>\n";
    }
    body += "<main>\n";
    for (number, limits) in devices.iter().enumerate() {
        body += &section(record, limits, number);
    }
    body += &alone(record);
    body += &format!("</main>\n<footer><p>{READING}</p></footer>\n");
    // The policy forbids loading anything, in case a record finds a way to request it.
    let policy = "default-src 'none'; style-src 'unsafe-inline'";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>gritlm bench, {}</title>\n<style>\n{STYLE}</style>\n</head>\n\
         <body>\n{body}</body>\n</html>\n",
        escape(&record.date)
    )
}

/// Escapes a text of a record for HTML, attribute values included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::new();
    for c in plain(text).chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            c => out.push(c),
        }
    }
    out
}

/// Returns a card for each device, which links to its section.
fn contents(record: &Record, devices: &[Limits]) -> String {
    let mut out = String::from("<nav class=\"cards\" aria-label=\"Devices\">\n");
    for (number, limits) in devices.iter().enumerate() {
        let rows: Vec<&Row> = record.rows.iter().filter(|r| r.device == limits.device).collect();
        let shares = rows.iter().filter(|r| !r.limit.is_empty()).map(|r| r.share);
        let fastest = rows.iter().filter_map(|r| Some(ratio(record.beside(r).first()?, r)));
        let ratios: Vec<f64> = fastest.collect();
        let mut facts = vec![("rows", rows.len().to_string())];
        if limits.copy_gb_s > 0.0 {
            facts.push(("copies", gb_s(limits.copy_gb_s)));
        }
        if limits.matmul_gflop_s > 0.0 {
            facts.push(("matmul", gflop_s(limits.matmul_gflop_s)));
            if !limits.matmul_by.is_empty() {
                facts.push(("matmul by", escape(&limits.matmul_by)));
            }
        }
        facts.extend(median(shares.collect()).map(|s| ("median share of the limit", percent(s))));
        if !ratios.is_empty() {
            let logs: f64 = ratios.iter().map(|r| r.ln()).sum();
            let mean = (logs / ratios.len() as f64).exp();
            facts.push(("beside the fastest peer", format!("{mean:.2}x")));
        }
        let facts = facts.iter().map(|(name, fact)| format!("<dt>{name}</dt><dd>{fact}</dd>"));
        out += &format!(
            "<div class=\"card\">\n<h3><a href=\"#d{number}\">{}</a></h3>\n\
             <p class=\"muted\">{}</p>\n<dl>{}</dl>\n</div>\n",
            escape(&limits.device),
            escape(&limits.name),
            facts.collect::<String>()
        );
    }
    out + "</nav>\n"
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let last = values.len().checked_sub(1)?;
    Some(values[last / 2].midpoint(values[last.div_ceil(2)]))
}

/// Returns the section of one device.
fn section(record: &Record, limits: &Limits, number: usize) -> String {
    let name = if limits.name.is_empty() { "limits not measured" } else { &limits.name };
    let mut out = format!(
        "<section>\n<h2 id=\"d{number}\">{}</h2>\n<p class=\"muted\">{}</p>\n",
        escape(&limits.device),
        escape(name)
    );
    let picture = |class: &str, heading: &str, svg: &str, caption: &str| {
        let svg = wide(svg, heading);
        let caption = format!("<figcaption>{caption}</figcaption>");
        format!("<h3>{heading}</h3>\n<figure class=\"{class}\">{svg}{caption}</figure>\n")
    };
    if let Some(svg) = roofline(record, limits, &format!("roof{number}")) {
        let caption = "Each mark is a row of the tables below; hold the pointer over it for its \
                       figures. The nearer to the roof, the less there is left to gain.";
        out += &picture("", "Under the limits", &svg, caption);
    }
    if let Some(svg) = beside(record, limits, &format!("peers{number}")) {
        let marks = [("ours", "gritlm"), ("peer", "a slower peer"), ("faster", "a faster peer")];
        let marks = marks.map(|(class, what)| {
            format!("<span class=\"mark\"><span class=\"swatch {class}\"></span>{what}</span>")
        });
        let caption = "Time for the same work, as a multiple of gritlm's: longer bars are slower. \
                       Pointed bars go on.";
        let caption = format!("{caption}<br>{}", marks.concat());
        out += &picture("long", "Beside its peers", &svg, &caption);
    }
    let colours = colours(record);
    let steps = record.steps.iter().filter(|s| s.device == limits.device && !s.ops.is_empty());
    for (at, step) in steps.enumerate() {
        out += &step_part(step, &colours, &format!("step{number}-{at}"));
    }
    for (suite, rows) in record.suites(&limits.device) {
        out += &format!("<h3>Suite {}</h3>\n", escape(suite));
        out += &suite_table(record, suite, &rows);
    }
    out + "</section>\n"
}

/// Wraps content that may be wider than the screen, so that it scrolls by itself, also by
/// keyboard. `label` is HTML.
fn wide(inner: &str, label: &str) -> String {
    let named = format!("tabindex=\"0\" role=\"region\" aria-label=\"{label}\"");
    format!("<div class=\"wide\" {named}>{inner}</div>\n")
}

/// Returns a table with a caption. Each column has a name and whether it holds text; the first
/// cell of each row is its header.
fn table(caption: &str, columns: &[(&str, bool)], rows: &[Vec<String>]) -> String {
    let class = |is_text: bool| if is_text { " class=\"text\"" } else { "" };
    let mut out = format!("<table>\n<caption>{caption}</caption>\n<thead><tr>");
    for (name, is_text) in columns {
        out += &format!("<th scope=\"col\"{}>{name}</th>", class(*is_text));
    }
    out += "</tr></thead>\n<tbody>\n";
    for row in rows {
        out += "<tr>";
        for (at, (cell, (_, is_text))) in row.iter().zip(columns).enumerate() {
            out += &match at {
                0 => format!("<th scope=\"row\">{cell}</th>"),
                _ => format!("<td{}>{cell}</td>", class(*is_text)),
            };
        }
        out += "</tr>\n";
    }
    wide(&(out + "</tbody>\n</table>\n"), caption)
}

fn step_part(step: &Step, colours: &[&str], id: &str) -> String {
    let total: f64 = step.ops.iter().map(|op| op.us).sum();
    let name = escape(&step.step);
    let mut out = format!("<h3>{name}: {}</h3>\n", time(total));
    if total > 0.0 {
        out += &format!("<figure>{}</figure>\n", wide(&breakdown(step, colours, id), &name));
    }
    let (unit, size) = column_unit(step.ops.iter().map(|op| op.flops / op.us / 1e3));
    let columns = ["op", "launches", "time", "of the step", "GB/s", unit];
    let rows = step.ops.iter().map(|op| {
        let swatch = format!("<span class=\"swatch {}\"></span>", colour(colours, &op.op));
        vec![
            swatch + &escape(&op.op),
            op.launches.to_string(),
            time(op.us),
            percent(if total > 0.0 { op.us / total } else { 0.0 }),
            rate(op.bytes, op.us * 1e3),
            rate(op.flops, op.us * 1e3 * size),
        ]
    });
    let columns = columns.map(|name| (name, name == "op"));
    out + &table(&format!("Op by op: {name}"), &columns, &rows.collect::<Vec<_>>())
}

/// Formats a count divided by a time; empty if nothing was counted.
pub(super) fn rate(count: f64, time: f64) -> String {
    if count > 0.0 && time > 0.0 { digits(count / time) } else { String::new() }
}

fn suite_table(record: &Record, suite: &str, rows: &[&Row]) -> String {
    let some = |value: f64, text: String| if value > 0.0 { text } else { String::new() };
    let (unit, size) = column_unit(rows.iter().map(|row| row.gflop_s()));
    let columns = [
        ("op, shape, variant", true),
        ("median", false),
        ("spread", false),
        ("repeats", false),
        ("bytes", false),
        ("operations", false),
        ("GB/s", false),
        (unit, false),
        ("tokens/s", false),
        ("of the limit", false),
        ("error", false),
        ("beside", true),
    ];
    let cells = |row: &&Row| {
        vec![
            name_cell(row),
            time(row.us),
            percent(row.spread),
            row.repeats.to_string(),
            some(row.bytes, bytes(row.bytes)),
            some(row.flops, flops(row.flops)),
            rate(row.bytes, row.us * 1e3),
            rate(row.flops, row.us * 1e3 * size),
            row.tokens_s.map_or(String::new(), digits),
            share_cell(row),
            row.error.map_or(String::new(), error),
            beside_cell(record, row),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    // Columns that are empty in every row are left out.
    let used: Vec<usize> =
        (0..columns.len()).filter(|&at| cells.iter().any(|row| !row[at].is_empty())).collect();
    let columns: Vec<(&str, bool)> = used.iter().map(|&at| columns[at]).collect();
    let kept = |row: &Vec<String>| used.iter().map(|&at| row[at].clone()).collect();
    let cells: Vec<Vec<String>> = cells.iter().map(kept).collect();
    table(&format!("{} rows of {}", rows.len(), escape(suite)), &columns, &cells)
}

fn name_cell(row: &Row) -> String {
    let shape = format!("{} <span class=\"shape\">{}</span>", escape(&row.op), escape(&row.shape));
    let more = [&row.variant, &row.note].into_iter().filter(|text| !text.is_empty());
    let more = more.map(|text| format!("<span class=\"variant\">{}</span>", escape(text)));
    shape + &more.collect::<String>()
}

fn share_cell(row: &Row) -> String {
    if row.limit.is_empty() {
        return String::new();
    }
    let width = (100.0 * row.share).min(100.0);
    let meter = format!("<span class=\"meter\"><i style=\"width:{width:.0}%\"></i></span>");
    format!("{} {}{meter}", percent(row.share), escape(&row.limit))
}

fn beside_cell(record: &Record, row: &Row) -> String {
    let beside = record.beside(row);
    let one = beside.iter().map(|peer| {
        let times = ratio(peer, row);
        let class = if times < 1.0 { " class=\"slow\"" } else { "" };
        format!("<span{class}>{times:.2}x</span> {}", escape(&peer.peer))
    });
    one.collect::<Vec<_>>().join("<br>")
}

/// Returns the peers' figures that match none of our rows.
fn alone(record: &Record) -> String {
    let peers = record.alone();
    if peers.is_empty() {
        return String::new();
    }
    let columns = [("peer", true), ("op", true), ("shape", true), ("on", true), ("median", false)];
    let cells = |peer: &&Peer| {
        let texts = [&peer.peer, &peer.op, &peer.shape, &peer.device].map(|text| escape(text));
        texts.into_iter().chain([time(peer.us)]).collect()
    };
    let rows: Vec<Vec<String>> = peers.iter().map(cells).collect();
    let table = table("What peers did and nothing here", &columns, &rows);
    format!("<section>\n<h2>Other peers</h2>\n{table}</section>\n")
}
