#!/usr/bin/env python3
"""The client with a real coordinator and a real worker: submit by upload and by path, show, watch, fetch, cancel, retry."""
import json
import os
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Fleet, Tap, wait_for  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
SMALL = ["--samples", "8", "--seq-len", "128", "--bits", "3", "--eval-windows", "2", "--effort", "fast"]


class Client:
    def __init__(self, fleet):
        self.fleet = fleet
        self.env = {"QUARRY_SERVER": fleet.url + "/", "QUARRY_TOKEN_FILE": self.token("submitter")}

    def token(self, role):
        path = os.path.join(self.fleet.folder, f"{role}.cli.token")
        with open(path, "w") as f:
            f.write(self.fleet.tokens.get(role, "no-such-token-at-all") + "\n")
        return path

    def __call__(self, *args, status=0):
        ran = quarry(*args, env=self.env)
        assert ran.status == status, ran
        return ran


def dry_run(client):
    ran = client("submit", "--server-path", TINY, *SMALL, "--dry-run")
    assert "modules " in ran.out and "tasks " in ran.out, ran
    plan = json.loads(client("submit", "--server-path", TINY, *SMALL, "--dry-run", "--json").out)
    assert plan["tasks"]["total"] > 0 and "distill" not in plan["tasks"], plan
    # The one worker that is registered, and the same job at each effort.
    estimate = plan["estimate"]
    assert estimate["workers"] == 1 and estimate["seconds"] == estimate["efforts"]["fast"], estimate
    assert 0 < estimate["efforts"]["fast"] < estimate["efforts"]["balanced"] < estimate["efforts"]["best"], estimate
    assert json.loads(client("jobs", "--json").out) == [], "a dry run made a job"


def refused_plan(client):
    ran = client("submit", "--server-path", TINY, *SMALL, "--group-size", "100", status=1)
    one_sentence(ran, 1)
    assert "100" in ran.err and "divide" in ran.err, ran


def by_path(client):
    ran = client("submit", "--server-path", TINY, *SMALL, "--name", "by path", "--idempotency-key", "once")
    job = ran.out.split()[1]
    again = client("submit", "--server-path", TINY, *SMALL, "--name", "by path", "--idempotency-key", "once")
    assert again.out == ran.out, (ran, again)
    ran = client("watch", job)
    assert f"job {job} is DONE" in ran.out and "quantize" in ran.err, ran
    return job


def by_upload(client):
    ran = client("submit", TINY, *SMALL, "--calibration", os.path.join(ROOT, "examples/texts/calibration.jsonl"),
                 "--eval", os.path.join(ROOT, "examples/texts/evaluation.txt"), "--wait", "--json")
    job = json.loads(ran.out[:ran.out.rindex("}") + 1])["job"]
    assert f"job {job} is DONE" in ran.out, ran
    described = json.loads(client("show", job, "--json").out)
    assert described["state"] == "DONE" and described["perplexity"][0]["text"] == "evaluation.txt", described
    return job


def shown(client, job):
    ran = client("show", job)
    for part in (job, "LAYER", "q_proj", "down_proj", "DONE", "perplexity", " -> ", "KL divergence ", "top-1 agreement "):
        assert part in ran.out, f"expected {part!r} in {ran}"
    report = json.loads(client("show", job, "--report").out)
    assert report["recipe"]["bits"] == 3, report["recipe"]
    assert report["run"]["seconds"] > 0 and report["run"]["predicted_seconds"] > 0, report["run"]
    rows = client("jobs").out.splitlines()
    assert rows[0].split()[:3] == ["JOB", "STATE", "DONE"] and any(job in r for r in rows[1:]), rows
    assert any("by path" in r for r in rows), rows
    assert client("jobs", "--state", "FAILED").out.count("\n") == 1
    assert len(json.loads(client("jobs", "--limit", "1", "--json").out)) == 1
    titles, row = client("workers").out.splitlines()
    assert row.startswith("fleet-worker") and titles.split()[3] == "DEVICE" and row.split()[3] == "-", (titles, row)
    worker = json.loads(client("workers", "--json").out)[0]
    assert worker["name"] == "fleet-worker" and worker["device"] is None, worker
    client.fleet.call("POST", "/v1/workers", {"name": "gpu", "backend": "cuda", "device": {
        "number": 1, "name": "NVIDIA H200", "driver": "CUDA 13.0", "clock_mhz": 1980, "memory_bytes": 1 << 37}}, role="worker")
    row = next(r for r in client("workers").out.splitlines() if r.startswith("gpu "))
    assert "cuda" in row and "1 NVIDIA H200" in row, row


