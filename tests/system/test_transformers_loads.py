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

SEQ_LEN, WINDOWS = 512, 4
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
state = {}


def quarry(*args):
    done = subprocess.run([os.path.join(BUILD, "quarry"), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def quantize(folder):
    quarry("quantize", os.path.join(ROOT, "examples", "fable-tiny"), "-o", os.path.join(folder, "out"), "--bits", "4",
           "--group-size", "64", "--samples", "16", "--seq-len", str(SEQ_LEN), "--eval", TEXT,
           "--eval-windows", str(WINDOWS))
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
    from safetensors import safe_open
    names = set()
    for path in glob.glob(os.path.join(folder, "out", "packed", "*.safetensors")):
        with safe_open(path, "np") as f:
            names.update(f.keys())
    assert "model.layers.3.mlp.down_proj.codes" in names, sorted(names)[:10]
    assert "model.layers.3.mlp.down_proj.weight" not in names


def main():
    tap = Tap()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as problem:
        tap.skip("transformers loads the dense result", f"{problem}; pip install -r tests/requirements.txt")
        tap.end()
    with tempfile.TemporaryDirectory() as folder:
        for case in (quantize, load, perplexity, generates, packed_reads):
            tap.case(case.__name__, case, folder)
    tap.end()


if __name__ == "__main__":
    main()
