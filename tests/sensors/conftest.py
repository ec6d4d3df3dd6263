"""A stub of NVIDIA's library with known power, and a process that loads it in place of the driver's."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

import nvml_inside
import nvml_stub
from nvml_stub import Stub


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Stub:
    return nvml_stub.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def inside(stub: Stub) -> Iterator[Callable[..., Any]]:
    """Call a function in a process that loads the stub in place of the driver's library."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stub.environment.items():
            patch.setenv(name, value)
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield lambda function, *arguments: pool.submit(nvml_inside.apart, function, stub, *arguments).result(
                timeout=60
            )
