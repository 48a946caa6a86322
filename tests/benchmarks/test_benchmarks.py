"""The speed benchmarks: what they measure, what they refuse, what they write."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks import drawing, report
from benchmarks.speed import compiling, contenders, draw, export, forms, latency, operations, scan, stepping, throughput
from benchmarks.speed.contenders import LONG, OURS, RIVAL, SHARED, SHORT
from benchmarks.supervised import draw as supervised_draw
from benchmarks.supervised import memories
from experiment.settings import SettingsError
from fbrl import MemoryPPO
from fbrl.cores.feedback_scan import FastFeedbackTransformer

SCAN_SIZE = forms.Size(D=6, L=2, H=2, M=3, T=5, B=4)
CORE_SIZE = contenders.Size(D=14, L=1, H=2, M=3)
CONDITIONS = {"machine", "versions", "threads", "seeds", "commit", "uncommitted_changes"}


@pytest.fixture(autouse=True)
def restore_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def small_settings():
    settings = contenders.settings_of(CORE_SIZE, n_envs=2)
    settings.ppo.n_steps, settings.ppo.seq_len, settings.ppo.batch_size, settings.ppo.n_epochs = 12, 4, 8, 2
    return settings


def small_agents(*names):
    return {name: contenders.make_agent(name, small_settings()) for name in names}


class Clock:
    """A clock that only functions move."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.now / 2

    def task(self, *seconds):
        left = iter(seconds)

        def run():
            self.now += next(left)

        return run


def test_laps_ratios_and_medians(monkeypatch):
    """The first round does not count, and one slow round does not show in a median."""
    clock = Clock()
    monkeypatch.setattr(report, "time", clock)
    laps = report.laps_in_turns({"slow": clock.task(100, 6, 60, 6), "fast": clock.task(900, 2, 2, 20)}, repeats=3)
    assert laps == {"slow": [(6, 3), (60, 30), (6, 3)], "fast": [(2, 1), (2, 1), (20, 10)]}
    assert report.medians(laps) == {"slow": 6, "fast": 2}
    assert report.medians(laps, clock=1) == {"slow": 3, "fast": 1}
    assert report.ratio(report.medians(laps), "slow", "fast") == 3
    assert report.ratio(report.medians(laps), "missing", "fast") is None


def test_in_turns():
    called = []
    results = report.in_turns({name: lambda name=name: called.append(name) for name in "ab"}, repeats=2, warm_up=1)
    assert called == list("ababab")
    assert results == {"a": [None, None], "b": [None, None]}


def test_conditions(monkeypatch):
    answers = {"status": "", "rev-parse": "abc123"}
    monkeypatch.setattr(report, "git", lambda command, *rest: answers[command])
    clean = report.conditions(threads=1)
    assert clean.keys() == CONDITIONS
    assert clean["commit"] == "abc123"
    assert clean["uncommitted_changes"] is False
    assert clean["versions"]["torch"] == torch.__version__
    answers["status"] = " M fbrl/ppo.py"
    assert report.conditions(threads=1)["uncommitted_changes"] is True


