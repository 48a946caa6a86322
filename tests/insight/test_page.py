"""The page, as data and in a browser that moves the slider."""

import dataclasses
import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import PPO

import envs
from fbrl.insight import page
from fbrl.insight.page import about, save_page
from fbrl.insight.recording import action_names, by_step, record
from tests.insight.recordings import make_agent, play, task
from tests.tasks import RandomTask, make_model

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next((path for path in map(shutil.which, NAMES) if path), None)

# moves the slider, presses keys and chooses an episode; writes down what the page then says
DRIVER = """<script>
const read = () => ({where: $("where").textContent, slider: $("slider").value, caption: $("caption").textContent,
  frame: data.pictures.indexOf($("frame").getAttribute("src")),
  reads: [1, 2].map(l => $("read-" + l) ? $("read-" + l).firstChild.textContent : null),
  readFrames: [1, 2].map(l => data.pictures.indexOf(($("read-frame-" + l) || $("frame")).getAttribute("src"))),
  chances: [...$("chances").querySelectorAll(".bar")].map(row => row.lastChild.textContent),
  facts: $("facts").textContent, heading: $("heading").textContent, notes: $("notes").textContent,
  written: $("written").textContent, layers: $("layers").textContent, views: $("views").textContent,
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth});
const press = key => document.dispatchEvent(new KeyboardEvent("keydown", {key}));
const seen = [read()];
$("slider").value = 3; $("slider").dispatchEvent(new Event("input")); seen.push(read());
press("ArrowRight"); seen.push(read());
press("ArrowLeft"); press("ArrowLeft"); seen.push(read());
press("End"); seen.push(read());
if (data.episodes.length > 1) $("episodes").children[1].click();
seen.push(read());
const result = document.createElement("pre"); result.id = "result"; result.textContent = JSON.stringify(seen);
document.body.append(result);
</script></body>"""


@pytest.fixture(scope="module")
def agent():
    return make_agent()


@pytest.fixture(scope="module")
def episodes(agent):
    """Two that are long enough to be walked through."""
    return sorted(play(agent, 8), key=lambda episode: -episode.length)[:2]


def write(path, agent, episodes, **kwargs):
    save_page(episodes, path, about(agent, "agent <1>", "T-maze"), action_names(task(), agent.action_space), **kwargs)
    return path


def data_of(path):
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)[1]
    return json.loads(text)


def browse(path, width=1400):
    """What the driver saw."""
    if CHROMIUM is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the path; make browser installs one where it may")
    driven = path.with_name("driven.html")
    driven.write_text(path.read_text().replace("</body>", DRIVER))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    folder = f"--user-data-dir={path.with_name('profile')}"
    shown = subprocess.run([*command, folder, driven.as_uri()], capture_output=True, text=True, timeout=120)
    return json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', shown.stdout, re.DOTALL)[1]))


def percent(share):
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def test_in_a_browser(agent, episodes, tmp_path):
    path = write(tmp_path / "episode.html", agent, episodes)
    data, seen = data_of(path), browse(path)
    length = episodes[0].length
    assert [one["where"] for one in seen] == [
        *(f"step {t} of {length}" for t in (0, 3, 4, 2)),
        "the end",
        f"step 0 of {episodes[1].length}",
    ]
    for one, t in zip(seen, (0, 3, 4, 2), strict=False):
        step = episodes[0].steps[t]
        assert one["slider"] == str(t)
        assert one["caption"] == f"takes {int(step.action)}"
        assert one["frame"] == data["episodes"][0]["steps"][t]["frame"]
        assert one["chances"] == [percent(chance) for chance in step.seen.chances[0][0].round(4)]
        assert f"value{step.seen.value[0]:.3f}" in one["facts"]
        assert f"{step.seen.effect[0]:.2f} nats" in one["facts"]
        assert one["wide"] == 0
        for layer in range(2):
            if t == 0:
                assert one["reads"][layer] == "nothing can be read yet"
                continue
            weights = by_step(step.reads, t)[layer].mean(axis=0)
            read = re.match(r"most: step (\d+), (\d+) back, ([\d.]+) %", one["reads"][layer])
            most = int(read[1])
            assert weights[most] == pytest.approx(weights.max(), abs=2 / 255)  # told in 255ths
            assert (int(read[2]), float(read[3])) == (t - most, pytest.approx(100 * weights[most], abs=1))
            assert one["readFrames"][layer] == data["episodes"][0]["steps"][most]["frame"]
    assert seen[4]["caption"] == f"{episodes[0].outcome}, return {episodes[0].returns:g}"
    assert seen[5]["heading"].startswith(f"Episode 2: {episodes[1].outcome}")


@pytest.mark.slow
def test_on_a_narrow_screen_nothing_sticks_out(agent, episodes, tmp_path):
    assert {one["wide"] for one in browse(write(tmp_path / "episode.html", agent, episodes), width=500)} == {0}


