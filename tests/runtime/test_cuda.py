"""The CUDA layer on a fake runtime that runs nothing before somebody waits for it."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from cuda_fake import COMPILER, FakeCuda, compiled, installed

from edgemm.errors import BackendError, DataError, UnsupportedDeviceError
from edgemm.runtime._cuda import dlpack, library
from edgemm.runtime._cuda.array import Reader
from edgemm.runtime._cuda.calls import ON_DEVICE, TO_DEVICE, TO_HOST
from edgemm.runtime._cuda.dtypes import decode, encode
from edgemm.runtime.cuda import (
    Block,
    Cuda,
    DeviceArray,
    Event,
    Gpu,
    LentArray,
    Pool,
    Slot,
    Stream,
    find_gpu,
    on_device,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="the fake CUDA runtime is compiled with cc")

HEADERS = Path("/usr/local/cuda/include")


@pytest.fixture
def fake() -> Iterator[FakeCuda]:
    with installed() as found:
        yield found


@pytest.fixture
def cuda(fake: FakeCuda) -> Cuda:
    return Cuda()


def array_of(cuda: Cuda, values: np.ndarray, stream: Stream, pool: Pool, reader: Reader) -> DeviceArray:
    """An array on the GPU whose values are on their way there."""
    pinned = Block(cuda, values.nbytes, pinned=True)
    assert pinned.host is not None
    pinned.host[: values.nbytes] = np.frombuffer(values.tobytes(), np.uint8)
    block = pool.take(values.nbytes)
    block.wait_in(stream)
    cuda.copy(block.pointer, pinned.address, values.nbytes, TO_DEVICE, stream)
    block.written.record(stream)
    pinned.written.record(stream)
    # the copy reads it still: it must live until then, as a pool sees to it
    keep = Pool(cuda, pinned=True)
    keep.close()
    array = DeviceArray(block, pool, values.shape, values.dtype.name, reader)
    array_of.pinned.append((keep, pinned))  # type: ignore[attr-defined]
    return array


array_of.pinned = []  # type: ignore[attr-defined]


def let_go() -> None:
    for keep, pinned in array_of.pinned:  # type: ignore[attr-defined]
        keep.give(pinned)
    array_of.pinned.clear()  # type: ignore[attr-defined]


# --- what is found ---


@pytest.mark.skipif(not (HEADERS / "cuda_runtime_api.h").is_file(), reason="NVIDIA's headers are not installed")
def test_fake_has_the_prototypes_of_nvidias_headers() -> None:
    assert compiled("-DWITH_CUDA_HEADERS", f"-I{HEADERS}", "-Werror").is_file()


def test_gpu(fake: FakeCuda) -> None:
    assert find_gpu() == Gpu("Fake GPU 0", 87, 16, 2**30, integrated=False)
    fake.machine(devices=2, integrated=True, memory=2**33)
    assert find_gpu(1) == Gpu("Fake GPU 1", 87, 16, 2**33, integrated=True)
    with pytest.raises(UnsupportedDeviceError, match="no GPU 2 here; CUDA finds 2"):
        find_gpu(2)


def test_no_gpu(fake: FakeCuda) -> None:
    fake.machine(devices=0)
    with pytest.raises(UnsupportedDeviceError, match=r"CUDA finds no GPU here .*cudaErrorNoDevice") as caught:
        find_gpu()
    assert "nvidia-smi" in caught.value.hint


def test_runtime_newer_than_the_driver(fake: FakeCuda) -> None:
    fake.fail("cudaGetDeviceCount", 1, 35)
    with pytest.raises(
        UnsupportedDeviceError, match=r"cudaErrorInsufficientDriver.*runtime for CUDA 12\.6, driver"
    ):
        find_gpu()
    assert find_gpu().name == "Fake GPU 0"  # the failure is not remembered


def test_an_older_runtime_is_taken_when_the_newest_has_no_driver(
    fake: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "RUNTIME_NAMES", ("libcudart.so.none", str(fake.file), str(fake.file)))
    fake.fail("cudaGetDeviceCount", 1, 35)
    assert find_gpu().sm == 87


@pytest.mark.parametrize(
    ("machine", "source", "not_there"),
    [("x86_64", "pip install nvidia-cuda-runtime", "JetPack"), ("aarch64", "nvidia-jetpack", "pip install")],
)
def test_no_library(monkeypatch: pytest.MonkeyPatch, machine: str, source: str, not_there: str) -> None:
    monkeypatch.setattr(library, "_candidates", lambda: iter(["libcudart.so.none", "libc.so.6"]))
    monkeypatch.setattr("platform.machine", lambda: machine)
    library.load_runtime.cache_clear()
    with pytest.raises(UnsupportedDeviceError, match="runtime library is not found") as caught:
        Cuda()
    assert "LD_LIBRARY_PATH" in caught.value.hint
    assert source in caught.value.hint
    assert not_there not in caught.value.hint


def test_no_driver_library(fake: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "DRIVER_NAMES", ("libcuda.so.none",))
    with pytest.raises(UnsupportedDeviceError, match="driver is not found"):
        find_gpu()


def test_driver_failure(fake: FakeCuda) -> None:
    fake.fail("cuDeviceGetName", 1, 999)
    with pytest.raises(UnsupportedDeviceError, match="cuDeviceGetName failed: the CUDA driver gives error 999"):
        find_gpu()


def test_wheels_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "nvidia/cuda_runtime/lib/libcudart.so.12",
        "nvidia/cu13/lib/libcudart.so.13",
        "nvidia/x/lib/a.so",
    ):
        file = tmp_path / name
        file.parent.mkdir(parents=True)
        file.touch()
    monkeypatch.syspath_prepend(tmp_path)
    found = [c for c in library._candidates() if str(tmp_path) in c]
    assert [Path(f).name for f in found] == ["libcudart.so.13", "libcudart.so.12"]


def test_real_runtime_without_a_driver() -> None:
    """Where NVIDIA's runtime is installed and no GPU is, its prototypes bind and it says what is missing."""
    for name in library._candidates():
        try:
            real = library.bind(ctypes.CDLL(name), library.RUNTIME)
        except OSError:
            continue
        break
    else:
        pytest.skip("no CUDA runtime is installed")
    count = ctypes.c_int()
    code = real.cudaGetDeviceCount(count)
    if code == 0:
        pytest.skip("there is a GPU")
    assert library.error_name(real, code) in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
    assert "driver" in library._explain(real, code)
    library.load_runtime.cache_clear()
    with pytest.raises(UnsupportedDeviceError, match="CUDA finds no GPU here"):
        find_gpu()


