"""What is left of TensorRT's own words, taken from real logs."""

from __future__ import annotations

import pytest

from edgemm.backends._trt.messages import clean, errors_of, hint_for, warnings_of

TOPK = (
    "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (ITopKLayer tk: tk: K exceeds the maximum "
    "value allowed (3840). In processCheck at /_src/optimizer/shapeof/graphShapeAnalyzer.cpp:1066 In "
    "analyzeShapes at "
    "/_src/optimizer/shapeof/graphShapeAnalyzer.cpp:2825)"
)
TURING = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] "
    "Cannot compile operation 'bad' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
    "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
)
NMS = (
    "[tacticSupply.cpp::getSupportedFormats::48] Error Code 2: Internal Error (Assertion "
    "!layerImpls.empty() "
    "failed. nms_0 has no runners that implement it In getSupportedFormats at "
    "/_src/optimizer/builder/tacticSupply.cpp:48)"
)
TYPES = (
    "Invalid Node - bad\nITensor::getDimensions: Error Code 4: API Usage Error (bad: IMatrixMultiplyLayer must "
    "have same input types. `A` is of type Half and `B` is of type Float. In validateTypes at "
    "/_src/optimizer/common/nodes/matrixMultiplyNode.cpp:38)\n[checkMacros.cpp::catchCudaError::250] Error Code "
    "1: Cuda Runtime (In catchCudaError at /_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver "
    "version is insufficient for CUDA runtime version))"
)
ZERO = "Assertion failed: shiftIsAllZeros(zeroPoint): Non-zero zero point is not supported."
STRING = (
    "Assertion failed: convertDtype(onnxDtype.elem_type(), &trtDtype) && "
    '"Failed to convert ONNX date type to TensorRT data type."'
)


@pytest.mark.parametrize(
    ("text", "cleaned", "hint"),
    [
        (TOPK, "ITopKLayer tk: tk: K exceeds the maximum value allowed (3840)", "TopK has a limit"),
        (
            TURING,
            "Cannot compile operation 'bad' for Turing (SM75): FP32 GEMM is not supported",
            "make this stage fp16",
        ),
        (
            NMS,
            "Assertion !layerImpls.empty() failed. nms_0 has no runners that implement it",
            "lacks the operator",
        ),
        (
            TYPES,
            "bad: IMatrixMultiplyLayer must have same input types. `A` is of type Half and `B` is of type Float",
            "put a Cast",
        ),
        (ZERO, "Non-zero zero point is not supported", "symmetric"),
        (STRING, "Failed to convert ONNX date type to TensorRT data type", "strings"),
        ("Unused input: mask", "Unused input: mask", "otherwise"),
    ],
)
def test_wrappers_go_and_words_stay(text: str, cleaned: str, hint: str) -> None:
    assert clean(text) == cleaned
    assert hint in hint_for(clean(text), "otherwise")


def test_a_missing_driver_is_no_error() -> None:
    noise = "[x.cpp::y::250] Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)"
    assert clean(noise) == ""
    log = [
        ("WARNING", "w"),
        ("ERROR", noise),
        ("ERROR", TOPK),
        ("INTERNAL_ERROR", NMS),
        ("ERROR", TOPK),
        ("WARNING", "w"),
    ]
    assert errors_of(log) == [clean(TOPK), clean(NMS)]
    assert warnings_of(log) == ("w",)
    assert warnings_of([("WARNING", "(foreignNode) Converting conv activation scales to fp32")]) == ()


def test_long_messages_are_cut() -> None:
    assert len(clean("word " * 1000)) <= 500
