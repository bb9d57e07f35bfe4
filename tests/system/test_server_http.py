#!/usr/bin/env python3
"""quarry-server's HTTP side: tokens, roles, routes, limits, hostile input, start and stop."""
import hashlib
import http.client
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, wait_for  # noqa: E402
from http_server import (PART, ROLES, TOKENS, FakeWorker, Server, add_model, check_problem, equal, read_all,  # noqa: E402
                         run_tests, submit)

SHA = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


# --- starting and stopping -----------------------------------------------------------------------------


def run_server(*args):
    return subprocess.run([os.path.join(BUILD, "quarry-server"), *args], capture_output=True, text=True, timeout=60,
                          stdin=subprocess.DEVNULL)


def test_options_are_refused_with_one_sentence():
    for args, names in ((["--datta", "x"], "--datta"), ([], "--data"), (["--data", "d", "--listen", "80"], "--listen 80"),
                        (["--data", "d", "x"], "x is not"), (["--data", "d", "--lease-seconds", "x"], "--lease-seconds"),
                        (["--data", "d", "--tokens", "/nowhere"], "/nowhere"),
                        (["--data", "d", "--model-root", "/nowhere"], "/nowhere"),
                        (["--data", "/proc/x/y"], "/proc/x/y")):
        done = run_server(*args)
        assert done.returncode != 0 and names in done.stderr, f"{args}: {done}"
        equal(done.stderr.count("quarry-server: "), 1, f"sentences on stderr of {args}: {done.stderr}")
        equal(done.stdout, "", f"stdout of {args}")
    for args in (["--datta", "x"], [], ["--data", "d", "--log-level", "loud"], ["--data", "d", "--listen", "80"]):
        equal(run_server(*args).returncode, 2, f"exit status of {args}")
    assert run_server("--version").stdout.startswith("quarry-server 0.")
    assert "--model-root" in run_server("--help").stdout


def test_tokens_are_printed_once():
    s = Server("printed", tokens=False)
    with s:
        lines = open(s.out).read().splitlines()
        tokens = dict(line.split(": ") for line in lines[1:])
        equal(sorted(tokens), sorted(ROLES))
        equal(s.call("GET", "/v1/jobs", token=tokens["viewer"]).status, 200)
        s.problem(401, "GET", "/v1/jobs", token=tokens["viewer"] + "x")
    with s:
        equal(open(s.out).read().splitlines(), lines, "output after the second start")
        equal(s.call("GET", "/v1/jobs", token=tokens["viewer"]).status, 200)
        for folder, _, files in os.walk(s.data):
            for name in files:
                content = open(os.path.join(folder, name), "rb").read()
                for token in tokens.values():
                    assert token.encode() not in content, f"{name} holds a token"


def test_one_server_per_data_folder():
    with Server("shared") as s:
        done = run_server("--data", s.data, "--listen", "127.0.0.1:0")
        equal(done.returncode, 1)
        assert "another quarry-server" in done.stderr, done


def test_a_port_in_use_is_named():
    with Server("first") as s:
        done = run_server("--data", "second", "--listen", f"127.0.0.1:{s.port}")
        equal(done.returncode, 1)
        assert str(s.port) in done.stderr and "in use" in done.stderr, done


def test_stops_with_its_parent():
    script = ("import subprocess,sys,os,time\n"
              "p=subprocess.Popen(sys.argv[1:],stdout=subprocess.DEVNULL)\n"
              "print(p.pid,flush=True)\n"
              "while not os.path.exists('parent-ready'): time.sleep(0.01)\n"
              "os._exit(0)\n")
    done = subprocess.run([sys.executable, "-c", script, os.path.join(BUILD, "quarry-server"), "--data", "orphan", "--listen",
                           "127.0.0.1:0", "--ready-file", "parent-ready", "--exit-with-parent"],
                          stdout=subprocess.PIPE, text=True, timeout=60)
    pid = int(done.stdout)

    def ended():
        try:
            with open(f"/proc/{pid}/stat") as f:
                return f.read().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True
    wait_for(ended, "the end of the server", 30)


