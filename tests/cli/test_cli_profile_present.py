"""`edgemm profile --budget` and `--html`, as a user calls them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgemm.profiling.report import check


def test_a_budget_that_is_kept(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 100, "--budget", "p50<10s,p90<10s,memory<100GB")
    assert result.code == 0, result.err
    assert re.search(r"^p50<10s +[\d.e-]+ s +kept$", result.out, re.MULTILINE)
    assert re.search(r"^memory<100GB +[\d.]+ GB +kept$", result.out, re.MULTILINE)


def test_a_budget_that_is_broken(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", 100, "--budget", "p50<10s,p50<1ns,p99<10s", "--json")
    assert result.code == 2, result.err
    outcomes = result.json["budget"]
    assert [o["kept"] for o in outcomes] == [True, False, False]
    assert outcomes[2]["why"] == "needs 662 runs, got 100"
    text = edgemm("profile", fusion_bundle, "--runs", 100, "--budget", "p99<10s")
    assert text.code == 2
    assert re.search(r"^p99<10s +- +not kept: needs 662 runs, got 100$", text.out, re.MULTILINE)


def test_a_bad_budget_is_said_before_anything_is_opened(edgemm, tmp_path: Path) -> None:
    result = edgemm("profile", tmp_path / "none.edgemm", "--budget", "p99>30ms")
    assert result.code == 1
    assert "'p99>30ms' is not of the form NAME<NUMBER UNIT" in result.err
    assert "hint:  for example --budget" in result.err


def test_the_page_is_written_and_holds_the_report(edgemm, fusion_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = edgemm("profile", fusion_bundle, "--runs", 100, "--html", page, "--json")
    assert result.code == 0, result.err
    text = page.read_text()
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text)
    assert found is not None
    assert check(json.loads(found[1])) == ()
    assert json.loads(found[1])["end_to_end"] == result.json["end_to_end"]
    assert "<h1>digits.edgemm</h1>" in text
    assert '<rect class="bar"' in text


def test_no_page_over_another(edgemm, fusion_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    refused = edgemm("profile", fusion_bundle, "--runs", 5, "--html", page)
    assert refused.code == 1
    assert "exists" in refused.err
    assert page.read_text() == "mine"
    assert edgemm("profile", fusion_bundle, "--runs", 5, "--html", page, "--force").code == 0
    assert page.read_text().startswith("<!doctype html>")


def test_a_broken_budget_still_writes_the_page(edgemm, fusion_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    result = edgemm("profile", fusion_bundle, "--runs", 5, "--budget", "p50<1ns", "--html", page)
    assert result.code == 2
    assert 'class="broken"' in page.read_text()


def test_on_a_device_without_heavy_packages(edgemm_on_device, fusion_bundle: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    asked = ["--runs", 20, "--budget", "p50<10s", "--html", page]
    result = edgemm_on_device("profile", fusion_bundle, *asked)
    assert result.code == 0, result.err
    assert page.exists()
    compared = edgemm_on_device("profile", fusion_bundle, "--compare", fusion_bundle, "--runs", 12)
    assert compared.code == 0, compared.err


@pytest.mark.parametrize("runs", [1, 2, 6])
def test_few_runs_make_a_page(edgemm, fusion_bundle: Path, tmp_path: Path, runs: int) -> None:
    result = edgemm("profile", fusion_bundle, "--runs", runs, "--html", tmp_path / "report.html")
    assert result.code == 0, result.err
