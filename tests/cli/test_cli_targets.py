"""`edgemm targets`: the table, one target with its sources, and this machine."""

from __future__ import annotations

from edgemm.backends.targets import list_targets


def test_the_table_names_every_target_and_this_machine(edgemm) -> None:
    result = edgemm("targets")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for target in list_targets():
        assert any(line.startswith(target.name) for line in lines), target.name
    assert lines[0].split()[0] == "target"
    assert any(line.startswith("* this machine: ") for line in lines)
    assert "8.6, 10.3, 10.16, 11.4" in result.out


def test_float32_that_has_no_products_is_marked(edgemm) -> None:
    lines = edgemm("targets").out.splitlines()
    marked = [line.split()[0] for line in lines if "(fp32)" in line]
    assert marked == ["rtx-turing", "(fp32)"]
    assert any(line.startswith("(fp32)  rtx-turing: no FP32 matrix products") for line in lines)


def test_one_target_with_its_sources(edgemm) -> None:
    result = edgemm("targets", "orin-nx")
    assert result.code == 0
    assert "Jetson Orin NX" in result.out
    assert "6.2      36.4.3  10.3      12.6  3.10    [1]" in result.out
    assert "[1] NVIDIA, JetPack SDK 6.0 to 6.2 release notes" in result.out
    assert "one core in the 8 GB module" in result.out
    assert "this machine" not in result.out


def test_sources_that_disagree_are_both_shown(edgemm) -> None:
    out = edgemm("targets", "jetson-thor").out
    assert "compute capability 11.0" in out
    assert "disagrees: 10.1 for Thor" in out


def test_json(edgemm) -> None:
    report = edgemm("targets", "--json").json
    assert [t["name"] for t in report["targets"]] == [t.name for t in list_targets()]
    assert report["here"]["target"] in {t["name"] for t in report["targets"]}
    report = edgemm("targets", "sm89", "--json").json
    assert [t["name"] for t in report["targets"]] == ["rtx-ada"]
    assert report["here"] is None
    assert all(f["source"] for f in report["targets"][0]["facts"])


def test_auto_is_this_machine(edgemm) -> None:
    report = edgemm("targets", "auto", "--json").json
    assert report["targets"][0]["name"] == report["here"]["target"]
    assert "found" in edgemm("targets", "auto").out


def test_a_typing_error_is_answered_with_the_closest(edgemm) -> None:
    result = edgemm("targets", "rtx-blackwel")
    assert (result.code, result.out) == (1, "")
    assert "no target 'rtx-blackwel'" in result.err
    assert "hint:  did you mean 'rtx-blackwell'?" in result.err


def test_needs_the_base_packages_only(edgemm_on_device) -> None:
    result = edgemm_on_device("targets", "jetson-orin-nano")
    assert (result.code, result.err) == (0, "")
    assert "Jetson Orin Nano" in result.out
