"""A server's processes on the board are no strangers; everybody else's are."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nvml_inside import beside_a_server, board_of_a_server
from nvml_stub import H100, OTHER, Stub

ELSEWHERE = 4194304  # an id that no process here has


@pytest.fixture
def server() -> Iterator[tuple[int, int]]:
    """The ids of a server and of its child, which uses the board."""
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        while Path(f"/proc/{child}/comm").read_text().strip() != "sleep":  # the shell forks before it becomes sleep
            time.sleep(0.01)
        yield process.pid, child
        os.kill(child, 9)
        process.kill()


def test_a_server_and_what_it_started_are_no_strangers(
    stub: Stub, inside: Callable[..., Any], server: tuple[int, int]
) -> None:
    parent, child = server
    stub.set(f"process {child}")
    assert inside(beside_a_server, {parent}, [parent, child], True) == ()
    stub.set(f"process {child}")
    assert inside(beside_a_server, {parent}, [child, os.getpid()], True) == (os.getpid(),)
    stub.set(f"process {child}")
    assert inside(beside_a_server, {parent}, [child, ELSEWHERE], True) == (ELSEWHERE,)


def test_somebody_else_beside_the_server_is_refused(
    stub: Stub, inside: Callable[..., Any], server: tuple[int, int]
) -> None:
    parent, child = server
    stub.set(f"process {child}", f"process {os.getpid()}")
    assert f"in use by process {os.getpid()}" in inside(beside_a_server, {parent}, [], True)
    stub.set(f"process {child}")
    assert f"in use by process {child} (sleep)" in inside(beside_a_server, {os.getpid() + 1_000_000}, [], True)


def test_a_server_on_another_board_is_refused(stub: Stub, inside: Callable[..., Any], server: tuple[int, int]) -> None:
    stub.set()
    assert "no process of the server is on GPU" in inside(beside_a_server, {server[0]}, [], True)


def test_the_servers_board_is_found_among_several(
    stub: Stub, inside: Callable[..., Any], server: tuple[int, int]
) -> None:
    stub.set(f"process {server[1]} 2", boards=[H100, OTHER])
    assert inside(board_of_a_server, {server[0]}) == OTHER.split()[0]


def test_a_server_on_several_boards_is_refused(stub: Stub, inside: Callable[..., Any], server: tuple[int, int]) -> None:
    """One board's energy would be a part of its own."""
    stub.set(f"process {server[1]} 1", f"process {server[1]} 2", boards=[H100, OTHER])
    assert "the server runs on 2 GPUs" in inside(board_of_a_server, {server[0]})


def test_in_a_container_ids_that_mean_nothing_may_be_the_servers_and_are_not_checked(
    stub: Stub, inside: Callable[..., Any], server: tuple[int, int]
) -> None:
    stub.set(f"process {ELSEWHERE}")
    assert inside(beside_a_server, {server[0]}, [ELSEWHERE], False) is None
    stub.set(f"process {ELSEWHERE}")
    assert inside(beside_a_server, {server[0]}, [ELSEWHERE, os.getpid()], False) == (os.getpid(),)
