#!/usr/bin/env python3
"""Coordinator and workers on one host: blobs change hands by hard links, nothing of them goes over HTTP, and the results are
those of workers that cannot or may not link."""
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, Fleet, Tap, other_file_system  # noqa: E402

RECIPE = {"bits": 2, "group_size": 64, "samples": 16, "seq_len": 64, "eval_windows": 4, "effort": "fast"}
results = {}


def run_job(fleet):
    recipe = dict(RECIPE, calibration=fleet.add_dataset(os.path.join(ROOT, "examples/texts/calibration.jsonl")),
                  eval=[fleet.add_dataset(os.path.join(ROOT, "examples/texts/evaluation.txt"))])
    job = fleet.submit(fleet.add_model(os.path.join(ROOT, "examples/fable-tiny")), recipe)
    fleet.wait_job(job)
    return job


def of_workers(fleet, method, path):
    """Requests of workers that the server logged."""
    return re.findall(rf" debug server {method} {path}\S* \d+ worker", fleet.server.text())


def files_below(folder):
    return [os.path.join(here, name) for here, _, names in os.walk(folder) for name in names]


def shared(fleet, work):
    """Blobs of the store that are files of the worker's cache."""
    store = {os.path.basename(path): os.stat(path) for path in files_below(os.path.join(fleet.folder, "data", "blobs"))}
    cache = {os.path.basename(path): os.stat(path) for path in files_below(os.path.join(work, "cache"))}
    return {name for name in store.keys() & cache.keys()
            if (store[name].st_dev, store[name].st_ino) == (cache[name].st_dev, cache[name].st_ino)}


def linked(folder):
    with Fleet(folder, ["--log-level", "debug"]) as fleet:
        fleet.add_worker("near", threads=2)
        job = run_job(fleet)
        results.update(fleet.results(job))
        assert not of_workers(fleet, "PUT", "/v1/uploads") and not of_workers(fleet, "GET", "/v1/blobs"), fleet.server.text()
        assert of_workers(fleet, "POST", "/v1/uploads"), fleet.server.text()
        tensors = {digest for path, digest in results.items() if path.endswith(".safetensors")}
        assert len(tensors) >= 2 and tensors <= shared(fleet, os.path.join(folder, "near")), (tensors, results)
        assert files_below(os.path.join(folder, "data", "uploads")) == []


def same_results(folder, work, *options):
    with Fleet(folder, ["--log-level", "debug"]) as fleet:
        worker = fleet.add_worker("far", threads=2, start=False)
        worker.argv[worker.argv.index("--work") + 1] = work
        worker.argv += options
        worker.start()
        job = run_job(fleet)
        assert of_workers(fleet, "PUT", "/v1/uploads") and of_workers(fleet, "GET", "/v1/blobs"), fleet.server.text()
        assert shared(fleet, work) == set()
        assert fleet.results(job) == results, "the same bytes over HTTP"


def told_not_to(folder):
    same_results(folder, os.path.join(folder, "work"), "--no-local-models")


def another_file_system(folder):
    with tempfile.TemporaryDirectory(dir=other_file_system(folder)) as work:
        same_results(folder, work)


def two_workers(folder):
    """One that links and one that does not, on the same job."""
    with Fleet(folder) as fleet:
        fleet.add_worker("near")
        fleet.add_worker("far", start=False).argv.append("--no-local-models")
        fleet.workers[1].start()
        assert fleet.results(run_job(fleet)) == results


def quantize(folder):
    """The private fleet of `quarry quantize`."""
    work = os.path.join(folder, "work")
    done = subprocess.run([os.path.join(BUILD, "quarry"), "quantize", os.path.join(ROOT, "examples/fable-tiny"), "-o",
                           os.path.join(folder, "out"), "--work", work, "--samples", "4", "--seq-len", "32", "--effort", "fast",
                           "--eval", "none"], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    store = {os.path.basename(p): os.stat(p).st_ino for p in files_below(os.path.join(work, "server", "blobs"))}
    cache = {os.path.basename(p): os.stat(p).st_ino for p in files_below(os.path.join(work, "worker-1", "cache"))}
    both = store.keys() & cache.keys()
    assert both and all(store[name] == cache[name] for name in both), (store, cache)


if __name__ == "__main__":
    tap = Tap()
    with tempfile.TemporaryDirectory() as base:
        for number, test in enumerate((linked, told_not_to, another_file_system, two_workers, quantize)):
            place = os.path.join(base, str(number))
            os.mkdir(place)
            if test is another_file_system and not other_file_system(place):
                tap.skip("another file system", "this machine has only one to write to")
                continue
            tap.case(test.__name__.replace("_", " "), test, place)
    tap.end()
