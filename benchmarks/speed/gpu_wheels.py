"""Fetches what ``make gpu`` needs on a GPU's machine that has Python and torch, and no network.

    python -m benchmarks.speed.gpu_wheels --python 3.12 [--folder .gpu/wheels] [--without scipy --without numpy]

The packages are those that training, evaluating, the benchmarks and pytest need, in the versions of constraints.txt,
for Linux on x86-64 and the Python of that machine. What torch itself needs comes with torch. ``--without`` names what
that machine has, too. The folder is emptied first; its size is printed.
"""

from __future__ import annotations

import argparse
import configparser
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.report import ROOT

ROOTS = ("fbrl[train]", "sb3-contrib", "pytest", "pytest-xdist")
BESIDE = ("einops", "feedback-transformer-pytorch")  # what the scan is compared with; needs no more than torch
FOR_CPUS = ("numba",)  # what compiles the scan for one
# of tensorboard's needs those of its server, which shows what a run has logged
SERVER = ("grpcio", "tensorboard-data-server", "werkzeug", "markdown", "markupsafe")
TAGS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")  # of manylinux; pip takes each by its name only


def needs(root: str, python: str) -> Iterator[str]:
    """The packages that one needs directly, as installed here, under that Python on Linux."""
    requirement = Requirement(root)
    for line in own_needs() if requirement.name == "fbrl" else metadata.requires(requirement.name) or []:
        needed = Requirement(line)
        environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        environment |= {"platform_system": "Linux", "platform_machine": "x86_64"}
        extras = requirement.extras or {""}
        if needed.marker is None or any(needed.marker.evaluate(environment | {"extra": extra}) for extra in extras):
            yield f"{needed.name}[{','.join(sorted(needed.extras))}]" if needed.extras else needed.name


def own_needs() -> list[str]:
    """Those of this repository as setup.cfg has them now, whenever it was installed."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    found = [(line, "") for line in config["options"]["install_requires"].splitlines()]
    for extra, lines in config["options.extras_require"].items():
        found += [(line, extra) for line in lines.splitlines()]
    plain = [(line, extra) for line, extra in found if line.strip() and ";" not in line]
    return [f'{line}; extra == "{extra}"' if extra else line for line, extra in plain]


def closure(roots: Collection[str], python: str, without: Collection[str] = ()) -> set[str]:
    """All that is needed, directly or not, the roots included; nothing of ``without``, nor what only they need."""
    left_out, seen, waiting = {canonicalize_name(name) for name in without}, set(), list(roots)
    while waiting:
        wanted = waiting.pop()
        if wanted not in seen and canonicalize_name(Requirement(wanted).name) not in left_out:
            seen.add(wanted)
            waiting += needs(wanted, python)
    return {str(canonicalize_name(Requirement(wanted).name)) for wanted in seen}


def tested() -> dict[str, str]:
    """The versions of constraints.txt by name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {str(canonicalize_name(name)): version for name, version in pairs}


def wheels(python: str, without: Collection[str]) -> list[str]:
    """What to fetch, as pip takes it."""
    of_torch, versions = closure(["torch"], python), tested()
    names = closure(ROOTS, python, {*of_torch, *without, *SERVER, *FOR_CPUS}) | set(BESIDE)
    return [f"{name}=={versions[name]}" for name in sorted(names - {"fbrl"} - set(without))]


def main() -> None:
    """Fetches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="of the GPU's machine, such as 3.12")
    parser.add_argument("--folder", type=Path, default=ROOT / ".gpu/wheels", help="(default: .gpu/wheels)")
    parser.add_argument("--without", action="append", default=[], help="a package that is there; may be repeated")
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    target = ["--only-binary=:all:", "--no-deps", "--implementation", "cp", "--python-version", options.python]
    target += [word for tag in TAGS for word in ("--platform", f"manylinux_{tag}_x86_64")]
    target += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *target, "--dest", str(options.folder)]
    found = subprocess.run([*command, *wheels(options.python, options.without)], check=False)
    if found.returncode:
        raise SystemExit(found.returncode)
    sizes = {file.name: file.stat().st_size for file in options.folder.iterdir()}
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]:
        print(f"{sizes[name] / 2**20:6.1f} MiB  {name}")
    print(f"{options.folder}: {len(sizes)} wheels, {sum(sizes.values()) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
