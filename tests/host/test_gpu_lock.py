from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from fib_tools.errors import LockedError, RequestError, StorageError
from fib_tools.host import _gpu_queue, gpu_lock
from fib_tools.host._gpu_queue import Queue, Request, default_folder
from fib_tools.host.gpu_lock import Waiting, acquire
from fib_tools.host.gpu_status import read_status
from gpu_requests import Asker


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Pretend two GPUs, with locks of their own."""
    for name in ("CUDA_VISIBLE_DEVICES", "FIB_GPU_LEASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIB_PRETEND_GPUS", "2")
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "locks"))
    return tmp_path / "locks"


def refusal(count: int, *, timeout: float = 0.0) -> str:
    """Say why so many GPUs cannot be had now."""
    with pytest.raises(LockedError) as caught, acquire(count, timeout=timeout):
        pass
    return caught.value.what


def is_free(count: int) -> bool:
    """Wait, on the kernel's word, until so many GPUs can be had."""
    with acquire(count, timeout=30) as lease:
        return len(lease.gpus) == count


def test_a_lease_names_its_gpus_and_what_a_command_needs_to_see() -> None:
    with acquire(2) as lease:
        assert [gpu.uuid for gpu in lease.gpus] == ["GPU-pretend-0", "GPU-pretend-1"]
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == "GPU-pretend-0,GPU-pretend-1"
        assert lease.environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_two_leases_have_different_gpus_and_a_third_is_told_who_holds_them() -> None:
    with acquire(1, command="train one") as one, acquire(1, command="train two") as other:
        assert one.gpus != other.gpus
        said = refusal(1)
    assert said.startswith("1 of 2 GPUs are not free: ")
    assert f"GPU-pretend-0: held by process {os.getpid()} (train one) since 20" in said
    assert "(train two)" in said


def test_a_lease_that_has_ended_leaves_its_gpus_free_and_no_file_behind(folder: Path) -> None:
    for _ in range(2):
        with acquire(2):
            assert len(list(folder.iterdir())) == 2
    assert [path.name for path in folder.iterdir()] == ["mutex"]


def test_an_error_inside_frees_the_gpus() -> None:
    with pytest.raises(KeyError), acquire(2):
        raise KeyError
    assert is_free(2)


