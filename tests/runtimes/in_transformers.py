"""in_transformers.py - whole models in transformers, on the CPU and in float32.

What loads gptq and awq there cannot be installed next to the other packages (docs/formats.md): their codes are unpacked with
numpy as the formats are described, and the weights put into the model that transformers builds.
"""
import json
import math
import os
import re

import numpy as np
import torch
from test_codecs_real import fields
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

LEFT_OVER = ("missing_keys", "unexpected_keys", "mismatched_keys")


def opened(folder, **more):
    """The model; every tensor must have found its place."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, dtype=torch.float32, **more)
    for kind in LEFT_OVER:
        assert not info[kind], f"{kind}: {info[kind]}"
    return model


def opened_compressed(folder):
    """transformers keeps symmetric weights packed until they are used; others it loads only when asked to unpack at once."""
    from transformers import CompressedTensorsConfig
    with open(os.path.join(folder, "config.json")) as f:
        groups = json.load(f)["quantization_config"]["config_groups"]
    if all(group["weights"]["symmetric"] for group in groups.values()):
        return opened(folder)
    return opened(folder, quantization_config=CompressedTensorsConfig(dequantize=True))


def tokens(folder, text):
    return AutoTokenizer.from_pretrained(folder)(text, verbose=False).input_ids


def perplexity(model, ids, windows, seq_len):
    x = torch.tensor(ids[:windows * seq_len]).view(windows, seq_len)
    with torch.no_grad():
        logits = model(x).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), x[:, 1:].reshape(-1))
    return math.exp(nll.item())


# --- gptq and awq --------------------------------------------------------------------------------

def gptq_settings(said, module):
    """Bits of one module: rules of `dynamic`, the first that matches decides."""
    for rule, change in said["dynamic"].items():
        if re.match(rule[2:] if rule[:2] in ("+:", "-:") else rule, module):
            assert not rule.startswith("-:"), f"{module} is quantized although the rules leave it out"
            return change.get("bits", said["bits"])
    return said["bits"]


def gptq_weight(parts, said, module):
    b = gptq_settings(said, module)
    assert said["desc_act"] is False
    zeros = fields(parts["qzeros"], b, 1) + (1 if said["checkpoint_format"] == "gptq" else 0)
    codes, group = fields(parts["qweight"], b, 0), parts["g_idx"]
    return (parts["scales"].astype(np.float64)[group] * (codes - zeros[group])).T


def awq_weight(parts, said, module):
    place = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])

    def channels(words):
        return fields(words, 4, 1).reshape(words.shape[0], -1, 8)[:, :, place].reshape(words.shape[0], -1)

    assert said["version"] == "gemm" and said["bits"] == 4
    codes = channels(parts["qweight"])
    size = codes.shape[0] if said["group_size"] == -1 else said["group_size"]
    group = np.arange(codes.shape[0]) // size
    return (parts["scales"].astype(np.float64)[group] * (codes - channels(parts["qzeros"])[group])).T


def stored_tensors(folder):
    from safetensors.torch import load_file
    tensors = {}
    for file in sorted(os.listdir(folder)):
        if file.endswith(".safetensors"):
            tensors.update(load_file(os.path.join(folder, file)))
    return tensors


def unpacked(folder):
    """The model of a gptq or awq folder, in float32."""
    config = AutoConfig.from_pretrained(folder)
    said = config.quantization_config
    del config.quantization_config
    weight_of = {"gptq": gptq_weight, "awq": awq_weight}[said["quant_method"]]
    tensors = stored_tensors(folder)
    modules = {name.rsplit(".", 1)[0] for name in tensors if name.endswith(".qweight")}
    state = {name: t.float() for name, t in tensors.items() if name.rsplit(".", 1)[0] not in modules}
    for module in modules:
        parts = {name.rsplit(".", 1)[1]: t.numpy() for name, t in tensors.items() if name.rsplit(".", 1)[0] == module}
        state[module + ".weight"] = torch.from_numpy(weight_of(parts, said, module)).float()
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    left = model.load_state_dict(state, strict=False)
    missing = set(left.missing_keys) - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    assert not missing and not left.unexpected_keys, (missing, left.unexpected_keys)
    model.tie_weights()
    return model
