#!/usr/bin/env python3
"""The worker daemon against a scripted coordinator: what it sends, what it keeps, and what it does when things go wrong.

Slow tasks are made without clocks: `verify` reads the checkpoint over HTTP in chunks, and a rule holds the coordinator's
answer back until the test lets it go.
"""
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fake_coordinator import Coordinator, Task  # noqa: E402
from fleet import BUILD, ROOT, Process, Tap, free_port, wait_for  # noqa: E402

WORKER = os.path.join(BUILD, "quarry-worker")
MODEL = os.path.join(ROOT, "examples", "fable-tiny")
TEXT = os.path.join(ROOT, "examples", "texts", "evaluation.txt")
CHUNK = 4 << 20     # what `verify` reads at a time


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read(path):
    with open(path, "rb") as f:
        return f.read()


def header_digest(name, data):
    if name.endswith(".safetensors"):
        data = data[:8 + struct.unpack("<Q", data[:8])[0]]
    return sha256(data)


def long_shard(chunks):
    """A safetensors file that `verify` reads in `chunks` reads after its header."""
    count = chunks * CHUNK // 4
    header = json.dumps({"t": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes(4 * count)


class Gate:
    """Holds answers back: pass(n) lets n requests through, open() all of them."""

    def __init__(self, coordinator):
        self.coordinator, self.tickets, self.waiting = coordinator, 0, 0

    def __call__(self, handler, request):
        with self.coordinator.changed:
            self.waiting += 1
            self.coordinator.changed.notify_all()
            while self.tickets <= 0 and not Coordinator.hung_up(handler):
                self.coordinator.changed.wait(0.2)
            self.tickets -= 1
            self.waiting -= 1
        return False

    def let(self, n):
        with self.coordinator.changed:
            self.tickets += n
            self.coordinator.changed.notify_all()

    def open(self):
        self.let(1 << 30)


class Case:
    """A coordinator and one worker in a folder of their own."""

    def __init__(self, **options):
        self.folder = tempfile.mkdtemp()
        self.c = Coordinator(**options).start()
        self.token_file = os.path.join(self.folder, "token")
        with open(self.token_file, "w") as f:
            f.write(self.c.token + "\n")
        self.work = os.path.join(self.folder, "work")
        self.worker = None
        self.env = {}
        assert os.access(WORKER, os.X_OK), f"{WORKER} is not built"

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if self.worker and self.worker.alive():
            wait_for(self.hurried, "the worker to stop at once", 30, 0.2)
        self.c.stop()
        log = self.worker.text() if self.worker else ""
        if kind is not None:
            sys.stderr.write(log[-6000:])
        assert "Sanitizer" not in log and "runtime error" not in log, log[-6000:]

    def hurried(self):
        self.worker.kill(signal.SIGTERM)    # the second one means: at once
        return not self.worker.alive()

    def start(self, *options):
        argv = [WORKER, "--server", self.c.url, "--token-file", self.token_file, "--work", self.work, "--threads", "1",
                "--log-level", "debug", *options]
        self.worker = Process(["env", *(f"{k}={v}" for k, v in self.env.items()), *argv],
                              os.path.join(self.folder, "worker.log"))
        self.worker.start()
        self.c.given_up = lambda: None if self.worker.alive() else "the worker ended while the test waited"
        return self

    def model(self, files=None, path=None):
        """The lease's model object; by default fable-tiny."""
        if files is None:
            files = {name: read(os.path.join(MODEL, name)) for name in sorted(os.listdir(MODEL))}
        model = "m_" + sha256("".join(sorted(files)).encode())[:8]
        self.c.models[model] = files
        return {"id": model, "path": path, "files": [
            {"name": name, "bytes": len(data), "sha256": None, "header_sha256": header_digest(name, data)}
            for name, data in files.items()]}

    def give(self, *args, **kw):
        return self.c.give(Task(*args, **kw))

    def verify(self, name="t_verify", file="model-00001-of-00002.safetensors", path=MODEL, **kw):
        return self.give(name, "verify", {"file": file}, model=self.model(path=path), **kw)

    def tokenize(self, name="t_tokenize", text=None, **kw):
        data = read(TEXT) if text is None else text
        inputs = [{"name": "text", "sha256": self.c.blob(data), "bytes": len(data)}]
        spec = {"role": "eval", "name": "text.txt", "format": "text", "samples": 0, "seq_len": 64, "max_windows": 0}
        return self.give(name, "tokenize", spec, inputs, model=self.model(path=MODEL), **kw)

    def slow(self, name="t_slow", chunks=6, **kw):
        """A verify task whose every chunk waits at the gate that is returned with it. (Its header passes.)"""
        gate = Gate(self.c)
        gate.let(1)
        self.c.rule("GET", r"/v1/models/m_.*/files/.*", gate)
        files = {"model.safetensors": long_shard(chunks)}
        return self.give(name, "verify", {"file": "model.safetensors"}, model=self.model(files), **kw), gate

    def ended(self, task, state="DONE", seconds=60):
        self.c.wait(lambda: task.state not in ("READY", "LEASED"), f"task {task.name} to end", seconds)
        assert task.state == state, f"{task.name} is {task.state}, not {state}: {task.ended}"
        return task.ended

    def at_gate(self, gate):
        self.c.wait(lambda: gate.waiting > 0, "the task to wait at the gate")

    def exits(self, status=0, seconds=60):
        got = self.worker.wait(seconds)
        assert got == status, f"exit status {got}, not {status}: {self.worker.text()[-2000:]}"

    def nothing_left(self):
        wait_for(lambda: not self.left_over(), "run/ and done/ to be empty")

    def left_over(self):
        return sorted(os.listdir(os.path.join(self.work, "run")) + os.listdir(os.path.join(self.work, "done")))


# --- the command line ----------------------------------------------------------------------------------------------


def run_worker(*options):
    return subprocess.run([WORKER, *options], capture_output=True, text=True, timeout=60)


def one_sentence(done, status, *words):
    lines = [line for line in done.stderr.splitlines() if line.startswith("quarry-worker: ")]
    assert done.returncode == status, f"exit status {done.returncode}, not {status}: {done.stderr}"
    assert len(lines) == 1 and "\n" not in lines[0], done.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in {lines[0]!r}"


def command_line():
    with tempfile.TemporaryDirectory() as d:
        work = ["--work", os.path.join(d, "w")]
        server = ["--server", "http://127.0.0.1:1"]
        one_sentence(run_worker("--colour"), 2, "--colour", "not known")
        one_sentence(run_worker("--server"), 2, "--server", "needs a value")
        one_sentence(run_worker(*work), 2, "--server URL is missing")
        one_sentence(run_worker(*server), 2, "--work DIR is missing")
        one_sentence(run_worker(*server, *work, "more"), 2, "more is not an option")
        one_sentence(run_worker(*server, *work, "--threads", "0"), 2, "--threads 0", "1 to 1024")
        one_sentence(run_worker(*server, *work, "--cache-size", "20 GB"), 2, "--cache-size 20 GB", "20GiB")
        one_sentence(run_worker(*server, *work, "--memory", "99999999999TB"), 2, "--memory")
        one_sentence(run_worker(*server, *work, "--log-level", "loud"), 2, "--log-level loud", "debug")
        one_sentence(run_worker(*server, *work, "--name", "a\nb"), 2, "--name")
        one_sentence(run_worker(*server, *work, "--backend", "abacus"), 2, "--backend abacus", "ref")
        one_sentence(run_worker(*server, *work, "--device", "x"), 2, "--device x", "0 to 1023")
        one_sentence(run_worker(*server, *work, "--device", "-1"), 2, "--device -1", "0 to 1023")
        one_sentence(run_worker(*server, *work, "--gpu-memory", "much"), 2, "--gpu-memory much", "20GiB")
        one_sentence(run_worker(*server, *work, "--device", "0"), 2, "--device", "cpu has none")
        one_sentence(run_worker(*server, *work, "--gpu-memory", "8GB", "--backend", "ref"), 2, "--gpu-memory", "ref has none")
        one_sentence(run_worker("--server", "ftp://x", *work), 1, "--server ftp://x", "http://HOST:PORT")
        one_sentence(run_worker(*server, *work, "--token-file", os.path.join(d, "no")), 1, "--token-file", "no",
                     "No such file")
        for content, word in ("", "holds no token"), ("a b\n", "blank"), ("x" * 600, "600"):
            with open(os.path.join(d, "t"), "w") as f:
                f.write(content)
            one_sentence(run_worker(*server, *work, "--token-file", os.path.join(d, "t")), 1, "--token-file", word)
        one_sentence(run_worker(*server, "--work", os.path.join(d, "t", "w")), 1, "--work", "t")
        one_sentence(run_worker("--server", f"http://127.0.0.1:{free_port()}", *work, "--no-wait"), 1,
                     "does not answer")
        assert run_worker("--help").stdout.startswith("usage: quarry-worker")
        assert run_worker("--version").stdout.startswith("quarry-worker ")


def wrong_token():
    with Case(token="right") as k:
        with open(k.token_file, "w") as f:
            f.write("wrong\n")
        done = run_worker("--server", k.c.url, "--token-file", k.token_file, "--work", k.work)
        one_sentence(done, 1, "does not accept the token", k.token_file)
        done = run_worker("--server", k.c.url, "--work", k.work)
        one_sentence(done, 1, "give --token-file")


def work_folder_in_use():
    with Case().start() as k:
        k.c.wait(lambda: k.c.leases, "the first worker to ask for work")
        done = run_worker("--server", k.c.url, "--token-file", k.token_file, "--work", k.work)
        one_sentence(done, 1, "another quarry-worker is using", k.work)


# --- the ordinary course -----------------------------------------------------------------------------------------------


def slice_verify():
    with Case() as k:
        task = k.verify()
        k.start("--name", "first", "--memory", "3GB", "--backend", "ref")
        body = k.ended(task)
        shard = read(os.path.join(MODEL, "model-00001-of-00002.safetensors"))
        assert body["result"]["sha256"] == sha256(shard), body
        assert body["outputs"] == [] and body["epoch"] == 1 and body["worker"] == "w_1", body
        stats = body["stats"]
        assert stats["peak_rss_bytes"] > 1 << 20 and stats["wall_ms"] >= 0 and stats["cpu_ms"] >= 0, stats
        assert stats["backend"] == "ref" and stats["identity"], stats
        me = k.c.registered[0]
        assert me["name"] == "first" and me["threads"] == 1 and me["memory_bytes"] == 3 * 10**9, me
        assert me["backend"] == "ref" and me["identity"] and me["version"] and me["sees_paths"] is True, me
        lease = k.c.seen("POST", "/v1/leases")[0]
        assert lease["headers"]["Prefer"] == "wait=25", lease["headers"]
        verbs = [r["path"].rsplit("/", 1)[1] for r in k.c.seen("POST", "/v1/leases/.*")]
        assert verbs[0] == "heartbeat", f"the first word about a task was {verbs[0]}"
        k.c.wait(lambda: len(k.c.leases) == 2, "the next lease request")
        k.nothing_left()
        assert k.c.count("GET", ".*") == 0, "the folder was visible, nothing had to be read over HTTP"


def slice_tokenize():
    with Case(part_bytes=4096) as k:
        task = k.tokenize()
        k.start()
        body = k.ended(task)
        output, = body["outputs"]
        assert output["name"] == "tokens" and len(k.c.blobs[output["sha256"]]) == output["bytes"], output
        parts = k.c.seen("PUT", "/v1/uploads/.*")
        assert len(parts) == (output["bytes"] + 4095) // 4096, len(parts)
        again = k.tokenize("t_again")
        k.ended(again)
        assert again.ended["outputs"] == body["outputs"]
        k.c.wait(lambda: len(k.c.leases) >= 3 and k.c.leases[-1]["have"], "the next lease request")
        have = k.c.leases[-1]["have"]
        assert set(have) == {output["sha256"], task.lease["inputs"][0]["sha256"]}, have
        assert k.c.count("GET", "/v1/blobs/.*") == 1, "the input was cached"
        assert k.c.count("PUT", ".*") == len(parts), "the output was stored already"


def model_over_http():
    with Case() as k:
        changed = dict(k.model()["files"][0])
        other = os.path.join(k.folder, "model")
        os.mkdir(other)
        for name in os.listdir(MODEL):
            data = read(os.path.join(MODEL, name))
            with open(os.path.join(other, name), "wb") as f:
                f.write(data + b" " if name == changed["name"] else data)
        task = k.verify(path=other)
        ballast = bytearray(b"x" * (300 << 20))     # of this process, which the worker is forked from
        k.start()
        shard = read(os.path.join(MODEL, "model-00001-of-00002.safetensors"))
        assert k.ended(task)["result"]["sha256"] == sha256(shard)
        assert task.ended["stats"]["peak_rss_bytes"] < len(ballast), task.ended["stats"]
        reads = k.c.seen("GET", "/v1/models/m_.*/files/.*")
        assert reads and all("Range" in r["headers"] for r in reads), reads
        assert "another size" in k.worker.text(), k.worker.text()


def bad_task():
    with Case().start() as k:
        task = k.give("t_odd", "divine", {}, model=k.model(path=MODEL))
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "unsupported" and "divine" in body["error"]["detail"], body
        task = k.give("t_none", "verify", {"file": "absent.safetensors"}, model=k.model(path=MODEL))
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "not-found" and "absent" in body["error"]["detail"], body
        task = k.give("t_modelless", "verify", {"file": "x"})
        assert "names no model" in k.ended(task, "FAILED")["error"]["detail"]
        k.ended(k.verify())
        k.nothing_left()


def failure_carries_the_log():
    with Case() as k:
        bad = bytearray(long_shard(3))
        bad[-3:] = b"\xc0\x7f\x00"[0:3]
        bad[-4:] = struct.pack("<f", float("nan"))
        task = k.give("t_nan", "verify", {"file": "model.safetensors"}, model=k.model({"model.safetensors": bytes(bad)}))
        k.start()
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "corrupt" and "NaN" in body["error"]["detail"], body
        assert "checking weights" in body["log"], body["log"]


def nonsense_leases():
    with Case() as k:
        good = Task("t_x", "verify", {"file": "f"}, model=k.model(path=MODEL)).lease
        for broken in ({**good, "task": "../../etc"}, {**good, "epoch": "one"}, {**good, "spec": []},
                       {**good, "inputs": [{"name": "a/b", "sha256": "0" * 64, "bytes": 1}]},
                       {**good, "inputs": [{"name": "a", "sha256": "0" * 63, "bytes": 1}]},
                       {**good, "model": {**good["model"], "id": "../x"}},
                       {**good, "model": {**good["model"], "files": [{"name": "/etc/passwd", "bytes": 1}]}}, [], "x"):
            k.c.rule("POST", "/v1/leases", lambda h, r, b=broken: Coordinator.answer(h, 200, b), 1)
            if not k.worker:
                k.start()
            n = len(k.c.requests)
            k.c.wait(lambda n=n: any(r["path"] == "/v1/leases" for r in k.c.requests[n:]) or
                     all(rule[3] == 0 for rule in k.c.rules), "the next poll")
        k.ended(k.verify())
        assert "which is not an id" in k.worker.text(), k.worker.text()


# --- blobs -----------------------------------------------------------------------------------------------------------------


def download_resumes():
    with Case() as k:
        data = read(TEXT)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, data, 50000), 1)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, data, 30000), 1)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: Coordinator.problem(h, 503, "unavailable"), 1)
        task = k.tokenize()
        k.start()
        k.ended(task)
        ranges = [r["headers"].get("Range") for r in k.c.seen("GET", "/v1/blobs/.*")]
        assert ranges == [None, "bytes=50000-", "bytes=80000-", "bytes=80000-"], ranges


