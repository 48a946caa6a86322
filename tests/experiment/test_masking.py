"""Action masks in an experiment: trained, stopped, resumed, evaluated, shown and exported, or refused in one line."""

import json
import random
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib.common.wrappers import ActionMasker

from experiment.agents import check_agent, find_agent, make_model
from experiment.callbacks import Checkpoint
from experiment.checkpoints import load_checkpoint
from experiment.environments import make_env, make_envs
from experiment.masking import check_masking
from experiment.saved import load
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.training import final_line, train
from fbrl.evaluation import load_agent
from fbrl.export import OneStep
from fbrl.insight.recording import record
from fbrl.masks import MaskableMemoryPPO
from tests.tasks import RandomTask, StopAt, parameters
from tests.test_masks import SPACES, DeadEnd, Doors, MaskedTask

ROOT = Path(__file__).parents[2]


class StrictDoors(Doors):
    """Refuses what the mask does not allow, and draws itself."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012

    def __init__(self, render_mode=None, **kwargs):
        super().__init__(**kwargs)
        self.render_mode = render_mode

    def step(self, action):
        assert self.action_masks()[action], f"{action} is not allowed"
        return super().step(action)

    def render(self):
        return np.full((24, 36, 3), 20 * self.pair, np.uint8)


class Named(RandomTask):
    """Says what is allowed by another name than ``action_masks``."""

    def allowed(self):
        return np.array([True, False, True])

    def step(self, action):
        assert action != 1, "1 is not allowed"
        return super().step(action)


def allowed(env):
    return env.unwrapped.allowed()


class Allowed(ActionMasker):
    def __init__(self, env):
        super().__init__(env, allowed)


@pytest.fixture(autouse=True)
def tasks():
    added = {"tests/StrictDoors-v0": StrictDoors, "tests/Named-v0": Named, "tests/Open-v0": RandomTask}
    for name, task in added.items():
        gym.register(name, entry_point=task)
    for name, space in SPACES.items():
        gym.register(f"tests/{name}-v0", entry_point=MaskedTask, kwargs={"action_space": space})
    gym.register("tests/box-v0", entry_point=MaskedTask, kwargs={"action_space": spaces.Box(-1, 1, (2,))})
    yield
    for name in [*added, *(f"tests/{name}-v0" for name in [*SPACES, "box"])]:
        gym.registry.pop(name)


def tiny(task="tests/StrictDoors-v0", core="feedback", folder="runs", **env):
    return Settings(
        EnvSettings(task, n_envs=2, **{"action_masks": True} | env),
        CoreSettings(core, d_model=8, n_layers=1, n_heads=2, window=4),
        PPOSettings(128, 1e-3, n_steps=16, seq_len=8, batch_size=16, n_epochs=1),
        RunSettings("one", str(folder), device="cpu", eval_every=64, eval_episodes=3, progress_bar=False),
    )


@pytest.mark.parametrize("core", ["feedback", "gru"])
def test_trained_and_loaded(core, tmp_path):
    """``StrictDoors`` ends a training, an evaluation or a film that does what is not allowed."""
    settings = tiny(core=core, folder=tmp_path)
    folder = train(settings)
    assert "success" in final_line(settings, folder)
    checkpoint, said = find_agent(str(folder))
    assert said.env.action_masks
    env = make_envs(said.env, 7, 2)
    for agent in (load(checkpoint, said, "cpu"), load_agent(checkpoint, "cpu")):
        assert type(agent) is MaskableMemoryPPO
        check_agent(checkpoint, agent, said)
        masks = np.stack(env.env_method("action_masks")) if env.reset() is not None else None
        actions, _ = agent.predict(np.array([1, 0]), action_masks=masks)
        assert masks[np.arange(2), actions].all()


@pytest.mark.parametrize("name", SPACES)
def test_every_space_is_trained_evaluated_and_recorded(name, tmp_path):
    """``MaskedTask`` refuses what is not allowed; a recorded step has no chance for it."""
    settings = tiny(f"tests/{name}-v0", folder=tmp_path)
    folder = train(settings)
    agent = load(folder / "last.zip", settings, "cpu")
    env = make_env(settings.env, seed=3)
    steps = record(agent, env).steps
    chances = np.array([np.concatenate([part.ravel() for part in step.seen.chances]) for step in steps])
    assert chances.shape[1] == {"discrete": 5, "multi_discrete": 5, "multi_binary": 6}[name]
    assert (chances < 1e-6).any()
    for step, row in zip(steps, chances, strict=True):
        parts = np.split(row, np.cumsum(agent.policy.action_dist.action_dims)[:-1]) if name != "discrete" else [row]
        assert all(part[one] > 1e-6 for part, one in zip(parts, np.atleast_1d(step.action), strict=True))
        assert np.isfinite(step.seen.effect).all()


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    settings = tiny()

    def start():
        return make_model(settings, make_envs(settings.env, 0, 2))

    whole = start().learn(128)
    checkpoint = Checkpoint(tmp_path, settings)
    start().learn(128, [checkpoint, StopAt(checkpoint, 64)])
    random.seed(77)
    torch.manual_seed(77)
    resumed = load_checkpoint(tmp_path, settings, lambda: make_envs(settings.env, 99, 2))
    assert type(resumed) is MaskableMemoryPPO
    assert resumed.num_timesteps == 64
    resumed.learn(64, reset_num_timesteps=False)
    for one, other in zip(parameters(resumed), parameters(whole), strict=True):
        np.testing.assert_array_equal(one, other)


def test_masks_by_a_wrapper(tmp_path):
    """``Named`` ends a training that does what sb3-contrib's ActionMasker says is not allowed."""
    train(tiny("tests/Named-v0", folder=tmp_path, wrappers=[f"{__name__}.Allowed"]))
    with pytest.raises(SettingsError, match=r"tests/Named-v0 has no action_masks\(\): env.wrappers can put"):
        train(tiny("tests/Named-v0", folder=tmp_path / "without"))
    assert not (tmp_path / "without").exists()


