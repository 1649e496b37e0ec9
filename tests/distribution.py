"""A pytest plugin: how tests are shared out where several processes of pytest-xdist run them.

Tests marked `long` begin first: one that begins last would keep a single process busy at the end.
Tests with a system that takes long to start are run by one process, one after the other, or
each process would start that system. All others go one by one to whoever is free.
"""

from __future__ import annotations

import contextlib
import re
from typing import Any

import pytest

_SYSTEMS = re.compile(
    r"test_(?:launchers_systems|starting_systems|starting_containers)\.py::"
    r".*(condor|docker|podman|apptainer)"
)
#: Made for a module, once in each process that runs one of its tests.
_MODULES = re.compile(r"(test_(?:contract|replay)\.py)::")


def group_of(test: str) -> str:
    """What a test shares with others, which the same process should run; else its own name."""
    for pattern in (_SYSTEMS, _MODULES):
        found = pattern.search(test)
        if found:
            return found[1]
    return test


def uses_pool(test: str) -> bool:
    """Whether a test needs the machine's only HTCondor pool."""
    return group_of(test) == "condor"


def begin_order(item: pytest.Item) -> int:
    if item.get_closest_marker("long"):
        return 0
    return 1 if _SYSTEMS.search(item.nodeid) else 2


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "pool" in getattr(item, "fixturenames", ()) and not uses_pool(item.nodeid):
            raise pytest.UsageError(f"{item.nodeid} uses HTCondor's pool: its name must say so")
    if hasattr(config, "workerinput"):
        items.sort(key=begin_order)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    if config.getoption("dist") != "load":  # somebody wants it another way
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

        def _assign_work_unit(self, node: Any) -> None:
            with contextlib.suppress(OSError):  # it has just died: `remove_node` will be called
                super()._assign_work_unit(node)

        def _reschedule(self, node: Any) -> None:
            if node in self.registered_collections:  # else it takes the place of one that died
                super()._reschedule(node)

        def remove_node(self, node: Any) -> str | None:
            """A process has ended: others run its tests, but for the one that it died of."""
            units = self.assigned_work.pop(node)
            left = [test for unit in units.values() for test, done in unit.items() if not done]
            if not left:
                return None
            units[group_of(left[0])][left[0]] = True
            for scope, unit in units.items():
                if not all(unit.values()):
                    self.workqueue[scope] = unit
                    self.workqueue.move_to_end(scope, last=False)
            for other in self.nodes:
                self._reschedule(other)
            return left[0]

    config.option.loadscopereorder = False  # in the order of the items
    return Scheduler(config, log)
