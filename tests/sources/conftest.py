from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

FLASHINFER = {
    "__init__.py": """
        from ._build_meta import __version__
        from .norm import rmsnorm as rmsnorm, rmsnorm as norm_alias
        from .decode import *
        from .xqa import xqa as xqa
        from . import moe as moe
    """,
    "_build_meta.py": """
        __version__ = "9.9.9"
        __git_commit__ = "abc123"
    """,
    "api_logging.py": """
        _TRACE_FI_API_ALIASES = {"flashinfer.moe._impl.fused": "flashinfer.moe.fused"}

        def flashinfer_api(func=None, *, trace=None):
            return func
    """,
    "norm.py": """
        import torch
        from .api_logging import flashinfer_api
        from .trace.templates import rmsnorm_trace

        @flashinfer_api(trace=rmsnorm_trace)
        def rmsnorm(input: torch.Tensor, /, weight, *sizes, eps: float = 1e-6, out=None, **options) -> torch.Tensor:
            return input

        @flashinfer_api
        def untraced(input):
            return input

        @flashinfer_api(trace=None)
        def explicitly_untraced(input):
            return input

        def private(input):
            return input
    """,
    "decode.py": """
        from .api_logging import flashinfer_api
        from .trace.templates import decode_trace, plan_trace

        class BatchDecodeWrapper:
            @flashinfer_api(trace=plan_trace)
            def plan(self, indptr): ...

            begin_forward = plan

            @flashinfer_api(trace=decode_trace)
            def run(self, q): ...

            def forward(self, q):
                return self.run(q)

        class GraphDecodeWrapper(BatchDecodeWrapper):
            pass

        class Unrelated:
            def run(self, q): ...
    """,
    "xqa.py": """
        from .api_logging import flashinfer_api
        from .trace.templates import xqa_trace_dispatch as xqa_trace

        if True:
            @flashinfer_api(trace=xqa_trace)
            def xqa(q): ...
    """,
    "moe/__init__.py": "from ._impl import fused as fused",
    "moe/_impl.py": """
        from ..api_logging import flashinfer_experimental_api
        from ..trace.templates import fused_trace

        @flashinfer_experimental_api(trace=fused_trace, feature="fused")
        def fused(x, w=(1, 2)): ...
    """,
    "trace/templates/__init__.py": """
        rmsnorm_trace = object()
        def xqa_trace_dispatch(**kwargs): ...
        fused_trace = _make_dispatch(1, 2)
    """,
}

SGLANG = {
    "__init__.py": "",
    "version.py": '__version__ = "1.2.3"',
    "srt/__init__.py": "",
    "srt/norm.py": """
        from flashinfer import norm_alias as fi_norm
        from sgl_kernel import silu_and_mul

        def forward(x):
            silu_and_mul(x)
            return fi_norm(x)
    """,
    "srt/late.py": """
        def forward(x):
            if x:
                import flashinfer.norm as late
                return late.rmsnorm(x)
    """,
    "srt/lazy.py": """
        from sglang.srt.utils import LazyImport
        lazy_norm = LazyImport("flashinfer.norm", "rmsnorm")
    """,
    "srt/reexport.py": "from sglang.srt.lazy import lazy_norm as renamed",
    "srt/user.py": """
        from .reexport import renamed
        print(renamed(1))
    """,
    "srt/modules.py": """
        import importlib
        moe = importlib.import_module("flashinfer.moe")
        registry = {"fused": moe.fused}
    """,
    "srt/attention.py": """
        import flashinfer
        from dataclasses import dataclass
        from flashinfer.decode import BatchDecodeWrapper, GraphDecodeWrapper, Unrelated

        @dataclass
        class Metadata:
            wrappers: "list[BatchDecodeWrapper]"

        class Backend:
            def __init__(self):
                self.items = []
                self.items.append(GraphDecodeWrapper())
                self.other = Unrelated()

            def use(self, metadata):
                wrapper = metadata.wrappers[0]
                wrapper.begin_forward(1)
                wrapper.forward(2)
                for item in self.items:
                    item.run(3)
                self.other.run(4)
                flashinfer.xqa(5)
    """,
    "srt/broken.py": "from flashinfer import (",
    "srt/mentions.py": "NAME = 'flashinfer.norm.rmsnorm'",
    "test/test_norm.py": """
        from flashinfer import rmsnorm
        rmsnorm(1)
    """,
    "srt/models/llama.py": """
        from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear
        from sglang.srt.models.base import Base

        class LlamaAttention:
            def __init__(self):
                self.qkv_proj = QKVParallelLinear(1, 2)
                self.o_proj = RowParallelLinear(1) if True else ReplicatedLinear(1)
                self.rotary = get_rope(1)

        class LlamaForCausalLM(Base):
            def load_weights(self, weights):
                stacked_params_mapping = [
                    (".qkv_proj", ".q_proj", "q"),
                    ("gate_up_proj", "up_proj", 1),
                ]

        class Phi3ForCausalLM(LlamaForCausalLM):
            pass

        EntryClass = [LlamaForCausalLM, Phi3ForCausalLM]
    """,
    "srt/models/base.py": """
        class Base:
            def __init__(self):
                self.lm_head = ParallelLMHead(1, 2)
    """,
    "srt/models/kimi.py": """
        class KimiForCausalLM: ...
        EntryClass = KimiForCausalLM
    """,
}


def write_tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), encoding="utf-8")
    return folder


@pytest.fixture
def flashinfer_root(tmp_path: Path) -> Path:
    """A small FlashInfer in a clone's layout."""
    write_tree(tmp_path / "fi" / "flashinfer", FLASHINFER)
    return tmp_path / "fi"


@pytest.fixture
def sglang_root(tmp_path: Path) -> Path:
    """A small SGLang in a clone's layout."""
    write_tree(tmp_path / "sgl" / "python" / "sglang", SGLANG)
    return tmp_path / "sgl"


@pytest.fixture
def line_of() -> Callable[[Path, str], int]:
    """Finds the line that holds a text."""

    def find(path: Path, text: str) -> int:
        lines = path.read_text(encoding="utf-8").splitlines()
        return next(number for number, line in enumerate(lines, 1) if text in line)

    return find
