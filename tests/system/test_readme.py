#!/usr/bin/env python3
"""Every command block of README.md that is marked runnable is run, in order, in one shell, and must succeed.

Only what differs between machines is replaced: the build folder, and the port (a free one)."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from fleet import BUILD, ROOT, Tap, free_port  # noqa: E402

PROGRAMS = ("quarry", "quarry-server", "quarry-worker")
# What each marked block prints or leaves, in order: (pattern of its output, files that exist afterwards).
EXPECTED = [
    (r"perplexity +[\d.]+ before, [\d.]+ after(?s:.)*size +(?s:.)*worst +layer(?s:.)*checkpoint +\S+/demo-out/dense", []),
    (r"perplexity +[\d.]+ before", ["build/tiny-4bit/dense/config.json", "build/tiny-4bit/packed/config.json",
                                    "build/tiny-4bit/report.json"]),
    (r"checkpoint +build/tiny-4bit/mlx  (?s:.)*checkpoint +build/tiny-4bit/gguf  (?s:.)*verified: (?s:.)*checkpoint +build/tiny-plain",
     ["build/tiny-4bit/mlx/config.json", "build/tiny-4bit/gguf/model.gguf", "build/tiny-plain/config.json"]),
    (r"perplexity +\d+\.\d+  evaluation.txt", []),
    ("", ["build/fleet/worker.token"]),
    ("", []),
    (r"modules +\d+ quantized(?s:.)*job j_\w+(?s:.)*DONE(?s:.)*worker-1(?s:.)*q_proj",
     ["build/tiny-3bit/dense/config.json", "build/tiny-3bit/report.json"]),
    (r'"dense/config.json"', ["build/tiny-report.json"]),
]


def marked_blocks():
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as f:
        return re.findall(r"<!-- runnable -->\n```sh\n(.*?)```", f.read(), re.S)


def prepare(folder):
    os.makedirs(os.path.join(folder, "build"))
    for name in PROGRAMS:
        os.symlink(os.path.join(BUILD, name), os.path.join(folder, "build", name))
    shutil.copytree(os.path.join(ROOT, "examples"), os.path.join(folder, "examples"))


def localized(block, port):
    block = block.replace("8750", str(port))
    return re.sub(r"^make demo$", f"make -s -C '{ROOT}' OUT='{BUILD}' demo", block, flags=re.M)


class Shell:
    """One bash that runs block after block; its background jobs end with it."""

    def __init__(self, folder):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "QUARRY_"))}
        self.process = subprocess.Popen(["bash", "-s"], cwd=folder, env=env, stdin=subprocess.PIPE, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)

    def run(self, block):
        """(exit status of the block, its output). A failing line ends the block, not the shell."""
        self.process.stdin.write("set -eo pipefail\n" + block + "\necho; echo '--- block done'\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith("--- block done"):
                return 0, "".join(lines)
            lines.append(line)
        return self.process.wait(), "".join(lines)

    def close(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


def check(shell, folder, block, expected):
    pattern, files = expected
    status, out = shell.run(block)
    assert status == 0, f"exit status {status}:\n{block}\n{out}"
    assert re.search(pattern, out), f"{pattern!r} is not in:\n{out}"
    for path in files:
        assert os.path.exists(os.path.join(folder, path)), f"{path} is not there:\n{out}"


def await_ready(folder):
    """The reader of the README is slower than a script: wait for the coordinator before the next block."""
    from fleet import wait_for
    wait_for(lambda: os.path.exists(os.path.join(folder, "build/fleet/ready")), "the coordinator of the README")


def count_blocks(blocks):
    assert len(blocks) == len(EXPECTED), f"{len(blocks)} blocks are marked, {len(EXPECTED)} are expected"


def main():
    tap = Tap()
    blocks = marked_blocks()
    tap.case("as many marked blocks as are expected", count_blocks, blocks)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        prepare(folder)
        shell = Shell(folder)
        try:
            for block, expected in zip(blocks, EXPECTED):
                first = next(line for line in block.splitlines() if line.strip())
                tap.case("runs: " + first[:80], check, shell, folder, localized(block, port), expected)
                if "quarry-server" in block:
                    tap.case("the coordinator is ready", await_ready, folder)
        finally:
            shell.close()
    tap.end()


main()
