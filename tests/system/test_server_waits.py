#!/usr/bin/env python3
"""Requests that wait: leases, job changes and event streams; and a whole job driven by a worker that fakes its results."""
import http.client
import json
import os
import sqlite3
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import wait_for  # noqa: E402
from http_server import RECIPE, TOKENS, FakeWorker, Server, add_model, equal, run_tests, submit  # noqa: E402


class Later:
    """A call in a thread of its own."""

    def __init__(self, function, *args):
        self.value, self.error, self.seconds = None, None, None
        self.thread = threading.Thread(target=self.run, args=(function, args), daemon=True)
        self.thread.start()

    def run(self, function, args):
        started = time.monotonic()
        try:
            self.value = function(*args)
        except Exception as e:  # noqa: BLE001
            self.error = e
        self.seconds = time.monotonic() - started

    def get(self, seconds=60):
        self.thread.join(seconds)
        assert not self.thread.is_alive(), "the call has not come back"
        if self.error:
            raise self.error
        return self.value


def parked(s, count):
    wait_for(lambda: s.metric("quarry_http_parked") == count, f"{count} parked requests")


def drain_tasks(worker):
    """Leases everything that is ready and keeps it."""
    held = []
    while True:
        lease = worker.lease()
        if not lease:
            return held
        held.append(lease)


# --- leases --------------------------------------------------------------------------------------------------


def test_a_lease_waits_for_work():
    with Server("lease") as s:
        worker = FakeWorker(s)
        equal(worker.lease(), None, "no Prefer: no waiting")
        equal(worker.lease(0), None)
        waiting = Later(worker.lease, 60)
        parked(s, 1)
        job = submit(s)
        lease = waiting.get()
        equal(lease["job"], job)
        assert waiting.seconds < 50, waiting.seconds
        wait_for(lambda: s.metric("quarry_http_parked") == 0, "nobody parked")


def test_a_lease_times_out():
    with Server("timeout") as s:
        worker = FakeWorker(s)
        waiting = Later(worker.lease, 1)
        equal(waiting.get(), None)
        assert waiting.seconds >= 1, waiting.seconds
        s.problem(404, "POST", "/v1/leases", "worker", {"worker": "w_no"}, {"Prefer": "wait=30"})
        s.problem(400, "POST", "/v1/leases", "worker", {}, {"Prefer": "wait=30"})


def test_one_task_goes_to_one_of_many():
    with Server("many") as s:
        workers = [FakeWorker(s, f"w{i}") for i in range(12)]
        waiting = [Later(w.lease, 60) for w in workers]
        parked(s, len(workers))
        submit(s)
        wait_for(lambda: any(not w.thread.is_alive() for w in waiting), "one lease")
        submit(s, "another")
        for _ in range(20):  # each task that is done wakes others
            for later, worker in zip(waiting, workers):
                if later.value:
                    worker.heartbeat(later.value)
                    worker.complete(later.value)
                    later.value = None
        s.good("POST", f"/v1/workers/{workers[0].id}/drain", "admin")
        leases = [w.value["task"] for w in waiting if w.value]
        equal(len(leases), len(set(leases)), "tasks leased twice")
        for job in s.good("GET", "/v1/jobs", "viewer")["items"]:
            s.good("POST", f"/v1/jobs/{job['id']}/cancel", "submitter")
        s.stop()
        for w in waiting:
            w.get()


def set_rates(s, rates):
    """Of every kind, as if the workers had been measured: name -> work a second."""
    with sqlite3.connect(os.path.join(s.data, "quarry.db"), timeout=30) as db:
        for name, rate in rates.items():
            db.execute("WITH RECURSIVE k (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM k WHERE value < 8) "
                       "INSERT INTO worker_rates SELECT w.pk, k.value, ?, 1 FROM workers w, k WHERE w.name = ?", (rate, name))
    db.close()


