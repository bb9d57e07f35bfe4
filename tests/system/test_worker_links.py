#!/usr/bin/env python3
"""A worker that sees the coordinator's folders: blobs change hands by hard links, and over HTTP wherever that does not work."""
import os
import signal
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fake_coordinator import Coordinator  # noqa: E402
from fleet import Tap, other_file_system, wait_for  # noqa: E402
from test_worker_agent import MODEL, TEXT, Case, Gate, read, sha256  # noqa: E402


class Seen(Case):
    """A coordinator whose store is a folder."""

    def __init__(self, **options):
        super().__init__(**options)
        self.store = self.c.place_folder = os.path.join(self.folder, "store")
        os.mkdir(self.store)

    def stored(self, digest):
        return os.path.join(self.store, digest)

    def store_blob(self, data):
        digest = self.c.blob(data)
        if not os.path.lexists(self.stored(digest)):    # never written again: others have links to it
            with open(self.stored(digest), "wb") as f:
                f.write(data)
        return digest

    def linked(self, name="t_linked", text=None, spoil=None, **kw):
        """A tokenize task whose lease tells where its input is; spoil(path) is done to the file before."""
        data = read(TEXT) if text is None else text
        digest = self.store_blob(data)
        if spoil:
            spoil(self.stored(digest))
        inputs = [{"name": "text", "sha256": digest, "bytes": len(data), "path": self.stored(digest)}]
        spec = {"role": "eval", "name": "text.txt", "format": "text", "samples": 0, "seq_len": 64, "max_windows": 0}
        return self.give(name, "tokenize", spec, inputs, model=self.model(path=MODEL), **kw)

    def cached(self, digest):
        return os.path.join(self.work, "cache", digest)

    def same_file(self, digest):
        a, b = os.stat(self.stored(digest)), os.stat(self.cached(digest))
        return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)

    def gets(self):
        return self.c.count("GET", "/v1/blobs/.*")

    def puts(self):
        return self.c.count("PUT", "/v1/uploads/.*")

    def placed(self):
        return [name for name in os.listdir(self.store) if name.endswith(".placed")]

    def begun(self):
        """Of each beginning of an upload: was placing asked for?"""
        return [r["body"].get("place", False) for r in self.c.seen("POST", "/v1/uploads")]

    def restart(self):
        self.worker.kill(signal.SIGTERM)
        self.exits()
        self.start()


def linked_both_ways():
    with Seen() as k:
        task = k.linked()
        k.start()
        output, = k.ended(task)["outputs"]
        assert (k.gets(), k.puts()) == (0, 0), k.c.requests
        assert k.same_file(task.lease["inputs"][0]["sha256"]), "the input is the coordinator's file"
        assert k.same_file(output["sha256"]), "the output is the worker's file"
        assert sha256(read(k.stored(output["sha256"]))) == output["sha256"]
        assert k.c.seen("POST", "/v1/uploads/.*/complete")[0]["body"] == {"placed": True}
        k.nothing_left()
        assert k.placed() == [], k.placed()
        with Case() as other:   # the same over HTTP
            there = other.tokenize()
            other.start()
            assert other.ended(there)["outputs"] == [output]
            assert (other.c.count("GET", "/v1/blobs/.*"), other.c.count("PUT", "/v1/uploads/.*")) == (1, 1)


def fetched_where_there_is_no_link():
    with Seen() as k:
        base = read(TEXT)
        k.start()
        for n, spoil in enumerate((os.remove, lambda p: os.truncate(p, 10), become_link, become_folder)):
            task = k.linked(f"t_{n}", bytes(str(n), "ascii") + base[:50000], spoil)
            digest = task.lease["inputs"][0]["sha256"]
            k.ended(task)
            assert k.gets() == n + 1, f"{n}: {k.gets()} downloads"
            assert sha256(read(k.cached(digest))) == digest and not os.path.islink(k.cached(digest))
        lines = [line for line in k.worker.text().splitlines() if "is fetched: " in line]
        assert len(lines) == 4 and [" info " in line for line in lines] == [True, False, False, False], lines
        assert not [name for name in os.listdir(os.path.join(k.work, "cache")) if "." in name]


def become_link(path):
    os.rename(path, path + ".real")
    os.symlink(path + ".real", path)


def become_folder(path):
    os.remove(path)
    os.mkdir(path)


def on_another_file_system():
    """Both ways at once."""
    with tempfile.TemporaryDirectory(dir=other_file_system(tempfile.gettempdir())) as elsewhere, Seen() as k:
        k.work = os.path.join(elsewhere, "work")
        task = k.linked()
        k.start()
        k.ended(task)
        assert (k.gets(), k.puts()) == (1, 1), k.c.requests
        text = k.worker.text()
        assert text.count("is fetched: cannot link ") == 1 and text.count("is sent in parts: cannot link ") == 1, text
        assert k.placed() == [], k.placed()


