"""Imports go downwards only, and each layer leaves alone what is not its business."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, World

PACKAGE = "masterslave"

LAYERS = {
    0: "errors units settings records hooks entries chaos",
    1: "queue states holdings leases earlier notes lines liveness pace payload pieces "
    "unpicklable proofs diagnosis dispatch disturbance lifetime flights roster stragglers "
    "scheduler attempts clients versions sharing pairing scaling",
    2: "manager attendance intake handout settling shortcuts overview desk room outbox waiters "
    "interrupts watchdog journal ledger stores.*",
    3: "engines folder.* transports.* launchers.* naming keyfile pipe slavecode tables memory "
    "shared lending globalstate functions connectionfile board calls identities runfolder "
    "packing claim shortcut listener stream offers daskfutures",
    4: "guest submitter pump worker workerprocess uplink supervisor slave slaverun master service "
    "executorservice folderservice lanes attached attachment ways arrivals callcore executor "
    "client",
    5: "jobs cli arguments starting stopping allocation commands.* __init__ __main__",
}

#: Threads, sockets, files, processes and clocks: nothing for values and pure logic.
IMPURE = """
    _thread asyncio calendar concurrent contextvars ctypes datetime fcntl fileinput glob
    http logging mmap multiprocessing os pathlib platform queue random sched secrets select
    selectors shelve shutil signal smtplib socket socketserver sqlite3 ssl subprocess tempfile
    threading time uuid urllib xmlrpc
"""
ALLOWED = {
    "disturbance": {"random"},  # seeded
    "settings": {"os", "pathlib", "time"},  # reads the environment, where an end is in Unix time
    "records": {"os", "platform"},  # getMachineInfo
}

#: The only modules that know Pyro5.
PYRO = {"transports.pyro", "transports.sockets", "transports.nameserver"}

#: The task manager moves bytes: it must not be able to look into them.
UNPICKLING = {"payload", "pickle", "_pickle", "cloudpickle", "marshal", "shelve", "dill"}


class Module:
    """One source file and what it imports."""

    def __init__(self, root: Path, path: Path) -> None:
        self.name = ".".join(path.relative_to(root).with_suffix("").parts)
        self.package = self.name.rpartition(".")[0]
        self.tree = ast.parse(path.read_text(encoding="utf-8"), str(path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """Line and full name of each import, in functions too, unless for the type checker."""
        for node in _walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = [PACKAGE, *self.package.split(".")] if self.package else [PACKAGE]
                    above = parts[: len(parts) - node.level + 1]
                    base = ".".join([*above, *filter(None, [base])])
                yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Call) and _name(node.func) in ("import_module", "__import__"):
                constants = [one.value for one in node.args if isinstance(one, ast.Constant)]
                yield from ((node.lineno, str(name)) for name in constants[:1])


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    children: list[ast.AST] = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and _name(node.test) == "TYPE_CHECKING":
        children = list(node.orelse)
    for child in children:
        yield from _walk(child)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


class Tree:
    """All modules below one folder that plays the package."""

    def __init__(self, root: Path) -> None:
        paths = [path for path in sorted(root.rglob("*.py")) if "__pycache__" not in path.parts]
        self.modules = [Module(root, path) for path in paths]
        self.names = {module.name for module in self.modules}

    def own(self, imported: str) -> str | None:
        """The module of the package that an import reaches; None for one of somebody else's."""
        if imported != PACKAGE and not imported.startswith(PACKAGE + "."):
            return None
        name = imported[len(PACKAGE) + 1 :]
        while name:
            for candidate in (name, f"{name}.__init__"):
                if candidate in self.names:
                    return candidate
            name = name.rpartition(".")[0]
        return "__init__"

    def imports(self) -> Iterator[tuple[Module, int, str]]:
        for module in self.modules:
            for line, imported in module.imports():
                yield module, line, imported

    # Each of these gives the violations of one rule, as file, line and what is wrong.

    def without_a_layer(self) -> list[str]:
        return [module.name for module in self.modules if layer(module.name) is None]

    def upward(self) -> list[str]:
        found = []
        for module, line, imported in self.imports():
            reached = self.own(imported)
            if reached is not None and (layer(reached) or 0) > (layer(module.name) or 0):
                found.append(f"{module.name}:{line} imports {imported}")
        return found

    def impure(self) -> list[str]:
        return [
            f"{module.name}:{line} imports {imported}"
            for module, line, imported in self.imports()
            if layer(module.name) in (0, 1)
            and imported.partition(".")[0] in set(IMPURE.split()) - ALLOWED.get(module.name, set())
        ]

    def pyro(self) -> list[str]:
        return [
            f"{module.name}:{line} imports {imported}"
            for module, line, imported in self.imports()
            if imported.partition(".")[0] == "Pyro5" and module.name not in PYRO
        ]

    def unpickling(self) -> list[str]:
        return [
            f"{module.name}:{line} imports {imported}"
            for module, line, imported in self.imports()
            if layer(module.name) == 2
            and (self.own(imported) or imported.partition(".")[0]) in UNPICKLING
        ]


