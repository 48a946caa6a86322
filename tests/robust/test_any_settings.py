"""Whatever a settings file or a command line says: settings, or one line that names what is wrong; nothing is made."""

import dataclasses
import math

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiment.parsing import HINTS, OneLineParser, add_settings, load_settings, settings_from, to_settings
from experiment.settings import GROUPS, Settings, SettingsError
from experiment.typed import is_optional

NAMES = sorted(HINTS)
WRONG = {
    "null": None,
    "true": True,
    "text": "many words",
    "empty": "",
    "list": [1, "a", None],
    "mapping": {"class_path": "os.system", "init_args": {"command": "true"}},
    "zero": 0,
    "negative": -1,
    "huge": 10**11,
    "beyond": 10**400,
    "tiny": 5e-324,
    "infinite": math.inf,
    "negative infinite": -math.inf,
    "nan": math.nan,
    "almost whole": 1.5,
}


def outcome(make):
    """The settings, or None where they are refused; anything else that is raised fails the test."""
    try:
        return make()
    except SettingsError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    return None


def by_argument(name, text):
    parser = OneLineParser()
    add_settings(parser)
    return to_settings(parser.parse_args([f"--{name}={text}"]))


def by_file(folder, name, value):
    group, _, key = name.partition(".")
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump({group: {key: value}}))
    return load_settings(file)


def assert_typed(found):
    for group, kind in GROUPS.items():
        for field in dataclasses.fields(kind):
            value = getattr(getattr(found, group), field.name)
            assert value is not None or is_optional(HINTS[f"{group}.{field.name}"])
            assert not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", NAMES)
def test_every_setting_with_every_wrong_value(tmp_path, name, wrong):
    value = WRONG[wrong]
    group, _, key = name.partition(".")
    for make in (
        lambda: by_file(tmp_path, name, value),
        lambda: by_argument(name, yaml.safe_dump(value).removesuffix("...\n").strip()),
        lambda: settings_from({group: {key: value}}),
    ):
        found = outcome(make)
        if found is not None:
            assert_typed(found)
    refused = outcome(lambda: settings_from({group: {key: value}})) is None
    if value is None:
        assert refused != is_optional(HINTS[name])
    elif not isinstance(value, (str, list, dict, bool)) and not isinstance(value, int):
        assert refused or math.isfinite(value)
    assert {path.name for path in tmp_path.iterdir()} == {"settings.yaml"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(NAMES), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), value=ANYTHING)
def test_any_value_of_any_setting(name, value):
    group, _, key = name.partition(".")
    found = outcome(lambda: settings_from({group: {key: value}}))
    if found is not None:
        assert_typed(found)
        assert settings_from(dataclasses.asdict(found)) == found


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(groups=st.dictionaries(st.sampled_from([*GROUPS, "envs", ""]), ANYTHING, max_size=4))
def test_any_groups(groups):
    outcome(lambda: settings_from(groups))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(NAMES), text=st.text(max_size=40))
def test_any_text_on_the_command_line(name, text):
    found = outcome(lambda: by_argument(name, text))
    if found is not None:
        assert_typed(found)


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=200) | st.binary(max_size=200))
def test_any_file(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "settings.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    outcome(lambda: load_settings(file))


def test_the_defaults_are_settings():
    assert settings_from(dataclasses.asdict(Settings())) == Settings()
