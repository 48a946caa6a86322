"""Settings: files, overrides, what is refused and with which words."""

import dataclasses
import re
from pathlib import Path

import pytest

from experiment.parsing import OneLineParser, add_settings, load_settings, to_settings
from experiment.rules import check, check_device
from experiment.settings import GROUPS, CoreSettings, EnvSettings, PPOSettings, RunSettings, Settings, SettingsError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def make_parser():
    parser = OneLineParser()
    add_settings(parser)
    return parser


def parse(*arguments):
    return to_settings(make_parser().parse_args(list(map(str, arguments))))


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return path

    return write


def test_nothing_given_is_the_defaults():
    assert parse() == Settings()


def test_what_follows_the_file_overrides_it(file):
    path = file("env: {id: some/Task-v0, kwargs: {corridor: 7}}\nppo: {gamma: 0.9, seq_len: 16, learning_rate: 1e-4}\n")
    settings = parse("--config", path, "--ppo.gamma=0.5", "--run.control=true", "--core.d_feedforward=24")
    assert settings.env == EnvSettings(id="some/Task-v0", kwargs={"corridor": 7})
    assert settings.ppo == PPOSettings(gamma=0.5, seq_len=16, learning_rate=1e-4)
    assert settings.core == CoreSettings(d_feedforward=24)
    assert settings.run == RunSettings(control=True)
    assert parse("--ppo.gamma=0.5", f"--config={path}").ppo.gamma == 0.9  # the last one counts


def test_round_trip(tmp_path):
    settings = Settings(
        EnvSettings(
            "BabyAI-GoToRedBall-v0", 3, True, True, {"a": 1, "b": {"c": [1, 2.5]}, "d": None}, ["a.B"], "minigrid", 5
        ),
        CoreSettings("none", 24, 3, 2, 7, 11),
        PPOSettings(learning_rate=1e-5, ent_coef_end=0.0, target_kl=0.01),
        RunSettings(name="x: y", threads=2, stop_at_success=0.5, progress_bar=False),
    )
    for given in (settings, Settings()):
        given.save(tmp_path / "config.yaml")
        assert load_settings(tmp_path / "config.yaml") == given


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_load(path):
    assert load_settings(path) == parse("--config", path)


def test_the_ladder_has_one_set_of_settings():
    """MiniGrid-Memory's tasks differ in the task and the budget alone."""
    ladder = [load_settings(path) for path in CONFIGS if path.stem.startswith("memory_")]
    assert len({settings.env.id for settings in ladder}) >= 7
    for settings in ladder:
        settings.env.id, settings.core.name = "", "feedback"  # one is the memoryless control
        settings.ppo.timesteps = settings.run.eval_every = settings.run.checkpoint_every = 1
        assert settings == ladder[0]
    assert ladder[0].env.novelty > 0


@pytest.mark.parametrize("given", ["[0]", "[5, -1]"])
def test_heads_that_cannot_be(given):
    with pytest.raises(SettingsError, match=r"^ppo\.net_arch must hold widths of at least 1, got \["):
        parse(f"--ppo.net_arch={given}")


def test_there_are_configs():
    assert "tmaze" in [path.stem for path in CONFIGS]


