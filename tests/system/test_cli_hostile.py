#!/usr/bin/env python3
"""The client against a coordinator that lies, stumbles or attacks: nothing is written outside OUT_DIR, nothing
half-made is left, nothing reaches the terminal unescaped, and what can be repeated is."""
import hashlib
import http.server
import json
import os
import re
import sys
import tempfile
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import one_sentence, quarry, tree  # noqa: E402
from fleet import Tap  # noqa: E402

CONTENT = {"report.json": b'{"modules":[]}', "dense/config.json": b"{}", "dense/model.safetensors": bytes(range(256)) * 4000}


class Fake:
    """A coordinator of canned replies: handle(request) -> (status, headers, body) for "METHOD /path"."""

    def __init__(self, handle):
        self.seen = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.seen.append(f"{self.command} {self.path}")
                status, headers, body = handle(self)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                if headers.get("Connection") == "close":
                    self.close_connection = True

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *trace):
        self.server.shutdown()
        self.server.server_close()


def reply(value, status=200, **headers):
    return status, {"Content-Type": "application/json", **headers}, json.dumps(value).encode()


def problem(status, name, detail, retryable=False):
    return reply({"type": f"/problems/{name}", "title": name, "status": status, "detail": detail,
                  "retryable": retryable}, status)


def listing(content, **change):
    items = [{"path": p, "bytes": len(b), "sha256": hashlib.sha256(b).hexdigest()} for p, b in content.items()]
    for item in items:
        item.update(change.get(item["path"].replace("/", "_").replace(".", "_"), {}))
    return reply({"items": items})


def ranged(request, data):
    """As an honest server answers GET with Range."""
    found = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if not found:
        return 200, {}, data
    return 206, {"Content-Range": f"bytes {found[1]}-{len(data) - 1}/{len(data)}"}, data[int(found[1]):]


def serve_files(request, content=CONTENT):
    path = request.path.removeprefix("/v1/jobs/j_1/files")
    return listing(content) if not path else ranged(request, content[path[1:]])


def fetched(folder, handle, out="out"):
    with Fake(handle) as fake:
        ran = quarry("fetch", "j_1", "-o", os.path.join(folder, out), "--server", fake.url, seconds=60)
        return ran, fake


def check_content(folder):
    assert tree(folder) == sorted([*CONTENT, "dense"]), tree(folder)
    for path, data in CONTENT.items():
        with open(os.path.join(folder, path), "rb") as f:
            assert f.read() == data, path


# --- fetching -------------------------------------------------------------------------------------

def honest():
    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, serve_files)
        assert ran.status == 0, ran
        assert tree(folder) == sorted(["out", "out/dense", *(f"out/{p}" for p in CONTENT)]), tree(folder)
        check_content(os.path.join(folder, "out"))


def into_an_empty_folder():
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "out"))
        inode = os.stat(os.path.join(folder, "out")).st_ino
        ran, _ = fetched(folder, serve_files)
        assert ran.status == 0, ran
        assert os.stat(os.path.join(folder, "out")).st_ino == inode, "the folder itself was replaced"
        check_content(os.path.join(folder, "out"))


def evil_path(path):
    with tempfile.TemporaryDirectory() as folder:
        ran, fake = fetched(folder, lambda r: listing({path: b"evil"}), "a/out")
        one_sentence(ran, 1, "is not written below a folder")
        assert not any(p.endswith("evil") or "x" == os.path.basename(p) for p in tree(folder)), tree(folder)
        assert len(fake.seen) == 1, fake.seen
        assert not os.path.exists(os.path.join(folder, "a/out")), tree(folder)


def wrong_digest():
    bad = {"report_json": {"sha256": "0" * 64}}

    def handle(request):
        return listing(CONTENT, **bad) if request.path.endswith("/files") else serve_files(request)

    with tempfile.TemporaryDirectory() as folder:
        ran, fake = fetched(folder, handle)
        one_sentence(ran, 1, "report.json arrives with other bytes than its SHA-256 says")
        assert not os.path.exists(os.path.join(folder, "out"))
        assert sum("report.json" in s for s in fake.seen) == 2, fake.seen


def more_bytes_than_announced():
    def handle(request):
        return listing(CONTENT) if request.path.endswith("/files") else (200, {}, b"z" * (2 << 20))

    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, handle)
        one_sentence(ran, 1, "more bytes for", "than it announced")
        assert not os.path.exists(os.path.join(folder, "out"))


def impossible_size():
    def handle(request):
        return listing(CONTENT, report_json={"bytes": 1 << 49})

    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, handle)
        one_sentence(ran, 1, "no space", "left")
        assert not os.path.exists(os.path.join(folder, "out"))


