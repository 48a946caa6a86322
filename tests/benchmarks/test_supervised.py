"""The core on its own: what is asked is right, the cores are comparable, and what is trained learns."""

import json
from collections import Counter
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from benchmarks.supervised import compare as supervised
from benchmarks.supervised import programs
from benchmarks.supervised.compare import CORES, SIZES, baselines, make_core, make_task
from benchmarks.supervised.programs import NO_ANSWER, Programs, without_conditions
from benchmarks.supervised.reader import Plan, Reader, Trainer, answer, factor, score
from benchmarks.supervised.walk import Walk
from experiment.settings import SettingsError

TASKS = {
    "programs": Programs(3, 11),
    "programs by token": Programs(2, 3, whole=False),
    "walk": Walk(3, 13),
}
SIZE = replace(SIZES["tiny"], window=41)


def decode(tokens):
    """The statements that token numbers (T, P) stand for."""
    words = [programs.TOKENS[token] for token in tokens.flatten()]
    statements = " ".join(word for word in words if word != "END").split(";")
    return [statement.split() for statement in statements[:-1]]


def python(statement):
    """A statement as Python."""
    if statement[0] == "if":
        return " ".join(statement[:4]) + f": {python(statement[5:])}"
    if statement[0] == "print":
        return f"shown.append({statement[1]})"
    if len(statement) == 2:
        return f"{statement[0]} {statement[1][0]}= 1"
    return " ".join(statement)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("variables", [1, 3, 5])
def test_answers_are_what_python_shows(variables, whole):
    task = Programs(variables, 37, whole)
    tokens, answers = task.sample(Random(variables), 53)
    assert tokens.shape == (53, answers.shape[1], 9 if whole else 1)
    for row, due in zip(tokens, answers, strict=True):
        statements, values = decode(row), {"shown": []}
        assert len(statements) == 37
        for statement in statements:
            exec(python(statement), values)
            in_range = [values[name] for name in programs.NAMES if name in values]
            assert all(1 <= value <= 10 for value in in_range)
        assert set(values) & set(programs.NAMES) <= set(programs.NAMES[:variables])
        assert [number + 1 for number in due[due != NO_ANSWER]] == values["shown"]


def test_an_answer_is_due_at_the_end_of_print():
    tokens, answers = Programs(3, 17, whole=False).sample(Random(0), 7)
    words = np.array(programs.TOKENS)[tokens[..., 0]]
    expected = np.zeros(answers.shape, bool)
    expected[:, 2:] = (words[:, :-2] == "print") & (words[:, 2:] == ";")
    assert np.array_equal(answers != NO_ANSWER, expected)
    assert expected.any()
    whole_tokens, whole_answers = Programs(3, 17).sample(Random(0), 7)
    assert np.array_equal(whole_answers != NO_ANSWER, whole_tokens[..., 0] == programs.INDEX["print"])
    assert [*whole_answers[whole_answers != NO_ANSWER]] == [*answers[expected]], "the same programs"


def test_programs_are_varied():
    rng = Random(0)
    drawn = [Programs(3, 48).draw(rng) for _ in range(400)]
    shown = Counter(number for _, numbers in drawn for number in numbers if number is not None)
    assert sorted(shown) == list(range(1, 11))
    assert all(0.04 < count / shown.total() < 0.2 for count in shown.values()), "no number is the answer to most"
    later = [statement for program, _ in drawn for statement in program[24:]]
    kinds = Counter("if" if s[0] == "if" else "print" if s[0] == "print" else s[1] for s in later)
    assert kinds.keys() >= {"if", "print", "++", "--"}
    assert all(0.18 < kinds[kind] / len(later) < 0.32 for kind in ("if", "print", "++", "--"))
    conditions = [statement for statement in later if statement[0] == "if"]
    assert {statement[2] for statement in conditions} == {"<", ">"}
    assert {statement[3] in programs.NAMES for statement in conditions} == {True, False}


def test_rules_that_do_less():
    program = "x = 5 ;|if x > 3 : x ++ ;|x ++ ;|print x ;|if x < 3 : y = 1 ;|y -- ;|print y ;"
    statements = [line.split() for line in program.split("|")]
    assert without_conditions(statements) == [None, None, None, 6, None, None, None]
    rules = baselines(Programs(3, 24), 300)
    assert 0.08 < rules["most frequent answer"] < 0.2
    assert 0.6 < rules["without conditions"] < 0.85
    rules = baselines(Walk(4, 24), 300)
    assert rules["most frequent answer"] < rules["without walls"] < 0.9


def test_cells_of_a_walk():
    """By hand, on a grid of 3 x 3 cells: into the wall, down, round, and back."""
    left, right, forward = 0, 1, 2
    actions = np.array([[left, forward, right, forward, forward, forward, right, forward, right, forward]])
    cells = [0, 0, 0, 1, 2, 2, 2, 5, 5, 4]
    assert Walk(3, 10).cells(actions).tolist() == [cells]
    assert Walk(3, 10).cells(actions, walls=False)[0, -1] != cells[-1]