@pytest.mark.parametrize(("module", "name"), [(scan, "threads"), (latency, "threads"), (throughput, "rollouts")])
def test_numbers_that_cannot_be(module, name, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main([f"--{name}", "0"])
    assert stop.value.code == 2
    assert f"--{name} must be at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize("module", [scan, throughput, latency])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "2"], "--repeats must be at least 3, got 2"),
        (["--json", "no/folder/x.json"], "no/folder"),
        (["--json", "."], "a folder, expected a file"),
    ],
)
def test_options_that_cannot_be(module, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_scan_report(tmp_path, monkeypatch, capsys):
    """Without the other package its column is null, and a line says so."""
    monkeypatch.setitem(sys.modules, "feedback_transformer_pytorch", None)
    monkeypatch.setattr(scan, "compile_costs", lambda: {"cold_seconds": 9.0})
    file = tmp_path / "scan.json"
    scan.main(["--repeats", "3", "--json", str(file)], sizes=[SCAN_SIZE])
    written = json.loads(file.read_text())
    (row,) = written["rows"]
    assert written.keys() > CONDITIONS
    assert {name: row[name] for name in "DLHMTB"} == SCAN_SIZE._asdict()
    assert row["fast_over_lucidrains"] is None
    assert "feedback-transformer-pytorch is not installed" in capsys.readouterr().out
    for name in ("fast_over_plain", "matmul_fraction", "peak_memory_ratio", "fast_over_lstm_1", "fast_over_lstm_L"):
        assert row[name] > 0
    if "compiled" in row["peak_bytes"]:  # where numba is installed
        assert all(row[name] > 0 for name in ("compiled_over_fast", "compiled_two_threads_over_one"))
        assert row["compiled_peak_over_fast"] == row["peak_bytes"]["compiled"] / row["peak_bytes"]["fast"]
        assert written["compiling"] == {"cold_seconds": 9.0}
    assert row["forward_share"] + row["backward_share"] == pytest.approx(1)
    assert all(len(laps) == 3 for laps in row["seconds_and_cpu_seconds"].values())
    assert written["summary"]["fast_over_plain"] == {
        "median": row["fast_over_plain"],
        "minimum": row["fast_over_plain"],
        "maximum": row["fast_over_plain"],
    }
    assert row["peak_memory_ratio"] == row["peak_bytes"]["fast"] / row["peak_bytes"]["plain"]
    assert row["peak_bytes"]["passes_3"] > row["peak_bytes"]["passes_1"] > 0


def test_a_lap_ends_with_what_a_gpu_was_asked_for(monkeypatch):
    said = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(device))
    report.lap(lambda: said.append("work"), "cuda:1")
    report.laps_in_turns({"a": lambda: said.append("more")}, 1, "cuda")
    assert said == ["cuda:1", "work", "cuda:1", *(2 * ["cuda", "more", "cuda"])]
    report.lap(lambda: said.append("cpu"), "cpu")
    assert said[-2:] == ["cuda", "cpu"]


@pytest.mark.parametrize("module", [scan, throughput, latency])
def test_a_device_that_is_not_there(module, capsys):
    with pytest.raises(SystemExit) as stop:
        module.main(["--device", "cuda:77"])
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--device must be auto, cpu, cuda, cuda:1, ..., got cuda:77" in line


def test_everything_of_a_scan_is_on_its_device():
    """On the meta device, where any tensor of another one would be refused."""
    for form in forms.make_forms(SCAN_SIZE, "meta").values():
        scan.train(form)
        assert {tensor.device.type for tensor in (form.forward(), *form.wanted)} == {"meta"}


def test_forms_of_a_gpu(monkeypatch):
    """With the meta device in the place of one."""
    monkeypatch.setattr(forms.torch, "device", lambda device: SimpleNamespace(type="cuda"))
    for lacks, names in ((None, {"graphs", "triton"}), ("a C compiler", {"graphs"})):
        monkeypatch.setattr(forms, "cannot_run_triton", lambda device, lacks=lacks: lacks)
        cores = forms.make_cores(SCAN_SIZE, torch.float32, "meta")
        assert cores.keys() == {"plain", "fast"} | names
        assert (cores["fast"].cuda_graphs, cores["graphs"].cuda_graphs) == (False, True)
        assert {name: core.form for name, core in cores.items() if name != "plain"} == {
            **dict.fromkeys(("fast", "graphs"), "fast"),
            **({"triton": "triton"} if "triton" in names else {}),
        }


def test_agents_of_short_episodes():
    """Alike in parameters on Counting, too, where no MiniGrid encoder reads."""
    settings = contenders.settings_of(CORE_SIZE, 2, 64, task=SHORT)
    assert settings.env.id == "fbrl/Counting-v0"
    ours, rival = (contenders.make_agent(name, settings) for name in (OURS, RIVAL))
    assert ours.observation_space == rival.observation_space
    contenders.check_parameters(
        {name: report.parameters(agent.policy) for name, agent in ((OURS, ours), (RIVAL, rival))}
    )


def test_costs_of_compiling():
    """Of the packages that are installed; the programs are run by the benchmark only, which take long."""
    pytest.importorskip("numba")
    assert compiling.installed_bytes("llvmlite") > compiling.installed_bytes("numba") > 1e6
    assert compiling.seconds("print(3, 4.5)") == [3, 4.5]
    compile(compiling.FIRST_SCAN, "first scan", "exec")


def test_peak_memory_on_a_gpu(monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: called.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1000)
    monkeypatch.setattr(scan, "train", lambda form: called.append("train"))
    assert scan.peak_memory(None, "cuda") == 700
    assert called == ["reset", "train"]


