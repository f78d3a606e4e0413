"""What the scripts of Ray share: the examples started as programs, and the processes below them."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = (EXAMPLES.parent / "README.md").read_text().split()


def texts(count, seed=0):
    """Returns texts of 3 to 10 words, no two alike."""
    chosen = random.Random(seed)
    return [
        f"{number} " + " ".join(chosen.choices(WORDS, k=chosen.randint(2, 9)))
        for number in range(count)
    ]


@contextlib.contextmanager
def folder():
    """Makes a folder, for Ray's own files as well; its sockets' paths must be short."""
    made = Path(tempfile.mkdtemp(prefix="g-", dir="/tmp"))
    os.environ |= {"RAY_TMPDIR": str(made), "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_AUTH_MODE": "disabled"}
    try:
        yield made
    finally:
        for program in Program.started:
            program.kill()
        shutil.rmtree(made, ignore_errors=True)


def processes():
    """Returns all processes that run: by their ids their parents' ids and their titles."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything.
            state, parent = (place / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(place.name)] = (int(parent), (place / "cmdline").read_text())
    return found


class Program:
    """An example, with the processes that Ray has started for it."""

    started = []

    def __init__(self, name, *arguments, log):
        self.log = log
        with open(log, "w") as output:
            command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
            self.child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        Program.started.append(self)

    def below(self, title=""):
        """Returns the ids of the processes below it whose titles begin so."""
        running = processes()
        found = {self.child.pid}
        while True:
            more = {pid for pid, (parent, _) in running.items() if parent in found} - found
            if not more:
                break
            found |= more
        below = found - {self.child.pid}
        return sorted(pid for pid in below if running[pid][1].startswith(title))

    def until(self, what, true, seconds=300):
        """Waits until something holds."""
        end = time.monotonic() + seconds
        while not true():
            if self.child.poll() is not None or time.monotonic() > end:
                sys.exit(f"{what}: not within {seconds} s\n{self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def wait(self, seconds):
        """Waits for its end and returns the exit status."""
        return self.child.wait(seconds)

    def kill(self):
        """Kills the program itself, if it runs. What Ray has started for it ends of its own, but
        for agents that, where nothing takes in orphans, wait for a process that has ended."""
        left = self.below() if self.child.poll() is None else []
        self.child.kill()
        self.child.wait()
        end = time.monotonic() + 6
        while alive := set(left) & set(processes()):
            if time.monotonic() > end:
                for pid in alive:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
