// What the server's page asks its server for, answered by the model in this page. The server's page.js
// and live.js run here unchanged.

export const byId = id => document.getElementById(id);

/** An answer that is none, as the server's page knows it. */
export class Refusal extends Error {
    constructor(status, code, message) {
        super(message);
        this.status = status;
        this.code = code;
    }
}

let model = null;
const told = new EventTarget();

/** The model that is open, or null. */
export const current = () => model;

/** Puts a model in place of the one before. */
export function use(next) {
    model?.close();
    model = next;
    told.dispatchEvent(new Event("model"));
}

/** Calls back when a model was opened, as the server's page does when a key was given. */
export function onKey(then) {
    told.addEventListener("model", then);
}

const json = value => new Response(JSON.stringify(value));

function opened() {
    if (model) return model;
    throw new Refusal(503, "loading", "no model is open");
}

export async function call(path) {
    const { pathname, searchParams } = new URL(path, location.origin);
    const model = opened();
    switch (pathname) {
    case "/v1/models":
        return json({ data: [{ id: model.about.name }] });
    case "/stats":
        return json(model.stats(Number(searchParams.get("since"))));
    case "/metrics":
        // Times are a server's business.
        return new Response("");
    default:
        throw new Refusal(404, "not_found", `${pathname}: this page does not have it`);
    }
}

export async function post(path, body, signal) {
    const model = opened();
    if (path === "/v1/embeddings") {
        const before = model.stats().stats.total.embed;
        const vectors = await model.embed(body.input, { instruction: body.instruction, signal });
        const usage = { prompt_tokens: model.stats().stats.total.embed - before };
        return json({ data: vectors.map(vector => ({ embedding: [...vector] })), usage });
    }
    return new Response(chat(model, body, signal));
}

/** The answer to a conversation as a stream of server-sent events. */
function chat(model, body, signal) {
    const { messages, max_tokens: maxTokens, temperature } = body;
    // Another text each time, as from the server.
    const seed = Math.floor(2 ** 32 * Math.random());
    const pieces = model.chat(messages, { maxTokens, temperature, seed, signal });
    const encoder = new TextEncoder();
    let tokens = 0;
    return new ReadableStream({
        async pull(stream) {
            const send = event => stream.enqueue(encoder.encode(`data: ${JSON.stringify(event)}\n`));
            const { done, value } = await pieces.next();
            if (done) {
                send({ choices: [], usage: { completion_tokens: tokens } });
                return stream.close();
            }
            tokens += 1;
            send({ choices: [{ delta: { content: value.text }, finish_reason: value.finish }] });
        },
        cancel: () => pieces.return(),
    });
}
