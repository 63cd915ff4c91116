"""What a job asks of the machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from da_leukemia import machine

FAULTS = """
import resource
import sys
from da_leukemia.machine import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
bytearray(64 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    bytearray(64 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    found = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
    )
    return int(found.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_memory_that_was_freed_is_not_asked_for_again():
    pages = 4 * (64 << 20) // 4096
    assert faults("kept") < 0.01 * pages < faults("given back")


def test_without_glibc_the_memory_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: object())
    assert not machine.keep_freed_memory()
