"""What is known about targets, as data: SM, JetPacks, precisions, memory, and the document that says so.

Facts are from NVIDIA's documents, named in `SOURCES`. Those of `builder` were found by building engines with
TensorRT-RTX 1.7.1.116 on a CPU.
"""

from __future__ import annotations

from typing import Any

SOURCES = {
    "cc": "NVIDIA, CUDA GPU Compute Capability (developer.nvidia.com/cuda-gpus)",
    "cc-legacy": "NVIDIA, Legacy CUDA GPU Compute Capability (developer.nvidia.com/cuda-legacy-gpus)",
    "rtx": "NVIDIA, TensorRT-RTX 1.0 to 1.5 Support Matrix",
    "builder": "the builder of TensorRT-RTX 1.7.1.116, run on a CPU",
    "trt-matrix": "NVIDIA, TensorRT Support Matrix (8.5.3 to 10.10.0)",
    "trt-dtypes": "NVIDIA, TensorRT 10.x documentation, Working with Quantized Types",
    "drive-thor": "NVIDIA, TensorRT 10.10.10 Release Properties for DRIVE OS 7.0.3",
    "jetpack-5": "NVIDIA, JetPack SDK 5.1 release notes",
    "jetpack-6": "NVIDIA, JetPack SDK 6.0 to 6.2 release notes; Torch-TensorRT in JetPack (6.1, 6.2)",
    "jetpack-7": "NVIDIA, JetPack SDK Downloads and Notes (7.0 on Jetson Linux 38.2, 7.1 on 38.4, 7.2 on 39.2)",
    "trt-11-jetson": "NVIDIA, Migrating TensorRT from 10.x to 11.x on Jetson/JetPack (TensorRT 11.4.1)",
    "dla": "NVIDIA, Working with DLA (TensorRT 11.4.1)",
    "orin": "NVIDIA, Jetson Orin Nano, Orin NX and AGX Orin Series data sheets",
    "thor": "NVIDIA, Jetson Thor Series data sheet",
    "xavier": "NVIDIA, Jetson AGX Xavier and Xavier NX Series data sheets",
    "ort": "ONNX Runtime, TensorRT and CUDA execution provider documentation",
}
"""Short name -> document."""

JETPACKS: dict[str, dict[str, str]] = {
    "5.1": {"l4t": "35", "tensorrt": "8.5", "cuda": "11.4", "python": "3.8", "source": "jetpack-5"},
    "6.0": {"l4t": "36.3", "tensorrt": "8.6", "cuda": "12.2", "python": "3.10", "source": "jetpack-6"},
    "6.1": {"l4t": "36.4", "tensorrt": "10.3", "cuda": "12.6", "python": "3.10", "source": "jetpack-6"},
    "6.2": {"l4t": "36.4.3", "tensorrt": "10.3", "cuda": "12.6", "python": "3.10", "source": "jetpack-6"},
    "7.0": {"l4t": "38.2", "tensorrt": "10.13", "cuda": "13.0", "python": "3.12", "source": "jetpack-7"},
    "7.1": {"l4t": "38.4", "tensorrt": "10.13", "cuda": "13.0", "python": "3.12", "source": "jetpack-7"},
    "7.2": {"l4t": "39.2", "tensorrt": "10.16", "cuda": "13.2", "python": "3.12", "source": "jetpack-7"},
    "7.2.2": {"l4t": "39.2", "tensorrt": "11.4", "cuda": "13.2", "python": "3.12", "source": "trt-11-jetson"},
}
"""JetPack -> what it brings."""

_RTX_BACKENDS = ("tensorrt-rtx", "ort-cuda", "onnxruntime")
_JETSON_BACKENDS = ("tensorrt", "ort-tensorrt", "ort-cuda", "onnxruntime")
_ORIN_JETPACKS = ("6.0", "6.1", "6.2", "7.2", "7.2.2")
_AMPERE = ("fp32", "tf32", "fp16", "bf16", "int8", "int4")
_INT4 = "int4 is for weights only"
_RTX_INT8 = (
    "precisions",
    "rtx",
    "the matrix lists int8 for weights of matrix products only; the builder takes int8 convolutions and products "
    "too, and puts int8 weights into the engine: that this is faster, nobody says",
)
_DLA_VERSIONS = (
    "dla",
    "dla",
    "TensorRT 10.7 was the last 10.x release with DLA: JetPack 6.0 to 6.2 have it, 7.2 (10.16) has not; 11.4.1 "
    "has it again, on AGX Orin only and from JetPack 7.2.2 on",
)


