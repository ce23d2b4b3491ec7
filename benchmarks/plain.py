"""What a user has without edgemm: the float model in one ONNX Runtime session with default options."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
import torch

from benchmarks.fixtures import Fixture
from edgemm.export.factory import call_factory
from edgemm.tensors import Feed, IOSpec


@dataclass(slots=True)
class PlainFloat:
    """The float model in one ONNX Runtime session with default options; states go round as in the bundle."""

    session: onnxruntime.InferenceSession
    io: IOSpec
    states: dict[str, np.ndarray]
    first: dict[str, np.ndarray]

    @classmethod
    def open(cls, fixture: Fixture, io: IOSpec, feed: Feed, threads: int = 0) -> PlainFloat:
        """Exports the fixture with torch.onnx.export unless it is ONNX already; opens it with so many threads."""
        model = fixture.model if fixture.model.suffix == ".onnx" else export_plain(fixture, io, feed)
        names = {s.input for s in io.states}
        zeros = {
            i.name: np.zeros([d if isinstance(d, int) else 1 for d in i.shape], i.dtype)
            for i in io.inputs
            if i.name in names
        }
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
        return cls(session, io, zeros, zeros)

    def reset_state(self) -> None:
        """Starts from zeros again."""
        self.states = self.first

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """Returns the outputs by name."""
        names = [o.name for o in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, {**self.states, **feed}), strict=True))
        self.states = {s.input: outputs[s.output] for s in self.io.states}
        return outputs

    def run_timed(self, feed: Feed) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Returns what `run` returns, and no times of parts."""
        return self.run(feed), {}


def export_plain(fixture: Fixture, io: IOSpec, feed: Feed) -> bytes:
    """Returns the model as torch.onnx.export writes it, dynamic where the bundle is."""
    arguments = {name: torch.from_numpy(np.concatenate([array] * 2)) for name, array in feed.items()}
    if fixture.model.suffix == ".pt2":
        program = torch.export.load(fixture.model)
        exported = torch.onnx.export(program, dynamo=True, verbose=False)
    else:
        module = call_factory(fixture.options[fixture.options.index("--factory") + 1]).eval()
        module.load_state_dict(torch.load(fixture.model, weights_only=True))
        dynamic = {i.name: {0: torch.export.Dim.DYNAMIC} for i in io.feed_inputs}
        exported = torch.onnx.export(
            module, (), kwargs=arguments, dynamic_shapes=dynamic, dynamo=True, verbose=False
        )
    names = [i.name for i in io.feed_inputs]
    for value, name in zip(exported.model.graph.inputs, names, strict=True):
        value.name = name
    data: bytes = exported.model_proto.SerializeToString()
    return data
