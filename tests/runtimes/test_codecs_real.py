#!/usr/bin/env python3
"""Small modules in every format, read by the libraries that own the formats.

tests/tools/codec_files writes them, with the codes, scales and zero-points as they were. mlx and compressed-tensors
dequantize their own; gptq and awq are unpacked with numpy bit by bit, as their kernels describe it; safetensors opens
every file. A package that is missing is a skip that says so.
"""
import json
import os
import subprocess
import sys
import tempfile

COUNT = 0
FAILED = 0


def line(good, text, why=""):
    global COUNT, FAILED
    COUNT += 1
    FAILED += not good
    print(f"{'ok' if good else 'not ok'} {COUNT} - {text}{why}", flush=True)


def skip(text, why):
    line(True, text, f" # SKIP {why}")


class Case:
    def __init__(self, folder, row):
        from safetensors.numpy import load_file
        self.name, self.format, bits, group, self.kind = row.split()
        self.bits, self.group = int(bits), int(group)
        self.folder = os.path.join(folder, self.name)
        self.config = json.load(open(os.path.join(self.folder, "config.json")))
        expected = load_file(os.path.join(self.folder, "expected.safetensors"))
        self.codes, self.scales, self.zeros = (expected[k] for k in ("codes", "scales", "zeros"))

    def path(self):
        return os.path.join(self.folder, "model.safetensors")

    def tensors(self):
        from safetensors.numpy import load_file
        return {name.rsplit(".", 1)[1]: t for name, t in load_file(self.path()).items()}

    def per_column(self, groups):
        return groups.repeat(self.codes.shape[1] // groups.shape[1], axis=1).astype("float64")

    def weights(self):
        """s (q - z) in float64."""
        return self.per_column(self.scales) * (self.codes - self.per_column(self.zeros))

    def slack(self):
        """What float32 may lose in s q + b: a few roundings of the larger term."""
        s, z = self.per_column(self.scales), self.per_column(self.zeros)
        return 2.0 ** -21 * (abs(s * self.codes) + abs(s * z))


def differs(case, got):
    """None, or where the weights differ by more than float32 arithmetic explains."""
    import numpy
    off = abs(numpy.asarray(got, dtype="float64") - case.weights())
    bad = numpy.argwhere(~(off <= case.slack()))
    return None if len(bad) == 0 else f"{case.name}: {len(bad)} weights differ, first at {bad[0].tolist()}"


# --- mlx ----------------------------------------------------------------------------------------

def mlx_one(case):
    import mlx.core as mx
    import numpy
    tensors = {name.rsplit(".", 1)[1]: t for name, t in mx.load(case.path()).items()}
    said = case.config["quantization"]
    group, bits = said["group_size"], said["bits"]
    s, b = tensors["scales"].astype(mx.float32), tensors["biases"].astype(mx.float32)
    with mx.stream(mx.cpu):
        got = mx.dequantize(tensors["weight"], s, b, group_size=group, bits=bits, mode=said["mode"])
        eye = mx.eye(case.codes.shape[1])
        product = mx.quantized_matmul(eye, tensors["weight"], s, b, transpose=True, group_size=group, bits=bits)
        mx.eval(got, product)
    return differs(case, numpy.array(got)) or differs(case, numpy.array(product).T)


# --- compressed-tensors -------------------------------------------------------------------------

def compressed_one(case):
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file
    import numpy
    import torch
    config = QuantizationConfig.model_validate(dict(case.config["quantization_config"]))
    schemes = list(config.config_groups.values())
    if len(schemes) != 1 or schemes[0].targets != ["Linear"] or config.ignore != ["lm_head"]:
        return f"{case.name}: config_groups were read as {schemes}"
    state = {name.rsplit(".", 1)[1]: t for name, t in load_file(case.path()).items()}
    state["weight_scale"] = state["weight_scale"].to(torch.float32)
    got = PackedQuantizationCompressor.decompress(state, schemes[0])["weight"]
    exact = numpy.array_equal(got.numpy().astype("float64"), case.weights())
    return None if exact else differs(case, got.numpy()) or f"{case.name}: not equal to the last bit"


def compressed_mixed(folder):
    """Each linear of a block is matched by the one group that has its bits, or ignored."""
    import torch
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils import is_match
    said = json.load(open(os.path.join(folder, "mixed-compressed-tensors", "config.json")))["quantization_config"]
    config = QuantizationConfig.model_validate(dict(said))
    linear = torch.nn.Linear(8, 8)
    got = {}
    for last in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                 "mlp.up_proj", "mlp.down_proj", "lm_head"):
        name = last if last == "lm_head" else "model.layers.0." + last
        if is_match(name, linear, config.ignore):
            got[last] = "ignored"
        else:
            got[last] = [(g.weights.num_bits, g.weights.group_size) for g in config.config_groups.values()
                         if is_match(name, linear, g.targets)]
    expected = {last: [(4, 64)] for last in got}
    expected.update({"self_attn.o_proj": [(8, 32)], "mlp.down_proj": "ignored", "lm_head": "ignored"})
    line(got == expected, "compressed-tensors understands a mixed model", "" if got == expected else f" # {got}")


