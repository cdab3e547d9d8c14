"""The GPU engine's outputs are read when the driver's threads are idle."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: other threads of a test process may be at work.
PROGRAM = """
import hashlib, threading, time
from md_export.targets.tflite.gpu.engine import others_run, wait_for_threads

def work():
    for _ in range(ROUNDS):
        hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)

worker = threading.Thread(target=work)
worker.start()
time.sleep(0.05)
busy = others_run()
wait_for_threads()
print(busy, worker.is_alive())
worker.join()
"""


def answer(rounds: int) -> str:
    program = PROGRAM.replace("ROUNDS", str(rounds))
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what threads do")
def test_it_returns_when_the_other_thread_has_ended() -> None:
    assert answer(rounds=8) == "True False"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what threads do")
def test_nothing_to_wait_for() -> None:
    assert answer(rounds=0) == "False False"