@pytest.mark.slow
def test_in_a_browser_without_pictures_or_attention(tmp_path):
    model = make_model("lstm")
    path = write(tmp_path / "episode.html", model, [record(model, RandomTask(max_length=40), max_steps=30)])
    seen = browse(path)
    assert seen[1]["layers"].startswith("The memory of LSTM is not kept step by step")
    assert "The task draws no pictures." in seen[1]["notes"]
    assert seen[1]["views"].startswith("observation: ")
    assert "memory changes the policy by" in seen[1]["facts"]


def test_nothing_is_fetched(agent, episodes, tmp_path):
    text = write(tmp_path / "episode.html", agent, episodes).read_text()
    assert not re.search(r"https?://|src=\"|@import|fetch\(|<link", text)
    assert "agent <1>" in data_of(tmp_path / "episode.html")["title"]


def test_every_attention_is_told(agent, episodes, tmp_path):
    import base64

    data = data_of(write(tmp_path / "episode.html", agent, episodes))
    for t, (step, told) in enumerate(zip(episodes[0].steps, data["episodes"][0]["steps"], strict=True)):
        reads = told["reads"]
        assert (reads["layers"], reads["heads"], reads["slots"]) == (2, 2, min(t, 5))
        weights = np.frombuffer(base64.b64decode(reads["weights"]), np.uint8).reshape(2, 2, -1) / 255
        np.testing.assert_allclose(weights[..., 1:], by_step(step.reads, t)[..., max(0, t - 5) :], atol=0.5 / 255)
        np.testing.assert_allclose(weights[..., 0], step.reads[..., 0], atol=0.5 / 255)


def test_a_long_episode_is_cut_and_a_large_page_made_smaller(agent, tmp_path, monkeypatch):
    episode = play(agent, 1, max_steps=2)[0]
    data = data_of(write(tmp_path / "cut.html", agent, [episode]))
    assert data["episodes"][0]["cut"] == f"Of {episode.length} steps the first 2 are shown."
    assert len(data["episodes"][0]["steps"]) == 2
    monkeypatch.setattr(page, "READS_BYTES", 10)
    monkeypatch.setattr(page, "PICTURES_BYTES", 10)
    smaller = data_of(write(tmp_path / "small.html", agent, [episode]))
    assert smaller["episodes"][0]["steps"][1]["reads"]["heads"] == 1
    assert smaller["notes"] == [
        "So much is read that the page holds the mean over the heads only.",
        "The pictures are reduced to 64 pixels so that the page stays small.",
    ]


@pytest.mark.parametrize(
    ("core", "first", "notes"),
    [
        ("fast", "nothing", []),
        ("transformer_xl", "itself", ["This core keeps what enters each layer"]),
        ("gru", "itself", ["The memory of GRU is not kept step by step"]),
        ("memoryless", "itself", ["The memory of Memoryless is not kept step by step"]),
    ],
)
def test_what_cannot_be_shown_is_said(core, first, notes, tmp_path):
    agent = make_agent(core)
    data = data_of(write(tmp_path / "episode.html", agent, play(agent, 1)))
    assert data["first"] == first
    assert [note.startswith(start) for note, start in zip(data["notes"], notes, strict=True)] == [True] * len(notes)
    assert len(data["mix"]) == (3 if core == "fast" else 0)


def test_the_agent_s_view_and_an_agent_without_memory(tmp_path):
    env = envs.make("MiniGrid-MemoryS7-v0", seed=0, render_mode="rgb_array")
    agent = PPO("MultiInputPolicy", env, n_steps=8, batch_size=8, device="cpu")
    names = action_names(env, agent.action_space)
    save_page([record(agent, env, max_steps=3)], tmp_path / "episode.html", about(agent, "title", "task"), names)
    data = data_of(tmp_path / "episode.html")
    assert data["notes"] == ["This agent has no memory: there is nothing that it reads or writes."]
    step = data["episodes"][0]["steps"][0]
    assert step["action"] in names.values()
    assert step["views"]["image"] != step["frame"]
    assert step["effect"] is step["reads"] is None


def test_actions_that_do_not_begin_at_zero(agent, episodes, tmp_path):
    names = action_names(task(), spaces.Discrete(3, start=5))
    steps = tuple(step._replace(action=step.action + 5) for step in episodes[0].steps)
    episode = dataclasses.replace(episodes[0], steps=steps)
    save_page([episode], tmp_path / "episode.html", about(agent, "title", "task"), names)
    for step, told in zip(steps, data_of(tmp_path / "episode.html")["episodes"][0]["steps"], strict=True):
        assert told["action"] == str(int(step.action))
        assert [name for name, _ in told["chances"][0]] == ["5", "6", "7"]