def download_resumes_after_kill():
    with Case() as k:
        data = read(TEXT)
        cut = threading.Event()
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, data, 60000), 1)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: cut.set() or Coordinator.cut(h))
        task = k.tokenize()
        k.start()
        k.c.wait(cut.is_set, "the second attempt")
        k.worker.kill()
        k.worker.wait()
        k.c.rules.clear()
        task.state = "READY"
        k.c.give(task)
        k.start()
        k.ended(task)
        assert k.c.seen("GET", "/v1/blobs/.*")[-1]["headers"].get("Range") == "bytes=60000-"


def wrong_bytes():
    with Case() as k:
        data = read(TEXT)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, b"!" + data[1:]), 1)
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, data + b"more"), 1)
        task = k.tokenize()
        k.start()
        k.ended(task)
        assert k.c.count("GET", "/v1/blobs/.*") == 3
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, b"?" * 1000), None)
        task = k.tokenize("t_wrong", text=b"some other text, " * 100)
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "io" and "fewer bytes" in body["error"]["detail"], body
        k.c.rules.clear()
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, b"?" * 1600), None)
        body = k.ended(k.tokenize("t_other", text=b"some other text, " * 100), "FAILED")
        assert body["error"]["name"] == "io" and "fewer bytes" in body["error"]["detail"], body
        k.c.rules.clear()
        k.c.rule("GET", "/v1/blobs/.*", lambda h, r: k.c.send_bytes(h, b"?" * 1700), None)
        body = k.ended(k.tokenize("t_third", text=b"some other text, " * 100), "FAILED")
        assert body["error"]["name"] == "io" and "another digest, 3 times" in body["error"]["detail"], body
        k.c.rules.clear()
        k.ended(k.verify())


