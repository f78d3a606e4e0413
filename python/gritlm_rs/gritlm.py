"""`GritLM` with the calls of the package `gritlm`, so that its users change one import."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Series
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import numpy as np

from ._native import Cache
from .answer import Answer
from .engine import Engine, Floats, Sampling
from .sentences import Sentences
from .tokenizer import Tokenizer, pad, plain, tensor

ATTENTION: dict[str | None, Literal["bbcc", "cccc"]] = {
    "bbcc": "bbcc",
    "bb": "bbcc",
    "cccc": "cccc",
    "cc": "cccc",
    # The original then leaves the model's own mask, which is causal.
    None: "cccc",
}
FORMATS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
POOLING = ("mean", "weightedmean", "cls", "lasttoken")


def gritlm_instruction(instruction: str) -> str:
    """Returns the text in front of what is embedded for a task; an empty one is for documents."""
    return f"<|user|>\n{instruction}\n<|embed|>\n" if instruction else "<|embed|>\n"


@dataclass(frozen=True)
class ModelConfig:
    """Numbers of the model's shape, as transformers names them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int


@dataclass(frozen=True)
class Model:
    """What users of the original read from its model."""

    config: ModelConfig


def _format(dtype: Any) -> str | None:
    """Returns the format of matrices that a dtype of PyTorch, or its name, asks for."""
    if dtype is None or dtype == "auto":
        return None
    name = str(dtype).removeprefix("torch.")
    if name not in FORMATS:
        raise ValueError(f"dtype: expected 'auto' or one of {', '.join(FORMATS)}, found {dtype!r}")
    return FORMATS[name]


