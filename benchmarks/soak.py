"""Kills, damage and interleavings by the thousands: what the suite's tests do, with larger numbers.

    python benchmarks/soak.py files --count 10000         # damaged files of all subjects together
    python benchmarks/soak.py kills --count 10            # worlds in which each command is killed
    python benchmarks/soak.py races --count 500           # orders of steps at one cache
    python benchmarks/soak.py cache --count 500           # kills of writers; 20 times the damage
    python benchmarks/soak.py classes --count 100000      # processor seconds with as many classes

Raw and encoded caches (PNG, WebP, JPEG) take part in each. Every damaged file must be used rightly
or refused with one clear error; what a killed command leaves must be whole, and what it leaves when
it has run again equal to that of a run without a kill; what was withdrawn must stay so in every
order of steps. Counts are totals: run again with a larger one, and it goes on after the seeds that
are done; `--anew` forgets them. Results, with the commits that they are of, are in
`results/soak.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from _classes import STEPS
from _machine import RESULTS, machine, write

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CHUNK = 100  # damaged files between two writes of the results
LONGEST = 120.0
"""Processor seconds that a step may take with 100,000 classes."""
TESTS: Mapping[str, tuple[tuple[str, ...], str, Mapping[str, int]]] = {
    "races": (
        ("tests/test_cache_races.py",),
        "order_of_steps or half_of_one or same_job_twice",
        {"SYNTHAUG_RACES": 1},
    ),
    "cache": (
        ("tests/test_cache_faults.py", "tests/test_cache_damage.py"),
        "a_kill_at or a_kill_while or no_damage",
        {"SYNTHAUG_KILLS": 1, "SYNTHAUG_DAMAGE": 20},
    ),
}
"""Files, tests in them, and what the environment tells them per trial."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("soak", choices=["files", "kills", "classes", *TESTS])
    parser.add_argument("--count", type=int, default=100, help="trials of each; files in all")
    parser.add_argument("--only", action="append", help="a subject or a command; all by default")
    parser.add_argument("--anew", action="store_true", help="forget earlier results of this soak")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so many")
    arguments = parser.parse_args()
    end = time.monotonic() + 60 * arguments.minutes
    if arguments.soak in TESTS:
        sys.exit(suite(arguments.soak, arguments.count))
    if arguments.soak == "classes":
        sys.exit(bool(classes(arguments.count)))
    if arguments.anew:
        write("soak", {name: value for name, value in stored().items() if name != arguments.soak})
    soak = files if arguments.soak == "files" else kills
    faults = soak(arguments.count, arguments.only, end)
    print(f"{faults} faults")
    sys.exit(bool(faults))


def files(count: int, only: list[str] | None, end: float) -> int:
    """Damaged files, equally many of every subject."""
    from tests import fuzzing, killing

    warnings.simplefilter("ignore")
    names = only or [*fuzzing.SUBJECTS]
    killing.import_all()  # or each of the processes that are forked off would

    def start(name: str, folder: Path) -> Callable[[range], dict[str, Any]]:
        subject = fuzzing.SUBJECTS[name](folder)
        return lambda seeds: vars(fuzzing.trials(subject, folder, seeds))

    return rounds("files", names, -(-count // len(names)), start, end)


def kills(count: int, only: list[str] | None, end: float) -> int:
    """Kills of every command."""
    from tests import killing

    with tempfile.TemporaryDirectory() as place:
        names = only or [*killing.COMMANDS]
        models = bool({*names} - {*killing.CHEAP})
        base = killing.world(Path(place) / "world", models=models)

        def start(name: str, folder: Path) -> Callable[[range], dict[str, Any]]:
            return lambda seeds: vars(killing.trials(base, folder, name, seeds))

        return rounds("kills", names, count, start, end)


def rounds(
    soak: str,
    names: list[str],
    count: int,
    start: Callable[[str, Path], Callable[[range], dict[str, Any]]],
    end: float,
) -> int:
    """Goes on with each in turn until it has had `count` trials; returns the number of faults."""
    totals, commit = stored().get(soak, {}), machine()["commit"]
    runs: dict[str, Callable[[range], dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as place:
        while left := [name for name in names if totals.get(name, {}).get("seeds", 0) < count]:
            for name in left:
                if time.monotonic() >= end:
                    return sum(len(total.get("faults", [])) for total in totals.values())
                total = totals.setdefault(name, {"seeds": 0, "seconds": 0.0, "commits": []})
                if name not in runs:
                    folder = Path(place) / f"{len(runs)}"
                    folder.mkdir()
                    runs[name] = start(name, folder)
                began = time.monotonic()
                chunk = CHUNK if soak == "files" else 1
                seeds = range(total["seeds"], min(count, total["seeds"] + chunk))
                for key, value in runs[name](seeds).items():
                    total[key] = total.get(key, type(value)()) + value
                total["seeds"] = seeds.stop
                total["commits"] = [*dict.fromkeys([*total["commits"], commit])]
                total["seconds"] = round(total["seconds"] + time.monotonic() - began, 1)
                write("soak", {**stored(), soak: totals})  # another soak may run beside
                print(f"{soak}: {name}: {total}", flush=True)
    return sum(len(total.get("faults", [])) for total in totals.values())


def suite(soak: str, count: int) -> int:
    """Tests of the suite that take their number of trials from the environment."""
    files, which, variables = TESTS[soak]
    began, given = time.monotonic(), {name: str(each * count) for name, each in variables.items()}
    with tempfile.TemporaryDirectory() as place:
        record = Path(place) / "tests.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *files, "-k", which, f"--junitxml={record}"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **given},
            check=False,
        )
        cases = ElementTree.parse(record).iter("testcase")
    tests: dict[str, dict[str, int]] = {}
    for case in cases:
        name, _, chosen = case.attrib["name"].partition("[")
        name = f"{name} {chosen.rstrip(']')}" if soak == "cache" else name
        total = tests.setdefault(name.removeprefix("test_").replace("_", " ").strip(), {})
        total["tests"] = total.get("tests", 0) + 1
        total["faults"] = total.get("faults", 0) + any(x.tag in ("failure", "error") for x in case)
    result = {"count": count, **given, "passed": done.returncode == 0, "tests": tests}
    result |= {"seconds": round(time.monotonic() - began, 1), "commit": machine()["commit"]}
    print(write("soak", {**stored(), soak: result}))
    return done.returncode


def classes(number: int) -> int:
    """Everything that goes through a class list, with very many classes of one image each."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, step in STEPS.items():
            began = time.process_time()
            step(Path(place), number)
            seconds[name] = round(time.process_time() - began, 1)
            print(f"classes: {name}: {seconds[name]} s", flush=True)
            result = {"classes": number, "seconds": seconds, "commit": machine()["commit"]}
            write("soak", {**stored(), "classes": result})
    slow = [name for name, used in seconds.items() if used > LONGEST * number / 100_000]
    print("".join(f"{name} takes longer than {LONGEST:g} s\n" for name in slow))
    return len(slow)


def stored() -> dict[str, Any]:
    """Returns the findings of earlier calls."""
    path = RESULTS / "soak.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {name: value for name, value in found.items() if name != "machine"}


if __name__ == "__main__":
    main()
