from __future__ import annotations

import pytest

from fib_tools.errors import FormatError
from fib_tools.evaluate.rules.rules import RULES, Look
from fib_tools.evaluate.rules.source_native import check_symbols
from fib_tools.evaluate.rules.source_rules import check_sources
from fib_tools.model.solution import Binding, BuildSpec, Language, Solution, SourceFile


def make_solution(text: str, *, author: str = "someone", path: str = "main.py", **others: str) -> Solution:
    is_python = path.endswith(".py")
    files = {path: text, **{name.replace("__", "."): content for name, content in others.items()}}
    return Solution(
        name="example",
        definition="rmsnorm_h256",
        author=author,
        spec=BuildSpec(
            language=Language.PYTHON if is_python else Language.CUDA,
            target_hardware=["cuda"],
            entry_point=f"{path}::run",
            binding=None if is_python else Binding.TORCH,
        ),
        sources=[SourceFile(path=name, content=content) for name, content in files.items()],
    )


def broken(text: str, **more: str) -> list[str]:
    return sorted({violation.rule.name for violation in check_sources(make_solution(text, **more))})


def test_each_source_rule_says_what_it_forbids_in_one_sentence() -> None:
    assert [name for name, rule in RULES.items() if rule.look is Look.SOURCE] == [
        name for name in RULES if name.startswith("source-")
    ]
    assert all(rule.forbids.endswith(".") and rule.forbids.count(". ") == 0 for rule in RULES.values())
    assert RULES["audit"].look is Look.CHILD


def test_a_violation_says_where_and_what_to_do() -> None:
    (violation,) = check_sources(make_solution("import torch\nimport os\n"))
    assert violation.rule is RULES["source-import"]
    assert violation.detail == (
        "main.py:2: imports os, which a kernel has no use for; compute with torch, Triton or a C++/CUDA source"
    )


