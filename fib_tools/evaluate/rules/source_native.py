"""What C++ and CUDA text of a Solution must not name, and what a compiled object must not import.

Comments and texts are told apart from code first, so that a comment about `fork` is no breach.
The preprocessor can hide a name from this reading (`a ## b`); a compiled object's symbols show it again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from fib_tools.evaluate.rules.native_tokens import Token, read_tokens
from fib_tools.evaluate.rules.rules import RULES, Violation
from fib_tools.evaluate.rules.source_tables import HARNESS_ROOTS, LIBRARY_ROOTS

__all__ = ["check_native", "check_symbols"]

_TODO = "do without it: a kernel reads its inputs and writes its outputs"

_MEANINGS: dict[str, str] = {
    "starts a process": (
        "fork vfork clone3 posix_spawn posix_spawnp execl execle execlp execv execve execvp execvpe fexecve "
        "system popen daemon setsid waitpid"
    ),
    "reaches into loaded libraries": ("dlopen dlmopen dlsym dlvsym dladdr dlinfo dl_iterate_phdr dlclose"),
    "starts a thread": ("thrd_create jthread packaged_task"),
    "reaches memory or processes behind the language's back": (
        "ptrace process_vm_readv process_vm_writev mprotect mmap mmap64 mremap shm_open memfd_create shmget "
        "shmat pidfd_open pidfd_getfd userfaultfd prctl personality syscall"
    ),
    "opens a connection": ("socket socketpair accept4 getaddrinfo sendmsg recvmsg io_uring_setup"),
    "reaches files": (
        "fopen fopen64 freopen fdopen openat open64 creat opendir readdir readlink unlink tmpfile mkstemp "
        "ifstream ofstream fstream wifstream wofstream basic_ifstream basic_ofstream basic_fstream filebuf "
        "basic_filebuf filesystem pread pwrite sendfile"
    ),
    "reads the environment": ("getenv secure_getenv setenv putenv unsetenv environ __environ"),
    "reaches the stack or its signals": (
        "sigaction setitimer timer_create sigaltstack backtrace _Unwind_Backtrace __builtin_frame_address "
        "__builtin_return_address getcontext makecontext swapcontext"
    ),
    "waits, or reads the host's clock": (
        "usleep nanosleep clock_nanosleep sleep_for sleep_until this_thread chrono clock_gettime gettimeofday "
        "timespec_get __rdtsc _rdtsc __rdtscp"
    ),
    "has the driver call it back later": (
        "cudaLaunchHostFunc cudaStreamAddCallback cuLaunchHostFunc cuStreamAddCallback cudaGraphAddHostNode "
        "cuGraphAddHostNode cudaLaunchHostFunc_v2"
    ),
    "touches timers, profiler or the context": (
        "cudaEventElapsedTime cudaEventElapsedTime_v2 cuEventElapsedTime cudaProfilerStart cudaProfilerStop "
        "cuProfilerStart cuProfilerStop cudaGetExportTable cuGetExportTable cudaDeviceReset "
        "cuDevicePrimaryCtxReset"
    ),
    "sets a part of the L2 cache aside": ("cudaLimitPersistingL2CacheSize CU_LIMIT_PERSISTING_L2_CACHE_SIZE"),
    "runs code when it is loaded": ("constructor __constructor__ ifunc __ifunc__ init_priority"),
}
_WORDS = {word: what for what, listed in _MEANINGS.items() for word in listed.split()}
"""Words that no kernel needs, and what they do. `system` and the like count as words, `x.system()` does not."""

_UNLESS_MEMBER = {"clone": "starts a process", "open": "reaches files", "kill": "signals a process"}
"""Words that are methods of tensors and classes too: only the free functions count."""
_AFTER_SCOPE = {
    "thread": "starts a thread",
    "async": "starts a thread",
    "future": "starts a thread",
    "promise": "starts a thread",
    "exec": "runs Python",
    "eval": "runs Python",
    "eval_file": "runs Python",
    "import": "imports a Python module",
    "globals": "reaches Python's names",
    "getattr": "reaches Python's names",
    "setattr": "changes a Python object",
}
"""Words that count after `::` only, such as `std::thread` and `pybind11::exec`."""
_HONEST_SCOPES = frozenset({"cuda", "cg", "cooperative_groups", "ptx", "cute", "cutlass", "cub"})
_PREFIXES = re.compile(
    r"pthread_\w+|cupti\w+|CUpti\w+|CUPTI_\w+|cudaIpc\w+|cuIpc\w+|cuMemExport\w+|_?Py[A-Z]\w*_\w+|nvml[A-Z]\w+"
)
_HEADERS = re.compile(
    r"(?:sys|netinet|arpa|linux|asm|net)/.*|(?:unistd|dlfcn|pthread|spawn|fcntl|signal|link|elf|Python|threads|execinfo|ucontext"
    r"|sched|semaphore|dirent|ftw|glob|poll|netdb|time|cupti\w*|nvml|cudaProfiler|cuda_profiler_api|frameobject)\.h"
    r"|thread|future|fstream|filesystem|chrono|ctime|csignal|stop_token|semaphore|experimental/.*|cxxabi\.h"
)
_SOURCE_SUFFIXES = (".h", ".hpp", ".hh", ".hxx", ".cuh", ".inl", ".inc", ".cu", ".cpp", ".cc", ".cxx", ".c", "")
_TEXTS = re.compile(
    r"/proc\b|/dev/(?:shm|mem|fd|nvidia)|/sys/|cuIpc|cudaIpc|cupti|cuMemExport|cuLaunchHostFunc|cuStreamAddCallback"
    r"|cuProfiler|cuGetExportTable|cuCtxSetLimit|\.init_array|\.preinit_array|\.ctors"
)
_ASSEMBLY = re.compile(
    r"\b(?:syscall|sysenter|svc|swi)\b|\bint\s+\$?0x80\b|\.(?:byte|2byte|4byte|8byte|word|short|long|quad|octa|incbin|include)\b"
)
_IMPORTED = (
    "fork vfork clone posix_spawn posix_spawnp execl execle execlp execv execve execvp execvpe fexecve system popen ptrace"
    " process_vm_readv process_vm_writev socket connect bind syscall memfd_create shm_open backtrace _Unwind_Backtrace"
)
_SYMBOLS = frozenset(_IMPORTED.split())
_SYMBOL_PREFIXES = re.compile(
    r"cupti[A-Z]|cuIpc|cudaIpc|cudaLaunchHostFunc|cudaStreamAddCallback|cudaEventElapsedTime|PyRun_|PyEval_GetFrame|PyImport_Import"
)


def check_native(path: str, text: str) -> list[Violation]:
    """Find every breach in one C++ or CUDA source."""
    tokens = read_tokens(text)
    found = [
        *_check_words(tokens),
        *_check_includes(tokens),
        *_check_texts(tokens),
    ]
    return [
        Violation(rule=RULES[rule], detail=f"{path}:{line}: {what}; {_TODO}")
        for rule, line, what in dict.fromkeys(found)
    ]


def check_symbols(file: str, undefined: Iterable[str]) -> list[Violation]:
    """Find breaches among the symbols that a compiled object takes from others, as `nm --undefined-only` lists them."""
    names = (symbol.partition("@")[0] for symbol in undefined)
    return [
        Violation(rule=RULES["source-native"], detail=f"{file}: links against {name}; {_TODO}")
        for name in dict.fromkeys(names)
        if name in _SYMBOLS or _SYMBOL_PREFIXES.match(name)
    ]


_Found = tuple[str, int, str]


def _check_words(tokens: list[Token]) -> Iterator[_Found]:
    for index, token in enumerate(tokens):
        if token.kind == "word":
            before = "".join(other.text for other in tokens[max(0, index - 3) : index] if other.kind != "text")
            after = tokens[index + 1].text if index + 1 < len(tokens) else ""
            what = "reaches a Python object" if (token.text, after) == ("attr", "(") else _find_word(token.text, before)
            if what:
                yield "source-native", token.line, f"names {token.text}, which {what}"
            elif token.text in LIBRARY_ROOTS and _is_scope(tokens, index):
                yield "source-library", token.line, f"calls {token.text}"
            elif token.text == "TORCH_LIBRARY_IMPL" and [t.text for t in tokens[index + 1 : index + 3]] == [
                "(",
                "aten",
            ]:
                yield "source-patch", token.line, "replaces operators of torch"
        elif token.kind == "other" and token.text == "\\" and _next_starts_with(tokens, index, ("u", "U")):
            yield "source-native", token.line, "spells a name with universal characters"


def _find_word(word: str, before: str) -> str | None:
    if _PREFIXES.fullmatch(word):
        return "reaches the system, the profiler or Python"
    is_member = before.endswith((".", "->"))
    if word in _WORDS:
        return None if is_member else _WORDS[word]
    if word in _UNLESS_MEMBER:
        qualifier = _find_qualifier(before)
        return None if is_member or qualifier not in {None, "", "std"} else _UNLESS_MEMBER[word]
    if word in _AFTER_SCOPE and before.endswith("::") and _find_qualifier(before) not in _HONEST_SCOPES:
        return _AFTER_SCOPE[word]
    return None


def _find_qualifier(before: str) -> str | None:
    """Give the name before `::`; an empty one for the global scope, None without `::`."""
    if not before.endswith("::"):
        return None
    name = re.search(r"(\w*)::$", before)
    return name.group(1) if name else ""


def _is_scope(tokens: list[Token], index: int) -> bool:
    return [token.text for token in tokens[index + 1 : index + 3]] == [":", ":"]


def _next_starts_with(tokens: list[Token], index: int, starts: tuple[str, ...]) -> bool:
    return index + 1 < len(tokens) and tokens[index + 1].text.startswith(starts)


def _check_includes(tokens: list[Token]) -> Iterator[_Found]:
    for token in tokens:
        if token.kind != "include":
            continue
        target = token.text.strip()
        header = target[1:-1]
        if not (target[:1] in {"<", '"'} and target[-1:] in {">", '"'}):
            yield "source-native", token.line, f"includes {target}, which is computed"
        elif header.split("/")[0] in LIBRARY_ROOTS:
            yield "source-library", token.line, f"includes {header}"
        elif header.startswith("/") or ".." in header.split("/"):
            yield "source-native", token.line, f"includes {header}, which lies outside"
        elif _HEADERS.fullmatch(header) or not _has_source_suffix(header):
            yield "source-native", token.line, f"includes {header}, which a kernel has no use for"


def _has_source_suffix(header: str) -> bool:
    name = header.rsplit("/", 1)[-1]
    return f".{name.rpartition('.')[2]}" in _SOURCE_SUFFIXES if "." in name else True


def _check_texts(tokens: list[Token]) -> Iterator[_Found]:
    for token in tokens:
        if token.kind == "assembly" and (found := _ASSEMBLY.search(token.text)):
            yield "source-native", token.line, f"has the assembly {found.group()!r}"
        if token.kind not in {"text", "assembly"}:
            continue
        if found := _TEXTS.search(token.text):
            yield "source-native", token.line, f"has the text {found.group()!r}"
        if any(name in token.text for name in HARNESS_ROOTS):
            yield "source-harness", token.line, "names an evaluator"
        for library in LIBRARY_ROOTS - {"kernels"}:
            if f"{library}::" in token.text:
                yield "source-library", token.line, f"names {library}"
