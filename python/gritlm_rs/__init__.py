"""GritLM from one loaded copy of the weights: embeddings with bidirectional attention and
generation with causal attention, in the same batch.

`GritLM` takes the calls of the package `gritlm`; `Engine` is the whole engine; `Store` keeps
documents with the keys and values of their embedding passes; `train` is GRIT training.
"""

from ._native import Cache, GritLMError, Piece, devices
from .answer import Answer
from .engine import Engine, Message, Sequence
from .gritlm import GritLM, gritlm_instruction
from .store import Hit, Store, StoreAnswer
from .tokenizer import Encoding, Tokenizer
from .training import merge, train

__all__ = [
    "Answer",
    "Cache",
    "Encoding",
    "Engine",
    "GritLM",
    "GritLMError",
    "Hit",
    "Message",
    "Piece",
    "Sequence",
    "Store",
    "StoreAnswer",
    "Tokenizer",
    "devices",
    "gritlm_instruction",
    "merge",
    "train",
]
