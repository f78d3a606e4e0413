// Both modes to try: texts beside each other, and a conversation.

import { byId, post } from "./api.js";

const MOST = 50; // texts that are compared: a table of 2500 numbers

function element(name, text, parent) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    return parent ? parent.appendChild(made) : made;
}

// Embed

function cosine(a, b) {
    let [ab, aa, bb] = [0, 0, 0];
    a.forEach((x, i) => { ab += x * b[i]; aa += x * x; bb += b[i] * b[i]; });
    return ab / Math.sqrt(aa * bb);
}

/** A table of all pairs; the shade goes from the least similar pair to a text and itself. */
function matrix(texts, vectors) {
    const values = vectors.map(a => vectors.map(b => cosine(a, b)));
    const least = Math.min(...values.flat());
    const table = element("table");
    element("caption", "Cosine similarity", table);
    const head = table.createTHead().insertRow();
    element("th", "", head);
    texts.forEach((text, i) => {
        Object.assign(element("th", i + 1, head), { scope: "col", title: text });
    });
    const body = table.createTBody();
    values.forEach((row, i) => {
        const line = body.insertRow();
        const name = element("th", `${i + 1} ${texts[i]}`, line);
        Object.assign(name, { scope: "row", title: texts[i] });
        for (const value of row) {
            const cell = line.insertCell();
            cell.textContent = value.toFixed(3);
            cell.style.setProperty("--heat", least < 1 ? (value - least) / (1 - least) : 1);
        }
    });
    return table;
}

byId("embed").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const button = event.submitter ?? event.target.querySelector("button");
    const note = text => { byId("embed-note").textContent = text; };
    const texts = byId("texts").value.split("\n").map(text => text.trim()).filter(Boolean);
    if (texts.length === 0 || texts.length > MOST) {
        return note(`expected 1 to ${MOST} texts, found ${texts.length}`);
    }
    const body = { input: texts };
    const instruction = byId("instruction").value.trim();
    if (instruction) body.instruction = instruction;
    button.disabled = true;
    note("…");
    const start = performance.now();
    try {
        const { data, usage } = await (await post("/v1/embeddings", body)).json();
        const took = performance.now() - start;
        byId("matrix").replaceChildren(matrix(texts, data.map(one => one.embedding)));
        byId("matrix").hidden = false;
        note(`${usage.prompt_tokens} tokens in ${took.toFixed(0)} ms`);
    } catch (error) {
        note(error.message);
    }
    button.disabled = false;
});

// Chat

const log = byId("log");
let turns = []; // the conversation, as the next request has it
let stop = null; // of the answer under way

/** The JSON of each event of a stream. */
async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        const lines = (rest + value).split(/\r?\n/);
        rest = lines.pop();
        for (const line of lines.filter(line => line.startsWith("data:"))) {
            const data = line.slice(5).trim();
            if (data !== "[DONE]") yield JSON.parse(data);
        }
    }
}

function turn(role, text) {
    const item = element("li", undefined, log);
    item.className = role;
    element("b", role === "user" ? "You" : "Answer", item);
    element("p", text, item);
    log.scrollTop = log.scrollHeight;
    return item;
}

/** Asks for the next turn; true unless nothing came of it. */
async function answer(turns, item, signal) {
    const start = performance.now();
    const seconds = () => (performance.now() - start) / 1e3;
    const text = item.querySelector("p");
    const body = {
        messages: turns,
        stream: true,
        stream_options: { include_usage: true },
        max_tokens: byId("max-tokens").valueAsNumber,
        temperature: byId("temperature").valueAsNumber,
    };
    let [first, usage, finish, problem] = [null, null, "stopped", null];
    try {
        for await (const event of events(await post("/v1/chat/completions", body, signal))) {
            if (event.error) throw new Error(event.error.message);
            const choice = event.choices[0];
            if (choice?.delta.content) {
                first ??= seconds();
                const follows = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
                text.textContent += choice.delta.content;
                if (follows) log.scrollTop = log.scrollHeight;
            }
            finish = choice?.finish_reason ?? finish;
            usage = event.usage ?? usage;
        }
    } catch (error) {
        if (!signal.aborted) problem = error.message;
    }
    const parts = [problem ?? { length: "cut at its limit", stopped: "stopped" }[finish]];
    if (usage && first !== null) {
        const pace = usage.completion_tokens / seconds();
        parts.push(`${usage.completion_tokens} tokens`);
        parts.push(`first after ${(1e3 * first).toFixed(0)} ms`);
        parts.push(`${pace.toPrecision(3)} tokens/s`);
    }
    element("small", parts.filter(Boolean).join(", "), item);
    if (text.textContent) turns.push({ role: "assistant", content: text.textContent });
    return Boolean(text.textContent) || !problem;
}

byId("chat").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const message = byId("message");
    const said = message.value.trim();
    if (stop || !said) return;
    stop = new AbortController();
    turns.push({ role: "user", content: said });
    const asked = turn("user", said);
    const item = turn("assistant", "");
    message.value = "";
    busy(true);
    byId("chat-note").textContent = "";
    const came = await answer(turns, item, stop.signal);
    stop = null;
    busy(false);
    if (!came && asked.isConnected) {
        // As if it had not been asked, but for the reason.
        byId("chat-note").textContent = item.querySelector("small").textContent;
        turns.pop();
        asked.remove();
        item.remove();
        message.value ||= said;
    }
});

function busy(is) {
    log.setAttribute("aria-busy", is);
    byId("send").disabled = is;
    byId("stop").disabled = !is;
}

byId("message").addEventListener("keydown", event => {
    // Not the Enter that ends a composed character.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    event.target.form.requestSubmit();
});

// The server sees that nobody listens, and drops the answer from its batch.
byId("stop").addEventListener("click", () => stop?.abort());

byId("clear").addEventListener("click", () => {
    stop?.abort();
    turns = [];
    log.replaceChildren();
    byId("chat-note").textContent = "";
    byId("message").focus();
});