def test_a_wake_finds_the_fast_worker_behind_a_crowd_of_slow_ones():
    with Server("fast") as s:
        slow = [FakeWorker(s, f"slow{i}") for i in range(30)]
        fast = FakeWorker(s, "fast")
        set_rates(s, {"fast": 1e6, **{w.name: 1e-3 for w in slow}})
        waiting = [Later(w.lease, 60) for w in slow]
        parked(s, len(slow))
        first = Later(fast.lease, 60)
        parked(s, len(slow) + 1)
        job = submit(s)
        lease = first.get()
        equal(lease["job"], job)
        while lease:  # the whole job, and nobody else gets any of it
            fast.heartbeat(lease)
            fast.complete(lease)
            lease = fast.lease()
        wait_for(lambda: s.good("GET", f"/v1/jobs/{job}", "viewer")["state"] == "DONE", "the job to be done")
        equal([w.value for w in waiting], [None] * len(slow), "leases of slow workers")
        # The fast one is told to stop: now they are good enough.
        s.good("POST", f"/v1/workers/{fast.id}/drain", "admin")
        submit(s, "another")
        wait_for(lambda: any(w.value for w in waiting), "a slow worker to get a task")
        for job in s.good("GET", "/v1/jobs", "viewer")["items"]:
            if job["state"] != "DONE":
                s.good("POST", f"/v1/jobs/{job['id']}/cancel", "submitter")
        s.stop()
        for w in waiting:
            w.get()


def test_a_vanished_client_gets_no_task():
    with Server("vanished") as s:
        worker = FakeWorker(s)
        for _ in range(5):
            c = http.client.HTTPConnection("127.0.0.1", s.port)
            c.request("POST", "/v1/leases", json.dumps({"worker": worker.id}),
                      {"Authorization": f"Bearer {TOKENS['worker']}", "Content-Type": "application/json", "Prefer": "wait=60"})
            parked(s, 1)
            c.sock.close()
            c.close()
            parked(s, 0)  # noticed long before the 60 s are over
        submit(s)
        assert worker.lease(30), "the task is still there"


def test_draining_is_told():
    with Server("drain") as s:
        worker = FakeWorker(s)
        waiting = Later(s.call, "POST", "/v1/leases", "worker", {"worker": worker.id}, {"Prefer": "wait=2"})
        parked(s, 1)
        s.good("POST", f"/v1/workers/{worker.id}/drain", "admin")
        waiting.get()
        r = s.call("POST", "/v1/leases", "worker", {"worker": worker.id}, {"Prefer": "wait=60"})
        equal((r.status, r.headers["Quarry-Drain"]), (204, "true"))


def test_two_hundred_parked_polls_beside_other_requests():
    with Server("crowd") as s:
        job, worker = submit(s), FakeWorker(s)
        drain_tasks(worker)
        crowd = []
        for _ in range(200):
            c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
            c.request("POST", "/v1/leases", json.dumps({"worker": worker.id}),
                      {"Authorization": f"Bearer {TOKENS['worker']}", "Content-Type": "application/json", "Prefer": "wait=60"})
            crowd.append(c)
        parked(s, 200)
        c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
        started = time.monotonic()
        for _ in range(2000):
            equal(s.call("GET", f"/v1/jobs/{job}", "viewer", connection=c).status, 200)
        print(f"# {2000 / (time.monotonic() - started):.0f} job reads a second over one connection beside 200 parked polls")
        parked(s, 200)
        for c in crowd[:100]:
            c.sock.close()
            c.close()
        parked(s, 100)
        s.stop()
        for c in crowd[100:]:
            equal(c.getresponse().status, 204)


# --- job changes --------------------------------------------------------------------------------------------------


