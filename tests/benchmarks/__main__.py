"""All benchmarks, one after another: `python -m tests.benchmarks [NAME ...]`. Nothing is asserted; ratios hold within
one run only."""

from __future__ import annotations

import subprocess
import sys

from tests.benchmarks.report import machine

ALL = (
    "training",
    "ray_train",
    "exchange_tax",
    "teacher_tax",
    "stall",
    "straggler",
    "traffic",
    "codec",
    "gradient_noise",
    "publish",
    "fetch_swap",
    "startup",
    "local_startup",
    "service_load",
    "many_replicas",
)


def main() -> int:
    names = sys.argv[1:] or ALL
    unknown = set(names) - set(ALL)
    if unknown:
        print(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(ALL)}", file=sys.stderr)
        return 2
    print(machine(), flush=True)
    # A process each: what Ray reads from the environment when it is imported differs between them.
    return max(subprocess.run([sys.executable, "-m", f"tests.benchmarks.{name}"]).returncode for name in names)


if __name__ == "__main__":
    sys.exit(main())
