"""The one list of what the tools can do; command line, MCP server, headless agent and documents all read it."""

from __future__ import annotations

from fib_tools.operation import Effect, Operation
from fib_tools.phases.admit import submit_definition
from fib_tools.phases.apply import apply_solutions
from fib_tools.phases.baselines import write_baselines
from fib_tools.phases.bench import benchmark_kernels
from fib_tools.phases.bench_report import report_benchmarks
from fib_tools.phases.brief import get_manual_brief
from fib_tools.phases.calibrate import calibrate_definitions
from fib_tools.phases.collect import collect_workloads
from fib_tools.phases.coverage import track_coverage
from fib_tools.phases.define import define_model
from fib_tools.phases.discover import discover_models
from fib_tools.phases.inventory import take_inventory
from fib_tools.phases.kernel_drafts import get_evaluation, get_kernel_brief, submit_solution
from fib_tools.phases.onboard import OnboardResult
from fib_tools.phases.onboard_all import onboard
from fib_tools.phases.optimize import optimize_kernel
from fib_tools.phases.optimize_model import optimize_model
from fib_tools.phases.pages import write_model_pages
from fib_tools.phases.reference_tests import write_or_run_tests
from fib_tools.phases.refresh import clone_repositories
from fib_tools.phases.status import show_status
from fib_tools.phases.submit import submit_prs
from fib_tools.phases.targets import list_targets
from fib_tools.phases.trace_block import trace_block
from fib_tools.phases.trace_diff import compare_traces
from fib_tools.phases.trace_model import trace_model
from fib_tools.phases.validate import validate_dataset
from fib_tools.phases.view import view_dataset

__all__ = ["JOB_TOOLS", "OPERATIONS", "get_operation"]

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        verb="onboard",
        tool="fib_onboard_model",
        function=onboard,
        answer=OnboardResult,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="inventory",
        tool="fib_inventory_model",
        function=take_inventory,
        phase=1,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="discover",
        tool="fib_discover_models",
        function=discover_models,
        phase=1,
        effect=Effect.READ,
        is_open_world=True,
    ),
    Operation(
        verb="define",
        tool="fib_define_kernels",
        function=define_model,
        phase=2,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="brief",
        tool="fib_get_manual_brief",
        function=get_manual_brief,
        phase=2,
        effect=Effect.READ,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="admit",
        tool="fib_submit_definition",
        function=submit_definition,
        phase=2,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="validate",
        tool="fib_validate_dataset",
        function=validate_dataset,
        phase=None,
        effect=Effect.READ,
        is_long=True,
    ),
    Operation(
        verb="tests",
        tool="fib_test_references",
        function=write_or_run_tests,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="coverage",
        tool="",
        function=track_coverage,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="pages",
        tool="",
        function=write_model_pages,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(verb="collect", tool="", function=collect_workloads, phase=3, effect=Effect.WORKSPACE, is_long=True),
    Operation(
        verb="bench",
        tool="fib_benchmark_kernels",
        function=benchmark_kernels,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="submit",
        tool="fib_submit_prs",
        function=submit_prs,
        phase=4,
        effect=Effect.OUTSIDE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="report",
        tool="fib_report_benchmarks",
        function=report_benchmarks,
        phase=None,
        effect=Effect.READ,
        is_long=True,
    ),
    Operation(verb="baselines", tool="", function=write_baselines, phase=None, effect=Effect.WORKSPACE),
    Operation(
        verb="kernel-brief", tool="fib_get_kernel_brief", function=get_kernel_brief, phase=None, effect=Effect.READ
    ),
    Operation(
        verb="draft",
        tool="fib_submit_solution",
        function=submit_solution,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(verb="drafts", tool="fib_get_evaluation", function=get_evaluation, phase=None, effect=Effect.READ),
    Operation(verb="targets", tool="", function=list_targets, phase=None, effect=Effect.READ),
    Operation(
        verb="optimize",
        tool="",
        function=optimize_kernel,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="optimize-model",
        tool="",
        function=optimize_model,
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="calibrate", tool="", function=calibrate_definitions, phase=None, effect=Effect.WORKSPACE, is_long=True
    ),
    Operation(verb="apply", tool="", function=apply_solutions, phase=None, effect=Effect.WORKSPACE, is_long=True),
    Operation(
        verb="clone",
        tool="fib_clone_repos",
        function=clone_repositories,
        phase=0,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(verb="trace model", tool="", function=trace_model, phase=None, effect=Effect.WORKSPACE, is_long=True),
    Operation(verb="trace block", tool="", function=trace_block, phase=None, effect=Effect.WORKSPACE, is_long=True),
    Operation(verb="trace diff", tool="", function=compare_traces, phase=None, effect=Effect.READ),
    Operation(verb="view", tool="", function=view_dataset, phase=None, effect=Effect.READ, is_long=True),
    Operation(verb="status", tool="fib_show_status", function=show_status, phase=None, effect=Effect.READ),
)


def get_operation(verb: str) -> Operation:
    """Return the operation of a command."""
    return next(operation for operation in OPERATIONS if operation.verb == verb)


JOB_TOOLS: tuple[tuple[str, str, Effect], ...] = (
    (
        "fib_get_job",
        "Tell how far a long operation has come, and page its result and log; without a job_id, list the jobs.",
        Effect.READ,
    ),
    ("fib_cancel_job", "Stop a long operation; what it finished is kept.", Effect.WORKSPACE),
)
"""Tools that are about running operations, not operations: name, description, effect."""
