"""What a run does beside learning."""

import json
import os
import re

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import KVWriter, Logger

import experiment.evaluating
from experiment.callbacks import Checkpoint, EntropySchedule, MemoryFigures, ProgressBar
from experiment.evaluating import Evaluate
from experiment.settings import RunSettings, Settings
from experiment.timing import TimeShares
from fbrl import MemoryPPO
from fbrl.evaluation import Episodes
from fbrl.vec_env import FiniteVecEnv
from tests.tasks import FEEDBACK, ConstantTask, collect, make_model, parameters, vec

ROLLOUT = 36  # steps of make_model's three environments


@pytest.fixture
def scores(monkeypatch):
    """Lets the evaluations end with these success rates, one after the other."""

    def script(*shares, reported=True):
        shares = iter(shares)

        def play(agent, env, n_episodes, *, deterministic, stopped):
            assert deterministic
            good = np.arange(n_episodes) < round(next(shares) * n_episodes)
            success = good.astype(float) if reported else np.full(n_episodes, np.nan)
            return Episodes(success, 2.0 * good, np.full(n_episodes, 7))

        monkeypatch.setattr(experiment.evaluating, "play", play)

    return script


class Records(BaseCallback):
    """What is logged at the end of every rollout."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.rollouts.append(dict(self.logger.name_to_value))


def quiet(model):
    model.set_logger(Logger(folder=None, output_formats=[]))
    return model


def lines(folder):
    return [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]


def evaluate_with(folder, every=ROLLOUT, **kwargs):
    return Evaluate(vec(2), folder, every, episodes=4, seed=5, **kwargs)


def learn(model, rollouts, *callbacks):
    """``rollouts`` more of them."""
    return model.learn(rollouts * ROLLOUT, list(callbacks), reset_num_timesteps=False)


def test_evaluations_are_written_and_the_best_agent_kept(tmp_path, scores):
    scores(0.25, 0.75, 0.5, 0.75, 0.0)
    model = quiet(make_model())
    learn(model, 6, evaluate_with(tmp_path))
    assert lines(tmp_path) == [
        {"timesteps": step * ROLLOUT, "success": share, "return": 2 * share, "length": 7}
        for step, share in enumerate((0.25, 0.75, 0.5, 0.75, 0.0), start=1)
    ]
    # of two that are equally good the later
    assert MemoryPPO.load(tmp_path / "best.zip", device="cpu").num_timesteps == 4 * ROLLOUT


def test_the_best_agent_is_the_one_that_was_evaluated(tmp_path, scores):
    scores(0.5)
    model, weights = quiet(make_model()), []
    callback = evaluate_with(tmp_path)
    learn(model, 1, callback)
    weights = parameters(model)
    callback.evaluate()
    learn(model, 1)
    saved = parameters(MemoryPPO.load(tmp_path / "best.zip", device="cpu"))
    assert all(torch.equal(saved[name], weight) for name, weight in weights.items())


def test_evaluations_keep_to_their_distance(tmp_path, scores):
    scores(*[0.5] * 9)
    learn(quiet(make_model()), 8, evaluate_with(tmp_path, every=50))
    assert [line["timesteps"] for line in lines(tmp_path)] == [72, 144, 216]


def test_a_resumed_run_evaluates_where_it_would_have(tmp_path, scores):
    """Also where it was interrupted before its first evaluation."""
    scores(0.5)
    model = quiet(make_model())
    learn(model, 1)
    learn(model, 2, evaluate_with(tmp_path, every=2 * ROLLOUT))
    assert [line["timesteps"] for line in lines(tmp_path)] == [2 * ROLLOUT]


def test_a_line_that_a_killed_process_left_unfinished(tmp_path, scores):
    scores(0.5)
    whole = {"timesteps": 0, "success": 0.25, "return": 0.0, "length": 1.0}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(whole) + '\n{"timesteps": 4, "succ')
    learn(quiet(make_model()), 2, evaluate_with(tmp_path))
    assert [line["timesteps"] for line in lines(tmp_path)] == [0, ROLLOUT]


class Written(KVWriter):
    """Keeps what is written."""

    def __init__(self):
        self.evaluations = []

    def write(self, key_values, key_excluded, step=0):
        found = {key: value for key, value in key_values.items() if key.startswith("eval/")}
        self.evaluations += [(step, found)] * bool(found)


def test_evaluations_are_logged_with_their_own_steps(tmp_path, scores):
    scores(0.5, 0.75)
    written, model = Written(), make_model()
    model.set_logger(Logger(None, [written]))
    learn(model, 3, evaluate_with(tmp_path))
    assert written.evaluations == [
        (ROLLOUT, {"eval/success": 0.5, "eval/return": 1, "eval/length": 7}),
        (2 * ROLLOUT, {"eval/success": 0.75, "eval/return": 1.5, "eval/length": 7}),
    ]


def test_without_success_the_return_decides(tmp_path, scores):
    scores(0.5, 1.0, 0.5, reported=False)
    callback = evaluate_with(tmp_path, stop_at=0.9)  # which is a success rate, and no return
    learn(quiet(make_model()), 4, callback)
    assert [(line["success"], line["return"]) for line in lines(tmp_path)] == [(None, 1), (None, 2), (None, 1)]
    assert MemoryPPO.load(tmp_path / "best.zip", device="cpu").num_timesteps == 2 * ROLLOUT
    assert not callback.reached


def test_a_resumed_run_keeps_its_evaluations_up_to_the_checkpoint(tmp_path, scores):
    scores(0.75, 0.25, 1.0)
    model = quiet(make_model())
    learn(model, 3, evaluate_with(tmp_path))
    model.save(tmp_path / "last.zip")  # at 3 rollouts, evaluated after 1 and 2
    learn(model, 1, evaluate_with(tmp_path))
    assert [line["timesteps"] for line in lines(tmp_path)] == [36, 72, 108]

    scores(0.5, 0.75)
    resumed = quiet(MemoryPPO.load(tmp_path / "last.zip", env=vec(), device="cpu"))
    resumed.num_timesteps = 2 * ROLLOUT
    callback = evaluate_with(tmp_path)
    learn(resumed, 3, callback)
    assert [(line["timesteps"], line["success"]) for line in lines(tmp_path)] == [
        (36, 0.75),
        (72, 0.25),
        (108, 0.5),
        (144, 0.75),
    ]
    assert callback.best == 1.0  # the agent of step 108, which other episodes would have led to; its file is there
    assert MemoryPPO.load(tmp_path / "best.zip", device="cpu").num_timesteps == 108


def test_a_run_that_goes_on_exactly_writes_its_best_agent_again(tmp_path, scores):
    scores(0.5, 0.75)
    learn(quiet(make_model()), 3, evaluate_with(tmp_path))
    (tmp_path / "evaluations.jsonl").unlink()  # as if the checkpoint were of the start
    before = (tmp_path / "best.zip").stat().st_ino
    scores(0.5, 0.75)
    learn(quiet(make_model()), 3, evaluate_with(tmp_path))
    assert (tmp_path / "best.zip").stat().st_ino != before
    assert [line["timesteps"] for line in lines(tmp_path)] == [36, 72]


@pytest.mark.parametrize("name", ["os.fsync", "os.replace"])
@pytest.mark.parametrize("file", ["best.zip", "evaluations.jsonl"])
def test_a_kill_while_an_evaluation_is_written_loses_no_best_agent(tmp_path, monkeypatch, scores, name, file):
    """Between the two files as well: the better agent stays, whatever the line that is missing would have said."""
    scores(0.25, 0.75, 0.5)
    callback = evaluate_with(tmp_path)
    learn(quiet(make_model()), 2, callback)
    original = getattr(os, name.removeprefix("os."))

    def die_at(*arguments):
        if (tmp_path / f"{file}.tmp").exists():
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(name, die_at)
        with pytest.raises(KeyboardInterrupt):
            callback.evaluate()
    best = MemoryPPO.load(tmp_path / "best.zip", device="cpu").num_timesteps
    assert best == (ROLLOUT if file == "best.zip" else 2 * ROLLOUT)
    again = evaluate_with(tmp_path)
    model = quiet(make_model())
    model.num_timesteps = 2 * ROLLOUT
    learn(model, 1, again)  # evaluated at once, with .5
    assert [line["success"] for line in lines(tmp_path)] == [0.25, 0.5]
    assert again.best == (0.5 if file == "best.zip" else 0.75)
    best = MemoryPPO.load(tmp_path / "best.zip", device="cpu")
    assert best.num_timesteps == 2 * ROLLOUT


def test_the_best_agent_of_an_earlier_version(tmp_path, scores):
    """Its file does not say how good it was: the lines do, those after the checkpoint too."""
    for steps, success in ((36, 0.5), (720, 0.75)):
        with (tmp_path / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps({"timesteps": steps, "success": success, "return": 0.0, "length": 1.0}) + "\n")
    make_model().save(tmp_path / "best.zip")
    scores(0.5, 0.5)
    model, callback = quiet(make_model()), evaluate_with(tmp_path)
    model.num_timesteps = 36
    learn(model, 2, callback)
    assert (callback.best, MemoryPPO.load(tmp_path / "best.zip").num_timesteps) == (0.75, 0)
    for broken in (b"", b"half a zip"):
        (tmp_path / "best.zip").write_bytes(broken)
        learn(model, 0, callback)
        assert callback.best == float("-inf"), "any agent is better than none"


def test_training_stops_at_a_success_rate(tmp_path, scores):
    scores(0.5, 0.75, 1.0)
    model = quiet(make_model())
    callback = evaluate_with(tmp_path, stop_at=0.75)
    learn(model, 9, callback)
    assert callback.reached
    assert model.num_timesteps == 2 * ROLLOUT + 3  # no callback can stop before a step of the three environments
    again = evaluate_with(tmp_path, stop_at=0.75)
    learn(model, 9, again)  # resumed after it was reached
    assert again.reached
    assert model.num_timesteps == 2 * ROLLOUT + 6


def test_every_evaluation_starts_from_the_same_seed(tmp_path):
    model = quiet(make_model())
    callback = evaluate_with(tmp_path)
    learn(model, 0, callback)
    first, second = callback.evaluate(), callback.evaluate()
    assert first == second


def test_checkpoints_keep_to_their_distance(tmp_path):
    callback = Checkpoint(tmp_path, Settings(run=RunSettings(checkpoint_every=50)))
    saved = []
    callback.save = lambda: saved.append(callback.model.num_timesteps)
    learn(quiet(make_model()), 7, callback)
    assert saved == [72, 144, 216]


def test_a_checkpoint_when_asked_to_stop(tmp_path):
    callback = Checkpoint(tmp_path, Settings())
    model = quiet(make_model())
    learn(model, 1, callback)
    assert list(tmp_path.iterdir()) == []
    weights = parameters(model)
    callback.stop_asked = True
    learn(model, 5, callback)
    assert (callback.stopped, callback.saved_at) == (True, ROLLOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.zip"]
    saved = MemoryPPO.load(tmp_path / "last.zip", device="cpu")
    assert saved.num_timesteps == ROLLOUT
    assert all(torch.equal(parameters(saved)[name], weight) for name, weight in weights.items())


def test_the_entropy_bonus_moves_linearly():
    records = Records()
    model = quiet(make_model())
    learn(model, 4, EntropySchedule(0.8, 0.4), records)
    assert [logged["train/ent_coef"] for logged in records.rollouts] == pytest.approx([0.8, 0.7, 0.6, 0.5])
    assert model.ent_coef == pytest.approx(0.5)


@pytest.mark.parametrize("core", FEEDBACK)
@pytest.mark.parametrize(
    ("length", "readable"),  # of the episodes; slots written in the current one after 7 of 12 steps
    [(100, 5), (7, 0), (5, 2), (4, 3)],
)
def test_figures_about_the_memory(core, length, readable):
    """Queries of zero read n slots and the null slot alike: n / (n + 1) of the attention, of mean age (n + 1) / 2."""
    model, records = quiet(make_model(core, vec(2, ConstantTask, length=length))), Records()
    with torch.no_grad():
        for layer in model.policy.core.layers:
            layer.w_q.weight.zero_()
        model.policy.core.mix.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
    collect(model, callback=CallbackList([MemoryFigures(), records]))
    logged = {name: value for name, value in records.rollouts[0].items() if name.startswith("memory/")}
    read, age = readable / (readable + 1), (readable + 1) / 2 if readable else 0.0
    assert logged == pytest.approx(
        {
            **{"memory/mix_0": 1 / 6, "memory/mix_1": 2 / 6, "memory/mix_2": 3 / 6},
            **{"memory/read_1": read, "memory/read_2": read, "memory/mean_age_1": age, "memory/mean_age_2": age},
        },
        abs=1e-6,
    )


def test_episodes_as_long_as_a_rollout_show_what_is_read():
    """The same step of every rollout would be the first of all episodes, which reads nothing."""
    model, records = quiet(make_model("fast", vec(2, ConstantTask, length=12))), Records()
    learn(model, 8, MemoryFigures(), records)
    read = [logged["memory/read_1"] for logged in records.rollouts]
    assert len(set(read)) > 4
    assert sum(share > 0 for share in read) >= 7


def test_what_is_read_most_decides_the_mean_age():
    """A query that looks for one distance finds it."""
    model, records = quiet(make_model("plain", vec(2, ConstantTask, length=100))), Records()
    core = model.policy.core
    with torch.no_grad():
        core.w_k.weight.zero_()  # scores come from the distances alone
        core.distance.zero_()
        for layer in core.layers:
            layer.ln_1.weight.zero_()
            layer.ln_1.bias.fill_(1.0)
            layer.w_q.weight.copy_(torch.eye(8))
        core.distance[2] = 50.0  # three steps back
    collect(model, callback=CallbackList([MemoryFigures(), records]))
    assert records.rollouts[0]["memory/mean_age_1"] == pytest.approx(3)
    assert records.rollouts[0]["memory/read_2"] == pytest.approx(1)


def test_no_figures_about_a_policy_without_memory():
    records = Records()
    quiet(PPO("MlpPolicy", vec(), n_steps=12, batch_size=12, n_epochs=1, device="cpu")).learn(
        36, [MemoryFigures(), records]
    )
    assert len(records.rollouts) == 1
    assert not any(name.startswith("memory/") for name in records.rollouts[0])


def test_progress_bar(capsys):
    model = quiet(make_model())
    bar = ProgressBar()
    learn(model, 2, bar)
    assert (bar.bar.n, bar.bar.total) == (72, 72)
    assert bar.bar.postfix.startswith("return ")
    model.ep_success_buffer.extend([1, 1, 0, 1])
    learn(model, 1, bar)  # goes on where it was
    assert (bar.bar.n, bar.bar.total, bar.bar.initial) == (108, 108, 72)
    assert bar.bar.postfix == "success 0.75"
    err = capsys.readouterr().err
    assert "100%" in err
    assert "success 0.75" in err
    assert err.endswith("\n")


def test_progress_bar_says_where_the_time_goes():
    bar = ProgressBar(shown=False)
    learn(quiet(make_model(env=FiniteVecEnv([ConstantTask] * 3))), 2, TimeShares([bar]))
    assert re.fullmatch(r"environment \d+%, acting \d+%, update \d+%", bar.bar.postfix)


def test_no_progress_bar(capsys):
    bar = ProgressBar(shown=False)
    bar.close()  # also before the training starts
    learn(quiet(make_model()), 1, bar)
    assert capsys.readouterr().err == ""