# --- calls ---


def test_errors_have_cudas_names_and_are_forgotten(fake: FakeCuda, cuda: Cuda) -> None:
    fake.fail("cudaMalloc", 1, 2)
    with pytest.raises(
        BackendError, match="cudaMalloc failed: cudaErrorMemoryAllocation: out of memory"
    ) as caught:
        Block(cuda, 8, pinned=False)
    assert "smaller batches" in caught.value.hint
    assert fake.library.cudaGetLastError() == 0


def test_a_lost_gpu_says_so(fake: FakeCuda, cuda: Cuda) -> None:
    fake.lose(700)
    with pytest.raises(BackendError, match="cudaErrorIllegalAddress") as caught:
        Stream(cuda)
    assert "start it again" in caught.value.hint


def test_the_threads_gpu_is_put_back(fake: FakeCuda) -> None:
    fake.machine(devices=2)
    cuda = Cuda(1)
    with cuda.active():
        now = ctypes.c_int()
        fake.library.cudaGetDevice(ctypes.byref(now))
        assert now.value == 1
    fake.library.cudaGetDevice(ctypes.byref(now))
    assert now.value == 0
    fake.reset()
    with Cuda(0).active():
        assert fake.counts["cudaSetDevice"] == 0


def test_events_order_streams(fake: FakeCuda, cuda: Cuda) -> None:
    """A copy on the second stream sees what the first one wrote only because it waits for the event."""
    host, a, b = Block(cuda, 16, pinned=True), Block(cuda, 16, pinned=False), Block(cuda, 16, pinned=False)
    assert host.host is not None
    first, second = Stream(cuda), Stream(cuda)
    host.host[:16] = np.arange(16)
    cuda.copy(a.pointer, host.address, 16, TO_DEVICE, first)
    a.written.record(first)
    second.wait(a.written)
    cuda.copy(b.pointer, a.pointer, 16, ON_DEVICE, second)
    b.written.record(second)
    assert not b.written.happened()
    assert fake.pending(first.handle) == 2
    b.written.synchronize()
    assert b.written.happened()
    host.host[:16] = 0
    cuda.copy(host.address, b.pointer, 16, TO_HOST, second)
    second.synchronize()
    assert host.host[:16].tolist() == list(range(16))
    for part in (first, second, host, a, b):
        part.close()
        part.close()


