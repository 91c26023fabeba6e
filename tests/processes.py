"""Programs in processes of their own, which find imported what most of them need.

They are forked from the server of multiprocessing's method "forkserver", see `conftest.py`: it
starts once, so a program costs what it does, and not the seconds that it takes to import torch and
diffusers. Like new processes, programs know nothing of what tests imported or patched.
"""

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

import torch


@dataclass(frozen=True)
class Program:
    """A process that runs, or has run, a program; what it prints goes to files."""

    process: BaseProcess
    output: Path
    errors: Path

    def wait(self, timeout: float = 600) -> CompletedProcess[str]:
        """What became of it; an exit code below 0 is that of a signal."""
        self.process.join(timeout)
        code = self.process.exitcode
        assert code is not None, f"still running after {timeout} s: {self.errors.read_text()}"
        return CompletedProcess([], code, self.output.read_text(), self.errors.read_text())


def start(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, object] | None = None,
) -> Program:
    """Starts a program as `python -c CODE ARGUMENTS` would, from where modules of tests are found.

    Args:
        code: Its text.
        arguments: What it finds in `sys.argv`, as text.
        cwd: Where it runs; here by default.
        environment: Variables that it has in addition to ours.
    """
    folder = Path(tempfile.mkdtemp(prefix="program"))
    program = Program(
        get_context("forkserver").Process(
            target=_run,
            args=(
                code,
                [str(argument) for argument in arguments],
                str(cwd or Path.cwd()),
                {**os.environ, **{k: str(v) for k, v in (environment or {}).items()}},
                str(folder),
            ),
        ),
        folder / "output",
        folder / "errors",
    )
    for path in (program.output, program.errors):
        path.touch()
    program.process.start()
    return program


def run(
    code: str,
    *arguments: object,
    cwd: Path | None = None,
    environment: Mapping[str, object] | None = None,
) -> CompletedProcess[str]:
    """Starts a program, and waits for its end."""
    return start(code, *arguments, cwd=cwd, environment=environment).wait()


def _run(
    code: str, arguments: list[str], cwd: str, environment: dict[str, str], folder: str
) -> None:
    for stream, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND), stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    tempfile.tempdir = None  # ask the environment again
    torch.set_num_threads(1)
    sys.argv = ["-c", *arguments]
    sys.path.insert(0, "")
    exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})
