// Opens models: the demo, files of the visitor's, an address, or what an earlier visit has kept.

import { byId, use } from "./api.js";
import { forget, kept, open } from "./gritlm.js";

const size = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const megabytes = bytes => `${size.format(bytes / 1e6)} MB`;
const note = text => { byId("open-note").textContent = text; };

let stop = null; // of the model that is loading

async function start(source) {
    stop?.abort();
    const mine = new AbortController();
    stop = mine;
    use(null);
    note("");
    byId("main").hidden = true;
    byId("progress").hidden = false;
    byId("bar").removeAttribute("value");
    byId("loaded").textContent = "looking for its files";
    const began = performance.now();
    const onProgress = ({ loaded, total }) => {
        Object.assign(byId("bar"), { max: total, value: loaded });
        byId("loaded").textContent = `${megabytes(loaded)} of ${megabytes(total)}`;
    };
    try {
        const device = byId("device").value;
        const model = await open(source, { device, signal: mine.signal, onProgress });
        use(model);
        const seconds = size.format((performance.now() - began) / 1e3);
        note(`${megabytes(model.about.bytes)} in ${seconds} s, on ${where(model.about.device)}.`);
        byId("main").hidden = false;
    } catch (error) {
        if (stop === mine) note(mine.signal.aborted ? "Stopped." : error.message);
    }
    if (stop === mine) {
        stop = null;
        byId("progress").hidden = true;
        list();
    }
}

/** The device in a visitor's words. */
function where(device) {
    if (device.startsWith("wgpu")) return `WebGPU: ${device}`;
    const why = navigator.gpu
        ? "WebGPU has no GPU here, or was not asked for"
        : "this browser has no WebGPU";
    return `the CPU, which is slower (${why})`;
}

/** Shows what the browser keeps. */
async function list() {
    const models = await kept();
    byId("kept").replaceChildren(...models.map(({ id, name, bytes }) => {
        const item = document.createElement("li");
        item.append(`${name}, ${megabytes(bytes)} `);
        const button = (text, act) => {
            const made = item.appendChild(document.createElement("button"));
            Object.assign(made, { type: "button", className: "quiet", textContent: text });
            made.addEventListener("click", act);
        };
        button("Open", () => start({ kept: id }));
        button("Forget", async () => {
            await forget(id);
            list();
        });
        return item;
    }));
}

byId("demo").addEventListener("click", () => start("demo"));
byId("disk").addEventListener("change", event => {
    if (event.target.files.length > 0) start([...event.target.files]);
    event.target.value = "";
});
byId("source").addEventListener("submit", event => {
    event.preventDefault();
    if (byId("address").value) start(byId("address").value);
});
byId("abort").addEventListener("click", () => stop?.abort());
list();