def test_help_explains_every_setting(capsys):
    with pytest.raises(SystemExit) as end:
        make_parser().parse_args(["--help"])
    assert end.value.code == 0
    entries = {}  # name -> text, of which the terminal's width breaks the lines
    for entry in re.split(r"\n\s+--(?=\w)", capsys.readouterr().out.partition("options:")[2]):
        name, _, text = " ".join(entry.split()).partition(" ")
        entries[name] = text
    for group, settings in GROUPS.items():
        for field in dataclasses.fields(settings):
            text = entries[f"{group}.{field.name}"]
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            shown = "null" if default is None else str(default)
            explained, _, rest = text.partition("(type: ")
            assert f" default: {shown})" in rest, text
            assert len(re.sub(r"^([A-Z_]+|\{.*?\}) ", "", explained)) >= 15, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ppo.gama=0.9"], "unknown setting ppo.gama; the closest: ppo.gamma"),
        (["--ppo.gama", "0.9"], "unknown setting ppo.gama; the closest: ppo.gamma"),
        (["--gamma=0.9"], "unknown setting gamma; the closest: ppo.gamma"),
        (["--zzz=1"], "unknown setting zzz; see --help"),
        (["--ppo.gamma=high"], "ppo.gamma must be a number, got high"),
        (["--ppo.gamma=nan"], "ppo.gamma must be a number, got nan"),
        (["--ppo.n_steps=1.5"], "ppo.n_steps must be a whole number, got 1.5"),
        (["--ppo.target_kl=x"], "ppo.target_kl must be a number or null, got x"),
        (["--core.name=lsmt"], "core.name must be one of"),
        (["--run.control=perhaps"], "run.control must be true or false, got perhaps"),
        (["--env.kwargs=3"], "env.kwargs must be a mapping, got 3"),
        (["--ppo.gamma"], "argument --ppo.gamma: expected one argument"),
        (["--config=nowhere.yaml"], "File does not exist"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("env: {n_envs: 4}\nppo:\n  gamma: 0.9\n  gama: 0.9", 4, "unknown setting ppo.gama"),
        ("pppo:\n  gamma: 0.9", 2, "unknown setting pppo.gamma"),
        ("# two\n\nppo:\n  gamma: high", 4, "ppo.gamma must be a number, got high"),
        ("ppo:\n  n_epochs: 3\n  gamma: 2", 3, "ppo.gamma must be between 0 and 1, got 2"),
        ("ppo:\n  n_steps: 33\n  seq_len: 32", 2, "ppo.n_steps must be a multiple of ppo.seq_len = 32, got 33"),
        ("core: {\n  n_heads: 4,\n  d_model: 6}", 2, "core.n_heads must divide core.d_model = 6, got 4"),
    ],
)
def test_errors_name_the_line(text, line, message, tmp_path):
    """Of a value out of its range too; what the command line says has no line."""
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    for read in (lambda: load_settings(path), lambda: parse(f"--config={path}")):
        with pytest.raises(SettingsError, match=f"^{re.escape(f'{path}: line {line}: {message}')}"):
            read()


def test_errors_of_the_command_line_name_no_file(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("ppo: {n_steps: 64, seq_len: 32}")
    with pytest.raises(SettingsError, match=r"^ppo\.n_steps must be a multiple of ppo\.seq_len = 32, got 33$"):
        parse(f"--config={path}", "--ppo.n_steps=33")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo: {gama: 0.9}", "unknown setting ppo.gama; the closest: ppo.gamma"),
        ("pppo: {gamma: 0.9}", "unknown setting pppo.gamma; the closest: ppo.gamma"),
        ("ppo: {gamma: high}", "ppo.gamma must be a number, got high"),
        ("ppo: 3", "ppo must be a group of settings, got 3"),
        ("ppo: [1", "Problems parsing config"),
        ("- 1", "expected groups of settings, got - 1"),
        ("", "expected groups of settings, got nothing"),
        ("\0", "Problems parsing config"),
        ("ppo: {gamma: 2}", "ppo.gamma must be between 0 and 1, got 2"),
    ],
)
def test_bad_files(file, text, message):
    path = file(text)
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    with pytest.raises(SettingsError, match=re.escape(message)):
        parse("--config", path)


def test_a_missing_file_and_one_that_is_no_text(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: no such file"):
        load_settings(tmp_path / "nowhere.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\0")
    with pytest.raises(SettingsError, match=r"binary\.yaml: "):
        load_settings(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *((f"env.{name}", 0, "must be at least 1, got 0") for name in ("n_envs",)),
        *((f"core.{name}", 0, "must be at least 1, got 0") for name in ("d_model", "n_layers", "n_heads", "window")),
        ("core.d_feedforward", 0, "must be at least 1, got 0"),
        *((f"ppo.{name}", -3, "must be at least 1, got -3") for name in ("timesteps", "seq_len", "n_epochs")),
        *((f"run.{name}", 0, "must be at least 1, got 0") for name in ("threads", "eval_every", "eval_episodes")),
        ("run.checkpoint_every", 0, "must be at least 1, got 0"),
        ("run.seed", -1, "must be at least 0, got -1"),
        *((f"ppo.{name}", -0.1, "must be at least 0") for name in ("learning_rate_end", "ent_coef", "vf_coef")),
        ("ppo.ent_coef_end", -1.0, "must be at least 0, got -1.0"),
        *((f"ppo.{name}", 0.0, "must be more than 0") for name in ("learning_rate", "clip_range", "max_grad_norm")),
        ("ppo.target_kl", 0.0, "must be more than 0, got 0.0"),
        *((f"ppo.{name}", 1.1, "must be between 0 and 1, got 1.1") for name in ("gamma", "gae_lambda")),
        ("run.stop_at_success", 98.0, "must be between 0 and 1, got 98.0"),
        ("ppo.n_steps", 48 + 1, "must be a multiple of ppo.seq_len = 32, got 49"),
        ("ppo.n_steps", 0, "must be a multiple of ppo.seq_len = 32, got 0"),
        ("ppo.batch_size", 33, "must be a multiple of ppo.seq_len = 32, got 33"),
        ("env.wrappers", ["Wrapper"], "must hold import paths such as minigrid.wrappers.FullyObsWrapper, or {path: {"),
        ("env.wrappers", [{"a.B": 3}], "must hold import paths such as minigrid.wrappers.FullyObsWrapper, or {path: {"),
        ("core.n_heads", 5, "must divide core.d_model = 64, got 5"),
    ],
)
def test_what_check_refuses(name, value, message):
    settings = Settings()
    group, _, key = name.partition(".")
    setattr(getattr(settings, group), key, value)
    with pytest.raises(SettingsError, match=re.escape(f"{name} {message}")) as error:
        check(settings)
    assert "\n" not in str(error.value)