def missing_blob():
    with Case() as k:
        task = k.tokenize()
        k.c.blobs.clear()
        k.start()
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "not-found" and "input text" in body["error"]["detail"], body


def cache_is_checked_after_restart():
    with Case() as k:
        task = k.tokenize()
        k.start()
        k.ended(task)
        digest = task.lease["inputs"][0]["sha256"]
        k.worker.kill(signal.SIGTERM)
        k.exits()
        path = os.path.join(k.work, "cache", digest)
        with open(path, "r+b") as f:
            f.write(b"damage")
        k.start()
        task = k.tokenize("t_after")
        k.ended(task)
        assert k.c.count("GET", "/v1/blobs/.*") == 2, "the damaged blob is fetched again"
        assert sha256(read(path)) == digest
        k.worker.kill(signal.SIGTERM)
        k.exits()
        k.start()
        k.ended(k.tokenize("t_last"))
        assert k.c.count("GET", "/v1/blobs/.*") == 2, "an intact one is not"


def cache_has_a_limit():
    with Case().start("--cache-size", "300kB") as k:
        base = read(TEXT)
        for i in range(6):
            k.ended(k.tokenize(f"t_{i}", text=bytes(str(i), "ascii") + base[:80000]))
        n = len(k.c.leases)
        k.c.wait(lambda: len(k.c.leases) >= 7 or len(k.c.leases) > n, "the worker to be idle")
        cache = os.path.join(k.work, "cache")
        held = sum(os.path.getsize(os.path.join(cache, name)) for name in os.listdir(cache))
        assert 0 < held <= 300000, held


