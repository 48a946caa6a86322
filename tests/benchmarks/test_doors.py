"""What masks and memory are worth: the script's rows, and its picture."""

import json

from benchmarks.learning import masks


def test_a_row_an_agent_and_seed_and_the_picture(monkeypatch, tmp_path):
    for name, value in {"STEPS": 1024, "EVERY": 512, "EPISODES": 4, "SEEDS": (0, 1)}.items():
        monkeypatch.setattr(masks, name, value)
    monkeypatch.setattr(masks, "RESULT", tmp_path / "masks.json")
    masks.main()
    report = json.loads((tmp_path / "masks.json").read_text())
    assert (report["benchmark"], report["seeds"]) == ("masks", [0, 1])
    assert [(row["agent"], row["seed"]) for row in report["rows"]] == [
        (name, s) for name in masks.AGENTS for s in (0, 1)
    ]
    assert all(row["steps"] == [0, 512, 1024] and len(row["success"]) == 3 for row in report["rows"])
    assert (tmp_path / "masks.png").stat().st_size > 0