def fetched(client, job):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        ran = client("fetch", job, "-o", out)
        assert out in ran.out, ran
        files = {f["path"]: f for f in client.fleet.call("GET", f"/v1/jobs/{job}/files")["items"]}
        here = [p for p in tree(out) if os.path.isfile(os.path.join(out, p))]
        assert here == sorted(files), (here, sorted(files))
        for path, entry in files.items():
            assert os.path.getsize(os.path.join(out, path)) == entry["bytes"], path
        one_sentence(client("fetch", job, "-o", out, status=1), 1, "is not empty")


def unknown_job(client):
    for command in (["show"], ["watch"], ["cancel"], ["retry"], ["fetch", "-o", os.path.join(client.fleet.folder, "x")]):
        one_sentence(client(command[0], "j_none", *command[1:], status=1), 1, "j_none")


def wrong_token(client):
    ran = quarry("jobs", "--token-file", client.token("nobody"), env=client.env)
    one_sentence(ran, 1, "token")
    ran = quarry("submit", "--server-path", TINY, "--token-file", client.token("viewer"), env=client.env)
    one_sentence(ran, 1)
    without = {k: v for k, v in client.env.items() if k != "QUARRY_TOKEN_FILE"}
    one_sentence(quarry("jobs", env=without), 1, "token")


def outside_the_roots(client):
    one_sentence(client("submit", "--server-path", "/etc", status=1), 1, "/etc")


def cancelled(client):
    worker = client.fleet.workers[0]
    worker.stop()
    job = client("submit", "--server-path", TINY, *SMALL, "--samples", "16").out.split()[1]
    assert "CANCELLED" in client("cancel", job).out
    assert "CANCELLED" in client("cancel", job).out, "cancelling twice is one cancel"
    one_sentence(client("watch", job, status=1), 1, "the job was cancelled")
    one_sentence(client("fetch", job, "-o", os.path.join(client.fleet.folder, "y"), status=1), 1)
    one_sentence(client("retry", job, status=1), 1)
    worker.start()


def failed_and_retried(client):
    """A model with a NaN weight fails by name; retried, it fails again with fresh attempts."""
    import shutil
    import struct
    model = os.path.join(client.fleet.folder, "nan-model")
    shutil.copytree(TINY, model)
    with open(os.path.join(model, "model-00002-of-00002.safetensors"), "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        f.seek(8 + n + 1000)
        f.write(struct.pack("<H", 0x7fc0))
    job = client("submit", "--server-path", model, *SMALL).out.split()[1]
    ran = client("watch", job, status=1)
    one_sentence(ran, 1, "the job failed: ")
    assert "attempt on fleet-worker" in ran.err, ran
    assert "failure " in client("show", job).out
    assert "RUNNING" in client("retry", job).out
    one_sentence(client("watch", job, status=1), 1, "the job failed: ")


def away_and_back(client):
    """Watching goes on when the coordinator is restarted."""
    import subprocess
    from command import QUARRY
    fleet = client.fleet
    fleet.workers[0].stop()
    job = client("submit", "--server-path", TINY, *SMALL, "--samples", "24").out.split()[1]
    err = os.path.join(fleet.folder, "watch.err")
    with open(err, "w") as f:
        watch = subprocess.Popen([QUARRY, "watch", job], env={**os.environ, **client.env}, stdout=subprocess.PIPE,
                                 stderr=f, text=True)
    fleet.server.kill()
    fleet.server.wait()
    wait_for(lambda: "waiting for it" in open(err).read(), "the watcher to notice", 60)
    fleet.start_server()
    fleet.workers[0].start()
    out, _ = watch.communicate(timeout=120)
    assert watch.returncode == 0 and "is DONE" in out, (watch.returncode, out, open(err).read())


tap = Tap()
with tempfile.TemporaryDirectory() as base:
    with Fleet(base) as fleet:
        fleet.add_worker("fleet-worker", threads=2)
        client = Client(fleet)
        jobs = []
        tap.case("a plan", dry_run, client)
        tap.case("a refused plan", refused_plan, client)
        tap.case("a job by path, once", lambda: jobs.append(by_path(client)))
        tap.case("a job by upload", lambda: jobs.append(by_upload(client)))
        tap.case("lists and the grid", lambda: shown(client, jobs[-1]))
        tap.case("a fetched result", lambda: fetched(client, jobs[-1]))
        tap.case("a job that does not exist", unknown_job, client)
        tap.case("wrong tokens", wrong_token, client)
        tap.case("a folder outside the roots", outside_the_roots, client)
        tap.case("a cancelled job", cancelled, client)
        tap.case("a failed job, retried", failed_and_retried, client)
        tap.case("a coordinator that is away for a while", away_and_back, client)
tap.end()
