"""CPython's own tests of executors, run on `ClusterExecutor`.

They come with the interpreter or with a package of the system, or there is nothing to run. Their
classes are mixins that say what every executor must do; those about the threads and processes of
the standard library's own pools are left out.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from conftest import ROOT, World, wait_until

from masterslave import ClusterExecutor

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
#: Where the tests are: of this interpreter, and of the system's packages, of the same version.
PLACES = [
    Path(os.__file__).parent / "test",
    Path("/usr/lib") / f"python{VERSION}" / "test",
]
PACKAGE = "test.test_concurrent_futures"


def _find() -> ModuleType | None:
    """The package ``test`` with CPython's tests of executors, made importable."""
    import test

    for place in PLACES:
        if (place / "test_concurrent_futures.py").exists() or (
            place / "test_concurrent_futures" / "util.py"
        ).exists():
            if str(place) not in test.__path__:
                test.__path__.append(str(place))
            importlib.invalidate_caches()
            return test
    return None


def _mixins() -> dict[str, Any]:
    """CPython's mixins, by name; empty where they are not."""
    if _find() is None:
        return {}
    names: dict[str, Any] = {}
    whole = importlib.import_module(PACKAGE)
    modules = [whole]
    if hasattr(whole, "__path__"):  # since 3.12 a package
        parts = ("util", "executor", "test_wait", "test_as_completed", "test_shutdown", "test_init")
        modules = [importlib.import_module(f"{PACKAGE}.{part}") for part in parts]
    for module in modules:
        names.update({name: value for name, value in vars(module).items() if name[0] != "_"})
    return names


FOUND = _mixins()
REASON = (
    f"no test_concurrent_futures of Python {VERSION} in {', '.join(map(str, PLACES))}: "
    f"apt-get install libpython{VERSION}-testsuite"
)
needs_cpython = pytest.mark.skipif(not FOUND, reason=REASON)

#: For all programs that a test starts: the package ``test`` with these tests in it, and our
#: executor where they import theirs from.
SITE = """
import concurrent.futures, os, test
test.__path__.extend(os.environ["TESTS_OF_CPYTHON"].split(os.pathsep))
standard = concurrent.futures.__getattr__

def found(name):
    if name == "ClusterExecutor":
        from masterslave import ClusterExecutor
        return ClusterExecutor
    return standard(name)

concurrent.futures.__getattr__ = found
"""


class _Begun(ClusterExecutor):
    """Has begun with something before it cancels the rest.

    A pool of the library's takes some calls at once, and for good, before any worker is there; here
    all that no slave has can be cancelled.
    """

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        future = super().submit(fn, *args, **kwargs)
        vars(self).setdefault("first", future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        if cancel_futures:
            wait_until(lambda: self.first.running() or self.first.done(), "a worker has begun")
        super().shutdown(wait, cancel_futures=cancel_futures)


class _Mixin:
    """Makes an executor for each test, as theirs do."""

    executor_type = ClusterExecutor
    worker_count = 2
    executor_kwargs: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        kind = _Begun if self.id().endswith("test_cancel_futures") else ClusterExecutor
        self.executor = kind(max_workers=self.worker_count, **self.executor_kwargs)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        del self.executor
        super().tearDown()  # type: ignore[misc]


def _cases() -> list[tuple[str, str]]:
    cases = []
    for name in ("ExecutorTest", "WaitTests", "AsCompletedTests", "ExecutorShutdownTest"):
        mixin = FOUND.get(name)
        for test_name in dir(mixin):
            if test_name.startswith("test_"):
                cases.append((name, test_name))
    cases.append(("InitializerMixin", "test_initializer"))
    cases.append(("FailingInitializerMixin", "test_initializer"))
    return cases


def _run(name: str, test_name: str) -> unittest.TestResult:
    mixin = FOUND[name]
    case = type(f"Cluster{name}", (_Without, mixin, _Mixin, unittest.TestCase), {})
    result = unittest.TestResult()
    case(test_name).run(result)
    return result


class _Without:
    """What of theirs is about pools of the library's own."""

    def setUp(self) -> None:
        for base in type(self).__mro__:
            if base.__name__ == "InitializerMixin":
                self.executor_kwargs = {
                    "initializer": FOUND["init"],
                    "initargs": ("initialized",),
                }
            elif base.__name__ == "FailingInitializerMixin":
                self.executor_kwargs = {"initializer": FOUND["init_fail"]}
        self.log_queue = None
        _Mixin.setUp(self)  # type: ignore[arg-type]

    def tearDown(self) -> None:
        _Mixin.tearDown(self)  # type: ignore[arg-type]

    def _assert_logged(self, message: str) -> Any:
        import contextlib

        @contextlib.contextmanager
        def logged() -> Any:
            with self.assertLogs("masterslave", "CRITICAL") as caught:  # type: ignore[attr-defined]
                yield
            assert any(message in line for line in caught.output), caught.output

        return logged()


@needs_cpython
@pytest.mark.parametrize(("name", "test_name"), _cases())
def test_of_cpython(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str, test_name: str
) -> None:
    import test

    (world.path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(world.path), str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.setenv("TESTS_OF_CPYTHON", os.pathsep.join(test.__path__))
    theirs = sys.modules[FOUND[name].__module__]
    if hasattr(theirs, "assert_python_ok"):  # which would leave out our environment
        whole = functools.partial(theirs.assert_python_ok, PYTHONPATH=path)
        monkeypatch.setattr(theirs, "assert_python_ok", whole)
    result = _run(name, test_name)
    for _, trace in [*result.failures, *result.errors]:
        pytest.fail(trace)
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    assert result.testsRun == 1


def test_they_are_there_in_ci() -> None:
    if os.environ.get("MASTERSLAVE_CI") == "1":
        assert FOUND, REASON
