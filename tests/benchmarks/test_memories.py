"""Where the memories differ: what is asked is right, what can be had without memory, comparable cores, the report."""

import json
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest
import torch

from benchmarks.supervised import memories
from benchmarks.supervised.bindings import COPY, NOTHING, SET, SWAP, Cups, Pairs, size_of
from benchmarks.supervised.memories import DIFFERENT, TASKS, make_core
from benchmarks.supervised.programs import NO_ANSWER
from benchmarks.supervised.reader import Reader
from experiment.settings import SettingsError

SMALL = [Pairs(3, 5, 7), Pairs(3, 5, 7, "relative"), Cups(5, 3, 7)]


def remember(task, tokens):
    """The oracle: answers to one sequence (T, 4), by a dictionary."""
    held, answers = {}, []
    for does, second, third, asked in tokens.tolist():
        answers.append(held[asked - 1] if asked else NO_ANSWER)
        if isinstance(task, Cups):
            if does == SET:
                held[second - task.cups] = third
            elif does == SWAP:
                held = {ball: {second: third, third: second}.get(cup, cup) for ball, cup in held.items()}
        elif does == SET:
            held[second] = third
        elif does == COPY:
            held[second] = held[third - task.values]
        elif does == SWAP:
            held[second], held[third - task.values] = held[third - task.values], held[second]
    return answers


@pytest.mark.parametrize("task", SMALL)
def test_who_remembers_is_always_right(task):
    tokens, answers = task.sample(Random(0), 67)
    assert tokens.shape == (67, task.steps, 4)
    assert [remember(task, row) for row in tokens] == answers.tolist()
    assert (answers[:, : size_of(task)] == NO_ANSWER).all()
    assert set(answers[:, size_of(task) :].flatten()) == set(range(task.n_answers))
    assert tokens.max() < task.n_tokens


@pytest.mark.parametrize("task", SMALL)
def test_what_is_drawn_is_even(task):
    tokens, answers = task.sample(Random(1), 4000)
    shown, changed, last = np.split(tokens, [size_of(task), task.steps - 1], axis=1)
    things = task.cups + np.arange(task.balls) if isinstance(task, Cups) else np.arange(task.keys)
    assert (np.sort(shown[..., 1], axis=1) == things).all(), "each is shown once"
    assert len(np.unique(shown[..., 1], axis=0)) == 6, "in any order"
    if isinstance(task, Cups):
        assert all(len(set(row)) == task.balls for row in shown[..., 2]), "each under a cup of its own"
        assert (changed[..., 1] != changed[..., 2]).all()
    else:
        other = changed[..., 2] - task.values
        assert (other[changed[..., 0] != SET] != changed[..., 1][changed[..., 0] != SET]).all()
        kinds = {SET, COPY, SWAP} if task.kind == "relative" else {SET}
        assert np.bincount(changed[..., 0].flatten()) == pytest.approx(4000 * 7 / len(kinds), rel=0.05)
    assert (last[..., :3] == [NOTHING, 0, 0]).all()
    for t in range(size_of(task), task.steps):
        for counts in (np.bincount(answers[:, t]), np.bincount(tokens[:, t, 3])[1:]):
            assert counts == pytest.approx(4000 / len(counts), rel=0.15)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_pairs_without_memory(kind):
    """Over all sequences of 2 keys, 2 values and 1 change: no step tells anything about its answer."""
    task = Pairs(2, 2, 1, kind)
    shown = [
        [(SET, key, value, 0), (SET, 1 - key, second, 0)] for key in (0, 1) for value in (0, 1) for second in (0, 1)
    ]
    changes = [(SET, key, value) for key in (0, 1) for value in (0, 1)]
    if kind == "relative":  # as often as the two values together
        changes += [(does, key, 2 + 1 - key) for does in (COPY, SWAP) for key in (0, 1)] * 2
    asked = [(one, other) for one in (1, 2) for other in (1, 2)]
    rows = [
        [*first, (*change, one), (NOTHING, 0, 0, other)]
        for first in shown
        for change in changes
        for one, other in asked
    ]
    assert best_without_memory(task, np.array(rows)) == 1 / 2


def test_cups_without_memory():
    """Over all sequences of 3 cups, 2 balls and 1 swap."""
    task, pairs = Cups(3, 2, 1), [(one, other) for one in range(3) for other in range(3) if one != other]
    shown = [[(SET, 3 + ball, one, 0), (SET, 4 - ball, other, 0)] for ball in (0, 1) for one, other in pairs]
    asked = [(one, other) for one in (1, 2) for other in (1, 2)]
    rows = [
        [*first, (SWAP, *pair, one), (NOTHING, 0, 0, other)]
        for first in shown
        for pair in pairs
        for one, other in asked
    ]
    assert best_without_memory(task, np.array(rows)) == pytest.approx(1 / 3)


def best_without_memory(task, tokens):
    """The accuracy of the best answer to each step's tokens, over sequences that are all equally probable."""
    answers = task.answers(tokens)
    counts = defaultdict(Counter)
    for step, answer in zip(tokens.reshape(-1, 4).tolist(), answers.flatten().tolist(), strict=True):
        if answer != NO_ANSWER:
            counts[tuple(step)][answer] += 1
    return sum(max(found.values()) for found in counts.values()) / sum(found.total() for found in counts.values())


