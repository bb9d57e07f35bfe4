"""fleet.py - a coordinator and workers as real processes, for system tests. Standard library only.

Every wait is on a condition with a deadline; nothing sleeps for readiness. Processes die with the test.
"""
import contextlib
import hashlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.parse

ROOT = os.environ.get("QUARRY_ROOT") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get("QUARRY_BUILD") or os.path.join(ROOT, "build")
SHARED = os.path.join(ROOT, "..", "shared")
ROLES = ("viewer", "submitter", "worker", "releaser", "admin")


def wait_for(condition, what, seconds=60.0, step=0.01):
    """The first true value of condition(); AssertionError naming `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:.0f} s for {what}")
        time.sleep(step)


def free_port():
    """Below the ports that the system gives to connections: a server that goes away finds it free when it comes back."""
    while True:
        with socket.socket() as s, contextlib.suppress(OSError):
            port = random.randrange(10240, 32768)
            s.bind(("127.0.0.1", port))
            return port


def other_file_system(folder):
    """A folder to write to on another file system than `folder`'s, or None where this machine has none."""
    for other in ("/dev/shm", "/tmp", "/var/tmp", BUILD):
        if os.access(other, os.W_OK) and os.stat(other).st_dev != os.stat(folder).st_dev:
            return other
    return None


class Process:
    def __init__(self, argv, log):
        self.argv, self.log, self.process = argv, log, None

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out)

    def kill(self, signum=signal.SIGKILL):
        self.process.send_signal(signum)

    def wait(self, seconds=60):
        return self.process.wait(seconds)

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        if self.alive():
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(15)

    def text(self):
        with open(self.log, errors="replace") as f:
            return f.read()


class Fleet:
    """with Fleet(folder) as fleet: ... - a server on a fixed loopback port, and any workers."""

    def __init__(self, folder, options=(), model_roots=None):
        self.folder, self.port = folder, free_port()
        os.makedirs(folder, exist_ok=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens = {role: f"test-{role}-{'x' * 24}" for role in ROLES}
        self.tokens_file = os.path.join(folder, "tokens")
        with open(self.tokens_file, "w") as f:
            f.writelines(f"{role}:{token}\n" for role, token in self.tokens.items())
        os.chmod(self.tokens_file, 0o600)
        self.worker_token = os.path.join(folder, "worker.token")
        with open(self.worker_token, "w") as f:
            f.write(self.tokens["worker"] + "\n")
        self.ready = os.path.join(folder, "ready")
        roots = model_roots or [ROOT, SHARED, folder]
        argv = [os.path.join(BUILD, "quarry-server"), "--data", os.path.join(folder, "data"),
                "--listen", f"127.0.0.1:{self.port}", "--tokens", self.tokens_file,
                "--ready-file", self.ready, "--exit-with-parent", *options]
        for root in roots:
            if os.path.isdir(root):
                argv += ["--model-root", root]
        os.makedirs(os.path.join(folder, "data"), exist_ok=True)
        self.server = Process(argv, os.path.join(folder, "server.log"))
        self.workers = []

    def __enter__(self):
        self.start_server()
        return self

    def __exit__(self, kind, value, trace):
        for worker in self.workers:
            worker.stop()
        self.server.stop()
        if kind is not None:
            for process in [self.server, *self.workers]:
                sys.stderr.write(f"--- {process.log}\n{process.text()[-4000:]}\n")

    def start_server(self):
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.ready)
        self.server.start()
        wait_for(lambda: os.path.exists(self.ready) or not self.server.alive(), "the server to listen")
        assert self.server.alive(), self.server.text()

    def add_worker(self, name, threads=1, backend="cpu", start=True):
        argv = [os.path.join(BUILD, "quarry-worker"), "--server", self.url, "--token-file", self.worker_token,
                "--work", os.path.join(self.folder, name), "--name", name, "--threads", str(threads),
                "--backend", backend, "--exit-with-parent"]
        worker = Process(argv, os.path.join(self.folder, name + ".log"))
        self.workers.append(worker)
        if start:
            worker.start()
        return worker

    def request(self, method, path, body=None, role="admin", headers=None, raw=False):
        """(status, parsed JSON or bytes, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=90)
        send = {"Authorization": "Bearer " + self.tokens[role], **(headers or {})}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            send["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body, send)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if not raw and data and "json" in response.headers.get("Content-Type", ""):
            data = json.loads(data)
        return response.status, data, response.headers

    def call(self, method, path, body=None, **kw):
        status, data, _ = self.request(method, path, body, **kw)
        assert 200 <= status < 300, f"{method} {path}: {status} {data}"
        return data

    def upload(self, data):
        digest = hashlib.sha256(data).hexdigest()
        begun = self.call("POST", "/v1/uploads", {"sha256": digest, "bytes": len(data)})
        if begun.get("exists"):
            return digest
        size = begun["part_bytes"]
        for part in range((len(data) + size - 1) // size):
            if part not in begun["parts_done"]:
                self.call("PUT", f"/v1/uploads/{begun['upload']}/parts/{part}", data[part * size:(part + 1) * size])
        self.call("POST", f"/v1/uploads/{begun['upload']}/complete", {})
        return digest

    def add_dataset(self, path):
        with open(path, "rb") as f:
            digest = self.upload(f.read())
        return self.call("POST", "/v1/datasets", {"name": os.path.basename(path), "sha256": digest})["dataset"]

    def add_model(self, path):
        return self.call("POST", "/v1/models", {"name": os.path.basename(path), "path": os.path.realpath(path)})["model"]

    def submit(self, model, recipe, name="test"):
        return self.call("POST", "/v1/jobs", {"name": name, "model": model, "recipe": recipe})["job"]

    def job(self, job):
        return self.call("GET", f"/v1/jobs/{job}")

    def tasks(self, job):
        items, cursor = [], ""
        while True:
            page = self.call("GET", f"/v1/jobs/{job}/tasks?limit=500" + (f"&cursor={cursor}" if cursor else ""))
            items += page["items"]
            cursor = urllib.parse.quote(page.get("next") or "")
            if not cursor:
                return items

    def wait_job(self, job, state="DONE", seconds=240):
        def ended():
            seen = self.job(job)
            return seen if seen["state"] in ("DONE", "FAILED", "CANCELLED") else None
        seen = wait_for(ended, f"job {job} to end", seconds, 0.05)
        assert seen["state"] == state, f"job is {seen['state']}, not {state}: {json.dumps(seen.get('failure'))}"
        return seen

    def results(self, job):
        """path -> digest of every result file; report.json without what may vary between runs."""
        files = {f["path"]: f["sha256"] for f in self.call("GET", f"/v1/jobs/{job}/files")["items"]}
        report = self.call("GET", f"/v1/jobs/{job}/report")
        report.pop("run")
        files["report.json"] = hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()
        return files


class Tap:
    """Prints TAP lines; each case is a function that raises on failure."""

    def __init__(self):
        self.count = self.failed = 0

    def case(self, name, function, *args):
        self.count += 1
        try:
            function(*args)
        except Exception as problem:  # a failed case is reported, the others still run
            self.failed += 1
            print(f"not ok {self.count} - {name}")
            print("\n".join("# " + line for line in f"{type(problem).__name__}: {problem}".splitlines()))
            import traceback
            traceback.print_exc()
        else:
            print(f"ok {self.count} - {name}")
        sys.stdout.flush()

    def skip(self, name, why):
        self.count += 1
        print(f"ok {self.count} - {name} # SKIP {why}", flush=True)

    def end(self):
        print(f"1..{self.count}")
        sys.exit(1 if self.failed else 0)