def test_stopping_answers_whoever_waits():
    with Server("stopping") as s:
        job, worker = submit(s), FakeWorker(s)
        while worker.lease():
            pass
        etag = s.call("GET", f"/v1/jobs/{job}", "viewer").headers["ETag"].strip('"')
        waiting = []
        for method, path, role, body in (("POST", "/v1/leases", "worker", {"worker": worker.id}),
                                         ("GET", f"/v1/jobs/{job}?wait_for_change={etag}", "viewer", None),
                                         ("GET", f"/v1/jobs/{job}/events", "viewer", None)):
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
            c.request(method, path, json.dumps(body) if body else None,
                      {"Authorization": f"Bearer {TOKENS[role]}", "Content-Type": "application/json", "Prefer": "wait=60"})
            waiting.append(c)
        wait_for(lambda: s.metric("quarry_http_parked") == 3, "three parked requests")
        s.process.send_signal(signal.SIGTERM)
        equal(waiting[0].getresponse().status, 204, "lease")
        equal(waiting[1].getresponse().status, 304, "job")
        stream = waiting[2].getresponse()
        equal(stream.status, 200, "events")
        assert b"id: 1\n" in stream.read(), "events end with the stream"
        equal(s.process.wait(30), 0, "exit status")


# --- tokens and roles -----------------------------------------------------------------------------------