def told_not_to():
    with Seen() as k:
        task = k.linked()
        k.start("--no-local-models")
        k.ended(task)
        assert (k.gets(), k.puts(), k.begun()) == (1, 1, [False]), k.c.requests
        assert k.c.registered[0]["sees_paths"] is False


def paths_of_other_files():
    """A lease whose input is to be taken from any file of this host is no lease."""
    with Seen() as k:
        secret = os.path.join(k.folder, "secret")
        with open(secret, "wb") as f:
            f.write(read(TEXT))
        good = k.linked("t_good")
        k.c.ready.clear()
        digest = good.lease["inputs"][0]["sha256"]
        for path in (secret, "secret", digest, "store/" + digest, k.stored(digest) + "/", k.stored(digest) + ".part", 7):
            lease = {**good.lease, "inputs": [{**good.lease["inputs"][0], "path": path}]}
            k.c.rule("POST", "/v1/leases", lambda h, r, b=lease: Coordinator.answer(h, 200, b), 1)
        k.start()
        k.c.wait(lambda: all(rule[3] == 0 for rule in k.c.rules), "the leases to be given")
        good.state = "READY"
        k.c.give(good)
        k.ended(good)
        assert k.worker.text().count("is not that of a file " + digest) == 6, k.worker.text()


def a_changed_file_ends_linking():
    with Seen() as k:
        task = k.linked()
        digest = task.lease["inputs"][0]["sha256"]
        k.start()
        k.ended(task)
        k.restart()
        n = k.gets()
        with open(k.stored(digest), "r+b") as f:
            f.write(b"damage")  # one file with two names
        k.ended(k.linked("t_after"))
        assert k.gets() == n + 1, "the coordinator's file is the damaged one as well"
        assert sha256(read(k.cached(digest))) == digest
        k.ended(k.linked("t_other", text=b"other words " * 400))
        assert k.gets() == n + 2, "and what else it sees is verified from now on"


def a_wrong_download_is_not_followed_by_a_link():
    with Seen() as k:
        data = read(TEXT)
        digest = sha256(data)
        path = k.stored(digest)

        def damaged(handler, request):
            with open(path, "wb") as f:     # there it is, after all, and as wrong as what is sent
                f.write(b"!" + data[1:])
            return k.c.send_bytes(handler, b"!" + data[1:])
        k.c.rule("GET", "/v1/blobs/.*", damaged, 1)
        task = k.linked(spoil=os.remove)
        k.start()
        k.ended(task)
        assert k.gets() == 2 and sha256(read(k.cached(digest))) == digest, k.gets()


# --- placing ------------------------------------------------------------------------------------------------


def refused(status, name):
    def answer(handler, request):
        if request.get("body") != {"placed": True}:
            return False
        return Coordinator.problem(handler, status, name)
    return answer


def refused_files_go_up_in_parts():
    for status, name in ((409, "conflict"), (422, "corrupt"), (404, "not-found"), (403, "forbidden"), (500, "io")):
        with Seen(part_bytes=65536) as k:
            k.c.rule("POST", "/v1/uploads/.*/complete", refused(status, name))
            task = k.linked()
            k.start()
            output, = k.ended(task)["outputs"]
            assert k.puts() == (output["bytes"] + 65535) // 65536, k.puts()
            assert k.begun() == [True, False], (status, k.begun())
            assert k.placed() == [], k.placed()
            assert k.worker.text().count(" info ") and k.worker.text().count("is sent in parts: ") == 1, k.worker.text()
            k.ended(k.linked("t_next", text=b"more words " * 300))
            assert k.begun() == [True, False, True, False], "another file is tried again"
            assert [" info " in line for line in k.worker.text().splitlines() if "is sent in parts" in line] == [True, False]


def places_that_are_none():
    with Seen() as k:
        task = k.linked()
        k.c.place_folder = os.path.join(k.folder, "nowhere")
        k.start()
        k.ended(task)
        assert (k.puts(), k.begun()) == (1, [True]), k.begun()
        assert "is sent in parts: cannot link " in k.worker.text(), k.worker.text()
        k.c.place_folder = k.store
        for n, path in enumerate(("/etc/passwd", "relative.placed", os.path.join(k.folder, "token"))):
            def elsewhere(handler, request, path=path):
                return Coordinator.answer(handler, 201, {"upload": "u_x", "part_bytes": 1024, "parts_done": [], "place": path})
            k.c.rule("POST", "/v1/uploads", elsewhere, 1)
            k.ended(k.linked(f"t_{n}", text=b"%d words " % n * 200))
        assert k.worker.text().count("is not that of a file ") == 3, k.worker.text()
        assert read(k.token_file) == (k.c.token + "\n").encode()


