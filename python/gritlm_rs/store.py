"""Stores of documents: indexed once, searched by meaning, answered from their cached keys and
values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from tqdm import tqdm

from . import _native
from ._native import Cache, Job
from .answer import Answer
from .engine import Engine, Sampling

Path = str | PathLike[str]
Mode = Literal["none", "query", "doc", "query-doc", "doc-query"]


@dataclass(frozen=True)
class Hit:
    """A chunk of a document that a search has found."""

    score: float
    """Inner product of its vector and the query's."""
    probability: float | None
    """How likely the model finds it relevant, where the search reranks."""
    id: int
    """The chunk's number, for `Store.cache`."""
    document: str
    """The path or id of its document."""
    title: str
    index: int
    """Index of the chunk in its document."""
    text: str
    metadata: Any


def _hits(text: str) -> list[Hit]:
    names = ("id", "document", "title", "index", "text", "metadata")
    return [
        Hit(one["score"], one["probability"], *(one["chunk"][name] for name in names))
        for one in json.loads(text)
    ]


class StoreAnswer(Answer):
    """An answer with the documents that it was given."""

    def __init__(self, job: Job, hits: list[Hit], usage: dict[str, Any]) -> None:
        super().__init__(job)
        self.hits = hits
        self.usage = usage
        """`tokens_computed`, `tokens_reused`, `bytes_read` and `recomputed` (caches that were gone)."""


class Store:
    """A folder with documents, their vectors and, with `cache="doc"`, the keys and values of their
    embedding passes, which answers reuse.

    `chunk` and `overlap` say how documents are cut, in tokens; `vectors` and `kv` are the formats in
    which numbers are kept (`f32`, `bf16` or `int8`). A store is made when something is first put into
    it, and its settings stay. One process writes at a time.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        *,
        chunk: int = 512,
        overlap: int = 0,
        cache: Literal["none", "doc"] = "doc",
        vectors: Literal["f32", "bf16", "int8"] = "f32",
        kv: Literal["f32", "bf16", "int8"] = "bf16",
        parse_in_child: bool = True,
    ) -> None:
        # HTML and PDF of others are parsed in a process of their own, with limits.
        child = [sys.executable, "-c", "from gritlm_rs import _native; _native.serve_parser()"]
        parser = child if parse_in_child and sys.executable else []
        self._native = _native.Store(
            engine._native, folder, chunk, overlap, cache, vectors, kv, parser
        )

    def index(
        self,
        paths: Path | Series[Path],
        *,
        progress: bool = False,
        on_problem: Callable[[str, str], object] | None = None,
    ) -> dict[str, int]:
        """Brings the store up to date with files and folders (text, Markdown, HTML, PDF, JSONL) and
        returns counts of what was done. `on_problem` is told of each file that cannot be read, and
        why. Ctrl-C keeps what is done."""
        all = [paths] if isinstance(paths, (str, PathLike)) else list(paths)
        with _Watch(progress, on_problem) as watch:
            counts: dict[str, int] = json.loads(self._native.index(all, watch.told))
        return counts

    def put(
        self, documents: Iterable[Mapping[str, Any]], *, progress: bool = False
    ) -> dict[str, int]:
        """Stores documents `{"id": …, "text": …}`, with a `title` and `metadata` if they have them,
        that are new or have changed."""
        given = [
            (
                str(document["id"]),
                str(document.get("title", "")),
                str(document["text"]),
                json.dumps(document.get("metadata")),
            )
            for document in documents
        ]
        with _Watch(progress, None) as watch:
            counts: dict[str, int] = json.loads(self._native.put(given, watch.told))
        return counts

    def remove(self, document: str) -> bool:
        """Removes a document by its path or id; returns whether it was there."""
        return self._native.remove(document)

    def search(
        self,
        query: str,
        *,
        top_k: int = 5,
        instruction: str = "",
        filters: Series[str] = (),
        below: Path | None = None,
        rerank: bool = False,
        exact: bool = False,
    ) -> list[Hit]:
        """Returns the chunks nearest to the query, best first. `filters` are conditions `key=value`
        on metadata, `below` a file or folder; `rerank` orders them by what the model says of each."""
        finding = _finding(top_k, instruction, filters, below, rerank, exact)
        return _hits(self._native.search(query, finding))

    def ask(
        self,
        query: str,
        *,
        mode: Mode = "doc",
        documents: int = 1,
        instruction: str = "",
        filters: Series[str] = (),
        below: Path | None = None,
        rerank: bool = False,
        as_published: bool = False,
        answer_prefix: str = "",
        **sampling: Any,
    ) -> StoreAnswer:
        """Finds documents and answers from them; pieces come as from `Engine.generate`.

        `mode` says what the answer reuses: the documents' embedding passes (`doc`), the query's
        (`query`), both, or `none`. `as_published` leaves the positions of joined caches as the paper's
        code does.
        """
        options = Sampling(**sampling)._options()
        finding = _finding(documents, instruction, filters, below, rerank, False)
        job, hits, usage = self._native.ask(
            query, finding, mode, as_published, answer_prefix, options
        )
        return StoreAnswer(job, _hits(hits), json.loads(usage))

    def cache(self, chunk: int) -> Cache | None:
        """Returns the keys and values of a chunk, if they are kept."""
        return self._native.cache(chunk)

    def status(self) -> dict[str, Any]:
        """Returns what the store holds: counts and bytes."""
        found: dict[str, Any] = json.loads(self._native.status())
        return found

    def verify(self) -> list[str]:
        """Checks every record and returns what is wrong, a line each."""
        return self._native.verify()


def _finding(
    top_k: int,
    instruction: str,
    filters: Series[str],
    below: Path | None,
    rerank: bool,
    exact: bool,
) -> dict[str, Any]:
    return dict(locals()) | {"filters": [filters] if isinstance(filters, str) else list(filters)}


class _Watch:
    """Shows a bar of the bytes read, and passes problems on."""

    def __init__(self, progress: bool, on_problem: Callable[[str, str], object] | None) -> None:
        self._bar = tqdm(desc="Bytes", unit="B", unit_scale=True, disable=not progress)
        self._on_problem = on_problem

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def told(self, text: str) -> None:
        event = json.loads(text)
        if event["event"] == "problem" and self._on_problem is not None:
            self._on_problem(event["path"], event["problem"])
        elif event["event"] == "progress":
            self._bar.total = event["total"]
            self._bar.update(event["read"] - self._bar.n)