# method, path, body, who may; 404, 400 and the like count as allowed.
ACCESS = [
    ("GET", "/v1/stats", None, "viewer submitter releaser admin"),
    ("GET", "/metrics", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/curves", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/tasks", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/events", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/report", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/files", None, "viewer submitter releaser admin"),
    ("GET", "/v1/jobs/j_x/files/report.json", None, "submitter releaser admin"),
    ("POST", "/v1/jobs", {}, "submitter releaser admin"),
    ("POST", "/v1/jobs/j_x/cancel", {}, "submitter releaser admin"),
    ("POST", "/v1/jobs/j_x/retry", {}, "submitter releaser admin"),
    ("DELETE", "/v1/jobs/j_x", None, "releaser admin"),
    ("GET", "/v1/models", None, "viewer submitter releaser admin"),
    ("GET", "/v1/models/m_x", None, "viewer submitter releaser admin"),
    ("GET", "/v1/models/m_x/files/config.json", None, "submitter worker releaser admin"),
    ("POST", "/v1/models", {}, "submitter releaser admin"),
    ("DELETE", "/v1/models/m_x", None, "releaser admin"),
    ("GET", "/v1/datasets", None, "viewer submitter releaser admin"),
    ("GET", "/v1/datasets/d_x", None, "viewer submitter releaser admin"),
    ("POST", "/v1/datasets", {}, "submitter releaser admin"),
    ("DELETE", "/v1/datasets/d_x", None, "releaser admin"),
    ("GET", "/v1/workers", None, "viewer submitter releaser admin"),
    ("GET", "/v1/workers/w_x", None, "viewer submitter releaser admin"),
    ("POST", "/v1/workers", {}, "worker admin"),
    ("POST", "/v1/workers/w_x/drain", {}, "worker admin"),
    ("POST", "/v1/leases", {}, "worker admin"),
    ("POST", "/v1/leases/t_x/heartbeat", {}, "worker admin"),
    ("POST", "/v1/leases/t_x/checkpoint", {}, "worker admin"),
    ("POST", "/v1/leases/t_x/complete", {}, "worker admin"),
    ("POST", "/v1/leases/t_x/fail", {}, "worker admin"),
    ("POST", "/v1/leases/t_x/release", {}, "worker admin"),
    ("POST", "/v1/uploads", {}, "submitter worker releaser admin"),
    ("PUT", f"/v1/uploads/u_{SHA}/parts/0", b"x", "submitter worker releaser admin"),
    ("POST", f"/v1/uploads/u_{SHA}/complete", {}, "submitter worker releaser admin"),
    ("GET", f"/v1/blobs/{SHA}", None, "submitter worker releaser admin"),
]


def test_every_route_asks_for_its_role():
    described = re.findall(r"^  (/\S*):$", open(os.path.join(ROOT, "api.yaml")).read(), re.M)
    equal(len({a[1] for a in ACCESS}), len([p for p in described if p.startswith("/v1") or p == "/metrics"]), "paths tested")
    with Server("roles") as s:
        for method, path, body, allowed in ACCESS:
            for role in ROLES:
                r = s.call(method, path, role, body)
                if role in allowed.split():
                    assert r.status not in (401, 403), f"{role} {method} {path}: {r}"
                else:
                    equal(r.status, 403, f"{role} {method} {path}: {r}")
                    check_problem(r)
                    assert f"yours has the role {role}" in r.json()["detail"], r
            r = s.call(method, path, None, body)
            equal(r.status, 401, f"no token: {method} {path}")
            assert r.headers["WWW-Authenticate"].startswith("Bearer"), r


def test_bad_tokens():
    with Server("tokens-bad") as s:
        for header in ("", "Bearer", "Bearer ", "Bearer x", f"Basic {TOKENS['admin']}", "Bearer " + "x" * 5000,
                       f"Bearer {TOKENS['admin']} x", "Bearer \xff"):
            s.problem(401, "GET", "/v1/jobs", headers={"Authorization": header.encode("latin-1")})
        equal(s.call("GET", "/v1/jobs", headers={"Authorization": f"bearer   {TOKENS['viewer']}"}).status, 200)


def test_public_paths_need_no_token():
    with Server("public") as s:
        for path, kind in (("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css"),
                           ("/icon.svg", "image/svg+xml"), ("/api.yaml", "application/yaml"), ("/livez", "application/json"),
                           ("/readyz", "application/json")):
            r = s.call("GET", path)
            equal(r.status, 200, path)
            assert r.headers["Content-Type"].startswith(kind), r
            equal(r.headers["X-Content-Type-Options"], "nosniff")
            equal(s.call("GET", path, headers={"If-None-Match": r.headers["ETag"]}).status, 304, path)
            head = s.call("HEAD", path)
            equal((head.status, head.body), (200, b""), path)
        r = s.call("GET", "/")
        assert "default-src 'self'" in r.headers["Content-Security-Policy"], r
        equal(s.call("GET", "/api.yaml").body, open(os.path.join(ROOT, "api.yaml"), "rb").read())
        assert b"http://" not in r.body and b"https://" not in r.body, "the dashboard names no other host"


# --- routes and limits --------------------------------------------------------------------------------------


def test_unknown_paths_and_methods():
    with Server("paths") as s:
        for path in ("/nope", "/v1", "/v1/", "/v1/jobs/", "//", "/v1/jobs/x/y", "/v2/jobs", "/index.html"):
            s.problem(404, "GET", path, "admin")
        for method, path, allow in (("PUT", "/v1/jobs", "GET, HEAD, POST"), ("GET", "/v1/leases", "POST"),
                                    ("POST", "/v1/jobs/j_1", "GET, HEAD, DELETE"), ("OPTIONS", "/v1/stats", "GET, HEAD"),
                                    ("BREW", "/", "GET, HEAD")):
            r = s.call(method, path, "admin")
            equal((r.status, r.headers["Allow"]), (405, allow), f"{method} {path}")
            check_problem(r)


def test_traversal_and_odd_names():
    with Server("names") as s:
        model, job = add_model(s), submit(s)
        for name in ("..%2f..%2fetc%2fpasswd", "%2e%2e", "..", ".", "%2e%2e%2fconfig.json", "config.json%00", "%ff", "%", "%0a",
                     "a" * 600, "config.json%2f..%2fconfig.json", "....//config.json", "\\..\\config.json"):
            for path in (f"/v1/models/{model}/files/{name}", f"/v1/jobs/{job}/files/{name}", f"/v1/jobs/{name}",
                         f"/v1/models/{name}", f"/v1/blobs/{name}", f"/v1/jobs/{job}/files/dense/{name}",
                         f"/v1/workers/{name}", f"/v1/datasets/{name}"):
                r = s.call("GET", path, "admin")
                assert r.status == 404, f"{path}: {r}"
                check_problem(r)
        equal(s.call("GET", f"/v1/models/{model}/files/config.json", "worker").status, 200)


def test_queries_are_checked():
    with Server("queries") as s:
        for path in ("/v1/jobs?limit=0", "/v1/jobs?limit=501", "/v1/jobs?limit=x", "/v1/jobs?limit=", "/v1/jobs?limit=-1",
                     "/v1/jobs?state=running", "/v1/jobs?state=", "/v1/jobs?state=" + "A" * 40, "/v1/jobs?cursor=" + "a" * 200,
                     "/v1/jobs?cursor=%00", "/v1/jobs?nope=1", "/v1/stats?x", "/v1/jobs?cursor=zzz",
                     "/v1/jobs/j_1/events?after=x"):
            p = s.problem(400, "GET", path, "viewer")
            assert path.split("?")[1].split("=")[0] in p["detail"], f"{path}: {p}"
        s.problem(400, "POST", "/v1/jobs?dry_run=yes", "submitter", {})
        equal(s.call("GET", "/v1/jobs?limit=1&state=DONE", "viewer").status, 200)


def test_bodies_are_checked():
    with Server("bodies") as s:
        post = ("POST", "/v1/workers", "worker")
        for body in (b"", b"{", b"[]", b"1", b"nul", b'{"a":1,"a":2}', b'{"a":1}x', b"\xff", b'{"a":"\x01"}', b"[" * 100000):
            s.problem(400, *post, body, {"Content-Type": "application/json"})
        for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""):
            s.problem(415, *post, b"{}", {"Content-Type": kind})
        for coding in ("gzip", "deflate", "br", "identity, gzip"):
            s.problem(415, *post, b"{}", {"Content-Type": "application/json", "Content-Encoding": coding})
        equal(s.call(*post, b'{"name":"w","backend":"ref"}', {"Content-Type": "application/JSON; charset=utf-8",
                                                               "Content-Encoding": "identity"}).status < 500, True)
        s.problem(413, *post, b" " * (1 << 20) + b"{}", {"Content-Type": "application/json"})
        p = s.problem(413, "PUT", f"/v1/uploads/u_{SHA}/parts/0", "worker", b"x" * (PART + 1))
        assert str(PART) in p["detail"], p
        s.problem(400, "POST", "/v1/uploads", "worker", {"sha256": "x", "bytes": 1})
        s.problem(400, "POST", "/v1/uploads", "worker", {"sha256": SHA, "bytes": -1})
        s.problem(400, "POST", "/v1/uploads", "worker", {"sha256": SHA, "bytes": 1.5})
        s.problem(400, "POST", "/v1/uploads", "worker", {"sha256": SHA.upper(), "bytes": 1})