def test_walk_against_another():
    task = Walk(5, 43)
    actions, cells = task.sample(Random(0), 29)
    assert actions.shape == (29, 43, 1)
    for row, expected in zip(actions[..., 0], cells, strict=True):
        place, way, visited = 0j, 1 + 0j, []
        for action in row:
            way *= {0: -1j, 1: 1j, 2: 1}[int(action)]
            ahead = place + way * (action == 2)
            place = ahead if 0 <= ahead.real < 5 and 0 <= ahead.imag < 5 else place
            visited.append(int(ahead.imag * 5 + ahead.real) if place == ahead else int(place.imag * 5 + place.real))
        assert visited == expected.tolist()
    assert len(np.unique(cells)) == 25


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Programs(6), "variables must be from 1 to 5, got 6"),
        (lambda: Programs(3, 0), "statements must be at least 1, got 0"),
        (lambda: Walk(0), "side must be at least 1, got 0"),
        (lambda: Walk(3, -1), "steps must be at least 1, got -1"),
    ],
)
def test_tasks_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", SIZES)
def test_as_many_parameters(name):
    size = SIZES[name]
    feedback, transformer, twice = (make_core(core, size) for core in CORES)
    counts = [sum(parameter.numel() for parameter in core.parameters()) for core in (feedback, transformer)]
    assert counts[1] == pytest.approx(counts[0], rel=0.1)
    assert len(feedback.layers) == len(transformer.layers) == size.L
    assert len(twice.layers) == 2 * size.L
    assert twice.layers[0].w_1.out_features == size.d_feedforward


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_everything_before_is_in_sight(name):
    size = SIZES[name]
    assert size.programs.whole
    assert max(size.programs.statements, size.walk.steps) <= min(size.window, size.plan.segment)


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize("name", TASKS)
def test_later_tokens_change_nothing_earlier(name, core):
    torch.manual_seed(0)
    task = TASKS[name]
    model = Reader(make_core(core, SIZE), task)
    tokens, answers = (torch.from_numpy(part) for part in task.sample(Random(0), 5))
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % task.n_tokens
    (before, _), (after, _) = model(tokens), model(changed)
    assert before.shape == (*answers.shape, task.n_answers)
    torch.testing.assert_close(after[:, :7], before[:, :7], rtol=0, atol=0)
    assert (after[:, 7] != before[:, 7]).any()
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % task.n_tokens
    assert (model(changed)[0][:, -1] != before[:, -1]).all(), "the first step is still in sight at the last"


@pytest.mark.parametrize("core", CORES)
def test_answers_in_segments(core):
    """Reading in segments, the memory carried on, gives the answers of reading at once."""
    torch.manual_seed(0)
    task = TASKS["walk"]
    model = Reader(make_core(core, SIZE), task)
    tokens, _ = task.sample(Random(0), 17)
    at_once = answer(model, tokens, 13, "cpu")
    assert at_once.shape == (17, 13)
    assert np.array_equal(answer(model, tokens, 5, "cpu", batch=7), at_once)
    assert len(np.unique(at_once)) > 1


class Fixed(Programs):
    """Gives the same programs each time."""

    def sample(self, rng, batch):
        return super().sample(Random(0), batch)


@pytest.mark.parametrize("core", CORES)
def test_steps_lower_the_loss_of_a_fixed_batch(core):
    torch.manual_seed(0)
    task = Fixed(3, 11)
    trainer = Trainer(Reader(make_core(core, SIZE), task), task, Plan(7, 11, 50, 3e-3, 1, 1.0), 0, "cpu")
    losses = [trainer.step() for _ in range(12)]
    assert losses[1] < losses[0]
    assert losses[-1] < 0.7 * losses[0]


def test_only_answers_that_are_due_count():
    """The loss, as worked out answer by answer."""
    torch.manual_seed(0)
    task = Fixed(3, 11)
    model = Reader(make_core("feedback", SIZE), task)
    tokens, answers = task.sample(None, 7)
    log_prob = model(torch.from_numpy(tokens))[0].log_softmax(dim=-1)
    due = [-log_prob[b, t, answers[b, t]].item() for b, t in np.argwhere(answers != NO_ANSWER)]
    assert 0 < len(due) < answers.size
    loss = Trainer(model, task, Plan(7, 11, 50, 3e-3, 1, 1.0), 0, "cpu").step()
    assert loss == pytest.approx(np.mean(due), rel=1e-5)


@pytest.mark.parametrize("core", CORES)
def test_paper_size_steps(core):
    """Of the size that the authors publish; two programs at a time, of which two segments are read."""
    size = SIZES["paper"]
    task = make_task("programs", size, 5)
    assert (task.variables, task.statements, task.whole) == (5, 100, False)
    assert (size.D, size.L, size.H, size.d_feedforward, size.window) == (256, 4, 4, 1024, 100)
    assert size.plan == Plan(512, 64, 50_000, 1e-4, 1000, 0.1)
    trainer = Trainer(Reader(make_core(core, size), task), task, replace(size.plan, batch=2), 0, "cpu")
    before = [parameter.clone() for parameter in trainer.reader.parameters()]
    assert np.isfinite([trainer.step(), trainer.step()]).all()
    assert len(trainer.parts) >= 4, "most of a program of 100 statements is still to be read"
    assert trainer.state is not None
    assert any((a != b).any() for a, b in zip(before, trainer.reader.parameters(), strict=True))