def upload_resumes():
    with Case(part_bytes=1024) as k:
        dropped = []

        def drop(handler, request):
            dropped.append(request["path"])
            return Coordinator.cut(handler)

        # curl itself repeats a request once when a kept connection breaks; four times are beyond that
        k.c.rule("PUT", "/v1/uploads/.*/parts/5", drop, 4)
        task = k.tokenize()
        k.start()
        output, = k.ended(task)["outputs"]
        parts = [r["path"] for r in k.c.seen("PUT", ".*") if r.get("status") == 204]
        assert len(dropped) == 4, dropped
        assert len(parts) == len(set(parts)), f"stored parts are not sent again: {parts}"
        assert len(parts) == (output["bytes"] + 1023) // 1024, len(parts)
        begins = k.c.count("POST", "/v1/uploads")
        assert begins > 1, f"the upload was begun {begins} times"


def upload_begun_by_another():
    with Case(part_bytes=1024) as k:
        task = k.tokenize()
        k.start()
        output, = k.ended(task)["outputs"]
        data = k.c.blobs.pop(output["sha256"])
        k.c.uploads[output["sha256"]] = {"bytes": len(data), "parts": {i: data[i * 1024:(i + 1) * 1024]
                                                                      for i in range(0, 20, 2)}}
        n = k.c.count("PUT", ".*")
        k.ended(k.tokenize("t_again"))
        assert k.c.count("PUT", ".*") - n == (len(data) + 1023) // 1024 - 10


