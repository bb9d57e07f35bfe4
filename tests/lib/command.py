"""command.py - running the client as a user does: arguments in, exit status, stdout and stderr out."""
import os
import subprocess

from fleet import BUILD

QUARRY = os.path.join(BUILD, "quarry")


class Ran:
    def __init__(self, status, out, err):
        self.status, self.out, self.err = status, out, err

    def __repr__(self):
        return f"exit status {self.status}\nstdout: {self.out}\nstderr: {self.err}"


def quarry(*args, env=None, cwd=None, seconds=240, preexec_fn=None):
    """Runs `quarry args…` to its end."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("QUARRY_") or k == "QUARRY_BUILD"}
    clean.update(env or {})
    done = subprocess.run([QUARRY, *[str(a) for a in args]], stdin=subprocess.DEVNULL, capture_output=True,
                          env=clean, cwd=cwd, timeout=seconds, preexec_fn=preexec_fn)
    return Ran(done.returncode, done.stdout.decode(errors="surrogateescape"),
               done.stderr.decode(errors="surrogateescape"))


def one_sentence(ran, status, *parts):
    """The run failed with this status and one line "quarry: …" that holds every part."""
    assert ran.status == status, f"expected exit status {status}: {ran}"
    lines = [line for line in ran.err.splitlines() if line.startswith("quarry: ")]
    assert len(lines) == 1, f"expected one line 'quarry: …': {ran}"
    for part in parts:
        assert part in lines[0], f"expected {part!r} in: {ran}"
    return lines[0]


def tree(folder):
    """Every path below a folder, sorted; [] when it does not exist."""
    return sorted(os.path.relpath(os.path.join(here, name), folder)
                  for here, dirs, files in os.walk(folder) for name in dirs + files)