def test_without_gpus_zero_can_be_had_and_no_lock_is_touched(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("FIB_PRETEND_GPUS", "0")
    with acquire(0, wait=False) as lease:
        assert (lease.gpus, lease.descriptors) == ((), ())
        assert lease.environment == {"CUDA_VISIBLE_DEVICES": "", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert not folder.exists()


@pytest.mark.parametrize(
    ("count", "visible", "said"),
    [(3, None, "and there are 2"), (2, "1", "and there is 1"), (1, "", "and there are 0"), (-1, None, "-1 GPUs")],
)
def test_what_can_never_be_had_is_refused_at_once(
    count: int, visible: str | None, said: str, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(RequestError, match=said) as caught, acquire(count):
        pass
    assert not isinstance(caught.value, LockedError)
    assert not folder.exists()


def test_an_outer_choice_of_gpus_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with acquire(1) as lease:
        assert lease.environment["CUDA_VISIBLE_DEVICES"] == "GPU-pretend-1"


def test_waiting_ends_with_the_time_limit_and_gives_the_place_back() -> None:
    with acquire(1):
        assert "GPU-pretend-0: held by" in refusal(2, timeout=0.05)
        assert read_status().waiters == ()


def test_an_interrupt_while_waiting_gives_the_place_back() -> None:
    def interrupt(_waiting: Waiting) -> None:
        raise KeyboardInterrupt

    with acquire(2):
        with pytest.raises(KeyboardInterrupt), acquire(1, report=interrupt):
            pass
        assert read_status().waiters == ()


def test_a_killed_holder_leaves_its_gpus_free(is_gone: Callable[[int], bool]) -> None:
    with Asker(2) as holder:
        command = int(holder.hear().split()[0])
        refusal(1)
        holder.kill()
        refusal(1)
        holder.release()
        assert is_gone(command)
        assert is_free(2)


def test_a_child_with_the_descriptors_keeps_the_gpus_after_the_lease() -> None:
    with acquire(2) as lease:
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE, pass_fds=lease.descriptors
        )
    with child:
        assert "held by" in refusal(1)
        child.kill()
    assert is_free(2)


def test_first_come_is_first_served() -> None:
    with ExitStack() as stack:
        askers = [stack.enter_context(Asker(2))]
        assert hear_gpus(askers[0])
        for position, count in enumerate((2, 1, 2, 1), start=1):
            askers.append(stack.enter_context(Asker(count)))
            assert askers[-1].hear() == f"waiting {position}"
        for last, asker in enumerate(askers[:-1], start=1):
            assert [waiter.pid for waiter in read_status().waiters] == [waiter.pid for waiter in askers[last:]]
            asker.release()
            assert hear_gpus(askers[last]).startswith("GPU-pretend-0")


def hear_gpus(asker: Asker) -> str:
    """Wait until its command runs; return its GPUs."""
    return next(line for line in iter(asker.hear, "") if "GPU" in line).split()[1]


def test_small_requests_do_not_slip_past_a_large_one() -> None:
    with Asker(1) as small:
        assert small.hear().endswith("GPU-pretend-0")
        with Asker(2) as large:
            assert large.hear() == "waiting 1"
            assert f"2 wanted earlier by process {large.pid}" in refusal(1)
            small.release()
            assert large.hear().endswith("GPU-pretend-0,GPU-pretend-1")


def test_a_request_for_other_gpus_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    with Asker(1, environment={"CUDA_VISIBLE_DEVICES": "0"}) as holder:
        assert holder.hear().endswith("GPU-pretend-0")
        with Asker(1, environment={"CUDA_VISIBLE_DEVICES": "0"}) as waiter:
            assert waiter.hear() == "waiting 1"
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
            with acquire(1, wait=False) as lease:
                assert lease.gpus[0].uuid == "GPU-pretend-1"


def test_a_killed_waiter_loses_its_place() -> None:
    with Asker(1) as holder:
        assert holder.hear()
        with Asker(2) as large:
            assert large.hear() == "waiting 1"
            with Asker(1) as small:
                assert small.hear() == "waiting 2"
                large.kill()
                assert hear_gpus(small) == "GPU-pretend-1"


def test_under_a_lease_more_requests_choose_from_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    with acquire(1, command="outer") as outer, Asker(2) as stranger:
        assert stranger.hear() == "waiting 1"
        for name, value in outer.environment.items():
            monkeypatch.setenv(name, value)
        with acquire(1, command="inner", wait=False) as inner:
            assert inner.gpus == outer.gpus
            assert "(inner)" in refusal(1)
            assert "(outer)" not in refusal(1)
            held = [holder.within for holder in read_status().holders]
            assert held == [None, outer.environment["FIB_GPU_LEASE"]]
        with pytest.raises(RequestError, match="there is 1"), acquire(2):
            pass


def test_the_name_of_a_lease_that_has_ended_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with acquire(1) as ended:
        monkeypatch.setenv("FIB_GPU_LEASE", ended.environment["FIB_GPU_LEASE"])
    with acquire(2, wait=False) as lease:
        assert len(lease.gpus) == 2


def test_a_waiter_is_told_its_place_and_what_it_waits_for() -> None:
    seen: list[Waiting] = []
    with acquire(2, command="all of them"), pytest.raises(LockedError), acquire(1, timeout=0.02, report=seen.append):
        pass
    assert [waiting.position for waiting in seen] == [1] * len(seen)
    assert "(all of them)" in seen[0].reasons[0]


def test_status_shows_holders_waiters_and_their_processes() -> None:
    with Asker(2) as holder:
        command = int(holder.hear().split()[0])
        with Asker(1) as waiter:
            assert waiter.hear() == "waiting 1"
            status = read_status()
            (held,), (waiting,) = status.holders, status.waiters
            assert (held.pid, held.gpus) == (holder.pid, ("GPU-pretend-0", "GPU-pretend-1"))
            assert held.command.startswith("sh -c")
            pids = {process.pid for process in held.processes}
            assert {holder.pid, command} <= pids
            assert waiter.pid not in pids
            assert (waiting.pid, waiting.count) == (waiter.pid, 1)
            assert [state.leases for state in status.gpus] == [(held.lease,)] * 2
            assert status.is_pretend


def test_status_is_never_stale(folder: Path) -> None:
    with Asker(1, ("sh", "-c", "echo $$; exec cat")) as holder:
        command = int(holder.hear())
        with Asker(2) as waiter:
            assert waiter.hear() == "waiting 1"
            waiter.kill()
            assert read_status().waiters == ()
            holder.kill()
            keeping = {process.pid for process in read_status().holders[0].processes}
            assert command in keeping
            assert holder.pid not in keeping
    assert is_free(2)
    left = folder / "ticket-000000000001-00000000"
    left.write_text('{"pid": 1}\n', encoding="utf-8")
    assert (read_status().holders, read_status().waiters) == ((), ())
    assert not left.exists()


def test_status_of_a_machine_without_locks_creates_none(folder: Path) -> None:
    assert [state.leases for state in read_status().gpus] == [(), ()]
    assert not folder.exists()


def test_status_tells_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [state.is_visible for state in read_status().gpus] == [False, True]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"count": 1}', '{"count": 1, "candidates": [], "command": ""}\n{}'])
def test_a_live_ticket_that_cannot_be_read_holds_everything(folder: Path, text: str) -> None:
    folder.mkdir()
    with (folder / "ticket-000000000001-00000000").open("w", encoding="utf-8") as ticket:
        fcntl.flock(ticket, fcntl.LOCK_EX)
        ticket.write(text)
        ticket.flush()
        assert "(cannot be read)" in refusal(1)
        assert all(state.leases for state in read_status().gpus)
    assert is_free(2)


def test_a_folder_behind_a_symlink_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    for attempt in (lambda: acquire(1).__enter__(), read_status):
        with pytest.raises(StorageError, match="cannot be used as a folder of locks"):
            attempt()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(folder: Path) -> None:
    folder.touch()
    with pytest.raises(StorageError, match="cannot be used as a folder"), acquire(1):
        pass


def test_a_folder_of_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 4242, 4242)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(StorageError, match="belongs to user"), acquire(1):
        pass
    assert list(folder.iterdir()) == []


