#!/usr/bin/env python3
"""`quarry quantize` and `quarry eval` as a user meets them: the result, and models that are bad.

Whatever is wrong: one sentence, a non-zero exit, no OUT_DIR, no temporary folder left."""
import json
import os
import re
import shutil
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Tap  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
SMALL = ["--samples", "8", "--seq-len", "128", "--bits", "3", "--effort", "fast"]
SHARD = "model-00002-of-00002.safetensors"


# --- results ---------------------------------------------------------------------------------------

def good(folder):
    out = os.path.join(folder, "deep/er/out")
    ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval-windows", "2", "--workers", "2",
                 env={"TMPDIR": folder})
    assert ran.status == 0, ran
    for part in ("perplexity ", " before, ", "size ", "bits per weight", "worst ", "checkpoint ", "report ", "time "):
        assert part in ran.out, f"expected {part!r} in {ran}"
    assert sorted(os.listdir(out)) == ["dense", "packed", "report.json"], os.listdir(out)
    for name in ("config.json", "tokenizer.json", "README.md"):
        assert os.path.exists(os.path.join(out, "dense", name)), tree(out)
    with open(os.path.join(out, "report.json")) as f:
        report = json.load(f)
    assert report["recipe"]["bits"] == 3, report["recipe"]
    assert os.listdir(folder) == ["deep"], f"left behind: {os.listdir(folder)}"
    assert "quantize" in ran.err and "done" in ran.err, ran


def evaluates_what_it_wrote(folder):
    out = os.path.join(folder, "out")
    ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", os.path.join(ROOT, "examples/texts/evaluation.txt"),
                 "--eval-windows", "4", "--bits", "4", "--format", "dense", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    with open(os.path.join(out, "report.json")) as f:
        said = json.load(f)["perplexity"][0]
    ran = quarry("eval", os.path.join(out, "dense"), "--text", os.path.join(ROOT, "examples/texts/evaluation.txt"),
                 "--seq-len", "128", "--windows", "4", "--json", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    measured = json.loads(ran.out)[0]["original"]
    # dense is rounded to BF16: near, not equal
    assert abs(measured / said["quantized"] - 1) < 0.02, (measured, said)
    assert measured > said["original"], (measured, said)


def compares_with_a_reference(folder):
    text = os.path.join(ROOT, "examples/texts/evaluation.txt")
    common = ["--text", text, "--seq-len", "128", "--windows", "20"]
    out = os.path.join(folder, "out")
    ran = quarry("eval", TINY, *common, "--reference", TINY, "--json", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    said = json.loads(ran.out)[0]
    assert said["kl"] == 0 and said["top1"] == 1 and said["windows"] == 20, said
    assert said["original"] == said["reference"], said
    ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", text, "--eval-windows", "20", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    assert re.search(r"KL divergence 0\.\d{4}, top-1 agreement \d\d\.\d\d %", ran.out), ran
    with open(os.path.join(out, "report.json")) as f:
        report = json.load(f)["perplexity"][0]
    ran = quarry("eval", os.path.join(out, "dense"), *common, "--reference", TINY, "--workers", "2", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    found = re.match(r"perplexity  (\S+)  evaluation.txt  \(20 windows\)\nreference   (\S+)\ndivergence  (\S+)  .*\n"
                     r"top-1       (\S+) %  .*\n$", ran.out)
    assert found, ran
    after, before, kl, top1 = map(float, found.groups())
    assert abs(before - report["original"]) < 1e-3, (ran, report)
    # dense is rounded to BF16: near, not equal
    assert abs(after / report["quantized"] - 1) < 0.02, (ran, report)
    assert 0 < kl < 5 and abs(kl / report["kl"] - 1) < 0.05, (ran, report)
    assert abs(top1 / 100 - report["top1"]) < 0.02, (ran, report)
    shutil.rmtree(out)
    assert os.listdir(folder) == [], f"left behind: {os.listdir(folder)}"


def refuses_another_tokenizer(folder):
    other = os.path.join(folder, "other")
    shutil.copytree(TINY, other)
    with open(os.path.join(other, "tokenizer.json"), "a") as f:
        f.write("\n")
    ask = ["eval", TINY, "--seq-len", "128", "--windows", "1", "--reference", other]
    one_sentence(quarry(*ask, env={"TMPDIR": folder}), 1,
                 "fable-tiny and the reference other have different tokenizer.json files")
    os.remove(os.path.join(other, "config.json"))
    one_sentence(quarry(*ask, env={"TMPDIR": folder}), 1, "--reference", "config.json")
    assert os.listdir(folder) == ["other"], f"left behind: {os.listdir(folder)}"


def plan(folder):
    ran = quarry("quantize", TINY, "--dry-run", *SMALL, env={"TMPDIR": folder})
    assert ran.status == 0 and "modules " in ran.out and "disk " in ran.out, ran
    assert " distill" not in ran.out and " 1 distill" in quarry(
        "quantize", TINY, "--dry-run", *SMALL, "--effort", "best", env={"TMPDIR": folder}).out, ran
    assert re.search(r"\ntime +[\d.]+ s on 1 worker with \d+ threads?, by rule of thumb\n +fast +[\d.]+ s\n +balanced +"
                     r"[\d.]+ s\n +best +", ran.out), ran
    assert os.listdir(folder) == [], os.listdir(folder)


def no_evaluation(folder):
    """Nothing is measured, and an override that matches nothing is said."""
    out = os.path.join(folder, "out")
    ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", "none", "--override", "no_such_module:bits=4",
                 env={"TMPDIR": folder})
    assert ran.status == 0 and "not measured" in ran.out, ran
    assert any(line.startswith("warning") and "no_such_module" in line for line in ran.out.splitlines()), ran


# --- bad models -------------------------------------------------------------------------------------

def copy_model(folder):
    model = os.path.join(folder, "model")
    shutil.copytree(TINY, model)
    return model


def edit_config(model, **changes):
    path = os.path.join(model, "config.json")
    with open(path) as f:
        config = json.load(f)
    config.update(changes)
    with open(path, "w") as f:
        json.dump(config, f)


def read_shard(model):
    with open(os.path.join(model, SHARD), "rb") as f:
        data = f.read()
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:8 + n]), data[8 + n:]


