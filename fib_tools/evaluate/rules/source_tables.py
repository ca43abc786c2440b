"""What a Python source of a Solution may import and touch: the tables that `source_python` reads.

The lists of what is denied are not what keeps a Solution in: that is the sandbox and the judge. They say early, and
with a line number, what would be refused later.
"""

from __future__ import annotations

__all__ = [
    "ALLOWED_DUNDERS",
    "ALLOWED_ROOTS",
    "BROAD_ERRORS",
    "COMPILER_OPTIONS",
    "DENIED_BUILTINS",
    "DENIED_NAMES",
    "DENIED_PATHS",
    "FRAME_ATTRIBUTES",
    "HARNESS_ROOTS",
    "LIBRARY_ROOTS",
    "OUTSIDE_MODULES",
    "PATCHING_METHODS",
    "TENSOR_CLASSES",
]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PURE = (
    "__future__ abc bisect collections contextlib copy dataclasses enum functools heapq itertools math numbers operator"
    " string struct textwrap typing typing_extensions warnings"
)
_KERNEL = "torch triton tilelang cutlass numpy einops tvm_ffi"
ALLOWED_ROOTS = _words(f"{_PURE} {_KERNEL}")
"""Modules that a kernel has a use for. `cuda.bindings` is not among them: through it one can reach anything."""

LIBRARY_ROOTS = _words(
    "aiter apex causal_conv1d deep_ep deep_gemm fla flash_attn flash_attn_interface flash_mla flashinfer kernels"
    " liger_kernel mamba_ssm quack sgl_kernel sglang tensorrt_llm transformer_engine vllm xformers"
)
"""Libraries of finished kernels. vLLM registers its own as `torch.ops._C`, which DENIED_PATHS has."""

HARNESS_ROOTS = frozenset({"fib_tools", "flashinfer_bench", "mcp_server"})

OUTSIDE_MODULES = _words(
    "_ctypes _io _os _posixsubprocess _sys _thread _weakref ast asyncio atexit builtins code codeop concurrent ctypes"
    " dis faulthandler fcntl gc glob importlib inspect io linecache logging marshal mmap multiprocessing os pathlib"
    " pickle pkgutil platform posix pty resource runpy selectors shutil site socket statistics subprocess sys sysconfig"
    " tempfile threading time traceback tracemalloc weakref zipimport"
)
"""Modules that must not be reached as an attribute of another either: `contextlib.os`, `torch.sys`."""

DENIED_PATHS: dict[str, str] = {
    **dict.fromkeys(
        (
            *("torch.hub", "torch.package", "torch.distributed", "torch.multiprocessing", "torch.futures"),
            *("torch.utils.data", "torch.utils.collect_env", "torch.utils.model_zoo", "torch.onnx", "torch.fx"),
            *("torch.profiler", "torch.autograd.profiler", "torch.utils.benchmark", "torch.testing", "torch.monitor"),
            *("torch._C", "torch.overrides", "torch.utils._python_dispatch", "torch.cuda.cudart", "torch._subclasses"),
            *("torch.cuda.memory", "torch.cuda.memory_snapshot", "torch.cuda.profiler", "torch.storage"),
            *("triton.backends", "triton.profiler", "triton.runtime.build", "triton.runtime.cache"),
            *("triton.tools.compile", "triton.tools.link", "triton.tools.disasm", "triton.tools.build_extern"),
            *("cutlass._mlir.execution_engine", "numpy.ctypeslib", "numpy.f2py", "numpy.testing", "numpy.distutils"),
            *("tilelang.contrib", "tilelang.profiler", "tilelang.autodd"),
        ),
        "source-import",
    ),
    **dict.fromkeys(
        (
            *("torch.load", "torch.save", "torch.from_file", "torch.jit.load", "torch.jit.CompilationUnit"),
            *("torch.ops.load_library", "torch.classes.load_library", "torch.utils.cpp_extension.load"),
            *("numpy.load", "numpy.save", "numpy.savez", "numpy.savez_compressed", "numpy.memmap", "numpy.fromfile"),
            *("numpy.loadtxt", "numpy.savetxt", "numpy.genfromtxt", "numpy.lib.stride_tricks", "numpy.lib.format"),
            *("tvm_ffi.load_module", "tvm_ffi.system_lib", "tvm_ffi.get_global_func", "tvm_ffi.cpp.load"),
            *("operator.attrgetter", "operator.methodcaller", "typing.get_type_hints", "typing.ForwardRef"),
            *("typing_extensions.get_type_hints", "typing_extensions.ForwardRef", "dataclasses.make_dataclass"),
            *("functools.singledispatch", "functools.singledispatchmethod"),
        ),
        "source-dynamic",
    ),
    **dict.fromkeys(
        (
            *("torch.library.Library", "torch.library.impl", "torch.library.define", "torch.utils.swap_tensors"),
            *("torch.cuda.CUDAPluggableAllocator", "torch.cuda.memory.change_current_allocator"),
            *("torch.utils.rename_privateuse1_backend", "torch.nn.modules.module.register_module_forward_hook"),
            *("tvm_ffi.register_global_func", "tvm_ffi.register_object"),
            *("functools.update_wrapper", "functools.wraps"),
        ),
        "source-patch",
    ),
    **dict.fromkeys((f"torch.ops.{name}" for name in (*LIBRARY_ROOTS, "_C", "_moe_C")), "source-library"),
}
"""Parts of allowed modules that reach outside, and the rule that each breaks; a prefix speaks for all below it."""

DENIED_BUILTINS = _words("eval exec compile __import__ globals locals vars open breakpoint")
DENIED_NAMES = frozenset({"__builtins__", "__loader__", "__spec__", "__build_class__"})

ALLOWED_DUNDERS = _words(
    "__all__ __call__ __dlpack__ __dlpack_device__ __doc__ __enter__ __exit__ __getitem__ __init__"
    " __iter__ __len__ __name__ __new__ __next__ __post_init__ __qualname__ __setitem__ __slots__ __version__"
)
FRAME_ATTRIBUTES = _words(
    "ag_await ag_code ag_frame cr_await cr_code cr_frame cr_origin f_back f_builtins f_code f_globals f_locals f_trace"
    " gi_code gi_frame gi_yieldfrom tb_frame tb_next _share_cuda_ _new_shared_cuda _share_fd_cpu_ _share_filename_cpu_"
    " tofile from_file _write_file _new_with_file _set_from_file"
)
"""Attributes that lead from any object to frames, to another process or to a file."""

COMPILER_OPTIONS = ("torch.backends.", "torch._inductor.config.", "torch._dynamo.config.")
"""Settings that an honest kernel may want otherwise, such as `torch.backends.cuda.matmul.allow_tf32`."""

PATCHING_METHODS = frozenset({"__torch_dispatch__", "__torch_function__"})
TENSOR_CLASSES = frozenset({"torch.Tensor", "torch.nn.Parameter", "torch.nn.parameter.Parameter"})
BROAD_ERRORS = frozenset({"BaseException", "Exception", "RuntimeError"})
"""RuntimeError is what torch and every driver raise, whatever went wrong."""
