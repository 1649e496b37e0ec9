"""Settings: read from the environment in one place; addresses taken apart and put together."""

from __future__ import annotations

import dataclasses
import os
import pwd
import re
from ipaddress import IPv6Address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masterslave import settings as module
from masterslave.errors import SettingsError
from masterslave.settings import (
    DEFAULT_PORT,
    LABEL_LENGTH,
    Settings,
    check_label,
    home_directory,
    join_address,
    split_address,
)

HOME = {"HOME": "/home/someone"}


def read(**environ: str) -> Settings:
    return Settings.from_environment({**HOME, **environ})


def test_without_variables_the_defaults_hold() -> None:
    home = Path("/home/someone/.masterslave")
    assert read() == Settings(key_file=home / "key", connections=home / "managers")


def test_each_variable_sets_its_field() -> None:
    assert read(
        MASTERSLAVE_KEY_FILE="/keys/mine",
        MASTERSLAVE_HOST="0.0.0.0",
        MASTERSLAVE_PORT="7777",
        MASTERSLAVE_BROADCAST="0",
        MASTERSLAVE_MASTER_GONE="2.5",
        MASTERSLAVE_GRACE="0",
        MASTERSLAVE_CLIENT_GRACE="1.5",
    ) == Settings(
        key_file=Path("/keys/mine"),
        connections=Path("/home/someone/.masterslave/managers"),
        client_grace_s=1.5,
        host="0.0.0.0",
        port=7777,
        broadcast=False,
        master_gone_s=2.5,
        grace_s=0.0,
    )


def test_the_documented_variables_are_those_that_are_read() -> None:
    assert module.__doc__ is not None
    documented = dict(re.findall(r"\| `([A-Z_]+)` +\| `(\w+)`", module.__doc__))
    asked: set[str] = set()

    class Asked(dict[str, str]):
        def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
            asked.add(name)
            return super().get(name, default)

    Settings.from_environment(Asked(HOME))
    assert set(documented) == asked - {"HOME"}
    assert set(documented.values()) <= {field.name for field in dataclasses.fields(Settings)}


def test_empty_variables_count_as_not_set() -> None:
    names = ("KEY_FILE", "HOST", "PORT", "MASTER_GONE", "GRACE")
    assert read(**{f"MASTERSLAVE_{name}": "" for name in names}) == read()


def test_a_tilde_in_the_key_file_is_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/other")
    assert read(MASTERSLAVE_KEY_FILE="~/key").key_file == Path("/home/other/key")


def test_the_port_is_a_whole_number() -> None:
    assert type(read(MASTERSLAVE_PORT="0").port) is int
    with pytest.raises(SettingsError, match="must be a whole number from 0 to 65535"):
        read(MASTERSLAVE_PORT="7766.5")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "many"),
        ("PORT", "-1"),
        ("PORT", "65536"),
        ("PORT", "nan"),
        ("PORT", "inf"),
        ("MASTER_GONE", "-1"),
        ("MASTER_GONE", "nan"),
        ("MASTER_GONE", "inf"),
        ("MASTER_GONE", "a minute"),
        ("GRACE", "-0.1"),
        ("GRACE", "1e999"),
        ("BROADCAST", "yes"),
        ("BROADCAST", ""),
    ],
)
def test_a_value_that_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"MASTERSLAVE_{name}={value!r}: must be"):
        read(**{f"MASTERSLAVE_{name}": value})


def test_settings_read_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTERSLAVE_PORT", "4711")
    assert Settings.from_environment().port == 4711


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("node3", ("node3", DEFAULT_PORT)),
        ("node3:80", ("node3", 80)),
        ("10.0.0.1:65535", ("10.0.0.1", 65535)),
        ("::1", ("::1", DEFAULT_PORT)),
        ("[::1]", ("::1", DEFAULT_PORT)),
        ("[fe80::1]:81", ("fe80::1", 81)),
    ],
)
def test_an_address_is_split(text: str, parts: tuple[str, int]) -> None:
    assert split_address(text) == parts


def test_the_default_port_can_be_chosen() -> None:
    assert split_address("node3", 1234) == ("node3", 1234)


@pytest.mark.parametrize(
    "text",
    ["", ":80", "[]:80", "node3:0", "node3:65536", "node3:http", "node3:-1", "[::1", "[::1]80"],
)
def test_an_address_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(repr(text))):
        split_address(text)


names = st.text("abcxyz019.-", min_size=1)
numbers = st.integers(0, 2**128 - 1).map(lambda number: str(IPv6Address(number)))


@settings(deadline=None, database=None)
@given(names | numbers, st.integers(1, 65535))
def test_joining_is_the_inverse_of_splitting(host: str, port: int) -> None:
    assert split_address(join_address(host, port)) == (host, port)


@pytest.mark.parametrize("label", ["sqrt", "a label of mine", "zażółć", "<b>", "7"])
def test_a_line_of_visible_characters_is_a_label(label: str) -> None:
    check_label(label)


@pytest.mark.parametrize(
    "label", ["", " ", "two\nlines", "a\ttab", "\x1b[31m", "\udcff", "\u202e", None, 7, b"bytes"]
)
def test_anything_else_is_no_label(label: object) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"label {label!r}: must be")):
        check_label(label)


def test_a_label_that_is_too_long_is_told_so_in_a_line() -> None:
    check_label("x" * LABEL_LENGTH)
    with pytest.raises(SettingsError, match=r"'x{20}'\.\.\.: must be of 1000 .*, not of 70000"):
        check_label("x" * 70_000)


# --- the home directory ---------------------------------------------------------------------


def test_without_home_it_is_the_users_own() -> None:
    for environ in ({}, {"HOME": ""}):
        assert home_directory(environ) == Path(pwd.getpwuid(os.getuid()).pw_dir)


def test_a_home_that_is_no_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="HOME='here': must be an absolute path"):
        Settings.from_environment({"HOME": "here"})

    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(SettingsError, match=r"HOME='': must be .*MASTERSLAVE_KEY_FILE"):
        Settings.from_environment({})


def test_with_a_key_file_elsewhere_it_is_done_without() -> None:
    found = Settings.from_environment({"HOME": "here", "MASTERSLAVE_KEY_FILE": "/keys/mine"})
    assert found == Settings(key_file=Path("/keys/mine"), connections=None)


def test_a_tilde_of_nobody_is_refused() -> None:
    with pytest.raises(SettingsError, match="MASTERSLAVE_KEY_FILE='~nobody-here/key': "):
        read(MASTERSLAVE_KEY_FILE="~nobody-here/key")
