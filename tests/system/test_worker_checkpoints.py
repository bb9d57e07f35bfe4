#!/usr/bin/env python3
"""A worker with a task that resumes: the checkpoints it leaves with the coordinator, what it keeps in its scratch
folder and when that goes. The inputs of the `distill` task are made by a worker too, out of the sample model.

The task is long enough that none of its runs ends before the test has done what it wants to do to it; the one
undisturbed run is what all others are compared with.
"""
import json
import os
import signal
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fake_coordinator import Coordinator  # noqa: E402
from fleet import ROOT, Tap, wait_for  # noqa: E402
from test_worker_agent import MODEL, Case, Gate, read  # noqa: E402

LAYERS, SEQUENCES, SEQ_LEN, EPOCHS = 4, 4, 16, 64
SPEC = {"sequences": SEQUENCES, "epochs": EPOCHS, "batch": 1, "seed": 3, "train_codes": True, "weight_hidden": 1,
        "rates": {"code": 0.01, "scale": 0.003, "zero": 0.001, "norm": 0.001}, "checkpoint_percent": 1}
STEPS = SEQUENCES * EPOCHS
SETTINGS = {"skip": False, "bits": 2, "group_size": 64, "method": "neuqi", "zero_point": "float", "symmetric": False,
            "rounding": "nearest"}
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
           "mlp.down_proj")


class Inputs:
    """Name and digest of every input of the task, and the blobs."""

    def __init__(self):
        self.blobs, self.list = {}, []
        with Case().start() as k:
            self.case, self.model = k, k.model(path=MODEL)
            text = read(os.path.join(ROOT, "examples", "texts", "calibration.jsonl"))
            tokens = self.run("tokenize", {"role": "calibration", "name": "c.jsonl", "format": "jsonl", "seq_len": SEQ_LEN,
                                           "samples": SEQUENCES}, {"text": k.c.blob(text)})
            hidden = self.run("embed", {"shard": 0, "first": 0, "count": SEQUENCES, "seq_len": SEQ_LEN},
                              {"tokens": tokens})
            self.add("tokens", tokens)
            for layer in range(LAYERS):
                modules = [{"name": f"model.layers.{layer}.{m}", **SETTINGS} for m in MODULES]
                self.add(f"layer-{layer}", self.run("quantize", {"layer": layer, "damp": 0.01, "modules": modules,
                                                                 "samples": SEQUENCES, "refine": 0, "distill": None},
                                                    {"hidden-0": hidden}))
                hidden = self.run("capture", {"layer": layer, "shard": 0}, {"hidden": hidden})
            self.add("target-0", hidden)
            self.blobs = dict(k.c.blobs)
            self.undisturbed = run_to_the_end(k, self)

    def run(self, kind, spec, inputs):
        k = self.case
        task = k.give(f"t_{len(k.c.tasks)}", kind, spec, [{"name": name, "sha256": digest, "bytes": len(k.c.blobs[digest])}
                                                          for name, digest in inputs.items()], model=self.model)
        return k.ended(task)["outputs"][0]["sha256"]

    def add(self, name, digest):
        self.list.append({"name": name, "sha256": digest, "bytes": len(self.case.c.blobs[digest])})


def give(k, inputs, epoch=1, checkpoint=None, name="t_distill", **kw):
    more = [{"name": "checkpoint", "sha256": checkpoint["sha256"], "bytes": checkpoint["bytes"]}] if checkpoint else []
    k.c.blobs.update(inputs.blobs)
    return k.give(name, "distill", SPEC, inputs.list + more, model=k.model(path=MODEL), epoch=epoch, **kw)


def run_to_the_end(k, inputs):
    body = k.ended(give(k, inputs), seconds=120)
    assert body["result"]["resumed_at"] == 0 and body["result"]["steps"] == STEPS, body["result"]
    assert body["result"]["kept"] is True, body["result"]
    scratch_is_empty(k)
    return body


def scratch(k):
    return os.path.join(k.work, "scratch")


def scratch_is_empty(k):
    wait_for(lambda: os.listdir(scratch(k)) == [], "the scratch folder to be removed")


def manifest(k):
    return json.loads(read(os.path.join(scratch(k), "t_distill", "manifest.json")))


