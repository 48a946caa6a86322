"""``make``: any registered environment, ready for Stable-Baselines3; and the ids that this package adds."""

from __future__ import annotations

import copy
import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401  (registers the MiniGrid and BabyAI ids)
from gymnasium.envs.registration import EnvSpec, WrapperSpec
from minigrid.minigrid_env import MiniGridEnv

from envs.previous import PreviousStep
from envs.seeding import SeededFirstReset
from fbrl.symbolic import Success, SymbolicObservation, is_symbolic

SYMBOLIC = WrapperSpec("SymbolicObservation", "fbrl.symbolic:SymbolicObservation", kwargs={})
EXAMPLE = "minigrid.wrappers.FullyObsWrapper"


class UnknownEnvironmentError(ValueError):
    """The environment id is not registered; the message names the closest ids that are."""


def make(
    env_id: str,
    *,
    seed: int | None = None,
    render_mode: str | None = None,
    previous_action: bool = False,
    previous_reward: bool = False,
    wrappers: Sequence[str | Mapping[str, Mapping[str, Any]]] = (),
    **kwargs: Any,
) -> gym.Env[Any, Any]:
    """An environment that Stable-Baselines3 takes as it is.

    MiniGrid and BabyAI environments are wrapped in ``SymbolicObservation`` and report ``info["is_success"]`` on the
    last step of every episode; any other registered id comes as it was registered, and reports what it reports.

    Ids that start with "popgym-" are POPGym's, which is imported for them. Its tasks report no success: their returns,
    which it scales to -1..1, are what is compared. Where their observation is a tuple, which Stable-Baselines3 does not
    take, it is flattened by Gymnasium's ``FlattenObservation``.

    ``seed`` seeds the action space, and the first reset if that comes without a seed of its own.
    ``previous_action`` and ``previous_reward`` add the last step's to the observation (``PreviousStep``).
    ``wrappers`` are import paths, such as "minigrid.wrappers.FullyObsWrapper", of what is put around the environment,
    the first one innermost, or a mapping of one such path to its keyword arguments. MiniGrid's observation is made
    symbolic behind them, where it still is symbols (see ``fbrl.shown``), and success is that of the task itself,
    whatever they do to rewards.
    ``kwargs`` go to ``gymnasium.make``, for example ``agent_view_size=3`` or ``corridor=20``.

    Raises ``UnknownEnvironmentError`` when no environment has this id, ``ModuleNotFoundError`` for POPGym's where that
    is not installed, and ``ValueError`` for a wrapper that is not found or shows what nothing here reads.
    """
    if env_id.startswith("popgym-"):
        _register_popgym()
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    env = _registered(env_id, raw=bool(wrappers), **kwargs)
    is_minigrid = isinstance(env.unwrapped, MiniGridEnv)
    if wrappers and is_minigrid:
        env = Success(env)
    for wrapper in wrappers:
        env = wrapped(env, wrapper)
    if is_minigrid and not is_symbolic(env):
        env = SymbolicObservation(env)
    if env_id.startswith("popgym-") and isinstance(env.observation_space, gym.spaces.Tuple):
        env = gym.wrappers.FlattenObservation(env)
    if previous_action or previous_reward:
        env = PreviousStep(env, action=previous_action, reward=previous_reward)
    if seed is not None:
        env = SeededFirstReset(env, seed)
    return env


def _registered(env_id: str, raw: bool, **kwargs: Any) -> gym.Env[Any, Any]:
    """What Gymnasium makes of the id; ``raw``: without the ``SymbolicObservation`` that our own ids come with."""
    spec: str | EnvSpec = env_id
    if raw and env_id in gym.registry:
        spec = copy.deepcopy(gym.registry[env_id])
        spec.additional_wrappers = tuple(one for one in spec.additional_wrappers if one != SYMBOLIC)
    try:
        return gym.make(spec, disable_env_checker=True, **kwargs)
    except (gym.error.UnregisteredEnv, gym.error.DeprecatedEnv) as error:
        raise UnknownEnvironmentError(_unknown(env_id, error)) from None
    except gym.error.Error as error:
        if type(error) is gym.error.Error and str(error).startswith("Malformed environment ID"):
            raise UnknownEnvironmentError(_unknown(env_id, error)) from None
        raise


