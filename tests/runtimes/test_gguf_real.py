#!/usr/bin/env python3
"""GGUF files read by the gguf package and run by llama.cpp (in the package xllamacpp).

Every block type and way to hold a setting, over the sample model and, with QUARRY_RUNTIMES=full, over larger ones of
../shared; small synthetic models for the families and biases that those do not have. For each file: metadata and
dequantized tensors as the gguf package reads them, tokens of a text as llama.cpp cuts it, perplexity of a few windows
within 3 % of `quarry eval` (llama.cpp rounds activations to 8 bits; 0.5 % with random weights). A package that is missing
is a skip that says so.
"""
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from fleet import BUILD, ROOT, Tap  # noqa: E402

EXAMPLE = os.path.join(ROOT, "examples", "fable-tiny")
SHARED = os.path.join(ROOT, "..", "shared", "fixtures")
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
NOVEL = os.path.join(SHARED, "data", "novel.txt")
SEQ_LEN, WINDOWS, SYNTHETIC_WINDOWS = 256, 20, 16
# Random weights: rounded activations alone move the perplexity of 4 windows by up to 1.1 %, of 16 by 0.33 %; without the
# order of rows that llama wants it is 5 %.
LIMIT, SYNTHETIC_LIMIT = 0.03, 0.005


def everywhere(*said):
    from packed_models import setting
    return lambda module: setting(*said)


def by_layer(rest, *cycle):
    """down_proj of layer i gets setting i of the cycle, everything else `rest`."""
    from packed_models import setting

    def settings_of(module):
        if not module.endswith("mlp.down_proj"):
            return setting(*rest)
        return setting(*cycle[int(module.split(".")[2]) % len(cycle)])
    return settings_of


SUPER = ((2, -1), (3, 256, "symmetric"), (4, 512), (5, -1), (6, 256, "symmetric"), (4, 256, "integer"),
         (5, 256, "integer"), (2, 256, "integer"))
PLAIN = [   # name, settings, types that must be there, embeddings, head
    ("4 bits", everywhere(4, 64), {"Q4_1"}, "F16", "F16"),
    ("5 bits", everywhere(5, 32), {"Q5_1"}, "Q8_0", "Q8_0"),
    ("4 bits symmetric", everywhere(4, 32, "symmetric"), {"Q4_0"}, "BF16", "F16"),
    ("4 bits, integer zero-points", everywhere(4, 64, "integer"), {"Q5_0"}, "F32", "F16"),
    ("8 bits symmetric", everywhere(8, 64, "symmetric"), {"Q8_0"}, "F16", "Q8_0"),
    ("7 bits, integer zero-points", everywhere(7, -1, "integer"), {"Q8_0"}, "F16", "F16"),
]
MIXED = [("super-blocks", by_layer((4, 64), *SUPER), {"Q2_K", "Q3_K", "Q4_K"}, "Q8_0", "Q8_0")]
WIDE = [("super-blocks, 5 bits", everywhere(5, 256), {"Q5_K"}, "Q6_K", "Q6_K"),
        ("super-blocks, 2 bits", everywhere(2, -1), {"Q2_K"}, "F16", "Q6_K"),
        ("super-blocks, 3 bits symmetric", everywhere(3, 256, "symmetric"), {"Q3_K"}, "F16", "F16"),
        ("super-blocks, 6 bits symmetric", everywhere(6, -1, "symmetric"), {"Q6_K"}, "F16", "F16"),
        ("super-blocks, 4 bits, integer zero-points", everywhere(4, 256, "integer"), {"Q4_K"}, "F16", "F16")]