def test_all_breaches_are_gathered_in_the_order_of_files_and_lines() -> None:
    text = "import os\nimport torch\ntorch.abs = eval('1')\n"
    found = check_sources(make_solution(text, helper__py="import sys\n"))
    assert [violation.detail.partition(";")[0] for violation in found] == [
        "main.py:1: imports os, which a kernel has no use for",
        "main.py:3: changes torch.abs",
        "main.py:3: uses eval",
        "helper.py:1: imports sys, which a kernel has no use for",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "from os import *",
        "import os.path as torch",
        "from torch import *",
        "import torch, ctypes",
        "def run(x):\n    import threading",
        "import cuda.bindings.driver",
        "import contextlib\ncontextlib.os.system('true')",
        "import torch\ntorch.cuda.threading.Thread()",
        "from torch import os",
        "import torch.utils.data",
        "from torch.utils import data",
        "import torch\ntorch._C._cuda_synchronize()",
        "import torch\nc = torch.cuda\nc.memory.change_current_allocator(1)",
        "import torch.distributed as dist",
        "import triton.runtime.build",
        "from .helper import kernel\nimport somewhere_else",
    ],
)
def test_imports_that_reach_outside_are_refused(text: str) -> None:
    assert broken(text) == ["source-import"]


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "e = eval\ne('1')",
        "if 0:\n    eval = None\neval('1')",
        "def run(x):\n    return compile('1', '', 'eval')",
        "open('/proc/self/mem')",
        "(lambda f: f)(open)",
        "globals()['torch']",
        "__builtins__['ev' + 'al']",
        "__loader__.load_module",
        "import torch\ngetattr(torch, 'cu' + 'da')",
        "import torch\nname = 'cuda'\ngetattr(torch, name)",
        "import torch\ngetattr(torch, '__dict__')",
        "list(map(getattr, [1], ['real']))",
        "import operator\noperator.attrgetter('__globals__')",
        "from operator import methodcaller",
        "run = lambda: 0\nrun.__globals__",
        "().__class__.__base__.__subclasses__()",
        "def run():\n    yield\nrun().gi_frame.f_back",
        "async def run(): ...\nrun().cr_frame",
        "try:\n    pass\nexcept ValueError as error:\n    error.__traceback__",
        "run = lambda: 0\nrun.__code__ = None",
        "type('T', (), {})",
        "import torch\nmatch torch:\n    case object(cuda=c):\n        pass",
        "match 1:\n    case object(__class__=c):\n        pass",
        "import torch\ntorch.load('kept.pt')",
        "import numpy\nnumpy.fromfile('x')",
        "import numpy as np\nnp.lib.stride_tricks.as_strided(1)",
        "import typing\ntyping.get_type_hints(1)",
        "import torch\ntorch.ones(1).numpy().tofile('x')",
    ],
)
def test_code_names_and_files_that_are_found_at_run_time_are_refused(text: str) -> None:
    assert broken(text) == ["source-dynamic"]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.allclose = lambda *a: True",
        "import torch.cuda as c\nc.Event.elapsed_time = None",
        "from torch.cuda import Event as E\nE.elapsed_time = None",
        "import torch\nsetattr(torch.cuda, 'synchronize', None)",
        "import torch\ndelattr(torch, 'abs')",
        "import torch\ndel torch.abs",
        "import torch\ntorch.abs += 1",
        "import torch\nfor torch.abs in [1]: pass",
        "import torch\nwith torch.no_grad() as torch.abs: pass",
        "import torch\n[0 for torch.abs in [1]]",
        "import torch\ntorch.abs, x = 1, 2",
        "import torch\n(c := torch.cuda).synchronize = None",
        "import torch\nc = b = torch.cuda\nb.synchronize = None",
        "import torch\na, b = torch.cuda, 1\na.synchronize = None",
        "import torch\n[torch.cuda][0].synchronize = None",
        "import torch\nkept = {'c': torch.cuda}\nkept['c'].synchronize = None",
        "import torch\nkept = {}\nkept['c'] = torch.cuda\nkept.get('c').synchronize = None",
        "import torch\nfor name, module in {'c': torch.cuda}.items():\n    module.synchronize = None",
        "import torch\nclass K:\n    c = torch.cuda\nK.c.synchronize = None",
        "import torch\nclass K:\n    def __init__(self):\n        self.c = torch.cuda\n    def f(self):\n        self.c.abs = 1",
        "import torch\ndef patch(module):\n    module.synchronize = None\npatch(torch.cuda)",
        "import torch\ndef patch(a, *, module):\n    module.synchronize = None\npatch(1, module=torch.cuda)",
        "import torch\ndef patch(module=torch.cuda):\n    module.synchronize = None",
        "import torch\ndef same(m):\n    return m\nsame(torch.cuda).synchronize = None",
        "import torch\n(lambda m: m)(torch.cuda).synchronize = None",
        "import torch\ngetattr(torch, 'cuda').synchronize = None",
        "import torch\nnext(iter([torch.cuda])).synchronize = None",
        "import torch\ndef run(x):\n    type(x).mean = None",
        "from . import helper\nhelper.timer.elapsed_time = None",
        "import torch\nclass Late(torch.Tensor): ...",
        "from torch import Tensor as T\nclass Late(T): ...",
        "class Mode:\n    def __torch_dispatch__(self, func, types, args=(), kwargs=None): ...",
        "import torch\ntorch.library.Library('aten', 'IMPL')",
        "from torch.library import impl",
        "import math\nmath.sqrt = None",
    ],
)
def test_what_was_imported_may_not_be_changed(text: str) -> None:
    assert broken(text) == ["source-patch"]


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    x = 1\nexcept Exception:\n    x = 2",
        "try:\n    x = 1\nexcept:\n    pass",
        "try:\n    x = 1\nexcept (ValueError, RuntimeError) as error:\n    x = 2",
        "E = BaseException\ntry:\n    x = 1\nexcept E:\n    x = 2",
        "try:\n    x = 1\nexcept Exception:\n    if x:\n        raise",
        "def run():\n    try:\n        x = 1\n    finally:\n        return 2",
        "from contextlib import suppress\nwith suppress(Exception):\n    x = 1",
    ],
)
def test_a_broad_handler_that_carries_on_is_refused(text: str) -> None:
    assert broken(text) == ["source-fallback"]


@pytest.mark.parametrize(
    "text",
    [
        "import flashinfer",
        "from sglang.srt import layers",
        "import torch\ntorch.ops.sgl_kernel.rmsnorm.default(1)",
        "import vllm as torch",
    ],
)
def test_only_the_baseline_may_call_the_library_under_test(text: str) -> None:
    assert broken(text) == ["source-library"]
    assert broken(text, author="baseline") == []