def wrapped(env: gym.Env[Any, Any], wrapper: str | Mapping[str, Mapping[str, Any]]) -> gym.Env[Any, Any]:
    """``env`` in the wrapper with this import path, or this one and keyword arguments; raises ValueError as ``make``.

    What the wrapper itself raises where it does not fit comes as ValueError.
    """
    path, kwargs = (wrapper, {}) if isinstance(wrapper, str) else next(iter(wrapper.items()))
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"wrappers must be import paths such as {EXAMPLE}, got {path!r}: {error}") from None
    if not (isinstance(kind, type) and issubclass(kind, gym.Wrapper)):
        raise ValueError(f"wrappers must be Gymnasium wrappers such as {EXAMPLE}, got {path!r}")
    try:
        made: gym.Env[Any, Any] = kind(env, **kwargs)
    except (TypeError, AttributeError, KeyError, AssertionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be put around {env.unwrapped} with {dict(kwargs)}: {reason}") from error
    return made


def register_tasks() -> None:
    """Registers this package's ids with Gymnasium; a second call changes nothing.

    Once ``envs`` is imported, ``gymnasium.make`` and Stable-Baselines3's ``make_vec_env`` make of them what ``make``
    does: MiniGrid's tasks among them come in a ``SymbolicObservation``.

    ``fbrl/MemoryS{7, 9, 11, 13, 21, 33}-View3-v0`` are MiniGrid's Memory tasks of these sizes with a view of 3x3 cells,
    and ``fbrl/MemoryS21-v0`` is one with MiniGrid's own view of 7x7; all else is as MiniGrid registers its sizes: seven
    actions and a cap of 5 size^2 steps. An agent plays every size whose view has the size of its own. With the view of
    7x7 cells, S7 and S9 are solvable without memory: from the junction, looking back, the cue and both choices are in
    one observation, and the best success without memory is, to four digits, .9764 and .9845.

    The best that there is, exactly, over the 4 (size - 3) start states: success is 1 with memory (look at the cue, walk
    to the junction, turn to its like) and 1/2 without (walk on and guess), and the returns are

    ==================  =====  =====  =====  =====  =====  =====
    size                   7      9     11     13     21     33
    ==================  =====  =====  =====  =====  =====  =====
    memory, 3x3 view    .9697  .9748  .9786  .9815  .9880  .9922
    memory, 7x7 view                  .9859  .9875  .9909
    no memory, either   .4917  .4939  .4952  .4960  .4977  .4986
    ==================  =====  =====  =====  =====  =====  =====

    ``MiniGrid-MemoryS13Random-v0`` and ``S17Random`` have hallways of 7 and 11 lengths, of which the three shortest
    show the cue from the junction: without memory the best success is, to four digits, .7107 and .6349 (5/7 and 7/11
    if there were no cap). With memory it is 1, and the return between .9907 and .9909, and .9932 to four digits.

    ``MiniGrid-DoorKey-8x8-v0`` and ``MiniGrid-RedBlueDoors-6x6-v0`` are here to see that memory does no harm. A plan
    with full knowledge succeeds always, with returns of .9767 and .9839 on average; what an agent can reach that has to
    look first is not known. Scripted policies without memory succeed in 200 and 184 of 200 levels.

    ``fbrl/MazeNavigation-v0`` is ``envs.maze.MazeNavigation``; its keywords are ``size`` and ``visits``.

    ``fbrl/TMaze-v0`` and ``fbrl/ActiveTMaze-v0`` are in ``envs.tmaze``, ``fbrl/EndlessTMaze-v0`` in
    ``envs.endless_tmaze``; ``fbrl/HiddenAutomaton-v0``,
    ``fbrl/GridWalk-v0``, ``fbrl/Counting-v0`` and ``fbrl/WaterMaze-v0`` in files of their names. Their keywords are
    those of the tasks.
    """
    for size in (7, 9, 11, 13, 21, 33):
        _register(f"fbrl/MemoryS{size}-View3-v0", "minigrid.envs:MemoryEnv", True, size=size, agent_view_size=3)
    _register("fbrl/TMaze-v0", "envs.tmaze:TMazeEnv")
    _register("fbrl/ActiveTMaze-v0", "envs.tmaze:ActiveTMazeEnv")
    _register("fbrl/EndlessTMaze-v0", "envs.endless_tmaze:EndlessTMazeEnv")
    _register("fbrl/HiddenAutomaton-v0", "envs.hidden_automaton:HiddenAutomatonEnv")
    _register("fbrl/GridWalk-v0", "envs.grid_walk:GridWalkEnv")
    _register("fbrl/WaterMaze-v0", "envs.water_maze:WaterMazeEnv")
    _register("fbrl/Counting-v0", "envs.counting:CountingEnv")
    _register("fbrl/MemoryS21-v0", "minigrid.envs:MemoryEnv", True, size=21)
    _register("fbrl/MazeNavigation-v0", "envs.maze:MazeNavigation", True)


def _register(env_id: str, entry_point: str, symbolic: bool = False, **kwargs: Any) -> None:
    if env_id not in gym.registry:
        wrappers = (SYMBOLIC,) if symbolic else ()
        gym.register(
            env_id,
            entry_point,
            order_enforce=False,
            disable_env_checker=True,
            additional_wrappers=wrappers,
            kwargs=kwargs,
        )


def _register_popgym() -> None:
    try:
        import popgym  # noqa: F401  (registers its ids)
    except ModuleNotFoundError as error:
        if error.name != "popgym":
            raise
        raise ModuleNotFoundError("POPGym is not installed: pip install fbrl[popgym]", name="popgym") from None


def _unknown(env_id: str, error: gym.error.Error) -> str:
    """What to say of the id: Gymnasium's own advice where it has any, and the ids that are spelt like it."""
    if isinstance(error, gym.error.NamespaceNotFound | gym.error.VersionNotFound | gym.error.DeprecatedEnv):
        advice = ": " + " ".join(str(error).split())
    else:
        advice = ""
    # the package of a namespace registers its ids when it is imported: another package's are no help
    cutoff = 0.8 if isinstance(error, gym.error.NamespaceNotFound) else 0.4
    by_lower_case = {known.lower(): known for known in gym.registry}
    closest = difflib.get_close_matches(env_id.lower(), by_lower_case, n=3, cutoff=cutoff)
    if closest:
        advice += "; the closest are: " + ", ".join(by_lower_case[name] for name in closest)
    elif isinstance(error, gym.error.NamespaceNotFound):
        advice += f" Where it registers its ids on import, name its module too: module:{env_id}"
    return f"no environment is called {env_id!r}{advice}"
