#!/usr/bin/env python3
"""`quarry convert`, `quarry dequantize` and `quarry inspect`: one short job, its packed folder turned into every format that holds
it, each of them turned back, and what is refused. Nothing half-made is ever left."""
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Fleet, Tap  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
SHORT = ["--samples", "16", "--seq-len", "256", "--effort", "fast", "--eval", "none"]
CARRIED = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
RECIPE = {"bits": 4, "group_size": 64, "samples": 16, "seq_len": 256, "effort": "fast", "eval_windows": 1, "format": ["mlx", "dense"]}

JOBS = {
    "float": ["--bits", "4", "--group-size", "64", "--format", "mlx,gguf,dense"],
    "integer": ["--bits", "4", "--group-size", "64", "--zero-point", "integer", "--format", "dense"],
    "mixed": ["--bits", "4", "--zero-point", "integer", "--override", "mlp:bits=8", "--format", "dense"],
    "tables": ["--bits", "3", "--group-size", "32", "--embeddings", "8", "--format", "mlx,dense"],
}


# --- reading files -----------------------------------------------------------------------------------

def tensors(folder):
    """name -> (dtype, shape, bytes) of all safetensors files of a folder."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(folder, name), "rb") as f:
            data = f.read()
        n = struct.unpack("<Q", data[:8])[0]
        for key, t in json.loads(data[8:8 + n]).items():
            if key != "__metadata__":
                begin, end = t["data_offsets"]
                found[key] = (t["dtype"], t["shape"], data[8 + n + begin:8 + n + end])
    return found


def read(path):
    with open(path, "rb") as f:
        return f.read()


def config(folder):
    return json.loads(read(os.path.join(folder, "config.json")))


def same_tensors(a, b, names=lambda name: True):
    a, b = tensors(a), tensors(b)
    assert sorted(a) == sorted(b), set(a) ^ set(b)
    for name in filter(names, a):
        assert a[name] == b[name], f"{name} differs"


def is_linear(name):
    return name.endswith("_proj.weight")


def convert(source, out, formats, *more, env=None):
    ran = quarry("convert", source, "--format", formats, "-o", out, *more, env=env)
    assert ran.status == 0, ran
    assert all(f"writing {f} done in" in ran.err for f in formats.split(",")), ran
    assert len(ran.out.splitlines()) == len(formats.split(",")), ran
    return ran


def dequantize(source, out, *more):
    ran = quarry("dequantize", source, "-o", out, *more)
    assert ran.status == 0, ran
    return ran


# --- cases -------------------------------------------------------------------------------------------

class Jobs:
    """Each job runs once."""

    def __init__(self, folder):
        self.folder, self.made = folder, {}

    def __getitem__(self, name):
        if name not in self.made:
            out = os.path.join(self.folder, name)
            ran = quarry("quantize", TINY, "-o", out, *SHORT, *JOBS[name], env={"TMPDIR": self.folder})
            assert ran.status == 0, ran
            self.made[name] = out
        return self.made[name]


def as_the_job_wrote_it(jobs, folder):
    """The formats that a job writes are those that are made of its packed folder later."""
    job, out = jobs["float"], os.path.join(folder, "out")
    convert(job, out, "mlx,gguf,dense,packed")
    assert sorted(os.listdir(out)) == ["dense", "gguf", "mlx", "packed"], tree(out)
    for name in ("mlx", "dense", "packed"):
        assert sorted(os.listdir(os.path.join(out, name))) == sorted(os.listdir(os.path.join(job, name))), tree(out)
        for file in os.listdir(os.path.join(job, name)):
            if file.endswith((".safetensors", ".index.json")) or file.startswith(("tokenizer", "generation")):
                assert read(os.path.join(out, name, file)) == read(os.path.join(job, name, file)), f"{name}/{file}"
        assert config(os.path.join(out, name)) == config(os.path.join(job, name)), name
    assert sorted(os.listdir(os.path.join(out, "gguf"))) == ["README.md", "model.gguf"], tree(out)
    a = dequantize(os.path.join(job, "gguf"), os.path.join(folder, "a"))
    b = dequantize(os.path.join(out, "gguf", "model.gguf"), os.path.join(folder, "b"))
    assert "tokenizer" not in a.err + b.err, (a, b)
    same_tensors(os.path.join(folder, "a"), os.path.join(folder, "b"))


def tokenizer_of_gguf(jobs, folder):
    """The gguf file alone makes a folder that is evaluated; one of another program has no tokenizer.json to give."""
    alone, back = os.path.join(folder, "alone.gguf"), os.path.join(folder, "back")
    shutil.copy(os.path.join(jobs["float"], "gguf", "model.gguf"), alone)
    dequantize(alone, back)
    for file in CARRIED:
        assert read(os.path.join(back, file)) == read(os.path.join(TINY, file)), file
    score = ["--windows", "2", "--seq-len", "64", "--json"]
    mine = quarry("eval", back, *score, env={"TMPDIR": folder})
    other = quarry("eval", os.path.join(jobs["float"], "dense"), *score, env={"TMPDIR": folder})
    assert mine.status == 0 and other.status == 0, (mine, other)
    assert [t["original"] for t in json.loads(mine.out)] == [t["original"] for t in json.loads(other.out)], (mine, other)
    data = read(alone)
    for key, said in ((b"tokenizer.huggingface.json", True), (b"quarry.source_tokenizer_config", False)):
        assert data.count(key) == 1, key
        other, out = os.path.join(folder, "other.gguf"), os.path.join(folder, key.decode())
        with open(other, "wb") as f:
            f.write(data.replace(key, b"x" * len(key)))
        ran = dequantize(other, out)
        assert ("the gguf file carries no tokenizer.json (tokenizer.huggingface.json)" in ran.err) == said, ran
        assert os.path.exists(os.path.join(out, "tokenizer.json")) != said, tree(out)
    at = data.index(b"tokenizer.huggingface.json") + len(b"tokenizer.huggingface.json") + 12
    with open(other, "wb") as f:
        f.write(data[:at] + b"[" + data[at + 1:])
    out = os.path.join(folder, "refused")
    one_sentence(quarry("dequantize", other, "-o", out), 1, "tokenizer.huggingface.json")
    assert not os.path.exists(out), tree(folder)
    said = inspected(other, 1)
    assert len(said["faults"]) == 1 and "tokenizer.huggingface.json" in said["faults"][0], said


def turned_back(jobs, folder):
    """Whatever the format: weights of the quantized modules are those of the job's dense folder, bit by bit."""
    job = jobs["float"]
    for name in ("packed", "mlx", "gguf", "dense"):
        out = os.path.join(folder, name)
        ran = dequantize(os.path.join(job, name), out)
        # mlx keeps the embedding in F16
        same_tensors(out, os.path.join(job, "dense"), is_linear if name == "mlx" else lambda n: True)
        got = config(out)
        assert "quantization" not in got and "quantization_config" not in got and got["dtype"] == "bfloat16", got
        assert f"checkpoint   {out}  (" in ran.out, ran
        for file in CARRIED:
            assert read(os.path.join(out, file)) == read(os.path.join(TINY, file)), f"{name}: {file}"
    for word, dtype in (("f16", "F16"), ("f32", "F32")):
        out = os.path.join(folder, word)
        dequantize(os.path.join(job, "mlx"), out, "--dtype", word)
        assert {t[0] for t in tensors(out).values()} == {dtype}, out


