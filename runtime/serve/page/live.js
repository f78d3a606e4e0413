// The batch as it runs: asks for the last steps some times a second, while the page is seen.

import { byId, call, onKey } from "./api.js";

const PERIOD = 250; // ms between two questions
const SHOWN = 120; // steps
const SPAN = 2000; // ms that rates are taken over
const KINDS = ["decode", "prefill", "embed"]; // from the bottom up

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
const set = (id, text) => {
    // Unchanged text is left alone: a selection in it stays.
    if (byId(id).textContent !== text) byId(id).textContent = text;
};
const count = (id, value) => set(id, whole.format(value));
const state = text => set("state", text);

let steps = []; // the last ones, oldest first
let past = []; // { at, stats } of the last SPAN
let chosen = null; // number of the step that is looked at; null for the last
let asked = 0; // when the metrics were asked for
let known = false; // whether the model's name is known
let running = false;

async function look() {
    if (!known) {
        const models = await (await call("/v1/models")).json();
        set("model", models.data[0].id);
        known = true;
    }
    const last = steps.at(-1)?.step ?? 0;
    const live = await (await call(`/stats?since=${last}`)).json();
    if (live.stats.steps < last) {
        // Another server than before.
        [steps, past, chosen, known] = [[], [], null, false];
        return look();
    }
    steps = [...steps, ...live.steps].slice(-SHOWN);
    state("ready");
    figures(live.stats);
    chart();
    if (performance.now() - asked > 4 * PERIOD) {
        asked = performance.now();
        times(await (await call("/metrics")).text());
    }
}

function figures(stats) {
    const at = performance.now();
    past = [...past.filter(one => at - one.at < SPAN), { at, stats }];
    const { at: from, stats: before } = past[0];
    const seconds = Math.max(at - from, 1) / 1e3;
    for (const kind of KINDS) {
        count(`rate-${kind}`, (stats.total[kind] - before.total[kind]) / seconds);
    }
    const busy = (stats.busy_seconds - before.busy_seconds) / seconds;
    set("busy", `${Math.round(100 * Math.min(busy, 1))} %`);
    set("rate-steps", `${short.format((stats.steps - before.steps) / seconds)} steps/s`);
    count("running", stats.running);
    count("waiting", stats.waiting_generate + stats.waiting_embed);
    set("waiting-tokens", `${whole.format(stats.waiting_tokens)} tokens`);
    count("pages", stats.pages - stats.pages_free);
    set("pages-of", `of ${whole.format(stats.pages)}, ${whole.format(stats.pages_prefix)} kept`);
    for (const end of ["finished", "failed", "cancelled", "expired"]) count(end, stats[end]);
    count("refused", Object.values(stats.refused).reduce((a, b) => a + b));
    count("prefix", stats.prefix_tokens);
    count("past", stats.past_tokens);
    count("steps", stats.steps);
    const tokens = KINDS.reduce((sum, kind) => sum + stats.total[kind], 0);
    set("per-step", `${short.format(stats.steps ? tokens / stats.steps : 0)} tokens each`);
}

/** Heights of at least 2 %, which the largest one yields: an answer's token is seen beside 1000. */
function seen(heights) {
    const raised = heights.map(height => Math.max(height, 2));
    const more = raised.reduce((sum, height, i) => sum + height - heights[i], 0);
    const most = raised.indexOf(Math.max(...raised));
    raised[most] = Math.max(raised[most] - more, 2);
    return raised;
}

function chart() {
    const sum = step => KINDS.reduce((sum, kind) => sum + step[kind], 0);
    const most = Math.max(8, ...steps.map(sum));
    const top = 2 ** Math.ceil(Math.log2(most));
    set("top", whole.format(top));
    const paths = { decode: "", prefill: "", embed: "" };
    steps.forEach((step, at) => {
        // The last one stands on the right.
        const x = SHOWN - steps.length + at + 0.1;
        const kinds = KINDS.filter(kind => step[kind] > 0);
        const heights = seen(kinds.map(kind => 100 * step[kind] / top));
        let y = 100;
        kinds.forEach((kind, i) => {
            const above = y - heights[i];
            paths[kind] += `M${x} ${y.toFixed(2)}h.8V${above.toFixed(2)}h-.8z`;
            y = above;
        });
    });
    for (const kind of KINDS) byId(`bars-${kind}`).setAttribute("d", paths[kind]);
    caption();
}