def upload_goes_wrong():
    with Case() as k:
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: Coordinator.problem(h, 422, "corrupt"), 1)
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: Coordinator.problem(h, 404, "not-found"), 1)
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.problem(h, 507, "no-space"), 2)
        k.c.rule("PUT", ".*", lambda h, r: Coordinator.problem(h, 500, "io"), 1)
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.answer(h, 201, {"upload": "../x"}), 1)
        task = k.tokenize()
        k.start()
        k.ended(task)
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.problem(h, 413, "too-large", "no"))
        body = k.ended(k.tokenize("t_big", text=b"other words " * 200), "FAILED")
        assert body["error"]["name"] == "too-large" and "output tokens" in body["error"]["detail"], body
        k.nothing_left()


# --- completing ---------------------------------------------------------------------------------------------------------------


def complete_is_repeated():
    with Case() as k:
        def applied_but_cut(handler, request):
            task = k.c.tasks["t_verify"]
            task.ended, task.state = request["body"], "DONE"
            return Coordinator.cut(handler)

        k.c.rule("POST", ".*/complete", lambda h, r: Coordinator.problem(h, 500, "internal"), 2)
        k.c.rule("POST", ".*/complete", lambda h, r: Coordinator.cut(h), 1)
        k.c.rule("POST", ".*/complete", applied_but_cut, 1)
        k.verify()
        k.start()
        k.c.wait(lambda: k.c.count("POST", ".*/complete") == 5, "the fifth completion")
        bodies = [r["body"] for r in k.c.seen("POST", ".*/complete")]
        assert all(b == bodies[0] for b in bodies), "a repeated completion must have the same content"
        k.nothing_left()


def blob_vanished():
    with Case() as k:
        def forget(handler, request):
            k.c.blobs.pop(request["body"]["outputs"][0]["sha256"])
            return False

        k.c.rule("POST", ".*/t_tokenize/complete", forget, 1)
        task = k.tokenize()
        k.start()
        k.ended(task)
        assert k.c.count("POST", "/v1/uploads") == 2 and k.c.count("POST", ".*/t_tokenize/complete") == 2


def completion_refused():
    with Case() as k:
        k.c.rule("POST", ".*/complete", lambda h, r: Coordinator.problem(h, 409, "conflict"), 1)
        k.c.rule("POST", ".*/complete", lambda h, r: Coordinator.problem(h, 400, "invalid", "odd"), 1)
        k.verify("t_one")
        k.start()
        k.c.wait(lambda: len(k.c.leases) > 1, "the worker to drop the task and go on")
        body = k.ended(k.verify("t_two"), "FAILED")
        assert body["error"]["name"] == "internal" and "odd" in body["error"]["detail"], body
        k.nothing_left()
        assert k.c.count("POST", ".*/t_one/.*") - k.c.count("POST", ".*/t_one/heartbeat") == 1, "nothing after 409"


# --- cancelled, lost -------------------------------------------------------------------------------------------------------------