# --- gptq and awq, with numpy -------------------------------------------------------------------

def fields(words, bits, axis):
    """Bit streams of little-endian words along `axis`, to numbers."""
    import numpy
    rows = numpy.ascontiguousarray(numpy.moveaxis(words, axis, -1))
    ones = numpy.unpackbits(rows.view("uint8"), axis=-1, bitorder="little")
    ones = ones.reshape(*ones.shape[:-1], -1, bits)
    return numpy.moveaxis((ones * (1 << numpy.arange(bits))).sum(axis=-1), -1, axis)


def transposed_one(case, codes, zeros, group_of):
    t = case.tensors()
    scales = t["scales"].astype("float64")
    return differs(case, (scales[group_of] * (codes - zeros[group_of])).T)


def gptq_one(case):
    t, said = case.tensors(), case.config["quantization_config"]
    zeros = fields(t["qzeros"], said["bits"], 1) + (1 if said["checkpoint_format"] == "gptq" else 0)
    if said["sym"] != (case.kind == "symmetric") or said["sym"] != (said["checkpoint_format"] == "gptq"):
        return f"{case.name}: sym {said['sym']} in {said['checkpoint_format']}"
    return transposed_one(case, fields(t["qweight"], said["bits"], 0), zeros, t["g_idx"])


def awq_one(case):
    import numpy
    t, said = case.tensors(), case.config["quantization_config"]
    place = numpy.argsort([0, 2, 4, 6, 1, 3, 5, 7])

    def channels(words):
        nibbles = fields(words, 4, 1)
        return nibbles.reshape(words.shape[0], -1, 8)[:, :, place].reshape(words.shape[0], -1)

    cols = case.codes.shape[1]
    group = cols if said["group_size"] == -1 else said["group_size"]
    return transposed_one(case, channels(t["qweight"]), channels(t["qzeros"]), numpy.arange(cols) // group)


def plain_one(case):
    """dense-f32 holds the weights, the others their rounding, which is not looked at here."""
    import torch  # numpy has no BF16
    from safetensors.torch import load_file
    got = list(load_file(case.path()).values())[0].to(torch.float64).numpy()
    limit = {"dense": 2.0 ** -8, "dense-f16": 2.0 ** -10, "dense-f32": 0}[case.format]
    off = abs(got - case.weights()) - limit * abs(case.weights()) - case.slack()
    return None if (off <= 2.0 ** -24).all() else f"{case.name}: off by up to {off.max()}"


READERS = [
    ("mlx", "mlx dequantizes and multiplies", mlx_one, ["mlx.core"]),
    ("compressed-tensors", "compressed-tensors decompresses to the last bit", compressed_one,
     ["compressed_tensors", "torch"]),
    ("gptq", "numpy unpacks gptq", gptq_one, []),
    ("awq", "numpy unpacks awq", awq_one, []),
    ("dense", "torch reads dense", plain_one, ["torch"]),
    ("dense-f16", "torch reads dense-f16", plain_one, ["torch"]),
    ("dense-f32", "torch reads dense-f32", plain_one, ["torch"]),
]


def missing(modules):
    for name in ["numpy", "safetensors"] + modules:
        try:
            __import__(name)
        except ImportError as error:
            return f"{name}: {error}"
    return None


def run_reader(cases, name, text, read):
    own = [c for c in cases if c.format == name]
    wrong = [w for w in (read(c) for c in own) if w]
    line(len(own) > 0 and not wrong, f"{text}: {len(own)} modules")
    for w in wrong[:10]:
        print(f"#   {w}")


def main():
    tool = os.path.join(os.environ.get("QUARRY_BUILD", "build"), "tools", "codec_files")
    absent = missing([])
    if absent:
        for _, text, _, _ in READERS:
            skip(text, absent)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([tool, folder], capture_output=True, text=True)
        line(done.returncode == 0, "codec_files writes", f" # {done.stderr.strip()}" if done.returncode else "")
        if done.returncode != 0:
            print(f"1..{COUNT}")
            return 1
        cases = [Case(folder, row) for row in done.stdout.splitlines()]
        for name, text, read, modules in READERS:
            absent = missing(modules)
            if absent:
                skip(text, absent)
            else:
                run_reader(cases, name, text, read)
            if name == "compressed-tensors" and not absent:
                compressed_mixed(folder)
    print(f"1..{COUNT}")
    return 1 if FAILED else 0


if __name__ == "__main__":
    sys.exit(main())
