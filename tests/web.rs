//! The npm package of `web/` in a browser, on its WebGPU (SwiftShader) and on the CPU: the values of the
//! native engine, calls that come at once, cancelled ones, bad files; and the page of `gritlm serve`.
//!
//! `web/build` makes the package; `GRITLM_WEB=target/web/package cargo test --release web::` runs this.
//! `GRITLM_SCREENSHOTS=FOLDER` keeps pictures of the page.

use crate::browser::chromium;
use crate::devtools::{Browser, looking};
use crate::serve::Server;
use crate::support::{say, smollm2};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use gritlm::{Device, Embed, Engine, Message, Options, Prompt, Role, Sampling};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

const TEXTS: [&str; 3] =
    ["a chess interface for the desktop", "search in PDF files", "Zwei Wörter: 漢字"];
const QUESTION: &str = "Describe the package pdfgrep.";

/// First use compiles pipelines, which takes SwiftShader tens of seconds.
const PATIENCE: Duration = Duration::from_secs(300);

/// A server with the package, and a browser.
struct Web {
    server: Server,
    browser: Browser,
}

impl Web {
    /// None, and a line that says so, where there is no browser or no package.
    fn open(test: &str, gpu: bool) -> Option<Self> {
        let Some(package) = std::env::var_os("GRITLM_WEB").map(PathBuf::from) else {
            let expected = std::env::var_os("GRITLM_EXPECT_WEB");
            assert!(expected.is_none(), "GRITLM_WEB is missing, GRITLM_EXPECT_WEB is set");
            say(&format!("SKIPPED web::{test}: set GRITLM_WEB to what web/build makes"));
            return None;
        };
        let Some(program) = chromium() else {
            say(&format!("SKIPPED web::{test}: no Chromium here"));
            return None;
        };
        let server = Server::start(&["--web", package.to_str().unwrap()]);
        let flags: &[&str] = match gpu {
            true => &["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"],
            false => &["--disable-features=WebGPU", "--disable-gpu"],
        };
        let browser = Browser::open_with(&program, flags, PATIENCE);
        Some(Self { server, browser })
    }

    /// Goes to an address of the package and loads the module.
    fn import(&mut self) {
        self.browser.visit(&format!("{}/web/package.json", self.server.url));
        self.run("globalThis.web = await import('/web/gritlm.js');");
    }

    /// What the body of an async function returns, or the message of what it throws.
    fn run(&mut self, body: &str) -> Value {
        self.browser.awaited(&format!(
            "(async () => {{ try {{ {body} }} catch (e) {{ return {{thrown: e.message}}; }} }})()"
        ))
    }
}

fn native(model: &str) -> Engine {
    Engine::open(model, &Options::default().device(Device::Cpu)).unwrap()
}

fn tokens(engine: &Engine, prompt: &Prompt, max_tokens: usize) -> (Vec<u32>, String) {
    let how = Sampling::greedy().max_tokens(max_tokens);
    let pieces = engine.generate(prompt, &how).unwrap().map(Result::unwrap);
    let (tokens, texts): (Vec<u32>, Vec<String>) =
        pieces.map(|piece| (piece.token.token, piece.text)).unzip();
    (tokens, texts.concat())
}

/// JavaScript that reads an answer to its end.
const READ: &str = "const read = async answer => { let [tokens, text] = [[], '']; \
     for await (const piece of answer) { tokens.push(piece.token); text += piece.text; } \
     return {tokens, text}; };";

#[track_caller]
fn same_vectors(found: &Value, engine: &Engine, how: &Embed) {
    let expected = engine.embed(&TEXTS, how).unwrap();
    for (found, expected) in found.as_array().unwrap().iter().zip(expected) {
        let found: Vec<f64> = serde_json::from_value(found.clone()).unwrap();
        let far = found.iter().zip(&expected.vector).map(|(a, &b)| (a - f64::from(b)).abs());
        let far = far.fold(0.0, f64::max);
        assert!(found.len() == expected.vector.len() && far < 1e-5, "{far}");
    }
}

