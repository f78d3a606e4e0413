//! The page at `/` in a browser: embed, chat, the batch as it runs, a key; and how it looks.
//! `GRITLM_SCREENSHOTS=FOLDER cargo test --release serve_page` keeps pictures of it.

use crate::browser::chromium;
use crate::devtools::{Browser, looking};
use crate::serve::Server;
use crate::support::say;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use gritlm::{Device, Embed, Engine, Finish, Options, Piece, Prompt, Sampling, dot};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const TEXTS: [&str; 4] = [
    "a chess interface for the desktop",
    "play against a computer opponent on a board",
    "search for a pattern in <b>PDF</b> files",
    "capture and look into network packets",
];
const INSTRUCTION: &str = "Find the package that fits.";
const QUESTION: &str = "Describe the package pdfgrep.";

fn engine() -> Engine {
    Engine::open("demo", &Options::default().device(Device::Cpu)).unwrap()
}

fn pieces(engine: &Engine, prompt: &Prompt, max_tokens: usize) -> Vec<Piece> {
    let how = Sampling::greedy().max_tokens(max_tokens);
    engine.generate(prompt, &how).unwrap().map(Result::unwrap).collect()
}

fn answer(engine: &Engine, prompt: &Prompt, max_tokens: usize) -> String {
    pieces(engine, prompt, max_tokens).into_iter().map(|piece| piece.text).collect()
}

/// The page, as somebody uses it.
struct Page {
    browser: Browser,
    url: String,
}

impl Page {
    /// None, and a line that says so, where there is no browser.
    fn open(test: &str, server: &Server) -> Option<Self> {
        let Some(program) = chromium() else {
            say(&format!(
                "SKIPPED serve_page::{test}: no Chromium here (Debian: chromium; elsewhere \
                 CHROMIUM=its program)"
            ));
            return None;
        };
        let (mut browser, url) = (Browser::open(&program), format!("{}/", server.url));
        browser.screen(1280, "screen", "light");
        browser.visit(&url);
        Some(Self { browser, url })
    }

    #[track_caller]
    fn value(&mut self, expression: &str) -> Value {
        self.browser.value(expression)
    }

    #[track_caller]
    fn until(&mut self, expression: &str) {
        self.browser.until(expression);
    }

    #[track_caller]
    fn until_text(&mut self, id: &str, text: &str) {
        self.until(&format!("document.getElementById('{id}').textContent === {}", json!(text)));
    }

    #[track_caller]
    fn text(&mut self, id: &str) -> String {
        let text = self.value(&format!("document.getElementById('{id}').textContent"));
        text.as_str().unwrap().to_string()
    }

    /// Types into a field; what was there is replaced.
    fn fill(&mut self, id: &str, text: &str) {
        let field = format!("document.getElementById('{id}')");
        self.value(&format!("{field}.focus(), {field}.select()"));
        self.browser.call("Input.insertText", json!({"text": text}));
        assert_eq!(self.value(&format!("{field}.value")), text);
    }

    fn press(&mut self, key: &str) {
        let mut event = json!({"type": "keyDown", "key": key, "code": key});
        if key == "Enter" {
            event["windowsVirtualKeyCode"] = json!(13);
            event["text"] = json!("\r");
        }
        self.browser.call("Input.dispatchKeyEvent", event);
        let event = json!({"type": "keyUp", "key": key, "code": key});
        self.browser.call("Input.dispatchKeyEvent", event);
    }

    /// The table of similarities.
    fn compare(&mut self, texts: &[&str], instruction: &str) -> Vec<Vec<f32>> {
        self.fill("texts", &texts.join("\n"));
        self.fill("instruction", instruction);
        self.press("Enter");
        let cells = texts.len().pow(2);
        self.until(&format!("document.querySelectorAll('#matrix td').length === {cells}"));
        let rows = self.value(
            "[...document.querySelectorAll('#matrix tbody tr')].map(row =>
                [...row.cells].slice(1).map(cell => Number(cell.textContent)))",
        );
        serde_json::from_value(rows).unwrap()
    }

    fn ask(&mut self, message: &str, tokens: usize) {
        self.fill("max-tokens", &tokens.to_string());
        self.fill("message", message);
        self.press("Enter");
    }

    /// The conversation when the answer is there: who, and what.
    fn log(&mut self) -> Vec<(String, String)> {
        self.until("!document.getElementById('send').disabled");
        let log = self.value(
            "[...document.querySelectorAll('#log li')].map(li =>
                [li.className, li.querySelector('p').textContent])",
        );
        serde_json::from_value(log).unwrap()
    }

    /// Keeps a picture, where that is wanted.
    fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("GRITLM_SCREENSHOTS") else { return };
        let whole = json!({"captureBeyondViewport": true, "format": "png"});
        let png = self.browser.call("Page.captureScreenshot", whole);
        let png = BASE64_STANDARD.decode(png["data"].as_str().unwrap()).unwrap();
        std::fs::write(Path::new(&folder).join(format!("page-{name}.png")), png).unwrap();
    }

    #[track_caller]
    fn no_complaints(&mut self) {
        let complaints = self.browser.complaints(&self.url);
        assert!(complaints.is_empty(), "{complaints:?}");
    }
}