def between_formats(jobs, folder):
    """Around a circle of formats: the same bytes as directly from packed."""
    direct, job = os.path.join(folder, "direct"), jobs["integer"]
    convert(job, direct, "gptq,awq,compressed-tensors,mlx,gguf,packed")
    for step, (source, target) in enumerate((("gptq", "awq"), ("awq", "compressed-tensors"), ("compressed-tensors", "mlx"),
                                             ("mlx", "gptq"), ("packed", "gguf"))):
        out = os.path.join(folder, str(step))
        convert(os.path.join(direct, source), out, target)
        if target == "gguf":
            assert read(os.path.join(out, target, "model.gguf")) == read(os.path.join(direct, target, "model.gguf"))
        else:
            same_tensors(os.path.join(out, target), os.path.join(direct, target))
    for name in ("gptq", "awq", "compressed-tensors", "mlx", "gguf"):
        out = os.path.join(folder, "back-" + name)
        dequantize(os.path.join(direct, name), out)
        same_tensors(out, os.path.join(job, "dense"), is_linear)


def tables(jobs, folder):
    """Embeddings of 8 bits: asked of the job, kept by conversions, and asked later."""
    job, out = jobs["tables"], os.path.join(folder, "out")
    convert(job, out, "mlx,dense")
    same_tensors(os.path.join(out, "mlx"), os.path.join(job, "mlx"))
    same_tensors(os.path.join(out, "dense"), os.path.join(job, "dense"))
    convert(os.path.join(job, "mlx"), os.path.join(folder, "again"), "dense-f32,mlx")
    same_tensors(os.path.join(folder, "again", "mlx"), os.path.join(job, "mlx"))
    dequantize(os.path.join(job, "mlx"), os.path.join(folder, "plain"))
    same_tensors(os.path.join(folder, "plain"), os.path.join(job, "dense"))
    convert(job, os.path.join(folder, "sixteen"), "mlx", "--embeddings", "16")
    assert tensors(os.path.join(folder, "sixteen", "mlx"))["model.embed_tokens.weight"][0] == "F16"
    ran = quarry("convert", job, "--format", "gptq", "-o", os.path.join(folder, "no"))
    assert ran.status == 1 and '"embeddings" 8' in ran.err, ran
    one_sentence(quarry("convert", job, "--format", "mlx", "-o", os.path.join(folder, "no"), "--lm-head", "4"), 1,
                 "lm_head 4 and embeddings 8 must be equal")


