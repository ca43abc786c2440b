"""Running a transformers model without weights, and reading its structure off the calls it makes.

>>> structure = trace_structure(config)
>>> [(op.role, op.attributes["n"], op.attributes["k"]) for op in structure.ops if op.kind is OpKind.LINEAR]
[('q', 4096, 4096), ('k', 1024, 4096), ...]
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any

from fib_tools.architecture.structure_schema import LayerGroup, NotTraceable, OpCall, Stage, Structure
from fib_tools.architecture.tracing_claims import claim_calls, list_unexplained
from fib_tools.architecture.tracing_graph import Graph
from fib_tools.architecture.tracing_model import MetaModel, build_model, find_layers, group_layers, keep_examples
from fib_tools.architecture.tracing_output import collect_ops
from fib_tools.architecture.tracing_recorder import Recorder, open_dispatch_mode
from fib_tools.architecture.tracing_regions import Watcher
from fib_tools.architecture.tracing_roles import assign_roles, mark_adds
from fib_tools.errors import MissingDependencyError
from fib_tools.host.sandbox import Limits, Sandbox
from fib_tools.model.base import read_strict
from fib_tools.model.kernel import Unexplained

__all__ = ["ENTRY", "PRELOAD", "trace", "trace_structure"]

ENTRY = "fib_tools.architecture.structure:trace"
"""What a sandbox runs."""
PRELOAD = ("torch", "transformers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
"""What a sandbox should import once, so that each trace starts in milliseconds."""
PREFILL_TOKENS = 263
"""A prime that is no dimension of a model, so that the token axis is recognised in every shape."""
_FAILURES = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, AssertionError)
"""What transformers raises on configs that it does not understand, and on code that needs real values."""
_LIMITS = Limits(wall_seconds=60, memory_bytes=4 << 30)


def trace_structure(config: Mapping[str, Any], *, sandbox: Sandbox | None = None) -> Structure | NotTraceable:
    """Trace the text backbone of a config; in the sandbox when one is given, else in this process.

    A config from outside that `read_facts` has refused should be traced in a sandbox only: nothing else bounds its time.

    Raises:
        ChildError: when the sandbox had to stop the model.
        MissingDependencyError: when transformers is not installed.
    """
    payload = {"config": copy.deepcopy(dict(config))}  # transformers writes into nested sections
    answer = trace(payload) if sandbox is None else sandbox.run(ENTRY, payload, limits=_LIMITS)
    where = "the structural trace"
    if "ops" in answer:
        return read_strict(Structure, answer, where=where)
    return read_strict(NotTraceable, answer, where=where)


def trace(payload: dict[str, Any]) -> dict[str, Any]:
    """Trace `payload["config"]`; JSON in and JSON out, to be called in a child process."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            "transformers", purpose="the structural trace", install="pip install transformers torch"
        ) from error
    transformers.logging.set_verbosity_error()
    started = time.perf_counter()
    built = _build(payload["config"])
    if isinstance(built, NotTraceable):
        return built.model_dump(mode="json")
    with torch.no_grad():
        result = _trace_model(built, started=started, version=str(transformers.__version__))
    return result.model_dump(mode="json")


def _build(config: dict[str, Any]) -> MetaModel | NotTraceable:
    from huggingface_hub.errors import StrictDataclassError

    try:
        return build_model(config)
    except (*_FAILURES, StrictDataclassError) as error:
        # transformers refuses configs with errors of every kind; none of them may take the facts down with it.
        return NotTraceable(
            model_type=str(config.get("model_type"))[:128] or "unknown",
            reason=f"transformers cannot build it: {type(error).__name__}: {str(error)[:300]}",
        )


def _trace_model(built: MetaModel, *, started: float, version: str) -> Structure | NotTraceable:
    model, config, model_type = built
    built_at = time.perf_counter()
    parameters = sum(value.numel() for name, value in model.named_parameters() if _is_text(name))
    path, layers = find_layers(model, config.num_hidden_layers)
    if not path:
        return NotTraceable(model_type=model_type, reason="the model has no list of num_hidden_layers layers")
    groups = group_layers(path, layers, config)
    keep_examples(layers, groups)
    try:
        graphs = _run_stages(model)
    except _FAILURES as error:
        return NotTraceable(
            model_type=model_type,
            reason=f"it does not run on the meta device: {type(error).__name__}: {str(error)[:300]}",
        )
    ran_at = time.perf_counter()
    return _summarise(
        graphs,
        groups,
        transformers_version=version,
        architecture=type(model).__name__,
        model_type=model_type,
        parameter_count=parameters,
        seconds={"build": round(built_at - started, 3), "run": round(ran_at - built_at, 3)},
    )


def _is_text(name: str) -> bool:
    return not any(word in name for word in ("visual.", "vision_", "audio_", "multi_modal_projector"))


def _run_stages(model: Any) -> dict[Stage, Graph]:
    import torch

    names = {id(value): name for name, value in (*model.named_parameters(), *model.named_buffers())}
    graphs: dict[Stage, Graph] = {}
    cache: Any = None
    with Watcher(model) as watcher:
        for stage, tokens in ((Stage.PREFILL, PREFILL_TOKENS), (Stage.DECODE, 1)):
            recorder = watcher.recorder = Recorder(names)
            recorder.tokens = PREFILL_TOKENS
            ids = torch.zeros((1, tokens), dtype=torch.long, device="meta")
            with open_dispatch_mode(recorder.record):
                output = model(input_ids=ids, use_cache=True, past_key_values=cache)
            cache = output.past_key_values
            graphs[stage] = recorder.graph
            watcher.recorder = None
    return graphs


def _summarise(graphs: dict[Stage, Graph], groups: tuple[LayerGroup, ...], **known: Any) -> Structure:
    ops: list[OpCall] = []
    unexplained: list[Unexplained] = []
    for stage, graph in graphs.items():
        claim_calls(graph)
        assign_roles(graph)
        mark_adds(graph)
        ops += collect_ops(graph, stage, groups, first_id=len(ops))
        unexplained += list_unexplained(graph)
    return Structure(
        **known, layer_groups=groups, ops=tuple(ops), unexplained=tuple(unexplained), prefill_tokens=PREFILL_TOKENS
    )