def cut_and_continued():
    """The connection breaks in the middle of a file: the rest comes by Range, once."""
    broken = []

    def handle(request):
        if "model.safetensors" in request.path and not broken:
            broken.append(1)
            data = CONTENT["dense/model.safetensors"]
            return 200, {"Content-Length": str(len(data)), "Connection": "close"}, data[:300000]
        if "model.safetensors" in request.path:
            assert request.headers.get("Range") == "bytes=300000-", request.headers.get("Range")
        return serve_files(request)

    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, handle)
        assert ran.status == 0, ran
        check_content(os.path.join(folder, "out"))


def interrupted_and_repeated():
    """A fetch that failed is continued by the same command; complete files are not asked for again."""
    def broken(request):
        if "model.safetensors" in request.path:
            return problem(404, "not-found", "the file is gone")
        return serve_files(request)

    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, broken)
        one_sentence(ran, 1, "the file is gone")
        assert not os.path.exists(os.path.join(folder, "out"))
        ran, fake = fetched(folder, serve_files)
        assert ran.status == 0, ran
        check_content(os.path.join(folder, "out"))
        assert fake.seen == ["GET /v1/jobs/j_1/files", "GET /v1/jobs/j_1/files/dense/model.safetensors"], fake.seen


def no_range():
    def handle(request):
        if "model.safetensors" in request.path and "Range" in request.headers:
            return 200, {}, CONTENT["dense/model.safetensors"]
        if "model.safetensors" in request.path:
            data = CONTENT["dense/model.safetensors"]
            return 200, {"Content-Length": str(len(data)), "Connection": "close"}, data[:1000]
        return serve_files(request)

    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, handle)
        one_sentence(ran, 1, "does not continue downloads")


def nothing_to_fetch():
    with tempfile.TemporaryDirectory() as folder:
        ran, _ = fetched(folder, lambda r: reply({"items": []}))
        one_sentence(ran, 1, "job j_1 has no files")
        assert not os.path.exists(os.path.join(folder, "out"))


def every_io_fails_once(op):
    """The nth operation fails: one sentence, no OUT_DIR; the same command again completes it."""
    with Fake(serve_files) as fake:
        for n in range(1, 120):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "out")
                args = ["fetch", "j_1", "-o", out, "--server", fake.url]
                ran = quarry(*args, env={"QUARRY_FAIL_IO": f"{op}:{n}"})
                failed = ran.status != 0
                if failed:
                    one_sentence(ran, 1)
                    # a rename that is not known to be on disk is reported, and has happened
                    if op not in ("open", "fsync") or not os.path.exists(out):
                        assert not os.path.exists(out), (n, ran, tree(folder))
                        ran = quarry(*args)
                        assert ran.status == 0, (n, ran)
                check_content(out)
                if not failed:
                    assert n > 1, f"no {op} was made to fail"
                    return
    raise AssertionError(f"fetch still fails after 120 operations of kind {op}")


def every_allocation_fails_once(args, handle):
    with Fake(handle) as fake:
        for n in range(1, 300):
            ran = quarry(*args, "--server", fake.url, env={"QUARRY_FAIL_ALLOC": str(n)})
            assert ran.status in (0, 1), (n, ran)
            if ran.status == 1:
                one_sentence(ran, 1, "out of memory")
            elif n > 40:
                return
    raise AssertionError("still failing after 300 allocations")


# --- replies --------------------------------------------------------------------------------------

def against(handle, *args, status, parts):
    with Fake(handle) as fake:
        ran = quarry(*args, "--server", fake.url, seconds=60)
        if status:
            one_sentence(ran, status, *parts)
        else:
            assert ran.status == 0, ran
            for part in parts:
                assert part in ran.out, f"expected {part!r} in {ran}"
        return ran, fake


EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\r\n quarry: forged"


def no_escapes(ran):
    for text in (ran.out, ran.err):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\x80-\x9f\u202e]", text), f"unescaped: {text!r}"
        assert "\n quarry: forged" not in text, text


