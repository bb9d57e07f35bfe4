"""in_mlx.py - whole models in mlx-lm, on the CPU and in float32.

float32 because mlx's CPU kernels take more than ten times as long over halves; a scale or bias that is a half stays what it is.
"""
import math

import mlx.core as mx
from mlx_lm.generate import generate_step
from mlx_lm.utils import load

mx.set_default_device(mx.cpu)


def opened(folder):
    """(model, tokenizer) as mlx-lm loads a folder: names and shapes must all be right."""
    model, tokenizer = load(folder)
    model.set_dtype(mx.float32)
    mx.eval(model.parameters())
    return model, tokenizer


def perplexity(model, ids, windows, seq_len):
    x = mx.array(ids[:windows * seq_len]).reshape(windows, seq_len)
    total = 0.0
    for part in mx.split(x, 4):
        logits = model(part)[:, :-1]
        picked = mx.take_along_axis(logits, part[:, 1:, None], -1)[..., 0]
        total += (mx.logsumexp(logits, -1) - picked).sum().item()
    return math.exp(total / (windows * (seq_len - 1)))


def greedy(model, prompt, count):
    return [int(token) for token, _ in generate_step(mx.array(prompt), model, max_tokens=count)]


def quantized_modules(model):
    """name -> (bits, group size) of what the runtime took for quantized."""
    return {name: (m.bits, m.group_size) for name, m in model.named_modules() if hasattr(m, "bits")}
