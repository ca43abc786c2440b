from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mcp import Client, StdioServerParameters

from fib_tools.tools.job import JobState
from fib_tools.tools.jobs import Jobs

pytestmark = pytest.mark.anyio
PATIENCE = 60.0


def parameters(workspace: Path) -> StdioServerParameters:
    arguments = ["-m", "fib_tools", "mcp", "--offline", "--quiet", "--workspace", str(workspace)]
    return StdioServerParameters(command=sys.executable, args=arguments, env=dict(os.environ))


async def test_a_client_over_stdio_lists_and_calls(tmp_path: Path) -> None:
    async with Client(parameters(tmp_path)) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        answer = await client.call_tool("fib_show_status", {})
    assert "fib_onboard_model" in names
    assert not answer.is_error


async def test_a_job_outlives_the_client_that_began_it_and_another_reads_its_result(tmp_path: Path) -> None:
    async with Client(parameters(tmp_path)) as client:
        begun = await client.call_tool("fib_onboard_model", {"model": "qwen3-8b", "op_types": ["rmsnorm"]})
        job_id = begun.structured_content["job"]["job_id"]  # type: ignore[index]
    async with Client(parameters(tmp_path)) as client:
        answer = await client.call_tool("fib_get_job", {"job_id": job_id, "wait_seconds": 50})
    assert answer.structured_content is not None
    assert answer.structured_content["job"]["state"] == "done"
    assert answer.structured_content["has_errors"] is False


async def test_two_clients_at_once_on_one_manifest_lose_nothing(tmp_path: Path) -> None:
    async with Client(parameters(tmp_path)) as first, Client(parameters(tmp_path)) as second:
        arguments = {"model": "qwen3-8b", "op_types": ["rmsnorm", "rope"]}
        other = {**arguments, "op_types": ["rope"]}
        jobs = [
            (await client.call_tool("fib_onboard_model", said)).structured_content
            for client, said in ((first, arguments), (second, other))
        ]
        for job in jobs:
            await first.call_tool("fib_get_job", {"job_id": job["job"]["job_id"], "wait_seconds": 50})  # type: ignore[index]
        states = sorted(found.state.value for found in Jobs(tmp_path).list_jobs())
        final = await second.call_tool("fib_onboard_model", {**arguments, "wait_seconds": 50})
    assert states in (["done", "done"], ["done", "refused"])
    assert final.structured_content is not None
    assert final.structured_content["has_errors"] is False


def test_nothing_but_the_protocol_goes_to_stdout(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fib_tools", "mcp", "--workspace", str(tmp_path)]
    ran = subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (ran.returncode, ran.stdout) == (0, "")


def test_a_server_that_is_killed_leaves_its_job_to_finish(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fib_tools", "mcp", "--offline", "--quiet", "--workspace", str(tmp_path)]
    hello = (
        '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
        '"capabilities":{},"clientInfo":{"name":"test","version":"0"}}}\n'
        '{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
        '{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"fib_onboard_model",'
        '"arguments":{"model":"qwen3-8b","op_types":["rmsnorm"]}}}\n'
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(hello)
        server.stdin.flush()
        assert '"id":1' in server.stdout.readline()
        assert "job_id" in server.stdout.readline()
        server.send_signal(signal.SIGKILL)
    jobs = Jobs(tmp_path)
    (job,) = jobs.list_jobs()
    list(jobs.wait(job.job_id, PATIENCE))
    assert jobs.get(job.job_id).state is JobState.DONE


def test_a_server_ends_with_its_client_even_while_a_call_waits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fib_tools", "mcp", "--offline", "--quiet", "--workspace", str(tmp_path)]
    hello = (
        '{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18",'
        '"capabilities":{},"clientInfo":{"name":"test","version":"0"}}}\n'
        '{"jsonrpc":"2.0","method":"notifications/initialized"}\n'
        '{"jsonrpc":"2.0","id":2,"method":"tools/call","params":{"name":"fib_onboard_model",'
        '"arguments":{"model":"kimi-k2","wait_seconds":50},"_meta":{"progressToken":"p"}}}\n'
    )
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(hello)
        server.stdin.flush()
        assert '"id":1' in server.stdout.readline()
        assert "notifications/progress" in server.stdout.readline()
        server.stdin.close()
        server.stdout.read()
    jobs = Jobs(tmp_path)
    (job,) = jobs.list_jobs()
    assert job.state is JobState.RUNNING, "the server did not wait for it"
    jobs.cancel(job.job_id)