def test_waiting_for_a_change():
    with Server("change") as s:
        job, worker = submit(s), FakeWorker(s)
        path = f"/v1/jobs/{job}"
        first = s.call("GET", path, "viewer")
        etag = first.headers["ETag"].strip('"')
        equal(s.call("GET", path, "viewer", headers={"If-None-Match": f'"{etag}"'}).status, 304)
        equal(s.call("GET", path, "viewer", headers={"If-None-Match": '"other", "x"'}).status, 200)
        equal(s.call("GET", f"{path}?wait_for_change=other", "viewer").status, 200, "another ETag: at once")
        for written in (etag, f"%22{etag}%22"):
            r = Later(s.call, "GET", f"{path}?wait_for_change={written}", "viewer", None, {"Prefer": "wait=1"})
            equal((r.get().status, r.value.headers["ETag"]), (304, f'"{etag}"'), "time-out")
            assert r.seconds >= 1, r.seconds
        waiting = [Later(s.call, "GET", f"{path}?wait_for_change={etag}", "viewer", None, {"Prefer": "wait=60"})
                   for _ in range(10)]
        parked(s, 10)
        other = submit(s, "another job")
        s.good("POST", f"/v1/jobs/{other}/cancel", "submitter")
        lease = worker.lease()
        for w in waiting:
            r = w.get()
            equal(r.status, 200)
            assert r.headers["ETag"].strip('"') != etag, r
            assert w.seconds < 50, w.seconds
        assert lease["job"] == job, lease


def test_lists_and_models_have_etags():
    with Server("etags") as s:
        submit(s)
        for path in ("/v1/jobs", "/v1/models", "/v1/datasets", "/v1/workers", f"/v1/models/{add_model(s)}"):
            r = s.call("GET", path, "viewer")
            equal(s.call("GET", path, "viewer", headers={"If-None-Match": r.headers["ETag"]}).status, 304, path)
        FakeWorker(s)
        equal(s.call("GET", path, "viewer", headers={"If-None-Match": r.headers["ETag"]}).status, 304, path)


# --- events -----------------------------------------------------------------------------------------------------------


def read_events(s, job, last=None, until=None):
    """[(id, data)] up to the end of the stream, or until `until` events came."""
    headers = {"Authorization": f"Bearer {TOKENS['viewer']}"}
    if last is not None:
        headers["Last-Event-ID"] = str(last)
    c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
    c.request("GET", f"/v1/jobs/{job}/events", headers=headers)
    r = c.getresponse()
    events, seq, ended = [], None, False
    if r.status == 204:
        return 204
    equal((r.status, r.headers["Content-Type"]), (200, "text/event-stream"))
    for line in r:
        line = line.decode().rstrip("\n")
        if line.startswith("id: "):
            seq = int(line[4:])
        elif line == "event: end":
            ended = True
        elif line.startswith("data: "):
            events.append(("end" if ended else seq, json.loads(line[6:])))
            if until and len(events) >= until:
                break
    c.close()
    return events


def test_events():
    with Server("events") as s:
        job = submit(s)
        first = read_events(s, job, until=1)
        assert first[0][0] == first[0][1]["seq"] and first[0][1]["text"], first
        following = Later(read_events, s, job)
        parked(s, 1)
        s.good("POST", f"/v1/jobs/{job}/cancel", "submitter")
        events = following.get()
        equal(events[-1], ("end", {"state": "CANCELLED"}))
        ids = [e[0] for e in events[:-1]]
        equal(ids, sorted(set(ids)), "ids grow")
        assert any("CANCELLED" in e[1]["text"] for e in events[:-1]), events
        equal(read_events(s, job, ids[0]), events[1:], "Last-Event-ID")
        equal(read_events(s, job, ids[-1]), 204, "nothing left")
        equal(s.call("GET", f"/v1/jobs/{job}/events?after={ids[-1]}", "viewer").body.count(b"id: "), 0)


def test_vanished_readers_of_events_are_let_go():
    with Server("readers") as s:
        job = submit(s)
        for _ in range(3):
            crowd = []
            for _ in range(20):
                c = http.client.HTTPConnection("127.0.0.1", s.port, timeout=60)
                c.request("GET", f"/v1/jobs/{job}/events", headers={"Authorization": f"Bearer {TOKENS['viewer']}"})
                crowd.append(c)
            parked(s, 20)
            for c in crowd:
                c.sock.close()
                c.close()
            parked(s, 0)


# --- a whole job -------------------------------------------------------------------------------------------------------


