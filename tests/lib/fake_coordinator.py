"""fake_coordinator.py - a scripted coordinator for tests of the worker: hands out the leases it is given, keeps what
comes back, and misbehaves where a test asks for it. Standard library only.

A test adds a rule (method, pattern of the path) with a function; it is called before the honest handler and answers
itself (returning True) or lets the request pass (False). Every request is recorded; waits are on conditions.
"""
import hashlib
import http.server
import json
import os
import re
import socket
import threading
import time

from fleet import free_port


class Task:
    """One task as the fake coordinator sees it."""

    def __init__(self, name, kind, spec, inputs=(), model=None, lease_seconds=60, epoch=1):
        self.name, self.epoch, self.lease_seconds = name, epoch, lease_seconds
        self.lease = {"task": name, "epoch": epoch, "job": "j_test", "kind": kind, "lease_seconds": lease_seconds,
                      "accept_seconds": 10, "spec": spec, "inputs": list(inputs), "model": model}
        self.state = "READY"
        self.beats = []         # bodies of heartbeats
        self.checkpoints = []   # bodies of checkpoints
        self.ended = None       # body of complete, fail or release
        self.requeue = False    # hand it out again when the worker asks for work without having accepted it


class Coordinator:
    def __init__(self, part_bytes=8 << 20, token="secret-token"):
        self.part_bytes, self.token = part_bytes, token
        self.changed = threading.Condition()
        self.requests = []      # dicts: method, path, headers, body, at
        self.tasks = {}
        self.ready = []
        self.blobs, self.uploads = {}, {}
        self.place_folder = None    # where files may be placed instead of sent
        self.models = {}        # id -> name -> bytes
        self.rules = []
        self.worker = "w_1"
        self.registered = []
        self.leases = []        # bodies of lease requests
        self.poll_seconds = 25
        self.given_up = lambda: None    # a test's reason to wait no longer, or None
        self.server = None
        self.port = free_port()

    # --- running ---

    def start(self):
        coordinator = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *args):
                pass

            def do_GET(self):
                coordinator.handle(self)

            do_POST = do_PUT = do_HEAD = do_GET

        class Server(http.server.ThreadingHTTPServer):
            allow_reuse_address = True
            daemon_threads = True
            request_queue_size = 64

            def __init__(self, *args):
                self.sockets = set()
                super().__init__(*args)

            def process_request(self, request, address):
                self.sockets.add(request)
                super().process_request(request, address)

            def shutdown_request(self, request):
                self.sockets.discard(request)
                super().shutdown_request(request)

            def handle_error(self, request, address):
                pass    # a worker that was killed, or a connection that a rule cut

        self.server = Server(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self):
        """Goes away, connections included; start() comes back on the same port."""
        server, self.server = self.server, None
        if not server:
            return
        server.shutdown()
        server.server_close()
        for s in list(server.sockets):
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self.changed:
            self.changed.notify_all()

    # --- scripting ---

    def rule(self, method, pattern, function, times=None):
        """function(handler, request) -> True when it answered. `times`: how often it applies."""
        with self.changed:
            self.rules.append([method, re.compile(pattern + r"$"), function, times])

    def blob(self, data):
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def give(self, task):
        with self.changed:
            self.tasks[task.name] = task
            self.ready.append(task)
            self.changed.notify_all()
        return task

    def wait(self, condition, what, seconds=60):
        """The first true value of condition(), asked whenever something happened."""
        deadline = time.monotonic() + seconds
        with self.changed:
            while True:
                value = condition()
                if value:
                    return value
                left = deadline - time.monotonic()
                why = f"waited {seconds} s" if left <= 0 else self.given_up()
                if why:
                    seen = "\n".join(f"{r['method']} {r['path']} -> {r.get('status')}" for r in self.requests[-40:])
                    raise AssertionError(f"{why} for {what}; requests so far:\n{seen}")
                self.changed.wait(min(left, 1))

    def count(self, method, pattern):
        return len(self.seen(method, pattern))

    def seen(self, method, pattern):
        wanted = re.compile(pattern + r"$")
        with self.changed:
            return [r for r in self.requests if r["method"] == method and wanted.match(r["path"])]

    # --- answering ---

    @staticmethod
    def answer(handler, status, body=None, headers=None):
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in (headers or {}).items():
            handler.send_header(name, value)
        if status != 204:
            handler.send_header("Content-Type", "application/octet-stream" if isinstance(body, bytes)
                                else "application/json")
            handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        return True

    @classmethod
    def problem(cls, handler, status, name, detail="scripted"):
        return cls.answer(handler, status, {"type": f"/problems/{name}", "title": name, "status": status,
                                            "detail": detail, "retryable": status >= 500})

    @staticmethod
    def cut(handler):
        """Ends the connection without an answer."""
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    def send_bytes(self, handler, data, cut_after=None):
        """A file with Range; cut_after = bytes of this body after which the connection breaks."""
        start, end = 0, len(data)
        asked = re.match(r"bytes=(\d+)-(\d*)$", handler.headers.get("Range", ""))
        if asked:
            start = int(asked.group(1))
            end = min(end, int(asked.group(2)) + 1) if asked.group(2) else end
            if start >= len(data):
                return self.answer(handler, 416, {})
        handler.send_response(206 if asked else 200)
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        handler.send_header("Content-Length", str(end - start))
        handler.end_headers()
        body = data[start:end]
        handler.wfile.write(body if cut_after is None else body[:cut_after])
        handler.wfile.flush()
        if cut_after is not None:
            self.cut(handler)
        return True

    def handle(self, handler):
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        path = handler.path.split("?")[0]
        request = {"method": handler.command, "path": path, "headers": dict(handler.headers), "raw": body,
                   "at": time.monotonic()}
        if "json" in handler.headers.get("Content-Type", ""):
            request["body"] = json.loads(body)

        def remember(status, *rest):
            request["status"] = status
            type(handler).send_response(handler, status, *rest)
        handler.send_response = remember    # of this request only: connections are kept
        chosen = None
        with self.changed:
            self.requests.append(request)
            for rule in self.rules:
                method, pattern, function, times = rule
                if method == handler.command and pattern.match(path) and times != 0:
                    if times is not None:
                        rule[3] -= 1
                    chosen = function
                    break
            self.changed.notify_all()
        try:
            if chosen and chosen(handler, request):
                return
            if handler.headers.get("Authorization") != f"Bearer {self.token}":
                self.problem(handler, 401, "unauthorized", "the token is not known")
                return
            self.route(handler, request)
        finally:
            with self.changed:
                self.changed.notify_all()

    def route(self, handler, request):
        path, method, body = request["path"], request["method"], request.get("body")
        for wanted, pattern, function in (
                ("POST", r"/v1/workers$", self.register),
                ("POST", r"/v1/leases$", self.lease),
                ("POST", r"/v1/leases/([\w-]+)/(heartbeat|checkpoint|complete|fail|release)$", self.about_task),
                ("GET", r"/v1/blobs/([0-9a-f]{64})$", self.get_blob),
                ("GET", r"/v1/models/(m_\w+)/files/([\w.-]+)$", self.get_model_file),
                ("POST", r"/v1/uploads$", self.begin_upload),
                ("PUT", r"/v1/uploads/u_([0-9a-f]{64})/parts/(\d+)$", self.put_part),
                ("POST", r"/v1/uploads/u_([0-9a-f]{64})/complete$", self.complete_upload)):
            found = re.match(pattern, path)
            if method == wanted and found:
                return function(handler, body if body is not None else request["raw"], *found.groups())
        return self.problem(handler, 404, "not-found", f"no route {method} {path}")

    def register(self, handler, body):
        self.registered.append(body)
        return self.answer(handler, 201, {"worker": self.worker})

    def lease(self, handler, body):
        server = self.server
        with self.changed:
            if body["worker"] != self.worker:
                return self.problem(handler, 404, "not-found", "unknown worker")
            self.leases.append(body)
            for task in self.tasks.values():
                if task.requeue and task.state == "LEASED" and not task.beats:
                    task.state = "READY"
                    self.ready.append(task)
            self.changed.notify_all()
            deadline = time.monotonic() + self.poll_seconds
            while not self.ready and time.monotonic() < deadline and self.server is server:
                self.changed.wait(0.5)
                if self.hung_up(handler):
                    break
            if self.hung_up(handler):   # also when the request of a worker that is gone is handled late
                handler.close_connection = True
                return True
            task = self.ready.pop(0) if self.ready and self.server is server else None
            if task:
                task.state = "LEASED"
        if not task:
            return self.answer(handler, 204)
        return self.answer(handler, 200, task.lease)

    @staticmethod
    def hung_up(handler):
        try:
            return handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def about_task(self, handler, body, name, verb):
        with self.changed:
            task = self.tasks.get(name)
            if not task:
                return self.problem(handler, 404, "not-found", "no such task")
            if task.state == "DONE" and verb == "complete" and task.ended == body:
                return self.answer(handler, 200, {})
            if task.state != "LEASED" or body["epoch"] != task.epoch or body["worker"] != self.worker:
                return self.problem(handler, 409, "conflict", f"task {name} is {task.state}")
            if verb == "heartbeat":
                task.beats.append(body)
                return self.answer(handler, 200, {"cancel": False, "drain": False})
            if verb == "checkpoint":
                if body["sha256"] not in self.blobs:
                    return self.problem(handler, 422, "corrupt", "the checkpoint is not stored")
                task.checkpoints.append(body)
                return self.answer(handler, 200, {})
            if verb == "complete":
                for output in body["outputs"]:
                    if output["sha256"] not in self.blobs:
                        return self.problem(handler, 422, "corrupt", f"output {output['name']} is not stored")
            task.ended = body
            task.state = {"complete": "DONE", "fail": "FAILED", "release": "RELEASED"}[verb]
        return self.answer(handler, 200, {})

    def get_blob(self, handler, body, digest):
        if digest not in self.blobs:
            return self.problem(handler, 404, "not-found", "no such blob")
        return self.send_bytes(handler, self.blobs[digest])

    def get_model_file(self, handler, body, model, name):
        data = self.models.get(model, {}).get(name)
        if data is None:
            return self.problem(handler, 404, "not-found", "no such file")
        return self.send_bytes(handler, data)

    def begin_upload(self, handler, body):
        digest, size = body["sha256"], body["bytes"]
        with self.changed:
            if digest in self.blobs:
                return self.answer(handler, 200, {"exists": True})
            up = self.uploads.setdefault(digest, {"bytes": size, "parts": {}})
            more = {"place": self.place_of(digest)} if body.get("place") and self.place_folder else {}
            return self.answer(handler, 201, {"upload": "u_" + digest, "part_bytes": self.part_bytes,
                                              "parts_done": sorted(up["parts"]), **more})

    def place_of(self, digest):
        return os.path.join(self.place_folder, digest + ".placed")

    def take_placed(self, digest):
        """The placed file under the name of the blob, and its bytes."""
        stored = os.path.join(self.place_folder, digest)
        os.rename(self.place_of(digest), stored)
        with open(stored, "rb") as f:
            return f.read()

    def put_part(self, handler, body, digest, part):
        with self.changed:
            if digest not in self.uploads:
                return self.problem(handler, 404, "not-found", "no such upload")
            self.uploads[digest]["parts"][int(part)] = body
        return self.answer(handler, 204)

    def complete_upload(self, handler, body, digest):
        with self.changed:
            if digest in self.blobs:    # repeated
                return self.answer(handler, 201, {"sha256": digest, "bytes": len(self.blobs[digest])})
            up = self.uploads.pop(digest, None)
            if not up:
                return self.problem(handler, 404, "not-found", "no such upload")
            placed = isinstance(body, dict) and body.get("placed")
            data = self.take_placed(digest) if placed else b"".join(up["parts"][i] for i in sorted(up["parts"]))
            if hashlib.sha256(data).hexdigest() != digest or len(data) != up["bytes"]:
                return self.problem(handler, 422, "corrupt", "the digest differs")
            self.blobs[digest] = data
        return self.answer(handler, 201, {"sha256": digest, "bytes": len(data)})