def test_the_baseline_is_held_to_every_other_rule() -> None:
    assert broken("import flashinfer\nimport os\nflashinfer.norm.rmsnorm = None", author="baseline") == [
        "source-import",
        "source-patch",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "import fib_tools.evaluate.judge.judge",
        "from flashinfer_bench.bench import timing",
        "name = 'fib_tools.evaluate'",
    ],
)
def test_nothing_may_name_an_evaluator(text: str) -> None:
    assert broken(text) == ["source-harness"]


def test_a_file_may_not_take_the_name_of_another_module() -> None:
    assert broken("import torch", os__py="def system(c): ...") == ["source-import"]
    assert broken("import torch", sitecustomize__py="x = 1") == ["source-import"]
    assert broken("import helper\nfrom helper import kernel\nfrom . import helper", helper__py="kernel = 1") == []


HONEST = [
    '"""Speaks of exec, os.system, fib_tools and open("/proc/self/mem")."""\nimport torch\n',
    "import torch\nrun = torch.compile(lambda x: x)\n",
    "import math, functools\nimport torch.nn.functional as F\n",
    "import torch\ntorch.backends.cuda.matmul.allow_tf32 = True\ntorch._inductor.config.max_autotune = True\n",
    "def f(input, compile, open, vars):\n    return open(compile, vars, input)\n",
    "import torch\nDTYPES = {'half': torch.float16}\nDTYPES['single'] = torch.float32\n",
    "import torch\nx = getattr(torch, 'float8_e4m3fn', None)\nassert torch.__version__\n",
    "import torch\ntorch.trace(x); torch.select(x, 0, 1); torch.random.fork_rng(); torch.cuda.synchronize()\n",
    "import torch\ndef run(x):\n    run.calls = 1\n    s = torch.cuda.Stream()\n    with torch.cuda.stream(s):\n        return x\n",
    "try:\n    import triton\nexcept ImportError:\n    triton = None\n",
    "try:\n    x = 1\nexcept Exception as error:\n    raise ValueError('no') from error\n",
    (
        "import torch\nclass Norm(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.dtype = torch.float32\n"
        "        self.kept = {}\n    def forward(self, x):\n        self.kept['x'] = torch.float16\n        return x\n"
    ),
    "import torch\nclass F(torch.autograd.Function):\n    @staticmethod\n    def forward(ctx, x):\n        ctx.eps = 1\n        return x\n",
    (
        "import torch\nimport triton\nimport triton.language as tl\nfrom triton.language.extra import libdevice\n\n"
        "@triton.autotune(configs=[triton.Config({'B': 64}, num_warps=4)], key=['n'])\n@triton.jit\n"
        "def kernel(x, n, B: tl.constexpr):\n    at = tl.program_id(0) * B + tl.arange(0, B)\n"
        "    value = tl.load(x + at, mask=at < n)\n    tl.store(x + at, libdevice.rsqrt(value) + tl.math.exp(value), mask=at < n)\n\n"
        "def run(x):\n    grid = lambda meta: (triton.cdiv(x.numel(), meta['B']),)\n    kernel[grid](x, x.numel())\n"
    ),
    (
        "import triton\nfrom triton.runtime import driver\nfrom triton.tools.tensor_descriptor import TensorDescriptor\n"
        "count = driver.active.utils.get_device_properties(0)['multiprocessor_count']\ntriton.set_allocator(lambda size, align, stream: 0)\n"
    ),
    (
        "import tilelang\nimport tilelang.language as T\n\n@tilelang.jit(out_idx=[1])\ndef make(n):\n    @T.prim_func\n"
        "    def main(A: T.Tensor((n,), 'float16'), B: T.Tensor((n,), 'float16')):\n        with T.Kernel(T.ceildiv(n, 128)) as b:\n"
        "            T.copy(A[b * 128], B[b * 128])\n    return main\n"
    ),
    (
        "import cutlass\nimport cutlass.cute as cute\nfrom cutlass.cute.runtime import from_dlpack\n\n@cute.kernel\ndef kernel(x: cute.Tensor):\n"
        "    i, _, _ = cute.arch.thread_idx()\n    cute.copy(x, x)\n\n@cute.jit\ndef launch(x):\n    kernel(x).launch(grid=(1, 1, 1), block=(1, 1, 1))\n"
    ),
    (
        "import torch\nfrom torch.utils.cpp_extension import load_inline\nCUDA = '#include <torch/extension.h>\\nint one() { return 1; }'\n"
        "module = load_inline(name='one', cpp_sources=['int one();'], cuda_sources=[CUDA], functions=['one'], extra_cuda_cflags=['-O3'])\n"
    ),
]


