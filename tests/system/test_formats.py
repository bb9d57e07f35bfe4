#!/usr/bin/env python3
"""One job, several formats, by a coordinator and two workers that see the model over HTTP only: each folder is complete and
holds the numbers of packed, as a reader of a few lines finds them."""
import json
import os
import re
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry  # noqa: E402
from fleet import ROOT, Fleet, Tap  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
SMALL = ["--samples", "4", "--seq-len", "128", "--eval", "none", "--effort", "fast", "--refine", "0"]
MODULES = [f"model.layers.{layer}.{name}" for layer in (0, 3) for name in ("self_attn.v_proj", "mlp.down_proj")]
CARRIED = {"generation_config.json", "tokenizer.json", "tokenizer_config.json"}
ROWS = 4


# --- readers -----------------------------------------------------------------------------------------

class Folder:
    """Tensors of a folder of safetensors files, found through its index where it has one."""

    def __init__(self, path):
        self.path, self.tensors = path, {}
        with open(os.path.join(path, "config.json")) as f:
            self.config = json.load(f)
        for name in sorted(os.listdir(path)):
            if name.endswith(".safetensors"):
                with open(os.path.join(path, name), "rb") as f:
                    length = struct.unpack("<Q", f.read(8))[0]
                    for tensor, entry in json.loads(f.read(length)).items():
                        if tensor != "__metadata__":
                            self.tensors[tensor] = (name, 8 + length, entry)
        index = os.path.join(path, "model.safetensors.index.json")
        if os.path.exists(index):
            with open(index) as f:
                where = json.load(f)["weight_map"]
            assert where == {tensor: entry[0] for tensor, entry in self.tensors.items()}, "the index is of other files"

    def read(self, tensor):
        """(numbers, rows, columns)."""
        name, start, entry = self.tensors[tensor]
        kind = {"U32": "I", "I32": "I", "F32": "f", "F16": "e", "BF16": "H"}[entry["dtype"]]
        with open(os.path.join(self.path, name), "rb") as f:
            f.seek(start + entry["data_offsets"][0])
            data = f.read(entry["data_offsets"][1] - entry["data_offsets"][0])
        values = struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data)
        if kind == "H":
            values = [struct.unpack("<f", struct.pack("<I", v << 16))[0] for v in values]
        return values, entry["shape"][0], entry["shape"][1]


def stream(words, bits, count):
    """`count` fields of a bit stream of 32-bit words, low bits first."""
    joined = sum(word << 32 * i for i, word in enumerate(words))
    return [joined >> bits * i & (1 << bits) - 1 for i in range(count)]


