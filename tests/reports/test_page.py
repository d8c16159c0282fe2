"""What reports begin and end with."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from page_reader import Report

import vankit
from vankit.errors import UserError
from vankit.pages import Page
from vankit.reports.page import check_page, finish, write_measures


def test_settings_versions_and_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/venv/bin/vankit", "train", "my data", "--lr", "0.1"])
    page = Page("a <page>")
    write_measures(page, "Measures", {"top-1": 0.125})
    finish(page, {"lr": 0.1, "lka": {}, "head": None, "classes": ["a"]}, tmp_path / "page.html")
    report = Report(tmp_path / "page.html")
    assert report.title == "a <page>"
    assert report.rows("Measures") == [{"top-1": "12.5%"}]
    assert report.facts("Settings") == {"lr": "0.1", "lka": "none", "head": "none"}
    versions = report.facts("Versions")
    assert (versions["torch"], versions["numpy"]) == (torch.__version__.partition("+")[0], np.__version__)
    assert versions["vankit"] == vankit.__version__
    assert report.texts["Command"] == ["vankit train 'my data' --lr 0.1"]


@pytest.mark.parametrize("program", ["script.py", "/a/pytest/__main__.py"])
def test_the_command_of_another_program_is_not_given(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "x"])
    finish(Page("a"), {}, tmp_path / "page.html")
    assert "Command" not in Report(tmp_path / "page.html").texts


def test_a_page_has_a_pages_name() -> None:
    check_page(None)
    check_page("x/report.HTML")
    with pytest.raises(UserError, match=r"r\.json is not the name of a page: expected one that ends in \.html"):
        check_page("r.json")
