"""The page, without a browser: well-formed, self-contained, and names stay names."""

from __future__ import annotations

import copy
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from full_report import EVIL, full_report, modalities_report, search_report

from edgemm.profiling.charts import histogram, ticks
from edgemm.profiling.html import bundle_reports, render_page
from edgemm.profiling.markup import script_json
from edgemm.profiling.report import check

VOID = {"meta", "link", "input", "br", "hr", "img"}


class Page(HTMLParser):
    """What is in a page; every element must be closed in the order in which it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def count(self, tag: str, **attributes: str) -> int:
        return sum(t == tag and all(a.get(k) == v for k, v in attributes.items()) for t, a in self.tags)

    def titles(self) -> list[str]:
        return self.text["h2"]


def test_the_report_of_these_tests_is_one() -> None:
    assert check(full_report()) == ()
    assert check(full_report(EVIL)) == ()


def test_a_full_report_shows_everything() -> None:
    page = Page(render_page(full_report(), {"search": search_report(), "modalities": modalities_report()}))
    assert page.text["title"][0] == "digits.edgemm: latency"
    wanted = {
        "One inference, the median one",
        "By modality",
        "Modes",
        "Engines",
        "Layers",
        "Resources",
        "Conditions",
    }
    wanted |= {"Plans that were searched", "When a modality is missing", "Latency, back to back", "Latency, paced"}
    assert wanted <= set(page.titles())
    assert page.count("table", **{"class": "sortable"}) == 1
    assert page.count("circle") == 3
    assert page.count("circle", **{"class": "ships"}) == 1
    text = " ".join(t for parts in page.text.values() for t in parts)
    assert "3 of 600 deadlines missed" in text
    assert "unavailable: nothing runs on a GPU" in text
    assert "restless machine" in text
    assert "needs 6,636 runs" in text
    assert "95.10%" in text


def test_a_report_without_extras_has_no_empty_cards() -> None:
    report = full_report()
    for key in ("modes", "modalities", "critical_path", "timeline", "layers", "resources", "warnings"):
        del report[key]
    page = Page(render_page(report))
    assert page.titles() == ["Latency, back to back", "Engines", "Conditions"]
    assert page.count("input") == 0


def test_the_old_keys_alone_make_a_page() -> None:
    report = full_report()
    optional = {"created", "edgemm", "steady", "spread", "instead_of"}
    report = {k: v for k, v in report.items() if k not in optional}
    report["end_to_end"] = {k: v for k, v in report["end_to_end"].items() if k not in ("intervals", "histogram")}
    del report["modes"]
    assert "Latency, back to back" not in Page(render_page(report)).titles()


def test_nothing_is_loaded_from_anywhere() -> None:
    text = render_page(full_report(), {"search": search_report()})
    page = Page(text)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "data"):
            assert not (attributes.get(name) or "").startswith(("http", "//", "/", "file")), (tag, attributes)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest|WebSocket", text)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_names_stay_names() -> None:
    text = render_page(full_report(EVIL), {"search": search_report(), "modalities": modalities_report(EVIL)})
    page = Page(text)
    assert page.count("script") == 2
    assert page.count("b") == page.count("div", **{"class": "tile"}) + page.count("div", **{"class": "tile none"})
    assert any("taken over" in part for part in page.text["td"])
    assert json.loads(page.text["script"][0]) == full_report(EVIL)


@pytest.mark.parametrize("value", [EVIL, "<!--", "]]>", "\u2028", "&lt;", "ü"])
def test_script_json_holds_any_text(value: str) -> None:
    text = script_json({"name": value})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"name": value}


def test_dollar_signs_are_no_placeholders() -> None:
    report = full_report("$title ${body}")
    assert "$title ${body}" in Page(render_page(report)).text["h1"][0]


def test_budget_is_shown() -> None:
    report = copy.deepcopy(full_report())
    report["budget"] = [
        {"limit": "p99<30ms", "got": 0.5, "unit": "ms", "kept": True, "why": None},
        {"limit": "load<1ms", "got": 12.4, "unit": "ms", "kept": False, "why": None},
        {"limit": "p99.9<1s", "got": None, "unit": "s", "kept": False, "why": "needs 6,636 runs, got 2,000"},
    ]
    page = Page(render_page(report))
    assert (page.count("span", **{"class": "kept"}), page.count("span", **{"class": "broken"})) == (1, 2)


def test_reports_of_a_bundle(tmp_path: Path) -> None:
    assert bundle_reports(tmp_path) == {}
    (tmp_path / "report").mkdir()
    (tmp_path / "report/search.json").write_text(json.dumps(search_report()))
    assert list(bundle_reports(tmp_path)) == ["search"]
    file = tmp_path / "model.onnx"
    file.write_bytes(b"")
    assert bundle_reports(file) == {}


def test_histogram_draws_every_run() -> None:
    data = full_report()["end_to_end"]["histogram"]
    chart = histogram(data, {"p50": 0.42, "max": 0.9})
    shown = sum(int(found.replace(",", "")) for found in re.findall(r": ([\d,]+) runs<", chart))
    assert shown == sum(data["counts"]) == 2000
    assert chart.count('<line class="mark') == 2
    wide = {"edges_ms": [10 ** (k / 40) for k in range(401)], "counts": [1] * 400}
    many = histogram(wide, {})
    assert sum(int(found) for found in re.findall(r": (\d+) runs<", many)) == 400
    assert many.count("<rect") <= 96


def test_one_bucket_is_a_histogram() -> None:
    assert histogram({"edges_ms": [1.0, 1.06], "counts": [5]}, {"p50": 1.03}).count("<rect") == 1


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.13), (0.01, 1000), (1, 2), (0.42, 9), (3e-5, 4e-5), (5, 5)])
@pytest.mark.parametrize("logarithmic", [True, False])
def test_ticks_are_few_and_inside(low: float, high: float, logarithmic: bool) -> None:
    found = ticks(low, high, logarithmic=logarithmic)
    assert 1 <= len(found) <= 7
    assert all(low * (1 - 1e-9) <= t <= high * (1 + 1e-9) for t in found)
    assert found == sorted(found)
