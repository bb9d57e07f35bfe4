#!/usr/bin/env python3
"""The dashboard in a real browser, fed by a real server and a worker that fakes its results."""
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from browser import Browser, find_browser  # noqa: E402
from http_server import TOKENS, FakeWorker, Server, add_model, equal, run_tests, submit  # noqa: E402

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
PHONE = 390


class Page(Browser):
    def __init__(self, server):
        super().__init__()
        self.server = server

    def sign_in(self, token):
        self.wait("!document.getElementById('sign-in').hidden")
        self.evaluate(f"document.getElementById('token').value = '{token}';"
                      "document.getElementById('sign-in').requestSubmit()")

    def overview(self, role="submitter"):
        self.open(self.server.url + "/")
        self.sign_in(TOKENS[role])
        self.wait("document.getElementById('pulse').textContent == 'live'")

    def job(self, job):
        self.evaluate(f"location.hash = '#/jobs/{job}'")
        self.wait("!document.getElementById('job').hidden && document.querySelector('#job-results .card')")

    def count(self, selector):
        return self.evaluate(f"document.querySelectorAll({selector!r}).length")

    def content(self, selector):
        return self.evaluate(f"document.querySelector({selector!r}).innerText")

    def clean(self):
        equal(self.console, [], "messages in the browser's console")
        equal([u for u in self.requests if not u.startswith((self.server.url, "about:"))], [], "requests elsewhere")