/// What one page does on one device: everything at once, then one after the other.
fn demo(web: &mut Web, device: &str) {
    let engine = native("demo");
    let about = web.run(&format!(
        "globalThis.model = await web.open('demo', {{device: '{device}'}}); return model.about;"
    ));
    assert_eq!(about["dimensions"], engine.config().dim, "{about}");
    let both = web.run(&format!(
        "{READ} const texts = {}; const how = {{instruction: 'Find it.'}};
         const [vectors, answer] = await Promise.all([
             model.embed(texts, how), read(model.generate({}, {{maxTokens: 12}}))]);
         return {{vectors: vectors.map(one => [...one]), answer}};",
        json!(TEXTS),
        json!(QUESTION)
    ));
    same_vectors(&both["vectors"], &engine, &Embed::with_instruction("Find it."));
    let (expected, text) = tokens(&engine, &Prompt::user(QUESTION), 12);
    assert_eq!(both["answer"], json!({"tokens": expected, "text": text}));
    // They shared steps.
    let mixed = web.run("return model.stats().steps.some(s => s.embed > 0 && s.prefill > 0);");
    assert_eq!(mixed, true);

    // Leaving the loop, and aborting, free the pages.
    let left = web.run(&format!(
        "let pieces = 0;
         for await (const piece of model.generate({0}, {{maxTokens: 400}})) {{
             pieces += 1;
             if (pieces === 3) break;
         }}
         const abort = new AbortController();
         let thrown = '';
         try {{
             for await (const piece of model.generate({0}, {{maxTokens: 400, signal: abort.signal}})) {{
                 abort.abort(new Error('enough'));
             }}
         }} catch (error) {{ thrown = error.message; }}
         const [vector] = await model.embed(['a text']);
         const {{stats}} = model.stats();
         return {{pieces, thrown, cancelled: stats.cancelled, running: stats.running}};",
        json!(QUESTION)
    ));
    assert_eq!(left, json!({"pieces": 3, "thrown": "enough", "cancelled": 2, "running": 0}));

    // A document's keys and values are not computed again.
    let asked = web.run(
        "const index = model.index();
         await index.add(['xboard: a chess interface for the desktop', 'pdfgrep: search in PDF files']);
         let [document, text, before] = [null, '', model.stats().stats.past_tokens];
         for await (const piece of index.ask('play chess', {maxTokens: 6})) {
             if (piece.document) document = piece.document; else text += piece.text;
         }
         const reused = model.stats().stats.past_tokens - before;
         return {index: document.index, text, reused};",
    );
    let document = "xboard: a chess interface for the desktop";
    let passage = engine.embed(&[document], &Embed::default().keep_kv(true)).unwrap().remove(0);
    let cache = engine.import(passage.kv.as_ref().unwrap()).unwrap();
    let rest = gritlm::model::prompt::rag_after_doc("play chess");
    let rest = Prompt::Tokens(engine.tokenizer().encode_continued(&rest).unwrap());
    let how = Sampling::greedy().max_tokens(6);
    let answer = engine.generate_after(cache, &rest, &how.verbatim(false)).unwrap();
    let text: String = answer.map(|piece| piece.unwrap().text).collect();
    assert_eq!(asked["index"], 0, "{asked}");
    assert_eq!(asked["reused"], passage.tokens, "{asked}");
    assert_eq!(asked["text"].as_str().unwrap().trim(), text.trim());

    // What cannot be: one line each.
    for (call, expected) in [
        ("await model.embed([''])", "text 0"),
        ("await model.embed(['a'], {dimensions: 9999})", "dimensions: expected 1 to 192"),
        ("await model.embed(['a'], {pooling: 'x'})", "options: unknown field `pooling`"),
        ("await read(model.generate('a', {temperature: -1}))", "temperature"),
        ("await read(model.chat([{role: 'bot', content: 'a'}]))", "role: expected system, user"),
        ("await web.open('demo', {device: 'tpu'})", "device: expected auto, webgpu or cpu"),
        ("await web.open(new File(['no model'], 'a.gguf'))", "a.gguf: not a GGUF file"),
        ("await web.open([new File(['{}'], 'config.json')])", "config.json: "),
        ("await web.open('/web/nothing.gguf')", "the server answers 404"),
        ("await web.open(7)", "source: expected \"demo\""),
    ] {
        let thrown = web.run(&format!("{READ} {call}; return 'nothing thrown';"));
        let thrown = thrown["thrown"].as_str().unwrap_or_default();
        assert!(thrown.contains(expected) && !thrown.contains('\n'), "{call}: {thrown}");
    }
    let thrown = web.run("model.close(); model.close(); await model.embed(['a']);");
    assert_eq!(thrown, json!({"thrown": "the model was closed"}));
}

#[test]
fn the_demo_on_webgpu() {
    let Some(mut web) = Web::open("the_demo_on_webgpu", true) else { return };
    web.import();
    demo(&mut web, "webgpu");
}

#[test]
fn the_demo_without_webgpu() {
    let Some(mut web) = Web::open("the_demo_without_webgpu", false) else { return };
    web.import();
    let thrown = web.run("await web.open('demo', {device: 'webgpu'});");
    assert!(thrown["thrown"].as_str().unwrap().contains("has no WebGPU"), "{thrown}");
    demo(&mut web, "auto");
    let device = web.run("return (await web.open('demo')).about.device;");
    assert!(device.as_str().unwrap().starts_with("cpu ("), "{device}");
}

