"""GRIT training, and adapters merged into weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from collections.abc import Sequence as Series
from os import PathLike
from typing import Any

from tqdm import tqdm

from . import _native
from .engine import opening

Path = str | PathLike[str]
Event = dict[str, Any]


def train(
    model: Path,
    data: Path,
    output: Path,
    *,
    steps: int | None = None,
    batch: int = 32,
    generative_batch: int = 4,
    group_size: int = 2,
    seed: int = 0,
    query_max_len: int = 256,
    passage_max_len: int = 2048,
    generative_max_len: int = 2048,
    learning_rate: float = 2e-5,
    warmup: float = 0.03,
    weight_decay: float = 0.0,
    max_gradient_norm: float = 1.0,
    max_spike: float = 100.0,
    temperature: float = 0.02,
    embedding_weight: float = 1.0,
    generative_weight: float = 1.0,
    generative_loss: str = "mixed",
    generative_group: int = 32,
    router_weight: float = 0.0,
    hard_negatives_only: bool = False,
    dimensions: Series[int] = (),
    pooling: str = "mean",
    attn: str = "bbcc",
    chunk_tokens: int = 1024,
    recompute: bool = False,
    save_every: int = 100,
    eval_data: Path | None = None,
    eval_every: int = 0,
    lora: int | None = None,
    lora_alpha: float | None = None,
    lora_dropout: float = 0.0,
    lora_targets: Series[str] = (),
    device: str = "auto",
    adapter: Path | None = None,
    progress: bool = True,
    on_event: Callable[[Event], object] | None = None,
) -> Event:
    """Trains a model on the JSONL files in `data` and writes the checkpoint to `output`; the
    arguments are those of `gritlm train` at the command line.

    A run with the same `output` goes on where an earlier one was stopped, by Ctrl-C, by an exception
    of `on_event`, or by `kill -9`. `on_event` is called with `{"event": "step", "step": …,
    "loss_rep": …, "loss_gen": …, "tokens_per_second": …}` after each step, and with `note`, `plan`,
    `begin` and `saved`. Returns `{"evaluation": …}`.

    Raises `ValueError` for a wrong option or a bad line, which it names; `GritLMError` otherwise.
    """
    options = {
        name: value
        for name, value in locals().items()
        if name not in ("model", "data", "output", "device", "adapter", "progress", "on_event")
    }
    options |= {"parts": options.pop("attn")}
    options |= {"dimensions": list(dimensions), "lora_targets": list(lora_targets)}
    with tqdm(desc="Steps", disable=not progress) as bar:

        def told(text: str) -> None:
            event = json.loads(text)
            if event["event"] == "begin":
                bar.total = event["steps"]
                bar.update(event["step"] - bar.n)
            elif event["event"] == "step":
                shown = {k: event[k] for k in ("loss_rep", "loss_gen") if k in event}
                bar.set_postfix(shown, refresh=False)
                bar.update(event["step"] - bar.n)
            if on_event is not None:
                on_event(event)

        place = opening(device=device, adapter=adapter)
        ended: Event = json.loads(_native.train(str(model), data, output, place, options, told))
    return ended


def merge(model: Path, adapter: Path, output: Path) -> tuple[int, int]:
    """Merges a low-rank adapter into a checkpoint's weights and writes the result to a new folder.
    Returns how many tensors it has, and how many of them are merged."""
    return _native.merge(str(model), adapter, output)