def request(path="/v1/jobs", method="GET", extra="", token=TOKENS["worker"]):
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{extra}\r\n".encode()


def status_of(data):
    assert data.startswith(b"HTTP/1.1 "), data[:200]
    return int(data.split(b" ", 2)[1])


def test_chunked_bodies_have_the_same_limits():
    with Server("chunked") as s:
        head = "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        small = s.raw(request("/v1/workers", "POST", head) + b"2\r\n{}\r\n0\r\n\r\n")
        equal(status_of(small), 400, small)
        big = s.raw(request("/v1/workers", "POST", head) + chunk * 17 + b"0\r\n\r\n")
        equal(status_of(big), 413, big[:300])
        both = s.raw(request("/v1/workers", "POST", head + "Content-Length: 2\r\n") + b"2\r\n{}\r\n0\r\n\r\n")
        equal(status_of(both), 400, both[:300])


def test_an_expected_body_is_refused_before_it_is_sent():
    with Server("expect") as s:
        for size, want in ((PART + 1, 413), (10, 404)):
            with socket.create_connection(("127.0.0.1", s.port), 30) as c:
                c.sendall(request(f"/v1/uploads/u_{SHA}/parts/0", "PUT",
                                  f"Content-Length: {size}\r\nExpect: 100-continue\r\n"))
                first = c.recv(4096)
                if want == 413:
                    equal(status_of(first), 413)
                else:
                    assert first.startswith(b"HTTP/1.1 100"), first
                    c.sendall(b"x" * size)
                    equal(status_of(c.recv(4096)), want)