fn said(who: &str, what: &str) -> (String, String) {
    (who.to_string(), what.to_string())
}

#[test]
fn both_modes_answer_as_the_library_does() {
    let (server, engine) = (Server::start(&[]), engine());
    let Some(mut page) = Page::open("both_modes_answer_as_the_library_does", &server) else {
        return;
    };
    page.until_text("state", "ready");
    assert_eq!(page.text("model"), "demo");
    for instruction in [INSTRUCTION, ""] {
        let found = page.compare(&TEXTS, instruction);
        let vectors = engine.embed(&TEXTS, &Embed::with_instruction(instruction)).unwrap();
        for (row, a) in found.iter().zip(&vectors) {
            let right = vectors.iter().map(|b| dot(&a.vector, &b.vector));
            // Three digits are shown.
            let close = row.iter().zip(right).all(|(found, right)| (found - right).abs() < 6e-4);
            assert!(close && row.len() == TEXTS.len(), "{instruction:?}: {found:?}");
        }
        page.value("document.getElementById('matrix').replaceChildren()");
    }

    page.ask(QUESTION, 24);
    let first = answer(&engine, &Prompt::user(QUESTION), 24);
    let mut expected = vec![said("user", QUESTION), said("assistant", &first)];
    assert_eq!(page.log(), expected);
    let (past, text) = (vec![(QUESTION.into(), first)], "In which section is it?".to_string());
    page.ask(&text, 16);
    expected.push(said("user", &text));
    expected.push(said("assistant", &answer(&engine, &Prompt::Chat { past, text }, 16)));
    assert_eq!(page.log(), expected);
    page.no_complaints();

    // What is refused is as if it had not been asked, but for the reason.
    page.ask("word ".repeat(5000).trim(), 16);
    assert_eq!(page.log(), expected);
    assert!(page.text("chat-note").contains("context length"), "{}", page.text("chat-note"));
    assert_eq!(page.value("document.getElementById('message').value.length"), 24999);
    page.value("document.getElementById('clear').click()");
    assert_eq!(page.log(), []);
}

#[test]
fn an_answer_can_be_stopped() {
    let (server, engine) = (Server::start(&[]), engine());
    let Some(mut page) = Page::open("an_answer_can_be_stopped", &server) else { return };
    // To which the demo model's answer does not end by itself.
    let question = ["package"; 11].join(" ");
    let question = question.as_str();
    let whole = pieces(&engine, &Prompt::user(question), 1500);
    assert_eq!(whole.last().unwrap().finish, Some(Finish::Length));
    let whole: String = whole.into_iter().map(|piece| piece.text).collect();
    // At the first word, and not some milliseconds later.
    page.value(
        "new MutationObserver(() => {
            if (document.querySelector('#log .assistant p').textContent) {
                document.getElementById('stop').click();
            }
        }).observe(document.getElementById('log'), {childList: true, subtree: true})",
    );
    page.ask(question, 1500);
    let log = page.log();
    assert!(!log[1].1.is_empty() && log[1].1 != whole && whole.starts_with(&log[1].1), "{log:?}");
    assert_eq!(page.value("document.querySelector('#log small').textContent"), "stopped");
    // And the server has dropped it from its batch.
    page.until_text("cancelled", "1");
    page.until_text("running", "0");
    page.no_complaints();
}

