"""The CUDA layer on a real GPU."""

from __future__ import annotations

import numpy as np
import pytest

from edgemm.runtime._cuda.array import Reader
from edgemm.runtime._cuda.calls import ON_DEVICE, TO_DEVICE, TO_HOST
from edgemm.runtime.cuda import Block, Cuda, DeviceArray, Event, Gpu, Pool, Stream

pytestmark = pytest.mark.gpu

VALUES = np.arange(1 << 20, dtype=np.float32)


def test_what_the_gpu_is(gpu: Gpu) -> None:
    print(f"\n{gpu}")
    assert gpu.name
    assert 50 <= gpu.sm < 200
    assert gpu.multiprocessors > 0
    assert gpu.memory > 2**28


def test_copies_in_the_order_of_events(gpu: Gpu) -> None:
    cuda = Cuda()
    parts = host, a, b = [Block(cuda, VALUES.nbytes, pinned=p) for p in (True, False, False)]
    first, second, start, end = Stream(cuda), Stream(cuda), Event(cuda, timing=True), Event(cuda, timing=True)
    assert host.host is not None
    view = host.host[: VALUES.nbytes].view(np.float32)
    for seed in range(20):
        view[:] = VALUES + seed
        start.record(first)
        cuda.copy(a.pointer, host.address, VALUES.nbytes, TO_DEVICE, first)
        a.written.record(first)
        end.record(first)
        second.wait(a.written)
        cuda.copy(b.pointer, a.pointer, VALUES.nbytes, ON_DEVICE, second)
        second.synchronize()
        view[:] = 0
        cuda.copy(host.address, b.pointer, VALUES.nbytes, TO_HOST, second)
        second.synchronize()
        np.testing.assert_array_equal(view, VALUES + seed)
    first.synchronize()
    print(f"\n4 MiB to the GPU: {end.milliseconds_since(start):.3f} ms")
    for part in (*parts, first, second, start, end):
        part.close()


def test_memory_comes_back(gpu: Gpu) -> None:
    cuda = Cuda()
    Block(cuda, 2**20, pinned=False).close()
    before = cuda.free_memory()
    for _ in range(50):
        Block(cuda, 2**24, pinned=False).close()
        Block(cuda, 2**22, pinned=True).close()
    assert before - cuda.free_memory() < 2**24


def test_a_graph_of_copies(gpu: Gpu) -> None:
    cuda = Cuda()
    host, a = Block(cuda, 1024, pinned=True), Block(cuda, 1024, pinned=False)
    stream = Stream(cuda)
    assert host.host is not None
    graph = cuda.capture(stream, lambda: cuda.copy(a.pointer, host.address, 1024, TO_DEVICE, stream))
    for value in (1, 2):
        host.host[:] = value
        graph.launch(stream)
        stream.synchronize()
        host.host[:] = 0
        cuda.copy(host.address, a.pointer, 1024, TO_HOST, stream)
        stream.synchronize()
        assert (host.host == value).all()
    for part in (graph, host, a, stream):
        part.close()


def test_pinned_memory_is_read_by_an_integrated_gpu(gpu: Gpu) -> None:
    if not gpu.integrated:
        pytest.skip("this GPU has memory of its own")
    block = Block(Cuda(), 1024, pinned=True)
    assert block.pointer
    block.close()


def test_torch_takes_our_arrays(gpu: Gpu) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    cuda = Cuda()
    pool, reader, stream = Pool(cuda, pinned=False), Reader(cuda), Stream(cuda)
    host, block = Block(cuda, VALUES.nbytes, pinned=True), pool.take(VALUES.nbytes)
    assert host.host is not None
    host.host[: VALUES.nbytes] = VALUES.view(np.uint8)
    cuda.copy(block.pointer, host.address, VALUES.nbytes, TO_DEVICE, stream)
    block.written.record(stream)
    array = DeviceArray(block, pool, VALUES.shape, "float32", reader)
    np.testing.assert_array_equal(torch.from_dlpack(array).cpu().numpy(), VALUES)
    np.testing.assert_array_equal(torch.as_tensor(array, device="cuda").cpu().numpy(), VALUES)
    np.testing.assert_array_equal(array.numpy(), VALUES)
    del array
    for part in (host, reader, stream, pool):
        part.close()
