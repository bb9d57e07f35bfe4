#!/usr/bin/env python3
"""--embeddings and --lm-head: the perplexity in the report is that of the checkpoint as written, and the tables of mlx and
dense are the same numbers."""
import json
import os
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Tap  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
TEXT = os.path.join(ROOT, "examples/texts/evaluation.txt")
SMALL = ["--samples", "4", "--seq-len", "128", "--bits", "4", "--effort", "fast", "--refine", "0"]


def numbers(path, name, kind):
    """A tensor's elements in a row; kind as in struct."""
    with open(path, "rb") as f:
        length = struct.unpack("<Q", f.read(8))[0]
        begin, end = json.loads(f.read(length))[name]["data_offsets"]
        f.seek(8 + length + begin)
        data = f.read(end - begin)
    return struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data)


def single(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def mlx_table(path, bits):
    """Codes from the low bits of a word up, 32 columns a group: scale * code + bias, rounded to float32 once."""
    name, each = "model.embed_tokens.", 32 // bits
    scales, biases = numbers(path, name + "scales", "e"), numbers(path, name + "biases", "e")
    return [single(scales[i * each // 32] * (word >> bits * k & (1 << bits) - 1) + biases[i * each // 32])
            for i, word in enumerate(numbers(path, name + "weight", "I")) for k in range(each)]


def reported_is_written(folder, bits):
    out = os.path.join(folder, f"out-{bits}")
    ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", TEXT, "--eval-windows", "4", "--embeddings", bits,
                 "--format", "mlx,dense-f32", env={"TMPDIR": folder})
    assert ran.status == 0, ran
    with open(os.path.join(out, "report.json")) as f:
        report = json.load(f)
    recipe, said = report["recipe"], report["perplexity"][0]
    assert (recipe["embeddings"], recipe["lm_head"]) == (bits, bits), recipe  # tied
    ran = quarry("eval", os.path.join(out, "dense-f32"), "--text", TEXT, "--seq-len", "128", "--windows", "4", "--json",
                 env={"TMPDIR": folder})
    assert ran.status == 0, ran
    measured = json.loads(ran.out)[0]["original"]
    assert measured == said["quantized"], (measured, said)
    dense = list(numbers(os.path.join(out, "dense-f32/model.safetensors"), "model.embed_tokens.weight", "f"))
    assert dense == mlx_table(os.path.join(out, "mlx/model.safetensors"), bits)


def refused(folder, *options, parts):
    out = os.path.join(folder, "refused")
    ran = quarry("quantize", TINY, "-o", out, *SMALL, *options, env={"TMPDIR": folder})
    assert ran.status != 0, ran
    for part in parts:
        assert part in ran.err, f"expected {part!r} in {ran}"
    assert not tree(out), tree(out)


def words(folder):
    ran = quarry("quantize", TINY, "-o", os.path.join(folder, "words"), *SMALL, "--embeddings", "5")
    one_sentence(ran, ran.status, "--embeddings", "must be 16", "8, 6 or 4")


def in_folder(case, *args, **named):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            case(folder, *args, **named)
    return run


tap = Tap()
tap.case("8 bits: the reported perplexity is that of the checkpoint", in_folder(reported_is_written, 8))
tap.case("4 bits: the reported perplexity is that of the checkpoint", in_folder(reported_is_written, 4))
tap.case("refused: other bits for a tied head",
         in_folder(refused, "--embeddings", "8", "--lm-head", "4", parts=["must equal \"embeddings\" 8"]))
tap.case("refused: columns that 6 bits do not fit",
         in_folder(refused, "--embeddings", "6", parts=["multiple of 256 columns", "16, 8 and 4 fit"]))
tap.case("refused: a format that holds no such table",
         in_folder(refused, "--embeddings", "8", "--symmetric", "--format", "gptq",
                   parts=["gptq does not hold \"embeddings\" 8", "mlx, gguf and dense hold 8 bits"]))
tap.case("refused: other numbers, where the command line is read", in_folder(words))
tap.end()