@pytest.mark.parametrize("text", HONEST)
def test_honest_python_passes(text: str) -> None:
    assert check_sources(make_solution(text)) == []


def test_inline_c_plus_plus_is_read_too() -> None:
    head = "from torch.utils.cpp_extension import load_inline\n"
    assert broken(head + "load_inline(name='a', cpp_sources='int f() { return fork(); }')") == ["source-native"]
    assert broken(head + "text = 'a' + 'b'\nload_inline(name='a', cpp_sources=text)") == ["source-dynamic"]
    assert broken(head + "text = 'a'\nif 1:\n    text = f'b'\nload_inline(name='a', cpp_sources=text)") == [
        "source-dynamic"
    ]
    assert broken(head + "load_inline(name='a', cpp_sources='', extra_ldflags=['-lcupti'])") == ["source-dynamic"]
    assert broken(head + "options = {}\nload_inline('a', **options)") == ["source-dynamic"]


@pytest.mark.parametrize("text", ["def run(:", "x = '\0'", "(" * 400 + ")" * 400])
def test_what_is_no_python_is_an_error_and_no_breach(text: str) -> None:
    with pytest.raises(FormatError, match=r"not Python.*main\.py"):
        check_sources(make_solution(text))


def test_a_tree_that_is_too_deep_to_walk_is_an_error_and_no_breach() -> None:
    with pytest.raises(FormatError, match=r"main\.py"):
        check_sources(make_solution("x = " + "+".join(["1"] * 20_000)))


def test_a_wrong_escape_in_a_docstring_is_no_breach() -> None:
    assert broken('"""Matches \\d."""\nimport torch\n') == []


CUDA_HONEST = [
    '// fork(), system() and dlopen("libcupti.so")\n/* /proc/self/mem */\n#include <torch/extension.h>\n#include "norm.cuh"\n',
    "#include <ATen/cuda/CUDAContext.h>\nvoid run(torch::Tensor x) { auto y = x.clone(); y->clone(); torch::clone(x); file.open(1); }\n",
    "cudaStream_t s = at::cuda::getCurrentCUDAStream();\nkernel<<<1, 32, 0, s>>>(p);\nTORCH_CHECK(cudaGetLastError() == cudaSuccess);\n",
    'void* encode = nullptr;\ncudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &encode, cudaEnableDefault, &result);\n',
    '__global__ void k(int n) { printf("open the system at %d\\n", n); int thread = threadIdx.x; __threadfence_system(); }\n',
    'asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" :: "r"(a));\n',
    'asm volatile("{\\n .reg .pred p;\\n mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\\n}" :: "r"(a), "r"(b));\n',
    "constexpr int many = 1'000'000; // ' one quote\nstd::vector<int> sizes{1, 2};\nchar quote = '\"'; auto text = R\"x(a \" b)x\";\n",
    "using cuda::thread_scope_system; cuda::memcpy_async(b, s, n, pipe); cooperative_groups::thread_block t; cuda::barrier<cuda::thread_scope_block> b;\n",
    "#define DISPATCH(name, type) case at::k##type: return name<type>();\n#pragma unroll\nconst long long begun = clock64(); __nanosleep(20);\n",
    "#include <cute/tensor.hpp>\n#include <cutlass/semaphore.h>\n#include <cub/cub.cuh>\n#include <cublasLt.h>\n#include <map>\n#include <mma.h>\n",
    "#include <tvm/ffi/function.h>\nTVM_FFI_DLL_EXPORT_TYPED_FUNC(run, run);\n",
    'PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("run", &run, py::arg("x"), "sleeps never"); }\n',
    "cudaLaunchConfig_t config; cudaLaunchAttribute attrs[1]; attrs[0].id = cudaLaunchAttributeClusterDimension; config.attrs = attrs;\n",
]


@pytest.mark.parametrize("text", CUDA_HONEST)
def test_honest_cuda_passes(text: str) -> None:
    assert check_sources(make_solution(text, path="main.cu")) == []


