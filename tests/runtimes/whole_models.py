"""whole_models.py - jobs whose results real runtimes load: recipes, their results, and what runtimes should say of them.

make() runs one job for all formats of a recipe. A Made holds the folders and Quarry's own perplexity of the quantized
model, over the first WINDOWS windows of the text; each runtime computes it in the same windows (the tokens of the whole
text are cut into windows of seq_len, each token of a window but the first is predicted).
"""
import json
import os
import subprocess

from fleet import BUILD, ROOT

SHARED = os.path.join(ROOT, "..", "shared", "fixtures")
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
NOVEL = os.path.join(SHARED, "data", "novel.txt")
WINDOWS = 20
LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
           "mlp.up_proj", "mlp.down_proj")
PARTS = {"mlx": {"weight", "scales", "biases"}, "gptq": {"qweight", "qzeros", "scales", "g_idx"},
         "awq": {"qweight", "qzeros", "scales"},
         "compressed-tensors": {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}}


class Source:
    """A model to quantize and the text to measure it on."""

    def __init__(self, name, folder, text, seq_len):
        self.name, self.folder, self.text, self.seq_len = name, folder, text, seq_len

    def prompt_and_ids(self):
        """(text, its tokens as Quarry sees them): enough for all windows."""
        with open(self.text, encoding="utf-8") as f:
            text = f.read()[:WINDOWS * self.seq_len * 6]
        raw = text.encode()
        done = subprocess.run([os.path.join(BUILD, "tools", "tokenize"), os.path.join(self.folder, "tokenizer.json")],
                              input=b"%d 1\n" % len(raw) + raw, capture_output=True, check=True)
        ids = [int(x) for x in done.stdout.split()]
        assert len(ids) >= WINDOWS * self.seq_len, len(ids)
        return text, ids


TINY = Source("fable-tiny", os.path.join(ROOT, "examples", "fable-tiny"), TEXT, 64)
LARGE = [Source(name, os.path.join(SHARED, "models", name), NOVEL, 256) for name in ("fable-llama", "fable-qwen3")]


class Recipe:
    def __init__(self, name, formats, *options):
        self.name, self.formats, self.options = name, formats.split(), list(options)


def bits(n, group, *more):
    return ["--bits", str(n), "--group-size", str(group), *more]


MIXED = ["--override", r"down_proj:bits=5,group_size=32", "--override", r"layers\.1\.self_attn\.o_proj:skip"]
MIXED_SYMMETRIC = ["--override", "down_proj:bits=8", "--override", r"layers\.1\.mlp\.down_proj:skip"]

RECIPES = [
    Recipe("2 bits, groups of 64", "mlx gguf dense-f32", *bits(2, 64)),
    Recipe("3 bits, groups of 64", "mlx gguf dense-f32", *bits(3, 64)),
    Recipe("4 bits, groups of 64", "mlx gguf dense-f32 dense dense-f16", *bits(4, 64)),
    Recipe("8 bits, groups of 64", "mlx dense-f32", *bits(8, 64)),
    Recipe("2 bits, channel-wise", "mlx gguf dense-f32", *bits(2, -1)),
    Recipe("3 bits, channel-wise", "mlx gguf dense-f32", *bits(3, -1)),
    Recipe("4 bits, channel-wise", "mlx gguf dense-f32", *bits(4, -1)),
    Recipe("8 bits, channel-wise", "mlx dense-f32", *bits(8, -1)),
    Recipe("mixed bits and a skipped module", "mlx gguf dense-f32", *bits(3, 64), *MIXED),
    Recipe("embeddings of 8 bits", "mlx gguf dense-f32", *bits(4, 64), "--embeddings", "8"),
    Recipe("embeddings of 4 bits", "mlx gguf dense-f32", *bits(4, 64), "--embeddings", "4"),
    Recipe("4 bits, integer zero-points", "mlx gguf compressed-tensors gptq awq dense-f32",
           *bits(4, 64, "--zero-point", "integer")),
    Recipe("4 bits, symmetric", "mlx gguf compressed-tensors gptq awq dense-f32", *bits(4, 64, "--symmetric")),
    Recipe("8 bits, integer zero-points", "compressed-tensors gptq", *bits(8, 64, "--zero-point", "integer")),
    Recipe("8 bits, symmetric", "gguf compressed-tensors gptq", *bits(8, 64, "--symmetric")),
    Recipe("4 bits, symmetric, mixed", "gguf compressed-tensors gptq", *bits(4, 64, "--symmetric"), *MIXED_SYMMETRIC),
    Recipe("2 bits in a container of 4", "compressed-tensors", *bits(2, 64)),
    Recipe("3 bits in a container of 4", "compressed-tensors", *bits(3, 64)),
    Recipe("4 bits, integer zero-points, channel-wise", "compressed-tensors gptq awq",
           *bits(4, -1, "--zero-point", "integer")),
    Recipe("2 bits, integer zero-points", "gptq", *bits(2, 64, "--zero-point", "integer")),
    Recipe("3 bits, integer zero-points", "gptq", *bits(3, 64, "--zero-point", "integer")),
]


class Made:
    def __init__(self, folder, perplexity):
        self.folder, self.perplexity = folder, perplexity

    def path(self, name):
        return os.path.join(self.folder, name)


def make(source, recipe, folder):
    """Quantizes `source` once, in all formats of the recipe."""
    out = os.path.join(folder, "out")
    done = subprocess.run(
        [os.path.join(BUILD, "quarry"), "quantize", source.folder, "-o", out, "--format", ",".join(recipe.formats),
         "--effort", "fast", "--samples", "16", "--seq-len", str(source.seq_len), "--eval", source.text,
         "--eval-windows", str(WINDOWS), *recipe.options], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in recipe.formats:
        assert os.path.isdir(os.path.join(out, name)), sorted(os.listdir(out))
    with open(os.path.join(out, "report.json")) as f:
        return Made(out, json.load(f)["perplexity"][0]["quantized"])


def within(limit, what, got, own):
    print(f"# perplexity {got:.4f} in {what}, {own:.4f} here: {100 * (got / own - 1):+.3f} %")
    assert abs(got / own - 1) <= limit, f"perplexity is {got} in {what} and {own} here"


def check_files(format_name, folder, names):
    """The safetensors package opens every file; each tensor is one of the source's or a part of one of its linears."""
    from safetensors import safe_open
    found = {}
    for file in sorted(f for f in os.listdir(folder) if f.endswith(".safetensors")):
        with safe_open(os.path.join(folder, file), "np") as opened:
            for name in opened.keys():
                assert name not in found, f"{name} is in {found[name]} and {file}"
                assert all(n >= 0 for n in opened.get_slice(name).get_shape()), name
                found[name] = file
    parts = PARTS.get(format_name, set())
    for name in found:
        module, part = name.rsplit(".", 1)
        assert name in names or (module + ".weight" in names and part in parts), f"unknown tensor {name}"
    held = {name.rsplit(".", 1)[0] for name in found}
    missing = {name for name in names if name.rsplit(".", 1)[0] not in held}
    assert not missing, f"{folder} lacks {missing}"
    check_index(folder, found)


def check_index(folder, found):
    path = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(path):
        with open(path) as f:
            assert json.load(f)["weight_map"] == found, "the index tells of other files"
    else:
        assert set(found.values()) == {"model.safetensors"}, set(found.values())


def tensor_names(folder):
    from safetensors import safe_open
    names = set()
    for file in os.listdir(folder):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(folder, file), "np") as opened:
                names |= set(opened.keys())
    return names
