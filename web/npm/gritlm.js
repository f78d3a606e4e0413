// The engine for pages: open a model, embed, generate, chat, and answer from documents.

import init, { Cancel, Model as Engine, memory_bytes } from "./gritlm_web.js";
import { files } from "./source.js";

export { forget, kept } from "./store.js";

let loading;

/** Loads the module, once; again where that has failed. */
function load() {
    const module_or_path = new URL("gritlm_web_bg.wasm", import.meta.url);
    loading ??= init({ module_or_path }).catch(error => {
        loading = undefined;
        throw error;
    });
    return loading;
}

/** Bytes that the module's memory has taken; for all models together, and without the GPU's. */
export async function memoryBytes() {
    await load();
    return memory_bytes();
}

/** Opens a model; see gritlm.d.ts. */
export async function open(source, options = {}) {
    const { onProgress, signal, keep = true, device, kvTokens, batchTokens } = options;
    signal?.throwIfAborted();
    const found = await files(source, { keep, signal });
    await load();
    const total = found.files.reduce((sum, file) => sum + file.size, 0);
    let loaded = 0;
    const read = file => async (start, end) => {
        signal?.throwIfAborted();
        const bytes = await file.read(start, end);
        loaded = Math.min(loaded + bytes.length, total);
        onProgress?.({ loaded, total });
        return bytes;
    };
    const watched = found.files.map(({ path, size, ...file }) => {
        return { path, size, read: read(file) };
    });
    const how = JSON.stringify({ device, kvTokens, batchTokens });
    let engine;
    try {
        engine = await Engine.open(found.name, watched, how);
    } catch (error) {
        // What the engine says of a read that was given up is its own; the reason is the page's.
        signal?.throwIfAborted();
        throw error;
    }
    // Tied and surplus tensors are never read.
    onProgress?.({ loaded: total, total });
    await found.done();
    return new Model(engine);
}

/** The events of a request, which ends with whoever listens, or when the signal says so. */
async function* events(start, signal) {
    signal?.throwIfAborted();
    const cancel = new Cancel();
    const stop = () => cancel.cancel();
    signal?.addEventListener("abort", stop);
    let request;
    try {
        request = start(cancel);
        for (;;) {
            const event = await request.next();
            signal?.throwIfAborted();
            if (event === undefined) throw new Error("the model was closed");
            yield event;
            if (event.summary) return;
        }
    } finally {
        signal?.removeEventListener("abort", stop);
        request?.free();
        cancel.free();
    }
}

/** Calls with a cancellation that the signal uses. */
async function cancellable(signal, call) {
    signal?.throwIfAborted();
    const cancel = new Cancel();
    const stop = () => cancel.cancel();
    signal?.addEventListener("abort", stop);
    try {
        const result = await call(cancel);
        signal?.throwIfAborted();
        return result;
    } finally {
        signal?.removeEventListener("abort", stop);
        cancel.free();
    }
}

/** The pieces among the events of an answer. */
async function* pieces(start, signal) {
    for await (const event of events(start, signal)) {
        if (event.text !== undefined) yield event;
    }
}

/** What is open, or an error that says that it was closed. */
function live(inner, what) {
    if (inner === null) throw new Error(`the ${what} was closed`);
    return inner;
}

export class Model {
    #open;
    #about;

    constructor(engine) {
        this.#open = engine;
        this.#about = { ...JSON.parse(engine.about()), device: engine.device };
    }

    get #engine() {
        return live(this.#open, "model");
    }

    get about() {
        return { ...this.#about };
    }

    async embed(texts, { signal, ...options } = {}) {
        const vectors = [];
        if (texts.length === 0) return vectors;
        const how = JSON.stringify(options);
        const start = cancel => this.#engine.embed(texts, how, cancel);
        for await (const event of events(start, signal)) {
            if (event.vector) vectors[event.index] = event.vector;
        }
        return vectors;
    }

    generate(prompt, { signal, raw = false, ...options } = {}) {
        return this.#answer(raw ? { raw: prompt } : { user: prompt }, options, signal);
    }

    chat(messages, { signal, ...options } = {}) {
        return this.#answer({ messages }, options, signal);
    }

    #answer(prompt, options, signal) {
        const [said, how] = [JSON.stringify(prompt), JSON.stringify(options)];
        return pieces(cancel => this.#engine.generate(said, how, cancel), signal);
    }

    index() {
        return new Index(this.#engine.index());
    }

    stats(since = 0) {
        return JSON.parse(this.#engine.stats(since));
    }

    close() {
        this.#open?.free();
        this.#open = null;
    }
}

export class Index {
    #open;
    #texts = [];

    constructor(index) {
        this.#open = index;
    }

    get #index() {
        return live(this.#open, "index");
    }

    get texts() {
        return [...this.#texts];
    }

    async add(texts, { signal } = {}) {
        await cancellable(signal, cancel => this.#index.add(texts, cancel));
        this.#texts.push(...texts);
    }

    async search(question, { count = 10, signal } = {}) {
        const search = cancel => this.#index.search(question, count, cancel);
        const found = await cancellable(signal, search);
        return found.map(({ index, score }) => ({ index, score, text: this.#texts[index] }));
    }

    async *ask(question, { signal, ...options } = {}) {
        const [best] = await this.search(question, { count: 1, signal });
        if (!best) throw new Error("index: expected at least one document, found none");
        yield { document: best };
        const how = JSON.stringify(options);
        yield* pieces(cancel => this.#index.answer(best.index, question, how, cancel), signal);
    }

    close() {
        this.#open?.free();
        this.#open = null;
    }
}
