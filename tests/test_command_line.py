"""What the scripts set up for themselves before they load a model."""

import platform
import subprocess
import sys

import pytest
from conftest import ROOT

# Takes and frees 60 MB, more than glibc keeps by itself, and prints how many pages the kernel cleared for it.
FAULTS = """
import resource
from pair_pm.command_line import keep_freed_memory

{call}
def take():
    for piece in [bytearray(20_000_000) for _ in range(3)]:
        piece[::4096] = bytes(len(piece[::4096]))

take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets options of glibc")
def test_memory_that_is_freed_is_kept():
    faults = {}
    for call in ("", "keep_freed_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS.format(call=call)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        faults[call] = int(done.stdout)
    assert faults["keep_freed_memory()"] < 100 < faults[""], faults
