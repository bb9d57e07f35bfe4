"""packed_models.py - packed folders made with numpy: codes by rounding to the nearest, scales and offsets half values.

quantize(source, out, settings_of) writes out/packed (codes, scales, zeros, as the job's intermediate) and out/dense (the
same values in float32, for `quarry eval`), and returns {name: float64 weights}. synthetic() makes small models of
families that no shipped checkpoint has, with random weights.
"""
import json
import os
import shutil

import numpy as np

TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "U32": np.dtype("<u4"), "BF16": np.dtype("<u2")}
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")
COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def load(path):
    """Every tensor of a safetensors file; BF16 as float32."""
    with open(path, "rb") as f:
        head = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        data = f.read()
    tensors = {}
    for name, t in head.items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        array = np.frombuffer(data[begin:end], dtype=TYPES[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":
            array = (array.astype("<u4") << 16).view("<f4")
        tensors[name] = array
    return tensors


def save(path, tensors):
    names = {np.dtype("<f4"): "F32", np.dtype("<f2"): "F16", np.dtype("<u4"): "U32"}
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, array in tensors.items():
        head[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            f.write(np.ascontiguousarray(array).tobytes())


def load_folder(folder):
    tensors = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            tensors.update(load(os.path.join(folder, name)))
    return tensors


def setting(bits, group, kind="float"):
    return {"skip": False, "bits": bits, "group_size": group, "method": "minmax",
            "zero_point": "integer" if kind == "integer" else "float", "symmetric": kind == "symmetric",
            "rounding": "nearest"}


def half(x):
    return x.astype(np.float16).astype(np.float64)


def fit(weights, said):
    """Codes (N,K), scales and zeros (N,G) as float32."""
    rows, cols = weights.shape
    group = cols if said["group_size"] == -1 else said["group_size"]
    w = weights.reshape(rows, cols // group, group).astype(np.float64)
    top = 2 ** said["bits"] - 1
    low, high = np.minimum(w.min(2), 0), np.maximum(w.max(2), 0)
    if said["symmetric"]:
        middle = (top + 1) // 2
        s = np.maximum(half(np.maximum(-low / middle, high / max(top - middle, 1))), 2.0 ** -20)
        z = np.full_like(s, middle)
    else:
        s = np.maximum(half((high - low) / top), 2.0 ** -20)
        z = np.clip(np.rint(-low / s), 0, top) if said["zero_point"] == "integer" else half(-low) / s
    codes = np.clip(np.rint(w / s[..., None] + z[..., None]), 0, top).astype(np.uint8)
    return codes.reshape(rows, cols), s.astype("<f4"), z.astype("<f4")


def pack(codes, bits):
    """(N, ceil(K bits / 32)): code j of a row in bits b j .. of the row's stream."""
    rows, cols = codes.shape
    stream = (codes[..., None] >> np.arange(bits, dtype=np.uint8) & 1).reshape(rows, cols * bits)
    stream = np.pad(stream, ((0, 0), (0, -cols * bits % 32)))
    return np.packbits(stream, axis=1, bitorder="little").view("<u4")


def values(codes, s, z):
    """s (q - z) in float64, its offset s z as the half value that it is."""
    group = codes.shape[1] // s.shape[1]
    s, z = s.astype(np.float64), z.astype(np.float64)
    offset = np.where(z == np.rint(z), s * z, half(s * z))
    return np.repeat(s, group, 1) * codes - np.repeat(offset, group, 1)


def write_config(folder, config):
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)


def quantize(source, out, settings_of):
    packed, dense = os.path.join(out, "packed"), os.path.join(out, "dense")
    for folder in (packed, dense):
        os.makedirs(folder)
        for name in COPIED:
            if os.path.exists(os.path.join(source, name)):
                shutil.copy(os.path.join(source, name), folder)
    with open(os.path.join(source, "config.json")) as f:
        config = json.load(f)
    stored, plain, weights, modules = {}, {}, {}, {}
    for name, array in load_folder(source).items():
        module = name[:-len(".weight")]
        if not any(module.endswith(linear) for linear in LINEARS) or name.endswith(".bias"):
            stored[name] = plain[name] = array.astype("<f4")
            weights[name] = array.astype(np.float64)
            continue
        said = modules[module] = settings_of(module)
        codes, s, z = fit(array, said)
        stored.update({module + ".codes": pack(codes, said["bits"]), module + ".scales": s, module + ".zeros": z})
        weights[name] = values(codes, s, z)
        plain[name] = weights[name].astype("<f4")
    save(os.path.join(packed, "model.safetensors"), stored)
    save(os.path.join(dense, "model.safetensors"), plain)
    config.pop("torch_dtype", None)
    config["dtype"] = "float32"
    write_config(dense, config)
    write_config(packed, dict(config, quantization_config=dict(setting(4, 64), quant_method="quarry", version=1,
                                                               modules=modules)))
    return weights


def synthetic(folder, config, tokenizer_from, biased=(), seed=7):
    """A checkpoint of this config with random weights; `biased`: linears that have a bias.

    Attention is sharp and weighs as much as the residual, so that a wrong row order or rope shows in every prediction.
    """
    gain = {"self_attn.q_proj": 1.8, "self_attn.k_proj": 1.8, "self_attn.v_proj": 3, "self_attn.o_proj": 3}
    os.makedirs(folder)
    rng = np.random.default_rng(seed)
    hidden, size, inner = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    shapes = {"self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
              "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
              "mlp.down_proj": (hidden, inner)}
    tensors = {"model.embed_tokens.weight": rng.normal(0, 1, (config["vocab_size"], hidden)),
               "model.norm.weight": rng.normal(1, 0.1, hidden),
               "lm_head.weight": rng.normal(0, 2 / hidden ** 0.5, (config["vocab_size"], hidden))}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[at + norm + ".weight"] = rng.normal(1, 0.1, hidden)
        for name, shape in shapes.items():
            tensors[at + name + ".weight"] = rng.normal(0, gain.get(name, 1) / shape[1] ** 0.5, shape)
            if name in biased:
                tensors[at + name + ".bias"] = rng.normal(0, 0.5, shape[0])
    save(os.path.join(folder, "model.safetensors"), {k: v.astype("<f4") for k, v in tensors.items()})
    write_config(folder, dict(config, dtype="float32"))
    for name in COPIED:
        if os.path.exists(os.path.join(tokenizer_from, name)):
            shutil.copy(os.path.join(tokenizer_from, name), folder)