def shards(jobs, folder):
    out = os.path.join(folder, "out")
    convert(jobs["float"], out, "mlx", "--max-shard-size", "300KB")
    files = [f for f in os.listdir(os.path.join(out, "mlx")) if f.endswith(".safetensors")]
    assert len(files) > 3, files
    same_tensors(os.path.join(out, "mlx"), os.path.join(jobs["float"], "mlx"))


def of_a_job(folder):
    """A job of a coordinator: its packed files come into a temporary folder, which is gone afterwards."""
    tmp, out = os.path.join(folder, "tmp"), os.path.join(folder, "out")
    os.mkdir(tmp)
    with Fleet(os.path.join(folder, "fleet")) as fleet:
        fleet.add_worker("w1")
        job = fleet.submit(fleet.add_model(TINY), RECIPE)
        fleet.wait_job(job)
        token = os.path.join(folder, "token")
        with open(token, "w") as f:
            f.write(fleet.tokens["submitter"])
        server = ["--server", fleet.url, "--token-file", token]
        convert(job, out, "mlx,dense", *server, env={"TMPDIR": tmp})
        for name in ("mlx", "dense"):
            data = read(os.path.join(out, name, "model.safetensors"))
            assert hashlib.sha256(data).hexdigest() == fleet.results(job)[f"{name}/model.safetensors"], name
        own = os.path.join(folder, "own")
        ran = quarry("fetch", job, "-o", own, *server)
        assert ran.status == 0, ran
        for name in ("mlx", "dense"):
            assert len(cost(os.path.join(out, name))) == 4, name
            assert cost(os.path.join(out, name)) == cost(os.path.join(own, name)), name
        refused = os.path.join(folder, "refused")
        one_sentence(quarry("convert", job, "--format", "gptq", "-o", refused, *server, env={"TMPDIR": tmp}), 1,
                     "gptq holds integer zero-points")
        one_sentence(quarry("convert", "j_none", "--format", "mlx", "-o", refused, *server, env={"TMPDIR": tmp}), 1, "j_none")
        assert not os.path.exists(refused) and os.listdir(tmp) == [], tree(folder)


