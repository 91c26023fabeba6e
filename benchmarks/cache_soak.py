"""Kills and damage by the hundreds: the suite's tests of the cache with larger numbers.

    python benchmarks/cache_soak.py                    # 500 kills each with one and two writers

Every kill lands at a random instant of a process that writes; afterwards every row that is done
must be intact, nothing that was acknowledged may be missing, and the finished file must equal that
of an uninterrupted run. Every damaged file must be refused, or its damage found by `verify`.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from _machine import write

TESTS = ("tests/test_cache_faults.py", "tests/test_cache_damage.py")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=500, help="with one, and with two writers")
    parser.add_argument("--damages", type=int, default=10_000)
    arguments = parser.parse_args()
    root = Path(__file__).parents[1]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *TESTS, "-k", "kill or no_damage"],
        cwd=root,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "SYNTHAUG_KILLS": str(arguments.kills),
            "SYNTHAUG_DAMAGE": str(arguments.damages),
        },
        check=False,
    )
    result = {
        "kills": {"one writer": arguments.kills, "two writers": arguments.kills}
        | {"while creating": arguments.kills},
        "damages": arguments.damages,
        "passed": done.returncode == 0,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(result)
    print(write("cache_soak", result))
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
