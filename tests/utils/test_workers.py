"""An error ends the workers at once, whatever they are at."""

import subprocess
import sys

# Messages of 50 MB, so that a worker is nearly always in the middle of one when it is killed.
SCRIPT = """
import os
from ant_hf.utils.workers import worker_processes

if __name__ == "__main__":
    for large in (bytes, len):
        try:
            with worker_processes(2, os.getpid) as pool:
                given = [50_000_000] * 6 if large is bytes else [bytes(50_000_000)] * 6
                results = pool.map(large, given)
                next(results)
                raise LookupError
        except LookupError:
            print("ended")
"""


def test_a_worker_that_is_killed_in_the_middle_of_a_message_is_not_waited_for():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ended\n" * 2, "")
