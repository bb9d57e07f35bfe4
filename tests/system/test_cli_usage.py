#!/usr/bin/env python3
"""What is wrong with a command line is said in one sentence, with exit status 2 (or 1 when the words are right and the
files are not), before anything is started or made."""
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Tap, free_port  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
COMMANDS = ("quantize", "eval", "submit", "jobs", "show", "watch", "cancel", "retry", "fetch", "workers",
            "convert", "inspect", "dequantize")
AWAY = "http://127.0.0.1:1"

# arguments, exit status, parts of the sentence; OUT, EMPTY, FULL, FILE stand for paths of the test's folder.
TABLE = [
    ([], 2, ["no command given"]),
    (["frobnicate"], 2, ["unknown command 'frobnicate'"]),
    (["quantise"], 2, ["did you mean 'quantize'?"]),
    (["quantize"], 2, ["too few arguments", "MODEL_DIR -o OUT_DIR"]),
    (["quantize", TINY], 2, ["no output folder named", "-o OUT_DIR"]),
    (["quantize", TINY, "extra", "-o", "OUT"], 2, ["'extra' is one argument too many"]),
    (["quantize", TINY, "-o", "FULL"], 1, ["FULL is not empty"]),
    (["quantize", TINY, "-o", "FILE"], 1, ["FILE exists and is not a folder"]),
    (["quantize", TINY, "-o", "FILE/below"], 1, ["FILE is not a folder"]),
    (["quantize", TINY, "-o", ""], 1, ["name is empty"]),
    (["quantize", "/nowhere/model", "-o", "OUT"], 1, ["/nowhere/model", "No such file or directory"]),
    (["quantize", "FILE", "-o", "OUT"], 1, ["FILE is not a folder", "config.json"]),
    (["quantize", TINY, "-o", "OUT", "--bits", "9"], 2, ["--bits", "from 1 to 8"]),
    (["quantize", TINY, "-o", "OUT", "--bits", "two"], 2, ["--bits", "two", "integer"]),
    (["quantize", TINY, "-o", "OUT", "--bit", "2"], 2, ["--bit", "did you mean --bits?"]),
    (["quantize", TINY, "-o", "OUT", "--bits"], 2, ["--bits needs a value"]),
    (["quantize", TINY, "-o", "OUT", "--group-size", "0"], 2, ["--group-size"]),
    (["quantize", TINY, "-o", "OUT", "--method", "magic"], 2, ["--method", "magic", "neuqi"]),
    (["quantize", TINY, "-o", "OUT", "--zero-point", "half"], 2, ["--zero-point", "half", "integer"]),
    (["quantize", TINY, "-o", "OUT", "--symmetric=perhaps"], 2, ["--symmetric takes no value"]),
    (["quantize", TINY, "-o", "OUT", "--rounding", "up"], 2, ["--rounding", "up", "ldlq"]),
    (["quantize", TINY, "-o", "OUT", "--propagate", "x"], 2, ["--propagate", "original"]),
    (["quantize", TINY, "-o", "OUT", "--samples", "0"], 2, ["--samples"]),
    (["quantize", TINY, "-o", "OUT", "--seq-len", "1"], 2, ["--seq-len"]),
    (["quantize", TINY, "-o", "OUT", "--seed", "-1"], 2, ["--seed"]),
    (["quantize", TINY, "-o", "OUT", "--max-shard-size", "big"], 2, ["--max-shard-size", "5GB"]),
    (["quantize", TINY, "-o", "OUT", "--format", "zip"], 2, ["--format", "zip", "dense"]),
    (["quantize", TINY, "-o", "OUT", "--override", "down_proj"], 2, ["--override", "REGEX:"]),
    (["quantize", TINY, "-o", "OUT", "--override", "(:bits=2"], 2, ["--override"]),
    (["quantize", TINY, "-o", "OUT", "--workers", "0"], 2, ["--workers '0'", "from 1 to 64"]),
    (["quantize", TINY, "-o", "OUT", "--workers", "2x"], 2, ["--workers '2x'"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "tpu"], 2, ["--backend 'tpu'", "none of cpu, cuda and ref"]),
    (["quantize", TINY, "-o", "OUT", "--devices", "0,1"], 2, ["--devices is for GPUs", "--backend cuda"]),
    (["quantize", TINY, "-o", "OUT", "--gpu-memory", "8GB"], 2, ["--gpu-memory is for GPUs", "--backend cuda"]),
    (["eval", TINY, "--devices", "0", "--backend", "ref"], 2, ["--devices is for GPUs"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", "0,"], 2, ["--devices '0,'", "0,1,2,3"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", ""], 2, ["--devices ''", "0,1,2,3"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", "0 1"], 2, ["--devices '0 1'", "0,1,2,3"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", "0,-1"], 2, ["--devices '0,-1'"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", "4096"], 2, ["--devices '4096'"]),
    (["quantize", TINY, "-o", "OUT", "--backend", "cuda", "--devices", "0,1,2", "--workers", "2"], 2,
     ["--workers 2 leaves 1 of the 3 --devices without one"]),
    (["quantize", TINY, "-o", "OUT", "--calibration", "/nowhere.txt"], 1, ["--calibration", "/nowhere.txt"]),
    (["quantize", TINY, "-o", "OUT", "--calibration", "EMPTYFILE"], 1, ["--calibration", "is empty"]),
    (["quantize", TINY, "-o", "OUT", "--eval", "/nowhere.txt"], 1, ["--eval", "/nowhere.txt"]),
    (["quantize", TINY, "-o", "OUT", "--eval", "none", "--eval", "FILE"], 1, ["--eval none cannot be combined"]),
    (["quantize", TINY, "-o", "OUT", *["--eval", "FILE"] * 9], 1, ["9 texts given", "at most 8"]),
    (["eval", TINY, "--text", "/nowhere.txt"], 1, ["/nowhere.txt", "No such file"]),
    (["eval", TINY, "--reference", "/nowhere"], 1, ["--reference /nowhere", "No such file"]),
    (["eval", TINY, "--reference", "/dev/null"], 1, ["/dev/null is not a folder"]),
    (["jobs"], 2, ["no coordinator named", "--server URL", "QUARRY_SERVER"]),
    (["jobs", "--server", "coordinator"], 2, ["'coordinator' is not an http:// or https:// URL"]),
    (["jobs", "--server", "file:///etc/passwd"], 2, ["is not an http:// or https:// URL"]),
    (["jobs", "--server", "http://"], 2, ["is not an http:// or https:// URL"]),
    (["jobs", "--server", AWAY, "--limit", "0"], 2, ["--limit '0'"]),
    (["jobs", "--server", AWAY, "--token-file", "/nowhere"], 2, ["--token-file", "/nowhere"]),
    (["jobs", "--server", AWAY, "--token-file", "EMPTYFILE"], 2, ["EMPTYFILE", "the token is empty"]),
    (["jobs", "--server", AWAY, "--token-file", "ODD"], 2, ["ODD", "characters that no token has"]),
    (["jobs", "--server", AWAY], 1, ["cannot reach the server", AWAY]),
    (["jobs", "--server", "http://no-such-host.invalid"], 1, ["no-such-host.invalid"]),
    (["show", "a/b", "--server", AWAY], 2, ["'a/b' is not the id of a job"]),
    (["fetch", "j_1", "--server", AWAY], 2, ["no output folder named"]),
    (["fetch", "j_1", "-o", "FULL", "--server", AWAY], 1, ["FULL is not empty"]),
    (["convert"], 2, ["too few arguments", "--format LIST -o OUT_DIR"]),
    (["convert", TINY, "--format", "mlx"], 2, ["no output folder named", "-o OUT_DIR"]),
    (["convert", TINY, "-o", "OUT"], 2, ["no format named", "--format mlx,gguf"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlz"], 2, ["unknown format 'mlz'", "did you mean 'mlx'?"]),
    (["convert", TINY, "-o", "OUT", "--format", "exllamav3"], 2, ["unknown format 'exllamav3'", "compressed-tensors"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlx,"], 2, ["unknown format ''"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlx,gguf,mlx"], 2, ["--format names mlx twice"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlx", "--embeddings", "5"], 2, ["--embeddings", "must be 16"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlx", "--max-shard-size", "big"], 2, ["--max-shard-size", "5GB"]),
    (["convert", TINY, "-o", "FILE", "--format", "mlx"], 1, ["FILE is not a folder"]),
    (["convert", "/nowhere/model", "-o", "OUT", "--format", "mlx"], 1, ["cannot open /nowhere/model", "No such file"]),
    (["convert", "EMPTY", "-o", "OUT", "--format", "mlx"], 1, ["config.json"]),
    (["convert", "FILE", "-o", "OUT", "--format", "mlx"], 1, ["FILE", "is no gguf file"]),
    (["convert", "j 1", "-o", "OUT", "--format", "mlx"], 2, ["no folder or file here", "'j 1' is not the id of a job"]),
    (["convert", "j_1", "-o", "OUT", "--format", "mlx"], 2, ["j_1 is no folder or file here", "no coordinator named"]),
    (["convert", "j_1", "-o", "OUT", "--format", "mlx", "--server", AWAY], 1, ["cannot reach the server"]),
    (["convert", TINY, "-o", "OUT", "--format", "mlx"], 1, ["mlx: no module of the checkpoint is quantized"]),
    (["inspect"], 2, ["too few arguments"]),
    (["inspect", "/nowhere"], 1, ["cannot open /nowhere"]),
    (["inspect", "EMPTYFILE"], 1, ["EMPTYFILE"]),
    (["dequantize", TINY], 2, ["no output folder named", "-o OUT_DIR"]),
    (["dequantize", TINY, "-o", "OUT", "--dtype", "f64"], 2, ["--dtype 'f64' is not bf16, f16 or f32"]),
    (["dequantize", TINY, "-o", "FULL"], 1, ["FULL is not empty"]),
    (["dequantize", "/nowhere", "-o", "OUT"], 1, ["cannot open /nowhere"]),
    (["submit", "--server", AWAY], 2, ["either a MODEL_DIR to upload or --server-path"]),
    (["submit", TINY, "--server-path", "/x", "--server", AWAY], 2, ["either a MODEL_DIR"]),
    (["submit", "/nowhere", "--server", AWAY], 2, ["/nowhere is not a folder"]),
]


def prepare(folder):
    paths = {name: os.path.join(folder, name) for name in ("OUT", "EMPTY", "FULL", "FILE", "EMPTYFILE", "ODD")}
    os.makedirs(paths["EMPTY"])
    os.makedirs(paths["FULL"])
    for name, text in (("FULL/kept", "kept"), ("FILE", "some text"), ("EMPTYFILE", ""), ("ODD", "\u00e4\n")):
        with open(os.path.join(folder, name), "w") as f:
            f.write(text)
    return paths


def replaced(text, paths):
    for name in sorted(paths, key=len, reverse=True):
        if text == name or text.startswith(name + "/") or text.startswith(name + " "):
            return paths[name] + text[len(name):]
    return text


def refused(args, status, parts):
    with tempfile.TemporaryDirectory() as folder:
        paths = prepare(folder)
        before = tree(folder)
        ran = quarry(*[replaced(a, paths) for a in args], env={"TMPDIR": folder})
        one_sentence(ran, status, *[replaced(p, paths) for p in parts])
        assert ran.out == "", ran
        assert tree(folder) == before, f"something was left behind: {set(tree(folder)) - set(before)}"


def helps():
    overview = quarry("--help")
    assert overview.status == 0 and "Exit status" in overview.out, overview
    for name in COMMANDS:
        assert f"\n  {name} " in overview.out, f"{name} is not in the overview"
        ran = quarry(name, "--help")
        assert ran.status == 0 and f"usage: quarry {name} " in ran.out and not ran.err, ran
        assert "Exit status: 0 done, 1 failed, 2 wrong usage" in ran.out, ran


def closed_output():
    if not os.path.exists("/dev/full"):
        return
    import subprocess
    from command import QUARRY
    with open("/dev/full", "w") as full:
        done = subprocess.run([QUARRY, "--help"], stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1, done
    assert b"cannot write to standard output" in done.stderr, done


def environment_names_the_server():
    ran = quarry("jobs", env={"QUARRY_SERVER": f"http://127.0.0.1:{free_port()}"})
    one_sentence(ran, 1, "cannot reach the server")


tap = Tap()
for row in TABLE:
    tap.case("refused: " + " ".join(os.path.basename(a) if a == TINY else a for a in row[0])[:90], refused, *row)
tap.case("every command explains itself", helps)
tap.case("a full disk behind standard output is noticed", closed_output)
tap.case("QUARRY_SERVER names the server", environment_names_the_server)
tap.end()
