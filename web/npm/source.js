// Where a model's files come from: the demo beside this module, an address, the visitor's disk, or what
// an earlier visit has kept. A file is { path, size, read(start, end) }.

import { blocks, open as openKept } from "./store.js";

const WEIGHTS = "model.safetensors";
const INDEX = `${WEIGHTS}.index.json`;
const NEEDED = ["config.json", "tokenizer.json"];
const ABOUT = ["tokenizer_config.json", "chat_template.jinja"];

/** The files of a source, the name that the model gets, and what to do once it is loaded. */
export async function files(source, { keep, signal }) {
    if (source?.kept) return openKept(source.kept);
    const found = await search(source, signal);
    // Neither the demo, which the page has anyway, nor what the browser may not keep.
    if (!keep || source === "demo" || !globalThis.caches) {
        return { ...found, done: async () => {} };
    }
    return blocks(found);
}

async function search(source, signal) {
    if (source === "demo") {
        const base = new URL("demo/", import.meta.url);
        return { name: "demo", files: await all(base, [...NEEDED, WEIGHTS], signal) };
    }
    if (source instanceof Blob) return { name: source.name ?? "model", files: [local(source)] };
    if (Array.isArray(source) || source instanceof FileList) {
        const chosen = [...source].map(local);
        const folder = source[0]?.webkitRelativePath?.split("/")[0];
        return { name: folder || source[0]?.name || "model", files: chosen };
    }
    if (typeof source === "string" || source instanceof URL) return address(source, signal);
    throw new TypeError(
        "source: expected \"demo\", an address, files or { kept: id }, found " + typeof source,
    );
}

/** A file of the visitor's. */
function local(file) {
    const id = `${file.name}/${file.size}/${file.lastModified}`;
    const read = async (start, end) => new Uint8Array(await file.slice(start, end).arrayBuffer());
    return { path: file.name, size: file.size, id, read };
}

/** The files at an address: a GGUF file with all its parts, or a checkpoint's folder. */
async function address(source, signal) {
    const url = new URL(source, globalThis.location?.href);
    const name = decodeURIComponent(url.pathname.split("/").filter(Boolean).at(-1) ?? url.host);
    if (/\.gguf$/i.test(url.pathname)) {
        const split = url.href.match(/^(.*-)\d{5}-of-(\d{5})(\.gguf.*)$/i);
        const parts = split === null ? [url] : Array.from({ length: Number(split[2]) }, (_, i) => {
            const number = String(i + 1).padStart(5, "0");
            return new URL(`${split[1]}${number}-of-${split[2]}${split[3]}`);
        });
        return { name, files: await Promise.all(parts.map(part => remote(part, signal))) };
    }
    const base = new URL(url);
    if (!base.pathname.endsWith("/")) base.pathname += "/";
    const weights = await remote(new URL(WEIGHTS, base), signal).catch(() => null);
    const names = [...NEEDED];
    if (weights === null) {
        const index = await (await asked(new URL(INDEX, base), { signal })).json();
        names.push(INDEX, ...new Set(Object.values(index.weight_map)));
    }
    const found = await all(base, names, signal);
    const more = ABOUT.map(one => remote(new URL(one, base), signal).catch(() => null));
    const rest = [weights, ...await Promise.all(more)].filter(Boolean);
    return { name, files: [...found, ...rest] };
}

function all(base, names, signal) {
    return Promise.all(names.map(name => remote(new URL(name, base), signal)));
}

/** Fetches; throws for what is no answer. */
async function asked(url, options) {
    const response = await fetch(url, options).catch(error => {
        options.signal?.throwIfAborted();
        throw new Error(`${url}: ${error.message}`);
    });
    if (!response.ok) throw new Error(`${url}: the server answers ${response.status}`);
    return response;
}

/** A file at an address, read by ranges; whole, where the server knows no ranges. */
async function remote(url, signal) {
    const path = decodeURIComponent(url.pathname.split("/").at(-1));
    const first = await asked(url, { signal, headers: { Range: "bytes=0-0" } });
    const size = Number(first.headers.get("Content-Range")?.split("/")[1]);
    if (first.status !== 206 || !Number.isSafeInteger(size)) {
        const whole = first.status === 206 ? await asked(url, { signal }) : first;
        const file = local(new File([await whole.blob()], path));
        return { ...file, id: url.href };
    }
    await first.arrayBuffer();
    const version = first.headers.get("ETag") ?? first.headers.get("Last-Modified") ?? "";
    const read = async (start, end) => {
        const headers = { Range: `bytes=${start}-${end - 1}` };
        const response = await asked(url, { signal, headers });
        return new Uint8Array(await response.arrayBuffer());
    };
    return { path, size, id: `${url.href}/${size}/${version}`, read };
}
