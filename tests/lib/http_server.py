"""http_server.py - one quarry-server for tests of its HTTP side, a raw client, and a worker that fakes its results.

Standard library only. The server listens on a port of its own choice and tells it by --ready-file.
"""
import atexit
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback

from fleet import BUILD, ROOT, wait_for

ROLES = ("viewer", "submitter", "worker", "releaser", "admin")
TOKENS = {role: f"{role}-token-{'0' * 20}" for role in ROLES}
PART = 8 << 20
MODEL = os.path.join(ROOT, "examples", "fable-tiny")


def run_tests(names):
    """Runs each test_* function of a module's globals() (or those named on the command line) and prints TAP."""
    failed = 0
    tests = [(n, f) for n, f in names.items() if n.startswith("test_") and (len(sys.argv) < 2 or n in sys.argv[1:])]
    for number, (name, test) in enumerate(tests, 1):
        started = time.monotonic()
        try:
            test()
            print(f"ok {number} - {name[5:].replace('_', ' ')}", flush=True)
        except Exception:
            failed += 1
            print(f"not ok {number} - {name[5:].replace('_', ' ')}", flush=True)
            for line in traceback.format_exc().splitlines():
                print("# " + line, flush=True)
        if time.monotonic() - started > 5:
            print(f"# {name} took {time.monotonic() - started:.1f} s", flush=True)
    print(f"1..{len(tests)}")
    sys.exit(1 if failed else 0)


def equal(got, want, what=""):
    assert got == want, f"{what}: got {got!r}, expected {want!r}"


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {dict(self.headers)} {self.body[:500]!r}"


