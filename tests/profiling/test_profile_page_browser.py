"""The page in a real browser: what it shows, that its script works, that it asks for nothing and logs nothing.

`EDGEMM_SCREENSHOTS=FOLDER` keeps the page and the pictures.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import Browser, find_chromium
from full_report import EVIL, full_report, modalities_report, search_report

from edgemm.profiling.html import render_page

pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium on this machine: apt-get install chromium"
)

PHONE, DESKTOP = 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    assert program is not None
    with Browser(program, tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("EDGEMM_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("pictures")
    folder.mkdir(parents=True, exist_ok=True)
    write(folder)
    return folder


def write(folder: Path, name: str = "digits") -> Path:
    page = folder / "report.html"
    bundle = {"search": search_report(), "modalities": modalities_report(name)}
    report = full_report(name)
    report["budget"] = [
        {"limit": "paced.missed<0.1%", "got": 0.5, "unit": "%", "kept": False, "why": None},
        {"limit": "energy<5mJ", "got": None, "unit": "mJ", "kept": False, "why": "no RAPL in /sys/class/powercap"},
    ]
    page.write_text(render_page(report, bundle), encoding="utf-8")
    return page


@pytest.mark.parametrize("name", ["digits", EVIL], ids=["plain", "evil"])
def test_nothing_is_requested_and_nothing_is_logged(browser: Browser, tmp_path: Path, name: str) -> None:
    page = write(tmp_path, name)
    browser.open(page, width=DESKTOP)
    assert browser.evaluate("document.title").endswith(": latency")
    assert browser.evaluate("document.querySelector('h1').textContent") == f"{name.replace('/', '_')}.edgemm"
    assert [url for url in browser.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints() == []
    assert browser.evaluate("JSON.parse(document.getElementById('report').textContent).stages[1].name") == name


def test_a_table_that_is_cut_shows_that_there_is_more(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path), width=PHONE)
    layers = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth)"
    assert browser.evaluate(f"{layers}.length") > 0
    attached = f"{layers}.map(e => getComputedStyle(e).backgroundAttachment)"
    assert set(browser.evaluate(attached)) == {"local, local, scroll, scroll"}


def test_a_request_and_an_error_would_be_seen(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<img src='http://127.0.0.1:9/x.png'><script>undefined.x</script>")
    browser.open(page, width=DESKTOP)
    assert "http://127.0.0.1:9/x.png" in browser.requests()
    assert any("TypeError" in line for line in browser.complaints())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_it_fits_the_screen(browser: Browser, tmp_path: Path, pictures: Path, width: int, dark: bool) -> None:
    browser.open(write(tmp_path), width=width, dark=dark)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll("section, .tile, svg, h1, h2, .row, .broken")]
        .filter(e => { const r = e.getBoundingClientRect(); return r.left < 0 || r.right > innerWidth + 0.5; })
        .length"""
    assert browser.evaluate(outside) == 0
    cut = """[...document.querySelectorAll(".tile b, .tile .soft, h1, h2")]
        .filter(e => e.scrollWidth > e.parentElement.clientWidth).map(e => e.textContent)"""
    assert browser.evaluate(cut) == []
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(ground) < 60) is dark
    text = browser.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    assert abs(sum(text) - sum(ground)) > 450
    picture = browser.screenshot(pictures / f"{'dark' if dark else 'light'}-{width}.png")
    assert struct.unpack(">I", picture[16:20]) == (width,)


def test_text_in_charts_is_big_enough_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path), width=PHONE)
    heights = browser.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert heights
    assert min(heights) >= 10


LAYERS = "[...document.querySelector('table.sortable').tBodies[0].rows].filter(r => !r.hidden)"


def test_layers_are_searched_and_sorted(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path), width=DESKTOP)
    assert browser.evaluate(f"{LAYERS}.length") == 16
    assert browser.evaluate("document.getElementById('layer-count').textContent") == "16 of 16"
    search = (
        "const s = document.getElementById('layer-search'); s.value = %r; s.dispatchEvent(new Event('input'));"
    )
    browser.evaluate(f"{{ {search % 'fusion softmax'} }}")
    assert browser.evaluate(f"{LAYERS}.map(r => r.cells[1].textContent)") == ["Softmax"]
    assert browser.evaluate("document.getElementById('layer-count').textContent") == "1 of 16"
    browser.evaluate(f"{{ {search % ''} }}")
    click = "document.querySelector('table.sortable').tHead.rows[0].cells[%d].click()"
    shares = f"{LAYERS}.map(r => Number(r.cells[5].dataset.v))"
    browser.evaluate(click % 5)
    assert browser.evaluate(shares) == sorted(browser.evaluate(shares), reverse=True)
    browser.evaluate(click % 5)
    assert browser.evaluate(shares) == sorted(browser.evaluate(shares))
    browser.evaluate(click % 1)
    ops = browser.evaluate(f"{LAYERS}.map(r => r.cells[1].textContent.toLowerCase())")
    assert ops == sorted(ops)


def test_on_paper_it_is_light_and_whole(browser: Browser, tmp_path: Path) -> None:
    browser.open(write(tmp_path), width=DESKTOP, dark=True)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("getComputedStyle(document.querySelector('.scroll')).overflow") == "visible"
    assert browser.evaluate("getComputedStyle(document.getElementById('layer-search')).display") == "none"
    browser.call("Emulation.setEmulatedMedia", media="")
