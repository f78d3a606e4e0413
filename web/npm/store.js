// The browser's storage: a model's files in blocks, each kept when it is first read. A model that was
// opened once opens again without its source, and goes on where a broken download ended.

const CACHE = "gritlm";
const BLOCK = 4 << 20; // bytes of a block
const AHEAD = 2; // blocks that are read before they are asked for
const HELD = 8; // blocks in memory

const cache = () => caches.open(CACHE);
// Requests in the cache need addresses; these lead nowhere.
const address = (...parts) => `https://gritlm.invalid/${parts.map(encodeURIComponent).join("/")}`;

/** A file read in whole blocks, from memory, the storage, or its source. */
function inBlocks(file) {
    const { id, path, size } = file;
    const held = new Map(); // number of a block to a promise of it
    const read = async number => {
        const [store, key] = [await cache(), address("block", id, number)];
        const found = await store.match(key);
        if (found) return new Uint8Array(await found.arrayBuffer());
        if (!file.read) throw new Error(`${path}: a part of it was never kept; open its source again`);
        const bytes = await file.read(number * BLOCK, Math.min((number + 1) * BLOCK, size));
        // A full storage costs only another download.
        await store.put(key, new Response(bytes)).catch(() => {});
        return bytes;
    };
    const block = number => {
        let promise = held.get(number);
        if (promise) {
            held.delete(number);
        } else {
            promise = read(number);
            promise.catch(() => held.delete(number));
        }
        // The one used last comes last.
        held.set(number, promise);
        if (held.size > HELD) held.delete(held.keys().next().value);
        return promise;
    };
    const last = Math.floor((size - 1) / BLOCK);
    return {
        path,
        size,
        id,
        read: async (start, end) => {
            const bytes = new Uint8Array(end - start);
            for (let at = start; at < end;) {
                const number = Math.floor(at / BLOCK);
                for (let next = number + 1; next <= Math.min(number + AHEAD, last); next++) {
                    block(next);
                }
                const from = at - number * BLOCK;
                const part = (await block(number)).subarray(from, from + end - at);
                bytes.set(part, at - start);
                at += part.length;
                if (part.length === 0) throw new Error(`${path}: it ends at byte ${at}`);
            }
            return bytes;
        },
    };
}

/** The same files, kept as they are read. */
export function blocks({ name, files }) {
    const id = files.map(file => file.id).join("|");
    const done = async () => {
        const about = { id, name, files: files.map(({ id, path, size }) => ({ id, path, size })) };
        const text = JSON.stringify(about);
        await (await cache()).put(address("model", id), new Response(text)).catch(() => {});
    };
    return { name, files: files.map(inBlocks), done };
}

async function models() {
    if (!globalThis.caches) return [];
    const store = await cache();
    const keys = (await store.keys()).filter(key => key.url.startsWith(address("model")));
    return Promise.all(keys.map(async key => (await store.match(key)).json()));
}

/** The models that earlier visits have kept. */
export async function kept() {
    const all = await models();
    return all.map(({ id, name, files }) => {
        return { id, name, bytes: files.reduce((sum, file) => sum + file.size, 0) };
    });
}

/** The files of a kept model. */
export async function open(id) {
    const model = (await models()).find(model => model.id === id);
    if (!model) throw new Error("kept: expected the id of a kept model, found another");
    return { name: model.name, files: model.files.map(inBlocks), done: async () => {} };
}

/** Drops a kept model. */
export async function forget(id) {
    const store = await cache();
    const model = (await models()).find(model => model.id === id);
    const starts = (model?.files ?? []).map(file => `${address("block", file.id)}/`);
    for (const key of await store.keys()) {
        const isBlock = starts.some(start => key.url.startsWith(start));
        if (isBlock || key.url === address("model", id)) await store.delete(key);
    }
}