def hostile_names():
    job = {"id": "j_1", "name": EVIL, "state": "RUNNING", "kind": EVIL, "model_name": EVIL, "progress": 0.5,
           "created_ms": 0, "model": {"name": EVIL}, "warnings": [EVIL], "failure": {"detail": EVIL},
           "perplexity": [{"text": EVIL, "original": 2.0, "quantized": 3.0}],
           "layers": [{"layer": 0, "state": EVIL, "progress": 0, "modules": [{"name": EVIL, "relative_loss": 0.1}]}]}
    worker = {"name": EVIL, "state": EVIL, "backend": EVIL, "threads": 1,
              "tasks": [{"kind": EVIL, "note": EVIL, "progress": 0.1}]}

    def handle(request):
        if request.path.startswith("/v1/jobs/j_1"):
            return reply(job)
        return reply({"items": [worker if "workers" in request.path else job], "next": None})

    for args in (["jobs"], ["show", "j_1"], ["workers"], ["cancel", "j_1"]):
        ran, _ = against(handle, *args, status=0, parts=["\\x1b"] if args[0] != "cancel" else [])
        no_escapes(ran)


def hostile_problem():
    ran, _ = against(lambda r: problem(422, "refused", EVIL), "jobs", status=1, parts=["\\x1b"])
    no_escapes(ran)


def json_is_exact():
    job = {"id": "j_1", "state": "DONE", "extra": [1, {"a": None}], "name": "ü\x1b"}
    ran, _ = against(lambda r: reply(job), "show", "j_1", "--json", status=0, parts=[])
    assert json.loads(ran.out) == job, ran
    no_escapes(ran)


def not_json():
    against(lambda r: (200, {}, b"<html>"), "jobs", status=1, parts=["not JSON"])


def bare_failure():
    against(lambda r: (418, {}, b""), "jobs", status=1, parts=["status 418"])
    against(lambda r: (401, {}, b""), "jobs", status=1, parts=["does not accept the token"])


def redirect_is_not_followed():
    def handle(request):
        return 302, {"Location": "file:///etc/passwd"}, b""
    _, fake = against(handle, "jobs", status=1, parts=["status 302"])
    assert len(fake.seen) == 1, fake.seen


def repeated_when_asked():
    calls = []

    def handle(request):
        calls.append(1)
        return problem(503, "unavailable", "one moment", True) if len(calls) < 3 else reply({"items": [], "next": None})

    against(handle, "jobs", status=0, parts=["JOB"])
    assert len(calls) == 3, calls


def not_repeated_when_final():
    _, fake = against(lambda r: problem(404, "not-found", "no job j_1"), "show", "j_1", status=1, parts=["no job j_1"])
    assert len(fake.seen) == 1, fake.seen


def pages():
    def handle(request):
        page = int((re.findall(r"cursor=(\d+)", request.path) or ["0"])[0])
        items = [{"id": f"j_{page}_{i}", "state": "DONE"} for i in range(3)]
        return reply({"items": items, "next": str(page + 1) if page < 2 else None})
    ran, fake = against(handle, "jobs", "--json", status=0, parts=["j_0_0", "j_2_2"])
    assert len(json.loads(ran.out)) == 9 and len(fake.seen) == 3, (ran, fake.seen)


def endless_pages():
    """A cursor that never ends, with pages that are empty, does."""
    _, fake = against(lambda r: reply({"items": [], "next": "again"}), "jobs", status=0, parts=[])
    assert len(fake.seen) == 1, fake.seen


def odd_ids():
    """An id that would change the URL is not used."""
    def handle(request):
        if request.path == "/v1/models":
            return reply({"model": "../../v1/jobs"}, 201)
        return problem(404, "not-found", "no")
    _, fake = against(handle, "submit", "--server-path", "/m", status=1, parts=["'../../v1/jobs' is not the id of a model"])
    assert fake.seen == ["POST /v1/models"], fake.seen


def every_problem_is_printed():
    problems = ["first thing", "second thing", "third thing"]

    def handle(request):
        status, headers, body = problem(422, "refused", problems[0])
        return status, headers, json.dumps({**json.loads(body), "problems": problems}).encode()

    ran, _ = against(handle, "submit", "--server-path", "/m", status=1, parts=["first thing"])
    assert all(p in ran.err for p in problems) and ran.err.count("first thing") == 1, ran


def failed_job_is_told():
    job = {"id": "j_1", "state": "FAILED", "tasks": {"total": 1, "DONE": 0}, "failure": {
        "detail": "tensor x holds NaN", "attempts": [{"worker": "w1", "error": "corrupt", "detail": "tensor x holds NaN"}]}}
    ran, _ = against(lambda r: reply(job), "watch", "j_1", status=1, parts=["the job failed: tensor x holds NaN"])
    assert "attempt on w1" in ran.err, ran