def write_shard(model, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(model, SHARD), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)


def truncated(model):
    path = os.path.join(model, SHARD)
    os.truncate(path, os.path.getsize(path) - 100)


def header_lies(model):
    with open(os.path.join(model, SHARD), "r+b") as f:
        f.write(struct.pack("<Q", 1 << 62))


def weight_of(model):
    header, data = read_shard(model)
    name = sorted(k for k in header if k.endswith("mlp.down_proj.weight"))[0]
    return name, header, data


def with_value(bits):
    def change(model):
        name, header, data = weight_of(model)
        at = header[name]["data_offsets"][0] + 10
        write_shard(model, header, data[:at] + struct.pack("<H", bits) + data[at + 2:])
    return change


def missing_tensor(model):
    """The tensor leaves the shard and the index."""
    name, header, data = weight_of(model)
    begin, end = header.pop(name)["data_offsets"]
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0] >= end:
            entry["data_offsets"] = [o - (end - begin) for o in entry["data_offsets"]]
    write_shard(model, header, data[:begin] + data[end:])
    path = os.path.join(model, "model.safetensors.index.json")
    with open(path) as f:
        index = json.load(f)
    index["weight_map"].pop(name)
    with open(path, "w") as f:
        json.dump(index, f)


def extra_tensor(model):
    header, data = read_shard(model)
    header["model.layers.0.surprise.weight"] = {"dtype": "BF16", "shape": [1], "data_offsets": [len(data), len(data) + 2]}
    write_shard(model, header, data + b"\0\0")
    path = os.path.join(model, "model.safetensors.index.json")
    with open(path) as f:
        index = json.load(f)
    index["weight_map"]["model.layers.0.surprise.weight"] = SHARD
    with open(path, "w") as f:
        json.dump(index, f)


