"""What users of sentence-transformers call, besides `encode`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .engine import Engine


class Sentences(ABC):
    """`GritLM` with the names of sentence-transformers.

    `prompts` holds texts that `encode` puts in front by their name. At first `query` and `document`
    are GritLM's prompt without an instruction. For a task, set
    `prompts["query"] = gritlm_instruction("…")`.
    """

    engine: Engine
    prompts: dict[str, str]

    @abstractmethod
    def encode(self, sentences: Any, *, prompt_name: str | None, prompt: str | None) -> Any:
        """Embeds texts."""

    def encode_query(
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Embeds queries behind `prompts["query"]`, or the prompt that is given."""
        return self._behind("query", inputs, prompt_name, prompt, kwargs)

    def encode_document(
        self, inputs: Any, prompt_name: str | None = None, prompt: str | None = None, **kwargs: Any
    ) -> Any:
        """Embeds documents behind `prompts["document"]`, or the prompt that is given."""
        return self._behind("document", inputs, prompt_name, prompt, kwargs)

    def _behind(
        self, own: str, inputs: Any, name: str | None, prompt: str | None, how: dict[str, Any]
    ) -> Any:
        if name is None and prompt is None and own in self.prompts:
            name = own
        return self.encode(inputs, prompt_name=name, prompt=prompt, **how)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Returns the cosines of all vectors with all others, `(n, m)`, as an array or, of tensors,
        as a tensor."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Returns the cosine of each vector with the one beside it."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    def get_embedding_dimension(self) -> int:
        """Returns the number of values of a vector."""
        return self.engine.shape["dim"]

    get_sentence_embedding_dimension = get_embedding_dimension


def _unit(vectors: Any) -> Any:
    """Returns vectors, or one, as rows of length 1."""
    vectors = vectors if hasattr(vectors, "detach") else np.asarray(vectors, np.float32)
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    length = (vectors * vectors).sum(-1)[:, None] ** 0.5
    # As in PyTorch, a vector of zeros stays one.
    return vectors / length.clip(1e-12)