def test_headers_have_limits():
    with Server("headers", "--header-timeout", "2") as s:
        equal(status_of(s.raw(request(extra="X-Fill: " + "a" * 15000 + "\r\nConnection: close\r\n"))), 403)
        for extra in ("X-Fill: " + "a" * 17000 + "\r\n", "".join(f"X-{i}: {'a' * 100}\r\n" for i in range(200))):
            equal(status_of(s.raw(request(extra=extra + "Connection: close\r\n"))), 431)
        equal(status_of(s.raw(request("/" + "a" * 5000, extra="Connection: close\r\n"))), 414)
        for data in (request(extra="X-Fill: " + "a" * 200000 + "\r\n"), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\xff" * 50,
                     b"GET\r\n\r\n", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
                     b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n"):
            reply = s.raw(data)
            assert not reply or 400 <= status_of(reply) < 500, (data[:60], reply[:100])
        equal(s.call("GET", "/livez").status, 200)


def test_slow_headers_and_bodies_are_cut():
    with Server("slow", "--header-timeout", "1") as s:
        started = time.monotonic()
        with socket.create_connection(("127.0.0.1", s.port), 30) as c:
            c.settimeout(0.2)
            text, sent, closed = request("/livez"), 0, False
            while not closed and time.monotonic() - started < 25:
                try:
                    c.sendall(text[sent:sent + 1])  # one byte now and then keeps an idle time-out away
                    sent += 1 if sent < len(text) - 2 else 0
                    closed = c.recv(100) == b""
                except TimeoutError:
                    pass
                except (ConnectionResetError, BrokenPipeError):
                    closed = True
            assert closed, "a connection that never finishes its headers stays open"
        c = http.client.HTTPConnection("127.0.0.1", s.port)  # a kept connection is not one of these
        equal(s.call("GET", "/livez", connection=c).status, 200)
        wait_for(lambda: time.monotonic() - started > 3, "three seconds")
        equal(s.call("GET", "/livez", connection=c).status, 200)
        c.close()


def test_connections_are_bounded():
    with Server("crowd", "--connections", "16") as s:
        crowd = [socket.create_connection(("127.0.0.1", s.port), 30) for _ in range(64)]
        for c in crowd:
            c.sendall(request("/livez"))
        waiting, served, quiet = set(crowd), 0, 0
        while quiet < 5:  # until nobody hears anything for a while
            ready, _, _ = select.select(list(waiting), [], [], 0.2)
            quiet = 0 if ready else quiet + 1
            for c in ready:
                waiting.discard(c)
                try:
                    served += c.recv(100).startswith(b"HTTP/1.1 200")
                except ConnectionResetError:
                    pass  # turned away
        assert 1 <= served <= 8, f"{served} of 64 connections from one address are served at the same time, limit 16 / 2"
        for c in crowd:
            c.close()

        def welcome():
            try:
                return s.call("GET", "/livez").status == 200
            except ConnectionError:
                return False  # the server has not yet seen that they are gone
        wait_for(welcome, "a new connection to be served when they are gone", 30)


def test_request_rate_is_bounded():
    with Server("rate", "--requests-per-second", "5") as s:
        replies = [s.call("GET", "/livez") for _ in range(40)]
        refused = [r for r in replies if r.status != 200]
        assert refused, "40 requests at once were all answered at 5 a second"
        assert len(refused) < 40, "not one request was answered"
        equal({r.status for r in refused}, {429}, "status of a request too many")
        equal(refused[0].headers["Retry-After"], "1", "Retry-After")
        problem = refused[0].json()
        equal((problem["type"], problem["retryable"]), ("/problems/busy", True), "the problem")
        wait_for(lambda: s.call("GET", "/livez").status == 200, "a request to be granted again", 30)


def test_keep_alive_and_pipelining():
    with Server("pipelined") as s:
        data = s.raw(request("/livez") * 3 + request("/livez", extra="Connection: close\r\n"))
        equal(data.count(b"HTTP/1.1 200"), 4)
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=30)
        for status, method, path, body in ((401, "GET", "/v1/jobs", None), (404, "POST", "/nope", b"x" * 100000),
                                           (401, "PUT", f"/v1/uploads/u_{SHA}/parts/0", b"x" * PART), (200, "GET", "/livez", None)):
            equal(s.call(method, path, body=body, connection=c).status, status, path)  # refused bodies are read to their end
        c.close()