@pytest.mark.parametrize(
    "text",
    [
        "if (fork() == 0) {}",
        "::system(command);",
        "auto run = &system;",
        "fo\\\nrk();",
        "/* a */ std::thread(work).detach();",
        "namespace s = std; s::async(work);",
        "pthread_create(&t, 0, f, 0);",
        "void* h = dlopen(name, 2);",
        'auto p = (int (*)(int)) dlsym(0, "x");',
        "ptrace(16, pid, 0, 0);",
        "int fd = ::open(path, 0);",
        "int fd = open(path, 0);",
        "std::ifstream file(path);",
        "std::filesystem::path p;",
        'getenv("HOME");',
        "cuptiActivityDisable(3);",
        "cudaIpcOpenMemHandle(&p, h, 1);",
        "cudaLaunchHostFunc(stream, f, 0);",
        "cudaDeviceSetLimit(cudaLimitPersistingL2CacheSize, n);",
        "cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0; }",
        "__attribute__((constructor)) void init() {}",
        "syscall(57);",
        'asm("syscall");',
        'asm volatile ("int " "$0x80" : : "a"(1));',
        '__asm__(".byte 0x0f, 0x05");',
        'const char* path = "/proc/self/mem";',
        'const char* path = "/pr" "oc/self/mem";',
        'const char* path = "\\x2fproc/self/mem";',
        'auto path = R"(/proc/self/mem)";',
        'cudaGetDriverEntryPoint("cuIpcOpenMemHandle_v2", &f, 0, 0);',
        "#include <unistd.h>",
        "#  include <sys/mman.h>",
        "%:include <dlfcn.h>",
        "#/**/include <thread>",
        '#include "/etc/passwd"',
        '#include "../../judge.h"',
        '#include "notes.md"',
        "#include HEADER",
        "\\u0066ork();",
        'py::module_::import("torch");',
        'PyRun_SimpleString("import torch");',
        'module.attr("elapsed_time") = f;',
        "pybind11::exec(text);",
        "std::this_thread::sleep_for(s);",
        "auto now = std::chrono::steady_clock::now();",
        "void* frame = __builtin_frame_address(0);",
        "mprotect(page, 4096, 7);",
        "process_vm_readv(1, a, 1, b, 1, 0);",
        "socket(2, 1, 0);",
    ],
)
def test_cuda_that_reaches_outside_is_refused(text: str) -> None:
    assert broken(text, path="main.cu") == ["source-native"]


def test_cuda_that_uses_a_library_or_torch_against_the_rules_is_refused() -> None:
    assert broken("#include <flashinfer/norm.cuh>", path="main.cu") == ["source-library"]
    assert broken("flashinfer::norm::RMSNorm(x);", path="main.cu") == ["source-library"]
    assert broken('find("sgl_kernel::rmsnorm");', path="main.cu") == ["source-library"]
    assert broken('auto name = "fib_tools";', path="main.cu") == ["source-harness"]
    assert broken("TORCH_LIBRARY_IMPL(aten, CPU, m) {}", path="main.cu") == ["source-patch"]
    assert broken("TORCH_LIBRARY_IMPL(own_ops, CPU, m) {}", path="main.cu") == []


def test_every_file_of_a_native_solution_is_read_and_lines_are_counted_through_splices() -> None:
    text = "#define A \\\n  1 + \\\n  2\n/* two\nlines */ int x;\nfork();\n"
    found = check_sources(make_solution(text, path="main.cu", device__cuh="int a;\nint b = getenv(0);\n"))
    assert [violation.detail.partition(";")[0] for violation in found] == [
        "main.cu:6: names fork, which starts a process",
        "device.cuh:2: names getenv, which reads the environment",
    ]


def test_symbols_of_a_compiled_object_show_what_the_preprocessor_hid() -> None:
    assert broken("#define CAT(a, b) a##b\nCAT(fo, rk)();", path="main.cu") == []
    found = check_symbols("main.o", ["malloc", "fork@GLIBC_2.2.5", "dlopen", "cuptiActivityDisable", "_Unwind_Resume"])
    assert [violation.detail.partition(";")[0] for violation in found] == [
        "main.o: links against fork",
        "main.o: links against cuptiActivityDisable",
    ]
