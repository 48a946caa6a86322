"""The table of agents on more T-mazes than they were trained on."""

import json

from benchmarks.learning import endless


def test_the_table(tmp_path):
    rows = [
        {"core": core, "seed": seed, "corridors": corridors, "success": 1 / seed, "right_turns": 0.5}
        for core in ("feedback", "lstm")
        for seed in (1, 2)
        for corridors in endless.CORRIDORS
    ]
    path = tmp_path / "endless.json"
    assert len(endless.table(path).splitlines()) == 2
    path.write_text(json.dumps({"rows": rows}))
    lines = endless.table(path).splitlines()
    assert lines[2] == "| feedback | 5 | 1.00, 0.50 | 0.50, 0.50 | 0.75 |"
    assert lines[-1] == "| lstm | 20 | 1.00, 0.50 | 0.50, 0.50 | 0.75 |"
    assert len(lines) == 8


def test_rows_of_runs_that_are_elsewhere_stay():
    def row(core, seed, success):
        return {"core": core, "seed": seed, "corridors": 5, "success": success}

    old = [row("lstm", 100, 0.1), row("lstm", 200, 0.2)]
    found = endless.merged(old, [row("lstm", 200, 0.9), row("feedback", 300, 0.3)])
    assert found == [row("feedback", 300, 0.3), row("lstm", 100, 0.1), row("lstm", 200, 0.9)]
