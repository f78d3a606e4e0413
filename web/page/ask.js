// Answers from documents that the visitor typed.

import { byId, current, onKey } from "./api.js";

let index = null; // of the documents that `known` has
let known = "";

onKey(() => { index = null; });

byId("ask").querySelector("form").addEventListener("submit", async event => {
    event.preventDefault();
    const note = text => { byId("ask-note").textContent = text; };
    const texts = byId("documents").value.split(/\n\s*\n/).map(text => text.trim());
    const documents = texts.filter(Boolean);
    byId("asking").disabled = true;
    byId("answer").hidden = true;
    try {
        const start = performance.now();
        if (index === null || known !== documents.join("\n")) {
            note("embedding the documents");
            index?.close();
            index = current().index();
            await index.add(documents);
            known = documents.join("\n");
        }
        note("…");
        byId("said").textContent = "";
        const asked = performance.now();
        let first = null;
        for await (const piece of index.ask(byId("question").value, { maxTokens: 48 })) {
            if (piece.document) {
                byId("found").textContent = piece.document.text;
                byId("answer").hidden = false;
                continue;
            }
            first ??= performance.now();
            byId("said").textContent += piece.text;
        }
        const ms = (from, to) => `${(to - from).toFixed(0)} ms`;
        const parts = [`first word after ${ms(asked, first ?? performance.now())}`];
        if (asked - start > 1) parts.unshift(`documents embedded in ${ms(start, asked)}`);
        note(parts.join(", "));
    } catch (error) {
        note(error.message);
    }
    byId("asking").disabled = false;
});