class GritLM(Sentences):
    """GritLM as in the package `gritlm`: `encode`, `generate`, and caches between them.

    Two things differ. Vectors are computed in this package's arithmetic (`compute`), exact float32
    on a CPU. And `dtype` (or `torch_dtype`) is the format of the weights in memory; `"auto"` keeps
    the checkpoint's.

    `model` and `options` are those of `Engine`. An `Engine` that is open already can be given in
    place of a name. What only makes sense for PyTorch is refused by name.
    """

    def __init__(
        self,
        model_name_or_path: str | PathLike[str] | Engine = "demo",
        mode: Literal["unified", "embedding", "generative"] = "unified",
        pooling_method: str = "mean",
        normalized: bool = True,
        projection: None = None,
        is_inference: bool = True,
        embed_eos: str = "",
        attn: str | None = "bbcc",
        device: Any = "auto",
        torch_dtype: Any = None,
        dtype: Any = None,
        device_map: Any = None,
        **options: Any,
    ) -> None:
        if mode not in ("unified", "embedding", "generative"):
            raise ValueError(f"mode: expected unified, embedding or generative, found {mode!r}")
        if pooling_method not in POOLING:
            expected = ", ".join(POOLING)
            raise NotImplementedError(
                f"pooling_method: expected one of {expected}, found {pooling_method!r}"
            )
        if attn not in ATTENTION:
            raise ValueError(f"attn: expected bbcc, cccc, bb, cc or None, found {attn!r}")
        if projection is not None:
            raise ValueError("projection: a layer of random weights cannot be had here")
        if not is_inference:
            raise ValueError("is_inference: training has a function of its own, gritlm_rs.train")
        if device_map not in (None, "auto"):
            raise ValueError(f"device_map: expected 'auto', found {device_map!r}; use `device`")
        for name, instead in (("load_in_8bit", "q8_0"), ("load_in_4bit", "q4_k_m")):
            if options.pop(name, False):
                raise ValueError(f"{name}: use weights={instead!r}")
        weights = _format(dtype if dtype is not None else torch_dtype)
        if isinstance(model_name_or_path, Engine):
            if weights or options:
                raise ValueError("model_name_or_path: an engine that is open takes no options")
            self.engine = model_name_or_path
        else:
            if weights is not None:
                options.setdefault("weights", weights)
            # PyTorch's name of the first GPU.
            where = "cuda:0" if str(device) == "cuda" else str(device)
            self.engine = Engine(model_name_or_path, device=where, **options)
        self.mode = mode
        self.pooling_method = pooling_method
        self.normalized = normalized
        self.embed_eos = embed_eos
        self.attn = attn
        self.prompts = dict.fromkeys(("query", "document"), gritlm_instruction(""))
        self.tokenizer = Tokenizer(self.engine._native)
        if embed_eos and embed_eos not in self.tokenizer:
            raise ValueError(f"embed_eos: {embed_eos!r} is not in the vocabulary")

    @property
    def device(self) -> str:
        """Where the tensors are that are given and returned: in the host's memory. The device that
        computes is `engine.device`."""
        return "cpu"

    @property
    def model(self) -> Model:
        """The model's config."""
        shape = self.engine.shape
        config = ModelConfig(
            hidden_size=shape["dim"],
            intermediate_size=shape["hidden"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            num_key_value_heads=shape["kv_heads"],
            head_dim=shape["head_dim"],
            vocab_size=shape["vocab"],
            max_position_embeddings=shape["max_positions"],
        )
        return Model(config)

    def encode_queries(self, queries: str | Series[str], **kwargs: Any) -> Any:
        """Embeds the queries of a retrieval task."""
        return self.encode(queries, **kwargs)

    def encode_corpus(
        self,
        corpus: str | Series[str] | Mapping[str, str] | Series[Mapping[str, str]],
        **kwargs: Any,
    ) -> Any:
        """Embeds the documents of a retrieval task: texts, or `{"title": …, "text": …}`."""
        if isinstance(corpus, str):
            return self.encode(corpus, **kwargs)
        documents: Series[Any] = [corpus] if isinstance(corpus, Mapping) else corpus
        texts = [
            document
            if isinstance(document, str)
            else " ".join(document[key] for key in ("title", "text") if key in document)
            for document in documents
        ]
        return self.encode(texts, **kwargs)

    def encode(
        self,
        sentences: str | Series[str],
        batch_size: int = 256,
        max_length: int = 512,
        instruction: str = "",
        embed_instruction: bool = False,
        get_cache: bool = False,
        convert_to_tensor: bool = False,
        recast: bool = False,
        add_special_tokens: bool = True,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        normalize_embeddings: bool | None = None,
        norm: bool | None = None,
        show_progress_bar: bool | None = None,
        convert_to_numpy: bool = True,
        **ignored: Any,
    ) -> Any:
        """Embeds a text, or several, and returns their vectors as float32.

        `instruction` is the text in front of each sentence, tags included; see
        `gritlm_instruction`. A mean leaves its tokens out unless `embed_instruction`. Where it is
        empty, `<s>` is part of the mean, as in the original. `prompt` is the name that
        sentence-transformers has for it, `normalize_embeddings` for `normalized`; `prompt_name` is
        a key of `prompts`, and `truncate_dim` keeps so many leading values.

        With `get_cache` also returns keys and values, a tuple of `(keys, values)` for each layer,
        `(texts, kv_heads, tokens, head_dim)`, as tensors where PyTorch is installed and as arrays
        elsewhere. Columns of padding hold zeros, which `generate` skips.

        `batch_size` and other arguments that the original ignores, or that do not change values, are
        accepted; batches are formed by tokens.

        Raises `ValueError` where there is nothing to pool: a text is empty, or the instruction leaves
        no room for one.
        """
        if self.mode == "generative":
            raise ValueError("encode: the model was opened with mode='generative'")
        for name, value, only in (
            ("output_value", output_value, "sentence_embedding"),
            ("precision", precision, "float32"),
        ):
            if value != only:
                raise ValueError(f"{name}: expected {only!r}, found {value!r}")
        if prompt is None and prompt_name is not None:
            if prompt_name not in self.prompts:
                raise ValueError(
                    f"prompt_name: expected one of {', '.join(self.prompts)}, found {prompt_name!r}"
                )
            prompt = self.prompts[prompt_name]
        single = isinstance(sentences, str)
        texts: list[str] = [sentences] if isinstance(sentences, str) else list(sentences)
        normalize = next(
            (n for n in (normalize_embeddings, norm) if n is not None), self.normalized
        )
        options = self.engine._embedding(
            instruction if prompt is None else prompt,
            self.pooling_method,
            normalize,
            max_length,
            ATTENTION[self.attn],
            truncate_dim,
            get_cache,
            {
                "end": self.embed_eos,
                "special": add_special_tokens,
                "pool_instruction": embed_instruction,
            },
        )
        vectors, caches = self.engine._watched(texts, options, show_progress_bar)
        found: Any = vectors[0] if single else vectors
        if convert_to_tensor:
            import torch

            found = torch.from_numpy(found)
        return (found, _legacy(caches)) if get_cache else found

    def generate(
        self,
        inputs: Any = None,
        *,
        input_ids: Any = None,
        attention_mask: Any = None,
        past_key_values: Any = None,
        past: Any = None,
        use_cache: bool | None = True,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        do_sample: bool = False,
        temperature: float | None = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 1.0,
        min_p: float | None = None,
        repetition_penalty: float | None = 1.0,
        num_return_sequences: int = 1,
        stop_strings: str | Series[str] | None = None,
        pad_token_id: int | None = None,
        seed: int | None = None,
        streamer: Any = None,
        tokenizer: Any = None,
        **refused: Any,
    ) -> Any:
        """Continues rows of token ids, as `generate` of transformers does, and returns the rows with
        the new tokens; shorter ones are filled up with the end-of-sequence token. The result is of
        the kind of `inputs`: a tensor, an array, or lists.

        `past_key_values` (or `past`) holds keys and values that come before the rows: what
        `encode(get_cache=True)` returned, or slices or concatenations of it, or a `Cache` for each
        row. Columns that `attention_mask` leaves out, and columns of padding, are skipped.

        Without `do_sample` the most likely token is taken each time. `max_new_tokens` is 256 where
        neither it nor `max_length` is given. `seed` makes sampling repeatable.
        """
        if self.mode == "embedding":
            raise ValueError("generate: the model was opened with mode='embedding'")
        # What transformers takes by default changes nothing.
        neutral = {
            "num_beams": (1, None),
            "return_dict_in_generate": (False, None),
            "eos_token_id": (self.tokenizer.eos_token_id, None),
        }
        for name, value in refused.items():
            if name not in neutral or value not in neutral[name]:
                raise ValueError(f"{name}: {value!r} is not supported by generate")
        given = inputs if inputs is not None else input_ids
        if isinstance(given, Mapping):
            attention_mask = given.get("attention_mask", attention_mask)
            given = given["input_ids"]
        if given is None:
            raise ValueError("inputs: expected rows of token ids, found none")
        kind: Literal["pt", "np"] | None = (
            "np" if isinstance(given, np.ndarray) else "pt" if hasattr(given, "dim") else None
        )
        rows = [[int(id) for id in row] for row in _rows(plain(given))]
        if past_key_values is None:
            past_key_values = past
        pasts, masks = _pasts(past_key_values, len(rows), attention_mask)
        prompts = [
            [id for id, kept in zip(row, mask[-len(row) :], strict=True) if kept]
            if mask is not None
            else row
            for row, mask in zip(rows, masks, strict=True)
        ]
        longest = max(map(len, rows), default=0)
        if max_new_tokens is None:
            max_new_tokens = 256 if max_length is None else max(max_length - longest, 0)
        if streamer is not None and len(rows) * num_return_sequences != 1:
            raise ValueError("streamer: expected one row")
        if not do_sample and num_return_sequences != 1:
            raise ValueError("num_return_sequences: expected do_sample with more than one")
        first = random.getrandbits(63) if seed is None else seed
        answers: list[tuple[list[int], Answer]] = []
        for number, (row, prompt, before) in enumerate(zip(rows, prompts, pasts, strict=True)):
            for again in range(num_return_sequences):
                sampling = Sampling(
                    max_tokens=max_new_tokens,
                    temperature=(temperature if temperature is not None else 1.0) * do_sample,
                    top_k=(top_k or 0) * do_sample,
                    top_p=(top_p if top_p is not None else 1.0) if do_sample else 1.0,
                    min_p=(min_p or 0.0) * do_sample,
                    repetition_penalty=repetition_penalty or 1.0,
                    seed=(first + number * num_return_sequences + again) % (1 << 63),
                    stop=stop_strings or [],
                    verbatim=True,
                )
                answer = self.engine.generate(prompt, past=before, **vars(sampling))
                answers.append((row, answer))
        if streamer is not None:
            streamer.put(tensor(rows, "pt"))
            _stream(answers[0][1], streamer)
        fill = pad_token_id if pad_token_id is not None else self.tokenizer.pad_token_id
        done = [row + _tokens(answer) for row, answer in answers]
        if kind is None and len(set(map(len, done))) > 1:
            return done
        return tensor(pad(done, fill or 0), kind)


def _tokens(answer: Answer) -> list[int]:
    answer.text()
    return answer.tokens


def _stream(answer: Answer, streamer: Any) -> None:
    for piece in answer:
        streamer.put(tensor([piece.token], "pt"))
    streamer.end()


def _rows(ids: Any) -> list[list[int]]:
    """Returns ids as rows; one row may come as a flat list."""
    return ids if ids and isinstance(ids[0], list) else [ids]


def _array(values: Any) -> Floats:
    """Returns a tensor or an array as float32 in the host's memory."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().float().numpy()
    return np.asarray(values, dtype=np.float32)


def _legacy(caches: list[Cache | None]) -> tuple[tuple[Any, Any], ...]:
    """Returns the caches of texts as keys and values of each layer, padded on the right."""
    arrays = [cache.numpy() for cache in caches if cache is not None]
    layers, _, heads, _, width = arrays[0].shape
    longest = max(array.shape[3] for array in arrays)
    joined = np.zeros((layers, 2, len(arrays), heads, longest, width), np.float32)
    for row, array in enumerate(arrays):
        joined[:, :, row, :, : array.shape[3]] = array
    try:
        import torch
    except ImportError:
        return tuple((layer[0], layer[1]) for layer in joined)
    tensors = torch.from_numpy(joined)
    return tuple((layer[0], layer[1]) for layer in tensors)


def _layers(past: Any) -> Iterator[tuple[Any, Any]]:
    """Returns keys and values of each layer of a cache of transformers, or of a tuple."""
    for layer in getattr(past, "layers", past):
        yield (layer.keys, layer.values) if hasattr(layer, "keys") else (layer[0], layer[1])


def _pasts(
    past: Any, count: int, attention_mask: Any
) -> tuple[list[Cache | None], list[list[int] | None]]:
    """Returns what comes before each row, and each row's mask."""
    given = _rows(plain(attention_mask)) if attention_mask is not None else []
    masks: list[list[int] | None] = [*given] if given else [None] * count
    if len(masks) != count:
        raise ValueError(f"attention_mask: expected {count} rows, found {len(masks)}")
    if past is None:
        return [None] * count, masks
    if isinstance(past, Cache):
        return [past] * count, masks
    parts = list(past) if isinstance(past, (list, tuple)) else past
    if isinstance(parts, list) and parts and isinstance(parts[0], Cache):
        if len(parts) != count:
            raise ValueError(f"past: expected {count} caches, found {len(parts)}")
        return parts, masks
    # (layers, 2, rows, kv_heads, tokens, head_dim)
    both = np.stack([np.stack([_array(k), _array(v)]) for k, v in _layers(past)])
    if both.shape[2] not in (1, count):
        raise ValueError(f"past_key_values: expected {count} rows, found {both.shape[2]}")
    tokens = both.shape[4]
    caches: list[Cache | None] = []
    for row in range(count):
        own = both[:, :, row if both.shape[2] > 1 else 0]
        # No key that a model computes is zero in every layer: such a column is padding.
        kept = own.any(axis=(0, 1, 2, 4))
        mask = masks[row]
        if mask is not None and len(mask) > tokens:
            kept &= np.asarray(mask[:tokens], dtype=bool)
        caches.append(Cache.from_numpy(np.ascontiguousarray(own[:, :, :, kept])))
    return caches, masks