def test_a_fake_worker_drives_a_whole_job():
    s = Server("whole")
    with s:
        job, worker = submit(s, "whole job"), FakeWorker(s)
        events = Later(read_events, s, job)
        kills = 0
        while worker.step(1):
            if len(worker.done) in (2, 5, 9):  # the server dies between tasks, three times
                kills += 1
                s.kill()
                s.start()
        equal(kills, 3)
        try:
            events.get()
        except (http.client.HTTPException, ConnectionError):
            pass
        state = wait_for(lambda: (lambda j: j if j["state"] not in ("RUNNING", "ASSEMBLING") else None)(
            s.good("GET", f"/v1/jobs/{job}", "viewer")), "the end of the job")
        equal(state["state"], "DONE", state.get("failure"))
        equal(state["progress"], 1)
        equal(state["tasks"]["DONE"], state["tasks"]["total"])
        equal(len(worker.done), state["tasks"]["total"], "no task was done twice")
        for layer in state["layers"]:
            equal(layer["state"], "DONE")
            for module in layer["modules"]:
                assert module["relative_loss"] > 0, module
        assert state["perplexity"][0]["original"] and state["perplexity"][0]["quantized"], state["perplexity"]
        files = s.good("GET", f"/v1/jobs/{job}/files", "viewer")["items"]
        assert {"report.json", "dense/config.json", "dense/README.md"} <= {f["path"] for f in files}, files
        for f in files:
            r = s.call("GET", f"/v1/jobs/{job}/files/{f['path']}", "submitter")
            equal((r.status, len(r.body), r.headers["ETag"]), (200, f["bytes"], f'"{f["sha256"]}"'), f["path"])
            part = s.call("GET", f"/v1/jobs/{job}/files/{f['path']}", "submitter", headers={"Range": "bytes=1-3"})
            equal(part.body, r.body[1:4], f["path"])
        equal(s.good("GET", f"/v1/jobs/{job}/report", "viewer"),
              json.loads(s.call("GET", f"/v1/jobs/{job}/files/report.json", "submitter").body))
        tasks = s.good("GET", f"/v1/jobs/{job}/tasks?limit=500", "viewer")["items"]
        equal({t["state"] for t in tasks}, {"DONE"})
        equal(read_events(s, job)[-1], ("end", {"state": "DONE"}))
        s.good("DELETE", f"/v1/jobs/{job}", "releaser", status=204)
        s.problem(404, "GET", f"/v1/jobs/{job}", "viewer")
        s.problem(404, "GET", f"/v1/jobs/{job}/files/report.json", "submitter")


def test_repeats_have_one_effect():
    with Server("repeats") as s:
        body = {"name": "once", "model": add_model(s), "recipe": RECIPE}
        key = {"Idempotency-Key": "key-1"}
        first = s.call("POST", "/v1/jobs", "submitter", body, key)
        again = s.call("POST", "/v1/jobs", "submitter", body, key)
        equal((first.status, again.status), (201, 200))
        equal(first.json()["job"], again.json()["job"])
        equal(len(s.good("GET", "/v1/jobs", "viewer")["items"]), 1)
        worker = FakeWorker(s)
        equal(FakeWorker(s).id, worker.id, "the same name")
        lease = worker.lease()
        done = worker.complete(lease)
        s.good("POST", f"/v1/leases/{lease['task']}/complete", "worker", done, status=200)
        s.problem(409, "POST", f"/v1/leases/{lease['task']}/complete", "worker", {**done, "epoch": lease["epoch"] + 1})
        s.problem(409, "POST", f"/v1/leases/{lease['task']}/heartbeat", "worker", worker.holder(lease))
        job = first.json()["job"]
        for _ in range(2):
            equal(s.good("POST", f"/v1/jobs/{job}/cancel", "submitter"), {"job": job, "state": "CANCELLED"})
        plan = s.good("POST", "/v1/jobs?dry_run=true", "submitter", body, status=200)
        assert plan["tasks"]["total"] > 10, plan
        refused = s.problem(422, "POST", "/v1/jobs", "submitter", {**body, "recipe": {"bits": 9, "method": "best", "samples": 0}})
        assert len(refused["problems"]) >= 2, refused
        equal(len(s.good("GET", "/v1/jobs", "viewer")["items"]), 1)


