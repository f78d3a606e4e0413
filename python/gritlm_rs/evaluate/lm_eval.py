"""A model for lm-eval.

    import lm_eval
    from gritlm_rs.evaluate.lm_eval import GritLMEval

    model = GritLMEval("GritLM/GritLM-7B")
    print(lm_eval.simple_evaluate(model, tasks=["arc_easy"])["results"])

Importing this module registers it, so that `model="gritlm"` with `model_args` works, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

# lm-eval looks for its own models only while none is registered.
import lm_eval.models  # noqa: F401
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..answer import Answer
from ..engine import Engine
from ..gritlm import GritLM
from .instructions import opened

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

T = TypeVar("T")
# Answers under way: enough that a step of the scheduler finds work, and fewer than its queue takes.
WINDOW = 256
# What lm-eval and its tasks call the same number.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


@register_model("gritlm")
class GritLMEval(TemplateLM):  # type: ignore[misc]
    """GritLM's generative half. Requests share the scheduler's steps, so there is no batch size.

    `model` is what `GritLM` takes, with the same `options`, or a `GritLM`. `max_length` is the most
    tokens of a request, the model's positions by default; longer ones lose their beginning.

    As with lm-eval's models over HTTP, `<s>` comes in front of a text only with `add_bos_token`, or
    where a continuation has no context. A chat template begins with its own.
    """

    def __init__(
        self,
        model: str | PathLike[str] | Engine | GritLM = "demo",
        *,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool = False,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.model = opened(model, device, options)
        self.engine = self.model.engine
        self.max_length = int(max_length or self.engine.shape["max_positions"])
        self.max_gen_toks = int(max_gen_toks)
        self.add_bos_token = add_bos_token

    @property
    def eot_token_id(self) -> int:
        """The token that ends an answer."""
        return self.model.tokenizer.eos_token_id or 0

    @property
    def prefix_token_id(self) -> int:
        """The token in front of a continuation without context."""
        bos = self.model.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name that lm-eval's caches of requests are told apart by."""
        return self.engine.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns the text of a conversation that is to be answered or, without
        `add_generation_prompt`, whose last message is to be continued."""
        begun = "" if add_generation_prompt else chat_history[-1]["content"]
        turns = chat_history if add_generation_prompt else chat_history[:-1]
        text: str = self.model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        return text + begun

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns the token ids of a text."""
        special = self.add_bos_token if add_special_tokens is None else add_special_tokens
        # A chat template has put it there already.
        special &= not string.startswith(self.model.tokenizer.bos_token or "\0")
        return self.engine.tokenize(string, special=special)

    def _loglikelihood_tokens(
        self, requests: Iterable[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        quiet = bool(kwargs.get("disable_tqdm", False))
        found: list[tuple[float, bool]] = []
        asked = list(requests)

        def ask(request: tuple[Any, list[int], list[int]]) -> Answer:
            _, context, continuation = request
            ids = (context or [self.prefix_token_id]) + continuation
            if len(continuation) >= self.max_length:
                raise ValueError(
                    f"max_length: a continuation of {len(continuation)} tokens does not fit into "
                    f"{self.max_length} with one before it"
                )
            return self.engine.generate(ids[-self.max_length :], max_tokens=0, prompt_logprobs=1)

        for (key, _, continuation), answer in _answered(asked, ask, "Log-likelihoods", quiet):
            answer.text()
            scores = answer.prompt_logprobs[-len(continuation) :] if continuation else []
            total = sum((score for _, score, _ in scores), 0.0)
            # Of tokens that are equally likely, any may be the most likely one.
            greedy = all(score >= top[0][1] for _, score, top in scores)
            found.append((total, greedy))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Returns the log-likelihoods of whole texts, in windows where they are long."""
        windows: list[tuple[None, list[int], list[int]]] = []
        counts: list[int] = []
        for request in requests:
            pairs = get_rolling_token_windows(
                self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                # A window is run with the last token that it predicts.
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(pair)) for pair in pairs]
            counts.append(len(windows) - before)
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        found = []
        for request, count in zip(requests, counts, strict=True):
            found.append(sum((next(scores)[0] for _ in range(count)), 0.0))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the continuations of contexts, each up to its stops. Where tokens are sampled,
        each request has its own seed, so that repeats of one differ."""

        def ask(numbered: tuple[int, Instance]) -> Answer:
            number, request = numbered
            context, how = request.args
            sampling = self._sampling({"seed": number, **how})
            ids = self.tok_encode(context) or [self.prefix_token_id]
            room = max(self.max_length - int(sampling["max_tokens"]), 1)
            return self.engine.generate(ids[-room:], **sampling)

        found = []
        for (_, request), answer in _answered(enumerate(requests), ask, "Answers", disable_tqdm):
            found.append(answer.text())
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _sampling(self, how: dict[str, Any]) -> dict[str, Any]:
        """Returns a task's settings as `Engine.generate` takes them."""
        limits = [how.pop(name, None) for name in LENGTHS]
        limit = next((int(one) for one in limits if one is not None), self.max_gen_toks)
        until = how.pop("until", None) or []
        stops = [until] if isinstance(until, str) else until
        if how.pop("do_sample", None) is False:
            how["temperature"] = 0.0
        unknown = sorted(how.keys() - set(SAMPLING))
        if unknown:
            raise ValueError(f"generation_kwargs: {', '.join(unknown)} is not supported")
        return {**how, "max_tokens": limit, "stop": [stop for stop in stops if stop]}


def _answered(
    requests: Iterable[T], ask: Callable[[T], Answer], what: str, quiet: bool
) -> Iterator[tuple[T, Answer]]:
    """Returns each request with its answer, in order, while those after it are under way."""
    requests = list(requests)
    under_way: deque[tuple[T, Answer]] = deque()
    coming = iter(requests)
    for _ in tqdm(requests, desc=what, disable=quiet):
        while len(under_way) < WINDOW:
            request = next(coming, None)
            if request is None:
                break
            under_way.append((request, ask(request)))
        yield under_way.popleft()
