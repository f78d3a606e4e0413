"""The calls of sentence-transformers on ours and on its own class, on the same weights.

Reads {folder} on stdin, of a reference model. Prints what was checked.
"""

import json
import os
import pathlib
import shutil
import tempfile
import warnings
from importlib.metadata import version

from checks import check, done, given

scratch = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = scratch.name + "/cache"
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TQDM_DISABLE"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from sentence_transformers import SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer import modules  # noqa: E402

import gritlm_rs  # noqa: E402
from gritlm_rs import gritlm_instruction  # noqa: E402

torch.set_num_threads(1)
warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
TASK = gritlm_instruction("Find the package.")
TEXTS = ["chess for the desktop", "größer als π", "x", "A longer text, of more tokens than others."]


def theirs(folder):
    """As GritLM is loaded there, but causal: the prompt is not pooled."""
    copy = pathlib.Path(scratch.name, "model")
    shutil.copytree(folder, copy)
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    body = modules.Transformer(str(copy), max_seq_length=512, model_kwargs={"dtype": torch.float64})
    pooling = modules.Pooling(body.get_word_embedding_dimension(), "mean", include_prompt=False)
    prompts = {"query": TASK, "document": gritlm_instruction("")}
    return SentenceTransformer(modules=[body, pooling], prompts=prompts, device="cpu")


def near(what, got, expected):
    check(f"{what}: kind", type(got), type(expected))
    got, expected = (np.asarray(side, np.float64) for side in (got, expected))
    check(f"{what}: shape", got.shape, expected.shape)
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    check(f"{what}: {error:.1e} off", bool(error < 1e-5), True)


reference = theirs(given["folder"])
model = gritlm_rs.GritLM(given["folder"], device="cpu", attn="cccc", normalized=False)
check("prompts", sorted(model.prompts), sorted(reference.prompts))
check("a document's", model.prompts["document"], reference.prompts["document"])
model.prompts["query"] = TASK
settings = [
    {},
    {"prompt": TASK},
    {"prompt_name": "query"},
    {"prompt": TASK, "prompt_name": "document"},
    {"prompt": TASK, "normalize_embeddings": True},
    {"prompt": TASK, "convert_to_tensor": True},
    {"prompt": TASK, "truncate_dim": 32},
    {"prompt": TASK, "truncate_dim": 32, "normalize_embeddings": True},
    {"prompt": TASK, "batch_size": 2, "show_progress_bar": False, "precision": "float32"},
    {"prompt": TASK, "output_value": "sentence_embedding", "convert_to_numpy": True},
]
for how in settings:
    for texts in (TEXTS, TEXTS[0], tuple(TEXTS)):
        near(f"encode, {how}", model.encode(texts, **how), reference.encode(texts, **how))
for name in ("encode_query", "encode_document"):
    for how in ({}, {"prompt": "Find: "}, {"prompt_name": "query"}, {"convert_to_tensor": True}):
        sides = [getattr(side, name)(TEXTS, **how) for side in (model, reference)]
        near(f"{name}, {how}", *sides)
check("dimension", model.get_embedding_dimension(), reference.get_embedding_dimension())
check("dimension", model.get_sentence_embedding_dimension(), model.get_embedding_dimension())

queries, documents = (model.encode(TEXTS, prompt_name=name) for name in ("query", "document"))
queries[2] = 0.0
for name in ("similarity", "similarity_pairwise"):
    ours, their = (getattr(side, name) for side in (model, reference))
    near(name, ours(queries, documents), their(queries, documents).numpy())
    tensors = torch.from_numpy(queries), torch.from_numpy(documents)
    near(f"{name} of tensors", ours(*tensors), their(*tensors))
near("similarity of one", model.similarity(queries[0], documents),
     reference.similarity(queries[0], documents).numpy())  # fmt: skip

for how in ({"output_value": "token_embeddings"}, {"precision": "int8"}, {"prompt_name": "other"}):
    for side in (model, reference):
        if side is reference and "prompt_name" not in how:
            continue
        try:
            side.encode(TEXTS, **how)
            check(f"{how}", "an error", "none")
        except ValueError as error:
            check(f"{how}", str([*how.values()][0]) in str(error), True)
done(f"sentence-transformers {version('sentence-transformers')}")
