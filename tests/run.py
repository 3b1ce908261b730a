"""`make test`: all tests on all cores, daemons and commands included in the branch coverage.

PYTEST_ARGS in the environment is passed on (PYTEST_ARGS="-k restart"); coverage is then reported,
not demanded.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEAST_PERCENT = 95


def main() -> int:
    """Run pytest under coverage; return the exit code."""
    chosen = shlex.split(os.environ.get("PYTEST_ARGS", ""))
    # Daemons that tests run as another user must be able to write their share.
    store = Path(tempfile.mkdtemp(prefix="watcherd-coverage-"))
    store.chmod(0o1777)
    env = os.environ | {"COVERAGE_FILE": str(store / "data"), "PYTHONDONTWRITEBYTECODE": "1"}
    coverage = [sys.executable, "-m", "coverage"]
    # Once, not at each of the thousands of starts of daemons and commands, which write nothing.
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", "stager", "watcherd.py"], cwd=ROOT, check=True
    )
    try:
        tests = subprocess.run(
            [*coverage, "run", "-m", "pytest", "-q", "-n", str(os.cpu_count() or 2),
             "--dist", "loadgroup", *chosen],
            cwd=ROOT, env=env, check=False,
        )  # fmt: skip
        subprocess.run([*coverage, "combine", "-q"], cwd=ROOT, env=env, check=False)
        least = [] if chosen else [f"--fail-under={LEAST_PERCENT}"]
        report = subprocess.run([*coverage, "report", *least], cwd=ROOT, env=env, check=False)
    finally:
        shutil.rmtree(store)
    return tests.returncode or report.returncode


if __name__ == "__main__":
    sys.exit(main())