def under_way(k, step=8):
    """Waits until so many steps are kept."""
    def kept():
        try:
            return manifest(k)["step"] >= step
        except FileNotFoundError:
            return False
    wait_for(kept, "the task to be under way")


def same_result(inputs, body, resumed_after=0):
    want, got = inputs.undisturbed, body
    assert got["outputs"] == want["outputs"], (got["outputs"], want["outputs"])
    for key in ("before", "after", "kept", "steps", "curve"):
        assert got["result"][key] == want["result"][key], (key, got["result"][key], want["result"][key])
    assert resumed_after <= got["result"]["resumed_at"] <= STEPS, got["result"]["resumed_at"]


def step_of(k, body):
    data = k.c.blobs[body["sha256"]]
    header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    assert len(data) == body["bytes"]
    return json.loads(header["__metadata__"]["manifest"])["step"]


# --- cases -------------------------------------------------------------------------------------------


def killed_and_started_again(inputs):
    with Case() as k:
        first = give(k, inputs)
        k.start("--name", "fixed")
        under_way(k)
        k.worker.kill()
        k.worker.wait()
        kept = manifest(k)["step"]
        k.start("--name", "fixed")
        k.ended(first, "FAILED")
        body = k.ended(give(k, inputs, epoch=2), seconds=120)
        same_result(inputs, body, kept)
        assert body["result"]["resumed_at"] == kept, (body["result"]["resumed_at"], kept)
        scratch_is_empty(k)


def drained_and_taken_over(inputs):
    with Case() as k:
        task = give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        k.c.wait(lambda: len(task.checkpoints) >= 2, "two checkpoints")
        k.worker.kill(signal.SIGTERM)
        k.ended(task, "RELEASED")
        k.exits()
        steps = [step_of(k, body) for body in task.checkpoints]
        assert steps == sorted(set(steps)) and 0 < steps[-1] <= manifest(k)["step"], (steps, manifest(k)["step"])
        verbs = [r["path"].rsplit("/", 1)[1] for r in k.c.seen("POST", "/v1/leases/.*/(checkpoint|release)")]
        assert verbs[-2:] == ["checkpoint", "release"], verbs
        assert not os.path.exists(os.path.join(scratch(k), "t_distill", "checkpoint.safetensors"))
        with Case() as other:
            other.c.blobs.update(k.c.blobs)
            other.start()
            body = other.ended(give(other, inputs, epoch=2, checkpoint=task.checkpoints[-1]), seconds=120)
            same_result(inputs, body, steps[-1])
            scratch_is_empty(other)


def what_is_further_counts(inputs):
    """The worker's own state is newer than the checkpoint it gets, so it goes on from its own."""
    with Case() as k:
        task = give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        k.c.wait(lambda: task.checkpoints, "a checkpoint")
        early = task.checkpoints[0]
        under_way(k, step_of(k, early) + 4)
        k.worker.kill()
        k.worker.wait()
        kept = manifest(k)["step"]
        k.start()
        k.ended(task, "FAILED")
        body = k.ended(give(k, inputs, epoch=2, checkpoint=early), seconds=120)
        same_result(inputs, body, kept)


def damaged_checkpoint(inputs):
    with Case() as k:
        data = b"\x08\0\0\0\0\0\0\0{}      "
        bad = {"sha256": k.c.blob(data), "bytes": len(data)}
        body = k.ended(give(k.start(), inputs, epoch=2, checkpoint=bad), seconds=120)
        same_result(inputs, body)
        assert body["result"]["resumed_at"] == 0
        assert "is not used" in k.worker.text()


def cancelled(inputs):
    with Case() as k:
        task = give(k, inputs, lease_seconds=1)
        k.start()
        under_way(k)
        k.c.rule("POST", ".*/heartbeat", lambda h, r: Coordinator.answer(h, 200, {"cancel": True, "drain": False}))
        scratch_is_empty(k)
        assert task.state == "LEASED" and k.c.count("POST", "/v1/leases/.*/(fail|complete|release)") == 0


def lost_with_a_checkpoint(inputs):
    with Case() as k:
        k.c.rule("POST", ".*/checkpoint", lambda h, r: Coordinator.problem(h, 409, "conflict"))
        give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        k.c.wait(lambda: k.c.count("POST", ".*/checkpoint"), "a checkpoint")
        scratch_is_empty(k)
        assert k.c.count("POST", "/v1/leases/.*/(fail|complete|release)") == 0