def test_agents_of_a_gpu():
    made = small_agents(OURS, contenders.PASSES, contenders.EAGER)
    assert [agent.passes for agent in made.values()] == [None, 2, None]
    assert [agent.policy.core.cuda_graphs for agent in made.values()] == [True, True, False]
    assert len({report.parameters(agent.policy) for agent in made.values()}) == 1


def test_throughput_takes_a_gpu_for_all_that_it_measures(monkeypatch):
    asked = []
    monkeypatch.setattr(report, "check_device", lambda name, device: None)
    monkeypatch.setattr(throughput, "check_first_ratio", lambda agent: None)
    monkeypatch.setattr(throughput, "make_agent", lambda name, settings: asked.append(settings.run.device))
    monkeypatch.setattr(throughput, "conditions", lambda threads, device: {"device": device})

    def measure(contender, setup, rollouts):
        asked.append(setup.device)
        assert contender.processes == 1
        return measurement(10)

    monkeypatch.setattr(throughput, "measure", measure)
    throughput.main(["--quick", "--device", "cuda"])
    assert asked == ["cuda"] * (1 + 3 * len(throughput.QUICK_GPU_CONTENDERS))


def test_a_job_carries_its_device(monkeypatch):
    seen = []
    monkeypatch.setattr(throughput, "make_agent", lambda name, settings: seen.append(settings.run.device) or fails())

    def fails():
        raise KeyboardInterrupt

    job = throughput.Job(OURS, 1, list(CORE_SIZE), 4, 128, "minigrid", "cuda:1", LONG, 1)
    with pytest.raises(KeyboardInterrupt):
        throughput.run(throughput.Job(*json.loads(json.dumps(job))))
    assert seen == ["cuda:1"]


def test_scan_refuses_where_the_forms_differ(monkeypatch, tmp_path):
    forward = FastFeedbackTransformer.forward

    def wrong(self, x, state, episode_start):
        return forward(self, x * (1 + 1e-6), state, episode_start)

    monkeypatch.setattr(FastFeedbackTransformer, "forward", wrong)
    with pytest.raises(SystemExit, match="parity is red"):
        scan.main(["--json", str(tmp_path / "x.json")], sizes=[SCAN_SIZE])
    assert not list(tmp_path.iterdir())


def test_scan_summary():
    rows = [dict.fromkeys(scan.SUMMARISED, ratio) | {"fast_over_lucidrains": None} for ratio in (3, 1, 7)]
    summary = scan.summarise(rows)
    assert summary.keys() == set(scan.SUMMARISED) - {"fast_over_lucidrains"}
    assert summary["fast_over_plain"] == {"median": 3, "minimum": 1, "maximum": 7}


def test_multiply_adds():
    """Counted from the forward pass's own matrix products, without their backward."""
    d, layers, _, slots, steps, batch = SCAN_SIZE
    dense = steps * (layers * (2 * d * d + 2 * d * 2 * d) + 2 * d * d) + 2 * slots * d * d
    attention = steps * layers * 3 * slots * d
    assert scan.multiply_adds(SCAN_SIZE) == 3 * batch * (dense + attention)


def test_peak_memory():
    """Two tensors of 4,000 bytes are alive at once: the third is made after the first has gone."""
    memory = scan.PeakMemory()
    with memory:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b = b + 1
        del b
    assert memory.peak == 8000


def test_lucidrains_reads_its_memory_and_passes_gradients():
    pytest.importorskip("feedback_transformer_pytorch")
    case = forms.make_case(SCAN_SIZE, torch.float32)
    form = forms.lucidrains_form(SCAN_SIZE, case)
    features = form.forward()
    assert features.shape == (SCAN_SIZE.B, SCAN_SIZE.T, SCAN_SIZE.D)
    (gradient,) = torch.autograd.grad(features[:, -1].pow(3).sum(), [case.x])
    assert gradient[:, 0].abs().max() > 0, "the last step hears of the first"
    case.memory.slots.mul_(-3)
    assert not torch.allclose(form.forward()[:, 0], features[:, 0])