class Server:
    """with Server(folder) as s: ... - started when the block begins, stopped (and its exit status checked) when it ends."""

    def __init__(self, folder, *options, tokens=True):
        self.folder, self.options = os.path.abspath(folder), options
        os.makedirs(self.folder, exist_ok=True)
        self.data = os.path.join(self.folder, "data")
        self.ready = os.path.join(self.folder, "ready")
        self.log = os.path.join(self.folder, "log")
        self.out = os.path.join(self.folder, "out")
        self.process = None
        atexit.register(self.end)
        if tokens:
            path = os.path.join(self.folder, "tokens")
            with open(path, "w") as f:
                f.writelines(f"{role}:{TOKENS[role]}\n" for role in ROLES)
            self.options += ("--tokens", path)

    def start(self):
        if os.path.exists(self.ready):
            os.remove(self.ready)
        with open(self.log, "ab") as log, open(self.out, "ab") as out:
            self.process = subprocess.Popen(
                [os.path.join(BUILD, "quarry-server"), "--data", self.data, "--listen", "127.0.0.1:0", "--ready-file",
                 self.ready, "--model-root", os.path.join(ROOT, "examples"), *self.options],
                stdin=subprocess.DEVNULL, stdout=out, stderr=log)
        wait_for(lambda: os.path.exists(self.ready) or self.process.poll() is not None, "the ready file", 60)
        assert self.process.poll() is None, f"the server ended: {self.text()}"
        with open(self.ready) as f:
            self.url = f.read().strip()
        self.port = int(self.url.rsplit(":", 1)[1])

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()

    def kill(self):
        self.process.kill()
        self.process.wait(30)

    def end(self):
        """Whatever a failed test left running."""
        if self.process and self.process.poll() is None:
            self.kill()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            equal(self.process.wait(60), 0, f"exit status of the server; log: {self.text()[-3000:]}")

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc):
        if exc[0]:
            self.kill()
            print("# " + self.text()[-3000:].replace("\n", "\n# "))
        else:
            self.stop()

    # --- requests ---

    def call(self, method, path, role=None, body=None, headers=None, token=None, connection=None, timeout=60):
        """One request; body may be bytes, or something to send as JSON."""
        headers = dict(headers or {})
        if role:
            token = TOKENS[role]
        if token:
            headers.setdefault("Authorization", f"Bearer {token}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        c = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            c.request(method, path, body=body, headers=headers)
            r = c.getresponse()
            return Reply(r.status, r.headers, r.read())
        finally:
            if not connection:
                c.close()

    def good(self, method, path, role, body=None, headers=None, status=None):
        r = self.call(method, path, role, body, headers)
        assert r.status < 400 and status in (None, r.status), f"{method} {path}: {r}"
        return r.json() if r.body else None

    def problem(self, status, method, path, role=None, body=None, headers=None, token=None):
        """The request is refused with this status and a well-formed problem, which is returned."""
        r = self.call(method, path, role, body, headers, token)
        equal(r.status, status, f"{method} {path}: {r}")
        check_problem(r)
        return r.json()

    def raw(self, data, timeout=60):
        """Sends bytes; everything that comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout) as s:
            try:
                s.sendall(data)
                s.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the server closed first; what it said is still to be read
            return read_all(s)

    # --- blobs ---

    def upload(self, data, role="submitter"):
        sha256 = hashlib.sha256(data).hexdigest()
        begun = self.good("POST", "/v1/uploads", role, {"sha256": sha256, "bytes": len(data)})
        if not begun["exists"]:
            for part in range((len(data) + PART - 1) // PART):
                if part not in begun["parts_done"]:
                    self.good("PUT", f"/v1/uploads/{begun['upload']}/parts/{part}", role,
                              data[part * PART:(part + 1) * PART], status=204)
            self.good("POST", f"/v1/uploads/{begun['upload']}/complete", role, status=201)
        return sha256

    def metric(self, name):
        for line in self.call("GET", "/metrics", "viewer").body.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])
        raise AssertionError(f"no metric {name}")


def check_problem(r):
    equal(r.headers["Content-Type"], "application/problem+json")
    p = r.json()
    equal(p["status"], r.status)
    assert p["type"].startswith("/problems/") and p["title"] and p["detail"] and isinstance(p["retryable"], bool), p
    assert "\n" not in p["detail"], p


def read_all(s):
    data = b""
    while True:
        try:
            more = s.recv(65536)
        except ConnectionResetError:
            return data
        if not more:
            return data
        data += more


# --- a worker without mathematics: it hands in results of the right shape ---------------------------


class FakeWorker:
    def __init__(self, server, name="fake"):
        self.s, self.name, self.done = server, name, []
        self.id = server.good("POST", "/v1/workers", "worker",
                              {"name": name, "backend": "ref", "identity": "fake", "threads": 1, "memory_bytes": 1 << 34,
                               "version": "0.1.0", "sees_paths": False})["worker"]

    def lease(self, wait=None):
        headers = {"Prefer": f"wait={wait}"} if wait is not None else {}
        r = self.s.call("POST", "/v1/leases", "worker", {"worker": self.id, "have": []}, headers)
        assert r.status in (200, 204), r
        return r.json() if r.status == 200 else None

    def holder(self, lease, **more):
        return {"worker": self.id, "epoch": lease["epoch"], **more}

    def heartbeat(self, lease, progress=0.5, note="working"):
        return self.s.good("POST", f"/v1/leases/{lease['task']}/heartbeat", "worker",
                           self.holder(lease, progress=progress, note=note))

    def result(self, lease):
        """(outputs, result) of the right shape for the kind."""
        spec, kind = lease["spec"], lease["kind"]
        names = {"tokenize": "tokens", "embed": "hidden", "capture": "hidden", "quantize": "layer", "assemble": "file"}
        outputs = []
        made = [names[kind]] if kind in names else []
        given = [i["name"] for i in lease["inputs"]]
        if kind == "evaluate" and spec.get("keep_hidden"):
            made = ["hidden"]
        elif kind == "distill":
            made = [name for name in given if name.startswith("layer-")]
        for name in made:
            data = f"{lease['task']} {kind} {name} {lease['epoch']}".encode()
            outputs.append({"name": name, "sha256": self.s.upload(data, "worker"), "bytes": len(data)})
        result = {}
        if kind == "verify":
            result = {"sha256": hashlib.sha256(spec["file"].encode()).hexdigest(), "bytes": 1, "tensors": 1}
        elif kind == "tokenize":
            result = {"sequences": 128, "tokens": 128 * 1024, "text_tokens": 200000}
        elif kind == "evaluate":
            result = {"nll": 3.0 * 1023 if spec["model"] == "original" else 3.2 * 1023, "predictions": 1023, "windows": 1,
                      "first_window": 0}
            if "reference" in given:
                result.update(kl=0.2 * 1023, top1=900)
        elif kind == "distill":
            result = {"before": {"kl": 0.5, "hidden": 0.25}, "after": {"kl": 0.375, "hidden": 0.125}, "kept": True,
                      "steps": 12, "resumed_at": 0, "curve": [[6, 0.5, 0.25], [12, 0.4, 0.2]]}
        elif kind == "quantize":
            result = {"tokens": 128 * 1024, "modules": [
                {"name": m["name"], "skip": True} if m.get("skip") else
                {"name": m["name"], "rows": 8, "cols": 64, "bits": m.get("bits", 2), "group_size": 64, "init_objective": 2.0,
                 "loss_nearest": 2.5, "loss_rounded": 0.8 * 10 ** (i - 4), "refine_rounds": 2, "loss": 0.4 * 10 ** (i - 4), "energy": 100.0, "damp": 0.01, "damp_retries": 0,
                 "bits_per_weight": 3.0} for i, m in enumerate(spec["modules"])]}
            if spec.get("distill"):
                result["distill"] = {"before": 0.25, "after": 0.125, "kept": True, "steps": 2, "curve": [[1, 0.25], [2, 0.2]]}
        elif kind == "assemble":
            result = {"bytes": outputs[0]["bytes"], "rounding": 0.003}
        return outputs, result

    def complete(self, lease):
        outputs, result = self.result(lease)
        body = self.holder(lease, outputs=outputs, result=result,
                           stats={"wall_ms": 5, "cpu_ms": 4, "peak_rss_bytes": 1 << 20, "backend": "ref", "identity": "fake"})
        self.s.good("POST", f"/v1/leases/{lease['task']}/complete", "worker", body)
        self.done.append(lease["kind"])
        return body

    def step(self, wait=None):
        """Does one task; None when there is none."""
        lease = self.lease(wait)
        if lease:
            self.heartbeat(lease)
            self.complete(lease)
        return lease


RECIPE = {"bits": 2, "group_size": 64, "samples": 8, "seq_len": 128, "eval_windows": 2, "eval": ["builtin"],
          "format": ["dense"], "effort": "fast"}


def add_model(server):
    return server.good("POST", "/v1/models", "submitter", {"name": "fable-tiny", "path": MODEL})["model"]


def submit(server, name="a job", **recipe):
    return server.good("POST", "/v1/jobs", "submitter",
                       {"name": name, "model": add_model(server), "recipe": {**RECIPE, **recipe}}, status=201)["job"]
