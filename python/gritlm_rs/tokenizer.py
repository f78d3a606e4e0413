"""A model's tokenizer with the calls of transformers' that GritLM's users make."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from typing import Any, Literal

import numpy as np

from . import _native

Tensors = Literal["pt", "np"] | None


def plain(ids: Any) -> Any:
    """Returns ids of any kind of array or tensor as numbers or nested lists of them."""
    return ids.tolist() if hasattr(ids, "tolist") else ids


def tensor(rows: Any, kind: Tensors) -> Any:
    """Returns rows of equal length as an array of int64 or a tensor, or as they are."""
    if kind is None:
        return rows
    array = np.asarray(rows, dtype=np.int64)
    if kind == "np":
        return array
    if kind != "pt":
        raise ValueError(f"return_tensors: expected 'pt' or 'np', found {kind!r}")
    import torch

    return torch.from_numpy(array)


class Encoding(dict[str, Any]):
    """What the tokenizer returns: `input_ids` and `attention_mask`, also as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def to(self, device: Any) -> Encoding:
        """Returns the same with its tensors on another device."""
        moved = ((k, v.to(device) if hasattr(v, "to") else v) for k, v in self.items())
        return Encoding(moved)


class Tokenizer:
    """The tokenizer of a model, padding on the right with the end-of-sequence token."""

    padding_side = "right"

    def __init__(self, engine: _native.Engine) -> None:
        self._native = engine
        self.bos_token_id: int | None = engine.bos
        self.eos_token_id: int | None = next(iter(engine.eos), None)
        self.pad_token_id = self.eos_token_id

    @property
    def bos_token(self) -> str | None:
        """The token in front of a text, as spelled."""
        return self._spelled(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The token that ends an answer, as spelled."""
        return self._spelled(self.eos_token_id)

    pad_token = eos_token

    def _spelled(self, id: int | None) -> str | None:
        return None if id is None else self._native.piece(id)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return dict(self._native.shape)["vocab"]

    def __len__(self) -> int:
        return self.vocab_size

    def __contains__(self, token: str) -> bool:
        return self._native.id(token) is not None

    def convert_tokens_to_ids(self, tokens: str | Series[str]) -> Any:
        """Returns the ids of tokens as the vocabulary spells them; `None` where there is none."""
        if isinstance(tokens, str):
            return self._native.id(tokens)
        return [self._native.id(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: int | Series[int]) -> Any:
        """Returns tokens as the vocabulary spells them."""
        ids = plain(ids)
        if isinstance(ids, int):
            return self._native.piece(ids)
        return [self._native.piece(id) for id in ids]

    def encode(
        self, text: str, *, add_special_tokens: bool = True, return_tensors: Tensors = None
    ) -> Any:
        """Returns the ids of a text; with `return_tensors` as one row."""
        ids = self._native.tokenize(text, add_special_tokens)
        return ids if return_tensors is None else tensor([ids], return_tensors)

    def tokenize(self, text: str) -> list[str | None]:
        """Returns the tokens of a text as the vocabulary spells them, without `<s>`."""
        return [self._native.piece(id) for id in self._native.tokenize(text, False)]

    def __call__(
        self,
        text: str | Series[str],
        *,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: Tensors = None,
    ) -> Encoding:
        """Returns the ids of one or several texts with their attention mask.

        With `padding`, rows are filled up on the right to the longest one; with `truncation`, they
        are cut at `max_length`.
        """
        one = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        rows = [self._native.tokenize(text, add_special_tokens) for text in texts]
        if truncation and max_length is not None:
            rows = [row[:max_length] for row in rows]
        masks = [[1] * len(row) for row in rows]
        if padding:
            length = max(map(len, rows), default=0)
            if padding == "max_length" and max_length is not None:
                length = max(length, max_length)
            pad = self.pad_token_id
            if pad is None:
                raise ValueError("padding: the model has no end-of-sequence token to pad with")
            masks = [mask + [0] * (length - len(mask)) for mask in masks]
            rows = [row + [pad] * (length - len(row)) for row in rows]
        if one and return_tensors is None:
            return Encoding(input_ids=rows[0], attention_mask=masks[0])
        return Encoding(
            input_ids=tensor(rows, return_tensors), attention_mask=tensor(masks, return_tensors)
        )

    def decode(self, ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Returns the text of ids."""
        ids = plain(ids)
        ids = [ids] if isinstance(ids, int) else ids
        return self._native.detokenize(ids, skip_special_tokens)

    def batch_decode(self, rows: Any, *, skip_special_tokens: bool = False) -> list[str]:
        """Returns the texts of rows of ids."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in rows]

    def apply_chat_template(
        self,
        conversation: Series[Mapping[str, str]] | Series[Series[Mapping[str, str]]],
        *,
        tokenize: bool = True,
        add_generation_prompt: bool = False,
        padding: bool = False,
        return_tensors: Tensors = None,
        return_dict: bool = False,
    ) -> Any:
        """Returns the ids (or, without `tokenize`, the text) of a conversation or of several, in the
        checkpoint's chat template or, without one, in GritLM's format. Special tokens that are
        spelled in a message stay text."""
        parts = list(conversation)
        one = not parts or isinstance(parts[0], Mapping)
        talks = [_pairs(talk) for talk in ([parts] if one else parts)]
        if not tokenize:
            texts = [self._native.render(talk, add_generation_prompt) for talk in talks]
            return texts[0] if one else texts
        rows = [self._ids(talk, add_generation_prompt) for talk in talks]
        if one and return_tensors is None and not return_dict:
            return rows[0]
        masks = [[1] * len(row) for row in rows]
        if padding and self.pad_token_id is not None:
            length = max(map(len, rows), default=0)
            masks = [mask + [0] * (length - len(mask)) for mask in masks]
            rows = [row + [self.pad_token_id] * (length - len(row)) for row in rows]
        ids = tensor(rows, return_tensors)
        if return_dict:
            return Encoding(input_ids=ids, attention_mask=tensor(masks, return_tensors))
        return ids

    def _ids(self, talk: list[tuple[str, str]], add_generation_prompt: bool) -> list[int]:
        if add_generation_prompt:
            return self._native.conversation(talk, False)
        return self._native.tokenize(self._native.render(talk, False), False)


def _pairs(talk: Any) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in talk]


def pad(rows: Iterable[list[int]], value: int) -> list[list[int]]:
    """Fills rows up on the right to the longest one."""
    rows = list(rows)
    length = max(map(len, rows), default=0)
    return [row + [value] * (length - len(row)) for row in rows]
