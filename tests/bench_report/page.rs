//! The page of a record: one file of escaped text that looks right in a browser.

use super::sample;
use crate::browser::chromium;
use crate::devtools::{Browser, looking};
use crate::support::say;
use gritlm_bench::page::page;
use gritlm_bench::record::Record;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// The sample, with markup wherever a record has text.
fn hostile() -> Record {
    let text = sample().json();
    let evil = "<script>alert(1)</script>\\\"'><img src=x onerror=alert(2)>&amp;";
    let mut json: Value = serde_json::from_str(&text).unwrap();
    fn spoil(value: &mut Value, evil: &str) {
        match value {
            Value::String(text) => text.push_str(evil),
            Value::Array(all) => all.iter_mut().for_each(|value| spoil(value, evil)),
            Value::Object(all) => all.values_mut().for_each(|value| spoil(value, evil)),
            _ => {}
        }
    }
    spoil(&mut json, evil);
    Record::parse(json.to_string().as_bytes(), Path::new("hostile.json")).unwrap()
}

#[test]
fn the_page_is_one_file_of_escaped_text() {
    for record in [sample(), hostile()] {
        let page = page(&record);
        for part in ["<script", "<img", "http:", "https:", "@import", "url(", "\"><", "src="] {
            let found = page.find(part).map(|at| &page[at.saturating_sub(80)..at + 40]);
            let is_text = part == "src=" && page.contains("&lt;img src=x");
            assert!(found.is_none() || is_text || part == "\"><", "{part} in {found:?}");
        }
        for part in ["wgpu: no adapter", "Not measured", "<svg", "<th scope=\"row\">"] {
            assert!(page.contains(part), "no {part}");
        }
    }
    assert!(page(&hostile()).contains("cuda&lt;script&gt;alert(1)&lt;/script&gt;"));
}

/// What is wrong with a page, a line each: pictures and marks without size, text that leaves its
/// picture, text that is hard to tell from what is behind it, a page wider than its window.
pub(crate) const LOOK: &str = r#"
    const svgs = [...document.querySelectorAll("svg")];
    for (const svg of svgs) {
        const name = svg.querySelector("title")?.textContent;
        const { width, height } = svg.getBoundingClientRect();
        if (!(width > 200 && height > 20)) wrong.push(`${name}: ${width} x ${height}`);
        if (!svg.querySelector("desc")?.textContent) wrong.push(`${name}: no description`);
        const box = svg.viewBox.baseVal;
        for (const text of svg.querySelectorAll("text")) {
            const b = text.getBBox();
            const label = `${name}: ${text.textContent}`;
            const turned = text.hasAttribute("transform");
            const inside = b.x > -0.5 && b.x + b.width < box.width + 0.5
                && b.y >= 0 && b.y + b.height <= box.height;
            if (!turned && !inside) {
                wrong.push(`${label}: leaves the picture`);
            }
            let back = page;
            if (text.classList.contains("on")) {
                let rect = text;
                while (rect.tagName !== "rect") rect = rect.previousElementSibling;
                back = getComputedStyle(rect).fill;
                const r = rect.getBBox();
                const fits = b.x >= r.x && b.x + b.width <= r.x + r.width;
                if (!fits) wrong.push(`${label}: leaves its bar`);
            }
            const ratio = contrast(getComputedStyle(text).fill, back);
            if (ratio < 4.5) wrong.push(`${label}: contrast ${ratio}`);
        }
        for (const mark of svg.querySelectorAll("rect, circle, path")) {
            const b = mark.getBBox();
            if (!(b.width > 0 || b.height > 0)) wrong.push(`${name}: an empty ${mark.tagName}`);
        }
    }
    for (const element of document.querySelectorAll("body *:not(svg *)")) {
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own) continue;
        const ratio = contrast(getComputedStyle(element).color, behind(element));
        if (ratio < 4.5) wrong.push(`${element.tagName} ${element.textContent}: contrast ${ratio}`);
    }
    if (document.documentElement.scrollWidth > innerWidth) wrong.push("wider than the window");
    for (const table of document.querySelectorAll("table")) {
        const columns = table.querySelectorAll("thead th[scope=col]").length;
        for (const row of table.tBodies[0].rows) {
            if (row.cells.length !== columns) wrong.push("a row that is not as its heading");
        }
    }
    return {
        wrong, svgs: svgs.length, background: light(page), scripts: document.scripts.length,
        images: document.images.length, rows: document.querySelectorAll("tbody tr").length,
        marks: document.querySelectorAll("svg .dot title").length,
        title: document.title,
    };
"#;

#[test]
fn the_page_looks_right_in_a_browser() {
    let Some(program) = chromium() else {
        return say(
            "SKIPPED bench_report::page::the_page_looks_right_in_a_browser: no Chromium here \
             (Debian: chromium; elsewhere CHROMIUM=its program)",
        );
    };
    let start = Instant::now();
    let mut browser = Browser::open(&program);
    for record in [sample(), hostile()] {
        let page = page(&record);
        for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "light")] {
            browser.screen(width, "screen", scheme);
            let url = browser.visit_page(&page);
            let look = browser.value(&looking(LOOK));
            let complaints = browser.complaints(&url);
            assert!(complaints.is_empty(), "{complaints:?}");
            // Cards are as wide as a window; only hostile names without a space are wider.
            let wrong: Vec<&Value> = look["wrong"].as_array().unwrap().iter().collect();
            assert!(wrong.is_empty(), "{scheme}, {width}: {wrong:#?}");
            // A roofline and a step each, and bars for seven ops and loading of the one with peers.
            assert_eq!((&look["svgs"], &look["scripts"]), (&json!(4 + 9), &json!(0)));
            assert_eq!(look["images"], 0);
            let ops: usize = record.steps.iter().map(|step| step.ops.len()).sum();
            assert_eq!(look["rows"], record.rows.len() + ops + record.alone().len());
            let is_dark = look["background"].as_f64().unwrap() < 0.2;
            assert_eq!(is_dark, scheme == "dark", "background {}", look["background"]);
        }
    }
    // On paper it is light, and all of it is there.
    browser.screen(1280, "print", "dark");
    browser.visit_page(&page(&sample()));
    assert!(browser.value(&looking(LOOK))["background"].as_f64().unwrap() > 0.8);
    let pdf = browser.call("Page.printToPDF", json!({"printBackground": true}));
    assert!(pdf["data"].as_str().unwrap().len() > 50_000);

    // And this test sees what it is there for.
    browser.screen(1280, "screen", "light");
    let planted = page(&sample())
        .replace("<h1>", "<img src=\"http://127.0.0.1:9/x.png\"><script>alert(1)</script><h1>")
        .replace("<text x=\"", "<text fill=\"red\" x=\"9")
        .replace("--muted: #57606a", "--muted: #d0d0d0");
    let url = browser.visit_page(&planted);
    assert!(browser.complaints(&url).len() >= 2, "a request and a script were not noticed");
    let wrong = browser.value(&looking(LOOK))["wrong"].to_string();
    assert!(wrong.contains("leaves the picture") && wrong.contains("contrast"), "{wrong}");
    say(&format!("bench page: {:.0} s in a browser", start.elapsed().as_secs_f64()));
}
