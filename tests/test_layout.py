"""The map in CONTRIBUTING.md lists the packages and top-level modules that exist, in the order of the import layers."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "peftprune"


def mapped() -> list[str]:
    """Returns the paths of the map, relative to the package: `cli`, `report/html`, `files.py`."""
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    block = guide.split("```\npeftprune/\n")[1].split("```")[0]
    paths: list[str] = []
    for indent, name in re.findall(r"^( +)(\S+)", block, re.MULTILINE):
        parent = next(p for p in reversed(paths) if "/" not in p) + "/" if len(indent) > 2 else ""
        paths.append(parent + name.removesuffix("/"))
    return paths


def existing() -> list[str]:
    """Returns all packages, and the modules at the top, as the map names them."""
    packages = [init.parent.relative_to(PACKAGE).as_posix() for init in PACKAGE.glob("*/**/__init__.py")]
    return packages + [path.name for path in PACKAGE.glob("*.py")]


def test_the_map_lists_what_exists() -> None:
    assert sorted(mapped()) == sorted(existing())


def test_the_map_is_in_the_order_of_the_import_layers() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    names = [path.removesuffix(".py") for path in mapped() if "/" not in path and path != "__init__.py"]
    assert names == [name.strip() for layer in layers for name in layer.split("|")]


def test_the_top_of_the_package_stays_small() -> None:
    top = [path for path in existing() if "/" not in path]
    assert sum(path.endswith(".py") for path in top) <= 5, "put the module into a package"
    assert sum(not path.endswith(".py") for path in top) <= 14, "put the package into another one"
