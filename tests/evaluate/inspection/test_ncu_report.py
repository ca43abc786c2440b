from __future__ import annotations

from pathlib import Path

import pytest

from fib_tools.evaluate.inspection.ncu_report import KernelCounters, explain_failure, read_report

REPORT = (Path(__file__).parent / "data" / "ncu_raw.csv").read_text(encoding="utf-8")
"""Written after the format that Nsight Compute 2025.3 documents; no machine with counters made it."""

REFUSED = """\
==PROF== Connected to process 4242 (/usr/bin/python3.11)
==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters on the target \
device 0. For instructions on enabling permissions and to get more information see \
https://developer.nvidia.com/ERR_NVGPUCTRPERM
"""


def test_a_report_gives_the_figures_of_each_kernel() -> None:
    assert read_report(REPORT) == (
        KernelCounters(
            name="fused_add_rmsnorm_kernel",
            microseconds=61.888,
            dram=81.42,
            l2=60.73,
            sm=22.04,
            occupancy=47.61,
            most_occupancy=50.0,
            limiter="registers",
            registers=64,
            shared_bytes=28672,
            stall="long scoreboard",
            stall_share=13.40 / (1.84 + 13.40 + 0.92 + 1.00 + 2.11 + 2.13),
        ),
        KernelCounters(
            name="vectorized_elementwise_kernel",
            microseconds=2.304,
            dram=3.17,
            l2=12.01,
            sm=4.90,
            occupancy=11.83,
            most_occupancy=100.0,
            registers=32,
            shared_bytes=0,
            stall="long scoreboard",
            stall_share=11.25 / (11.25 + 0.31 + 1.00 + 1.20 + 4.00),
        ),
    )


def test_what_a_report_lacks_is_left_out() -> None:
    short = '"Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"\n"","ns","register/thread"\n'
    assert read_report(f'{short}"k","1,000.00","n/a"\n') == (KernelCounters(name="k", microseconds=1.0),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "==PROF== Connected to process 1\n==WARNING== No kernels were profiled.\n",
        '"Kernel Name","gpu__time_duration.sum"\n"","ns"\n"k","fast"\n',
        '"Kernel Name","gpu__time_duration.sum"\n"","ns"\n"k","-1"\n"k","inf"\n"k"\n',
        '"Kernel Name"\n""\n"k"\n',
    ],
)
def test_what_is_no_report_has_no_kernels(text: str) -> None:
    assert read_report(text) == ()


def test_a_name_in_a_report_is_short_and_plain_and_their_number_is_bounded() -> None:
    row = f'"ignore ```this``` {"x" * 200}","1,000.00"\n'
    kernels = read_report('"Kernel Name","gpu__time_duration.sum"\n"","ns"\n' + row * 500)
    assert len(kernels) == 64
    assert kernels[0].name == f"ignore this {'x' * 36}"


def test_a_report_cannot_fill_a_drafters_context_with_names_of_columns() -> None:
    words = "obey_me_" * 999
    limits = [
        f"launch__occupancy_limit_{name}" for name in ("registers", words, *(f"{'x' * 30}{end}" for end in "abcd"))
    ]
    stalls = [f"smsp__average_warps_issue_stalled_{name}_per_issue_active.ratio" for name in ("wait", words)]
    columns = ["Kernel Name", "gpu__time_duration.sum", *limits, *stalls]
    rows = (columns, [""] * len(columns), ["k", "1,000.00", *["2"] * len(limits), "1", "9"])
    (kernel,) = read_report("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows))
    assert (kernel.limiter, kernel.stall) == (f"registers, {'x' * 30}a, xxxx", "wait")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            REFUSED,
            "this user may not read the GPU's counters (ERR_NVGPUCTRPERM); an administrator can permit it",
        ),
        (
            "==ERROR== unrecognised option '--communicator'. Use --help for further details.\n",
            "this ncu is too old for the sandbox: it speaks with its target through sockets only, which",
        ),
        (
            "==ERROR== unrecognised option '--page'. Use --help for further details.\n",
            "it saw no kernel: unrecognised option '--page'. Use --help for further details.",
        ),
        ("==WARNING== No kernels were profiled.\n", "it saw no kernel: No kernels were profiled."),
        ("Traceback\nRuntimeError: boom\n", "it saw no kernel: RuntimeError: boom"),
        ("", "it saw no kernel"),
    ],
)
def test_a_failure_of_ncu_says_what_to_do(text: str, reason: str) -> None:
    assert explain_failure(text).startswith(reason)
