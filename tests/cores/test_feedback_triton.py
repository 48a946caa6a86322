"""The law for the Triton kernels: in Triton's interpreter where there is no GPU, compiled where there is one."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fbrl.memory import Memory
from tests.cores import cases
from tests.cores.cases import (
    MEMORIES,
    SIZES,
    STARTS,
    D,
    F,
    H,
    L,
    assert_law,
    make_input,
    make_memory,
    make_starts,
    results,
)

pytest.importorskip("triton", reason="needs pip install fbrl[triton]")

from fbrl.cores import feedback_triton
from fbrl.cores.feedback_scan import FastFeedbackTransformer
from fbrl.cores.feedback_triton import Sizes

ROOT = Path(__file__).parents[2]
DEVICE = "cpu" if feedback_triton.INTERPRETED else "cuda"
if DEVICE == "cuda":
    pytestmark = [
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="neither a CUDA device nor TRITON_INTERPRET=1"),
    ]


def make_cores(window, dtype=torch.float64, seed=0, **kwargs):
    """The plain form on the CPU, and the kernels' with the same parameters."""
    plain, _ = cases.make_cores(window, dtype, seed, **kwargs)
    sizes = {"d_model": D, "n_layers": L, "n_heads": H, "window": window, "d_feedforward": F} | kwargs
    ours = FastFeedbackTransformer(**sizes).to(dtype)
    ours.form = "triton"
    ours.load_state_dict(plain.state_dict())
    return plain, ours.to(DEVICE)


def all_cases(steps, window):
    """Every episode start with every memory, as so many sequences of one call."""
    pairs = list(itertools.product(STARTS, MEMORIES))
    x = torch.cat([make_input(steps, seed=10 + seed) for seed in range(len(pairs))])
    memories = [make_memory(memory, window) for _, memory in pairs]
    memory = Memory(*(torch.cat(parts) for parts in zip(*memories, strict=True)))
    return x, memory, torch.cat([make_starts(start, steps) for start, _ in pairs])


def on_device(x, memory, episode_start):
    return x.to(DEVICE), Memory(*(part.to(DEVICE) for part in memory)), episode_start.to(DEVICE)


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] if size == "T > M" else []) for size in SIZES]
)
def test_law_in_double_precision(monkeypatch, size):
    """In blocks of sequences of which the last is not full."""
    monkeypatch.setattr(feedback_triton, "_block", lambda x: 8)
    steps, window = SIZES[size]
    plain, ours = make_cores(window)
    case = all_cases(steps, window)
    assert len(case[0]) % Sizes.of(D, H, window, F, 8).BLOCK
    assert_law(results(ours, *case), results(plain, *case))


@pytest.mark.slow
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("episode_start", STARTS)
@pytest.mark.parametrize("size", SIZES)
def test_law_case_by_case(size, episode_start, memory):
    steps, window = SIZES[size]
    plain, ours = make_cores(window)
    case = make_input(steps), make_memory(memory, window), make_starts(episode_start, steps)
    assert_law(results(ours, *case), results(plain, *case))


@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layers": 1, "n_heads": 1},  # a head that is wider than a power of two
        {"n_layers": 3, "window": 1},
        pytest.param({"n_heads": 33}, marks=pytest.mark.slow),
        {"d_model": 16, "n_heads": 1, "d_feedforward": 32, "window": 4},  # nothing to round up
    ],
)
def test_law_at_other_sizes(sizes):
    sizes = dict(sizes)
    window = sizes.pop("window", 2)
    plain, ours = make_cores(window, **sizes)
    d_model = sizes.get("d_model", D)
    case = make_input(3, d_model), make_memory("half", window, d_model), make_starts("middle", 3)
    assert_law(results(ours, *case), results(plain, *case))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["T < M", "T > M"])
def test_law_in_single_precision(size):
    """As ``test_feedback_scan.test_law_in_single_precision``."""
    steps, window = SIZES[size]
    errors = {}
    for seed, (episode_start, memory) in enumerate(itertools.product(STARTS, MEMORIES)):
        case = make_input(steps, seed=seed), make_memory(memory, window), make_starts(episode_start, steps)
        exact = results(make_cores(window, seed=seed)[0], *case)
        for form, core in zip(("plain", "ours"), make_cores(window, torch.float32, seed), strict=True):
            for name, tensor in results(core, *case).items():
                of_name = errors.setdefault(name, {"plain": 0.0, "ours": 0.0})
                of_name[form] += (tensor.double() - exact[name]).square().sum().item()
    assert {name: of for name, of in errors.items() if of["ours"] > 2**2 * of["plain"]} == {}


