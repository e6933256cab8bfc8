"""Lines that C++ code prints on standard output are dropped, and no other."""

import subprocess
import sys

PROGRAM = """
import os, subprocess
from jdl.runtime import output
print("before")
{undo} = output.drop_lines(b"[Gloo]")
print("Python's own, [Gloo] or not")
print("[Gloo] from Python")
os.write(1, b"[Gloo] Rank 0 is connected\\nC++ says\\n")
subprocess.run(["echo", "a child"], check=True)
{end}
"""


def said(**parts):
    program = PROGRAM.format(**parts)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return ended.stdout.splitlines()


def test_lines_are_dropped_until_the_end():
    lines = said(undo="_", end="print('last')")
    expected = ["before", "Python's own, [Gloo] or not", "[Gloo] from Python", "C++ says", "a child", "last"]
    assert sorted(lines) == sorted(expected)  # two streams: in any order
    assert lines[0] == "before"


def test_it_can_be_undone():
    lines = said(undo="undo", end="undo(); os.write(1, b'[Gloo] again\\n')")
    assert lines[-1] == "[Gloo] again"
    assert sum("[Gloo] Rank" in line for line in lines) == 0


def test_captured_output_is_left_alone(capsys):
    from jdl.runtime import output

    output.drop_lines(b"[Gloo]")()
    print("[Gloo] here")
    assert capsys.readouterr().out == "[Gloo] here\n"
