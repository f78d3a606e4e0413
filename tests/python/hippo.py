"""HippoRAG 2 as its authors wrote it, with this package under the name that it imports, `gritlm`.

On stdin: `folder`, of the model. `hipporag` is the
folder with the packages hipporag, igraph and texttable. The graph's facts come from a file that
HippoRAG reads, and the choice among the facts found is stubbed: both are a language model's."""

import json
import os
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np

import gritlm_rs
from checks import check, done, given

sys.path.append(given["hipporag"])
sys.modules["gritlm"] = gritlm_rs
# What other models and services need, which are not called.
STUBS = {
    "boto3": (),
    "botocore": (),
    "botocore.exceptions": ("ClientError",),
    "litellm": (),
    "vllm": ("SamplingParams", "LLM"),
}
for name, attributes in STUBS.items():
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(dict.fromkeys(attributes, Exception))
os.environ["OPENAI_API_KEY"] = "not used"

from hipporag import HippoRAG  # noqa: E402
from hipporag.embedding_model.GritLM import GritLMEmbeddingModel  # noqa: E402
from hipporag.prompts.linking import get_query_instruction  # noqa: E402
from hipporag.utils.config_utils import BaseConfig  # noqa: E402

FACTS = [
    ("wireshark", "captures", "network packets"),
    ("xboard", "shows", "chess games"),
    ("gnuplot", "plots", "functions"),
    ("pdfgrep", "searches", "PDF files"),
]
PASSAGES = [f"The package {subject} {does} {what}." for subject, does, what in FACTS]
QUERIES = ["Which package captures packets?", "What plots functions?"]


def near(what, found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    check(what, found.shape, expected.shape)
    check(what, float(np.abs(found - expected).max()) < 1e-5, True)


def opened(place, model):
    config = BaseConfig(
        save_dir=str(place / "out"),
        llm_name="none",
        llm_base_url="http://localhost:9/v1",
        embedding_model_name=str(model),
        retrieval_top_k=4,
    )
    return HippoRAG(global_config=config)


with tempfile.TemporaryDirectory() as made:
    place = Path(made)
    # It chooses the class by the model's name.
    model = place / "GritLM-demo"
    model.symlink_to(given["folder"])
    (place / "out").mkdir()
    known = [
        {"passage": text, "extracted_entities": [fact[0], fact[2]], "extracted_triples": [fact]}
        for text, fact in zip(PASSAGES, FACTS, strict=True)
    ]
    read = place / "out" / "openie_results_ner_none.json"
    read.write_text(json.dumps({"docs": [one | {"idx": ""} for one in known]}))

    rag = opened(place, model)
    embedder = rag.embedding_model
    check("class", type(embedder), GritLMEmbeddingModel)
    check("model", type(embedder.embedding_model), gritlm_rs.GritLM)
    engine = embedder.embedding_model.engine
    check("dim", embedder.embedding_dim, engine.shape["dim"])
    check("device", embedder.device, "cpu")

    def plain(texts):
        """Vectors of texts without instruction and tags, by another way of the engine's."""
        sequences = [
            gritlm_rs.Sequence(engine.tokenize(text), mask="bidirectional", want="embedding")
            for text in texts
        ]
        return np.concatenate([vector for vector, _ in engine.run(sequences)])

    def asked(texts, task):
        return engine.embed(texts, instruction=get_query_instruction(task))

    near("one text", embedder.batch_encode(QUERIES[0]), plain(QUERIES[:1]))
    for task in ("query_to_fact", "query_to_passage"):
        found = embedder.batch_encode(QUERIES, instruction=get_query_instruction(task), norm=True)
        near(task, found, asked(QUERIES, task))
        check(task, found.dtype, np.float32)
    rag.index(PASSAGES)
    near("passages", rag.chunk_embedding_store.embeddings, plain(PASSAGES))
    entities = rag.entity_embedding_store
    near("entities", entities.embeddings, plain(entities.texts))
    facts = rag.fact_embedding_store
    check("facts", sorted(map(eval, facts.texts)), sorted(tuple(map(str.lower, f)) for f in FACTS))
    near("facts", facts.embeddings, plain(facts.texts))

    offered = {}

    def chosen(query, items, indices, len_after_rerank):
        offered[query] = list(items)
        return indices[:2], items[:2], {}

    rag.rerank_filter = chosen
    results = rag.retrieve(QUERIES)
    for result in results:
        query = result.question
        vector = asked([query], "query_to_passage")[0]
        near("query", rag.query_to_embedding["passage"][query], vector)
        scores = plain(facts.texts) @ asked([query], "query_to_fact")[0]
        order = [facts.texts[index] for index in np.argsort(scores)[::-1]]
        check("facts, best first", [str(fact) for fact in offered[query]], order)
        check("documents", sorted(result.docs), sorted(PASSAGES))
        check("scores", sorted(result.doc_scores, reverse=True), list(result.doc_scores))
        dense, _ = rag.dense_passage_retrieval(query)
        order = np.argsort(plain(PASSAGES) @ vector)[::-1]
        rows = [rag.chunk_embedding_store.get_row(rag.passage_node_keys[i]) for i in dense]
        check("dense", [row["content"] for row in rows], [PASSAGES[index] for index in order])
    again = opened(place, model)
    near("kept", again.chunk_embedding_store.embeddings, plain(PASSAGES))
    again.index(PASSAGES)
    check("nothing twice", len(again.chunk_embedding_store.embeddings), len(PASSAGES))
done(f"hipporag {version('hipporag')}")
