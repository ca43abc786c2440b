from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fib_tools.errors import ChildCrashedError, ChildMemoryError, ChildTimeoutError, JobRaisedError, ParallelismError
from fib_tools.host._sandbox_answer import RunningJob
from fib_tools.host.sandbox import Limits, Protections, Sandbox

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHORT = Limits(wall_seconds=0.3)
TOKEN = "hf_" + "abcdefghijklmnop"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the protections under test are those of Linux")


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    # only the module of the jobs may be readable, not the folder of the tests
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "sandbox_jobs.py").write_bytes((HERE / "sandbox_jobs.py").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        with Sandbox(("torch",), limits=Limits(wall_seconds=60), import_paths=(folder,)) as made:
            yield made


def is_still_warm(sandbox: Sandbox) -> bool:
    return sandbox.run("sandbox_jobs:echo", {"a": 1}) == {"got": {"a": 1}}


def count_survivors(pids: list[int], *, expected: int) -> int:
    """Count the processes that live on, giving those beyond the expected number 10 s to die."""
    watched = {}
    for pid in pids:
        with suppress(ProcessLookupError):
            watched[os.pidfd_open(pid)] = pid
    while len(watched) > expected:
        dead = select.select(list(watched), [], [], 10)[0]
        if not dead:
            break
        for descriptor in dead:
            os.close(descriptor)
            del watched[descriptor]
    survivors = len(watched)
    for descriptor in watched:
        os.close(descriptor)
    return survivors


def children(pid: int) -> list[int]:
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    return found + [deeper for child in found for deeper in children(child)]


def test_a_job_gets_its_payload_and_its_answer_comes_back(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:echo", {"x": [1, None, "ä"]}) == {"got": {"x": [1, None, "ä"]}}


def test_torch_works_after_the_fork(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:use_torch", {}) == {"value": [[5.0, 14.0], [14.0, 50.0]]}


def test_threads_and_lazy_imports_work(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:start_threads", {}) == {"seen": [0, 1, 2, 3]}
    assert sandbox.run("sandbox_jobs:import_lazily", {}) == {"names": ["fib_tools.host.locks", "hypothesis"]}


def test_every_payload_has_one_outcome_with_its_index(sandbox: Sandbox) -> None:
    outcomes = list(sandbox.run_many("sandbox_jobs:echo", [{"n": n} for n in range(9)], jobs=3))
    assert sorted((outcome.index, str(outcome.value)) for outcome in outcomes) == [
        (n, str({"got": {"n": n}})) for n in range(9)
    ]


def test_one_bad_job_does_not_spoil_its_neighbours(sandbox: Sandbox) -> None:
    payloads = [{"status": 3}, {"status": 4}, {"status": 5}]
    outcomes = list(sandbox.run_many("sandbox_jobs:exit_at_once", payloads, jobs=2))
    assert {(outcome.index, str(outcome.error)) for outcome in outcomes} == {
        (n, f"the job exited with status {n + 3} without an answer") for n in range(3)
    }
    assert is_still_warm(sandbox)


def test_a_run_inside_a_run_of_many_works(sandbox: Sandbox) -> None:
    seen = [
        sandbox.run("sandbox_jobs:echo", {"inner": outcome.index})["got"]["inner"]
        for outcome in sandbox.run_many("sandbox_jobs:echo", [{}] * 4, jobs=2)
    ]
    assert sorted(seen) == [0, 1, 2, 3]


@pytest.mark.parametrize("job", ["loop_forever", "ignore_signals_and_wait"])
def test_a_job_past_its_time_is_killed(job: str, sandbox: Sandbox) -> None:
    with pytest.raises(ChildTimeoutError, match=r"0\.3 s"):
        sandbox.run(f"sandbox_jobs:{job}", {}, limits=SHORT)
    assert is_still_warm(sandbox)


@pytest.mark.parametrize("job", ["allocate", "allocate_tensor"])
def test_a_hundred_gigabytes_are_refused(job: str, sandbox: Sandbox) -> None:
    with pytest.raises(ChildMemoryError):
        sandbox.run(f"sandbox_jobs:{job}", {"bytes": 100 << 30})


def test_memory_within_the_limit_is_given(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:allocate", {"bytes": 100 << 20}) == {"length": 100 << 20}


def test_no_process_can_be_started(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:try_to_fork", {}) == {"refused": "PermissionError"}
    assert sandbox.run("sandbox_jobs:fork_without_end", {}) == {"started": 0}


def test_a_bounded_number_of_processes_can_be_allowed(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:try_to_fork", {}, limits=Limits(processes=8))["forked"] > 0


def test_a_daemon_dies_with_its_job(sandbox: Sandbox) -> None:
    sandbox.run("sandbox_jobs:leave_a_daemon", {}, limits=Limits(processes=8))
    # what is left below this process: the keeper of the namespace and the warm process
    assert count_survivors(children(os.getpid()), expected=2) <= 2


@pytest.mark.parametrize(("job", "payload", "message"), [
    ("exit_at_once", {"status": 0}, "status 0 without an answer"),
    ("segfault", {}, "SIGSEGV"),
])  # fmt: skip
def test_a_job_that_dies_is_a_crash(job: str, payload: dict[str, int], message: str, sandbox: Sandbox) -> None:
    with pytest.raises(ChildCrashedError, match=message):
        sandbox.run(f"sandbox_jobs:{job}", payload)
    assert is_still_warm(sandbox)


def test_leaving_by_sys_exit_is_an_exception_like_any_other(sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError, match="SystemExit: bye"):
        sandbox.run("sandbox_jobs:leave", {})


def test_a_listener_on_loopback_cannot_be_reached(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        with pytest.raises(JobRaisedError, match="PermissionError"):
            sandbox.run("sandbox_jobs:connect", {"port": server.getsockname()[1]})
        with pytest.raises(BlockingIOError):
            server.accept()


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_UNIX"])
def test_no_socket_of_any_family_can_be_opened(family: str, sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError, match="PermissionError"):
        sandbox.run("sandbox_jobs:open_socket", {"family": family})


def test_a_file_outside_can_be_neither_read_nor_written(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("kept", encoding="utf-8")
    for job in ("read", "write"):
        with pytest.raises(JobRaisedError, match="PermissionError"):
            sandbox.run(f"sandbox_jobs:{job}", {"path": str(secret)})
    assert secret.read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("folder", [Path.home(), ROOT, Path("/"), Path("/proc"), Path("/tmp")])  # noqa: S108  # the real one
def test_home_work_tree_and_system_cannot_be_listed(folder: Path, sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError, match="PermissionError"):
        sandbox.run("sandbox_jobs:list_folder", {"path": str(folder)})


def test_the_environment_of_another_process_cannot_be_read(sandbox: Sandbox) -> None:
    for path in (f"/proc/{os.getpid()}/environ", "/proc/1/environ", "/proc/self/root/etc/passwd", "/etc/passwd"):
        with pytest.raises(JobRaisedError, match=r"PermissionError|FileNotFoundError"):
            sandbox.run("sandbox_jobs:read", {"path": path})


def test_the_scratch_folder_can_be_written_and_is_removed(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:write", {"path": "note"}) == {"text": "x"}
    folder = sandbox.run("sandbox_jobs:environment", {})["folder"]
    assert not Path(folder).exists()


def test_a_file_over_its_limit_is_refused(sandbox: Sandbox) -> None:
    limits = Limits(file_bytes=1 << 20, answer_bytes=1 << 20)
    with pytest.raises(JobRaisedError, match="OSError"):
        sandbox.run("sandbox_jobs:fill_a_file", {"bytes": 2 << 20}, limits=limits)


def test_a_job_sees_no_token_and_another_home(sandbox: Sandbox) -> None:
    answer = sandbox.run("sandbox_jobs:environment", {})
    assert TOKEN not in str(answer)
    assert answer["environment"]["HOME"] == answer["environment"]["TMPDIR"] == answer["folder"]
    assert "HF_TOKEN" not in answer["environment"]


def test_what_a_job_prints_cannot_pass_for_its_answer(sandbox: Sandbox) -> None:
    (outcome,) = sandbox.run_many("sandbox_jobs:make_noise", [{"characters": 1_000_000}])
    assert outcome.value == {"done": True}
    assert "the end of it" in outcome.output
    assert len(outcome.output) <= 64 << 10


def test_an_answer_over_its_limit_is_a_crash(sandbox: Sandbox) -> None:
    with pytest.raises(ChildCrashedError, match="over the limit of 1000"):
        sandbox.run("sandbox_jobs:answer_much", {"characters": 1000}, limits=Limits(answer_bytes=1000))


def test_an_answer_that_is_no_object_is_a_crash(sandbox: Sandbox) -> None:
    with pytest.raises(ChildCrashedError, match="not a JSON object"):
        sandbox.run("sandbox_jobs:answer_nonsense", {"kind": "list"})
    with pytest.raises(JobRaisedError, match="TypeError"):
        sandbox.run("sandbox_jobs:answer_nonsense", {"kind": "set"})


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"value": 1}', "null", '{"error": {"type": 3}}', '{"event": "ended", "job": 1}\n']
)
def test_garbage_on_every_open_descriptor_is_a_crash_of_that_job_only(text: str, sandbox: Sandbox) -> None:
    outcomes = list(sandbox.run_many("sandbox_jobs:forge_every_descriptor", [{"text": text}], jobs=1))
    assert [type(outcome.error) for outcome in outcomes] == [ChildCrashedError]
    assert is_still_warm(sandbox)


def test_a_patched_module_is_whole_again_in_the_next_job(sandbox: Sandbox) -> None:
    sandbox.run("sandbox_jobs:patch_json", {})
    assert is_still_warm(sandbox)
    assert "PATCHED" not in sandbox.run("sandbox_jobs:environment", {})["environment"]


def test_a_job_cannot_kill_the_warm_process(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:kill_everything", {})["refused"] > 0
    assert is_still_warm(sandbox)


def test_namespaces_and_tracing_are_refused_to_a_job(sandbox: Sandbox) -> None:
    assert sandbox.run("sandbox_jobs:protected_calls", {}) == {"unshare": [-1, 13], "ptrace": [-1, 13]}


def test_an_exception_comes_back_with_its_type_and_line_and_without_tokens(sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError) as caught:
        sandbox.run("sandbox_jobs:fail", {})
    assert (caught.value.type_name, caught.value.message) == ("ValueError", "bad ***")
    assert caught.value.line.endswith("in fail")


def test_an_error_of_ours_keeps_its_class_and_advice(sandbox: Sandbox) -> None:
    with pytest.raises(ParallelismError) as caught:
        sandbox.run("sandbox_jobs:fail", {"tp": 3})
    assert str(caught.value) == "tp=3 does not divide 64 (in num_heads); pass 2"


def test_endless_recursion_comes_back_as_an_exception(sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError, match="RecursionError"):
        sandbox.run("sandbox_jobs:recurse", {})


@pytest.mark.parametrize("entry", ["no_such_module:f", "sandbox_jobs:no_such_function"])
def test_a_missing_entry_is_named(entry: str, sandbox: Sandbox) -> None:
    with pytest.raises(JobRaisedError, match="no_such"):
        sandbox.run(entry, {})
    assert is_still_warm(sandbox)


def test_protections_are_reported_and_what_is_missing_is_named(sandbox: Sandbox) -> None:
    assert is_still_warm(sandbox)
    assert sandbox.protections is not None
    assert sandbox.protections.no_new_privileges
    assert sandbox.protections.memory_limited
    assert Protections(no_new_privileges=True).missing()[0] == "capabilities_dropped"


def test_closing_the_iterator_kills_what_still_runs(sandbox: Sandbox) -> None:
    outcomes = sandbox.run_many("sandbox_jobs:echo", [{}] * 50, jobs=2)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert sandbox._running == {}
    assert is_still_warm(sandbox)


def test_a_killed_warm_process_is_reported_and_replaced() -> None:
    with Sandbox(import_paths=(HERE,)) as sandbox:
        assert is_still_warm(sandbox)
        assert sandbox._warm is not None
        os.killpg(sandbox._warm._process.pid, signal.SIGKILL)
        with pytest.raises(ChildCrashedError, match="warm process"):
            sandbox.run("sandbox_jobs:echo", {})
        assert is_still_warm(sandbox)


UNMAPPED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from fib_tools.host import _linux
def refuse(uid, gid):
    raise PermissionError(1, "Operation not permitted")
_linux._map_user = refuse
def identity():
    return os.getuid(), *(os.readlink(f"/proc/self/ns/{name}") for name in ("user", "net", "ipc", "pid_for_children"))
before = identity()
print(_linux.enter_namespaces(), identity() == before)
"""


def test_namespaces_without_a_user_in_them_are_not_entered() -> None:
    command = [sys.executable, "-c", UNMAPPED, str(ROOT)]
    completed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (completed.stdout.split(), completed.stderr) == (["False", "True"], "")


POWERLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fib_tools.host._linux import drop_capabilities
from fib_tools.host.sandbox import Sandbox
assert drop_capabilities()
with Sandbox(import_paths=(Path(sys.argv[2]),)) as sandbox:
    sandbox.run("sandbox_jobs:echo", {})
    print(*sandbox.protections.missing())
"""


def test_root_without_capabilities_gets_what_the_kernel_still_grants(sandbox: Sandbox) -> None:
    command = [sys.executable, "-c", POWERLESS, str(ROOT), str(HERE)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert is_still_warm(sandbox)
    assert sandbox.protections is not None
    assert set(completed.stdout.split()) <= {*sandbox.protections.missing(), "signals_confined", "whole_tree_killed"}


def test_a_death_at_the_start_is_told_in_one_line_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"raise RuntimeError('first line\\nlast {TOKEN} ' + 'x' * 2000)"
    monkeypatch.setattr("fib_tools.host._sandbox_warm._BOOTSTRAP", code)
    with Sandbox() as sandbox, pytest.raises(ChildCrashedError, match=r"died: last \*\*\* x") as caught:
        sandbox.run("sandbox_jobs:echo", {})
    assert caught.value.where == "start of the sandbox"
    assert caught.value.todo
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


def test_a_preload_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ChildCrashedError, match="no_such_module"), Sandbox(("no_such_module",)) as sandbox:
        sandbox.run("sandbox_jobs:echo", {})


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_leaves_no_process_and_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = children(os.getpid())
    seen: list[int] = []

    def interrupt(_job: RunningJob, _protections: dict[str, bool]) -> None:
        seen.extend(set(children(os.getpid())) - set(before))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunningJob, "begin", interrupt)
    sandbox = Sandbox(import_paths=(HERE,))
    with pytest.raises(KeyboardInterrupt), sandbox:
        sandbox.run("sandbox_jobs:ignore_signals_and_wait", {})
    assert len(seen) >= 2
    assert count_survivors(seen, expected=0) == 0
    assert sandbox._folder is not None
    assert not sandbox._folder.exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fib_tools.host.sandbox import Sandbox
with Sandbox(import_paths=(Path(sys.argv[2]),)) as sandbox:
    sandbox.run("sandbox_jobs:echo", {})
    print(sandbox._folder, sandbox._warm._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_parent_takes_the_warm_process_and_its_folder_along() -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), str(HERE)]
    completed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    folder, pid = completed.stdout.split()
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(int(pid))
        ended, _, _ = select.select([descriptor], [], [], 20)
        os.close(descriptor)
        assert ended
    assert not Path(folder).exists()


def test_importing_the_sandbox_loads_nothing_heavy() -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import fib_tools.host.sandbox; print(*sys.modules)"
    command = [sys.executable, "-I", "-c", code, str(ROOT)]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert not loaded & {"torch", "pydantic", "filelock", "asyncio", "huggingface_hub"}
