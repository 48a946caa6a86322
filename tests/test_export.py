"""Exported steps beside ``predict``: the same actions and memory, without this library."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fbrl.cores.feedback_keys import FeedbackKeys
from fbrl.export import METADATA, OneStep, export_program, save_onnx, save_program
from fbrl.symbolic import CELL_HIGH
from tests.tasks import CORES, DICT, FEEDBACK, VECTOR, make_model, sharpen, vec

SPACES = {
    "discrete": spaces.Discrete(5),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(np.array([[-1.0, -0.2]], np.float32), np.array([[0.3, 2.0]], np.float32)),
}
MINIGRID = spaces.Dict(
    {
        "image": spaces.Box(np.zeros((3, 3, 3), np.uint8), np.broadcast_to(np.array(CELL_HIGH, np.uint8), (3, 3, 3))),
        "direction": spaces.Discrete(4),
        "mission": spaces.Box(0, 7, (4,), np.uint8),
    }
)


def zeros(about, n):
    return {name: np.zeros((n, *of["shape"]), of["dtype"]) for name, of in about["memory"].items()}


class Onnx:
    """An ONNX file, played with numpy and onnxruntime."""

    def __init__(self, path):
        onnxruntime = pytest.importorskip("onnxruntime")
        self.session = onnxruntime.InferenceSession(path)
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map[METADATA])

    def __call__(self, observations, starts, memory):
        outputs = self.session.run(None, observations | memory | {"episode_start": starts})
        return dict(zip(self.about["outputs"], outputs, strict=True))


class Eager:
    """The step as torch runs it."""

    def __init__(self, model):
        self.module = OneStep(model.policy)
        self.about = self.module.about()

    @torch.no_grad()
    def __call__(self, observations, starts, memory):
        parts = ({name: torch.tensor(part) for name, part in group.items()} for group in (observations, memory))
        observations, memory = parts
        outputs = self.module(observations=observations, episode_start=torch.tensor(starts), memory=memory)
        return {name: part.numpy() for name, part in outputs.items()}


class Program(Eager):
    """A .pt2 file, played with torch alone."""

    def __init__(self, path):
        files = {METADATA: ""}
        self.module = torch.export.load(path, extra_files=files).module()
        self.about = json.loads(files[METADATA])


def export(model, folder, kind, keys_values=False):
    if kind == "onnx":
        pytest.importorskip("onnxscript", reason="needs pip install fbrl[onnx]")
        save_onnx(model.policy, folder / "agent.onnx", keys_values)
        return Onnx(folder / "agent.onnx")
    save_program(model.policy, folder / "agent.pt2", keys_values)
    return Program(folder / "agent.pt2")


def assert_plays_as(model, step, env, steps):
    """Plays ``env`` with ``predict`` and the exported step beside it; both are shown the same."""
    obs, state, starts = env.reset(), None, np.ones(env.num_envs, dtype=bool)
    memory, ends = zeros(step.about, env.num_envs), 0
    for _ in range(steps):
        actions, state = model.predict(obs, state, starts, deterministic=True)
        named = obs if isinstance(obs, dict) else {"observation": obs}
        out = step(named, starts, memory)
        np.testing.assert_allclose(out["action"], actions, rtol=0, atol=1e-5)
        memory = {name: out[f"next_{name}"] for name in memory}
        obs, _, starts, _ = env.step(out["action"])
        ends += starts.sum()
    assert ends > 3 * env.num_envs
    return out, state, memory


# torch.export's program is what ONNX's is made of
EXPORTS = [("fast", "pt2"), ("lstm", "onnx"), ("keys_values", "onnx")]
EXPORTS += [pytest.param(core, "onnx", marks=pytest.mark.slow) for core in CORES if core != "lstm"]


@pytest.mark.parametrize(("core", "kind"), EXPORTS)
def test_a_thousand_steps_are_those_of_predict(core, kind, tmp_path):
    keys_values = core == "keys_values"
    env = vec(n_envs=5, observation_space=DICT, action_space=SPACES["discrete"], max_length=13)
    model = sharpen(make_model("fast" if keys_values else core, env, policy="MultiInputPolicy"))
    _, state, memory = assert_plays_as(model, export(model, tmp_path, kind, keys_values), env, steps=200)
    if not keys_values:
        for part, name in zip(state, memory, strict=False):
            np.testing.assert_allclose(memory[name], part, rtol=0, atol=1e-4)


SQUASHED = {"use_sde": True, "policy_kwargs": {"squash_output": True}}


@pytest.mark.parametrize(("name", "extra"), [*((name, {}) for name in SPACES), ("box", SQUASHED)])
def test_actions_of_every_space(name, extra):
    env = vec(n_envs=2, action_space=SPACES[name])
    model = sharpen(make_model("lstm", env, **extra), factor=30)
    out, *_ = assert_plays_as(model, Eager(model), env, steps=40)
    assert out["action"].dtype == SPACES[name].dtype


@pytest.mark.parametrize("name", SPACES)
def test_what_actions_are_drawn_from(name):
    model = sharpen(make_model("gru", vec(action_space=SPACES[name])), factor=30)
    step = OneStep(model.policy).eval()
    obs = torch.tensor(np.stack([VECTOR.sample() for _ in range(7)]))
    starts = torch.ones(7, dtype=torch.bool)
    with torch.no_grad():
        out = step({"observation": obs}, starts, {"memory.h": torch.zeros(7, 2, 8)})
        distribution, _ = model.policy.get_distribution(obs, model.policy.initial_state(7), starts)
    inner = distribution.distribution
    expected = {
        "discrete": lambda: {"logits": inner.logits},
        "multi_discrete": lambda: {"logits": torch.cat([part.logits for part in inner], dim=1)},
        "multi_binary": lambda: {"logits": inner.logits},
        "box": lambda: {"mean": inner.mean, "std": inner.stddev},
    }[name]()
    for key, value in expected.items():
        torch.testing.assert_close(out[key], value, rtol=0, atol=1e-6)


def test_the_critic_is_left_out():
    env = vec(n_envs=2)
    model = sharpen(make_model("fast", env, policy_kwargs={"share_features_extractor": False}))
    step = Eager(model)
    assert step.about["memory"]["memory.slots"]["shape"] == [5, 8]
    assert_plays_as(model, step, env, steps=60)


def test_minigrid_with_missions(tmp_path):
    env = vec(n_envs=2, observation_space=MINIGRID)
    model = sharpen(make_model("memoryless", env, policy="MultiInputPolicy"))
    step = export(model, tmp_path, "pt2")
    assert step.about["memory"] == {}
    assert_plays_as(model, step, env, steps=40)


def test_about_says_what_goes_in_and_out():
    about = OneStep(make_model("fast", vec(observation_space=DICT), policy="MultiInputPolicy").policy).about()
    assert about["core"] == "FastFeedbackTransformer"
    assert about["core_kwargs"]["window"] == 5
    assert about["observations"] == {
        "symbol": {"shape": [], "dtype": "int64"},
        "vector": {"shape": [3], "dtype": "float32"},
    }
    assert about["memory"]["memory.length"] == {"shape": [], "dtype": "int64"}
    assert list(about["outputs"]) == ["action", "logits", "next_memory.slots", "next_memory.length"]
    assert about["action_space"] == "Discrete(3)"


def test_the_model_stays_as_it_was():
    """Exporting moves nothing to another device and leaves the mode of the policy alone."""
    model = make_model("fast")
    model.policy.set_training_mode(True)
    export_program(model.policy)
    assert model.policy.training
    assert all(parameter.requires_grad for parameter in model.policy.core.parameters())


def test_keys_and_values_are_of_the_feedback_transformer():
    with pytest.raises(ValueError, match="keys_values needs a FeedbackTransformer core, got LSTM"):
        OneStep(make_model("lstm").policy, keys_values=True)


@pytest.mark.parametrize("core", FEEDBACK)
@pytest.mark.parametrize("steps", [4, 13])
def test_keys_in_the_place_of_memory_vectors_give_the_same(core, steps):
    """Over episode starts, below the window and beyond it."""
    torch.manual_seed(0)
    core = CORES[core][0](**CORES[core][1]).double()
    x, starts = torch.randn(3, steps, 8).double(), torch.rand(3, steps) < 0.2
    expected, memory = core(x, core.initial_state(3), starts)
    keys = FeedbackKeys(core)
    half = steps // 2
    first, state = keys(x[:, :half], keys.initial_state(3), starts[:, :half])
    second, state = keys(x[:, half:], state, starts[:, half:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(state.length, memory.length)
    readable = memory.readable
    for kept, made in zip(state[:2], core.keys_values(memory.slots), strict=True):
        torch.testing.assert_close(kept.transpose(1, 2)[readable], made[readable], rtol=0, atol=1e-9)


def test_a_step_of_a_subclass_is_exported_as_it_is():
    """``written`` is its own: the export may not put the library's in its place."""

    class Loud(CORES["fast"][0]):
        def written(self, outputs):
            return 2 * super().written(outputs)

    policy = make_model("fast").policy
    step = OneStep(policy)
    assert step.projects_once
    policy.core.__class__ = Loud
    loud = OneStep(policy)
    assert not loud.projects_once
    example = step.example()
    ours, theirs = step(**example), loud(**example)
    torch.testing.assert_close(theirs["next_memory.slots"], 2 * ours["next_memory.slots"])
    with pytest.raises(ValueError, match="knows no step but FeedbackTransformer's, got Loud's"):
        OneStep(policy, keys_values=True)


def test_the_window_is_not_projected():
    """No operation of the program makes a key or a value for every slot."""
    policy = make_model("fast").policy
    program = export_program(policy)
    heads, window = policy.core.n_heads, policy.core.window
    shapes = [tuple(node.meta["val"].shape) for node in program.graph.nodes if hasattr(node.meta.get("val"), "shape")]
    width = policy.core.d_model // heads
    assert any(window in shape for shape in shapes)
    assert not any(shape[-3:] in ((window, heads, width), (heads, window, width)) for shape in shapes)


def test_spaces_that_do_not_count_from_0_are_refused():
    policy = make_model("lstm").policy
    policy.action_space = spaces.Discrete(3, start=2)
    with pytest.raises(ValueError, match="counts from 0, got Discrete"):
        OneStep(policy)