def layer(name: str) -> int | None:
    for number, names in LAYERS.items():
        if name in names.split() or f"{name.partition('.')[0]}.*" in names.split():
            return number
    return None


@pytest.fixture(scope="module")
def tree() -> Tree:
    return Tree(ROOT / PACKAGE)


def test_every_module_has_a_layer(tree: Tree) -> None:
    assert tree.without_a_layer() == []


def test_the_map_names_no_module_that_is_not_there(tree: Tree) -> None:
    families = {f"{name.partition('.')[0]}.*" for name in tree.names if "." in name}
    mapped = [name for names in LAYERS.values() for name in names.split()]
    assert sorted(mapped) == sorted({name for name in tree.names if "." not in name} | families)


def test_imports_go_downwards_only(tree: Tree) -> None:
    assert tree.upward() == []


def test_values_and_pure_logic_know_no_threads_sockets_files_or_clocks(tree: Tree) -> None:
    assert tree.impure() == []


def test_pyro_is_imported_in_one_module_only(tree: Tree) -> None:
    assert tree.pyro() == []


def test_the_task_manager_cannot_unpickle(tree: Tree) -> None:
    assert tree.unpickling() == []


def test_no_third_party_module_is_imported_below_the_edges_but_two(tree: Tree) -> None:
    third_party = {
        (module.name, imported.partition(".")[0])
        for module, _, imported in tree.imports()
        if (layer(module.name) or 0) < 3
        and tree.own(imported) is None
        and imported.partition(".")[0] not in sys.stdlib_module_names
    }
    assert third_party == {
        ("payload", "cloudpickle"),
        ("stores.frames", "msgpack"),
        ("stores.journalfile", "msgpack"),
        ("stores.rows", "msgpack"),
        ("stores.pages", "msgpack"),
    }


@pytest.mark.parametrize("module", ["worker", "slave", "jobs", "manager", "master"])
def test_pyro_is_not_loaded_before_it_is_needed(world: World, module: str) -> None:
    """Worker processes start quickly, and a master in one process needs no network."""
    text = f"import sys, {PACKAGE}.{module}; print([m for m in sys.modules if 'Pyro' in m])"
    assert world.start("-c", text).finish() == "[]\n"


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("queue", "from masterslave.manager import TaskManager", "upward"),
        ("queue", "from masterslave import manager", "upward"),
        ("queue", "import masterslave.manager", "upward"),
        ("queue", "from .manager import TaskManager", "upward"),
        ("queue", "def f():\n    from . import manager", "upward"),
        ("queue", "import importlib\nimportlib.import_module('masterslave.manager')", "upward"),
        ("queue", "from masterslave import runJob", "upward"),
        ("errors", "from masterslave import queue", "upward"),
        ("transports.base", "from ..worker import serve", "upward"),
        ("transports.base", "from .. import jobs", "upward"),
        ("waiters", "from masterslave.transports.pyro import PyroServer", "upward"),
        ("queue", "import time", "impure"),
        ("records", "if True:\n    from socket import socket", "impure"),
        ("settings", "class A:\n    import concurrent.futures", "impure"),
        ("naming", "import Pyro5.core", "pyro"),
        ("transports.memory", "def f():\n    from Pyro5 import config", "pyro"),
        ("manager", "from masterslave.payload import Codec", "unpickling"),
        ("watchdog", "def f():\n    import pickle", "unpickling"),
        ("extra", "", "without_a_layer"),
        ("extras.part", "", "without_a_layer"),
    ],
)
def test_each_violation_would_be_found(tmp_path: Path, name: str, text: str, rule: str) -> None:
    rules = ["without_a_layer", "upward", "impure", "pyro", "unpickling"]
    clean = ["__init__", "errors", "queue", "manager", "worker", "jobs", "payload"]
    for module in [*clean, "transports.__init__", "transports.pyro", name]:
        path = tmp_path / Path(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(text) if module == name else "")
    tree = Tree(tmp_path)
    assert {one: len(getattr(tree, one)()) for one in rules} == {
        one: int(one == rule) for one in rules
    }


def test_what_is_allowed_is_not_found(tmp_path: Path) -> None:
    texts = {
        "__init__": "",
        "settings": "import os\nfrom pathlib import Path",
        "queue": "from typing import TYPE_CHECKING\nfrom masterslave import errors, settings\n"
        "if TYPE_CHECKING:\n    from masterslave.manager import TaskManager\n    import time\n",
        "errors": "",
        "manager": "import threading, time\nfrom masterslave.queue import TaskQueue",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    tree = Tree(tmp_path)
    assert tree.upward() + tree.impure() + tree.pyro() + tree.unpickling() == []
