"""A model for mteb 2.

    import mteb
    from gritlm_rs.evaluate.mteb import GritLMEncoder

    model = GritLMEncoder("GritLM/GritLM-7B")
    print(mteb.evaluate(model, mteb.get_benchmark("MTEB(eng, v1)")))
"""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

from ..engine import Engine, Floats
from ..gritlm import GritLM, gritlm_instruction
from .instructions import Instructions, instruction_of, opened

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader


class GritLMEncoder(AbsEncoder):  # type: ignore[misc]
    """GritLM as the paper evaluated it: each task with its own instruction, documents of retrieval
    with none, 512 tokens, and vectors that are not normalised, since classification uses their
    length. Everything else compares them by the cosine.

    `model` is what `GritLM` takes, with the same `options`, or a `GritLM`, whose pooling and
    attention hold. `instructions` replaces the paper's table, in the same form. A task that is not
    in it has mteb's own prompt, if there is one, else mteb's prompt for tasks of its kind;
    documents have it only in reranking, or where mteb has one for them.

    mteb joins a title and a text by a space, as the paper's runs did. Those left the space in front
    of documents whose title is empty; mteb leaves none.

    A text that is empty or blank has nothing to pool, and the original's vector of it is not a
    number. Here the whole prompt is pooled, and a warning says how many such texts there were, so
    that one of them does not end a run of hours.

    mteb files results under the model's name, or for a local one under `gritlm_rs/` and the name of
    its folder or file, and does not evaluate again what it has results for. Give a model that has
    changed another `name` or `revision`.
    """

    def __init__(
        self,
        model: str | PathLike[str] | Engine | GritLM = "demo",
        revision: str | None = None,
        *,
        device: str | None = None,
        max_length: int = 512,
        instructions: Instructions | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        self.model = opened(model, device, options)
        self.max_length = max_length
        self.instructions = instructions
        engine = self.model.engine
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name or _name(engine.name),
                "revision": revision,
                "embed_dim": engine.shape["dim"],
                "max_tokens": max_length,
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": True,
            }
        )

    def instruction(self, task: TaskMetadata, prompt_type: PromptType | None) -> str:
        """Returns the instruction of one side of a task, without the tags around it."""
        document = prompt_type == PromptType.document
        found = instruction_of(task.name, "corpus" if document else "query", self.instructions)
        if found is None:
            bare = document and "Reranking" not in task.type
            own = isinstance(task.prompt, dict) and task.prompt.get("document")
            found = "" if bare and not own else self.get_instruction(task, prompt_type)
        return found.strip(": \n")

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        show_progress_bar: bool | None = None,
        **kwargs: Any,
    ) -> Floats:
        """Embeds the texts of mteb's batches and returns `(texts, dim)`."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = gritlm_instruction(self.instruction(task_metadata, prompt_type))
        vectors = np.zeros((len(texts), self.model.engine.shape["dim"]), np.float32)
        empty = [row for row, text in enumerate(texts) if not text.strip()]
        if empty:
            warnings.warn(
                f"{task_metadata.name}: {len(empty)} of {len(texts)} texts are empty; their "
                "vectors are pooled over the whole prompt",
                stacklevel=2,
            )
        filled = sorted(set(range(len(texts))) - set(empty))
        for rows, whole in ((filled, False), (empty, True)):
            vectors[rows] = self.model.encode(
                [texts[row] for row in rows],
                instruction=prompt,
                embed_instruction=whole,
                max_length=self.max_length,
                normalize_embeddings=False,
                show_progress_bar=show_progress_bar,
            )
        return vectors


def _name(model: str) -> str:
    """Returns a name as mteb wants one, with an owner in front."""
    is_id = model.count("/") == 1 and not Path(model).exists()
    return model if is_id else f"gritlm_rs/{Path(model).absolute().name}"