def test_the_fake_shows_work_that_nobody_ordered(fake: FakeCuda, cuda: Cuda) -> None:
    host, a = Block(cuda, 16, pinned=True), Block(cuda, 16, pinned=False)
    assert host.host is not None
    first, second = Stream(cuda), Stream(cuda)
    host.host[:] = 1
    cuda.copy(a.pointer, host.address, 16, TO_DEVICE, first)
    cuda.copy(host.address, a.pointer, 16, TO_HOST, second)
    second.synchronize()
    assert host.host[0] == 0xCD  # what nobody has written to
    for part in (first, second, host, a):
        part.close()


def test_timing_events(fake: FakeCuda, cuda: Cuda) -> None:
    stream, start, end = Stream(cuda), Event(cuda, timing=True), Event(cuda, timing=True)
    start.record(stream)
    end.record(stream)
    stream.synchronize()
    assert end.milliseconds_since(start) == pytest.approx(1.5)
    assert fake.calls.count("cudaEventCreateWithFlags 0") == 2
    for part in (stream, start, end):
        part.close()


@pytest.mark.parametrize("flags", [(), ("-DFAKE_CUDA_11",)])
def test_graphs_are_recorded_and_replayed(flags: tuple[str, ...]) -> None:
    with installed(*flags) as fake:
        cuda = Cuda()
        stream = Stream(cuda)
        ran: list[int] = []
        graph = cuda.capture(stream, lambda: fake.launch(stream.handle, lambda: ran.append(1)) and None)
        stream.synchronize()
        assert ran == []
        for _ in range(3):
            graph.launch(stream)
        stream.synchronize()
        assert ran == [1, 1, 1]
        assert ("cudaGraphInstantiate 11" in fake.calls) == bool(flags)
        graph.close()
        stream.close()


def test_a_capture_that_fails_leaves_the_stream_usable(fake: FakeCuda, cuda: Cuda) -> None:
    stream = Stream(cuda)

    def refuse() -> None:
        raise BackendError("no", hint="no")

    with pytest.raises(BackendError, match="no"):
        cuda.capture(stream, refuse)
    with pytest.raises(BackendError, match="cudaErrorStreamCaptureUnsupported"):
        cuda.capture(stream, stream.synchronize)
    for call in ("cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"):
        fake.reset()
        fake.fail(call, 1, 901)
        with pytest.raises(BackendError, match="cudaErrorStreamCaptureInvalidated"):
            cuda.capture(stream, lambda: None)
        stream.synchronize()
    stream.close()


def test_what_cannot_be_freed_is_logged(fake: FakeCuda, cuda: Cuda, caplog: pytest.LogCaptureFixture) -> None:
    event = Event(cuda)
    handle = event.handle
    fake.fail("cudaEventDestroy", 1, 1)
    event.close()
    assert "cudaEventDestroy failed: cudaErrorInvalidValue" in caplog.text
    cuda.release("cudaEventDestroy", handle)


# --- memory ---


@pytest.mark.parametrize("integrated", [False, True])
def test_pinned_memory(fake: FakeCuda, integrated: bool) -> None:
    fake.machine(integrated=integrated)
    block = Block(Cuda(), 1000, pinned=True)
    assert block.size == 1024
    assert block.host is not None
    assert block.host.shape == (1024,)
    assert (block.pointer == block.address) == integrated
    assert f"cudaHostAlloc {3 if integrated else 1}" in fake.calls
    block.close()


