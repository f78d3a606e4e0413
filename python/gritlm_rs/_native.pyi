"""The native half of the package; the files beside it are what to call."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Path = str | PathLike[str]

class GritLMError(RuntimeError):
    """The model cannot be opened, the device failed, or a file cannot be read or written."""

class Cache:
    """Keys (after RoPE) and values of one sequence, without padding, off the device."""

    @staticmethod
    def from_numpy(array: Floats, tokens: Sequence[int] = ...) -> Cache:
        """Makes a cache of an array `(layers, 2, kv_heads, tokens, head_dim)`; `tokens` are the
        ids of the cached tokens, which a repetition penalty counts."""
    @staticmethod
    def concat(caches: Sequence[Cache]) -> Cache:
        """Joins caches one after the other; keys keep the positions that they were computed at."""
    def numpy(self) -> Floats:
        """Returns a copy as an array `(layers, 2, kv_heads, tokens, head_dim)`."""
    def rounded(self) -> Cache:
        """Returns the same values rounded to bfloat16, which take half the memory."""
    @property
    def shape(self) -> tuple[int, int, int, int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...

class Piece:
    """The token of one step, and the text that has become final with it."""

    @property
    def text(self) -> str:
        """Whole characters that cannot be part of a stop text; may be empty."""
    @property
    def token(self) -> int: ...
    @property
    def logprob(self) -> float:
        """Log-probability of the token under the model, before temperature and filters."""
    @property
    def top(self) -> list[tuple[int, float]]:
        """The most likely tokens and their log-probabilities."""
    @property
    def finish_reason(self) -> str | None:
        """`"stop"` or `"length"` with the last piece, else `None`."""

class Job:
    def next(self) -> Piece | None: ...
    def poll(self) -> tuple[bool, Piece | None]: ...
    def on_event(self, callback: Callable[[], object]) -> None: ...
    def cancel(self) -> None: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def prompt_logprobs(self) -> list[tuple[int, float, list[tuple[int, float]]]]: ...
    @property
    def summary(self) -> str | None: ...

class Engine:
    def __init__(self, model: str, options: Mapping[str, Any]) -> None: ...
    @property
    def device(self) -> str: ...
    @property
    def shape(self) -> list[tuple[str, int]]: ...
    @property
    def eos(self) -> list[int]: ...
    @property
    def bos(self) -> int: ...
    @property
    def start(self) -> list[int]: ...
    @property
    def generates(self) -> bool: ...
    def tokenize(self, text: str, special: bool) -> list[int]: ...
    def detokenize(self, ids: Sequence[int], skip_special: bool) -> str: ...
    def piece(self, id: int) -> str | None: ...
    def id(self, piece: str) -> int | None: ...
    def conversation(self, talk: list[tuple[str, str]], continues: bool) -> list[int]: ...
    def render(self, talk: list[tuple[str, str]], add_generation_prompt: bool) -> str: ...
    def embed(
        self,
        texts: list[str],
        options: Mapping[str, Any],
        progress: Callable[[int], object] | None,
    ) -> tuple[Floats, list[Cache | None]]: ...
    def generate(
        self,
        start: str | list[int] | list[tuple[str, str]],
        options: Mapping[str, Any],
        raw: bool,
        past: Cache | None,
        priority: int,
        timeout: float | None,
    ) -> Job: ...
    def rerank(self, query: str, passages: list[str]) -> list[tuple[int, float, float]]: ...
    def run(
        self, sequences: list[Mapping[str, Any]]
    ) -> list[tuple[Floats | None, Cache | None]]: ...
    def search(
        self, queries: Floats, corpus: Floats, top_k: int
    ) -> list[list[tuple[int, float]]]: ...
    def stats(self) -> str: ...

class Store:
    def __init__(
        self,
        engine: Engine,
        folder: Path,
        chunk: int,
        overlap: int,
        cache: str,
        vectors: str,
        kv: str,
        parser: list[str],
    ) -> None: ...
    def index(self, paths: list[Path], progress: Callable[[str], object] | None) -> str: ...
    def put(
        self,
        documents: list[tuple[str, str, str, str]],
        progress: Callable[[str], object] | None,
    ) -> str: ...
    def remove(self, path: str) -> bool: ...
    def search(self, query: str, finding: Mapping[str, Any]) -> str: ...
    def ask(
        self,
        query: str,
        finding: Mapping[str, Any],
        mode: str,
        as_published: bool,
        answer_prefix: str,
        options: Mapping[str, Any],
    ) -> tuple[Job, str, str]: ...
    def status(self) -> str: ...
    def verify(self) -> list[str]: ...
    def cache(self, chunk: int) -> Cache | None: ...

def devices() -> list[tuple[str, bool, str]]:
    """Devices of this machine: what `device` takes, whether it can be opened, and its name or what
    is wrong with it."""

def serve_parser() -> None: ...
def train(
    model: str,
    data: Path,
    output: Path,
    opening: Mapping[str, Any],
    training: Mapping[str, Any],
    progress: Callable[[str], object] | None,
) -> str: ...
def merge(model: str, adapter: Path, output: Path) -> tuple[int, int]: ...
