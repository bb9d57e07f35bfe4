#!/usr/bin/env python3
"""`quarry quantize` when something happens on the way: full disks, signals, dying children, a second start.

Nothing half-made is left, no process is left, and what can go on does."""
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from command import QUARRY, one_sentence, quarry, tree  # noqa: E402
from fleet import ROOT, Tap, wait_for  # noqa: E402

TINY = os.path.join(ROOT, "examples/fable-tiny")
SMALL = ["--samples", "8", "--seq-len", "128", "--bits", "3", "--effort", "fast"]


# --- processes ------------------------------------------------------------------------------------

def children_of(pid):
    """(pid, command line) of every live child."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as f:
                after = f.read().rpartition(")")[2].split()
            with open(f"/proc/{entry}/cmdline") as f:
                words = f.read().split("\0")
        except OSError:
            continue
        if int(after[1]) == pid and after[0] != "Z":
            found.append((int(entry), words))
    return found


def child_named(pid, program):
    for child, words in children_of(pid):
        if os.path.basename(words[0]) == program:
            return child
    return None


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Started:
    """A quantize that runs while the test acts."""

    def __init__(self, folder, *args):
        self.err = os.path.join(folder, "stderr")
        env = {k: v for k, v in os.environ.items() if not k.startswith("QUARRY_")}
        os.makedirs(os.path.join(folder, "tmp"), exist_ok=True)
        env["TMPDIR"] = os.path.join(folder, "tmp")
        with open(self.err, "w") as err:
            self.process = subprocess.Popen([QUARRY, "quantize", *args], stdin=subprocess.DEVNULL, env=env,
                                            stdout=subprocess.PIPE, stderr=err, text=True)

    def text(self):
        with open(self.err) as f:
            return f.read()

    def wait_for_worker(self):
        return wait_for(lambda: child_named(self.process.pid, "quarry-worker"), "a worker to start")

    def wait_for_progress(self):
        """Until some stage is finished (or the run has ended)."""
        wait_for(lambda: " done, " in self.text() or self.process.poll() is not None, "a finished stage", 120)

    def end(self, seconds=240):
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, self.text()


# --- trouble on the way ------------------------------------------------------------------------------

def no_space():
    """Files may not grow beyond a limit, as on a full disk: an honest sentence, nothing left."""
    with tempfile.TemporaryDirectory() as folder:
        out, tmp = os.path.join(folder, "out"), os.path.join(folder, "tmp")
        os.mkdir(tmp)
        ran = quarry("quantize", TINY, "-o", out, *SMALL, "--eval", "none", env={"TMPDIR": tmp}, seconds=280,
                     preexec_fn=lambda: (signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
                                         resource.setrlimit(resource.RLIMIT_FSIZE, (300000, 300000))))
        one_sentence(ran, 1)
        assert "large" in ran.err or "space" in ran.err or "Space" in ran.err, ran
        assert not os.path.exists(out) and os.listdir(tmp) == [], tree(folder)


def tiny_disk():
    """A file system of 1 MB for the result."""
    with tempfile.TemporaryDirectory() as folder:
        disk = os.path.join(folder, "disk")
        os.mkdir(disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=True)
        try:
            ran = quarry("quantize", TINY, "-o", os.path.join(disk, "out"), *SMALL, "--eval", "none",
                         env={"TMPDIR": folder})
            one_sentence(ran, 1, "no space")
            assert os.listdir(disk) == [], os.listdir(disk)
        finally:
            subprocess.run(["umount", disk], check=True)


def can_mount():
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0


def ctrl_c(signum):
    with tempfile.TemporaryDirectory() as folder:
        run = Started(folder, TINY, "-o", os.path.join(folder, "out"), "--bits", "2", "--workers", "2")
        run.wait_for_worker()
        children = [pid for pid, _ in children_of(run.process.pid)]
        run.process.send_signal(signum)
        status, out, err = run.end()
        assert status == 130, (status, out, err)
        assert "quarry: interrupted" in err, err
        for pid in children:
            assert not alive(pid), f"process {pid} was left"
        assert sorted(os.listdir(folder)) == ["stderr", "tmp"] and os.listdir(os.path.join(folder, "tmp")) == [], tree(folder)


def killed_leaves_no_process():
    with tempfile.TemporaryDirectory() as folder:
        run = Started(folder, TINY, "-o", os.path.join(folder, "out"), "--bits", "2")
        run.wait_for_worker()
        children = [pid for pid, _ in children_of(run.process.pid)]
        assert len(children) == 2, children
        run.process.kill()
        run.end()
        wait_for(lambda: not any(alive(pid) for pid in children), "the children to end")


def digests(out):
    found = {}
    for path in tree(out):
        full = os.path.join(out, path)
        if os.path.isfile(full) and path != "report.json":
            with open(full, "rb") as f:
                found[path] = hashlib.sha256(f.read()).hexdigest()
    return found


STEADY = ["--bits", "2", "--samples", "64", "--seq-len", "256", "--eval", "none", "--effort", "fast"]
steady_result = {}


def undisturbed():
    with tempfile.TemporaryDirectory() as folder:
        ran = quarry("quantize", TINY, "-o", os.path.join(folder, "out"), *STEADY, env={"TMPDIR": folder})
        assert ran.status == 0, ran
        steady_result.update(digests(os.path.join(folder, "out")))
        assert steady_result


def resumed():
    """Ctrl-C with --work, then the same command: the same job goes on, to the same bytes."""
    with tempfile.TemporaryDirectory() as folder:
        out, work = os.path.join(folder, "out"), os.path.join(folder, "work")
        run = Started(folder, TINY, "-o", out, *STEADY, "--work", work)
        run.wait_for_progress()
        run.process.send_signal(signal.SIGINT)
        status, printed, err = run.end()
        assert status == 130 and "the same command goes on from there" in err, (status, printed, err)
        assert not os.path.exists(out), tree(folder)
        with open(os.path.join(work, "submission.json")) as f:
            job = json.load(f)["job"]
        run = Started(folder, TINY, "-o", out, *STEADY, "--work", work)
        status, printed, err = run.end()
        assert status == 0, (status, printed, err)
        assert f"going on with job {job}" in err, err
        assert digests(out) == steady_result
        assert os.path.isdir(work), "the work folder is kept"


def busy_work_folder():
    with tempfile.TemporaryDirectory() as folder:
        work = os.path.join(folder, "work")
        run = Started(folder, TINY, "-o", os.path.join(folder, "out"), *STEADY, "--work", work)
        run.wait_for_worker()
        ran = quarry("quantize", TINY, "-o", os.path.join(folder, "other"), *STEADY, "--work", work)
        one_sentence(ran, 1, "another quarry process uses the work folder")
        run.process.send_signal(signal.SIGINT)
        run.end()


def restarted(program):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        run = Started(folder, TINY, "-o", out, *STEADY)
        run.wait_for_worker()
        run.wait_for_progress()
        victim = child_named(run.process.pid, program)
        assert victim, "the run has ended before it could be disturbed"
        os.kill(victim, signal.SIGKILL)
        status, printed, err = run.end()
        assert status == 0, (status, printed, err)
        assert "signal 9 (Killed)" in err and "it is started again" in err, err
        assert digests(out) == steady_result


def keeps_dying():
    """A worker that cannot serve ends the run with its own words, not in a loop."""
    with tempfile.TemporaryDirectory() as folder:
        programs = os.path.join(folder, "bin")
        os.mkdir(programs)
        for name in ("quarry", "quarry-server"):
            shutil.copy(os.path.join(os.path.dirname(QUARRY), name), programs)
        with open(os.path.join(programs, "quarry-worker"), "w") as f:
            f.write("#!/bin/sh\necho 'no such\033[31m backend' >&2\nexit 1\n")
        os.chmod(os.path.join(programs, "quarry-worker"), 0o755)
        done = subprocess.run([os.path.join(programs, "quarry"), "quantize", TINY, "-o", os.path.join(folder, "out"),
                               *STEADY], env={"TMPDIR": folder}, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1, done
        assert "the local worker-1 ended (exit status 1): no such\\x1b[31m backend; given up after" in done.stderr, done
        assert os.listdir(folder) == ["bin"], os.listdir(folder)


def no_server_program():
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(QUARRY, folder)
        done = subprocess.run([os.path.join(folder, "quarry"), "quantize", TINY, "-o", os.path.join(folder, "out")],
                              env={"TMPDIR": folder}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "cannot start" in done.stderr and "quarry-server" in done.stderr, done
        assert os.listdir(folder) == ["quarry"], os.listdir(folder)


tap = Tap()
tap.case("files that cannot grow", no_space)
if can_mount():
    tap.case("a disk that is too small", tiny_disk)
else:
    tap.skip("a disk that is too small", "mounting a small file system is not allowed here")
tap.case("Ctrl-C stops everything and leaves nothing", ctrl_c, signal.SIGINT)
tap.case("SIGTERM too", ctrl_c, signal.SIGTERM)
tap.case("a killed client leaves no process", killed_leaves_no_process)
tap.case("the undisturbed run to compare with", undisturbed)
tap.case("Ctrl-C and the same command again", resumed)
tap.case("one client per work folder", busy_work_folder)
tap.case("a killed worker is started again", restarted, "quarry-worker")
tap.case("a killed coordinator is started again", restarted, "quarry-server")
tap.case("a worker that keeps dying", keeps_dying)
tap.case("a missing program", no_server_program)
tap.end()
