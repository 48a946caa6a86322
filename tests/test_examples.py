"""The scripts in examples/ run as they are; here with little of everything."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from tests.tasks import UNPICKLES

EXAMPLES = Path(__file__).parents[1] / "examples"
# what each is given, and what it then prints
SMALL = {
    "cartpole_without_velocities": ({"timesteps": 1024, "n_episodes": 3}, "return with a memory"),
    "minigrid_task": ({"timesteps": 1024, "n_episodes": 2, "n_envs": 8}, "without its memory: Summary(episodes=2"),
    "own_encoder": ({"timesteps": 2048, "n_episodes": 2}, "Summary(episodes=2"),
    "own_core": ({"timesteps": 1024, "n_episodes": 3}, "return with running means"),
    "draw_attention": ({"n_episodes": 2}, "layer 2: "),
}
MARKS = {name: pytest.mark.slow for name in ("minigrid_task", "own_encoder")} | {
    "draw_attention": [UNPICKLES, pytest.mark.slow]
}


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_run():
    of_an_extra = {"play_onnx"}  # tests/test_export_agent.py runs it
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SMALL.keys() | of_an_extra


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, ())) for name in SMALL],
)
def test_example(name, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    arguments, printed = SMALL[name]
    load(name).main(**arguments)
    assert printed in capsys.readouterr().out


@UNPICKLES
@pytest.mark.slow
def test_the_attention_is_drawn_for_three_episodes(monkeypatch, tmp_path):
    """One picture a step, and one of each end, which is shown longer."""
    monkeypatch.chdir(tmp_path)
    load("draw_attention").main(n_episodes=1)
    assert "MiniGrid-MemoryS7-v0" in Path("attention.html").read_text()
    with Image.open("attention.gif") as gif:
        long = 0
        for frame in range(gif.n_frames):
            gif.seek(frame)
            long += gif.info["duration"] > 1000
    assert long == 3


def test_own_core_forgets_at_an_episode_start():
    """The example holds to what the guide says of cores: one scan equals two halves, and nothing passes a start."""
    import torch

    core = load("own_core").RunningMeans(d_model=5)
    x, start = torch.randn(3, 7, 5), torch.zeros(3, 7, dtype=torch.bool)
    start[1, 4] = True
    with torch.no_grad():
        whole, after = core(x, core.initial_state(3), start)
        first, state = core(x[:, :4], core.initial_state(3), start[:, :4])
        state = type(state)(torch.where(torch.tensor([0.0, 1.0, 0.0])[:, None, None] > 0, torch.nan, state.values))
        second, end = core(x[:, 4:], state, start[:, 4:])
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(end.values, after.values)


@pytest.mark.parametrize("name", SMALL)
def test_an_example_is_a_script(name):
    """``python examples/NAME.py`` runs it as it is shipped."""
    assert (EXAMPLES / f"{name}.py").read_text().endswith('if __name__ == "__main__":\n    main()\n')