def test_metrics():
    with Server("metrics") as s:
        text = s.call("GET", "/metrics", "viewer").body.decode()
        for line in text.splitlines():
            assert re.fullmatch(r"(# (HELP|TYPE) \S+ .+)|([a-z_]+(\{[^}]*\})? [-+0-9.eE]+|[a-z_]+(\{[^}]*\})? NaN)", line), line
        assert 'quarry_http_replies_total{class="2xx"}' in text
        before = s.metric('quarry_http_replies_total{class="4xx"}')
        s.problem(404, "GET", "/nope")
        wait_for(lambda: s.metric('quarry_http_replies_total{class="4xx"}') == before + 1,  # counted once it was sent
                 "the reply to be counted", 30)


def test_hostile_names_stay_data():
    with Server("hostile") as s:
        name = "<img src=x onerror=alert(1)>\"'\r\n\u202e{{7*7}} ; rm -rf /"
        job = submit(s, name)
        equal(s.good("GET", f"/v1/jobs/{job}", "viewer")["name"], name)
        equal([j["name"] for j in s.good("GET", "/v1/jobs", "viewer")["items"]], [name])
        assert "\r\n\u202e" not in s.text(), "names cannot forge log lines"


def test_a_checkpoint_waits_for_the_next_holder():
    with Server("checkpoint") as s:
        submit(s)
        first, second = FakeWorker(s, "first"), FakeWorker(s, "second")
        lease = first.lease()
        path, data = f"/v1/leases/{lease['task']}/checkpoint", b"what it has come to"
        said = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        p = s.problem(422, "POST", path, "worker", first.holder(lease, **said))
        equal(p["type"], "/problems/corrupt")
        s.upload(data, "worker")
        for _ in range(2):  # repeated: one effect
            equal(s.good("POST", path, "worker", first.holder(lease, **said), status=200), {})
        s.problem(400, "POST", path, "worker", first.holder(lease, sha256="x", bytes=1))
        s.problem(409, "POST", path, "worker", second.holder(lease, **said))
        s.good("POST", f"/v1/leases/{lease['task']}/release", "worker", first.holder(lease, reason="drain"))
        s.problem(409, "POST", path, "worker", first.holder(lease, **said))
        s.kill()
        s.start()
        again = second.lease()
        equal(again["task"], lease["task"])
        equal([i for i in again["inputs"] if i["name"] == "checkpoint"], [{"name": "checkpoint", **said}])
        equal(s.call("GET", f"/v1/blobs/{said['sha256']}", "worker").body, data)
        second.complete(again)
        equal(s.call("GET", f"/v1/blobs/{said['sha256']}", "worker").status, 404, "the blob when the task is done")