def test_wrappers_are_minigrids_engine_only():
    settings = Settings(EnvSettings(engine="envpool", wrappers=["minigrid.wrappers.ViewSizeWrapper"]))
    with pytest.raises(SettingsError, match=r"^env.wrappers must be \[\] where env.engine is envpool, got \['minigrid"):
        check(settings)


@pytest.mark.parametrize("core", ["transformer_xl", "gtrxl", "feedback_plain"])
def test_heads_are_only_asked_for_where_there_are_some(core):
    settings = Settings(core=CoreSettings("lstm", d_model=90, n_heads=4))
    check(settings)
    settings.core.name = core
    with pytest.raises(SettingsError, match=r"^core\.n_heads must divide core\.d_model = 90, got 4$"):
        check(settings)


def test_a_minibatch_of_one_step_is_refused():
    with pytest.raises(SettingsError, match=r"ppo\.batch_size must be at least 2, got 1"):
        check(Settings(ppo=PPOSettings(seq_len=1, batch_size=1)))
    with pytest.raises(SettingsError, match=r"ppo\.n_steps x env\.n_envs must be at least 2, got 1"):
        check(Settings(EnvSettings(n_envs=1), ppo=PPOSettings(seq_len=1, n_steps=1)))


def test_devices():
    for name in ("auto", "cpu"):
        check_device("--device", name)
    with pytest.raises(SettingsError, match=r"^--device must be auto, cpu, cuda, cuda:1, \.\.\., got cuda:77: "):
        check_device("--device", "cuda:77")


def test_settings_of_a_device_that_is_not_here_can_be_read(tmp_path):
    """An agent trained on a GPU can be evaluated on a CPU; training looks at the device itself."""
    settings = Settings()
    settings.run.device = "cuda:77"
    settings.save(tmp_path / "config.yaml")
    assert load_settings(tmp_path / "config.yaml") == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ppo:\n  gamma: 0.9\n  gamma: 0.8\n", "Problems parsing config: line 3: gamma is given twice"),
        ("ppo: {gamma: 0.9}\nppo: {n_steps: 64}\n", "Problems parsing config: line 2: ppo is given twice"),
        ("env:\n  kwargs: {a: {b: 1, b: 2}}\n", "line 2: b is given twice"),
        ("ppo:\n\tgamma: 0.9\n", "Problems parsing config: line 2: "),
        ("ppo: null", "ppo must be a group of settings, got null"),
        ("run:", "run must be a group of settings, got null"),
        ("env: {kwargs: &a {b: *a}}", "it must have at most 10,000 parts, with what its anchors stand for"),
        ("run: {seed: !!python/object/apply:os.getcwd []}", "could not determine a constructor for the tag"),
        ("ppo: {learning_rate: .inf}", "ppo.learning_rate must be a number, got inf"),
        ("run: {name: 3}", "run.name must be text or null, got 3"),
        ("run: {seed: 2020-01-01}", "run.seed must be a whole number, got 2020-01-01"),
        ("run: {seed: 2020-01-99}", "Problems parsing config: "),
        ("env: {kwargs: {1: 2}}", "env.kwargs must be a mapping with names as keys"),
    ],
)
def test_files_that_mislead(file, text, message):
    """Kind: YAML that is taken for something else than it says."""
    path = file(text)
    with pytest.raises(SettingsError, match=re.escape(message)) as error:
        load_settings(path)
    assert str(error.value).startswith(f"{path}: ")