# --- refused -----------------------------------------------------------------------------------------

def refused(jobs, folder):
    job, out = jobs["float"], os.path.join(folder, "deep", "out")
    ran = quarry("convert", job, "--format", "gptq,awq,mlx", "-o", out)
    said = [line for line in ran.err.splitlines() if line.startswith("quarry: ")]
    assert ran.status == 1 and len(said) == 2, ran
    assert "gptq holds integer zero-points" in said[1] + said[0] and "awq holds integer zero-points" in said[1] + said[0], ran
    assert os.listdir(folder) == [], tree(folder)
    ran = quarry("convert", os.path.join(job, "dense"), "--format", "mlx", "-o", out)
    one_sentence(ran, 1, "no module of the checkpoint is quantized")
    os.makedirs(os.path.join(out, "mlx"))
    with open(os.path.join(out, "mlx", "mine"), "w"):
        pass
    one_sentence(quarry("convert", job, "--format", "dense,mlx", "-o", out), 1, "mlx is not empty")
    assert tree(folder) == ["deep", "deep/out", "deep/out/mlx", "deep/out/mlx/mine"], tree(folder)


def beside(jobs, folder):
    """A format beside those that are there: OUT_DIR may be the result folder itself."""
    job = os.path.join(folder, "job")
    shutil.copytree(jobs["float"], job)
    convert(job, job, "dense-f16")
    assert sorted(os.listdir(job)) == ["dense", "dense-f16", "gguf", "mlx", "packed", "report.json"], tree(job)


def cost(folder):
    """The lines of a card that tell what the quantization cost."""
    with open(os.path.join(folder, "README.md")) as f:
        return [line for line in f.read().splitlines() if line.startswith(("## What it cost", "| perplexity on", "| fable", "| evaluation", "KL div"))]


def measured(jobs, folder):
    """A card tells the perplexity of the job's report where the weights are those of the job."""
    job = os.path.join(folder, "job")
    shutil.copytree(jobs["tables"], job)
    out = os.path.join(folder, "none")
    convert(job, out, "mlx")
    assert cost(os.path.join(out, "mlx")) == []
    path = os.path.join(job, "report.json")
    with open(path) as f:
        report = json.load(f)
    report["perplexity"] = [{"text": "fable|s.txt", "original": 12.5, "quantized": 13.25, "kl": 0.0625, "top1": 0.75, "windows": 3}]

    def put():
        with open(path, "w") as f:
            json.dump(report, f)

    put()
    for source, name, more, told in ((job, "dense-f32", [], True), (os.path.join(job, "mlx"), "mlx", [], True),
                                     (job, "mlx", ["--embeddings", "16"], False)):
        out = os.path.join(folder, "-".join((str(told), name, os.path.basename(source))))
        convert(source, out, name, *more)
        said = cost(os.path.join(out, name))
        assert (len(said) == 4) == told and (said == []) != told, (out, said)
        assert not told or said[2] == "| fable_s.txt | 12.5000 | 13.2500 | 0.06250 | 0.7500 | 3 |", said
    dequantize(os.path.join(job, "mlx"), os.path.join(folder, "plain"))
    assert len(cost(os.path.join(folder, "plain"))) == 4
    report["outputs"]["packed"]["bytes"] += 1  # of another job's files
    put()
    convert(job, os.path.join(folder, "other"), "mlx")
    assert cost(os.path.join(folder, "other", "mlx")) == []
    with open(path, "w") as f:
        f.write("{")
    convert(job, os.path.join(folder, "damaged"), "mlx")
    assert cost(os.path.join(folder, "damaged", "mlx")) == []


