"""Why the engine did not show a kernel of the inventory: the first reason that holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fib_tools.capture.evidence import OtherCall
from fib_tools.capture.runs import FLASHINFER_PAGE, PAGE_REASON, EngineRun, NotCovered
from fib_tools.model.manifest import FiStatus, ManifestKernel, SglStatus
from fib_tools.phases.trace_parameters import is_size, list_differing, read_parameters

__all__ = ["Reasons"]

_ROUTED = "fused_experts"
"""SGLang's function for the routed experts; its second tensor is the weights of them all."""
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
_STATIC: Mapping[str, str] = {
    "append_paged_kv_cache": "SGLang's own pool writes the cache, by itself or along with RoPE",
    "append_paged_mla_kv_cache": "SGLang's own pool writes the cache",
    "chain_speculative_sampling": "the runs decode without drafts",
}
_BLACKWELL = "FlashInfer's trtllm-gen kernels are for Blackwell GPUs, and the runs choose others"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasons:
    """What the runs did and could not do."""

    runs: Sequence[EngineRun]
    not_covered: Sequence[NotCovered]
    failures: Mapping[str, str]
    others: Sequence[OtherCall]
    matched: Sequence[ManifestKernel]
    """The kernels that were shown."""

    def explain(self, kernel: ManifestKernel) -> str:
        """Give the first reason that holds."""
        return next(self._list_reasons(kernel))

    def _list_reasons(self, kernel: ManifestKernel) -> Iterator[str]:
        if kernel.parameters.get("page_size") not in (None, FLASHINFER_PAGE):
            yield PAGE_REASON
        if kernel.kernel in _STATIC:
            yield _STATIC[kernel.kernel]
        if all(part.startswith("mtp.") for part in kernel.module.split(", ")):
            yield _STATIC["chain_speculative_sampling"]
        yield from self._find_uncovered(kernel)
        yield from self._find_fused_experts(kernel)
        yield from self._find_other_choice(kernel)
        if kernel.sgl_status is not SglStatus.INTEGRATED:
            untraced = "FlashInfer has none, or does not trace it" if not kernel.fi_trace_template else ""
            yield "; ".join(text for text in ("SGLang does not call FlashInfer for it", untraced) if text)
        if kernel.fi_status is FiStatus.MISSING or not kernel.fi_trace_template:
            yield "FlashInfer does not trace it"
        if kernel.parameters.get("kv_dtype"):
            yield "the runs keep the KV cache in the model's own type"
        if (kernel.fi_api or "").rpartition(".")[2].startswith("trtllm_"):
            yield _BLACKWELL
        yield self._explain_runs(kernel)

    def _list_own(self, kernel: ManifestKernel) -> list[EngineRun]:
        """List the runs that have the kernel's shapes."""
        own = [run for run in self.runs if {run.tp, run.attention_tp} & set(kernel.tp)]
        return [run for run in own if not kernel.ep or run.ep in kernel.ep]

    def _find_uncovered(self, kernel: ManifestKernel) -> Iterator[str]:
        found = [_find_item(run.not_covered, kernel) for run in self._list_own(kernel)]
        if found and all(found):
            yield "; ".join(dict.fromkeys(item.reason for item in found if item))

    def _find_fused_experts(self, kernel: ManifestKernel) -> Iterator[str]:
        """Tell of shared experts that were computed as routed ones: then there are more of these than the config says."""
        if "shared_expert" not in kernel.module:
            return
        for run in self._list_own(kernel):
            experts = next((run.config[name] for name in _EXPERTS if isinstance(run.config.get(name), int)), 0)
            for call in self.others:
                weights = list(call.tensors.values())[1:2]
                counts = [text.partition("[")[2].partition(",")[0] for text in weights]
                if call.run == run.name and call.kernel.endswith(_ROUTED) and counts == [str(experts + 1)]:
                    yield (f"SGLang computes the shared expert as one more of the {experts} routed ones: {weights[0]}")

    def _find_other_choice(self, kernel: ManifestKernel) -> Iterator[str]:
        """Tell of the kernel that was called in its place, if they differ in a choice and not in a size."""
        ours = read_parameters(kernel.kernel, kernel.parameters)
        for other in self.matched:
            if other.kernel != kernel.kernel:
                continue
            theirs = read_parameters(other.kernel, other.parameters)
            names = list_differing(ours, theirs)
            if names and not any(is_size(name) or name == "kv_dtype" for name in names):
                said = ", ".join(f"{name}={theirs.get(name)!r}" for name in names)
                yield f"SGLang calls it with {said}: {other.definition or other.name}"

    def _explain_runs(self, kernel: ManifestKernel) -> str:
        own = self._list_own(kernel)
        if not own:
            said = "; ".join(f"{item.subject}: {item.reason}" for item in self.not_covered)
            return f"no run has its shapes{': ' if said else ''}{said}"
        found = {run.name: self._explain_run(run, kernel) for run in own}
        silent = [name for name, reason in found.items() if not reason]
        if silent:
            return f"nothing that {', '.join(silent)} did led to it"
        return "; ".join(dict.fromkeys(found.values()))

    def _explain_run(self, run: EngineRun, kernel: ManifestKernel) -> str:
        """Say why this run cannot have shown it; empty when it could."""
        item = _find_item(run.not_covered, kernel)
        return item.reason if item else f"{run.name}: {self.failures[run.name]}" if run.name in self.failures else ""


def _find_item(items: Sequence[NotCovered], kernel: ManifestKernel) -> NotCovered | None:
    return next((item for item in items if _is_of(item, kernel)), None)


def _is_of(item: NotCovered, kernel: ManifestKernel) -> bool:
    in_modules = not item.modules or any(part in kernel.module for part in item.modules)
    return kernel.kernel in item.kernels and in_modules