BASE = {"hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 64, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6, "vocab_size": 1024, "tie_word_embeddings": False, "rope_theta": 10000.0,
        "bos_token_id": 1020, "eos_token_id": 1021}
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
SYNTHETIC = [   # name, config, linears with biases
    ("qwen2", dict(BASE, model_type="qwen2", architectures=["Qwen2ForCausalLM"], rope_theta=1e6), QKV),
    ("llama with biases and linear scaling", dict(
        BASE, model_type="llama", architectures=["LlamaForCausalLM"], attention_bias=True, mlp_bias=True,
        rope_scaling={"rope_type": "linear", "factor": 2.0}), QKV + (
            "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
    ("mistral", dict(BASE, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=None), ()),
]


def run(*command, stdin=None):
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
    return done.stdout.decode()


# --- the gguf package -----------------------------------------------------------------------------

def place(name, config):
    """The file's name of a tensor, and the heads in which its rows are reordered."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in whole:
        return whole[name], 0
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
             "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
             "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
    _, _, layer, rest = name.split(".", 3)
    middle, kind = rest.rsplit(".", 1)
    heads = {"self_attn.q_proj": config["num_attention_heads"], "self_attn.k_proj": config["num_key_value_heads"]}
    llama = config["model_type"] in ("llama", "mistral")
    return f"blk.{layer}.{parts[middle]}.{kind}", heads.get(middle, 0) if llama else 0


def reordered(array, heads):
    """As llama.cpp's converter does it: the two halves of each head's rows become neighbours."""
    if heads == 0:
        return array
    shape = array.shape
    return array.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def slack(type_name, wanted):
    """What float32 arithmetic may lose of a number; more where numbers were rounded on purpose."""
    import numpy as np
    rounding = {"F16": 2.0 ** -11, "BF16": 2.0 ** -8, "Q8_0": 1 / 127, "Q6_K": 1 / 31}
    largest = float(np.abs(wanted).max())
    return largest * 2.0 ** -20, largest * rounding.get(type_name, 0) + 2.0 ** -24


def check_tensors(reader, weights, config, modules):
    import numpy as np
    from gguf.quants import dequantize
    found = {t.name: t for t in reader.tensors}
    for name, wanted in weights.items():
        there, heads = place(name, config)
        t = found.pop(there)
        type_name = t.tensor_type.name
        got = dequantize(t.data, t.tensor_type).astype(np.float64).reshape(wanted.shape)
        exact, rounded = slack(type_name, wanted)
        off = float(np.abs(got - reordered(wanted, heads)).max())
        most = exact if name.rsplit(".", 1)[0] in modules or wanted.ndim == 1 else rounded
        assert off <= most, f"{there} ({type_name}): off by {off}, more than {most}"
    left = set(found) - {"rope_freqs.weight"}
    assert not left, f"the file holds {left} too"


def check_metadata(reader, config):
    said = {name: field.contents() for name, field in reader.fields.items()}
    arch = "llama" if config["model_type"] == "mistral" else config["model_type"]
    rope = config.get("rope_parameters") or {}
    wanted = {
        "general.architecture": arch, f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.embedding_length": config["hidden_size"], f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.key_length": config["head_dim"], f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.rope.freq_base": rope.get("rope_theta", config.get("rope_theta")),
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }
    for key, value in wanted.items():
        assert said.get(key) == value, f"{key} is {said.get(key)}, not {value}"
    assert len(said["tokenizer.ggml.tokens"]) == config["vocab_size"], len(said["tokenizer.ggml.tokens"])
    assert json.loads(said["quarry.source_config"])["model_type"] == config["model_type"]


def check_package(path, weights, config, modules):
    from gguf import GGUFReader
    reader = GGUFReader(path)
    check_metadata(reader, config)
    check_tensors(reader, weights, config, modules)


# --- the own reader -------------------------------------------------------------------------------

def check_own_reader(path, weights, config, modules, types):
    """Names and rows as in the source again, and config.json with them."""
    import numpy as np
    from packed_models import load
    out = path + ".safetensors"
    said = json.loads(run(os.path.join(BUILD, "tools", "gguf_read"), path, out))
    assert said == config, "config.json is another one"
    got = load(out)
    assert set(got) == set(weights), set(got) ^ set(weights)
    for name, wanted in weights.items():
        quantized = name.rsplit(".", 1)[0] in modules and wanted.ndim == 2
        most = 0 if quantized else slack("F32" if wanted.ndim == 1 else types[name == "lm_head.weight"], wanted)[1]
        exact = wanted.astype("<f4") if quantized else wanted
        off = float(np.abs(got[name] - exact).max())
        assert off <= most, f"{name}: off by {off}, more than {most}"


# --- llama.cpp ------------------------------------------------------------------------------------

def own_tokens(folder, text):
    raw = text.encode()
    out = run(os.path.join(BUILD, "tools", "tokenize"), os.path.join(folder, "tokenizer.json"),
              stdin=b"%d 1\n" % len(raw) + raw)
    return [int(x) for x in out.split()]


def check_runtime(lib, path, folder, text_path, windows, limit):
    from llama_cpp import Model
    with open(text_path, encoding="utf-8") as f:
        text = f.read()[:windows * SEQ_LEN * 6]
    ids = own_tokens(folder, text)
    assert len(ids) >= windows * SEQ_LEN, len(ids)
    report = json.loads(run(os.path.join(BUILD, "quarry"), "eval", folder, "--text", text_path, "--seq-len", str(SEQ_LEN),
                            "--windows", str(windows), "--json"))
    own = report[0]["original"] if "original" in report[0] else report[0]["perplexity"]
    with Model(lib, path, SEQ_LEN) as model:
        theirs = model.tokens(text)
        assert theirs == ids, f"tokens differ from number {next(i for i, (a, b) in enumerate(zip(theirs, ids)) if a != b)}"
        got = model.perplexity(ids, windows)
    print(f"# perplexity {got:.4f} in llama.cpp, {own:.4f} here: {100 * (got / own - 1):+.2f} %")
    assert abs(got / own - 1) <= limit, f"perplexity is {got} in llama.cpp and {own} here"


# --- a SentencePiece-like tokenizer ---------------------------------------------------------------

def piece_tokenizer(folder):
    """tokenizer.json as that of Llama 2 is made: BPE over characters with byte fallback; returns its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    names = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train([TEXT], trainers.BpeTrainer(vocab_size=1024, special_tokens=names, show_progress=False, limit_alphabet=70))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    text = json.loads(made.to_str())
    text["pre_tokenizer"] = None
    text["added_tokens"] = [t for t in text["added_tokens"] if not t["content"].startswith("<0x")]
    text["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    os.makedirs(folder)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(text, f)
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True}, f)
    return len(text["model"]["vocab"])


def piece_file(tap, lib):
    from packed_models import synthetic
    with tempfile.TemporaryDirectory() as folder:
        size = piece_tokenizer(os.path.join(folder, "tokenizer"))
        config = dict(BASE, model_type="llama", architectures=["LlamaForCausalLM"], vocab_size=size, bos_token_id=1,
                      eos_token_id=2)
        synthetic(os.path.join(folder, "model"), config, os.path.join(folder, "tokenizer"))
        one_file(tap, lib, "a tokenizer with byte fallback", os.path.join(folder, "model"), TEXT, SYNTHETIC_WINDOWS, PLAIN[0])


# --- cases ----------------------------------------------------------------------------------------

def one_file(tap, lib, label, source, text, windows, case):
    from packed_models import quantize
    name, settings_of, types, embeddings, head = case
    with tempfile.TemporaryDirectory() as folder:
        weights = quantize(source, folder, settings_of)
        path, dense = os.path.join(folder, "model.gguf"), os.path.join(folder, "dense")
        with open(os.path.join(folder, "packed", "config.json")) as f:
            config = json.load(f)
        modules = config["quantization_config"]["modules"]

        def written():
            out = run(os.path.join(BUILD, "tools", "gguf_write"), os.path.join(folder, "packed"), path, embeddings, head)
            used = {line.split()[0] for line in out.splitlines()}
            assert types <= used, f"types {used}, {types} should be there"
        tap.case(f"{label}, {name}: written", written)
        tap.case(f"{label}, {name}: read by the gguf package", check_package, path, weights, config, modules)
        tap.case(f"{label}, {name}: read by the own reader", check_own_reader, path, weights, config, modules,
                 (embeddings, head))
        if lib:
            tap.case(f"{label}, {name}: run by llama.cpp", check_runtime, lib, path, dense, text, windows,
                     LIMIT if windows == WINDOWS or embeddings == "Q6_K" else SYNTHETIC_LIMIT)
        else:
            tap.skip(f"{label}, {name}: run by llama.cpp", "the package xllamacpp is not installed")


def all_files(tap, lib):
    from packed_models import synthetic
    for case in PLAIN + MIXED:
        one_file(tap, lib, "fable-tiny", EXAMPLE, TEXT, WINDOWS, case)
    for name in ("fable-llama", "fable-qwen3"):
        source = os.path.join(SHARED, "models", name)
        if os.environ.get("QUARRY_RUNTIMES") != "full":
            tap.skip(name, "QUARRY_RUNTIMES=full is not set")
            continue
        if not os.path.exists(source):
            tap.skip(name, f"{source} is not there")
            continue
        for case in PLAIN[:4] + (MIXED if name == "fable-llama" else []):
            one_file(tap, lib, name, source, NOVEL, WINDOWS, case)
    for name, config, biased in SYNTHETIC:
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "model")
            synthetic(source, config, EXAMPLE, biased)
            for case in PLAIN[:1] + WIDE:
                one_file(tap, lib, name, source, TEXT, SYNTHETIC_WINDOWS, case)
    try:
        import tokenizers  # noqa: F401
    except ImportError:
        tap.skip("a tokenizer with byte fallback", "the package tokenizers is not installed")
    else:
        piece_file(tap, lib)


def main():
    tap = Tap()
    try:
        import gguf  # noqa: F401
        import numpy  # noqa: F401
    except ImportError as missing:
        tap.skip("GGUF files and real readers", f"a package is missing: {missing}; see tests/requirements-runtimes.txt")
        tap.end()
    from llama_cpp import open_library
    all_files(tap, open_library())
    tap.end()


if __name__ == "__main__":
    main()