def test_it_is_the_kernels_that_run(monkeypatch):
    """And no other form, whatever is installed."""
    called, launch = [], feedback_triton._launch
    monkeypatch.setattr(
        feedback_triton, "_launch", lambda kernel, *rest, **more: called.append(kernel) or launch(kernel, *rest, **more)
    )
    results(make_cores(2)[1], make_input(3), make_memory("half", 2), make_starts("middle", 3))
    assert called == [feedback_triton.kernels.forward, feedback_triton.kernels.backward]


def test_without_a_backward():
    """The tape then has room for one step only, and what comes out is the same."""
    _, ours = make_cores(2)
    case = on_device(make_input(5), make_memory("half", 2), make_starts("middle", 5))
    with_grad, with_memory = ours(*case)
    with torch.no_grad():
        without, memory = ours(*case)
    # another compilation: it may round otherwise
    torch.testing.assert_close(with_grad, without, rtol=0, atol=1e-12)
    torch.testing.assert_close(with_memory.slots, memory.slots, rtol=0, atol=1e-12)
    assert with_grad.requires_grad
    assert not without.requires_grad


def test_backward_twice_and_of_one_result():
    _, ours = make_cores(2)
    x, memory, starts = on_device(make_input(3), make_memory("half", 2), make_starts("none", 3))
    features, final = ours(x.requires_grad_(), memory, starts)
    both = (features.square().sum(), final.slots.square().sum())
    apart = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in both]
    (together,) = torch.autograd.grad(sum(both), x)
    torch.testing.assert_close(apart[0] + apart[1], together, rtol=0, atol=1e-12)


def test_sizes():
    assert Sizes.of(64, 4, 32, 128) == Sizes(M=32, H=4, D=64, E=16, F=128, WIDTH=64, SLOTS=32, BLOCK=16)
    assert Sizes.of(33, 3, 5, 13) == Sizes(M=5, H=3, D=64, E=16, F=16, WIDTH=33, SLOTS=8, BLOCK=16)
    assert Sizes.of(256, 4, 128, 512).BLOCK == 1
    assert Sizes.of(64, 4, 32, 128, 1).warps == 2
    assert Sizes.of(256, 4, 128, 512).warps == 8


def test_a_program_takes_more_sequences_once_all_processors_have_some(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=10))
    batches = [SimpleNamespace(is_cuda=True, device=None, shape=(5, n, 7)) for n in (1, 20, 21, 90, 5000)]
    assert [feedback_triton._block(x) for x in batches] == [1, 1, 2, 8, 16]


def test_triton_is_tried_out():
    x = torch.zeros(1, device=DEVICE)
    feedback_triton.try_out(x.device)


COMPILE = """
import os, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from fbrl.cores import feedback_triton, triton_kernels as kernels

sizes = feedback_triton.Sizes.of(*map(int, sys.argv[1:]))
groups = {"tape": kernels.Tape, "slope": kernels.Slope, "weights": kernels.Weights}
for kernel, constants in ((kernels.forward, {"SAVES": True}), (kernels.backward, {})):
    constants = sizes._asdict() | constants
    signature = {}
    for name in kernel.arg_names:
        group, one = groups.get(name), "i32" if name in ("B", "T", "L") else "*fp32"
        signature[name] = group(*[one] * len(group._fields)) if group else "constexpr" if name in constants else one
    for arch in (80, 90):
        options = {"num_warps": sizes.warps}
        made = triton.compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", arch, 32), options)
        print(arch, f".target sm_{arch}" in made.asm["ptx"], made.metadata.shared, len(made.asm["cubin"]))
"""


@pytest.mark.parametrize(
    "size",
    [
        (64, 4, 32, 128),  # configs/memory_s7_view3.yaml
        pytest.param((256, 8, 128, 512), marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_gpu(size, tmp_path):
    """To machine code, in no more shared memory than such a GPU gives a block; it takes seconds."""
    environment = os.environ | {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-c", COMPILE, *map(str, size)]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [(int(arch), named) for arch, named, *_ in lines] == 2 * [(80, "True"), (90, "True")]
    for arch, _, shared, machine_code in lines:
        assert int(machine_code) > 10_000
        assert int(shared) <= {"80": 163, "90": 227}[arch] * 1024