def failed_for_good(inputs):
    with Case() as k:
        spec = {**SPEC, "epochs": 0}
        os.makedirs(os.path.join(scratch(k), "t_distill"))
        k.c.blobs.update(inputs.blobs)
        task = k.give("t_distill", "distill", spec, inputs.list, model=k.model(path=MODEL))
        k.start()
        assert k.ended(task, "FAILED")["error"]["name"] == "invalid"
        scratch_is_empty(k)


def disk_full_on_the_way(inputs):
    with Case() as k:
        k.env["QUARRY_FAIL_IO"] = "write:400"
        task = give(k, inputs)
        k.start("--name", "fixed")
        assert k.ended(task, "FAILED", seconds=120)["error"]["name"] == "no-space", task.ended
        kept = manifest(k)["step"]
        assert kept > 0
        body = k.ended(give(k, inputs, epoch=2), seconds=120)
        same_result(inputs, body, kept)
        scratch_is_empty(k)


def checkpoints_that_cannot_be_left(inputs):
    """Refused, without an answer, or stored wrongly: the task goes on."""
    with Case() as k:
        k.c.rule("POST", ".*/checkpoint", lambda h, r: Coordinator.problem(h, 500, "internal"), 2)
        k.c.rule("POST", ".*/checkpoint", lambda h, r: Coordinator.cut(h), 1)
        k.c.rule("POST", ".*/checkpoint", lambda h, r: Coordinator.problem(h, 422, "corrupt"), 1)
        k.c.rule("POST", ".*/checkpoint", lambda h, r: Coordinator.problem(h, 404, "not-found", "no route"), 1)
        k.c.rule("POST", "/v1/uploads", lambda h, r: Coordinator.problem(h, 413, "too-large"), 1)
        task = give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        same_result(inputs, k.ended(task, seconds=120))
        assert k.c.count("POST", ".*/checkpoint") >= 4, k.c.count("POST", ".*/checkpoint")
        assert "its checkpoint is not left" in k.worker.text()


def hurry_while_a_checkpoint_goes_up(inputs):
    with Case() as k:
        gate = Gate(k.c)
        k.c.rule("PUT", ".*", gate)
        task = give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        k.at_gate(gate)
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        k.worker.kill(signal.SIGTERM)
        k.ended(task, "RELEASED")
        k.exits()
        assert not task.checkpoints


def drain_waits_for_the_checkpoint(inputs):
    with Case() as k:
        gate = Gate(k.c)
        k.c.rule("PUT", ".*", gate)
        task = give(k, inputs)
        k.start("--checkpoint-seconds", "0")
        k.at_gate(gate)
        k.worker.kill(signal.SIGTERM)
        wait_for(lambda: "SERVING=>DRAINING" in k.worker.text(), "the drain to begin")
        assert task.state == "LEASED"
        gate.open()
        k.ended(task, "RELEASED")
        k.exits()
        assert len(task.checkpoints) == 1, task.checkpoints


def forgotten_folders_go(inputs):
    with Case() as k:
        for name, days in ("t_old", 8), ("t_young", 6):
            path = os.path.join(scratch(k), name)
            os.makedirs(path)
            with open(os.path.join(path, "state"), "w") as f:
                f.write("x")
            then = time.time() - days * 86400
            os.utime(path, (then, then))
        k.start()
        k.c.wait(lambda: k.c.leases, "the first poll")
        assert os.listdir(scratch(k)) == ["t_young"], os.listdir(scratch(k))


def main():
    tap = Tap()
    inputs = []
    tap.case("an undisturbed run", lambda: inputs.append(Inputs()))
    for function in (killed_and_started_again, drained_and_taken_over, what_is_further_counts, damaged_checkpoint, cancelled,
                     lost_with_a_checkpoint, failed_for_good, disk_full_on_the_way, checkpoints_that_cannot_be_left,
                     hurry_while_a_checkpoint_goes_up, drain_waits_for_the_checkpoint, forgotten_folders_go):
        if len(sys.argv) > 1 and function.__name__ not in sys.argv[1:]:
            continue
        tap.case(function.__name__.replace("_", " "), lambda f=function: f(inputs[0]))
    tap.end()


if __name__ == "__main__":
    main()
