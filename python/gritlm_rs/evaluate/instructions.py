"""The instructions that the GRIT paper evaluated MTEB with.

`instructions.json` holds them word for word: the paper's table 33, which is the set `e5` of
`evaluation/eval_mteb.py` in the repository ContextualAI/gritlm and comes from the E5 models. Its
keys are the names of the 56 tasks. A text is for both sides of a task; `query` and `corpus` are for
one side each, and tasks of retrieval have none for the corpus.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from os import PathLike
from typing import Any, Literal

from ..engine import Engine
from ..gritlm import GritLM

Side = Literal["query", "corpus"]
Instructions = Mapping[str, str | Mapping[str, str]]


@cache
def published() -> Instructions:
    """Returns the paper's instructions: a text for each task, or one for each of its sides."""
    text = files(__package__).joinpath("instructions.json").read_text("utf-8")
    table: dict[str, str | dict[str, str]] = json.loads(text)
    return table


def instruction_of(task: str, side: Side, table: Instructions | None = None) -> str | None:
    """Returns a task's instruction, which may be empty, or `None` where the table has none.

    The forums of CQADupstack share one, and a later version of a task (`STS22.v2`) has that of the
    first.
    """
    table = published() if table is None else table
    names = [task, re.sub(r"\.v\d+$", "", task)]
    if task.startswith("CQADupstack"):
        names.append("CQADupstackRetrieval")
    found = next((table[name] for name in names if name in table), None)
    return found if found is None or isinstance(found, str) else found.get(side, "")


def opened(
    model: str | PathLike[str] | Engine | GritLM, device: str | None, options: Mapping[str, Any]
) -> GritLM:
    """Returns a model that is open already as it is, or opens one."""
    if isinstance(model, GritLM):
        if options:
            raise ValueError("model: a GritLM that is open takes no options")
        return model
    return GritLM(model, device=device or "auto", **options)