def lost_while_computing():
    with Case() as k:
        task, gate = k.slow(lease_seconds=1)
        k.start()
        k.at_gate(gate)
        k.c.wait(lambda: len(task.beats) >= 3, "heartbeats while it computes")
        task.state = "CANCELLED"
        k.c.wait(lambda: "STOPPING=>GONE" in k.worker.text(), "the worker to stop computing")
        k.c.rules.clear()
        k.ended(k.verify())
        verbs = [r["path"] for r in k.c.seen("POST", ".*/t_slow/(complete|fail|release)")]
        assert verbs == [], verbs
        k.nothing_left()


def cancel_in_the_heartbeat():
    with Case() as k:
        task, gate = k.slow(lease_seconds=1)
        k.start()
        k.at_gate(gate)
        k.c.rule("POST", ".*/heartbeat", lambda h, r: Coordinator.answer(h, 200, {"cancel": True, "drain": False}), 1)
        k.c.wait(lambda: "STOPPING=>GONE" in k.worker.text(), "the worker to stop computing")
        k.c.rules.clear()
        k.ended(k.verify())
        assert task.ended is None


def not_accepted():
    with Case() as k:
        k.c.rule("POST", ".*/t_tokenize/heartbeat", lambda h, r: Coordinator.problem(h, 409, "conflict"), 1)
        k.tokenize()
        k.start()
        k.ended(k.verify())
        assert k.c.count("GET", "/v1/blobs/.*") == 0, "a task that is not ours costs no download"


def heartbeats_tell_progress():
    with Case() as k:
        task, gate = k.slow(chunks=4, lease_seconds=1)
        k.start()
        k.at_gate(gate)
        gate.let(2)
        k.c.wait(lambda: any(0.4 < b["progress"] < 0.6 and b["note"] == "checking weights" for b in task.beats),
                 "a heartbeat that tells of half the work")
        k.c.rule("POST", ".*/heartbeat", lambda h, r: Coordinator.problem(h, 500, "internal"), 2)
        k.c.rule("POST", ".*/heartbeat", lambda h, r: Coordinator.cut(h), 2)
        n = len(task.beats)
        k.c.wait(lambda: len(task.beats) > n and all(r[3] in (None, 0) for r in k.c.rules), "heartbeats to go on")
        gate.open()
        k.ended(task)


def stopped_and_continued():
    with Case() as k:
        task, gate = k.slow(lease_seconds=1)
        k.start()
        k.at_gate(gate)
        k.worker.kill(signal.SIGSTOP)
        task.state = "READY"    # the lease lapsed; another worker has it
        task.epoch += 1
        gate.open()
        k.worker.kill(signal.SIGCONT)
        k.c.wait(lambda: "t_slow epoch 1 is dropped" in k.worker.text(), "the work to be dropped")
        k.ended(k.verify())
        assert task.ended is None
        k.nothing_left()


# --- the coordinator is away ---------------------------------------------------------------------------------------------------------


def server_away_at_start():
    with Case() as k:
        k.c.stop()
        k.start()
        wait_for(lambda: "does not answer" in k.worker.text(), "the worker to notice")
        k.c.start()
        k.ended(k.verify())
        assert k.worker.text().count("does not answer") == 1 and k.worker.text().count("answers again") == 1


def server_away_while_computing():
    with Case() as k:
        task, gate = k.slow(chunks=4, lease_seconds=1)
        k.start()
        k.at_gate(gate)
        k.c.stop()
        wait_for(lambda: "trying again" in k.worker.text() and "does not answer" in k.worker.text(),
                 "the worker to notice")
        gate.open()
        k.c.start()
        body = k.ended(task)
        assert body["result"]["sha256"] == sha256(long_shard(4))
        assert k.c.count("POST", ".*/t_slow/complete") == 1


def server_away_with_a_result():
    with Case() as k:
        def vanish(handler, request):
            threading.Thread(target=k.c.stop).start()
            return Coordinator.cut(handler)

        k.c.rule("POST", "/v1/uploads", vanish, 1)
        task = k.tokenize()
        k.start()
        wait_for(lambda: k.c.server is None and "does not answer" in k.worker.text(), "the coordinator to go")
        assert k.left_over() == ["t_tokenize-1"], k.left_over()
        k.c.start()
        k.ended(task)
        k.nothing_left()


def killed_with_a_result():
    with Case() as k:
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.cut(h))
        task = k.tokenize()
        k.start("--name", "stable")
        k.c.wait(lambda: k.c.count("POST", "/v1/uploads") >= 2, "the result to be finished")
        k.worker.kill()
        k.worker.wait()
        leases = len(k.c.leases)
        k.c.rules.clear()
        k.start("--name", "stable")
        output, = k.ended(task)["outputs"]
        assert output["sha256"] in k.c.blobs
        assert task.beats and k.worker.text().count("SEALING=>UPLOADING") == 1, "it was computed once"
        k.c.wait(lambda: len(k.c.leases) > leases, "the worker to ask for more")
        k.nothing_left()


