"""The tree of errors: its drawing, what crosses a process boundary, what the texts show."""

from __future__ import annotations

import pickle
import re
import traceback

import pytest

from masterslave import errors
from masterslave.errors import (
    REMOTE_ERRORS,
    DataNotFound,
    MasterSlaveError,
    RemoteException,
    ResultTimeout,
    TaskRaisedException,
    TaskTimedOut,
    WorkerCrashed,
    remote_error,
)

REMOTE_TEXT = 'Traceback (most recent call last):\n  in do_sqrt\nValueError: "remote"\n'
SAMPLES = [
    TaskRaisedException("sqrt_0", "sqrt", ValueError("negative"), REMOTE_TEXT),
    RemoteException("some.module.Error", "text"),
    WorkerCrashed("attempt 1: killed"),
    TaskTimedOut("killed at its limit"),
    DataNotFound("no data item 'x'"),
    ResultTimeout("no result"),
]


def drawn_tree() -> dict[str, str]:
    """Class name -> name of its parent, as the module's docstring draws them."""
    assert errors.__doc__ is not None
    parents: list[tuple[int, str]] = []
    tree: dict[str, str] = {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"    ((?:[|` ] {3})*(?:[|`]-- )?)([A-Z]\w+)\b", line)
        if match is None:
            continue
        depth = len(match[1]) // 4
        if not match[1].rstrip().endswith("--") and depth:
            continue  # the rest of a description
        parents = [item for item in parents if item[0] < depth]
        if parents:
            tree[match[2]] = parents[-1][1]
        parents.append((depth, match[2]))
    return tree


def test_the_drawing_shows_every_class_under_its_parent() -> None:
    classes = {
        name: cls.__bases__[0].__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type)
        and issubclass(cls, MasterSlaveError)
        and cls is not MasterSlaveError
    }
    assert drawn_tree() == classes


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling(error: MasterSlaveError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert {k: str(v) for k, v in vars(copy).items()} == {k: str(v) for k, v in vars(error).items()}


def test_a_failed_task_says_which_and_why() -> None:
    error = TaskRaisedException("sqrt_0", "sqrt", ValueError("negative"), REMOTE_TEXT)
    assert (error.task_id, error.tag, error.traceback) == ("sqrt_0", "sqrt", REMOTE_TEXT)
    assert str(error) == "task sqrt_0 raised ValueError: negative"


def test_the_remote_traceback_is_shown_as_the_cause() -> None:
    with pytest.raises(TaskRaisedException) as caught:
        raise TaskRaisedException("sqrt_0", "sqrt", ValueError("negative"), REMOTE_TEXT)
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.index("in do_sqrt") < shown.index("direct cause") < shown.index("task sqrt_0")


def test_a_remote_exception_without_text_shows_its_type_alone() -> None:
    assert str(RemoteException("some.Error", "why")) == "some.Error: why"
    assert str(RemoteException("some.Error", "")) == "some.Error"


def test_a_crash_shows_its_last_attempt_in_one_line() -> None:
    story = "attempt 1: killed\nattempt 2: exit status 3; last lines of standard error:\n    text"
    shown = str(WorkerCrashed(story))
    assert "attempt 2: exit status 3" in shown
    assert "attempt 1" not in shown
    assert "\n" not in shown
    assert str(WorkerCrashed("power cut\nmore")).endswith("power cut")


def test_a_missing_data_item_is_a_key_error_without_quotes() -> None:
    with pytest.raises(KeyError) as caught:
        raise DataNotFound("no data item 'x'")
    assert str(caught.value) == "no data item 'x'"
    assert str(DataNotFound()) == ""


def test_a_result_that_does_not_come_is_a_timeout_error() -> None:
    assert issubclass(ResultTimeout, TimeoutError)


@pytest.mark.parametrize("name", REMOTE_ERRORS)
def test_a_remote_error_arrives_as_the_same_class(name: str) -> None:
    error = remote_error(name, "what happened")
    assert type(error) is getattr(errors, name)
    assert str(error) == "what happened"


def test_an_unknown_remote_error_keeps_its_name_and_text() -> None:
    error = remote_error("OutOfCheese", "no more")
    assert type(error) is MasterSlaveError
    assert "OutOfCheese" in str(error)
    assert "no more" in str(error)
