#!/usr/bin/env python3
"""Blobs over HTTP: uploads in parts, resuming after a kill, wrong bytes, Range, disk trouble, memory."""
import hashlib
import http.client
import os
import random
import socket
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import ROOT, wait_for  # noqa: E402
from http_server import MODEL, PART, TOKENS, Server, add_model, equal, run_tests  # noqa: E402

NOISE = random.Random(7).randbytes(2 * PART + 1234)


def digest(data):
    return hashlib.sha256(data).hexdigest()


def begin(s, data):
    return s.good("POST", "/v1/uploads", "worker", {"sha256": digest(data), "bytes": len(data)})


def put(s, data, part, body=None):
    body = data[part * PART:(part + 1) * PART] if body is None else body
    return s.call("PUT", f"/v1/uploads/u_{digest(data)}/parts/{part}", "worker", body)


def complete(s, data):
    return s.call("POST", f"/v1/uploads/u_{digest(data)}/complete", "worker")


def blob(s, data, headers=None, method="GET"):
    return s.call(method, f"/v1/blobs/{digest(data)}", "worker", headers=headers)


def files_below(folder):
    return [os.path.join(here, f) for here, _, files in os.walk(folder) for f in files]


# --- uploading ------------------------------------------------------------------------------------------


def test_upload_resume_after_kill():
    s = Server("resume")
    with s:
        begun = begin(s, NOISE)
        equal(begun, {"exists": False, "upload": "u_" + digest(NOISE), "part_bytes": PART, "parts_done": []})
        equal(put(s, NOISE, 2).status, 204)
        equal(put(s, NOISE, 0).status, 204)
        with socket.create_connection(("127.0.0.1", s.port), 30) as half:  # a part in flight when the server dies
            half.sendall(f"PUT /v1/uploads/u_{digest(NOISE)}/parts/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                         f"{TOKENS['worker']}\r\nContent-Length: {PART}\r\n\r\n".encode() + NOISE[PART:PART + 1000000])
            path = os.path.join(s.data, "uploads", digest(NOISE) + ".part")

            def arrived():
                with open(path, "rb") as f:
                    f.seek(PART)
                    return f.read(1000) == NOISE[PART:PART + 1000]
            wait_for(arrived, "bytes of the part on disk")
            s.kill()
        s.start()
        equal(begin(s, NOISE)["parts_done"], [0, 2])
        r = complete(s, NOISE)
        equal(r.status, 409, r)
        assert "part 1" in r.json()["detail"], r
        equal(put(s, NOISE, 1).status, 204)
        s.kill()
        s.start()
        equal(begin(s, NOISE)["parts_done"], [0, 1, 2])
        r = complete(s, NOISE)
        equal((r.status, r.json()), (201, {"sha256": digest(NOISE), "bytes": len(NOISE)}))
        s.kill()  # acknowledged is durable
        s.start()
        equal(begin(s, NOISE), {"exists": True, "sha256": digest(NOISE), "bytes": len(NOISE)})
        equal(blob(s, NOISE).body == NOISE, True, "bytes")
        equal(complete(s, NOISE).status, 201, "complete repeated")
        equal(files_below(os.path.join(s.data, "uploads")), [])


def test_a_file_without_its_row_is_used():
    s = Server("rowless")
    with s:
        s.kill()  # died between rename and row
        folder = os.path.join(s.data, "blobs", digest(b"orphan")[:2])
        os.makedirs(folder)
        with open(os.path.join(folder, digest(b"orphan")), "wb") as f:
            f.write(b"orphan")
        s.start()
        s.problem(422, "POST", "/v1/datasets", "submitter", {"name": "a.txt", "sha256": digest(b"orphan")})
        equal(begin(s, b"orphan")["exists"], True)
        s.good("POST", "/v1/datasets", "submitter", {"name": "a.txt", "sha256": digest(b"orphan")}, status=201)
        r = s.call("POST", "/v1/uploads", "worker", {"sha256": digest(b"orphan"), "bytes": 7})
        equal(r.status, 409, r)


def test_wrong_bytes():
    with Server("wrong") as s:
        data = NOISE[:PART + 10]
        begin(s, data)
        for part, body, status in ((0, data[:100], 400), (1, data[:11], 413), (1, data[:9], 400), (2, b"x", 400),
                                   (99999999, b"x", 400), (1, b"", 400)):
            equal(put(s, data, part, body).status, status, f"part {part} of {len(body)} bytes")
        equal(s.call("PUT", f"/v1/uploads/u_{digest(data)}/parts/x", "worker", b"x").status, 400)
        equal(put(s, data, 0).status, 204)
        equal(put(s, data, 1, b"0123456789").status, 204)
        r = complete(s, data)
        equal((r.status, r.json()["type"]), (422, "/problems/corrupt"))
        assert digest(data) in r.json()["detail"], r
        equal(files_below(os.path.join(s.data, "uploads")) + files_below(os.path.join(s.data, "blobs")), [])
        equal(complete(s, data).status, 404)
        equal(blob(s, data).status, 404)
        s.upload(data)
        equal(blob(s, data).body == data, True)


def test_empty_and_small_blobs():
    with Server("small") as s:
        for data in (b"", b"x"):
            s.upload(data)
            r = blob(s, data)
            equal((r.status, r.body, r.headers["Content-Length"]), (200, data, str(len(data))))


def test_huge_uploads_are_refused():
    with Server("huge") as s:
        r = s.call("POST", "/v1/uploads", "worker", {"sha256": "0" * 64, "bytes": 8 << 40})
        equal((r.status, r.json()["type"], r.json()["retryable"]), (507, "/problems/no-space", True))
        s.problem(413, "POST", "/v1/uploads", "worker", {"sha256": "0" * 64, "bytes": 1 << 52})
        equal(files_below(os.path.join(s.data, "uploads")), [])


def test_two_uploaders_of_one_blob():
    with Server("two") as s:
        data, failures = NOISE[:2 * PART], []

        def one():
            try:
                for _ in range(20):  # "being verified" is answered by trying again
                    begun = begin(s, data)
                    if begun["exists"]:
                        return
                    for part in (0, 1):
                        put(s, data, part)
                    if complete(s, data).status == 201:
                        return
                failures.append("never stored")
            except Exception as e:  # noqa: BLE001
                if "429" not in str(e):
                    failures.append(repr(e))
                else:
                    one()
        threads = [threading.Thread(target=one) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        equal(failures, [])
        equal(blob(s, data).body == data, True)


# --- placing instead of sending ------------------------------------------------------------------------------


def begin_place(s, data, role="worker"):
    return s.good("POST", "/v1/uploads", role, {"sha256": digest(data), "bytes": len(data), "place": True})


def complete_placed(s, data, role="worker"):
    return s.call("POST", f"/v1/uploads/u_{digest(data)}/complete", role, {"placed": True})


def write_file(path, data):
    with open(path, "wb") as f:
        f.write(data)


def blob_path(s, data):
    return os.path.join(os.path.realpath(s.data), "blobs", digest(data)[:2], digest(data))


def test_a_placed_file_becomes_the_blob():
    with Server("place") as s:
        made = os.path.join(s.folder, "made")
        for role, data in (("worker", NOISE), ("admin", b"small")):
            begun = begin_place(s, data, role)
            equal(begun["place"], os.path.join(os.path.realpath(s.data), "uploads", digest(data) + ".placed"))
            equal((begun["exists"], begun["upload"], begun["parts_done"]), (False, "u_" + digest(data), []))
            write_file(made, data)
            os.link(made, begun["place"])
            r = complete_placed(s, data, role)
            equal((r.status, r.json()), (201, {"sha256": digest(data), "bytes": len(data)}))
            equal(os.stat(blob_path(s, data)).st_ino, os.stat(made).st_ino)
            equal(complete_placed(s, data).status, 201, "complete repeated")
            equal(begin_place(s, data), {"exists": True, "sha256": digest(data), "bytes": len(data)})
            equal(blob(s, data).body == data, True, "bytes")
            os.remove(made)
        s.kill()  # acknowledged is durable
        s.start()
        equal(blob(s, NOISE).body == NOISE, True, "bytes after a kill")
        equal(files_below(os.path.join(s.data, "uploads")), [])


def test_a_placed_file_outlives_the_server():
    with Server("place-kill") as s:
        write_file(begin_place(s, NOISE)["place"], NOISE)
        s.kill()
        s.start()
        equal(complete_placed(s, NOISE).status, 201)
        equal(blob(s, NOISE).body == NOISE, True, "bytes")


def test_only_workers_place():
    with Server("place-role") as s:
        for role in ("submitter", "releaser"):
            assert "place" not in begin_place(s, NOISE, role), role
        for wish in (False, "yes", 1, None):
            begun = s.good("POST", "/v1/uploads", "worker", {"sha256": digest(NOISE), "bytes": len(NOISE), "place": wish})
            assert "place" not in begun, wish
        place = begin_place(s, NOISE)["place"]
        write_file(place, NOISE)
        for role in ("submitter", "releaser"):
            r = complete_placed(s, NOISE, role)
            equal((r.status, r.json()["type"]), (403, "/problems/forbidden"), role)
        equal(complete_placed(s, NOISE).status, 201)


def test_placed_files_that_are_refused():
    with Server("place-bad") as s:
        data = NOISE[:PART + 10]
        place = begin_place(s, data)["place"]
        put(s, data, 1)
        for make, status, word in ((lambda: None, 409, "no file was placed"),
                                   (lambda: write_file(place, data[:-1] + b"x"), 422, "SHA-256"),
                                   (lambda: write_file(place, data[:-1]), 409, "bytes, not"),
                                   (lambda: os.symlink(os.path.realpath(sys.argv[0]), place), 409, "no regular file"),
                                   (lambda: os.symlink("/dev/zero", place), 409, "no regular file"),
                                   (lambda: os.mkdir(place), 409, "no regular file"),
                                   (lambda: (write_file(place, data), os.chmod(place, 0o666)), 409, "another user")):
            make()
            r = complete_placed(s, data)
            equal(r.status, status, r)
            assert word in r.json()["detail"], r
            equal(os.path.lexists(place), False, f"{word}: removed")
            equal(blob(s, data).status, 404)
            equal(begin_place(s, data)["parts_done"], [1], "the parts stay")
        equal(put(s, data, 0).status, 204)
        equal(complete(s, data).status, 201)
        equal(blob(s, data).body == data, True)
        equal(files_below(os.path.join(s.data, "uploads")), [])
        other = data + b"never begun"
        equal(complete_placed(s, other).status, 404)


def started(s, op, nth):
    """Starts a server whose nth operation fails; False when it failed at the start, with one sentence."""
    os.environ["QUARRY_FAIL_IO"] = f"{op}:{nth}"
    try:
        s.start()
        s.call("GET", "/livez")
        return True
    except (AssertionError, ConnectionError):
        equal(s.process.wait(30), 1, "exit status")
        equal(s.text().count("quarry-server: "), 1, s.text())
        return False
    finally:
        del os.environ["QUARRY_FAIL_IO"]


def try_upload(s, data):
    """(the replies that were errors, whether the blob was acknowledged)"""
    replies = [s.call("POST", "/v1/uploads", "worker", {"sha256": digest(data), "bytes": len(data)}), put(s, data, 0),
               put(s, data, 1), complete(s, data)]
    return [r for r in replies if r.status >= 400], replies[-1].status == 201


def test_every_failing_disk_operation_is_an_honest_error():
    data = NOISE[:PART + 100]
    for op in ("write", "fsync", "rename", "open", "read"):
        failures = 0
        for nth in (1, 2, 3, 5, 8, 13, 21, 34, 55):
            s = Server(f"fail-{op}-{nth}")
            if not started(s, op, nth):
                failures += 1
                continue
            errors, stored = try_upload(s, data)
            failures += len(errors) > 0
            if errors and errors[0].status >= 500:
                p = errors[0].json()
                equal((p["type"], p["retryable"]), ("/problems/no-space" if op == "write" else "/problems/io", True))
            equal(blob(s, data).status, 200 if stored else 404, "a blob is there when that was said")
            equal(s.upload(data), digest(data), "the service goes on")
            s.kill()
            s.start()
            equal(blob(s, data).body == data, True, f"{op} {nth}: bytes after a kill")
            s.stop()
        assert failures > 0, f"no {op} was made to fail"


# --- downloading ---------------------------------------------------------------------------------------------


def test_ranges():
    with Server("ranges") as s:
        data = NOISE[:1000000]
        etag = f'"{s.upload(data)}"'
        whole = blob(s, data)
        equal((whole.status, whole.headers["ETag"], whole.headers["Accept-Ranges"]), (200, etag, "bytes"))
        n = len(data)
        for value, first, last in (("bytes=0-0", 0, 0), ("bytes=0-", 0, n - 1), ("bytes=999999-", n - 1, n - 1),
                                   ("bytes=-1", n - 1, n - 1), ("bytes=-2000000", 0, n - 1), ("bytes=5-99999999", 5, n - 1),
                                   ("bytes=70000-140000", 70000, 140000)):
            r = blob(s, data, {"Range": value})
            equal((r.status, r.headers["Content-Range"]), (206, f"bytes {first}-{last}/{n}"), value)
            equal(r.body == data[first:last + 1], True, value)
        for value in ("bytes=1000000-", "bytes=2000000-3000000", "bytes=-0"):
            r = blob(s, data, {"Range": value})
            equal((r.status, r.headers["Content-Range"]), (416, f"bytes */{n}"), value)
        for value in ("bytes=5-4", "bytes=", "lines=0-1", "bytes=0-1,4-5", "bytes=x-", "bytes=99999999999999999999999-"):
            equal(len(blob(s, data, {"Range": value}).body), n, value)
        equal(blob(s, data, {"Range": "bytes=0-1", "If-Range": etag}).status, 206)
        equal(blob(s, data, {"Range": "bytes=0-1", "If-Range": '"other"'}).status, 200)
        equal(blob(s, data, {"Range": "bytes=0-1", "If-Range": "W/" + etag}).status, 200)
        equal(blob(s, data, {"If-None-Match": etag}).status, 304)
        head = blob(s, data, {"Range": "bytes=0-1"}, "HEAD")
        equal((head.status, head.headers["Content-Length"], head.body), (200, str(n), b""))
        equal(blob(s, b"not there", None, "HEAD").status, 404)


def test_model_files():
    with Server("model") as s:
        folder = os.path.join(s.folder, "models", "tiny")
        os.makedirs(folder)
        for name in os.listdir(MODEL):
            with open(os.path.join(MODEL, name), "rb") as a, open(os.path.join(folder, name), "wb") as b:
                b.write(a.read())
        with open(os.path.join(folder, "secret.txt"), "w") as f:
            f.write("not a model file")
        s.stop()
        s.options += ("--model-root", os.path.dirname(folder))
        s.start()
        model = s.good("POST", "/v1/models", "submitter", {"name": "tiny", "path": folder})
        for f in model["files"]:
            path = f"/v1/models/{model['model']}/files/{f['name']}"
            want = open(os.path.join(folder, f["name"]), "rb").read()
            r = s.call("GET", path, "worker")
            equal((r.status, r.body == want), (200, True), path)
            part = s.call("GET", path, "worker", headers={"Range": "bytes=10-19", "If-Range": r.headers["ETag"]})
            equal((part.status, part.body), (206, want[10:20]), path)
        s.problem(404, "GET", f"/v1/models/{model['model']}/files/secret.txt", "worker")
        with open(os.path.join(folder, "config.json"), "a") as f:
            f.write("\n")
        p = s.problem(409, "GET", f"/v1/models/{model['model']}/files/config.json", "worker")
        assert "changed since it was registered" in p["detail"], p
        os.remove(os.path.join(folder, "tokenizer.json"))
        s.problem(404, "GET", f"/v1/models/{model['model']}/files/tokenizer.json", "worker")
        for path in ("/etc", folder + "/../../..", folder + "/config.json", "models/tiny", ""):
            r = s.call("POST", "/v1/models", "submitter", {"name": "x", "path": path})
            assert r.status in (400, 403, 422), f"{path}: {r}"


def test_uploaded_models():
    with Server("uploaded") as s:
        files = []
        for name in sorted(os.listdir(MODEL)):
            with open(os.path.join(MODEL, name), "rb") as f:
                files.append({"name": name, "sha256": s.upload(f.read())})
        model = s.good("POST", "/v1/models", "submitter", {"name": "uploaded", "files": files})
        equal(model["path"], None)
        for f in files:
            r = s.call("GET", f"/v1/models/{model['model']}/files/{f['name']}", "worker")
            equal((r.status, r.headers["ETag"]), (200, f'"{f["sha256"]}"'), f["name"])
            equal(digest(r.body), f["sha256"])


def test_memory_stays_small():
    with Server("memory") as s:
        data = random.Random(1).randbytes(96 << 20)
        s.upload(data)
        connections = []
        for _ in range(8):
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
            c.request("GET", f"/v1/blobs/{digest(data)}", headers={"Authorization": f"Bearer {TOKENS['worker']}"})
            connections.append(c)
        for c in connections:
            equal(digest(c.getresponse().read()), digest(data))
            c.close()
        with open(f"/proc/{s.process.pid}/status") as f:
            peak = next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))
        print(f"# peak resident memory {peak / 1024:.1f} MiB")
        limit = 128 * 1024 if not os.environ.get("QUARRY_BUILD", "").count("san-") else 1024 * 1024
        assert peak <= limit, f"peak resident memory {peak} kB, limit {limit} kB"


if __name__ == "__main__":
    assert os.path.isdir(ROOT)
    run_tests(globals())
