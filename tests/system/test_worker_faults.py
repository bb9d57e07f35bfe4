#!/usr/bin/env python3
"""A worker whose device breaks, played by build/tools/worker_faulty: the worker program with one backend that calls itself cuda,
computes as ref does, and fails where a file says so."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, Tap, wait_for  # noqa: E402
import test_worker_agent  # noqa: E402
from test_worker_agent import MODEL, Case, Gate, one_sentence  # noqa: E402

FAULTY = test_worker_agent.WORKER = os.path.join(BUILD, "tools", "worker_faulty")
SEQ_LEN = 16
RESTARTS = 5    # an hour


def hidden_states():
    """Two short sequences for a `capture` task."""
    with open(os.path.join(MODEL, "config.json")) as f:
        hidden = json.load(f)["hidden_size"]
    count = 2 * SEQ_LEN * hidden
    header = json.dumps({"hidden": {"dtype": "F32", "shape": [2, SEQ_LEN, hidden],
                                    "data_offsets": [0, 4 * count]}}).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + b"".join(struct.pack("<f", (i % 97) / 97) for i in range(count))


class Faulty(Case):
    def __init__(self, faults=""):
        super().__init__()
        self.faults = os.path.join(self.folder, "faults")
        self.env["FAULTS"] = self.faults
        self.say(faults)
        self.hidden = hidden_states()

    def say(self, faults):
        with open(self.faults, "w") as f:
            f.write(faults)

    def capture(self, name="t_capture", **kw):
        inputs = [{"name": "hidden", "sha256": self.c.blob(self.hidden), "bytes": len(self.hidden)}]
        return self.give(name, "capture", {"layer": 0, "shard": 0}, inputs, model=self.model(path=MODEL), **kw)

    def start(self, *options):
        return super().start("--backend", "cuda", *options)

    def registrations(self, n):
        self.c.wait(lambda: len(self.c.registered) >= n, f"{n} registrations")


def a_device_in_the_registration():
    with Faulty() as k:
        k.start("--device", "3", "--gpu-memory", "2GB")
        k.registrations(1)
        seen = k.c.registered[0]
        assert seen["backend"] == "cuda" and seen["identity"] == "faulty device 3 memory 2000000000", seen
        assert seen["device"] == {"number": 3, "name": "Faulty 9000", "driver": "CUDA 0.1", "clock_mhz": 1000,
                                  "memory_bytes": 64000000000}, seen


def no_device():
    for faults, *words in (("gone", "needs a faulty GPU", "there is none"), ("silent", "device", "does not answer")):
        with Faulty(faults) as k:
            done = subprocess.run([FAULTY, "--server", k.c.url, "--work", k.work, "--token-file", k.token_file, "--no-wait"],
                                  capture_output=True, text=True, timeout=60, env={**os.environ, **k.env})
            one_sentence(done, 3, *words)
            assert not k.c.registered, k.c.registered


def lost_and_started_anew(faults):
    with Faulty(faults) as k:
        k.start()
        pid = k.worker.process.pid
        task = k.capture()
        told = k.ended(task, "RELEASED")
        assert told["reason"] == "the device was lost", told
        assert told["error"] == {"name": "unavailable", "detail": "block pass: the device fell off the bus"}, told
        assert " s: " in told["log"], told
        k.registrations(2)
        assert k.worker.process.pid == pid and k.worker.alive()
        k.c.wait(lambda: len(k.c.leases) >= 2, "the new process to ask for work")
        assert k.c.leases[-1]["holds"] == [], k.c.leases[-1]
        done = k.ended(k.capture(name="t_again", epoch=2))
        assert len(done["outputs"]) == 1 and done["stats"]["backend"] == "cuda", done
        assert not k.c.seen("POST", "/v1/leases/.*/fail")
        k.nothing_left()


def options_survive():
    with Faulty("lost 1") as k:
        k.start("--device", "7", "--name", "a name")
        k.ended(k.capture(), "RELEASED")
        k.registrations(2)
        assert k.c.registered[0] == k.c.registered[1], k.c.registered
        assert k.c.registered[1]["name"] == "a name" and k.c.registered[1]["device"]["number"] == 7


def a_result_on_its_way_survives():
    with Faulty("lost 1") as k:
        gate = Gate(k.c)
        k.c.rule("POST", "/v1/uploads", gate)
        k.start()
        first = k.tokenize()
        k.at_gate(gate)     # computed, in the spool, and not yet with the coordinator
        k.ended(k.capture(), "RELEASED")
        k.registrations(2)
        gate.open()
        assert k.ended(first)["result"]["sequences"] > 0
        k.nothing_left()


def lost_again_and_again():
    with Faulty("lost 100") as k:
        k.start()
        for n in range(RESTARTS + 1):
            k.registrations(n + 1)
            k.ended(k.capture(name=f"t_{n}"), "RELEASED")
        k.exits(1)
        lines = [line for line in k.worker.text().splitlines() if line.startswith("quarry-worker: ")]
        assert len(lines) == 1 and "started anew 5 times within an hour" in lines[0] and "fell off the bus" in lines[0], lines
        assert len(k.c.registered) == RESTARTS + 1, len(k.c.registered)
        k.worker = None


def out_of_memory():
    with Faulty("out-of-memory 1") as k:
        k.start()
        told = k.ended(k.capture(), "FAILED")
        assert told["error"]["name"] == "out-of-memory" and "activations" in told["error"]["detail"], told
        k.ended(k.capture(name="t_next"))
        assert len(k.c.registered) == 1, "it has no reason to start anew"


def told_to_stop_it_stops():
    with Faulty("lost 1") as k:
        gate = Gate(k.c)
        k.c.rule("POST", "/v1/leases/.*/release", gate)
        k.start()
        task = k.capture()
        k.at_gate(gate)
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "draining" in k.worker.text(), "the signal to be heard")
        gate.open()
        k.ended(task, "RELEASED")
        k.exits(0)
        assert len(k.c.registered) == 1, k.c.registered
        k.worker = None


def programs(folder):
    """The client with the faulty worker beside it."""
    for name, source in (("quarry", "quarry"), ("quarry-server", "quarry-server"), ("quarry-worker", "tools/worker_faulty")):
        shutil.copy2(os.path.join(BUILD, source), os.path.join(folder, name))
    return os.path.join(folder, "quarry")


def quantize(folder, *options, faults=""):
    with open(os.path.join(folder, "faults"), "w") as f:
        f.write(faults)
    return subprocess.run([programs(folder), "quantize", MODEL, "-o", os.path.join(folder, "out"), "--samples", "4", "--seq-len",
                           "32", "--effort", "fast", "--eval", "none", "--backend", "cuda", *options], capture_output=True, text=True,
                          timeout=240, env={**os.environ, "TMPDIR": folder, "FAULTS": os.path.join(folder, "faults")})


def a_fleet_on_two_devices():
    with tempfile.TemporaryDirectory() as folder:
        done = quantize(folder, "--devices", "4,2", "--workers", "3", "--gpu-memory", "1GB", faults="lost 1")
        assert done.returncode == 0, done
        with open(os.path.join(folder, "out", "report.json")) as f:
            run = json.load(f)["run"]
        assert {w["identity"] for w in run["workers"].values()} <= {"faulty device 4 memory 1000000000",
                                                                    "faulty device 2 memory 1000000000"}, run["workers"]
        for name, device in (("worker-1", 4), ("worker-2", 2), ("worker-3", 4)):
            if name in run["workers"]:
                assert run["workers"][name]["identity"].startswith(f"faulty device {device} "), run["workers"]
        assert run["kinds"]["quantize"]["backends"][0]["backend"] == "cuda", run["kinds"]
        assert run["warnings"] == [], run["warnings"]


def a_fleet_without_devices():
    with tempfile.TemporaryDirectory() as folder:
        done = quantize(folder, "--devices", "0,1", faults="gone")
        assert done.returncode == 1, done
        lines = [line for line in done.stderr.splitlines() if line]
        assert len(lines) == 1 and "this backend needs a faulty GPU and its driver" in lines[0], done.stderr
        assert not os.path.exists(os.path.join(folder, "out")), os.listdir(folder)
        assert sorted(os.listdir(folder)) == ["faults", "quarry", "quarry-server", "quarry-worker"], os.listdir(folder)


if __name__ == "__main__":
    tap = Tap()
    tap.case("a device in the registration", a_device_in_the_registration)
    tap.case("no device: one sentence, and an exit status of its own", no_device)
    tap.case("a lost device: the task is given back, the worker starts anew", lost_and_started_anew, "lost 1")
    tap.case("the same when the call that meets it says something else", lost_and_started_anew, "lost-quietly 1")
    tap.case("the new process has the same options", options_survive)
    tap.case("a result on its way survives", a_result_on_its_way_survives)
    tap.case("a device that is lost again and again ends the worker", lost_again_and_again)
    tap.case("out of memory fails the task, not the worker", out_of_memory)
    tap.case("a worker that is told to stop does not start anew", told_to_stop_it_stops)
    tap.case("quarry quantize with a worker on each of two devices, one of which is lost once", a_fleet_on_two_devices)
    tap.case("quarry quantize without a device", a_fleet_without_devices)
    tap.end()