def fits(page, width, what):
    page.size(width, 844, True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{what} is {wide} pixels wide on a screen of {width}"
    page.size(1200, 800)


def test_it_asks_for_a_token():
    with Server("token") as s, Page(s) as page:
        page.open(s.url + "/")
        page.sign_in("wrong-token")
        page.wait("!document.getElementById('notice').hidden")
        assert "token" in page.content("#notice"), page.content("#notice")
        page.sign_in(TOKENS["viewer"])
        page.wait("document.getElementById('pulse').textContent == 'live'")
        assert "No jobs" in page.content("#jobs") and "No workers" in page.content("#workers"), page.text()
        equal(page.evaluate("Object.keys(localStorage).length + document.cookie.length"), 0, "kept outside of the session")
        page.evaluate("document.getElementById('forget').click()")
        page.wait("!document.getElementById('sign-in').hidden")
        equal(page.evaluate("sessionStorage.getItem('token')"), None)
        equal([m for m in page.console if "401" not in m], [], "messages in the browser's console")


def test_overview_and_a_job_that_runs():
    with Server("running") as s, Page(s) as page:
        worker, job = FakeWorker(s, "node-1"), submit(s, "a running job")
        lease = worker.lease()
        while lease["kind"] != "quantize":
            worker.heartbeat(lease)
            worker.complete(lease)
            lease = worker.lease()
        worker.heartbeat(lease, 0.25, "q_proj")
        page.overview()
        page.wait("document.querySelectorAll('#jobs tbody tr').length == 1")
        for text in ("a running job", "running", "fable-tiny", "%"):
            assert text in page.content("#jobs"), page.content("#jobs")
        for text in ("node-1", "busy", "quantize", "q_proj", "ago"):
            assert text in page.content("#workers"), page.content("#workers")
        fits(page, PHONE, "the overview")
        page.job(job)
        layers = len(s.good("GET", f"/v1/jobs/{job}", "viewer")["layers"])
        equal(page.count(".grid-scroll tbody tr"), layers, "layers")
        equal(page.count(".grid-scroll tbody button"), 7 * layers, "modules")
        equal(page.count(".grid-scroll button.LEASED"), 7)
        worker.complete(lease)
        page.wait("document.querySelectorAll('.grid-scroll button.DONE').length == 7")  # by itself
        colours = page.evaluate("[...document.querySelectorAll('.grid-scroll button.DONE')].map(b => b.style.background)")
        equal(len(set(colours)), 7, f"colours of different losses: {colours}")
        page.evaluate("document.querySelector('.grid-scroll button.DONE').click()")
        info = page.content("#grid-info")
        assert "self_attn.q_proj" in info and "2 bits" in info and "relative loss" in info, info
        for text in ("waiting", "failed", "skipped", "relative loss"):
            assert text in page.content(".legend"), page.content(".legend")
        page.wait("document.querySelectorAll('#job-events li').length >= 2")
        fits(page, PHONE, "a job")
        page.clean()


def test_a_worker_with_a_device():
    with Server("device") as s, Page(s) as page:
        s.good("POST", "/v1/workers", "worker",
               {"name": "gpu-1", "backend": "cuda", "identity": "cuda 13.0", "threads": 4, "memory_bytes": 1 << 34,
                "device": {"number": 1, "name": "NVIDIA H200 " + HOSTILE[:40], "driver": "CUDA 13.0", "clock_mhz": 1980,
                           "memory_bytes": 150754820096}})
        page.overview()
        page.wait("document.querySelectorAll('#workers tbody tr').length == 1")
        for text in ("gpu-1", "cuda · NVIDIA H200 <img", "(1) · 4 threads"):
            assert text in page.content("#workers"), page.content("#workers")
        title = page.evaluate("document.querySelector('#workers td[title]').title")
        for text in ("CUDA 13.0", "1980 MHz", "151 GB"):
            assert text in title, title
        fits(page, PHONE, "the overview")
        page.clean()


def test_a_job_that_is_done():
    with Server("done") as s, Page(s) as page:
        worker, job = FakeWorker(s), submit(s, "done job")
        while worker.step():
            pass
        page.overview("viewer")
        page.job(job)
        page.wait("document.querySelector('#job-head .pill').textContent == 'done'")
        page.wait("document.querySelectorAll('#job-results tbody tr').length >= 4")
        results = page.content("#job-results")
        for text in ("evaluation.txt", "20.08", "24.53", "+22.1 %", "original model", "dense", "packed"):
            assert text in results, results
        assert "ASSEMBLING=>DONE" in page.content("#job-events"), page.content("#job-events")
        equal(page.count("#job-head button"), 0, "buttons of a job that is done")
        page.clean()


def test_distillation_is_drawn():
    with Server("distilled") as s, Page(s) as page:
        worker, job = FakeWorker(s), submit(s, "distilled job", distill="full")
        while (lease := worker.lease())["kind"] != "distill":
            worker.heartbeat(lease)
            worker.complete(lease)
        layers = len(s.good("GET", f"/v1/jobs/{job}", "viewer")["layers"])
        page.overview("viewer")
        page.job(job)
        page.wait(f"document.querySelectorAll('#job-curves .small-plot polyline').length == {layers}")
        equal(page.count("#job-curves .big-plot"), 0, "curves of a task that is not done")
        assert "0.250 → 0.125" in page.content("#job-curves .small-plot"), page.content("#job-curves")
        worker.complete(lease)
        page.wait("document.querySelectorAll('#job-curves .big-plot polyline').length == 2")  # by itself
        points = page.evaluate("document.querySelector('#job-curves .big-plot polyline').getAttribute('points')")
        equal(points, "0.00,2.00 100.00,21.20", "0.5 at step 6, 0.4 at step 12")
        for text in ("KL divergence on calibration text 0.5000 → 0.3750", "training steps 6 to 12", "Hidden states"):
            assert text in page.content("#job-curves"), page.content("#job-curves")
        page.evaluate("(() => { const e = document.querySelector('#job-curves .big-plot .plot'), b = e.getBoundingClientRect();"
                      "e.dispatchEvent(new PointerEvent('pointermove', { clientX: b.right - 1, clientY: b.top + 5 })); })()")
        assert "around step 12: 0.4000" in page.content("#job-curves figcaption"), page.content("#job-curves")
        while worker.step():
            pass
        page.wait("document.querySelector('#job-head .pill').textContent == 'done'")
        page.wait("document.querySelector('#job-results').innerText.includes('dense')")
        assert "KL divergence 0.2000 · top-1 agreement 88.0 %" in page.content("#job-results"), page.content("#job-results")
        fits(page, PHONE, "a distilled job")
        page.clean()


def test_a_reference_stands_beside():
    with Server("reference") as s, Page(s) as page:
        worker, model = FakeWorker(s), add_model(s)
        job = s.good("POST", "/v1/jobs", "submitter", {"name": "compared", "model": model, "recipe": {
            "kind": "evaluate", "reference": model, "seq_len": 128, "eval_windows": 2}})["job"]
        while worker.step():
            pass
        page.overview("viewer")
        page.job(job)
        page.wait("document.querySelectorAll('#job-results .compared').length == 1")
        results = page.content("#job-results")
        for text in ("reference", "this model", "KL divergence 0.2000", "top-1 agreement 88.0 %"):
            assert text.lower() in results.lower(), results
        assert "against fable-tiny" in page.content("#job-head"), page.content("#job-head")
        assert page.evaluate("document.getElementById('job-curves').hidden"), "curves of a job that trains nothing"
        page.clean()


def test_a_failed_job_with_a_hostile_name():
    with Server("hostile") as s, Page(s) as page:
        worker, job = FakeWorker(s, HOSTILE), submit(s, HOSTILE)
        lease = worker.lease()
        worker.heartbeat(lease, 0.5, HOSTILE)
        page.overview()
        page.wait("document.querySelectorAll('#jobs tbody tr').length == 1")
        s.good("POST", f"/v1/leases/{lease['task']}/fail", "worker",
               worker.holder(lease, error={"name": "corrupt", "detail": "why " + HOSTILE}, log="log " + HOSTILE))
        assert HOSTILE in page.content("#jobs"), page.content("#jobs")
        assert HOSTILE in page.content("#workers"), page.content("#workers")
        page.job(job)
        page.wait("!document.getElementById('job-failure').hidden")
        assert "why " + HOSTILE in page.content("#job-failure"), page.content("#job-failure")
        page.evaluate("document.querySelector('#job-failure details').open = true")
        assert "log " + HOSTILE in page.content("#job-failure"), page.content("#job-failure")
        equal(page.count("main img") + page.count("#job b.bold"), 0, "elements out of names")
        assert HOSTILE in page.evaluate("document.title"), page.evaluate("document.title")
        page.evaluate("document.querySelector('#job-head button').click()")
        equal(s.good("GET", f"/v1/jobs/{job}", "viewer")["state"], "FAILED", "one press only asks")
        page.evaluate("document.querySelector('#job-head button').click()")
        page.wait("document.querySelector('#job-head .pill').textContent == 'running'")
        page.clean()


def test_cancelling():
    with Server("cancel") as s, Page(s) as page:
        job = submit(s)
        page.overview()
        page.job(job)
        button = "document.querySelector('#job-head button.danger')"
        page.wait(button)
        page.evaluate(button + ".click()")
        equal(page.content("#job-head button.danger"), "Really cancel?")
        page.evaluate(button + ".click()")
        page.wait("document.querySelector('#job-head .pill').textContent == 'cancelled'")
        equal(s.good("GET", f"/v1/jobs/{job}", "viewer")["state"], "CANCELLED")
        page.clean()


def test_idle_polls_cost_304s():
    with Server("idle") as s, Page(s) as page:
        submit(s)
        page.overview("viewer")
        page.wait("document.querySelectorAll('#jobs tbody tr').length == 1")
        before = s.metric('quarry_http_replies_total{class="3xx"}')
        page.wait("performance.getEntriesByType('resource').length > 12")
        assert s.metric('quarry_http_replies_total{class="3xx"}') > before, "no 304 among the polls"
        page.clean()


if __name__ == "__main__":
    if find_browser():
        run_tests(globals())
    print("ok 1 - dashboard # SKIP no Chromium is installed (apt-get install chromium)\n1..1")
