"""What a second thread gains the compiled scan: the rows of the script, and how the scripts wait."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("numba")

from benchmarks.report import ROOT
from benchmarks.speed import threads

SIZE = threads.Size(8, 1, 2, 4, 6, 16)


def test_a_row_of_laps_by_hand():
    laps = {"1": [[4.0, 3.0], [5.0, 3.0], [9.0, 6.0]], "2": [[2.0, 1.5], [2.5, 1.5], [9.0, 1.0]]}
    row = threads.row("passive", SIZE, [laps])
    assert (row["D"], row["wait_policy"], row["two_over_one"], row["kernels_two_over_one"]) == (8, "passive", 2, 2)
    assert row["outside"] == pytest.approx(1 - 3 / 5)
    assert row["least_two_over_one"] == 2


@pytest.mark.slow
def test_laps_in_a_process_that_waits_as_it_is_told():
    found = threads.measure("brief", SIZE, 6)
    assert [len(found[n]) for n in "12"] == [10, 10]
    assert all(0 < kernels < whole for n in "12" for whole, kernels in found[n])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["passive", "2000"]),
        ({"GOMP_SPINCOUNT": "5"}, ["passive", "5"]),
        ({"OMP_WAIT_POLICY": "active"}, ["active", None]),
    ],
)
def test_the_scripts_do_not_wait_by_spinning_for_long(given, expected):
    names = ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"]
    code = f"import os, json, train_agent; print(json.dumps([os.environ.get(name) for name in {names}]))"
    environment = {name: value for name, value in os.environ.items() if name not in threads.POLICIES["brief"]} | given
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert json.loads(found) == expected
