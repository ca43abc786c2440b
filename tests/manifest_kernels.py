"""Kernels as a manifest lists them, for tests of what reads one."""

from __future__ import annotations

from fib_tools.model.manifest import FiStatus, ManifestKernel, Phase1Status, SglStatus

__all__ = ["make_kernel"]


def make_kernel(name: str, layers: int, tp: tuple[int, ...]) -> ManifestKernel:
    return ManifestKernel(
        name=name,
        op_type="rmsnorm",
        kernel="rmsnorm",
        parameters={},
        layers=layers,
        tp=tp,
        phase1_status=Phase1Status.NEW,
        fi_status=FiStatus.SUPPORTED,
        fi_trace_template=True,
        sgl_status=SglStatus.MISSING,
    )
