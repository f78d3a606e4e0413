"""The engine: embed, generate, rerank and search on one copy of the weights.

All calls, of any number of threads and tasks, share the steps of one scheduler: continuous
batching, paged keys and values, prefix caching.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Series
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from os import PathLike
from typing import Any, Literal, TypedDict

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from . import _native
from ._native import Cache
from .answer import Answer

Floats = npt.NDArray[np.float32]
Pooling = Literal["mean", "weightedmean", "cls", "lasttoken"]


class Message(TypedDict):
    """A message of a conversation."""

    role: str
    content: str


Prompt = str | Series[int] | Series[Message]
"""A user's turn, token ids, or a conversation that is to be answered."""


@dataclass
class Sequence:
    """Token ids of one sequence in a pass of `Engine.run`."""

    tokens: Series[int]
    mask: Literal["causal", "bidirectional"] = "causal"
    window: int | None = None
    """Keys that a token sees at most; `None` for all."""
    want: Literal["nothing", "logits", "all_logits", "hidden", "embedding"] = "logits"
    """The last token's logits, all tokens' logits or hidden states, or one pooled vector."""
    pooling: Pooling = "mean"
    skip: int = 0
    """Leading tokens that pooling leaves out."""
    normalize: bool = True
    past: Cache | None = None
    """Keys and values that the tokens follow."""
    keep_cache: bool = False
    """Whether the keys and values of past and tokens are returned."""


@dataclass
class Ranked:
    """The relevance of a passage."""

    index: int
    score: float
    """Logit of "yes"."""
    probability: float
    """Probability of "yes" against "no"."""