#[test]
fn the_batch_is_seen() {
    let server = Server::start(&[]);
    let Some(mut page) = Page::open("the_batch_is_seen", &server) else { return };
    page.until_text("state", "ready");
    std::thread::scope(|scope| {
        scope.spawn(|| server.post("/v1/embeddings", &json!({"input": vec![TEXTS; 40].concat()})));
        for question in TEXTS {
            let messages = json!([{"role": "user", "content": question}]);
            let body = json!({"messages": messages, "max_tokens": 40, "temperature": 0});
            let server = &server;
            scope.spawn(move || server.post("/v1/chat/completions", &body).ok());
        }
    });
    let live = server.get("/stats").ok();
    let steps = live["steps"].as_array().unwrap();
    let last = steps.last().unwrap()["step"].as_u64().unwrap();
    page.until(&format!("document.getElementById('chart').ariaValueNow === '{last}'"));
    for kind in ["embed", "prefill", "decode"] {
        // The last 120 are shown.
        let bars = steps.iter().rev().take(120).filter(|step| step[kind] != json!(0)).count();
        // In percent; also an answer's one token beside a thousand of texts is seen.
        let heights = page.value(&format!(
            "[...document.getElementById('bars-{kind}').getAttribute('d')
                .matchAll(/M[^ ]+ ([^h]+)h.8V([^h]+)h/g)].map(([, from, to]) => from - to)"
        ));
        let heights: Vec<f64> = serde_json::from_value(heights).unwrap();
        assert!(bars > 0 && heights.len() == bars, "{kind}: {bars} bars, {heights:?}");
        assert!(heights.iter().all(|height| (1.9..=100.0).contains(height)), "{kind}: {heights:?}");
    }
    page.until_text("finished", "5");
    assert_eq!(page.text("steps"), last.to_string());
    page.until("document.querySelectorAll('#times tr').length === 7");
    let times = "[...document.querySelectorAll('#times tr')].map(row => row.cells[1].textContent)";
    page.until(&format!("{times}.join() === '4,4,4,1,0,4,1'"));

    // By keyboard, step by step.
    page.value("document.getElementById('chart').focus()");
    page.press("Home");
    page.press("ArrowRight");
    let second = &steps[steps.len().saturating_sub(120) + 1];
    let said = page.text("step");
    assert!(said.starts_with(&format!("Step {}, ", second["step"])), "{said}");
    page.picture("batch");
    assert_eq!(page.value("document.getElementById('chart').ariaValueText"), said);

    // Whoever does not look does not ask.
    let asked = || {
        let text = server.get("/metrics").text;
        let line = text.lines().find(|line| line.contains("requests_total{path=\"/stats\""));
        line.unwrap().to_string()
    };
    let hide = |hidden| {
        format!(
            "Object.defineProperty(document, 'hidden', {{value: {hidden}, configurable: true}}),
                 document.dispatchEvent(new Event('visibilitychange'))"
        )
    };
    page.value(&hide(true));
    let (start, mut before) = (Instant::now(), String::new());
    while before != asked() {
        assert!(start.elapsed() < Duration::from_secs(20), "it asks without end: {before}");
        before = asked();
        std::thread::sleep(Duration::from_secs(1));
    }
    page.value(&hide(false));
    server.post("/v1/embeddings", &json!({"input": "one"})).ok();
    page.until_text("finished", "6");
    page.no_complaints();
}

#[test]
fn a_key_is_asked_for_once() {
    let server = Server::start(&["--api-key", "right"]);
    let Some(mut page) = Page::open("a_key_is_asked_for_once", &server) else { return };
    let locked = "!document.getElementById('lock').hidden";
    page.until(locked);
    page.until_text("state", "wants a key");
    page.fill("key", "wrong");
    page.press("Enter");
    page.until("document.getElementById('lock-note').textContent !== ''");
    page.until(locked);
    page.fill("key", "right");
    page.press("Enter");
    page.until_text("state", "ready");
    assert_eq!(page.value(locked), false);
    assert_eq!(page.compare(&TEXTS[..2], "").len(), 2);
    page.ask(QUESTION, 4);
    assert_eq!(page.log().len(), 2);
    // It is known to this tab, and nowhere in the page.
    let url = page.url.clone();
    page.browser.visit(&url);
    page.until_text("state", "ready");
    assert_eq!(
        page.value(&format!("{locked} || document.body.innerHTML.includes('right')")),
        false
    );
    page.no_complaints();
}