def test_the_scripts_play_with_masks(tmp_path, monkeypatch, capsys):
    folder = train(tiny(folder=tmp_path))
    files = {"--json": "result.json", "--html": "page.html", "--video": "film.gif", "--stills": "stills"}
    arguments = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    for more, code in ((arguments, None), (["--diagnose", str(tmp_path / "why")], 2), (["--env.id=tests/Open-v0"], 2)):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["evaluate_agent.py", str(folder), "--episodes=5", "--device=cpu", *more])
        found = None
        try:
            runpy.run_path(str(ROOT / "evaluate_agent.py"), run_name="__main__")
        except SystemExit as end:
            found = end.code
        assert found == code
        err = capsys.readouterr().err
        assert err.count("\n") == (code is not None)
        assert ("false, and this agent takes masks" in err) == ("--diagnose" in more)
    assert json.loads((tmp_path / "result.json").read_text())["episodes"] == 5
    assert all((tmp_path / file).exists() for file in files.values())
    assert not (tmp_path / "why").exists()


def test_a_mask_that_allows_nothing_ends_a_training_in_one_line(tmp_path, monkeypatch, capsys):
    """What was learned is kept: the fault is met in the second rollout."""

    class Later(DeadEnd):
        def action_masks(self):
            return np.full(3, self.episodes < 3)

        def reset(self, **kwargs):
            self.episodes = getattr(self, "episodes", 0) + 1
            return super().reset(**kwargs)

    gym.register("tests/Later-v0", entry_point=Later)
    settings = tiny("tests/Later-v0", folder=tmp_path / "runs")
    settings.save(tmp_path / "later.yaml")
    monkeypatch.setattr(sys, "argv", ["train_agent.py", "--config", str(tmp_path / "later.yaml")])
    try:
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(ROOT / "train_agent.py"), run_name="__main__")
        assert load(tmp_path / "runs/one/last.zip", settings, "cpu").num_timesteps == 32
    finally:
        del gym.registry["tests/Later-v0"]
    err = capsys.readouterr().err
    assert (end.value.code, err.count("\n")) == (2, 1)
    assert "error: action_masks of environment 0 (tests/Later-v0), step 0 of its episode allow nothing; " in err
    assert f"{tmp_path}/runs/one" in err


def test_an_exported_step_gives_what_masks_are_put_on(tmp_path):
    settings = tiny("tests/multi_discrete-v0")
    env = make_envs(settings.env, 0, 2)
    agent = make_model(settings, env)
    obs, masks = env.reset(), np.array([[1, 0, 1, 0, 1], [0, 1, 1, 1, 0]], bool)
    step = OneStep(agent.policy)
    memory = {name: part[:2] for name, part in step.example()["memory"].items()}
    out = step({"observation": torch.tensor(obs)}, torch.ones(2, dtype=torch.bool), memory)
    logits = np.where(masks, out["logits"].detach().numpy(), -np.inf)
    expected, _ = agent.predict(obs, action_masks=masks, deterministic=True)
    np.testing.assert_array_equal(np.stack([logits[:, :3].argmax(1), logits[:, 3:].argmax(1)], axis=1), expected)
    binary = make_model(bits := tiny("tests/multi_binary-v0"), make_envs(bits.env, 0, 2))
    with pytest.raises(ValueError, match=r"an exported step has no masks for MultiBinary\(3\)"):
        OneStep(binary.policy)


def test_what_masks_do_not_go_with(tmp_path):
    settings = tiny()
    env = make_envs(settings.env, 0, 2)
    core, run = replace(settings.core, name="none"), replace(settings.run, control=True)
    for other, message in (
        (replace(settings, core=core), "env.action_masks must be false where core.name is none"),
        (replace(settings, run=run), "env.action_masks must be false where run.control is true"),
    ):
        with pytest.raises(SettingsError, match=message):
            make_model(other, env)
    with pytest.raises(SettingsError, match="must be false where several processes train, got 3 of them"):
        check_masking(settings, env, processes=3)
    with pytest.raises(SettingsError, match="can be masked, got Box"):
        make_model(box := tiny("tests/box-v0"), make_envs(box.env, 0, 2))


def test_without_the_extra(monkeypatch):
    settings = tiny()
    env = make_envs(settings.env, 0, 2)
    monkeypatch.setitem(sys.modules, "fbrl.masks", None)
    with pytest.raises(SettingsError, match=r"env.action_masks: true needs pip install fbrl\[masks\]"):
        make_model(settings, env)


@pytest.mark.parametrize("masks", [True, False])
def test_an_agent_that_is_not_what_its_settings_say(masks):
    settings = tiny(action_masks=masks)
    model = make_model(settings, make_envs(settings.env, 0, 2))
    settings.env.action_masks = not masks
    with pytest.raises(SettingsError, match=r"action masks, but env\.action_masks is"):
        check_agent(Path("best.zip"), model, settings)


def test_a_compiled_policy_is_refused():
    """What torch.compile wraps would act without masks."""
    settings = tiny()
    model = make_model(settings, make_envs(settings.env, 0, 2))
    model.policy.compile(backend="eager")
    with pytest.raises(ValueError, match="forward is compiled, hooked or overridden, and is not given action masks"):
        model.learn(32)
