"""Agents are rebuilt from config.yaml and weights alone: what their files would run is not run."""

import base64
import contextlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from experiment import unpickled
from experiment.agents import find_agent, make_model
from experiment.environments import evaluation_envs, make_envs
from experiment.saved import _known, load, read_saved
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, Settings, SettingsError
from fbrl import MemoryPPO
from fbrl.evaluation import AgentError, load_agent
from tests.tasks import UNPICKLES

ROOT = Path(__file__).parents[2]
AGENTS = sorted(folder.parent for folder in (ROOT / "agents").glob("*/config.yaml"))
SIZES = {"d_model": 8, "n_layers": 1, "n_heads": 2, "window": 4}


class OwnEncoder(FlattenExtractor):
    """A user's class."""


class Runs:
    """Unpickling it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save(folder, core="feedback", **policy_kwargs):
    folder.mkdir(parents=True)
    settings = Settings(EnvSettings(kwargs={"corridor": 2}), CoreSettings(name=core, **SIZES), PPOSettings(seq_len=4))
    settings.save(folder / "config.yaml")
    env = make_envs(settings.env, 0, 2)
    if policy_kwargs:
        kwargs = {"core_kwargs": SIZES} | policy_kwargs
        model = MemoryPPO("MlpPolicy", env, device="cpu", policy_kwargs=kwargs)
    else:
        settings.ppo.n_steps = settings.ppo.batch_size = 8
        model = make_model(settings, env)
    model.num_timesteps = 77
    model.save(folder / "best.zip")
    return folder


def rewrite(path, change):
    """Replaces entries of a zip: ``change`` takes a dict of them and alters it."""
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)


def assert_alike(agent, other, settings, steps=20):
    env = evaluation_envs(settings.env, 0, 3)
    obs, starts, state, theirs = env.reset(), np.ones(3, bool), None, None
    for _ in range(steps):
        if settings.core.name == "none":
            state = theirs = None
        actions, state = agent.predict(obs, state, starts, deterministic=True)
        others, theirs = other.predict(obs, theirs, starts, deterministic=True)
        np.testing.assert_array_equal(actions, others)
        obs, _, starts, _ = env.step(actions)
    env.close()


@UNPICKLES
@pytest.mark.parametrize("folder", AGENTS, ids=lambda folder: folder.name)
def test_published_agents_act_as_when_unpickled(folder, monkeypatch):
    checkpoint, settings = find_agent(str(folder))
    trusted = load_agent(checkpoint, "cpu")
    with monkeypatch.context() as patch:
        for name in ("load", "loads"):
            patch.setattr(pickle, name, lambda *_, **__: pytest.fail("unpickled"))
        agent = load(checkpoint, settings, "cpu")
    assert agent.num_timesteps == trusted.num_timesteps
    assert_alike(agent, trusted, settings)


@pytest.mark.parametrize("core", ["lstm", "gtrxl", "memoryless", "none"])
def test_every_kind_of_agent(core, tmp_path):
    checkpoint, settings = find_agent(str(save(tmp_path / "agent", core)))
    agent = load(checkpoint, settings, "cpu")
    assert type(agent) is (PPO if core == "none" else MemoryPPO)
    assert agent.num_timesteps == 77
    assert_alike(agent, load(checkpoint, settings, "cpu", trust=True), settings)


@pytest.mark.parametrize("entry", ["policy_class", "policy_kwargs", "learning_rate", "ep_info_buffer"])
def test_code_in_the_arguments_is_not_run(entry, tmp_path):
    folder, left = save(tmp_path / "agent"), tmp_path / "left"

    def change(entries):
        data = json.loads(entries["data"])
        data[entry] = {":type:": "?", ":serialized:": base64.b64encode(pickle.dumps(Runs(left))).decode()}
        entries["data"] = json.dumps(data).encode()

    rewrite(folder / "best.zip", change)
    checkpoint, settings = find_agent(str(folder))
    if entry.startswith("policy"):
        with pytest.raises(AgentError, match=r"best\.zip"):
            load(checkpoint, settings, "cpu")
    else:
        assert load(checkpoint, settings, "cpu").num_timesteps == 77
    assert not left.exists()
    with contextlib.suppress(AgentError):
        load(checkpoint, settings, "cpu", trust=True)
    assert left.exists(), "the file is as bad as it should be"


@pytest.mark.parametrize("entry", ["policy.pth", "pytorch_variables.pth", "policy.optimizer.pth"])
def test_code_in_the_weights_is_not_run(entry, tmp_path):
    folder, left = save(tmp_path / "agent"), tmp_path / "left"
    torch.save(Runs(left), tmp_path / "bad.pth")
    rewrite(folder / "best.zip", lambda entries: entries.update({entry: (tmp_path / "bad.pth").read_bytes()}))
    checkpoint, settings = find_agent(str(folder))
    if entry == "policy.pth":
        with pytest.raises(AgentError, match=r"holds no agent that can be loaded"):
            load(checkpoint, settings, "cpu")
    else:
        load(checkpoint, settings, "cpu")
    assert not left.exists()


def test_own_classes_are_named_and_taken_on_trust(tmp_path):
    checkpoint, settings = find_agent(str(save(tmp_path / "agent", features_extractor_class=OwnEncoder)))
    with pytest.raises(AgentError, match=r"agent/best.zip: made with .*OwnEncoder, which is rebuilt by .* --trust"):
        load(checkpoint, settings, "cpu")
    assert isinstance(load(checkpoint, settings, "cpu", trust=True).policy.features_extractor, OwnEncoder)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": [16]},
        {"activation_fn": torch.nn.SiLU, "net_arch": {"pi": [8], "vf": [5]}},
        {"share_features_extractor": False},
        {"features_extractor_class": FlattenExtractor, "optimizer_class": torch.optim.RMSprop},
    ],
)
def test_networks_of_known_classes_are_rebuilt(policy_kwargs, tmp_path):
    checkpoint, settings = find_agent(str(save(tmp_path / "agent", **policy_kwargs)))
    agent = load(checkpoint, settings, "cpu")
    for name, value in policy_kwargs.items():
        assert getattr(agent.policy, name) == value
    assert_alike(agent, load(checkpoint, settings, "cpu", trust=True), settings)


def test_weights_that_do_not_fit(tmp_path):
    folder = save(tmp_path / "agent")
    checkpoint, settings = find_agent(str(folder))
    settings.env.id, settings.env.kwargs = "CartPole-v1", {}
    with pytest.raises(SettingsError, match=r"do not fit what config\.yaml describes: size mismatch for"):
        load(checkpoint, settings, "cpu")


def test_a_zip_without_config_yaml(tmp_path):
    shutil.copy(save(tmp_path / "agent") / "best.zip", tmp_path / "bare.zip")
    with pytest.raises(SettingsError, match=r"config\.yaml: no such file, and without the settings an agent cannot be"):
        find_agent(str(tmp_path / "bare.zip"))


def test_environments_that_there_are_are_taken(tmp_path, monkeypatch):
    checkpoint, settings = find_agent(str(save(tmp_path / "agent")))
    env = make_envs(settings.env, 0, 3)
    monkeypatch.setattr("experiment.saved.evaluation_envs", lambda *_, **__: pytest.fail("made environments"))
    assert load(checkpoint, settings, "cpu", env=env).num_timesteps == 77


def test_what_is_no_agent(tmp_path):
    (tmp_path / "text.zip").write_text("not an agent")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    for name in ("text.zip", "empty.zip"):
        with pytest.raises(AgentError, match=f"{name}: holds no agent that can be loaded"):
            read_saved(tmp_path / name)


def test_reading_a_pickle_imports_and_calls_nothing(tmp_path):
    value = {"runs": Runs(tmp_path / "left"), "class": OwnEncoder, "numbers": [2, 3.5], "array": np.arange(3)}
    read = unpickled.read(pickle.dumps(value))
    assert not (tmp_path / "left").exists()
    assert read["numbers"] == [2, 3.5]
    assert read["class"].name.endswith("OwnEncoder")
    assert type(read["runs"]).describe(read["runs"]) == f"posix.mkdir({tmp_path / 'left'})"
    assert unpickled.read(b"cmodule_that_is_not_there\nThing\n.").name == "module_that_is_not_there.Thing"


@pytest.mark.parametrize("name", ["os.system", "torch.load", "torch.nn.functional.relu", "fbrl.evaluation.load_agent"])
def test_what_is_no_network_is_not_taken(name):
    module, _, function = name.rpartition(".")
    named = unpickled.read(f"c{module}\n{function}\n.".encode())
    with pytest.raises(AgentError, match=name):
        _known({"activation_fn": named})


def test_a_class_in_the_file_is_named(tmp_path):
    """A class of a script, or of a notebook, is saved as code."""

    class Local(FlattenExtractor):
        pass

    with pytest.raises(AgentError, match="Local"):
        _known(unpickled.read(cloudpickle.dumps({"features_extractor_class": Local})))