def killed_with_a_stale_result():
    with Case() as k:
        k.c.rule("POST", ".*/complete", lambda h, r: Coordinator.cut(h))
        task = k.verify()
        k.start()
        k.c.wait(lambda: k.c.count("POST", ".*/complete") >= 2, "the result to be finished")
        k.worker.kill()
        k.worker.wait()
        k.c.rules.clear()
        task.epoch += 1
        k.start()
        k.c.wait(lambda: k.left_over() == [], "the stale result to be dropped")
        assert task.ended is None
        k.ended(k.verify("t_next"))


def killed_with_a_damaged_result():
    with Case() as k:
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.cut(h))
        task = k.tokenize()
        k.start()
        k.c.wait(lambda: k.c.count("POST", "/v1/uploads") >= 1, "the result to be finished")
        k.worker.kill()
        k.worker.wait()
        with open(os.path.join(k.work, "done", "t_tokenize-1", "out", "tokens"), "r+b") as f:
            f.write(b"damage")
        k.c.rules.clear()
        k.start()
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "io" and "changed on disk" in body["error"]["detail"], body


def killed_while_computing():
    with Case() as k:
        task, gate = k.slow()
        k.start()
        k.at_gate(gate)
        k.worker.kill()
        k.worker.wait()
        assert k.left_over() == ["t_slow-1"], k.left_over()
        k.start()
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "io" and "process ended" in body["error"]["detail"], body
        k.c.wait(lambda: k.left_over() == [], "the folder to be cleared")


def unknown_worker_registers_again():
    with Case() as k:
        k.c.poll_seconds = 0
        k.start()
        k.c.wait(lambda: k.c.leases, "the first poll")
        k.c.worker = "w_2"
        k.c.wait(lambda: len(k.c.registered) == 2, "the second registration")
        assert k.c.registered[0]["name"] == k.c.registered[1]["name"]
        body = k.ended(k.verify())
        assert body["worker"] == "w_2", body


def polls_are_spaced():
    with Case() as k:
        k.c.poll_seconds = 0
        k.start()
        k.c.wait(lambda: k.c.count("POST", "/v1/leases") >= 3, "three polls")
        at = [r["at"] for r in k.c.seen("POST", "/v1/leases")]
        assert at[2] - at[0] > 1.5, f"a coordinator that does not wait is asked every {at[1] - at[0]:.3f} s"


# --- the next task while the last one goes up ------------------------------------------------------------------------------------------


def uploads_beside_computing():
    with Case() as k:
        gate = Gate(k.c)
        k.c.rule("PUT", ".*", gate)
        first = k.tokenize("t_first")
        k.start()
        k.at_gate(gate)
        k.ended(k.verify("t_second"))
        assert first.state == "LEASED"
        gate.open()
        k.ended(first)


# --- draining ------------------------------------------------------------------------------------------------------------------------------


def drain_idle():
    with Case().start() as k:
        k.c.wait(lambda: k.c.leases, "the first poll")
        k.worker.kill(signal.SIGTERM)
        k.exits()


def drain_before_registration():
    with Case() as k:
        k.c.stop()
        k.start()
        wait_for(lambda: "does not answer" in k.worker.text(), "the worker to notice")
        k.worker.kill(signal.SIGTERM)
        k.exits()


def drain_gives_back():
    with Case() as k:
        task, gate = k.slow(chunks=20)
        k.start()
        k.at_gate(gate)
        k.worker.kill(signal.SIGTERM)
        body = k.ended(task, "RELEASED")
        assert body["reason"] == "drain" and body["epoch"] == 1, body
        k.exits()
        k.nothing_left()


def drain_finishes():
    with Case() as k:
        task, gate = k.slow(chunks=4)
        k.start()
        k.at_gate(gate)
        gate.let(3)
        k.c.wait(lambda: k.c.count("GET", ".*/model.safetensors") == 5, "three quarters of the work")
        polls = len(k.c.leases)
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        gate.open()
        k.ended(task)
        k.exits()
        assert len(k.c.leases) == polls, "no task is asked for while draining"


def second_signal():
    with Case() as k:
        task, gate = k.slow(chunks=4)
        k.start()
        k.at_gate(gate)
        gate.let(3)
        k.c.wait(lambda: k.c.count("GET", ".*/model.safetensors") == 5, "three quarters of the work")
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        assert task.state == "LEASED"
        k.worker.kill(signal.SIGTERM)
        k.ended(task, "RELEASED")
        k.exits()