def packed_row(folder, module, row):
    """(code, scale, zero-point) of each column."""
    codes, _, words = folder.read(module + ".codes")
    scales, _, groups = folder.read(module + ".scales")
    zeros = folder.read(module + ".zeros")[0]
    settings = folder.config["quantization_config"]["modules"][module]
    cols = folder.config["intermediate_size" if "down" in module else "hidden_size"]
    q = stream(codes[row * words:(row + 1) * words], settings["bits"], cols)
    return [(code, scales[row * groups + i * groups // cols], zeros[row * groups + i * groups // cols])
            for i, code in enumerate(q)]


def mlx_row(folder, module, row, bits):
    words, _, per_row = folder.read(module + ".weight")
    scales, _, groups = folder.read(module + ".scales")
    biases = folder.read(module + ".biases")[0]
    q = stream(words[row * per_row:(row + 1) * per_row], bits, per_row * 32 // bits)
    return [scales[row * groups + i * groups // len(q)] * code + biases[row * groups + i * groups // len(q)]
            for i, code in enumerate(q)]


def compressed_row(folder, module, row):
    """4 bits and 2 bits in 4: stored fields are codes and zero-points."""
    words, _, per_row = folder.read(module + ".weight_packed")
    scales, rows, groups = folder.read(module + ".weight_scale")
    zeros = folder.read(module + ".weight_zero_point")[0]
    q = stream(words[row * per_row:(row + 1) * per_row], 4, per_row * 8)
    z = [stream([zeros[row // 8 * groups + g]], 4, 8)[row % 8] for g in range(groups)]
    return [scales[row * groups + i * groups // len(q)] * (code - z[i * groups // len(q)]) for i, code in enumerate(q)]


def gguf_tensors(path):
    """{name: (type, ne, bytes)} of a gguf file."""
    with open(path, "rb") as f:
        data = f.read()
    at = 24

    def text():
        nonlocal at
        n = struct.unpack_from("<Q", data, at)[0]
        at += 8 + n
        return data[at - n:at].decode()

    def value(kind):
        nonlocal at
        if kind == 8:
            return text()
        if kind == 9:
            kind, n = struct.unpack_from("<IQ", data, at)
            at += 12
            return [value(kind) for _ in range(n)]
        size, form = {4: (4, "<I"), 5: (4, "<i"), 6: (4, "<f"), 7: (1, "<?")}[kind]
        at += size
        return struct.unpack_from(form, data, at - size)[0]

    magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3), (magic, version)
    meta, found = {}, []
    for _ in range(pairs):
        key = text()
        at += 4
        meta[key] = value(struct.unpack_from("<I", data, at - 4)[0])
    for _ in range(tensors):
        name = text()
        dims = struct.unpack_from("<I", data, at)[0]
        ne = struct.unpack_from(f"<{dims}Q", data, at + 4)
        kind, offset = struct.unpack_from("<IQ", data, at + 4 + 8 * dims)
        at += 16 + 8 * dims
        found.append((name, kind, ne, offset))
    start = (at + 31) // 32 * 32
    return meta, {name: (kind, ne, data[start + offset:]) for name, kind, ne, offset in found}


def gguf_row(tensor, row):
    """Q4_1: d, m, 16 bytes of nibbles; Q5_0: d, fifth bits, nibbles."""
    kind, ne, data = tensor
    size = {3: 20, 6: 22}[kind]
    out = []
    for block in range(ne[0] // 32):
        b = data[(row * (ne[0] // 32) + block) * size:][:size]
        nibbles = [v & 15 for v in b[-16:]] + [v >> 4 for v in b[-16:]]
        d = struct.unpack_from("<e", b)[0]
        if kind == 3:
            out += [d * q + struct.unpack_from("<e", b, 2)[0] for q in nibbles]
        else:
            fifth = struct.unpack_from("<I", b, 2)[0]
            out += [d * ((q | (fifth >> i & 1) << 4) - 16) for i, q in enumerate(nibbles)]
    return out


# --- what must hold ----------------------------------------------------------------------------------

def equal(got, packed, what):
    want = [scale * (code - zero) for code, scale, zero in packed]
    assert len(got) == len(want), (what, len(got), len(want))
    for i, (g, w) in enumerate(zip(got, want)):
        _, scale, zero = packed[i]
        assert abs(g - w) <= 2 ** -20 * scale * (abs(zero) + 16), f"{what}, column {i}: {g}, not {w}"


def same_numbers(out, formats):
    packed = Folder(os.path.join(out, "packed"))
    bits = packed.config["quantization_config"]["bits"]
    folders = {name: Folder(os.path.join(out, name)) for name in formats if name != "gguf"}
    gguf = gguf_tensors(os.path.join(out, "gguf/model.gguf")) if "gguf" in formats else None
    for module in MODULES:
        for row in range(ROWS):
            want = packed_row(packed, module, row)
            if "mlx" in folders:
                equal(mlx_row(folders["mlx"], module, row, bits), want, f"mlx {module}")
            if "compressed-tensors" in folders:
                equal(compressed_row(folders["compressed-tensors"], module, row), want, f"compressed-tensors {module}")
            if gguf:
                name = re.sub(r"model\.layers\.(\d+)\.self_attn\.v_proj", r"blk.\1.attn_v.weight", module)
                name = re.sub(r"model\.layers\.(\d+)\.mlp\.down_proj", r"blk.\1.ffn_down.weight", name)
                equal(gguf_row(gguf[1][name], row), want, f"gguf {name}")
            if "dense" in folders:
                values, _, cols = folders["dense"].read(module + ".weight")
                for got, (code, scale, zero) in zip(values[row * cols:(row + 1) * cols], want):
                    exact = scale * (code - zero)
                    assert abs(got - exact) <= abs(exact) / 256, (module, got, exact)
    if gguf:
        assert gguf[0]["general.architecture"] == "llama" and len(gguf[0]["tokenizer.ggml.tokens"]) == 1024
        assert json.loads(gguf[0]["quarry.source_config"])["model_type"] == "llama"
        for key, file in (("tokenizer.huggingface.json", "tokenizer.json"), ("quarry.source_tokenizer_config", "tokenizer_config.json"),
                          ("quarry.source_generation_config", "generation_config.json")):
            with open(os.path.join(TINY, file)) as f:
                assert gguf[0][key] == f.read(), key


def complete(out, formats):
    """Every folder has what its readers look for; the report and the card tell its bits."""
    with open(os.path.join(out, "report.json")) as f:
        report = json.load(f)
    assert sorted(os.listdir(out)) == sorted([*formats, "packed", "report.json"]), os.listdir(out)
    assert sorted(report["outputs"]) == sorted([*formats, "packed"]), report["outputs"]
    for name in formats:
        here = set(os.listdir(os.path.join(out, name)))
        files = {f for f in here if f.endswith((".safetensors", ".gguf"))}
        said = report["outputs"][name]
        assert said["files"] == len(files), (said, files)
        assert said["bytes"] == sum(os.path.getsize(os.path.join(out, name, f)) for f in files), said
        with open(os.path.join(out, name, "README.md")) as f:
            card = f.read()
        assert f"{said['bits_per_weight']:.3f} bits per weight" in card and "How to load it" in card, card
        if name == "gguf":
            assert here == {"model.gguf", "README.md"}, here
        else:
            assert CARRIED | {"config.json", "README.md"} <= here, here
    return report


def many_formats(client, folder):
    """Integer zero-points, because compressed-tensors asks for them: said in the warnings, held by all."""
    formats = ["mlx", "gguf", "compressed-tensors", "dense"]
    out = os.path.join(folder, "many")
    ran = client("submit", TINY, *SMALL, "--bits", "4", "--group-size", "64", "--format", ",".join(formats),
                 "--max-shard-size", "500KB", "--wait", "--json")
    job = json.loads(ran.out[:ran.out.rindex("}") + 1])["job"]
    client("fetch", job, "-o", out)
    report = complete(out, formats)
    assert any("format compressed-tensors holds integer zero-points: those of 28 modules" in w for w in report["warnings"]), \
        report["warnings"]
    bits = {name: o["bits_per_weight"] for name, o in report["outputs"].items()}
    shape = bits.pop("compressed-tensors") - 4.3125  # its weight_shape, 16 bytes a module
    assert 0 < shape < 0.01 and bits == {"packed": 5, "mlx": 5, "gguf": 5.5, "dense": 16}, (bits, shape)
    assert report["outputs"]["gguf"]["types"] == {"Q5_0": 28}, report["outputs"]["gguf"]
    assert report["outputs"]["mlx"]["files"] > 1 and report["outputs"]["gguf"]["files"] == 1, report["outputs"]
    same_numbers(out, formats)


def any_zeros(client, folder):
    out = os.path.join(folder, "any")
    formats = ["mlx", "gguf", "dense"]
    ran = client("submit", "--server-path", TINY, *SMALL, "--bits", "3", "--group-size", "32", "--format", ",".join(formats),
                 "--wait", "--json")
    job = json.loads(ran.out[:ran.out.rindex("}") + 1])["job"]
    client("fetch", job, "-o", out)
    report = complete(out, formats)
    assert not any("zero-points" in w for w in report["warnings"]), report["warnings"]
    bits = {name: o["bits_per_weight"] for name, o in report["outputs"].items()}
    assert bits == {"packed": 5, "mlx": 4, "gguf": 5, "dense": 16}, bits
    zeros = Folder(os.path.join(out, "packed")).read(MODULES[0] + ".zeros")[0]
    assert any(z != int(z) for z in zeros), "float zero-points are all integers"
    same_numbers(out, formats)


def planned(client):
    plan = json.loads(client("submit", "--server-path", TINY, *SMALL, "--bits", "2", "--format", "gguf,compressed-tensors",
                             "--dry-run", "--json").out)
    assert plan["outputs"]["gguf"]["bits_per_weight"] == 5.5 and plan["outputs"]["gguf"]["files"] == 1, plan["outputs"]
    assert all(m["zero_parts"] == 4 for m in plan["modules"]), plan["modules"][0]


def refused(client):
    ran = client("submit", "--server-path", TINY, *SMALL, "--bits", "7", "--format", "mlx,awq", status=1)
    one_sentence(ran, 1, "mlx holds 2, 3, 4, 5, 6 or 8 bits, not 7", "(and 27 more)")
    assert "awq holds 4 bits, not 7" in ran.err, ran
    one_sentence(client("submit", "--server-path", TINY, *SMALL, "--format", "exl3", status=2), 2, "exl3", "accepted are")


def unknown_tokenizer(client, folder):
    """gguf carries the tokenizer: one it has no name for is refused before anything is computed."""
    import shutil
    model = os.path.join(folder, "odd-model")
    shutil.copytree(TINY, model)
    path = os.path.join(model, "tokenizer.json")
    with open(path) as f:
        tokenizer = json.load(f)
    tokenizer["model"]["type"] = "WordPiece"
    with open(path, "w") as f:
        json.dump(tokenizer, f)
    one_sentence(client("submit", "--server-path", model, *SMALL, "--format", "gguf", status=1), 1, "gguf", "tokenizer.json")
    client("submit", "--server-path", model, *SMALL, "--format", "mlx", "--dry-run")


def main():
    tap = Tap()
    with tempfile.TemporaryDirectory() as folder, Fleet(os.path.join(folder, "fleet"), model_roots=[TINY, folder]) as fleet:
        token = os.path.join(folder, "cli.token")
        with open(token, "w") as f:
            f.write(fleet.tokens["submitter"] + "\n")
        fleet.add_worker("one")
        fleet.add_worker("two")

        def client(*args, status=0):
            ran = quarry(*args, env={"QUARRY_SERVER": fleet.url, "QUARRY_TOKEN_FILE": token, "TMPDIR": folder})
            assert ran.status == status, ran
            return ran

        tap.case("mlx, gguf, compressed-tensors and dense from one job", many_formats, client, folder)
        tap.case("mlx and gguf hold any zero-points", any_zeros, client, folder)
        tap.case("a dry run says bits per weight", planned, client)
        tap.case("what a format cannot hold is refused", refused, client)
        tap.case("a tokenizer without a name in gguf is refused", unknown_tokenizer, client, folder)
    tap.end()


main()
