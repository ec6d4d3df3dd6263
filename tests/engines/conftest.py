"""Stand-ins for servers, and the engines that ask them."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from servers import Server
from serving import MODEL, spec
from sweetspot import engines


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """A sensor that nothing is asked of, and the servers' processes that it was told of."""
    told: list[set[int]] = []

    def open_sensors(gpu: str | None, boards: int, uuid: str | None, owners: set[int]) -> list[object]:
        told.append(set(owners))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7")
        return [SimpleNamespace(name="0:GPU-7", has_ours=lambda: True)]

    monkeypatch.setitem(sys.modules, "sweetspot.sensors.nvml", SimpleNamespace(open_sensors=open_sensors))
    return told


@pytest.fixture
def opened(board: list[set[int]], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open the engine of a stand-in (or a command's), and close it after the test."""
    made = []

    def open_it(name: str, server: Server | None = None, **changes: Any) -> Any:
        wanted = spec(name, **({"url": server.url} if server else {}), **changes)
        engines.build(wanted, tmp_path / "engine")
        made.append(engines.open_device(wanted, tmp_path / "engine")[0])
        return made[-1]

    yield open_it
    for engine in made:
        engine.close()


@pytest.fixture
def serving() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def serve(kind: str, model: str = MODEL, **options: Any) -> Server:
        made.append(Server(kind, model, **options).started())
        return made[-1]

    yield serve
    for server in made:
        server.shutdown()
        server.server_close()
