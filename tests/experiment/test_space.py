"""What a study searches: its file, the default, and what cannot be used."""

import itertools
from dataclasses import replace

import pytest
import yaml

from experiment.parsing import load_settings
from experiment.rules import check
from experiment.settings import CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError
from experiment.space import (
    check_space,
    default_space,
    from_optuna,
    own_values,
    read_space,
    to_optuna,
    with_values,
)
from tests.test_links import ROOT

TINY = Settings(
    env=EnvSettings(n_envs=4),
    core=CoreSettings(d_model=8, n_heads=2, window=6),
    ppo=PPOSettings(timesteps=512, n_steps=24, seq_len=12, batch_size=24),
    run=RunSettings(),
)


def said(tmp_path, text):
    file = tmp_path / "space.yaml"
    file.write_text(text)
    return file


def test_a_file_is_read_as_settings_are(tmp_path):
    text = """
ppo.learning_rate: {low: 1e-5, high: 1e-3, log: true}
ppo.n_steps: {low: 12, high: 60.0, step: 12}
ppo.gamma: {low: 0, high: 1, log: false}
core.n_layers: [1, 2, 4]
ppo.net_arch: [[], [17]]
ppo.target_kl: [null, 0.1]
core.name: [feedback, gru]
"""
    assert read_space(said(tmp_path, text)) == {
        "ppo.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True},
        "ppo.n_steps": {"low": 12, "high": 60, "step": 12},
        "ppo.gamma": {"low": 0.0, "high": 1.0},
        "core.n_layers": [1, 2, 4],
        "ppo.net_arch": [[], [17]],
        "ppo.target_kl": [None, 0.1],
        "core.name": ["feedback", "gru"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected"),
        ("{}", "expected at least one setting, such as ppo.learning_rate"),
        ("core.layers: [1, 2]", "unknown setting core.layers; the closest: core.n_layers"),
        ("ppo: {gamma: [0.9, 0.99]}", "setting ppo; a space has settings by their whole names, such as ppo.timesteps"),
        ("3: [1, 2]", "unknown setting 3"),
        ("run.seed: [1, 2]", "run.seed must be the same in all trials"),
        ("ppo.timesteps: [100, 200]", "ppo.timesteps must be the same in all trials"),
        ("env.id: [a, b]", "env.id must be the same in all trials"),
        ("core.n_layers: 3", "core.n_layers must be a list of values, or {low: ..., high: ...}"),
        ("core.n_layers: [3]", "core.n_layers must have two values or more, none of them twice, got [3]"),
        ("core.n_layers: [3, 3.0, 2]", "core.n_layers must have two values or more, none of them twice"),
        ("core.n_layers: [1, two]", "core.n_layers must be a whole number, got two"),
        ("core.name: [gru, tree]", "core.name must be one of 'feedback'"),
        ("core.name: {low: 1, high: 2}", "core.name must be a list of values, since it is no number"),
        ("env.previous_action: {low: 0, high: 1}", "env.previous_action must be a list of values"),
        ("ppo.gamma: {low: 0.9}", "ppo.gamma must be a list of values, or {low: ..., high: ...}"),
        ("ppo.gamma: {low: 0.9, high: 1, lgo: true}", "ppo.gamma must be a list of values, or {low"),
        ("ppo.gamma: {low: 0.9, high: much}", "ppo.gamma, high, must be a number, got much"),
        ("ppo.n_steps: {low: 1.5, high: 3}", "ppo.n_steps, low, must be a whole number, got 1.5"),
        ("ppo.gamma: {low: 0.9, high: 0.9}", "ppo.gamma, low, must be less than high = 0.9, got 0.9"),
        ("ppo.ent_coef: {low: 0, high: 1, log: true}", "ppo.ent_coef, low, must be more than 0 where log is true"),
        ("ppo.ent_coef: {low: 0, high: 1, log: 3}", "ppo.ent_coef, log, must be true or false, got 3"),
        ("ppo.ent_coef: {low: 0, high: 1, step: 2}", "ppo.ent_coef, step, must be without log, and more than 0 up to"),
        ("ppo.ent_coef: {low: 1, high: 2, step: 1, log: true}", "ppo.ent_coef, step, must be without log"),
        ("ppo.gamma: [0.9, 0.99]\nppo.gamma: [0.8, 0.9]", "ppo.gamma is given twice"),
    ],
)
def test_what_is_no_space_is_refused_by_its_name(tmp_path, text, message):
    file = said(tmp_path, text)
    with pytest.raises(SettingsError) as error:
        read_space(file)
    assert str(error.value).startswith(f"{file}: ")
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"--space .*none\.yaml: no such file"):
        read_space(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"ppo.gamma": {"low": 0.9, "high": 1.5}}, "ppo.gamma must be between 0 and 1, got 1.5"),
        ({"core.window": [0, 5]}, "core.window must be at least 1, got 0"),
        ({"ppo.net_arch": [[], [5, 0]]}, "ppo.net_arch must hold widths of at least 1, got [5, 0]"),
        ({"ppo.learning_rate": [1e-3, 1e9]}, "ppo.learning_rate must be at most 1,000"),
        ({"ppo.seq_len": [7, 11]}, "none of 200 configurations drawn from the space can be trained; the last: ppo"),
    ],
)
def test_values_that_cannot_be_used_are_refused(space, message):
    with pytest.raises(SettingsError) as error:
        check_space(space, TINY)
    assert message in str(error.value)