def fails_in_between(jobs, folder):
    """The disk fails at one write, flush or rename after another: nothing is left, whatever was written already."""
    job, tried = jobs["float"], 0
    for operation in ("write:1", "write:4", "write:40", "write:120", "fsync:1", "fsync:3", "rename:1", "rename:6", "read:30"):
        out = os.path.join(folder, "new", "out")
        ran = quarry("convert", job, "--format", "mlx,dense", "-o", out, env={"QUARRY_FAIL_IO": operation})
        if ran.status == 0:
            shutil.rmtree(os.path.join(folder, "new"))
            continue
        tried += 1
        one_sentence(ran, 1)
        assert os.listdir(folder) == [], f"{operation}: {tree(folder)}"
        ran = quarry("dequantize", os.path.join(job, "mlx"), "-o", out, env={"QUARRY_FAIL_IO": operation})
        if ran.status == 0:
            shutil.rmtree(os.path.join(folder, "new"))
        else:
            assert os.listdir(folder) == [], f"{operation}: {tree(folder)}"
    assert tried >= 6, tried


# --- inspect -----------------------------------------------------------------------------------------

def inspected(path, status=0):
    ran = quarry("inspect", path, "--json")
    assert ran.status == status, ran
    return json.loads(ran.out)


def inspect(jobs, folder):
    job = jobs["float"]
    said = inspected(job)
    assert [c["format"] for c in said] == ["dense", "gguf", "mlx", "packed"], said
    for c in said:
        assert c["ok"] and c["faults"] == [] and c["family"] == "llama" and c["layers"] == 4, c
        assert c["parameters"] == 1771200 and len(c["modules"]) == 28, c
        for f in c["files"]:
            data = read(os.path.join(c["path"], f["name"]))
            assert f["bytes"] == len(data) and f["sha256"] == hashlib.sha256(data).hexdigest(), f
            assert f.get("as_reported", True) is True, f
    bits = {c["format"]: c["bits_per_weight"] for c in said}
    assert bits == {"dense": 0, "packed": 5, "mlx": 4.5, "gguf": 5}, bits
    with open(os.path.join(job, "report.json")) as f:
        reported = json.load(f)["outputs"]
    assert all(abs(reported[f]["bits_per_weight"] - bits[f]) < 1e-9 for f in ("packed", "mlx", "gguf")), reported
    module = said[2]["modules"][0]
    assert (module["bits"], module["group_size"], module["symmetric"]) == (4, 64, False), module
    assert said[1]["modules"][0]["type"] == "Q4_1", said[1]["modules"][0]
    ran = quarry("inspect", os.path.join(job, "gguf", "model.gguf"))
    assert ran.status == 0 and "verified: every tensor is there" in ran.out, ran
    assert "0-3     self_attn.q_proj  192 x 192   5.000        Q4_1: 4 bits, groups of 64, any zero-points" in ran.out, ran


def inspect_damaged(jobs, folder):
    job = os.path.join(folder, "job")
    shutil.copytree(jobs["float"], job)
    path = os.path.join(job, "packed", "model.safetensors")
    data = bytearray(read(path))
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    for name, bits in (("model.layers.2.mlp.up_proj.scales", 0xbf800000), ("model.layers.3.mlp.up_proj.zeros", 0x7fc00000)):
        at = 8 + n + head[name]["data_offsets"][0]
        data[at:at + 4] = struct.pack("<I", bits)
    with open(path, "wb") as f:
        f.write(data)
    said = inspected(os.path.join(job, "packed"), 1)
    assert len(said["faults"]) == 3 and not said["ok"], said
    assert said["faults"][2] == "model.safetensors has another SHA-256 than report.json says", said
    ran = quarry("inspect", os.path.join(job, "packed"))
    assert ran.status == 1 and "verified" not in ran.out, ran
    lines = [line for line in ran.err.splitlines() if line.startswith("quarry: ")]
    assert len(lines) == 3 and any("layers.2.mlp.up_proj has scales that are not positive" in line for line in lines), ran
    assert any("layers.3.mlp.up_proj: the zero-point of row 0, group 0 is not finite" in line for line in lines), ran
    for command in (["convert", job, "--format", "mlx"], ["dequantize", os.path.join(job, "packed")]):
        ran = quarry(*command, "-o", os.path.join(folder, "out"))
        assert ran.status == 1 and "not finite" in ran.err and os.listdir(folder) == ["job"], ran