def test_missing_resources():
    with Server("missing") as s:
        for method, path, role in (("GET", "/v1/jobs/j_no", "viewer"), ("GET", "/v1/jobs/j_no/tasks", "viewer"),
                                   ("GET", "/v1/jobs/j_no/curves", "viewer"),
                                   ("GET", "/v1/jobs/j_no/events", "viewer"), ("GET", "/v1/jobs/j_no/files", "viewer"),
                                   ("GET", "/v1/jobs/j_no/files/a", "submitter"), ("GET", "/v1/jobs/j_no/report", "viewer"),
                                   ("POST", "/v1/jobs/j_no/cancel", "submitter"), ("POST", "/v1/jobs/j_no/retry", "submitter"),
                                   ("DELETE", "/v1/jobs/j_no", "releaser"), ("GET", "/v1/models/m_no", "viewer"),
                                   ("GET", "/v1/models/m_no/files/a", "worker"), ("DELETE", "/v1/models/m_no", "releaser"),
                                   ("GET", "/v1/datasets/d_no", "viewer"), ("DELETE", "/v1/datasets/d_no", "releaser"),
                                   ("GET", "/v1/workers/w_no", "viewer"), ("POST", "/v1/workers/w_no/drain", "worker"),
                                   ("GET", f"/v1/blobs/{SHA}", "worker"),
                                   ("POST", f"/v1/uploads/u_{SHA}/complete", "worker"),
                                   ("POST", "/v1/uploads/u_x/complete", "worker")):
            s.problem(404, method, path, role)
        s.problem(404, "POST", "/v1/leases", "worker", {"worker": "w_no"})
        s.problem(404, "PUT", f"/v1/uploads/u_{SHA}/parts/0", "worker", b"x")


def test_every_failing_allocation_is_survived():
    """From a failure in the first requests on; what fails at the start ends with one sentence."""
    asked, started = 0, 0
    for nth in [*range(1, 40, 6), *range(40, 1200, 47)]:
        os.environ["QUARRY_FAIL_ALLOC"] = str(nth)
        s = Server(f"alloc-{nth}")
        try:
            s.start()
            s.call("GET", "/livez")
        except (AssertionError, ConnectionError):
            equal(s.process.wait(30), 1, "exit status")
            equal(s.text().count("quarry-server: "), 1, s.text())
            continue
        finally:
            del os.environ["QUARRY_FAIL_ALLOC"]
        started += 1
        for method, path, role, body in (("GET", "/livez", None, None), ("GET", "/v1/jobs", "viewer", None),
                                         ("POST", "/v1/uploads", "worker", {"sha256": SHA, "bytes": 4}),
                                         ("PUT", f"/v1/uploads/u_{SHA}/parts/0", "worker", b"test"),
                                         ("POST", f"/v1/uploads/u_{SHA}/complete", "worker", None),
                                         ("POST", "/v1/workers", "worker", {"name": "w", "backend": "ref"}),
                                         ("GET", "/metrics", "viewer", None), ("GET", "/v1/jobs/j_1/events", "viewer", None)):
            try:
                r = s.call(method, path, role, body)
            except (ConnectionError, http.client.HTTPException):
                asked += 1  # no memory even for a request: the connection is closed
                continue
            if r.status >= 500:
                asked += 1
                check_problem(r)
        try:
            s.upload(b"afterwards")
        except (AssertionError, ConnectionError, http.client.HTTPException):
            s.upload(b"afterwards")  # it was this one that failed, once
        equal(s.call("GET", f"/v1/blobs/{hashlib.sha256(b'afterwards').hexdigest()}", "worker").body, b"afterwards")
        s.stop()
    assert asked > 0 and started > asked, f"{asked} requests failed on {started} servers"


if __name__ == "__main__":
    run_tests(globals())
