#!/usr/bin/env python3
"""The same bytes, whatever happens to the processes: more workers, workers killed or paused past their
lease, the coordinator killed again and again."""
import os
import signal
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import ROOT, Fleet, Tap, wait_for  # noqa: E402

RECIPE = {"bits": 2, "group_size": 64, "samples": 48, "seq_len": 512, "eval_windows": 16, "effort": "fast"}
baseline = {}


def start_job(fleet):
    recipe = dict(RECIPE, calibration=fleet.add_dataset(os.path.join(ROOT, "examples/texts/calibration.jsonl")),
                  eval=[fleet.add_dataset(os.path.join(ROOT, "examples/texts/evaluation.txt"))])
    return fleet.submit(fleet.add_model(os.path.join(ROOT, "examples/fable-tiny")), recipe)


def compare(fleet, job):
    files = fleet.results(job)
    assert sorted(files) == sorted(baseline), (sorted(files), sorted(baseline))
    differing = [path for path in files if files[path] != baseline[path]]
    assert not differing, f"these files differ from the run with one worker: {differing}"


def holder(fleet, name, kind):
    """The task of `kind` that the worker computes now, else None."""
    for worker in fleet.call("GET", "/v1/workers")["items"]:
        if worker["name"] == name:
            for task in worker["tasks"]:
                if task["kind"] == kind:
                    return task["task"]
    return None


def one_worker(folder):
    with Fleet(folder) as fleet:
        fleet.add_worker("alone", threads=2)
        job = start_job(fleet)
        fleet.wait_job(job)
        baseline.update(fleet.results(job))
    assert any(path.startswith("dense/") for path in baseline), baseline
    assert any(path.startswith("packed/") for path in baseline), baseline


def three_workers(folder):
    with Fleet(folder) as fleet:
        for i in range(3):
            fleet.add_worker(f"w{i}")
        job = start_job(fleet)
        fleet.wait_job(job)
        compare(fleet, job)


def killed_and_paused(folder):
    with Fleet(folder, ["--lease-seconds", "2"]) as fleet:
        killed, paused = fleet.add_worker("killed"), fleet.add_worker("paused")
        job = start_job(fleet)
        lost = wait_for(lambda: holder(fleet, "killed", "quantize"), "the first worker to quantize")
        killed.kill(signal.SIGKILL)
        stale = wait_for(lambda: holder(fleet, "paused", "quantize") or holder(fleet, "paused", "evaluate"),
                         "the second worker to compute")
        paused.kill(signal.SIGSTOP)
        wait_for(lambda: holder(fleet, "paused", "quantize") is None and holder(fleet, "paused", "evaluate") is None,
                 "the paused worker's lease to lapse")
        paused.kill(signal.SIGCONT)
        killed.wait()
        killed.start()
        fleet.wait_job(job)
        compare(fleet, job)
        tasks = {task["id"]: task for task in fleet.tasks(job)}
        assert tasks[lost]["epoch"] >= 2, tasks[lost]
        assert tasks[stale]["epoch"] >= 2, tasks[stale]


def coordinator_killed(folder):
    with Fleet(folder) as fleet:
        fleet.add_worker("one")
        fleet.add_worker("two")
        job = start_job(fleet)
        total = fleet.job(job)["tasks"]["total"]
        done = {}
        for share in (0.2, 0.5, 0.8):
            wait_for(lambda: fleet.job(job)["tasks"]["DONE"] >= share * total, f"{share:.0%} of the tasks")
            fleet.server.kill(signal.SIGKILL)
            fleet.server.wait()
            fleet.start_server()
            now = {task["id"]: task["epoch"] for task in fleet.tasks(job) if task["state"] == "DONE"}
            assert all(now.get(task) == epoch for task, epoch in done.items()), "a finished task was lost or repeated"
            done.update(now)
        fleet.wait_job(job)
        ended = {task["id"]: task["epoch"] for task in fleet.tasks(job)}
        assert all(ended[task] == epoch for task, epoch in done.items()), "a finished task was repeated"
        compare(fleet, job)


def worker_away_and_back(folder):
    """A drained worker hands its task back at no cost; the job goes on with another."""
    with Fleet(folder) as fleet:
        first = fleet.add_worker("first")
        job = start_job(fleet)
        wait_for(lambda: holder(fleet, "first", "quantize"), "the worker to quantize")
        first.kill(signal.SIGTERM)
        assert first.wait(60) == 0
        fleet.add_worker("second")
        fleet.wait_job(job)
        assert all(task["attempts"] <= 1 for task in fleet.tasks(job)), "a drain counted as an attempt"
        compare(fleet, job)


def main():
    tap = Tap()
    with tempfile.TemporaryDirectory() as folder:
        for name, case in (("one worker", one_worker), ("three workers, same bytes", three_workers),
                           ("one worker killed, one paused past its lease, same bytes", killed_and_paused),
                           ("coordinator killed three times, same bytes, nothing repeated", coordinator_killed),
                           ("worker drained, same bytes", worker_away_and_back)):
            tap.case(name, case, os.path.join(folder, case.__name__))
    tap.end()


if __name__ == "__main__":
    main()