def inspect_report(jobs, folder):
    """Digests that report.json gives - of every file - are compared."""
    job = os.path.join(folder, "job")
    shutil.copytree(jobs["float"], job)
    path = os.path.join(job, "report.json")
    with open(path) as f:
        report = json.load(f)
    for form in ("mlx", "gguf", "packed", "dense"):
        said = inspected(os.path.join(job, form), 0)
        assert {f["name"] for f in said["files"]} == set(report["outputs"][form]["sha256"]), said
        assert all(f["as_reported"] for f in said["files"]), said
    report["outputs"]["mlx"]["sha256"]["model.safetensors"] = "0" * 64
    with open(path, "w") as f:
        json.dump(report, f)
    said = inspected(os.path.join(job, "mlx"), 1)
    assert not next(f for f in said["files"] if f["name"] == "model.safetensors")["as_reported"], said
    assert said["faults"] == ["model.safetensors has another SHA-256 than report.json says"], said


def misread(jobs, folder):
    """What a reader is known to misread is said, by the plan of a job and by convert, and written all the same."""
    for name, said in (("mixed", True), ("integer", False)):
        ran = convert(jobs[name], os.path.join(folder, name), "compressed-tensors")
        assert ("transformers reads modules of several settings wrongly" in ran.err) == said, ran


def inspect_nothing(folder):
    one_sentence(quarry("inspect", os.path.join(folder, "nowhere")), 1, "nowhere", "No such file")
    ran = quarry("inspect", folder)
    assert ran.status == 1 and "config.json" in ran.err, ran
    with open(os.path.join(folder, "x.gguf"), "wb") as f:
        f.write(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    one_sentence(quarry("inspect", os.path.join(folder, "x.gguf")), 1, "x.gguf")


def in_folder(case, *args):
    def run():
        with tempfile.TemporaryDirectory() as folder:
            case(*args, folder)
    return run


tap = Tap()
with tempfile.TemporaryDirectory() as shared:
    jobs = Jobs(shared)
    tap.case("convert: as the job wrote it", in_folder(as_the_job_wrote_it, jobs))
    tap.case("dequantize: the tokenizer of a gguf file", in_folder(tokenizer_of_gguf, jobs))
    tap.case("dequantize: back to the dense folder", in_folder(turned_back, jobs))
    tap.case("convert: from format to format", in_folder(between_formats, jobs))
    tap.case("convert: embeddings of 8 bits", in_folder(tables, jobs))
    tap.case("convert: several files", in_folder(shards, jobs))
    tap.case("convert: beside the other formats", in_folder(beside, jobs))
    tap.case("convert: what a format does not hold", in_folder(refused, jobs))
    tap.case("convert: what the quantization cost", in_folder(measured, jobs))
    tap.case("convert and dequantize: a disk that fails", in_folder(fails_in_between, jobs))
    tap.case("convert: what a reader misreads", in_folder(misread, jobs))
    tap.case("inspect: every folder of a job", in_folder(inspect, jobs))
    tap.case("inspect: a damaged folder", in_folder(inspect_damaged, jobs))
    tap.case("inspect: digests of the report", in_folder(inspect_report, jobs))
tap.case("inspect: nothing", in_folder(inspect_nothing))
tap.case("convert: a job of a coordinator", in_folder(of_a_job))
tap.end()