def test_how_much_cannot_be_trained_is_said():
    assert check_space({"ppo.seq_len": [6, 12]}, TINY) == ""
    said = check_space({"ppo.seq_len": [7, 12]}, TINY)
    assert "% of the configurations in the space cannot be trained, such as: ppo.n_steps must be a multiple of" in said


CONFIGS = [pytest.param(path, marks=pytest.mark.slow) for path in sorted((ROOT / "configs").glob("*.yaml"))]


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=lambda path: path.stem if path else "tiny")
def test_all_of_the_default_space_can_be_trained_and_the_configuration_is_in_it(path):
    settings = load_settings(path) if path else TINY
    space = default_space(settings, novelty=True)
    assert {"ppo.learning_rate", "ppo.n_steps", "ppo.batch_size", "ppo.gamma", "env.novelty"} <= space.keys()
    assert ("core.window" in space) == ("ppo.seq_len" in space) == (settings.core.name != "none")
    assert check_space(space, settings) == ""
    assert with_values(settings, own_values(space, settings)) == settings
    sizes = ("ppo.n_steps", "ppo.seq_len", "ppo.batch_size", "core.d_model")
    lists = [[(name, value) for value in space[name]] for name in sizes if name in space]
    for values in itertools.product(*lists):
        check(with_values(settings, dict(values)))


def test_the_default_space_is_of_what_the_core_takes_and_the_task_allows():
    core = replace(TINY.core, name="gru")
    space = default_space(replace(TINY, core=core), novelty=False)
    assert {"core.d_model", "core.n_layers"} <= space.keys()
    assert not {"core.window", "env.novelty"} & space.keys()
    follows = replace(TINY, run=replace(TINY.run, start_from="runs/mine"))  # whose sizes it has
    assert not any(name.startswith("core.") for name in default_space(follows, novelty=False))


@pytest.mark.parametrize(
    ("space", "own"),
    [
        ({"ppo.seq_len": [6, 12]}, {"ppo.seq_len": 12}),
        ({"ppo.seq_len": [6, 24]}, None),
        ({"ppo.gamma": {"low": 0.9, "high": 1.0}}, {"ppo.gamma": 0.99}),
        ({"ppo.gamma": {"low": 0.995, "high": 1.0}}, None),
        ({"ppo.n_steps": {"low": 12, "high": 48, "step": 12}}, {"ppo.n_steps": 24}),
        ({"ppo.n_steps": {"low": 10, "high": 48, "step": 12}}, None),
        ({"ppo.target_kl": {"low": 0.1, "high": 1.0}}, None),
    ],
)
def test_the_configuration_is_in_the_space_or_not(space, own):
    assert own_values(space, TINY) == own


def test_values_go_through_optuna_and_back():
    space = {"ppo.net_arch": [[], [17, 5]], "ppo.target_kl": [None, 0.1], "ppo.gamma": {"low": 0.5, "high": 1.0}}
    values = {"ppo.net_arch": [17, 5], "ppo.target_kl": None, "ppo.gamma": 0.75}
    assert to_optuna(values)["ppo.net_arch"] == "[17, 5]"
    assert from_optuna(space, to_optuna(values)) == values
    assert yaml.safe_load(yaml.safe_dump(space)) == space