def test_rules_that_follow_less():
    """By hand: key 1 gets 4, key 0 what key 1 has, then they swap, then key 0 gets 2."""
    task = Pairs(2, 5, 4, "relative")
    steps = [
        (SET, 0, 3, 0),
        (SET, 1, 1, 0),
        (SET, 1, 4, 1),
        (COPY, 0, 6, 2),
        (SWAP, 0, 6, 1),
        (SET, 0, 2, 1),
        (3, 0, 0, 1),
    ]
    tokens = np.array([steps])
    assert task.answers(tokens)[0].tolist() == [NO_ANSWER, NO_ANSWER, 3, 4, 4, 4, 2]
    assert task.answers(tokens, known=(SET,))[0].tolist() == [NO_ANSWER, NO_ANSWER, 3, 4, 3, 3, 2]
    less = {name: next(iter(task.rules(Random(0), 2000).values())) for name, task in zip("arc", SMALL, strict=True)}
    # each of 7 changes leaves a key with 2 in 3, and with 1 in 3 it gets one of 5 values
    expected = np.mean([(2 / 3) ** n + (1 - (2 / 3) ** n) / 5 for n in range(8)])
    assert less["a"] == pytest.approx(expected, abs=0.02)
    assert 1 / 5 < less["c"] < less["r"] < 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pairs(1), "keys must be at least 2, got 1"),
        (lambda: Pairs(2, 1), "values must be at least 2, got 1"),
        (lambda: Pairs(2, 2, 0), "changes must be at least 1, got 0"),
        (lambda: Pairs(2, 2, 1, "random"), "kind must be one of absolute, relative, got 'random'"),
        (lambda: Cups(3, 4), "balls must be at most cups, got balls=4 and cups=3"),
        (lambda: Cups(1, 1), "cups must be at least 2, got 1"),
    ],
)
def test_tasks_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        make()


@pytest.mark.parametrize("name", TASKS)
def test_cores_have_as_many_parameters_and_see_everything(name):
    task, counts = TASKS[name][-1], {}
    tokens, _ = (torch.from_numpy(part) for part in task.sample(Random(0), 3))
    changed = tokens.clone()
    changed[:, 0, 2] = (changed[:, 0, 2] + 1) % task.n_answers
    for core in DIFFERENT:
        torch.manual_seed(0)
        reader = Reader(make_core(core, task.steps), task)
        counts[core] = memories.parameters(reader)
        assert (reader(changed)[0][:, -1] != reader(tokens)[0][:, -1]).any(), "the first step is in sight at the last"
    assert max(counts.values()) < 1.1 * min(counts.values())


@pytest.fixture
def tiny(monkeypatch):
    """One small task of two sizes, with two seeds."""
    monkeypatch.setattr(memories, "TASKS", {"cups": (Cups(3, 1, 2), Cups(3, 2, 2))})
    monkeypatch.setattr(memories, "SEEDS", (0, 1))


def command(file):
    return [
        "--task",
        "cups",
        "--core",
        "gru",
        "--seed",
        "0",
        "1",
        "--updates",
        "2",
        "--sequences",
        "19",
        "--json",
        str(file),
    ]