@pytest.mark.parametrize("size", contenders.SIZES)
def test_agents_of_equal_size(size):
    """As measured: the same task and training, within a tenth of the parameters, and no less than needed."""
    settings = contenders.settings_of(size, n_envs=8)
    made = {name: contenders.make_agent(name, settings) for name in (OURS, RIVAL, SHARED)}
    counts = {name: report.parameters(agent.policy) for name, agent in made.items()}
    contenders.check_parameters(counts)
    assert all(0.97 < count / counts[OURS] <= 1 for count in counts.values())
    for name in ("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "ent_coef", "vf_coef", "n_envs"):
        assert len({getattr(agent, name) for agent in made.values()}) == 1, name
    encoders = {type(agent.policy.features_extractor) for agent in made.values()}
    assert len(encoders) == 1
    assert made[RIVAL].policy.lstm_critic is not None
    assert made[SHARED].policy.lstm_critic is None
    assert made[OURS].policy.core.window == size.M


def test_unequal_sizes_are_refused():
    contenders.check_parameters({OURS: 1000, RIVAL: 1100})
    with pytest.raises(SystemExit, match="recurrent_ppo has 1101 parameters beside our 1000"):
        contenders.check_parameters({OURS: 1000, RIVAL: 1101})


def test_first_ratio(monkeypatch):
    (ours,) = small_agents(OURS).values()
    contenders.check_first_ratio(ours)
    replay = MemoryPPO.policy_aliases["MultiInputPolicy"].evaluate_actions

    def wrong(self, obs, actions):
        values, log_prob, entropy = replay(self, obs, actions)
        return values, log_prob + 1e-4, entropy

    monkeypatch.setattr(type(ours.policy), "evaluate_actions", wrong)
    with pytest.raises(SystemExit, match="parity is red: the first ratio"):
        contenders.check_first_ratio(ours)


@pytest.mark.parametrize("name", [OURS, RIVAL])
def test_one_measurement(name, monkeypatch):
    monkeypatch.setattr(throughput, "settings_of", lambda *_: small_settings())
    found = throughput.run(throughput.Job(name, 1, list(CORE_SIZE), 2, 8, "minigrid", "cpu", LONG, rollouts=2))
    assert found["parameters"] == report.parameters(contenders.make_agent(name, small_settings()).policy)
    assert found["steps_per_second"] > 0
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert found["shares"]["update"] > 0


def test_total_weighs_rollouts_by_their_seconds():
    shares = {"acting": 0.0, "other": 0.0}
    laps = [
        {"steps_per_second": 10, "environment": 1.0, "update": 0.0} | shares,  # 6 seconds
        {"steps_per_second": 30, "environment": 0.0, "update": 1.0} | shares,  # 2 seconds
    ]
    found = throughput.total(laps, rollout=60)
    assert found["steps_per_second"] == 15
    assert found["shares"] == {"environment": 0.75, "acting": 0, "update": 0.25, "other": 0}


def measurement(speed, parameters=1000):
    shares = dict.fromkeys(throughput.SHARES, 0.25)
    return {"parameters": parameters, "steps_per_second": speed, "shares": shares}


def test_throughput_report(tmp_path, monkeypatch):
    """Ratios are of medians, and over the rival with the number of threads that it is faster with."""
    speeds = {(OURS, 1, 1): [40, 50, 900], (OURS, 1, 2): [60, 60, 60], (OURS, 2, 1): [99, 100, 101]}
    speeds |= {(RIVAL, 1, 1): [10, 10, 1], (RIVAL, 1, 2): [8, 8, 8]}
    speeds |= {(SHARED, 1, 1): [5, 5, 5], (SHARED, 1, 2): [20, 20, 20]}
    left = {contender: iter(given) for contender, given in speeds.items()}

    def measure(contender, *_):
        return measurement(next(left[contender]))

    monkeypatch.setattr(throughput, "measure", measure)
    monkeypatch.setattr(throughput, "SETUPS", [throughput.Setup(CORE_SIZE, 4, 64)])
    file = tmp_path / "throughput.json"
    throughput.main(["--repeats", "3", "--json", str(file)])
    written = json.loads(file.read_text())
    rows = {(row["agent"], row["processes"], row["threads"]): row for row in written["rows"]}
    assert written.keys() > CONDITIONS
    assert rows.keys() == left.keys()
    ours = rows[OURS, 1, 2]
    assert {name: ours[name] for name in "DLHM"} == CORE_SIZE._asdict()
    assert (ours["n_envs"], ours["batch_size"], ours["engine"]) == (4, 64, "minigrid")
    assert (ours["processes"], ours["parameters"], ours["shares"]["acting"]) == (1, 1000, 0.25)
    assert ours["over_recurrent_ppo"] == 6
    assert ours["over_recurrent_ppo_shared"] == 3
    assert ours["over_one_process"] == 1.2
    assert rows[OURS, 2, 1]["over_recurrent_ppo"] == 10
    assert rows[OURS, 2, 1]["over_one_process"] == 2
    assert rows[RIVAL, 1, 2]["over_recurrent_ppo"] == 0.8
    assert rows[RIVAL, 1, 2]["over_one_process"] is None


def test_a_measurement_that_fails(monkeypatch):
    failed = SimpleNamespace(returncode=1, stdout="", stderr="long\nstory\nparity is red: really\n")
    monkeypatch.setattr(throughput.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match=r"^fbrl.*: parity is red: really$"):
        throughput.measure(throughput.BASE, throughput.QUICK_SETUPS[0], 1)


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        ("", "failed"),
        ("Killed\n", "Killed"),
        ("Traceback\n  File x\nValueError: no\n", "ValueError: no"),
        ("error: no\nE1123 failed (exitcode: 2)\n=====\nRoot Cause:\n  exitcode  : 2\n=====\n", "error: no"),
    ],
)
def test_the_reason_of_a_failure(stderr, reason):
    """``torchrun`` has the last word."""
    assert throughput.reason(stderr) == reason