def an_occupied_place():
    with Seen() as k:
        k.start()
        first = k.linked()
        output, = k.ended(first)["outputs"]
        data = k.c.blobs.pop(output["sha256"])
        with open(k.c.place_of(output["sha256"]), "wb") as f:
            f.write(b"left by another")
        k.ended(k.linked("t_file"))
        assert k.c.blobs[output["sha256"]] == data and k.puts() == 0, "a file gives way"
        del k.c.blobs[output["sha256"]]
        os.mkdir(k.c.place_of(output["sha256"]))
        k.ended(k.linked("t_folder"))
        assert k.c.blobs[output["sha256"]] == data and k.puts() == 1, "a folder does not"


def no_verdict_is_no_refusal():
    with Seen() as k:
        def stored_but_cut(handler, request):
            digest = request["path"].split("/")[3][2:]
            with k.c.changed:
                k.c.uploads.pop(digest)
                k.c.blobs[digest] = k.c.take_placed(digest)
            return Coordinator.cut(handler)
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: Coordinator.problem(h, 429, "busy"), 1)
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: Coordinator.cut(h), 4)
        k.c.rule("POST", "/v1/uploads/.*/complete", stored_but_cut, 1)
        task = k.linked()
        k.start()
        output, = k.ended(task)["outputs"]
        assert k.puts() == 0 and len(k.begun()) > 2 and all(k.begun()), k.begun()
        assert k.same_file(output["sha256"]) and k.placed() == []
        assert all(rule[3] == 0 for rule in k.c.rules), k.c.rules


def killed_with_a_placed_result():
    with Seen() as k:
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: Coordinator.cut(h))
        task = k.linked()
        k.start("--name", "stable")
        k.c.wait(lambda: k.c.count("POST", "/v1/uploads/.*/complete") >= 1, "the file to be placed")
        k.worker.kill()
        k.worker.wait()
        k.c.rules.clear()
        k.start("--name", "stable")
        output, = k.ended(task)["outputs"]
        assert k.puts() == 0 and k.placed() == [], k.placed()
        assert sha256(read(k.stored(output["sha256"]))) == output["sha256"]
        k.nothing_left()


def a_lost_task_leaves_nothing_behind():
    with Seen() as k:
        gate = Gate(k.c)
        k.c.rule("POST", "/v1/uploads/.*/complete", lambda h, r: gate(h, r) or Coordinator.cut(h))
        task = k.linked(lease_seconds=1)
        k.start()
        k.at_gate(gate)
        assert len(k.placed()) == 1, k.placed()
        k.c.rule("POST", ".*/t_linked/heartbeat", lambda h, r: Coordinator.problem(h, 409, "conflict"))
        wait_for(lambda: not k.placed(), "the placed file to be taken back")
        k.nothing_left()
        assert task.ended is None and len(os.listdir(k.store)) == 1, "nothing but the input"
        gate.open()


def without_memory(counts=range(200, 330, 7)):
    """The N-th allocation fails once while links are made: a failed task or another try, never a crash."""
    states = set()
    for n in counts:
        with Seen() as k:
            k.env["QUARRY_FAIL_ALLOC"] = str(n)
            task = k.linked()
            task.requeue = True
            k.start("--name", "fixed")
            wait_for(lambda: task.state not in ("READY", "LEASED") or not k.worker.alive(), f"an outcome of {n}")
            if not k.worker.alive():
                k.exits(1)
                assert "out of memory" in k.worker.text(), k.worker.text()
                continue
            if task.state == "FAILED":
                assert task.ended["error"]["name"] == "out-of-memory", (n, task.ended)
            states.add(task.state)
            k.ended(k.verify("t_next"))
    assert states == {"DONE", "FAILED"}, states


def main():
    tap = Tap()
    for function in (
            linked_both_ways, fetched_where_there_is_no_link, on_another_file_system, told_not_to, paths_of_other_files,
            a_changed_file_ends_linking, a_wrong_download_is_not_followed_by_a_link, refused_files_go_up_in_parts,
            places_that_are_none, an_occupied_place, no_verdict_is_no_refusal, killed_with_a_placed_result,
            a_lost_task_leaves_nothing_behind, without_memory):
        if len(sys.argv) > 1 and function.__name__ not in sys.argv[1:]:
            continue
        if function is on_another_file_system and not other_file_system(tempfile.gettempdir()):
            tap.skip("on another file system", "this machine has only one to write to")
            continue
        tap.case(function.__name__.replace("_", " "), function)
    tap.end()


if __name__ == "__main__":
    main()