@dataclass
class Sampling:
    """How tokens are sampled; the keyword arguments of `Engine.generate`."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Series[str] = field(default_factory=list)
    logprobs: int = 0
    prompt_logprobs: int | None = None
    ignore_eos: bool = False
    verbatim: bool = False
    schema: Mapping[str, Any] | str | None = None

    def _options(self) -> dict[str, Any]:
        options = asdict(self)
        options["stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        if self.schema is not None and not isinstance(self.schema, str):
            options["schema"] = json.dumps(self.schema)
        return options


def opening(
    device: str = "auto",
    attn: str = "bbcc",
    chat_template: str = "checkpoint",
    batch_tokens: int | None = None,
    kv_tokens: int | None = None,
    weights: str | None = None,
    adapter: str | PathLike[str] | None = None,
    compute: str | None = None,
    kv_type: str | None = None,
    kernels: str | PathLike[str] | None = None,
    tune: bool = False,
    bf16_frequencies: bool = False,
    progress: bool = False,
) -> dict[str, Any]:
    """Returns the options of opening a model as the native half takes them."""
    return dict(locals())


def start_of(prompt: Prompt) -> str | list[int] | list[tuple[str, str]]:
    """Returns a prompt as the native half takes it."""
    if isinstance(prompt, str):
        return prompt
    parts: list[Any] = list(prompt)
    if parts and isinstance(parts[0], Mapping):
        return [(message["role"], message["content"]) for message in parts]
    return [int(token) for token in parts]


class Engine:
    """A loaded model.

    `model` is the folder of a checkpoint, a GGUF file, a Hugging Face id, or `demo`, a tiny model
    that comes with the package. `device` is `auto`, `cpu`, `cuda[:N]` or `wgpu[:NAME]`; see
    `devices`. The other options are those of `gritlm` at the command line: `weights` quantises while
    loading, `adapter` merges a low-rank adapter, `compute` and `kv_type` choose the numbers of
    products and of the KV cache, `batch_tokens` and `kv_tokens` the size of a step and of all pages.

    Raises `GritLMError` where the model or device cannot be opened, `ValueError` for a wrong option.
    """

    def __init__(self, model: str | PathLike[str] = "demo", **options: Any) -> None:
        self._native = _native.Engine(str(model), opening(**options))
        self.name = str(model)
        # Threads that wait for embeddings. The event loop's own are as few as there are cores, and so
        # would be the texts of a step.
        self._waiting = ThreadPoolExecutor(256, "gritlm-embed")

    @property
    def device(self) -> str:
        """The device in use and why it was chosen."""
        return self._native.device

    @property
    def shape(self) -> dict[str, int]:
        """Numbers of the model's shape: `dim`, `layers`, `heads`, `kv_heads`, `head_dim`, `hidden`,
        `vocab`, `max_positions`."""
        return dict(self._native.shape)

    @property
    def generates(self) -> bool:
        """Whether the checkpoint has the head that generating and ranking need."""
        return self._native.generates

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """Returns the token ids of a text, with `<s>` in front where `special`."""
        return self._native.tokenize(text, special)

    def detokenize(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """Returns the text of token ids."""
        return self._native.detokenize([int(id) for id in ids], skip_special)

    def embed(
        self,
        texts: Series[str],
        *,
        instruction: str = "",
        pooling: Pooling = "mean",
        normalize: bool = True,
        max_length: int = 512,
        attn: Literal["bbcc", "cccc"] | None = None,
        dimensions: int | None = None,
        progress: bool | None = None,
    ) -> Floats:
        """Embeds texts and returns `(texts, dim)`.

        `instruction` says what the vectors are for; leave it empty for documents. The model sees
        it, and pooling leaves it out. A sequence is cut at `max_length` tokens. `dimensions` keeps
        so many leading values. `progress` shows a bar on stderr; `None` for more than 256 texts.

        Raises `ValueError` where a text is empty, or the instruction leaves no room for one.
        """
        options = self._embedding(instruction, pooling, normalize, max_length, attn, dimensions)
        return self._watched(texts, options, progress)[0]

    def embed_with_caches(self, texts: Series[str], **options: Any) -> tuple[Floats, list[Cache]]:
        """Does what `embed` does, with the same arguments, and also returns the keys and values of
        each text, for `past` of `generate`."""
        progress = options.pop("progress", None)
        how = self._embedding(keep_cache=True, **options)
        vectors, caches = self._watched(texts, how, progress)
        return vectors, [cache for cache in caches if cache is not None]

    async def embed_async(self, texts: Series[str], **options: Any) -> Floats:
        """Does what `embed` does, for async code. A task that is cancelled does not end the work."""
        call = partial(self.embed, texts, **options)
        return await asyncio.get_running_loop().run_in_executor(self._waiting, call)

    @staticmethod
    def _embedding(
        instruction: str = "",
        pooling: str = "mean",
        normalize: bool = True,
        max_length: int = 512,
        attn: str | None = None,
        dimensions: int | None = None,
        keep_cache: bool = False,
        verbatim: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        return dict(locals())

    def _watched(
        self, texts: Series[str], options: Mapping[str, Any], progress: bool | None
    ) -> tuple[Floats, list[Cache | None]]:
        if isinstance(texts, str):
            raise TypeError("texts: expected a list of texts, found one text")
        texts = list(texts)
        shown = len(texts) > 256 if progress is None else progress
        with tqdm(total=len(texts), desc="Texts", disable=not shown) as bar:
            told: Callable[[int], object] = lambda done: bar.update(done - bar.n)
            return self._native.embed(texts, options, told if shown else None)

    def generate(
        self,
        prompt: Prompt,
        *,
        raw: bool = False,
        past: Cache | None = None,
        priority: int = 0,
        timeout: float | None = None,
        **sampling: Any,
    ) -> Answer:
        """Queues an answer and returns at once; its pieces come from a loop or an async loop.

        `prompt` is a user's turn, a conversation, or token ids; `raw` takes a text verbatim. `past`
        holds keys and values that come before it, such as a document's from `embed_with_caches`; no
        `<s>` is put in front of the prompt then. `timeout` is in seconds from now.

        Sampling: `max_tokens` (256), `temperature` (0, the most likely token each time), `top_k`,
        `top_p`, `min_p`, `repetition_penalty`, `seed`, `stop` (texts that end the answer),
        `logprobs` (how many of the most likely tokens to report), `prompt_logprobs` (likewise for
        the prompt's tokens), `ignore_eos`, and `schema`, a JSON schema that the answer follows.

        Raises `ValueError` for a wrong option or a prompt that does not fit.
        """
        options = Sampling(**sampling)._options()
        start = start_of(prompt)
        return Answer(self._native.generate(start, options, raw, past, priority, timeout))

    def rerank(self, query: str, passages: Series[str]) -> list[Ranked]:
        """Asks the model whether each passage is relevant; the most relevant first."""
        return [Ranked(*one) for one in self._native.rerank(query, list(passages))]

    def search(
        self, queries: Floats, corpus: Floats, top_k: int = 10
    ) -> list[list[tuple[int, float]]]:
        """Returns for each of `queries (m, dim)` the indices and inner products of the nearest of
        `corpus (n, dim)`, best first."""
        floats = [np.ascontiguousarray(array, dtype=np.float32) for array in (queries, corpus)]
        return self._native.search(floats[0], floats[1], top_k)

    def run(self, sequences: Series[Sequence]) -> list[tuple[Floats | None, Cache | None]]:
        """Runs sequences of token ids in one pass, each with its own mask and its own output: the
        values that it wants as `(rows, columns)`, and its keys and values where it keeps them."""

        def fields(one: Sequence) -> dict[str, Any]:
            found = {name: getattr(one, name) for name in one.__dataclass_fields__}
            return found | {"tokens": [int(token) for token in one.tokens]}

        return self._native.run([fields(one) for one in sequences])

    def stats(self) -> dict[str, Any]:
        """Returns the scheduler's counters."""
        found: dict[str, Any] = json.loads(self._native.stats())
        return found

    def __repr__(self) -> str:
        return f"Engine({self.name!r}, device={self.device!r})"
