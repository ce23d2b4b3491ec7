"""Each development fixture is converted once per session and precision, by the command line, as a user would."""

from __future__ import annotations

import json

import pytest
from real_models import Convert, Converted, edgemm


@pytest.fixture(scope="session")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    folder, made = tmp_path_factory.mktemp("bundles"), {}

    def convert_once(name: str, precision: str) -> Converted:
        from benchmarks.fixtures import build

        if (name, precision) not in made:
            fixture, bundle = build(name), folder / f"{name}-{precision}.edgemm"
            options = ("-o", str(bundle), "--precision", precision, "--json")
            done = edgemm("convert", *fixture.arguments, *options)
            assert done.returncode == 0, done.stderr
            made[name, precision] = Converted(fixture, bundle, json.loads(done.stdout))
        return made[name, precision]

    return convert_once
