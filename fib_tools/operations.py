"""The one list of what the tools can do; command line, MCP server, headless agent and documents all read it."""

from __future__ import annotations

from fib_tools.operation import Effect, Operation

__all__ = ["JOB_TOOLS", "OPERATIONS", "get_operation"]

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        verb="onboard",
        tool="fib_onboard_model",
        entry="fib_tools.phases.onboard_all:onboard",
        answer="fib_tools.phases.onboard:OnboardResult",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="inventory",
        tool="fib_inventory_model",
        entry="fib_tools.phases.inventory:take_inventory",
        phase=1,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="discover",
        tool="fib_discover_models",
        entry="fib_tools.phases.discover:discover_models",
        phase=1,
        effect=Effect.READ,
        is_open_world=True,
    ),
    Operation(
        verb="define",
        tool="fib_define_kernels",
        entry="fib_tools.phases.define:define_model",
        phase=2,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="brief",
        tool="fib_get_manual_brief",
        entry="fib_tools.phases.brief:get_manual_brief",
        phase=2,
        effect=Effect.READ,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="admit",
        tool="fib_submit_definition",
        entry="fib_tools.phases.admit:submit_definition",
        phase=2,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="validate",
        tool="fib_validate_dataset",
        entry="fib_tools.phases.validate:validate_dataset",
        phase=None,
        effect=Effect.READ,
        is_long=True,
    ),
    Operation(
        verb="tests",
        tool="fib_test_references",
        entry="fib_tools.phases.reference_tests:write_or_run_tests",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="coverage",
        tool="",
        entry="fib_tools.phases.coverage:track_coverage",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="pages",
        tool="",
        entry="fib_tools.phases.pages:write_model_pages",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="collect",
        tool="",
        entry="fib_tools.phases.collect:collect_workloads",
        phase=3,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="bench",
        tool="fib_benchmark_kernels",
        entry="fib_tools.phases.bench:benchmark_kernels",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="submit",
        tool="fib_submit_prs",
        entry="fib_tools.phases.submit:submit_prs",
        phase=4,
        effect=Effect.OUTSIDE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="report",
        tool="fib_report_benchmarks",
        entry="fib_tools.phases.bench_report:report_benchmarks",
        phase=None,
        effect=Effect.READ,
        is_long=True,
    ),
    Operation(
        verb="baselines",
        tool="",
        entry="fib_tools.phases.baselines:write_baselines",
        phase=None,
        effect=Effect.WORKSPACE,
    ),
    Operation(
        verb="kernel-brief",
        tool="fib_get_kernel_brief",
        entry="fib_tools.phases.kernel_drafts:get_kernel_brief",
        phase=None,
        effect=Effect.READ,
    ),
    Operation(
        verb="draft",
        tool="fib_submit_solution",
        entry="fib_tools.phases.kernel_drafts:submit_solution",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="drafts",
        tool="fib_get_evaluation",
        entry="fib_tools.phases.kernel_drafts:get_evaluation",
        phase=None,
        effect=Effect.READ,
    ),
    Operation(verb="targets", tool="", entry="fib_tools.phases.targets:list_targets", phase=None, effect=Effect.READ),
    Operation(
        verb="optimize",
        tool="",
        entry="fib_tools.phases.optimize:optimize_kernel",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="optimize-model",
        tool="",
        entry="fib_tools.phases.optimize_model:optimize_model",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="calibrate",
        tool="",
        entry="fib_tools.phases.calibrate:calibrate_definitions",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="apply",
        tool="",
        entry="fib_tools.phases.apply:apply_solutions",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="clone",
        tool="fib_clone_repos",
        entry="fib_tools.phases.refresh:clone_repositories",
        phase=0,
        effect=Effect.WORKSPACE,
        is_long=True,
        is_open_world=True,
    ),
    Operation(
        verb="trace model",
        tool="",
        entry="fib_tools.phases.trace_model:trace_model",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="trace block",
        tool="",
        entry="fib_tools.phases.trace_block:trace_block",
        phase=None,
        effect=Effect.WORKSPACE,
        is_long=True,
    ),
    Operation(
        verb="trace diff", tool="", entry="fib_tools.phases.trace_diff:compare_traces", phase=None, effect=Effect.READ
    ),
    Operation(
        verb="view", tool="", entry="fib_tools.phases.view:view_dataset", phase=None, effect=Effect.READ, is_long=True
    ),
    Operation(
        verb="status",
        tool="fib_show_status",
        entry="fib_tools.phases.status:show_status",
        phase=None,
        effect=Effect.READ,
    ),
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