@pytest.mark.parametrize(
    "call", ["cudaEventCreateWithFlags", "cudaHostAlloc", "cudaHostGetDevicePointer", "cudaMalloc"]
)
def test_a_block_that_fails_leaks_nothing(fake: FakeCuda, call: str) -> None:
    fake.machine(integrated=True)
    cuda = Cuda()
    fake.fail(call, 1, 2)
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        Block(cuda, 10, pinned=call != "cudaMalloc")
    assert fake.live == {}


def test_blocks_come_back(fake: FakeCuda, cuda: Cuda) -> None:
    pool = Pool(cuda, pinned=False)
    first, second = pool.take(0), pool.take(3000)
    assert (first.size, second.size) == (256, 3072)
    pool.give(second)
    pool.give(first)
    assert pool.take(100) is first
    assert pool.take(100) is second
    pool.give(first)
    third = pool.take(10_000)  # the small one makes room
    assert fake.live == {"device": 2, "event": 2}
    pool.close()
    pool.give(second)
    pool.give(third)


def test_a_block_is_written_again_after_its_readers(fake: FakeCuda, cuda: Cuda) -> None:
    pool = Pool(cuda, pinned=False)
    writer, reader = Stream(cuda), Stream(cuda)
    source, target = Block(cuda, 4, pinned=True), Block(cuda, 4, pinned=True)
    assert source.host is not None
    assert target.host is not None
    block = pool.take(4)
    source.host[:4] = 1
    cuda.copy(block.pointer, source.address, 4, TO_DEVICE, writer)
    block.written.record(writer)
    reader.wait(block.written)
    cuda.copy(target.address, block.pointer, 4, TO_HOST, reader)
    done = Event(cuda)
    done.record(reader)
    block.readers.add(done)
    pool.give(block)
    block.written.synchronize()
    source.host[:4] = 2

    again = pool.take(4)
    assert again is block
    again.wait_in(writer)
    cuda.copy(again.pointer, source.address, 4, TO_DEVICE, writer)
    writer.synchronize()  # without the wait this write would come before the read
    reader.synchronize()
    assert target.host[0] == 1
    pool.give(again)
    pool.close()
    for part in (source, target, done, writer, reader):
        part.close()


def test_a_slot_grows_after_its_stream_is_done(fake: FakeCuda, cuda: Cuda) -> None:
    stream = Stream(cuda)
    slot = Slot(lambda size: Block(cuda, size, pinned=False))
    host = Block(cuda, 600, pinned=True)
    small = slot.at_least(100, stream)
    assert slot.at_least(200, stream) is small
    cuda.copy(small.pointer, host.address, 200, TO_DEVICE, stream)
    assert slot.at_least(600, stream).size == 768
    fake.fail("cudaMalloc", fake.counts["cudaMalloc"] + 1, 2)
    with pytest.raises(BackendError, match="cudaErrorMemoryAllocation"):
        slot.at_least(10_000, stream)
    assert slot.at_least(100, stream).size == 256
    for part in (slot, host, stream):
        part.close()


# --- arrays ---


@pytest.fixture
def parts(cuda: Cuda) -> Iterator[tuple[Stream, Pool, Reader]]:
    stream, pool, reader = Stream(cuda), Pool(cuda, pinned=False), Reader(cuda)
    yield stream, pool, reader
    gc.collect()
    stream.close()
    let_go()
    reader.close()
    pool.close()


VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_array_reaches_numpy(cuda: Cuda, parts: Any, fake: FakeCuda) -> None:
    _, _, reader = parts
    array = array_of(cuda, VALUES, *parts)
    assert (array.shape, array.dtype, array.ndim, array.nbytes) == ((2, 3), "float32", 2, 24)
    np.testing.assert_array_equal(array.numpy(), VALUES)
    np.testing.assert_array_equal(np.asarray(array), VALUES)
    assert np.asarray(array, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="by a copy only"):
        array.__array__(copy=False)
    reader.close()
    np.testing.assert_array_equal(array.numpy(), VALUES)  # also when its session is closed
    assert "[2, 3] float32 on GPU 0" in repr(array)