def test_a_failed_job_says_why_and_can_be_retried():
    with Server("failing") as s:
        job, worker = submit(s), FakeWorker(s)
        lease = worker.lease()
        s.good("POST", f"/v1/leases/{lease['task']}/fail", "worker",
               worker.holder(lease, error={"name": "corrupt", "detail": "config.json <b>is</b> odd"}, log="line 1\nline 2"))
        state = s.good("GET", f"/v1/jobs/{job}", "viewer")
        equal(state["state"], "FAILED")
        assert "config.json <b>is</b> odd" in json.dumps(state["failure"]), state["failure"]
        equal(s.good("POST", f"/v1/jobs/{job}/retry", "submitter"), {"job": job, "state": "RUNNING"})
        while worker.step():
            pass
        wait_for(lambda: s.good("GET", f"/v1/jobs/{job}", "viewer")["state"] == "DONE", "the end of the job")
        s.problem(409, "POST", f"/v1/jobs/{job}/retry", "submitter")


def test_small_operations():
    with Server("small") as s:
        equal(s.good("GET", "/readyz", None), {"ready": True})
        sha256 = s.upload(b"a text")
        dataset = s.good("POST", "/v1/datasets", "submitter", {"name": "a.txt", "sha256": sha256}, status=201)
        equal(s.good("GET", f"/v1/datasets/{dataset['dataset']}", "viewer"), dataset)
        equal(s.good("GET", "/v1/datasets", "viewer"), {"items": [dataset], "next": None})
        s.good("DELETE", f"/v1/datasets/{dataset['dataset']}", "releaser", status=204)
        s.problem(404, "DELETE", f"/v1/datasets/{dataset['dataset']}", "releaser")
        s.problem(404, "GET", f"/v1/blobs/{sha256}", "worker")
        job, worker = submit(s), FakeWorker(s, "w1")
        model = s.good("GET", "/v1/models", "viewer")["items"][0]["model"]
        s.problem(409, "DELETE", f"/v1/models/{model}", "releaser")
        lease = worker.lease()
        equal(s.good("GET", f"/v1/workers/{worker.id}", "viewer")["state"], "busy")
        equal(worker.heartbeat(lease), {"cancel": False, "drain": False})
        s.good("POST", f"/v1/leases/{lease['task']}/release", "worker", worker.holder(lease, reason="drain"), status=200)
        again = worker.lease()
        equal((again["task"], again["epoch"]), (lease["task"], lease["epoch"] + 1))
        s.problem(409, "POST", f"/v1/leases/{lease['task']}/heartbeat", "worker", worker.holder(lease))
        s.good("POST", f"/v1/jobs/{job}/cancel", "submitter")
        s.problem(409, "POST", f"/v1/leases/{again['task']}/heartbeat", "worker", worker.holder(again))
        s.good("DELETE", f"/v1/jobs/{job}", "releaser", status=204)
        s.good("DELETE", f"/v1/models/{model}", "releaser", status=204)
        equal(s.good("GET", "/v1/stats", "viewer")["jobs"]["CANCELLED"], 0)


def test_lists_are_paged():
    with Server("pages") as s:
        jobs = [submit(s, f"job {i}") for i in range(7)]
        seen, cursor = [], ""
        while cursor is not None:
            page = s.good("GET", f"/v1/jobs?limit=3{cursor and '&cursor=' + cursor}", "viewer")
            assert 1 <= len(page["items"]) <= 3, page
            seen += [j["id"] for j in page["items"]]
            cursor = page["next"]
        equal(seen, jobs[::-1], "newest first, each once")
        s.good("POST", f"/v1/jobs/{jobs[2]}/cancel", "submitter")
        equal([j["id"] for j in s.good("GET", "/v1/jobs?state=CANCELLED", "viewer")["items"]], [jobs[2]])


if __name__ == "__main__":
    run_tests(globals())
