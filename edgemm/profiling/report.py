"""The latency report: one plain JSON object, its schema, and what is wrong with one that is not.

`docs/latency-report.md` explains every key. A key that was not asked for is absent, a value that cannot be had is
`{"unavailable": reason}`, never 0, and a percentile without enough runs is None and listed in `needs`. Within a
schema version keys are only added, so readers ignore those that they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from edgemm.errors import DataError
from edgemm.profiling.contradictions import contradictions
from edgemm.profiling.typed_json import problems_with, shown

SCHEMA = 1
"""Version of the report's structure. A reader refuses a newer one."""

KIND = "edgemm-latency-report"
"""Value of the key `kind`."""

BACK_TO_BACK, PACED, CACHED = "back-to-back", "paced", "cached"
"""The modes. Only the first two run every engine; `cached` is never compared with them."""


class Unavailable(TypedDict):
    """What stands in the place of a value that cannot be had on this machine."""

    unavailable: str


class Histogram(TypedDict):
    """Counts between log-spaced edges of one grid for all reports: `10 ** (k / 40)` ms for whole k.

    `counts` has one entry less than `edges_ms` and adds up to the runs; a bucket holds its lower edge.
    """

    edges_ms: list[float]
    counts: list[int]


class _Times(TypedDict):
    runs: int
    p50_ms: float
    p90_ms: float | None
    p99_ms: float | None
    p99_9_ms: float | None
    needs: dict[str, int]
    min_ms: float
    mean_ms: float
    std_ms: float
    cv: float
    max_ms: float


class Times(_Times, total=False):
    """What `Latencies.to_json` says, `p95_ms`, and how sure it is.

    `intervals` has percentile name (`"p50"`, `"p99.9"`) -> 95 % confidence interval in ms by order statistics;
    only percentiles that are given, and whose interval the runs support.
    """

    p95_ms: float | None
    intervals: dict[str, list[float]]
    histogram: Histogram


class StageTimes(Times):
    """The times of one engine inside the measured calls; `share` is of the mean of whole calls."""

    name: str
    stages: list[str]
    share: float


class _Mode(TypedDict):
    mode: Literal["back-to-back", "paced", "cached"]
    label: str
    times: Times


class Mode(_Mode, total=False):
    """The times of whole calls, called in one way.

    `paced` has `rate_hz`, `trigger`, `deadline_ms`, `deadlines`, `missed`, `jitter_ms`, `wake_ms`, `ages` and
    `kept_up`. `cached` has `changed`, `unchanged`, `reused` and `comparable: false`.
    """

    comparable: bool
    rate_hz: dict[str, float]
    trigger: str
    deadline_ms: float
    deadlines: int
    missed: int
    jitter_ms: float
    wake_ms: float
    kept_up: bool
    ages: dict[str, Times]
    changed: list[str]
    unchanged: list[str]
    reused: list[str]


class ModalityShare(TypedDict):
    """What the engines of one set of modalities take: `name` is that of the one, or `"image + audio"`."""

    name: str
    modalities: list[str]
    engines: list[str]
    share: float
    p50_ms: float
    on_critical_path: bool


class Span(TypedDict):
    """An engine's call inside one inference; `start_ms` counts from the start of the inference."""

    engine: str
    start_ms: float
    duration_ms: float


class _Spread(TypedDict):
    between_samples_ms: float
    within_sample_ms: float


class Spread(_Spread, total=False):
    """Whether time depends on the input: standard deviations between samples, and of one sample repeated."""

    samples: int
    repeats: int
    input_dependent: bool
    p_value: float
    slowest_sample: int
    slowest_ms: float
    fastest_ms: float


class Steady(TypedDict):
    """How the warm-up ended. `runs` were not counted."""

    rule: str
    runs: int
    reached: bool


class _Layer(TypedDict):
    name: str
    op: str
    stage: str
    p50_ms: float
    share: float


class Layer(_Layer, total=False):
    """One layer of an engine, traced back to the nodes of the graph in the bundle that it was made of."""

    engine: str
    module: str | None
    nodes: list[str]
    mean_ms: float
    flops: float | None
    bytes: float | None
    intensity: float | None
    bound: Literal["compute", "memory"] | None
    roof_ms: float | None
    of_roof: float | None
    gflops: float | None


class Profiled(TypedDict):
    """The run that layers were timed in; an engine may be `unavailable`."""

    label: str
    warmup: int
    engines: list[dict[str, Any]]
    sum_ms: float
    unmapped_ms: float
    unmapped_share: float


class DeviceMemory(TypedDict):
    """Memory of the GPU in use by everything on it: before the model was opened, and while it ran."""

    device: str
    before_mb: float
    used_mb: float
    total_mb: float


