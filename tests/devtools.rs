//! A browser without a window, spoken to in its DevTools protocol.

use crate::browser::command;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use tempfile::tempdir;

/// A browser without a window, spoken to through a pipe.
pub(crate) struct Browser {
    process: Child,
    input: ChildStdin,
    answers: Receiver<Value>,
    events: Vec<Value>,
    session: Option<String>,
    last: u64,
    /// How long the browser may take for an answer.
    patience: Duration,
    profile: tempfile::TempDir,
}

impl Browser {
    pub(crate) fn open(program: &Path) -> Self {
        Self::open_with(program, &[], Duration::from_secs(60))
    }

    pub(crate) fn open_with(program: &Path, flags: &[&str], patience: Duration) -> Self {
        let profile = tempdir().unwrap();
        let mut process = command(program, profile.path())
            .args(flags)
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
        let input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while output.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
                let answer = serde_json::from_slice(&bytes[..bytes.len() - 1]);
                if answer.map(|answer: Value| sender.send(answer)).is_err() {
                    break;
                }
                bytes.clear();
            }
        });
        let (events, session, last) = (Vec::new(), None, 0);
        let mut all = Self { process, input, answers, events, session, last, patience, profile };
        let target = all.call("Target.createTarget", json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let attached = all.call("Target.attachToTarget", target);
        all.session = attached["sessionId"].as_str().map(String::from);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            all.call(&format!("{domain}.enable"), json!({}));
        }
        all
    }

    /// What comes next, of answers and events.
    fn next(&mut self) -> Value {
        let next = self.answers.recv_timeout(self.patience);
        next.unwrap_or_else(|e| panic!("the browser says nothing: {e}"))
    }

    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.input.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut next = self.next();
            if next["id"] == self.last {
                assert!(next["error"].is_null(), "{method}: {}", next["error"]);
                return next["result"].take();
            }
            self.events.push(next);
        }
    }

    /// Opens a page of its own file, to the end of its loading.
    pub(crate) fn visit_page(&mut self, html: &str) -> String {
        let path = self.profile.path().join(format!("page{}.html", self.last));
        fs::write(&path, html).unwrap();
        let url = format!("file://{}", path.display());
        self.visit(&url);
        url
    }

    /// Opens a page, to the end of its loading.
    pub(crate) fn visit(&mut self, url: &str) {
        self.events.clear();
        self.call("Page.navigate", json!({"url": url}));
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let next = self.next();
            self.events.push(next);
        }
    }

    /// What an expression of JavaScript gives.
    #[track_caller]
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true});
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].take()
    }

    /// What a promise gives.
    #[track_caller]
    pub(crate) fn awaited(&mut self, promise: &str) -> Value {
        let params = json!({"expression": promise, "returnByValue": true, "awaitPromise": true});
        let mut result = self.call("Runtime.evaluate", params);
        assert!(result["exceptionDetails"].is_null(), "{result}");
        result["result"]["value"].take()
    }

    /// A folder that is gone with the browser.
    pub(crate) fn profile(&self) -> &Path {
        self.profile.path()
    }

    /// Chooses a file, as a visitor does in a dialog.
    pub(crate) fn choose(&mut self, selector: &str, file: &Path) {
        let root = self.call("DOM.getDocument", json!({}))["root"]["nodeId"].take();
        let found = json!({"nodeId": root, "selector": selector});
        let node = self.call("DOM.querySelector", found)["nodeId"].take();
        self.call("DOM.setFileInputFiles", json!({"nodeId": node, "files": [file]}));
    }

    /// Waits until an expression of JavaScript is true.
    #[track_caller]
    pub(crate) fn until(&mut self, expression: &str) {
        let deadline = Instant::now() + self.patience;
        while self.value(expression) != true {
            let text = self.value("document.body.innerText");
            assert!(Instant::now() < deadline, "never: {expression}\n{}", text.as_str().unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Messages, errors and requests since the page was visited, but for the page itself.
    pub(crate) fn complaints(&mut self, url: &str) -> Vec<String> {
        // Events are ahead of the answer.
        self.value("1");
        let is_bad = |event: &&Value| match event["method"].as_str().unwrap_or_default() {
            "Network.requestWillBeSent" => {
                let found = event["params"]["request"]["url"].as_str().unwrap_or_default();
                // Of a site, all that is its own.
                !(found == url || url.ends_with('/') && found.starts_with(url))
            }
            method => {
                ["Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"]
                    .contains(&method)
                    || method == "Page.javascriptDialogOpening"
            }
        };
        self.events.iter().filter(is_bad).map(Value::to_string).collect()
    }

    pub(crate) fn screen(&mut self, width: u32, medium: &str, scheme: &str) {
        let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"media": medium, "features": feature});
        self.call("Emulation.setEmulatedMedia", media);
        let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size);
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A look at a page, for [`Browser::value`]: the script of `body` finds a list `wrong` to add to,
/// `light` (a colour's relative luminance), `contrast` (of two colours, as WCAG has it), `page` (the
/// page's background) and `behind` (that of an element), and returns what was seen.
pub(crate) fn looking(body: &str) -> String {
    const COLOURS: &str = r#"
    const dot = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgb = colour => {
        dot.clearRect(0, 0, 1, 1);
        dot.fillStyle = colour;
        dot.fillRect(0, 0, 1, 1);
        return [...dot.getImageData(0, 0, 1, 1).data];
    };
    const light = colour => {
        const [r, g, b] = rgb(colour).slice(0, 3).map(v => {
            v /= 255;
            return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (a, b) => {
        const [high, low] = [light(a), light(b)].sort((x, y) => y - x);
        return (high + 0.05) / (low + 0.05);
    };
    const page = getComputedStyle(document.body).backgroundColor;
    const behind = element => {
        for (let at = element; at; at = at.parentElement) {
            const colour = getComputedStyle(at).backgroundColor;
            if (rgb(colour)[3] === 255) return colour;
        }
        return page;
    };
"#;
    format!("(() => {{ const wrong = []; {COLOURS} {body} }})()")
}