def _rtx(sm: int, architecture: str, gpus: str, precisions: tuple[str, ...], *facts: Any) -> dict[str, Any]:
    listed = "rtx" if sm in (75, 86, 89, 120, 121) else "builder"
    return {
        "kind": "rtx",
        "summary": f"desktop GPU, {architecture} ({gpus}), by TensorRT-RTX",
        "sm": sm,
        "precisions": precisions,
        "backends": _RTX_BACKENDS,
        "facts": (
            ("sm", "cc", f"compute capability {sm // 10}.{sm % 10}"),
            (
                "precisions",
                listed,
                f"{', '.join(precisions)}; {_INT4}" if "int4" in precisions else ", ".join(precisions),
            ),
            *facts,
        ),
    }


def _orin(summary: str, memory: tuple[int, ...], dla: int, dla_fact: str) -> dict[str, Any]:
    return {
        "kind": "jetson",
        "summary": summary,
        "sm": 87,
        "jetpacks": _ORIN_JETPACKS,
        "precisions": _AMPERE,
        "dla": dla,
        "memory_gb": memory,
        "backends": _JETSON_BACKENDS,
        "facts": (
            ("sm", "cc", "compute capability 8.7; TensorRT-RTX does not build for it"),
            ("precisions", "trt-matrix", "TF32, FP16, BF16 (from TensorRT 10.0), INT8; no FP8 and no FP4"),
            ("precisions", "trt-dtypes", f"INT4 from TensorRT 10.1; {_INT4}"),
            ("memory", "orin", f"{' or '.join(map(str, memory))} GB, shared by CPU and GPU"),
            ("dla", "orin", dla_fact),
            *((_DLA_VERSIONS,) if dla else ()),
            (
                "jetpacks",
                "trt-11-jetson",
                "JetPack 6.x stays on TensorRT 10.x; TensorRT 11.4.1 names AGX Orin and Thor with JetPack 7.2.2 "
                "or later, and is silent on Orin Nano and Orin NX",
            ),
        ),
    }