def test_array_is_not_written_to_while_somebody_has_it(cuda: Cuda, parts: Any) -> None:
    first, second = (array_of(cuda, VALUES + n, *parts) for n in range(2))
    assert first.pointer != second.pointer
    pointer = first.pointer
    del first
    third = array_of(cuda, VALUES + 2, *parts)
    assert third.pointer == pointer
    np.testing.assert_array_equal(second.numpy(), VALUES + 1)
    np.testing.assert_array_equal(third.numpy(), VALUES + 2)


def test_cuda_array_interface_of_an_array(cuda: Cuda, parts: Any, fake: FakeCuda) -> None:
    array = array_of(cuda, VALUES, *parts)
    said = array.__cuda_array_interface__
    assert fake.pending(parts[0].handle) <= 1  # it is computed: the consumer need not wait
    assert said == {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (array.pointer, False),
        "strides": None,
        "stream": None,
        "version": 3,
    }
    seen = np.frombuffer((ctypes.c_char * 24).from_address(said["data"][0]), np.float32)
    np.testing.assert_array_equal(seen.reshape(2, 3), VALUES)
    del array
    again = array_of(cuda, VALUES, *parts)
    assert fake.counts["cudaDeviceSynchronize"] == 1  # others may have read it, in an order that nobody knows
    assert again.shape == (2, 3)


def test_bfloat16_is_not_in_the_cuda_array_interface(cuda: Cuda, parts: Any) -> None:
    array = array_of(cuda, VALUES.astype(ml_dtypes.bfloat16), *parts)
    assert array.dtype == "bfloat16"
    assert not hasattr(array, "__cuda_array_interface__")
    np.testing.assert_array_equal(array.numpy(), VALUES)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"])
def test_torch_reads_our_capsules_and_we_read_torchs(
    cuda: Cuda, parts: Any, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Memory of the fake GPU is memory of the host: said to be that, torch can take it."""
    values = VALUES.astype(dtype)
    array = array_of(cuda, values, *parts)
    array.wait()
    monkeypatch.setattr(dlpack, "CUDA", 1)
    monkeypatch.setattr(DeviceArray, "__dlpack_device__", lambda self: (1, 0))
    tensor = torch.utils.dlpack.from_dlpack(array.__dlpack__())
    assert str(tensor.dtype) == f"torch.{dtype}"
    np.testing.assert_array_equal(tensor.float().numpy(), values.astype(np.float32))
    block = array._block
    del array
    assert block not in parts[1]._free  # torch has it
    taken = dlpack.take(tensor.__dlpack__())
    assert (taken.pointer, taken.shape, taken.dtype, taken.device, taken.contiguous) == (
        block.pointer, (2, 3), dtype, 0, True
    )  # fmt: skip
    assert not dlpack.take(tensor.T.__dlpack__()).contiguous
    del tensor, taken
    gc.collect()
    assert block in parts[1]._free
    assert dlpack._exported == {}


def test_capsules_that_nobody_takes(cuda: Cuda, parts: Any) -> None:
    array = array_of(cuda, VALUES, *parts)
    capsule = array.__dlpack__(stream=-1)
    assert len(dlpack._exported) == 1
    del capsule
    assert dlpack._exported == {}
    capsule = array.__dlpack__(stream=parts[0].handle)
    taken = dlpack.take(capsule)
    with pytest.raises(ValueError, match="used up"):
        dlpack.take(capsule)
    del taken, capsule
    gc.collect()
    assert dlpack._exported == {}
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            array.__dlpack__(**wrong)


def test_dlpack_lets_the_consumers_stream_wait(cuda: Cuda, parts: Any, fake: FakeCuda) -> None:
    array = array_of(cuda, VALUES, *parts)
    consumer = Stream(cuda)
    lent = LentArray(array, "image", consumer)
    target = Block(cuda, 24, pinned=True)
    assert target.host is not None
    lent.before(consumer)
    cuda.copy(target.address, lent.pointer, 24, TO_HOST, consumer)
    consumer.synchronize()
    np.testing.assert_array_equal(target.host[:24].view(np.float32), VALUES.ravel())
    assert lent.value is array
    consumer.close()
    target.close()


class Lender:
    """An array of a library that has the CUDA Array Interface only."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.__cuda_array_interface__ = said


def test_stream_of_the_cuda_array_interface(cuda: Cuda, parts: Any, fake: FakeCuda) -> None:
    stream = parts[0]
    array = array_of(cuda, VALUES, *parts)
    said = {
        "shape": (2, 3),
        "typestr": "<f4",
        "data": (array.pointer, False),
        "version": 3,
        "stream": stream.handle,
    }
    reader, target = Stream(cuda), Block(cuda, 24, pinned=True)
    assert target.host is not None
    lent = LentArray(Lender(said), "image", reader)
    assert on_device(lent)
    lent.before(reader)
    cuda.copy(target.address, lent.pointer, 24, TO_HOST, reader)
    reader.synchronize()
    np.testing.assert_array_equal(target.host[:24].view(np.float32), VALUES.ravel())
    reader.close()
    target.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": (4, 8)}, "not C-contiguous"),
        ({"typestr": "<c8"}, "got complex64 that no engine takes"),
        ({"typestr": ">f4"}, "a dtype that no engine takes"),
        ({"typestr": "what"}, "is damaged"),
        ({"shape": None}, "is damaged"),
        ({"mask": 1}, "a masked array"),
    ],
)
def test_lent_arrays_that_cannot_be_read(cuda: Cuda, parts: Any, changes: dict[str, Any], message: str) -> None:
    said = {"shape": (2, 3), "typestr": "<f4", "data": (256, False), "version": 3} | changes
    with pytest.raises(DataError, match=f"input 'image': .*{message}"):
        LentArray(Lender(said), "image", parts[0])