def test_a_bomb_and_a_file_of_a_gigabyte_are_refused_at_once(file, tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    with pytest.raises(SettingsError, match="at most 10,000 parts"):
        load_settings(file("env:\n  kwargs:\n" + "".join(f"    {line}\n" for line in lines)))
    with pytest.raises(SettingsError, match="nested too deeply"):
        load_settings(file("env: {kwargs: {a: " + "[" * 9000 + "]" * 9000 + "}}"))
    with (tmp_path / "large.yaml").open("wb") as large:
        large.truncate(10**9)
    with pytest.raises(SettingsError, match=r"large\.yaml: must be at most 1,000,000 bytes, got more"):
        load_settings(tmp_path / "large.yaml")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there is no such device here")
def test_a_device_without_an_end_is_no_file_of_settings():
    with pytest.raises(SettingsError, match="/dev/zero: must be at most 1,000,000 bytes, got more"):
        parse("--config=/dev/zero")


def test_whole_numbers_as_people_write_them(file):
    """Kind: what is a number to everyone but YAML 1.1."""
    assert parse("--ppo.timesteps=1e6").ppo.timesteps == 10**6
    assert load_settings(file("ppo: {timesteps: 2.5e6, learning_rate: 1e-4}")).ppo.timesteps == 2_500_000
    assert type(parse("--ppo.timesteps=1e6").ppo.timesteps) is int
    assert parse("--env.kwargs={a: 1e6}").env.kwargs == {"a": 1e6}
    with pytest.raises(SettingsError, match=r"ppo\.timesteps must be a whole number, got 1e-06"):
        parse("--ppo.timesteps=1e-6")


def test_paths_are_expanded(file, monkeypatch, tmp_path):
    """Kind: a folder that is called ~, or $HOME."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert load_settings(file("run: {folder: ~/runs}")).run.folder == f"{tmp_path}/runs"
    assert load_settings(file("run: {folder: $HOME/$WHERE}")).run.folder == f"{tmp_path}/here"
    assert parse("--run.folder=${HOME}/a").run.folder == f"{tmp_path}/a"
    with pytest.raises(SettingsError, match=r"run\.folder must name .* variables that there are, got \$NOWHERE/a"):
        parse("--run.folder=$NOWHERE/a")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/tmp/x", "..", ".", "", " ", "a\0b", "a\nb", "a\x1b[31mb"])
def test_names_that_are_no_folder_inside(name):
    with pytest.raises(SettingsError, match=r"run\.name must be "):
        check(Settings(run=RunSettings(name=name)))


def test_names_on_windows(monkeypatch):
    check(Settings(run=RunSettings(name="x: y")))
    monkeypatch.setattr("experiment.rules.WINDOWS", True)
    with pytest.raises(SettingsError, match="characters that Windows forbids in a name, got x: y"):
        check(Settings(run=RunSettings(name="x: y")))


@pytest.mark.parametrize("device", ["meta", "cpu:7", "cuda:-1", "cuda:x", "", "auto:1", "CPU"])
def test_devices_that_are_none(device):
    with pytest.raises(SettingsError, match=r"^--device must be auto, cpu, cuda, cuda:1, \.\.\., got "):
        check_device("--device", device)


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [
        ("run.seed", 2**32, "2,147,483,647"),
        ("env.n_envs", 10**11, "100,000"),
        ("core.d_model", 10**11, "100,000"),
        ("core.window", 10**11, "1,000,000"),
        ("run.threads", 10**8, "1,000"),
        ("ppo.timesteps", 10**18, "1,000,000,000,000"),
        ("ppo.clip_range", 1e30, "1,000"),
        ("ppo.ent_coef", 1e30, "1,000,000"),
    ],
)
def test_numbers_beyond_every_machine(name, value, most):
    with pytest.raises(SettingsError, match=f"^{name} must be at most {most}, got "):
        parse(f"--{name}={value}")


def test_settings_made_in_python_are_held_against_their_types():
    settings = Settings()
    settings.ppo.gamma = "high"
    with pytest.raises(SettingsError, match=r"^ppo\.gamma must be a number, got high$"):
        check(settings)
