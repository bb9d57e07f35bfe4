#!/usr/bin/env python3
"""Every family and config option against transformers: random small models, saved by transformers itself, must have the
same perplexity there and in `quarry eval`, and survive a quantization to 8 bits, whose distance from the model is the same
both ways."""
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, Tap  # noqa: E402

TINY = os.path.join(ROOT, "examples", "fable-tiny")
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
SEQ_LEN, WINDOWS = 96, 3
SIZES = {"vocab_size": 1024, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 6,
         "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2}
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32, "rope_theta": 10000.0}

# name -> (config class, options, dtype, shard size, config.json edits)
MODELS = {
    "llama, untied, float32": ("LlamaConfig", {"tie_word_embeddings": False}, "float32", "5GB", {}),
    "llama with attention and mlp biases, float16": (
        "LlamaConfig", {"attention_bias": True, "mlp_bias": True}, "float16", "5GB", {}),
    "llama, llama3 rope, many shards, bfloat16": (
        "LlamaConfig", {"rope_parameters": LLAMA3, "head_dim": 32}, "bfloat16", "100KB", {}),
    "llama, linear rope, older spelling": (
        "LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}}, "float32", "5GB",
        {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5000.0,
         "dtype": None, "torch_dtype": "float32"}),
    "mistral": ("MistralConfig", {"sliding_window": None, "head_dim": 16}, "bfloat16", "5GB", {}),
    "qwen2, tied, biases": ("Qwen2Config", {"tie_word_embeddings": True, "use_sliding_window": False}, "bfloat16", "5GB", {}),
    "qwen2, untied": ("Qwen2Config", {"tie_word_embeddings": False, "use_sliding_window": False}, "float16", "5GB", {}),
    "qwen3, head_dim apart from hidden": ("Qwen3Config", {"head_dim": 24, "use_sliding_window": False}, "bfloat16", "5GB", {}),
}


def make_model(folder, kind, options, dtype, shard, edits):
    import torch
    import transformers
    torch.manual_seed(len(json.dumps(options)))
    config = getattr(transformers, kind)(**SIZES, **options)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():  # biases and norms start as 0 and 1: give them something to get wrong
        for name, p in model.named_parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(TINY, name), folder)
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        saved = json.load(f)
    saved.update(edits)
    with open(path, "w") as f:
        json.dump({k: v for k, v in saved.items() if v is not None or k == "sliding_window"}, f)


def predictions_there(folder):
    """(log-probabilities, the tokens they are of), a row per prediction"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    with open(TEXT) as f:
        ids = AutoTokenizer.from_pretrained(folder)(f.read()).input_ids[:SEQ_LEN * WINDOWS]
    ids = torch.tensor(ids).view(WINDOWS, SEQ_LEN)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    return logits.reshape(-1, logits.shape[-1]).double().log_softmax(-1), ids[:, 1:].reshape(-1)


def perplexity_there(folder):
    log_p, ids = predictions_there(folder)
    return math.exp(-log_p.gather(1, ids[:, None]).mean().item())


def compare(folder, reference, common):
    """KL divergence and top-1 agreement, in transformers and in `quarry eval`."""
    p, q = predictions_there(reference)[0], predictions_there(folder)[0]
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    top1 = (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    here = json.loads(quarry("eval", folder, "--text", TEXT, "--windows", str(WINDOWS), "--json", "--reference", reference,
                             *common))[0]
    print(f"# KL divergence {here['kl']:.6f}, in transformers {kl:.6f}; top-1 {here['top1']:.4f}, {top1:.4f}")
    assert abs(here["kl"] - kl) < 0.01 * kl + 1e-6, (here, kl)
    assert abs(here["top1"] - top1) < 0.01, (here, top1)


def quarry(*args):
    done = subprocess.run([os.path.join(BUILD, "quarry"), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check(folder, model):
    make_model(folder, *model)
    there = perplexity_there(folder)
    common = ["--seq-len", str(SEQ_LEN)]
    here = json.loads(quarry("eval", folder, "--text", TEXT, "--windows", str(WINDOWS), "--json", *common))[0]["original"]
    print(f"# perplexity {here:.5f}, in transformers {there:.5f}")
    assert abs(here / there - 1) < 1e-4, (here, there)
    out = os.path.join(folder, "out")
    quarry("quantize", folder, "-o", out, "--bits", "8", "--group-size", "16", "--samples", "8", "--eval", "none",
           "--max-shard-size", "150KB", *common)
    after = perplexity_there(os.path.join(out, "dense"))
    print(f"# 8 bits, loaded by transformers: {after:.5f}")
    assert abs(after / there - 1) < 0.03, (after, there)
    compare(os.path.join(out, "dense"), folder, common)


def main():
    tap = Tap()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as problem:
        tap.skip("families against transformers", f"{problem}; pip install -r tests/requirements.txt")
        tap.end()
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, model) in enumerate(MODELS.items()):
            tap.case(name, check, os.path.join(folder, str(i)), model)
    tap.end()


if __name__ == "__main__":
    main()
