"""Steps from raw sensor data to what a model takes, shipped with it. Device side: numpy and the standard library.

A recipe lists them by input, `inputs.camera.preprocess: [{resize: {size: [224, 224]}}, ...]`. Calibration,
evaluation and the device go through the same steps: as nodes in front of the graph (`edgemm.bake`, an app feeds
raw data), or as numpy on the host (`bake: false`, or a step that no graph can compute, such as a tokenizer).
Several inputs of a model may read one raw array, ids and mask of one text: `inputs.NAME.source: text` names it.

A step is a frozen, slotted dataclass, in the file of its family: `image`, `points`, `audio`, `imu`, `text`.

    @dataclass(frozen=True, slots=True)
    class CenterCrop:
        \"\"\"Cuts the middle out of images. ...\"\"\"      # shown in docs/preprocessing.md

        size: tuple[int, int]                               # options of the recipe, with their defaults
        def __post_init__(self) -> None: ...                # ranges: `edgemm.preprocess.step.expect`
        def apply(self, batch: np.ndarray) -> np.ndarray: ...           # [B, ...] -> [B, ...]
        def output(self, spec: TensorSpec) -> TensorSpec: ...           # what comes out of what goes in

- **Fields** are typed `int`, `float`, `bool`, `str`, `Literal[...]`, `tuple[int, int]`, `tuple[float, ...]`,
  `Path`, or one of these `| None`; `parse` converts and checks types by these annotations, `__post_init__` checks
  ranges. A field of type `Path` is a file that ships with the bundle: `convert` copies it, `parse` finds it there.
- **apply** is the reference: deterministic, does not change its argument, gives C-contiguous arrays, and float32
  wherever it gives floats. It works for any batch and never mixes samples. It may be called with what `output`
  accepts only; nothing is checked again. `batch` of a text step is an array of dtype `str` (`<U..`), shape [B].
- **output** takes and gives name, dtype (`"str"` for text) and shape with the batch at axis 0, where a size may be
  a symbolic name; what does not fit is an error by `edgemm.preprocess.step.refuse`. A size that is computed from a
  symbolic one gets a new name, made of `spec.name`, which stays. `apply` gives what `output` promised.
- **blank**, a `ClassVar[str]` of a step that may be the first: what its sensor gives when it is silent, as
  `inputs.NAME.blank` says it, where that is not zeros.
- **STEPS** in `registry` has one row for each step: its name in recipes, and `"module:Class"`.
- A step that a graph can compute has an emitter, a row in `edgemm.bake.registry.EMITTERS`:

      # edgemm/bake/emit_image.py
      def center_crop(tape: Tape, value: ir.Value, step: CenterCrop, spec: TensorSpec) -> ir.Value: ...

  `spec` is what goes into the step: the dtype and shape of `value`; where it says uint8, `value` is float32 with
  integers in it (TensorRT knows uint8 as an input only). The nodes are of ONNX's own operators, opset 18 or later,
  run on ONNX Runtime and compute what `apply` does: equal integers, and floats to 1e-5 of the largest (say in the
  docstring of the step where it is more, and why). Constants are float32; sizes may be symbolic, where the step
  can be computed so (raise `refuse` in the emitter otherwise: the step then runs on the host).

Tests: `tests/preprocess` (reference against the library that people use), `tests/bake` (graph against reference).
"""

from edgemm.preprocess.registry import STEPS, parse, to_json
from edgemm.preprocess.step import Step, output_of, run

__all__ = ["STEPS", "Step", "output_of", "parse", "run", "to_json"]