function caption() {
    if (steps.length === 0) return;
    const at = steps.findIndex(step => step.step === chosen);
    const step = at < 0 ? steps.at(-1) : steps[at];
    const x = SHOWN - steps.length + at;
    byId("cursor").setAttribute("d", at < 0 ? "" : `M${x} 0h1V100h-1z`);
    const of = { embed: "of texts", prefill: "of prompts", decode: "of answers" };
    const parts = Object.keys(of).filter(kind => step[kind] > 0);
    const tokens = parts.map(kind => `${whole.format(step[kind])} ${of[kind]}`).join(", ");
    const caches = step.from_cache > 0 ? ` (${whole.format(step.from_cache)} from caches)` : "";
    const text = `Step ${step.step}, tokens: ${tokens}${caches}; ${short.format(step.ms)} ms`;
    set("step", text);
    const slider = { min: steps[0].step, max: steps.at(-1).step, now: step.step, text };
    for (const [name, value] of Object.entries(slider)) {
        byId("chart").setAttribute(`aria-value${name}`, value);
    }
}

function choose(step) {
    chosen = step;
    caption();
}

byId("chart").addEventListener("pointermove", event => {
    const box = byId("bars").getBoundingClientRect();
    const at = Math.floor(SHOWN * (event.clientX - box.left) / box.width);
    choose(steps[at - SHOWN + steps.length]?.step ?? null);
});
byId("chart").addEventListener("pointerleave", () => choose(null));
byId("chart").addEventListener("blur", () => choose(null));
byId("chart").addEventListener("keydown", event => {
    if (steps.length === 0) return;
    const at = steps.findIndex(step => step.step === chosen);
    const now = at < 0 ? steps.length - 1 : at;
    const moves = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: steps.length - 1 };
    if (event.key === "Escape") choose(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    choose(steps[Math.min(Math.max(moves[event.key], 0), steps.length - 1)].step);
});

/** Histograms of Prometheus' text: by name and kind, their buckets (cumulative) and sum. */
function histograms(text) {
    const all = new Map();
    for (const [, name, part, labels, value] of
        text.matchAll(/^gritlm_(\w+)_(bucket|sum)(?:\{(.*)\})? (\S+)$/gm)) {
        const label = wanted => labels?.match(new RegExp(`\\b${wanted}="([^"]*)"`))?.[1];
        const key = [name, label("kind")].filter(Boolean).join(" ");
        if (!all.has(key)) all.set(key, { sum: 0, buckets: [] });
        const bound = label("le") === "+Inf" ? Infinity : Number(label("le"));
        if (part === "sum") all.get(key).sum = Number(value);
        else all.get(key).buckets.push([bound, Number(value)]);
    }
    return all;
}

/** In seconds, as if values lay evenly between a bucket's bounds. */
function quantile(buckets, share) {
    const rank = share * buckets.at(-1)[1];
    const at = buckets.findIndex(([, count]) => count >= rank);
    const [from, below] = buckets[at - 1] ?? [0, 0];
    const [to, count] = buckets[at];
    return to === Infinity ? to : from + (to - from) * (rank - below) / (count - below);
}

const TIMES = [
    ["time_to_first_token_seconds", "to an answer's first token"],
    ["time_per_output_token_seconds", "for each token after it"],
    ["request_latency_seconds generate", "to an answer's end"],
    ["request_latency_seconds embed", "to all vectors"],
    ["request_latency_seconds rank", "to all relevances"],
    ["queue_time_seconds generate", "prompts' wait"],
    ["queue_time_seconds embed", "texts' wait"],
];

function times(text) {
    const all = histograms(text);
    const rows = TIMES.filter(([key]) => all.has(key)).map(([key, name]) => {
        const { sum, buckets } = all.get(key);
        const count = buckets.at(-1)[1];
        const values = count === 0 ? [] : [
            sum / count, ...[0.5, 0.95, 0.99].map(share => quantile(buckets, share)),
        ];
        const ms = value => value === Infinity ? "> 60,000" : short.format(1e3 * value);
        const shown = values.length ? values.map(ms) : Array(4).fill("–");
        const row = document.createElement("tr");
        const head = row.appendChild(document.createElement("th"));
        head.scope = "row";
        head.textContent = name;
        for (const text of [whole.format(count), ...shown]) row.insertCell().textContent = text;
        return row;
    });
    byId("times").replaceChildren(...rows);
}

/** Looks again and again while the page is seen; a server that is away is asked less often. */
async function watch() {
    if (running) return;
    running = true;
    while (!document.hidden) {
        let wait = PERIOD;
        try {
            await look();
        } catch (error) {
            past = [];
            wait = 8 * PERIOD;
            if (error.status === 401) {
                state("wants a key");
                break;
            }
            const away = error.status ? error.message : "away";
            state(error.code === "loading" ? "loading the model" : away);
        }
        await new Promise(done => setTimeout(done, wait));
    }
    running = false;
}

document.addEventListener("visibilitychange", watch);
onKey(watch);
watch();
