"""Pairs of processes in torchrun's environment, forked from a process that has imported everything already.

`python -m tests.pairs '[[MODULE, ARGUMENT, …], …]'` runs each MODULE as `python -m`, one pair after the other.
"""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 150  # limit for a process, which may wait for a dead one
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run_pairs(*jobs: list) -> tuple[list[int], subprocess.CompletedProcess]:
    """Run jobs [module, argument, …] in pairs of processes. Returns the larger exit code of each, and all output."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.pairs", json.dumps(jobs, default=str)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done


def pair(module: str, arguments: list[str]) -> int:
    """Run a module in two processes. Returns the larger exit code."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        child = os.fork()
        if not child:
            os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            signal.alarm(SECONDS)
            os._exit(code_of(module, arguments))
        children.append(child)
    return max(abs(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) for child in children)


def code_of(module: str, arguments: list[str]) -> int:
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    import tests.training.runs  # noqa: F401 (once for all forks)

    print(json.dumps([pair(module, arguments) for module, *arguments in json.loads(sys.argv[1])]))