def drain_uploads_first():
    with Case() as k:
        gate = Gate(k.c)
        k.c.rule("PUT", ".*", gate)
        task = k.tokenize()
        k.start()
        k.at_gate(gate)
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        gate.open()
        k.ended(task)
        k.exits()


def hurry_without_coordinator():
    with Case() as k:
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.cut(h))
        task = k.tokenize()
        k.start()
        k.c.wait(lambda: k.c.count("POST", "/v1/uploads") >= 1, "the result to be finished")
        k.c.stop()
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        k.worker.kill(signal.SIGTERM)
        k.exits()
        assert k.left_over() == ["t_tokenize-1"] and task.ended is None, k.left_over()


def drained_by_the_coordinator():
    with Case() as k:
        k.c.rule("POST", ".*/heartbeat", lambda h, r: Coordinator.answer(h, 200, {"cancel": False, "drain": True}))
        task = k.verify()
        k.start()
        k.ended(task)
        k.exits()
    with Case() as k:
        k.c.rule("POST", "/v1/leases", lambda h, r: Coordinator.answer(h, 204, headers={"Quarry-Drain": "true"}))
        k.start()
        k.exits()


def ends_with_its_parent():
    with Case() as k:
        argv = [WORKER, "--server", k.c.url, "--token-file", k.token_file, "--work", k.work, "--exit-with-parent"]
        script = "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
        parent = subprocess.Popen([sys.executable, "-c", script, *argv], stdout=subprocess.PIPE, text=True)
        pid = int(parent.stdout.readline())
        k.c.wait(lambda: k.c.leases, "the first poll")
        parent.kill()
        parent.wait()

        def gone():
            try:
                with open(f"/proc/{pid}/stat") as f:
                    return f.read().rsplit(")", 1)[1].split()[0] == "Z"
            except FileNotFoundError:
                return True
        wait_for(gone, "the worker to end with its parent")


# --- disks -------------------------------------------------------------------------------------------------------------------------------------


def disk_full():
    with Case() as k:
        k.env["QUARRY_FAIL_IO"] = "write:1"
        task = k.verify()
        k.start("--name", "fixed")
        body = k.ended(task, "FAILED")
        assert body["error"]["name"] == "no-space", body
        k.ended(k.verify("t_next"))
        k.nothing_left()


def disk_full_while_fetching():
    with Case() as k:
        k.env["QUARRY_FAIL_IO"] = "write:1"
        task = k.tokenize()
        k.start("--name", "fixed")
        k.ended(task)
        assert k.c.count("GET", "/v1/blobs/.*") == 2, "evicting gave room for a second try"


def without_memory(counts=range(1, 2000, 97)):
    """The N-th allocation fails once: a clear end, a failed task or a second try, never a crash."""
    outcomes = set()
    for n in counts:
        with Case(part_bytes=65536) as k:
            k.env["QUARRY_FAIL_ALLOC"] = str(n)
            task = k.tokenize()
            task.requeue = True
            k.start("--name", "fixed")
            wait_for(lambda: task.state not in ("READY", "LEASED") or not k.worker.alive(), f"an outcome of {n}")
            if not k.worker.alive():
                k.exits(1)
                assert "quarry-worker: " in k.worker.text() and "out of memory" in k.worker.text(), k.worker.text()
                outcomes.add("ended")
                continue
            if task.state == "FAILED":
                assert task.ended["error"]["name"] == "out-of-memory", (n, task.ended)
            outcomes.add(task.state)
            k.ended(k.verify("t_next"))
    assert len(outcomes) > 1, outcomes


def main():
    tap = Tap()
    for function in (
            command_line, wrong_token, work_folder_in_use, slice_verify, slice_tokenize, model_over_http, bad_task,
            failure_carries_the_log, nonsense_leases, download_resumes, download_resumes_after_kill, wrong_bytes,
            missing_blob, cache_is_checked_after_restart, cache_has_a_limit, upload_resumes, upload_begun_by_another,
            upload_goes_wrong, complete_is_repeated, blob_vanished, completion_refused, lost_while_computing,
            cancel_in_the_heartbeat, not_accepted, heartbeats_tell_progress, stopped_and_continued,
            server_away_at_start, server_away_while_computing, server_away_with_a_result, killed_with_a_result,
            killed_with_a_stale_result, killed_with_a_damaged_result, killed_while_computing,
            unknown_worker_registers_again, polls_are_spaced, uploads_beside_computing, drain_idle,
            drain_before_registration, drain_gives_back, drain_finishes, second_signal, drain_uploads_first,
            hurry_without_coordinator, drained_by_the_coordinator, ends_with_its_parent, disk_full,
            disk_full_while_fetching, without_memory):
        if len(sys.argv) > 1 and function.__name__ not in sys.argv[1:]:
            continue
        tap.case(function.__name__.replace("_", " "), function)
    tap.end()


if __name__ == "__main__":
    main()