def test_a_folder_where_others_could_remove_locks_is_refused_unless_it_is_sticky(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StorageError, match="others could remove"), acquire(1):
        pass
    folder.chmod(0o1777)
    assert is_free(2)


def test_a_missing_parent_of_the_folder_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIB_GPU_LOCK_DIR", str(tmp_path / "no" / "locks"))
    with pytest.raises(StorageError, match="cannot write"), acquire(1):
        pass


def test_a_symlink_in_the_place_of_the_mutex_is_not_followed(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (tmp_path / "target").touch()
    (folder / "mutex").symlink_to(tmp_path / "target")
    with pytest.raises(StorageError), acquire(1):
        pass


def test_the_folder_is_private_and_its_files_can_be_locked_by_a_group_that_shares_it(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        with acquire(1):
            modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert modes == {0o644}


def test_the_default_folder_is_the_users_own_whatever_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/nowhere")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    assert default_folder() == Path(f"/tmp/fib-gpu-lock-{os.geteuid()}")  # noqa: S108


def test_somebody_stopped_inside_the_mutex_is_told_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_free(1)
    monkeypatch.setattr(_gpu_queue, "_MUTEX_SECONDS", 0.02)
    with (folder / "mutex").open() as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        with pytest.raises(LockedError, match="does not answer"), acquire(1):
            pass


def test_a_mutex_that_was_removed_is_not_trusted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(folder)
    removed: list[int] = []
    open_once = queue._open_mutex

    def open_and_remove() -> int:
        descriptor = open_once()
        if not removed:
            removed.append(descriptor)
            (folder / "mutex").unlink()
        return descriptor

    monkeypatch.setattr(queue, "_open_mutex", open_and_remove)
    with queue.hold_mutex(), (folder / "mutex").open() as current, pytest.raises(BlockingIOError):
        fcntl.flock(current, fcntl.LOCK_EX | fcntl.LOCK_NB)
    queue.close()


def test_a_ticket_says_what_is_asked_for(folder: Path) -> None:
    queue = Queue(folder)
    request = Request(count=1, candidates=("GPU-a",), command="x")
    with queue.hold_mutex():
        name, descriptor = queue.enter(request)
        (ticket,) = queue.list_tickets()
        assert (ticket.name, ticket.request, ticket.gpus, ticket.granted) == (name, request, (), None)
        queue.grant(descriptor, ("GPU-a",))
        assert queue.list_tickets()[0].gpus == ("GPU-a",)
    assert json.loads((folder / name).read_text(encoding="utf-8").splitlines()[0])["command"] == "x"
    queue.leave(name, descriptor)
    queue.close()


def test_only_gpus_without_foreign_processes_are_taken_if_asked_so(monkeypatch: pytest.MonkeyPatch) -> None:
    running = {"GPU-pretend-0": (1,), "GPU-pretend-1": (os.getpid(),)}
    monkeypatch.setattr(gpu_lock, "find_processes", lambda gpus: {gpu.uuid: running[gpu.uuid] for gpu in gpus})
    monkeypatch.setattr(gpu_lock, "list_relatives", lambda: {os.getpid()})
    with acquire(1, idle=True) as lease:
        assert lease.gpus[0].uuid == "GPU-pretend-1"
    with acquire(1) as lease:
        assert lease.gpus[0].uuid == "GPU-pretend-0"
    with pytest.raises(LockedError, match="GPU-pretend-0: process 1 computes on it without a lock"):
        acquire(2, idle=True, wait=False).__enter__()


def test_a_gpu_that_becomes_idle_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(1,), (1,), ()])
    monkeypatch.setattr(gpu_lock, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(gpu_lock, "list_relatives", set)
    monkeypatch.setattr(
        gpu_lock, "find_processes", lambda gpus: dict.fromkeys((gpu.uuid for gpu in gpus), next(answers))
    )
    with acquire(2, idle=True, timeout=30) as lease:
        assert len(lease.gpus) == 2


def test_a_gpu_that_cannot_be_asked_is_not_taken_for_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lock, "find_processes", lambda gpus: dict.fromkeys(gpu.uuid for gpu in gpus))
    with pytest.raises(LockedError, match="NVML does not say"):
        acquire(1, idle=True, wait=False).__enter__()


def test_instances_of_a_gpu_are_locked_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from fib_tools.host.gpus import Discovery, Gpu

    instances = tuple(Gpu(uuid=f"MIG-{name}", index=0, name="1g", parent="GPU-aa") for name in "ab")
    discovery = Discovery(all_gpus=instances, visible=instances)
    monkeypatch.setattr(gpu_lock, "discover_gpus", lambda _settings: discovery)
    with acquire(1) as one, acquire(1) as other:
        seen = [lease.environment["CUDA_VISIBLE_DEVICES"] for lease in (one, other)]
    assert seen == ["MIG-a", "MIG-b"]


def test_a_full_disk_gives_the_place_back(monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(
        _gpu_queue, "os", SimpleNamespace(**{**vars(os), "write": lambda fd, data: write(fd, data[:1])})
    )
    with pytest.raises(StorageError, match="No space left"), acquire(1):
        pass
    monkeypatch.undo()
