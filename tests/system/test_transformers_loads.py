#!/usr/bin/env python3
"""The dense result is a folder that transformers loads as it is, and means the same there as here."""
import json
import math
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, Tap  # noqa: E402

SEQ_LEN, WINDOWS, BITS = 512, 4, 2
MODEL = os.path.join(ROOT, "examples", "fable-tiny")
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
state = {}


def quarry(*args):
    done = subprocess.run([os.path.join(BUILD, "quarry"), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def quantize(folder):
    quarry("quantize", MODEL, "-o", os.path.join(folder, "out"), "--bits", str(BITS), "--group-size", "64",
           "--samples", "16", "--seq-len", str(SEQ_LEN), "--eval", TEXT, "--eval-windows", str(WINDOWS))
    with open(os.path.join(folder, "out", "report.json")) as f:
        state["report"] = json.load(f)["perplexity"][0]


def load(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer
    dense = os.path.join(folder, "out", "dense")
    state["tokenizer"] = AutoTokenizer.from_pretrained(dense)
    state["model"], info = AutoModelForCausalLM.from_pretrained(dense, output_loading_info=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {info[kind]}"


def perplexity(folder):
    import torch
    with open(TEXT) as f:
        ids = state["tokenizer"](f.read()).input_ids[:SEQ_LEN * WINDOWS]
    ids = torch.tensor(ids).view(WINDOWS, SEQ_LEN)
    with torch.no_grad():
        logits = state["model"].float()(ids).logits[:, :-1]
    nll = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    there, here = math.exp(nll.item()), state["report"]["quantized"]
    print(f"# perplexity in transformers {there:.4f}, in the report {here:.4f}")
    assert abs(there / here - 1) < 0.005, (there, here)


def generates(folder):
    import torch
    prompt = state["tokenizer"]("It was a dark and stormy night", return_tensors="pt").input_ids
    with torch.no_grad():
        out = state["model"].generate(prompt, max_new_tokens=20, do_sample=False)
    assert out.shape[1] > prompt.shape[1], out.shape
    print("# " + repr(state["tokenizer"].decode(out[0])))


def packed_reads(folder):
    import glob
    from safetensors.torch import load_file
    state["packed"] = packed = {}
    for path in glob.glob(os.path.join(folder, "out", "packed", "*.safetensors")):
        packed.update(load_file(path))
    assert "model.layers.3.mlp.down_proj.codes" in packed, sorted(packed)[:10]
    assert "model.layers.3.mlp.down_proj.weight" not in packed


def log_probabilities(model):
    """(windows, predictions, vocabulary) in float64."""
    import torch
    with open(TEXT) as f:
        ids = state["tokenizer"](f.read()).input_ids[:SEQ_LEN * WINDOWS]
    with torch.no_grad():
        return torch.log_softmax(model.double()(torch.tensor(ids).view(WINDOWS, SEQ_LEN)).logits[:, :-1], -1)


def compare(what, here, model):
    """KL divergence from the original and top-1 agreement of `model`, against what Quarry says."""
    from transformers import AutoModelForCausalLM
    p, q = log_probabilities(AutoModelForCausalLM.from_pretrained(MODEL)), log_probabilities(model)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    top1 = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    print(f"# {what}: KL {here['kl']:.8f}, in transformers {kl:.8f}; top-1 {here['top1']:.5f}, there {top1:.5f}")
    assert abs(here["kl"] / kl - 1) < 1e-4, (here, kl)
    # In another arithmetic a near tie may fall the other way: of one prediction, not of two.
    assert abs(here["top1"] - top1) < 1.5 / (WINDOWS * (SEQ_LEN - 1)), (here, top1)


def divergence_of_dense(folder):
    from transformers import AutoModelForCausalLM
    dense = os.path.join(folder, "out", "dense")
    here = json.loads(quarry("eval", dense, "--reference", MODEL, "--text", TEXT, "--windows", str(WINDOWS), "--seq-len",
                             str(SEQ_LEN), "--json"))[0]
    compare("dense", here, AutoModelForCausalLM.from_pretrained(dense))


def packed_weight(module):
    """s (q - z) in float32, codes from the low bits of each word on."""
    import torch
    packed = state["packed"]
    words, scales = packed[module + ".codes"].to(torch.int64), packed[module + ".scales"].float()
    codes = (words.unsqueeze(-1) >> torch.arange(0, 32, BITS)) & (2 ** BITS - 1)
    codes = codes.flatten(1).float().view(*scales.shape, -1)
    return ((codes - packed[module + ".zeros"].float().unsqueeze(-1)) * scales.unsqueeze(-1)).flatten(1)


def divergence_of_packed(folder):
    """The report speaks of the codes, scales and zero-points as they are; the dense result rounds their values."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    values = {name: value for name, value in state["packed"].items() if name in model.state_dict()}
    values.update({name[:-len(".codes")] + ".weight": packed_weight(name[:-len(".codes")])
                   for name in state["packed"] if name.endswith(".codes")})
    absent = model.load_state_dict(values, strict=False).missing_keys
    assert set(absent) <= {"lm_head.weight"}, absent
    compare("packed", state["report"], model)


def main():
    tap = Tap()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as problem:
        tap.skip("transformers loads the dense result", f"{problem}; pip install -r tests/requirements.txt")
        tap.end()
    with tempfile.TemporaryDirectory() as folder:
        for case in (quantize, load, perplexity, generates, packed_reads, divergence_of_dense, divergence_of_packed):
            tap.case(case.__name__, case, folder)
    tap.end()


if __name__ == "__main__":
    main()