def test_learning_rate():
    assert [factor(step, 4, 12) for step in (0, 1, 3, 4, 8, 12)] == pytest.approx([0.25, 0.5, 1, 1, 0.5, 0])


def test_score():
    due = np.array([[NO_ANSWER, 3, 1, NO_ANSWER], [2, NO_ANSWER, 5, 4], [NO_ANSWER] * 4])
    given = np.array([[3, 3, 0, 0], [2, 2, 5, 4], [1, 2, 3, 4]])
    found = score(due, given)
    assert found.asked.tolist() == [1, 1, 2, 1]
    assert found.right.tolist() == [1, 1, 1, 1]
    assert (found.sequences, found.last_right) == (2, 1)
    assert found.accuracy == 0.8
    assert supervised.summary(found)["accuracy"]["value"] == 0.8


def test_report_and_no_run_twice(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.json"
    command = [
        "--size",
        "tiny",
        "--task",
        "walk",
        "--steps",
        "3",
        "--batch",
        "5",
        "--sequences",
        "19",
        "--json",
        str(file),
    ]
    supervised.main(command)
    feedback, transformer = json.loads(file.read_text())["rows"]
    assert (feedback["core"], transformer["core"]) == ("feedback", "transformer")
    assert feedback["curve"]["steps"] == [1, 2, 3]
    assert sum(feedback["asked_by_step"]) == 19 * 8
    assert feedback["accuracy"]["value"] == sum(feedback["right_by_step"]) / (19 * 8)
    assert feedback["accuracy"]["low"] < feedback["accuracy"]["value"] < feedback["accuracy"]["high"]
    assert feedback["baselines"].keys() == {"most frequent answer", "without walls"}
    assert feedback["conditions"].keys() >= {"machine", "versions", "threads", "seeds", "commit"}
    monkeypatch.setattr(supervised, "train", lambda task, size, core, seed, *_: {"trained": seed})
    monkeypatch.setattr(supervised.Path, "write_text", lambda *_: pytest.fail("nothing new to write"))
    supervised.main(command)
    assert capsys.readouterr().out.count("is there already") == 2


def test_the_same_seed_gives_the_same_run():
    size = replace(SIZE, plan=replace(SIZE.plan, steps=5, batch=3))
    runs = [supervised.train(TASKS["programs"], size, "feedback", seed, 23, "cpu") for seed in (0, 0, 1)]
    for row in runs:
        row.pop("seconds")
    assert runs[0] == runs[1]
    assert runs[0]["curve"]["loss"] != runs[2]["curve"]["loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variables", "6"], "variables must be from 1 to 5, got 6"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--learning-rate", "0"], "--learning-rate must be more than 0, got 0"),
        (["--seed", "1000000"], "--seed must be from 0 to 999999"),
        (["--json", "nowhere/x.json"], "nowhere is no folder"),
    ],
)
def test_options_that_cannot_be(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        supervised.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ['{"benchmark": "scan", "rows": []}', "[]"])
def test_other_reports_are_left_alone(content, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match="no report of this script"):
        supervised.finished(file)
    assert file.read_text() == content


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_feedback_core_learns_a_walk_that_the_transformer_does_not(seed):
    task = make_task("walk", SIZES["tiny"], 3)
    accuracy = {
        core: supervised.train(task, SIZES["tiny"], core, seed, 1000, "cpu")["accuracy"]["value"]
        for core in ("feedback", "transformer")
    }
    assert accuracy["feedback"] > 0.8
    assert accuracy["transformer"] < 0.75


def test_the_table_of_reports(tmp_path):
    def row(core, seed, value):
        task = {"side": 4, "steps": 24}
        return {
            "name": "walk", "task": task, "steps": 1000, "learning_rate": 0.003, "core": core, "seed": seed,
            "accuracy": {"value": value}, "baselines": {"most frequent answer": 0.25, "without walls": 0.75},
        }  # fmt: skip

    rows = [row("transformer", 0, 0.5), row("feedback", 2, 0.75), row("feedback", 0, 1.0), row("transformer", 2, 0.625)]
    (tmp_path / "supervised_walk.json").write_text(json.dumps({"benchmark": "supervised", "rows": rows}))
    _, _, line = supervised.table(tmp_path).splitlines()
    link = "[supervised_walk.json](benchmarks/results/supervised_walk.json)"
    expected = "walk of 24 steps on 4 x 4 cells | 1,000 | 0.003 | 0, 2 | 0.25 | 0.75 | 1.000, 0.750 | 0.500, 0.625"
    assert line == f"| {expected} | {link} |"