def test_report_and_no_run_twice(tiny, tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    monkeypatch.setattr(memories, "conditions", lambda threads: {"threads": threads, "commit": "a1b2"})
    memories.main(command(file))
    rows = json.loads(file.read_text())["rows"]
    best = [memories.best_rate(rows, "cups", things, "gru") for things in (1, 2)]
    trained = [(row["things"], row["learning_rate"], row["seed"]) for row in rows]
    assert trained[:-2] == [(things, rate, 0) for things in (1, 2) for rate in memories.RATES]
    assert trained[-2:] == [(1, best[0], 1), (2, best[1], 1)]
    assert rows[0]["asked_by_change"] == [19, 19, 19]
    assert rows[0]["accuracy"]["value"] == pytest.approx(sum(rows[0]["right_by_change"]) / 57)
    assert rows[0]["baselines"]["without memory"] == 1 / 3
    assert [row["conditions"]["seeds"] for row in rows] == [[seed] for *_, seed in trained]
    assert rows[0]["conditions"].items() >= {"threads": 1, "commit": "a1b2"}.items()
    monkeypatch.setattr(memories, "train", lambda *_: pytest.fail("trained again"))
    memories.main(command(file))


def test_one_rate_and_size(tiny, tmp_path, monkeypatch):
    file = tmp_path / "x.json"
    monkeypatch.setattr(memories, "train", lambda task, core, rate, *_: {"seconds": 0, "accuracy": {"value": rate}})
    monkeypatch.setattr(memories, "conditions", lambda threads: {})
    memories.main([*command(file), "--learning-rate", "0.25", "--things", "1"])
    memories.main([*command(file), "--learning-rate", "0.75", "--things", "1", "--updates", "30", "--seed", "0"])
    rows = json.loads(file.read_text())["rows"]
    assert [(row["things"], row["learning_rate"], row["seed"]) for row in rows] == [
        (1, 0.25, 0),
        (1, 0.25, 1),
        (1, 0.75, 0),
    ]
    assert memories.longer(file).splitlines()[2:] == [
        f"| {memories.TITLES['cups']} | 1 | 2 | 2 | 0.25 [0.25, 0.25] |",
        f"| {memories.TITLES['cups']} | 1 | 30 | 1 | 0.75 |",
    ]


def test_rates_of_another_report(tiny, tmp_path, monkeypatch, capsys):
    chosen, file = tmp_path / "chosen.json", tmp_path / "x.json"
    monkeypatch.setattr(memories, "train", lambda task, core, rate, *_: {"seconds": 0, "accuracy": {"value": rate}})
    monkeypatch.setattr(memories, "conditions", lambda threads: {})
    rows = [
        {"task": "cups", "things": 2, "core": "gru", "learning_rate": rate, "seed": 0, "accuracy_to_choose_by": quality}
        for rate, quality in zip(memories.RATES, (0.1, 0.2, 0.4, 0.3), strict=True)
    ]
    chosen.write_text(json.dumps({"benchmark": "memories", "rows": rows}))
    memories.main([*command(file), "--rates", str(chosen), "--things", "2"])
    trained = [(row["learning_rate"], row["seed"]) for row in json.loads(file.read_text())["rows"]]
    assert trained == [(memories.RATES[2], 0), (memories.RATES[2], 1)], "nothing is tried again"
    chosen.write_text(json.dumps({"benchmark": "memories", "rows": rows[1:]}))
    with pytest.raises(SystemExit) as stopped:
        memories.main([*command(file), "--rates", str(chosen)])
    assert stopped.value.code == 2
    assert f"--rates {chosen}: not all rates of gru on cups were tried" in capsys.readouterr().err


def rows_of(core, rates, accuracies):
    """Of two sizes and seeds; the rates with the first seed, where they are chosen."""
    rows = []
    for things, of_size in zip((1, 2), accuracies, strict=True):
        for seed, accuracy in enumerate(of_size):
            rows.append((things, max(rates, key=rates.get), seed, accuracy))
        rows += [(things, rate, 0, 0.0) for rate in rates if rate != max(rates, key=rates.get)]
    return [
        {"task": "cups", "things": things, "core": core, "learning_rate": rate, "seed": seed, "parameters": 1234}
        | {"accuracy": {"value": accuracy}, "accuracy_to_choose_by": rates[rate]}
        | {"asked_by_change": [8, 8, 8], "right_by_change": [8, 4, 2 * seed]}
        | {"baselines": {"without memory": 1 / 3, "where it was at first": 0.5}}
        for things, rate, seed, accuracy in rows
    ]  # fmt: skip


def test_tables(tiny, tmp_path):
    rows = rows_of("gru", {1e-3: 0.75, 3e-3: 0.5, 1e-2: 0.25, 3e-2: 0}, [[1, 1], [0.5, 0.75]])
    rows += rows_of("feedback", {1e-3: 0.25, 3e-3: 0.5, 1e-2: 0.25, 3e-2: 0}, [[1], [0.25]])
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"benchmark": "memories", "rows": rows}))
    title = memories.TITLES["cups"]
    assert memories.table(file).splitlines() == [
        "| task | things | seeds | without memory | a rule that follows less | feedback | gru |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        f"| {title} | 1 | 1 to 2 | 0.33 | 0.50 | 1.00 | 1.00 [1.00, 1.00] |",
        f"| {title} | 2 | 1 to 2 | 0.33 | 0.50 | 0.25 | 0.62 [0.50, 0.75] |",
    ]
    assert memories.rates(file).splitlines() == [
        "| task | things | core | parameters | 0.001 | 0.003 | 0.01 | 0.03 | taken |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {title} | 1 | feedback | 1,234 | 0.250 | 0.500 | 0.250 | 0.000 | 0.003 |",
        f"| {title} | 1 | gru | 1,234 | 0.750 | 0.500 | 0.250 | 0.000 | 0.001 |",
        f"| {title} | 2 | feedback | 1,234 | 0.250 | 0.500 | 0.250 | 0.000 | 0.003 |",
        f"| {title} | 2 | gru | 1,234 | 0.750 | 0.500 | 0.250 | 0.000 | 0.001 |",
    ]
    assert memories.by_change(rows[:2]).tolist() == [[1, 0.5, 0], [1, 0.5, 0.25]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--sequences", "-1"], "--sequences must be at least 1, got -1"),
        (["--learning-rate", "0"], "--learning-rate must be more than 0, got 0"),
        (["--core", "abacus"], "invalid choice: 'abacus'"),
        (["--json", "nowhere/x.json"], "nowhere is no folder"),
    ],
)
def test_options_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        memories.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"benchmark": "scan", "rows": []}', "[]"])
def test_other_reports_are_left_alone(content, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match="no report of this script"):
        memories.finished(file)
