"""The README names what a user can rely on."""

from __future__ import annotations

import re

import pytest
from conftest import ROOT

import masterslave

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "masterslave" / "settings.py").read_text(encoding="utf-8")

#: Of no use to programs by themselves.
UNNAMED = {"IllegalTransition", "UnknownProcess"}


@pytest.mark.parametrize("name", sorted(set(masterslave.__all__) - UNNAMED))
def test_each_public_name_is_there(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


def test_all_variables_of_the_environment_are_in_its_table() -> None:
    assert set(re.findall(r"^\| `(MASTERSLAVE_\w+)` \|", README, re.MULTILINE)) == set(
        re.findall(r"\bMASTERSLAVE_\w+", SETTINGS)
    )


def test_links_within_it_lead_somewhere() -> None:
    heads = re.findall(r"^#+ (.+)$", README, re.MULTILINE)
    places = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    links = set(re.findall(r"\]\(#([^)]+)\)", README))
    assert links
    assert links <= places


def test_files_that_it_links_to_are_there() -> None:
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