def watch_waits_for_changes():
    """The job's ETag comes back as wait_for_change; a coordinator that is away for a moment is waited for."""
    calls = []

    def handle(request):
        calls.append(request.path)
        if len(calls) == 1:
            return reply({"id": "j_1", "state": "RUNNING", "progress": 0.5}, ETag='"tag-1"')
        return reply({"id": "j_1", "state": "DONE"})

    against(handle, "watch", "j_1", status=0, parts=["job j_1 is DONE"])
    assert calls == ["/v1/jobs/j_1", "/v1/jobs/j_1?wait_for_change=tag-1"], calls


def resumed_upload():
    """Only the parts that the server lacks are sent, and a model of a folder is its plain files."""
    data = b"0123456789" * 3
    puts = {}

    def handle(request):
        if request.path == "/v1/uploads":
            wanted = json.loads(request.body)
            if wanted["bytes"] != len(data):
                return reply({"exists": True})
            return reply({"upload": "u_" + wanted["sha256"], "part_bytes": 10, "parts_done": [1]}, 201)
        if "/parts/" in request.path:
            puts[request.path.rsplit("/", 1)[1]] = request.body
            return 204, {}, b""
        if request.path.endswith("/complete"):
            return reply({}, 201)
        if request.path == "/v1/models":
            puts["files"] = [f["name"] for f in json.loads(request.body)["files"]]
            return reply({"model": "m_1"}, 201)
        return reply({"job": "j_1", "state": "RUNNING"}, 201)

    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("model.safetensors", data), ("config.json", b"{}"), ("pytorch_model.bin", b"no"),
                           (".hidden.json", b"no")):
            with open(os.path.join(folder, name), "wb") as f:
                f.write(text)
        os.mkdir(os.path.join(folder, "sub.json"))
        against(handle, "submit", folder, status=0, parts=["job j_1"])
    assert puts.pop("files") == ["config.json", "model.safetensors"]
    assert puts == {"0": data[:10], "2": data[20:]}, puts


def token_is_sent_and_not_shown():
    with tempfile.TemporaryDirectory() as folder:
        token = os.path.join(folder, "token")
        with open(token, "w") as f:
            f.write("  secret-token-1 \n")
        seen = []

        def handle(request):
            seen.append(request.headers.get("Authorization"))
            return problem(401, "unauthorized", "the token is not known")

        ran, _ = against(handle, "jobs", "--token-file", token, status=1, parts=["the token is not known"])
        assert seen == ["Bearer secret-token-1"], seen
        assert "secret" not in ran.out + ran.err, ran


tap = Tap()
tap.case("an honest result arrives whole", honest)
tap.case("an existing empty folder is filled, not replaced", into_an_empty_folder)
for evil in ("/etc/quarry-evil", "../evil", "a/../../evil", "./evil", "a//evil", ".evil", "a/b/c/d/evil", "a\nevil", ""):
    tap.case(f"path {evil!r} is refused", evil_path, evil)
for operation in ("open", "write", "fsync", "rename"):
    tap.case(f"each {operation} of a fetch fails once", every_io_fails_once, operation)
JOB = {"id": "j_1", "state": "DONE", "layers": [{"layer": 0, "state": "DONE", "modules": [{"name": "a.q", "relative_loss": 0.1}]}]}
tap.case("each allocation of a list fails once", every_allocation_fails_once, ["jobs"], lambda r: reply({"items": [JOB]}))
tap.case("each allocation of a grid fails once", every_allocation_fails_once, ["show", "j_1"], lambda r: reply(JOB))
for name, case in (("a wrong digest is found", wrong_digest), ("too many bytes are refused", more_bytes_than_announced),
                   ("too little space is said before the download", impossible_size),
                   ("a cut download is continued", cut_and_continued),
                   ("a failed fetch is continued by the same command", interrupted_and_repeated),
                   ("a server without Range is refused", no_range), ("a job without files", nothing_to_fetch),
                   ("names cannot reach the terminal", hostile_names), ("a problem's text cannot either", hostile_problem),
                   ("--json is the reply itself", json_is_exact), ("a reply that is not JSON", not_json),
                   ("a failure without explanation", bare_failure), ("redirects are not followed", redirect_is_not_followed),
                   ("retryable problems are repeated", repeated_when_asked), ("final ones are not", not_repeated_when_final),
                   ("lists are read page after page", pages), ("endless empty pages end", endless_pages),
                   ("odd ids never reach a URL", odd_ids), ("every problem is printed once", every_problem_is_printed),
                   ("a failed job is told with its attempts", failed_job_is_told),
                   ("watching waits for changes", watch_waits_for_changes),
                   ("an upload sends what is missing", resumed_upload),
                   ("the token is sent and never shown", token_is_sent_and_not_shown)):
    tap.case(name, case)
tap.end()