def test_latency_report(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "settings_of", lambda size: small_settings())
    monkeypatch.setattr(latency, "SIZES", [CORE_SIZE])
    monkeypatch.setattr(latency, "BATCHES", (1, 3))
    monkeypatch.setattr(latency, "BLOCK", 7)
    monkeypatch.setattr(latency, "EARLY", 20)
    file = tmp_path / "latency.json"
    latency.main(["--repeats", "3", "--steps", "210", "--json", str(file)])
    written = json.loads(file.read_text())
    assert written.keys() > CONDITIONS
    one, three = written["rows"]
    assert (one["batch"], three["batch"]) == (1, 3)
    for row in (one, three):
        assert row["over_recurrent_ppo"] == pytest.approx(row["milliseconds"][RIVAL] / row["milliseconds"][OURS])
    assert 0.1 < one["late_over_early"] < 10
    assert len(one["episode"]) == 100
    assert three["late_over_early"] is None


def test_latency_refuses_where_a_step_is_not_the_scan(monkeypatch):
    settings = small_settings()
    (ours,) = small_agents(OURS).values()
    track = latency.record(settings, batch=3, steps=9)
    latency.check_steps_are_a_scan(ours, track)
    predict = ours.policy.predict

    def forgetful(obs, state=None, *args, **kwargs):
        return predict(obs, None, *args, **kwargs)

    monkeypatch.setattr(ours.policy, "predict", forgetful)
    with pytest.raises(SystemExit, match="parity is red: predict step by step"):
        latency.check_steps_are_a_scan(ours, track)


def test_track_has_episodes():
    track = latency.record(small_settings(), batch=3, steps=40)
    assert track[0].episode_start.all()
    assert not track[1].episode_start.any()
    assert track[0].obs["image"].shape == (3, 3, 3, 3)


ROWS = {
    "scan": [forms.Size(64, 2, 4, 32, 16, 8)._asdict() | dict.fromkeys(draw.FORMS, 2.0)] * 2
    + [forms.Size(64, 2, 4, 32, 16, 8)._asdict() | dict.fromkeys(draw.FORMS, None)],
    "throughput": [
        setup.size._asdict() | setup._asdict() | contender._asdict() | measurement(100.0)
        for setup in throughput.SETUPS
        for contender in throughput.CONTENDERS
    ],
    "latency": [
        CORE_SIZE._asdict() | {"batch": 1, "milliseconds": {OURS: 1.0, RIVAL: 2.0}, "steps": 9, "episode": [1.0] * 3},
        CORE_SIZE._asdict() | {"batch": 3, "milliseconds": {OURS: 1.0, RIVAL: 2.0}},
    ],
    "export": [
        CORE_SIZE._asdict() | {"core": core, "batch": batch, "over_predict": 2.0 * batch}
        for core in ("feedback", "gru")
        for batch in (1, 3)
    ],
    "supervised": [
        {"core": core, "curve": {"steps": [1, 2], "accuracy": [0.1, 0.7]}, "baselines": {"counting": 0.5}}
        | {"asked_by_step": [0, 40, 50], "right_by_step": [0, 30, 30], "name": "walk", "task": {"side": 3}}
        for core in ("feedback", "feedback", "transformer")
    ],
    "memories": [
        {"task": task, "things": things, "core": core, "learning_rate": rate, "seed": 0, "accuracy_to_choose_by": rate}
        | {"accuracy": {"value": 1 / things}, "asked_by_change": [8] * 4, "right_by_change": [8, 6, 4, 3]}
        | {"baselines": {"without memory": 0.2, "where it was at first": 0.5}}
        for task, sizes in (("absolute", [8]), ("cups", [1, 3]))
        for core in ("feedback", "gru")
        for things in sizes
        for rate in memories.RATES
    ],
}