/// A quantised model from the visitor's disk, and once more from the browser's storage alone.
#[test]
fn a_quantised_model_is_kept() {
    let Some(path) = smollm2("web::a_quantised_model_is_kept") else { return };
    let Some(mut web) = Web::open("a_quantised_model_is_kept", false) else { return };
    let folder = web.browser.profile().join("smol");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(&path, folder.join("smol.gguf")).unwrap();
    let question = "What is the capital of France?";
    let message = Message { role: Role::User, content: question.into() };
    let (expected, _) = tokens(&native(&path), &Prompt::Messages(vec![message]), 8);
    web.import();
    web.run("document.body.innerHTML = '<input type=file id=file>'; return 1;");
    web.browser.choose("#file", &folder.join("smol.gguf"));
    for (source, loaded) in [
        ("document.querySelector('#file').files[0]", true),
        ("{kept: (await web.kept())[0].id}", false),
    ] {
        if !loaded {
            std::fs::remove_file(folder.join("smol.gguf")).unwrap();
        }
        let found = web.run(&format!(
            "{READ} const model = await web.open({source}, {{kvTokens: 256}});
             const messages = [{{role: 'user', content: {}}}];
             const answer = await read(model.chat(messages, {{maxTokens: 8}}));
             model.close();
             return {{tokens: answer.tokens, kept: (await web.kept()).length}};",
            json!(question)
        ));
        assert_eq!(found, json!({"tokens": expected, "kept": 1}), "{source}");
    }
    let left = web.run(
        "await web.forget((await web.kept())[0].id);
         return [(await web.kept()).length, (await (await caches.open('gritlm')).keys()).length];",
    );
    assert_eq!(left, json!([0, 0]));
}

/// The page as a visitor sees it: opens the demo, compares, chats, asks; light, dark and narrow.
#[test]
fn the_page() {
    let Some(mut web) = Web::open("the_page", false) else { return };
    let url = format!("{}/web/", web.server.url);
    web.browser.screen(1280, "screen", "light");
    web.browser.visit(&url);
    picture(&mut web.browser, "web-first");
    let browser = &mut web.browser;
    browser.value("document.getElementById('device').value = 'cpu'");
    browser.value("document.getElementById('demo').click()");
    browser.until("!document.getElementById('main').hidden");
    browser.until("document.getElementById('state').textContent === 'ready'");
    let note = browser.value("document.getElementById('open-note').textContent");
    assert!(note.as_str().unwrap().contains("on the CPU, which is slower"), "{note}");
    browser.value("document.querySelector('#embed button').click()");
    browser.until("document.querySelectorAll('#matrix td').length === 16");
    browser.value("document.getElementById('max-tokens').value = 16");
    browser.value("document.getElementById('send').click()");
    browser.until("/16 tokens/.test(document.querySelector('#log small')?.textContent)");
    let (_, text) = tokens(&native("demo"), &Prompt::user(QUESTION), 16);
    let said = browser.value("document.querySelector('#log .assistant p').textContent");
    assert_eq!(said, text);
    browser.value("document.getElementById('asking').click()");
    browser.until("/first word after/.test(document.getElementById('ask-note').textContent)");
    let found = browser.value("document.getElementById('found').textContent");
    assert!(found.as_str().unwrap().starts_with("pdfgrep"), "{found}");
    browser.until("document.getElementById('bars-embed').getAttribute('d') !== ''");
    for (width, scheme) in [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")] {
        browser.screen(width, "screen", scheme);
        let wrong = browser.value(&looking(LOOK));
        assert_eq!(wrong, json!([]), "{width} {scheme}");
        picture(browser, &format!("web-{width}-{scheme}"));
    }
    assert_eq!(browser.complaints(&url), Vec::<String>::new());
}

/// Nothing is wider than the page, and every text stands out from what is behind it.
const LOOK: &str = r#"
    if (document.documentElement.scrollWidth > innerWidth) wrong.push("wider than the page");
    for (const element of document.querySelectorAll("p, label, dt, dd, button, h2, li, blockquote")) {
        if (!element.textContent.trim() || element.offsetParent === null) continue;
        const ratio = contrast(getComputedStyle(element).color, behind(element));
        const least = element.disabled ? 1.5 : 4.5;
        if (ratio < least) wrong.push(`${element.textContent.trim().slice(0, 30)}: ${ratio}`);
    }
    return wrong;
"#;

fn picture(browser: &mut Browser, name: &str) {
    let Some(folder) = std::env::var_os("GRITLM_SCREENSHOTS") else { return };
    let taken = browser.call("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
    let bytes = BASE64_STANDARD.decode(taken["data"].as_str().unwrap()).unwrap();
    std::fs::write(Path::new(&folder).join(format!("{name}.png")), bytes).unwrap();
}

/// A folder without a package is refused at the start.
#[test]
fn a_folder_that_is_no_package() {
    let folder = tempfile::tempdir().unwrap();
    let settings = gritlm_serve::Settings::default().web(Some(folder.path().into()));
    let problem = gritlm_serve::Server::bind("127.0.0.1", 0, settings).map(drop).unwrap_err();
    let problem = problem.to_string();
    assert!(problem.starts_with("web: expected a folder that web/build has made"), "{problem}");
    assert!(problem.contains("index.html"), "{problem}");
}