class Memory(TypedDict):
    """Resident set of the process in MiB: before the model was opened, after the runs, and its high-water mark."""

    rss_before_mb: float
    rss_steady_mb: float
    rss_peak_mb: float
    device: DeviceMemory | Unavailable


class EnergySource(TypedDict):
    """A meter: what it counts, and the energy that it saw while the runs went on."""

    name: str
    covers: str
    joules: float


class ModalityEnergy(TypedDict):
    """An estimate: the energy of one inference by the share of its time."""

    name: str
    estimate_mj: float


class _Energy(TypedDict):
    per_inference_mj: float
    watts: float
    inferences: int
    seconds: float
    sources: list[EnergySource]


class Energy(_Energy, total=False):
    """Energy of the whole of what the meters cover, idle power included; `modalities` are estimates."""

    idle_watts: float
    modalities: list[ModalityEnergy]
    estimate: str


class Zone(TypedDict):
    """A thermal zone in degrees Celsius, before and after the runs."""

    name: str
    before_c: float
    after_c: float


class Temperature(TypedDict):
    """The thermal zones that could be read."""

    zones: list[Zone]
    hottest_c: float


class Throttling(TypedDict):
    """Whether the machine slowed itself down during the runs, and what says so."""

    throttled: bool
    because: list[str]
    watched: list[str]


class Frequency(TypedDict):
    """A clock in MHz: what its policy allows, the hardware's highest, and what it was after the runs."""

    name: str
    governor: str | None
    min_mhz: float | None
    max_mhz: float | None
    hardware_max_mhz: float | None
    now_mhz: float | None


class PowerMode(TypedDict):
    """The power mode of the machine, `"15W"` of nvpmodel for example, and what says so."""

    name: str
    source: str


class Clocks(TypedDict):
    """What decides how fast the machine runs. `locked`: every clock has one frequency only (jetson_clocks)."""

    cpu: list[Frequency] | Unavailable
    gpu: list[Frequency] | Unavailable
    power_mode: PowerMode | Unavailable
    locked: bool | None
    turbo: bool | None


class Resources(TypedDict, total=False):
    """What else the runs took."""

    memory: Memory
    energy: Energy | Unavailable
    temperature: Temperature | Unavailable
    throttling: Throttling | Unavailable
    clocks: Clocks


class _Report(TypedDict):
    schema: int
    kind: str
    file: str
    variant: str
    target: str
    layout: str
    backend: str
    backend_version: str | None
    threads: int | None
    machine: dict[str, Any]
    machine_summary: str
    inputs: str
    samples: int
    batch: int
    warmup: int
    load_ms: float
    first_call_ms: float
    runs: int
    end_to_end: Times
    stages: list[StageTimes]
    sum_of_stages_p50_ms: float
    overhead_p50_ms: float
    samples_per_second: float
    peak_memory_mb: float
    baseline_memory_mb: float


class Report(_Report, total=False):
    """The whole report."""

    created: str
    edgemm: str
    choice: dict[str, Any] | None
    instead_of: str | None
    host_steps: bool
    of_samples: int
    dims: dict[str, int] | None
    assumed_dims: list[str]
    states: dict[str, list[int]]
    reset_every: int | None
    steady: Steady
    cold_start_ms: float
    modes: list[Mode]
    modalities: list[ModalityShare]
    critical_path: list[str]
    critical_path_ms: float
    timeline: list[Span]
    spread: Spread
    layers: list[Layer]
    profiled: Profiled
    roofline: dict[str, Any]
    scenario: dict[str, Any]
    resources: Resources
    warnings: list[str]
    budget: list[dict[str, Any]]


def check(report: object) -> tuple[str, ...]:
    """Returns what is wrong with a report, one line each with the place; empty when nothing is.

    Types, required keys and finite numbers are those of `Report`; keys that it does not know are left alone. Of
    times, percentiles must not fall, intervals must hold their percentile, and histograms must count every run.
    """
    if not isinstance(report, Mapping):
        return (f"the report is {shown(report)}, expected an object",)
    if report.get("kind") != KIND:
        return (f"kind: got {shown(report.get('kind'))}, expected '{KIND}'",)
    schema = report.get("schema")
    if schema != SCHEMA or type(schema) is not int:
        return (f"schema: got {shown(schema)}, this edgemm reads {SCHEMA}",)
    problems = list(problems_with(report, Report))
    return tuple(problems or contradictions(report))


def read_report(path: Path) -> Report:
    """Returns the report in a file that `edgemm profile --json` wrote.

    Raises:
        DataError: The file cannot be read, is not JSON, or is no report; the message says where.
    """
    hint = f"write one: edgemm profile FILE --json > {path.name}"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.", hint=hint) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.", hint=hint) from error
    problems = check(report)
    if problems:
        raise DataError(f"{path} is no latency report: {problems[0]}.", hint=hint)
    return report  # type: ignore[no-any-return]
