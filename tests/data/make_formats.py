#!/usr/bin/env python3
"""Makes formats/blocks.safetensors: random blocks of every quantised format, and the values that the `gguf` package
reads from them.

    pip install gguf==0.19.0 safetensors==0.8.0 && python make_formats.py

For each format, `NAME.bytes` (blocks, bytes of a block) and `NAME.values` (blocks, values of a block) in f32. All bytes
are random but for the f16 scales, which are finite and of either sign: large, small, zero and denormal ones.
"""
import pathlib, numpy as np
from gguf import GGMLQuantizationType as Type, GGML_QUANT_SIZES
from gguf.quants import dequantize
from safetensors.numpy import save_file

# Where the f16 numbers of a block are.
HALVES = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q2_K: [80, 82],
          Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208], Type.IQ4_XS: [0]}
SPECIAL = np.array([0.0, -0.0, 6e-8, -5e-5, 65504.0, -65504.0, 1.0, -0.0625], np.float16)

random = np.random.default_rng(16)
tensors = {}
for kind, places in HALVES.items():
    size, width = GGML_QUANT_SIZES[kind]
    count = 24 if size == 32 else 6
    blocks = random.integers(0, 256, (count, width), np.uint8)
    for place in places:
        scales = np.exp(random.normal(-5, 3, count)) * random.choice([-1, 1], count)
        scales = np.where(random.random(count) < 0.4, random.choice(SPECIAL, count), scales.astype(np.float16))
        blocks[:, place:place + 2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
    tensors[kind.name + ".bytes"] = blocks
    tensors[kind.name + ".values"] = dequantize(blocks, kind).astype(np.float32).reshape(count, size)
save_file(tensors, pathlib.Path(__file__).parent / "formats" / "blocks.safetensors")
