// The server's answers, asked for with the key where it wants one.

export const byId = id => document.getElementById(id);

const KEY = "gritlm-key";
const lock = byId("lock");

/** An answer that is none: its status, its reason for programs, and its message. */
export class Refusal extends Error {
    constructor(status, error) {
        super(error?.message ?? `the server answers ${status}`);
        this.status = status;
        this.code = error?.code;
    }
}

/** Fetches from this server; throws a Refusal for what is not 200, and shows the lock for 401. */
export async function call(path, options = {}) {
    const headers = { ...options.headers };
    const key = sessionStorage.getItem(KEY);
    if (key) headers.Authorization = `Bearer ${key}`;
    const response = await fetch(path, { ...options, headers });
    if (response.ok) return response;
    const error = await response.json().then(body => body.error, () => undefined);
    // Unless another was given meanwhile.
    if (response.status === 401 && key === sessionStorage.getItem(KEY)) {
        byId("lock-note").textContent = key ? "It is not one of this server's." : "";
        lock.hidden = false;
    }
    throw new Refusal(response.status, error);
}

export function post(path, body, signal) {
    const headers = { "Content-Type": "application/json" };
    return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** Calls back when a key was given. */
export function onKey(then) {
    lock.addEventListener("submit", then);
}

lock.addEventListener("submit", event => {
    event.preventDefault();
    sessionStorage.setItem(KEY, byId("key").value);
    byId("key").value = "";
    lock.hidden = true;
});