def test_export_reports_nothing_where_parity_is_red():
    """An exported step that does something else than ``predict`` is not timed."""
    pytest.importorskip("onnxruntime", reason="needs pip install fbrl[onnx]")
    agent, exported = export.agents("gru", CORE_SIZE, 1)
    track = export.record(contenders.settings_of(CORE_SIZE, n_envs=1), 2, 40)
    assert max(export.check_parity(agent, exported, track)["log_probability_from_64_bits"].values()) < 1e-4
    with torch.no_grad():
        agent.policy.action_net.bias.add_(torch.arange(7) * 0.01)
    with pytest.raises(SystemExit, match="parity is red"):
        export.check_parity(agent, exported, track)


def test_without_onnx_the_export_benchmark_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        export.main([])
    assert stop.value.code == 2
    assert "onnx is not installed: pip install fbrl[onnx]" in capsys.readouterr().err


DRAWN = {**draw.DRAWN, **supervised_draw.DRAWN}


@pytest.mark.parametrize("name", ROWS)
def test_draw(name, tmp_path, capsys):
    file = tmp_path / f"{name}.json"
    report.write(file, name, {"rows": ROWS[name]})
    drawing.main(DRAWN, None, [str(file)])
    picture = tmp_path / f"{name}.png"
    assert capsys.readouterr().out.strip() == str(picture)
    with Image.open(picture) as image:
        assert image.width == 1050
        assert len(image.getcolors(maxcolors=1 << 24)) > 50, "something is drawn"


@pytest.mark.parametrize("content", ['{"rows": []}', '{"benchmark": "curves"}', "[]"])
def test_draw_refuses_other_files(content, tmp_path):
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match="no report of a benchmark"):
        drawing.draw(file, DRAWN)
    assert not file.with_suffix(".png").exists()


def test_operations_that_are_not_views():
    count = operations.Count()
    with count:
        torch.ones(2, 3).t().add_(1)  # not t
    assert count.operations == 2


def test_operations_report(tmp_path, monkeypatch):
    monkeypatch.setattr(operations, "BATCHES", (1, 2))
    file = tmp_path / "operations.json"
    operations.main(["--repeats", "3", "--json", str(file)])
    written = json.loads(file.read_text())
    assert written.keys() > CONDITIONS
    one, two = written["rows"]
    assert (one["B"], two["B"]) == (1, 2)
    assert one["operations_a_step"] == pytest.approx(two["operations_a_step"], abs=1)
    assert one["operations_a_step"] > 10
    assert one["milliseconds"] == pytest.approx(one["microseconds_a_sample"] * one["T"] * one["B"] / 1e3)


def test_stepping_report(tmp_path, monkeypatch):
    monkeypatch.setattr(stepping, "TASKS", ("Counting", "TMaze"))
    file = tmp_path / "stepping.json"
    stepping.main(["--quick", "--repeats", "3", "--json", str(file)])
    written = json.loads(file.read_text())
    assert written.keys() > CONDITIONS
    assert [row["task"] for row in written["rows"]] == ["Counting", "TMaze"]
    for row in written["rows"]:
        cpu = {name: sorted(lap[1] for lap in laps)[1] for name, laps in row["seconds_and_cpu_seconds"].items()}
        assert row["steps_per_second"] == pytest.approx(64 * 30 / cpu["batch"])
        assert row["times_single"] == pytest.approx(cpu["single"] / cpu["batch"])


def test_stepping_refuses_other_environments():
    both = stepping.make_both("Counting")
    stepping.check(both)
    both["single"].seed(3)
    with pytest.raises(AssertionError):
        stepping.check(both)