TARGETS: dict[str, dict[str, Any]] = {
    "cpu": {
        "kind": "cpu",
        "summary": "any x86-64 or ARM64 processor, by ONNX Runtime or OpenVINO",
        "precisions": ("fp32", "bf16", "int8", "int4"),
        "backends": ("onnxruntime", "openvino"),
        "facts": (("precisions", "ort", "bf16 where the processor has it (OpenVINO); int4 for weights only"),),
    },
    "cuda": {
        "kind": "cuda",
        "summary": "any NVIDIA GPU, by ONNX Runtime's CUDA provider",
        "precisions": ("fp32", "tf32", "fp16", "bf16"),
        "backends": ("ort-cuda", "onnxruntime"),
        "facts": (("precisions", "ort", "Q/DQ graphs run, in float: the provider has no int8 kernels for them"),),
    },
    "ort-tensorrt": {
        "kind": "cuda",
        "summary": "any NVIDIA GPU with TensorRT, by ONNX Runtime's TensorRT provider",
        "precisions": ("fp32", "tf32", "fp16", "bf16", "int8"),
        "backends": ("ort-tensorrt", "ort-cuda", "onnxruntime"),
        "facts": (
            ("precisions", "ort", "what the GPU has; operators that TensorRT has not run on the CUDA provider"),
        ),
    },
    "rtx-turing": _rtx(
        75,
        "Turing",
        "RTX 20",
        ("fp32", "fp16", "int8"),
        ("precisions", "builder", "no FP32 matrix products: MatMul, Gemm, Einsum, LSTM, GRU and RNN must be fp16"),
        (
            "precisions",
            "rtx",
            "the matrix lists no int8 here; the builder takes int8 convolutions, and int8 products in fp16 graphs",
        ),
        ("sm", "rtx", "an engine for Turing and others at once is slower; engines are built for one architecture"),
    ),
    "rtx-ampere": _rtx(86, "Ampere", "RTX 30, RTX A", _AMPERE, _RTX_INT8),
    "rtx-ada": _rtx(89, "Ada", "RTX 40", (*_AMPERE, "fp8"), _RTX_INT8),
    "rtx-blackwell": _rtx(120, "Blackwell", "RTX 50, RTX PRO", (*_AMPERE, "fp8", "fp4"), _RTX_INT8),
    "rtx-sm80": _rtx(
        80,
        "Ampere",
        "A100, A30",
        _AMPERE,
        ("sm", "rtx", "the matrix does not list 8.0; the builder takes it, also by default"),
    ),
    "rtx-sm121": _rtx(
        121,
        "Blackwell",
        "GB10, DGX Spark",
        (*_AMPERE, "fp8", "fp4"),
        _RTX_INT8,
        ("sm", "rtx", "listed from version 1.5 on"),
    ),
    "jetson-orin-nano": _orin("Jetson Orin Nano", (4, 8), 0, "none"),
    "jetson-orin-nx": _orin("Jetson Orin NX", (8, 16), 2, "one core in the 8 GB module, two in the 16 GB module"),
    "jetson-orin-agx": _orin("Jetson AGX Orin", (32, 64), 2, "two cores"),
    "jetson-thor": {
        "kind": "jetson",
        "summary": "Jetson AGX Thor (T5000, T4000)",
        "sm": 110,
        "jetpacks": ("7.0", "7.1", "7.2", "7.2.2"),
        "precisions": (*_AMPERE, "fp8", "fp4"),
        "memory_gb": (64, 128),
        "backends": _JETSON_BACKENDS,
        "facts": (
            ("sm", "cc", "compute capability 11.0 (Jetson T5000, T4000)"),
            ("sm", "drive-thor", "disagrees: 10.1 for Thor with CUDA 12.8; CUDA 13 renamed it to 11.0"),
            ("precisions", "drive-thor", "TF32, FP16, BF16, FP8, INT8"),
            ("precisions", "trt-dtypes", f"FP4 on Blackwell from TensorRT 10.8; {_INT4}"),
            ("memory", "thor", "T4000 64 GB, T5000 128 GB, shared by CPU and GPU"),
            ("dla", "dla", "Jetson Thor has no DLA"),
            ("jetpacks", "jetpack-7", "T4000 from JetPack 7.1 on"),
        ),
    },
    "jetson-xavier": {
        "kind": "jetson",
        "summary": "Jetson AGX Xavier and Xavier NX",
        "sm": 72,
        "jetpacks": ("5.1",),
        "precisions": ("fp32", "fp16", "int8"),
        "dla": 2,
        "memory_gb": (8, 16, 32, 64),
        "backends": ("onnxruntime",),
        "facts": (
            ("sm", "cc-legacy", "compute capability 7.2"),
            ("precisions", "trt-matrix", "FP16, INT8; no TF32, no BF16"),
            ("memory", "xavier", "NX 8 or 16 GB, AGX 32 or 64 GB, shared by CPU and GPU"),
            ("dla", "xavier", "two cores"),
            (
                "jetpacks",
                "jetpack-5",
                "JetPack 5.1 is the last; its TensorRT is for Python 3.8 and edgemm needs 3.10, so only a CPU "
                "backend in a Python of its own runs here",
            ),
        ),
    },
}
"""Name -> fields of `edgemm.backends.targets.Target`; a fact is (field, key of `SOURCES`, text)."""

ALIASES = {
    "orin-nano": "jetson-orin-nano",
    "orin-nx": "jetson-orin-nx",
    "orin-agx": "jetson-orin-agx",
    "agx-orin": "jetson-orin-agx",
    "jetson-agx-orin": "jetson-orin-agx",
    "thor": "jetson-thor",
    "xavier": "jetson-xavier",
    "jetson-xavier-nx": "jetson-xavier",
    "jetson-agx-xavier": "jetson-xavier",
    "turing": "rtx-turing",
    "ampere": "rtx-ampere",
    "ada": "rtx-ada",
    "blackwell": "rtx-blackwell",
}
"""Other names that people use."""