/// What is wrong with how the page looks, a line each.
const LOOK: &str = r#"
    for (const element of document.querySelectorAll("body *:not(svg *)")) {
        if (!element.checkVisibility() || element.disabled) continue;
        const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (!own && !element.value) continue;
        const ratio = contrast(getComputedStyle(element).color, behind(element));
        if (ratio < 4.5) wrong.push(`${element.tagName} ${element.textContent}: contrast ${ratio}`);
        const box = element.getBoundingClientRect();
        const scrolls = element.closest(".wide, #log");
        if (!scrolls && (box.left < 0 || box.right > innerWidth)) {
            wrong.push(`${element.tagName} ${element.textContent}: outside of the window`);
        }
    }
    for (const mark of ["embed", "prefill", "decode"]) {
        const ratio = contrast(getComputedStyle(document.getElementById(`bars-${mark}`)).fill,
            getComputedStyle(document.getElementById("bars")).backgroundColor);
        if (ratio < 3 - 0.2) wrong.push(`bars-${mark}: contrast ${ratio}`);
    }
    if (document.documentElement.scrollWidth > innerWidth) wrong.push("wider than the window");
    for (const field of document.querySelectorAll("input, textarea, button, [tabindex]")) {
        const name = field.labels?.length || field.ariaLabel || field.textContent.trim();
        if (!name) wrong.push(`${field.outerHTML}: no label`);
    }
    const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
    if (new Set(ids).size !== ids.length) wrong.push("an id twice");
    return { wrong, background: light(page) };
"#;

#[test]
fn it_looks_right() {
    let server = Server::start(&[]);
    let Some(mut page) = Page::open("it_looks_right", &server) else { return };
    page.until_text("state", "ready");
    page.ask(QUESTION, 48);
    page.log();
    page.compare(&TEXTS, INSTRUCTION);
    page.ask("In which section is it?", 24);
    page.log();
    page.until("document.querySelectorAll('#times tr').length === 7");
    page.value("document.getElementById('lock').hidden = false");
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (400, "light"), (400, "dark")] {
        page.browser.screen(width, "screen", scheme);
        let look = page.value(&looking(LOOK));
        assert_eq!(look["wrong"], json!([]), "{scheme}, {width}: {look:#}");
        assert_eq!(look["background"].as_f64().unwrap() < 0.2, scheme == "dark", "{look}");
        page.picture(&format!("{width}-{scheme}"));
    }
    page.no_complaints();

    // And this test sees what it is there for.
    page.value(
        "document.getElementById('state').style.color = '#666',
         document.getElementById('model').style.marginLeft = '60rem',
         document.getElementById('clear').textContent = ''",
    );
    let wrong = page.value(&looking(LOOK))["wrong"].to_string();
    for part in ["contrast", "outside", "no label"] {
        assert!(wrong.contains(part), "{part} in {wrong}");
    }
    // Nothing runs that is not in the page's files.
    page.value(
        "{
            const script = document.createElement('script');
            script.textContent = 'window.ran = true';
            document.body.append(script);
        }",
    );
    assert_eq!(page.value("window.ran === true"), false);
    assert!(page.browser.complaints(&page.url).iter().any(|c| c.contains("Content Security")));
}

#[test]
fn its_files_are_kept_and_asked_for_again() {
    let server = Server::start(&["--api-key", "key"]);
    let html = server.get("/").text;
    for (path, kind) in [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/api.js", "text/javascript; charset=utf-8"),
        ("/live.js", "text/javascript; charset=utf-8"),
        ("/page.svg", "image/svg+xml"),
    ] {
        let file = server.get(path);
        assert_eq!((file.status, file.header("content-type")), (200, kind));
        assert_eq!(file.header("cache-control"), "no-cache");
        assert_eq!(file.header("x-content-type-options"), "nosniff");
        assert!(file.header("content-security-policy").starts_with("default-src 'none'; "));
        let foreign = ["http:", "https:", "unsafe", "@import", " style=", " onclick="];
        let text = file.text.replace("http://www.w3.org/2000/svg", "");
        assert!(foreign.iter().all(|part| !text.contains(part)), "{path}");
        let tag = file.header("etag").to_string();
        let again = server.get_with(path, &[("if-none-match", &format!("\"x\", W/{tag}"))]);
        assert_eq!((again.status, again.text.as_str(), again.header("etag")), (304, "", &*tag));
        assert_eq!(server.get_with(path, &[("if-none-match", "\"x\"")]).text, file.text);
    }
    assert!(!html.contains("<style") && html.matches("<script ").count() == 2);
}
