"""The guides are true: their blocks run as written in one folder, the reference is current, the site builds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from edgemm.recipe import build_recipe

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))
GUIDES = ("own-model.md", "int8-slower.md", "precision.md", "streams.md", "embedding.md")
"""Guides whose blocks run, one after the other: later ones use what earlier ones made."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Returns (language, text) of each block of a page."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [(str(language), str(text)) for language, text in found]


def run(folder: Path, command: list[str]) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path}
    )
    assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    return done.stdout


@pytest.mark.slow
def test_the_guides_run_from_top_to_bottom(tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for page in GUIDES:
        for language, text in blocks(page):
            if language == "python":
                told[page] = run(tmp_path, [sys.executable, "-c", text])
            for line in text.splitlines() if language == "console" else ():
                assert run(tmp_path, ["bash", "-ec", line.removeprefix("$ ")])
    assert re.search(r"'accel': 0\.0, 'gyro': \d.*\) \(\)$", told["streams.md"], re.DOTALL)
    assert "text/plain; version=0.0.4; charset=utf-8 True" in told["embedding.md"]
    assert (tmp_path / "gaps.edgemm/report/modalities.svg").is_file()


@pytest.mark.parametrize("page", PAGES)
def test_recipes_in_guides_are_valid(page: str) -> None:
    for language, text in blocks(page):
        if language == "yaml" and "model:" in text:
            assert build_recipe(yaml.safe_load(text), where=page)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        if not target.startswith(("https://", "mailto:")):
            assert (DOCS / target).exists(), f"{page}: {target}"


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == PAGES


def test_the_recipe_reference_is_what_the_schema_says() -> None:
    run(ROOT, [sys.executable, "docs/make_reference.py", "--check"])


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed: make docs")
    run(ROOT, ["mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")])
    page = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("open_session", "FusionSession", "StreamPolicy", "ConvertResult", "EdgemmError"):
        assert name in page
    assert "fonts.googleapis.com" not in page