def test_tensor_that_needs_a_gradient(cuda: Cuda, parts: Any) -> None:
    with pytest.raises(DataError, match="the Tensor cannot be read where it is") as caught:
        LentArray(torch.ones(3, requires_grad=True), "image", parts[0])
    assert "detach" in caught.value.hint


def test_what_is_on_a_gpu(cuda: Cuda, parts: Any) -> None:
    assert not on_device(np.ones(3))
    assert not on_device(torch.ones(3))
    assert not on_device([1.0])
    assert on_device(array_of(cuda, VALUES, *parts))
    assert on_device(Lender({}))


@pytest.mark.parametrize(
    "call", ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMemcpyAsync", "cudaStreamSynchronize"]
)
def test_reading_fails_and_can_be_tried_again(cuda: Cuda, parts: Any, fake: FakeCuda, call: str) -> None:
    array = array_of(cuda, VALUES, *parts)
    fake.fail(call, fake.counts[call] + 1, 1)
    with pytest.raises(BackendError, match="cudaErrorInvalidValue"):
        array.numpy()
    np.testing.assert_array_equal(array.numpy(), VALUES)


# --- dtypes that numpy lacks ---


def test_bfloat16_is_that_of_ml_dtypes() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    values = np.concatenate(
        [values[~np.isnan(values)], np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-40])]
    )
    expected = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(encode(values, "bfloat16")[:-3], expected.view(np.uint16)[:-3])
    every = np.arange(2**16, dtype=np.uint16)
    np.testing.assert_array_equal(decode(every, "bfloat16"), every.view(ml_dtypes.bfloat16).astype(np.float32))


def test_float8_is_that_of_ml_dtypes_and_saturates() -> None:
    every = np.arange(256, dtype=np.uint8)
    known = every.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(decode(every, "float8_e4m3fn"), known)
    finite = known[~np.isnan(known)]
    np.testing.assert_array_equal(decode(encode(finite, "float8_e4m3fn"), "float8_e4m3fn"), finite)
    values = np.concatenate([np.linspace(-448, 448, 99_999, dtype=np.float32), (finite[:-1] + finite[1:]) / 2])
    values = values[np.abs(values) <= 448]
    expected = values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(encode(values, "float8_e4m3fn"), expected)
    np.testing.assert_array_equal(
        decode(encode(np.float32([1e6, -np.inf]), "float8_e4m3fn"), "float8_e4m3fn"), [448, -448]
    )
    assert np.isnan(decode(encode(np.float32([np.nan]), "float8_e4m3fn"), "float8_e4m3fn"))