BAD_MODELS = [
    ("a truncated shard", truncated, [], [SHARD]),
    ("a header that lies", header_lies, [], [SHARD]),
    ("a missing tensor", missing_tensor, [], ["mlp.down_proj.weight"]),
    ("an extra tensor", extra_tensor, [], ["model.layers.0.surprise.weight"]),
    ("a NaN weight", with_value(0x7fc0), [], ["mlp.down_proj.weight"]),
    ("an infinite weight", with_value(0x7f80), [], ["mlp.down_proj.weight"]),
    ("a weight beyond the 16-bit floats", with_value(0x4740), ["--format", "gguf,dense"],
     ["mlp.down_proj.weight", "49152", "format gguf", "32768", "dense-f32"]),
    ("an unknown family", lambda m: edit_config(m, model_type="mamba"), [], ["mamba", "llama"]),
    ("a config that is no JSON", lambda m: open(os.path.join(m, "config.json"), "w").write("{"), [], ["config.json"]),
    ("no config", lambda m: os.remove(os.path.join(m, "config.json")), [], ["config.json"]),
    ("no weights", lambda m: [os.remove(os.path.join(m, f)) for f in os.listdir(m) if "safetensors" in f], [],
     ["safetensors"]),
    ("no tokenizer", lambda m: os.remove(os.path.join(m, "tokenizer.json")), [], ["tokenizer.json"]),
    ("a missing shard", lambda m: os.remove(os.path.join(m, SHARD)), [], [SHARD]),
    ("pickles", lambda m: [os.remove(os.path.join(m, f)) for f in os.listdir(m) if "safetensors" in f] +
     [open(os.path.join(m, "pytorch_model.bin"), "wb").close()], [], ["safetensors"]),
    ("a group size that does not divide", None, ["--group-size", "100"], ["100", "divide"]),
    ("an override that does not divide", None, ["--override", "down_proj:group_size=7"], ["down_proj", "7"]),
    ("too long a sequence", None, ["--seq-len", "1000000"], ["seq_len"]),
]


def bad_model(change, options, parts):
    with tempfile.TemporaryDirectory() as folder:
        model = copy_model(folder)
        if change:
            change(model)
        out, tmp = os.path.join(folder, "out"), os.path.join(folder, "tmp")
        os.mkdir(tmp)
        ran = quarry("quantize", model, "-o", out, "--samples", "8", "--seq-len", "128", "--eval", "none", *options,
                     env={"TMPDIR": tmp})
        one_sentence(ran, 1)
        for part in parts:
            assert part in ran.err, f"expected {part!r} in {ran}"
        assert sorted(os.listdir(folder)) == ["model", "tmp"] and os.listdir(tmp) == [], tree(folder)


def too_little_text():
    with tempfile.TemporaryDirectory() as folder:
        text = os.path.join(folder, "short.txt")
        with open(text, "w") as f:
            f.write("Too short to calibrate anything.\n")
        out = os.path.join(folder, "out")
        ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", "none", "--calibration", text, env={"TMPDIR": folder})
        one_sentence(ran, 1, "short.txt")
        assert os.listdir(folder) == ["short.txt"], os.listdir(folder)


def in_folder(case):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            case(folder)
    return run


tap = Tap()
tap.case("a result, complete and alone", in_folder(good))
tap.case("eval agrees with the report", in_folder(evaluates_what_it_wrote))
tap.case("eval --reference", in_folder(compares_with_a_reference))
tap.case("a reference that cannot be compared", in_folder(refuses_another_tokenizer))
tap.case("--dry-run prints a plan", in_folder(plan))
tap.case("--eval none", in_folder(no_evaluation))
for name, change, options, parts in BAD_MODELS:
    tap.case("refused: " + name, bad_model, change, options, parts)
tap.case("refused: too little calibration text", too_little_text)
tap.end()
