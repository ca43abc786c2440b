"""What the reference tests of this folder share: options, inputs, comparison, and the checks themselves.

A test file names its Definition and holds how inputs are made, how near a kernel must come, and how the kernel is called.
Each test runs with three sizes; on a CPU only what needs no kernel runs, and only the small size.
"""

# ruff: noqa: S101, S102, SLF001  # a test asserts, runs the reference, and sees by its version that a tensor was written
from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = 64 << 20
"""On a CPU a larger tensor repeats one slice (stride 0), so that 384 experts fit into memory."""
BLOCK = 1 << 20
"""On a CPU so many values are drawn, and repeated."""
INFINITE = ("lse", "logits", "mask", "probs", "score", "max", "s_merged")
"""Words in the names of outputs where an infinity is a value."""
CHANCE = ("torch.multinomial", "torch.rand", "torch.bernoulli", "exponential_", "normal_")
DRAWS = 4096
"""Samples of each row that are counted."""
RECORDS: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("reference tests")
    group.addoption("--device", default="auto", choices=("auto", "cpu", "cuda"), help="Where to run.")
    group.addoption("--tolerance", type=float, default=None, help="Use this as rtol and as atol, in units of the RMS.")
    group.addoption("--sizes", default="", help="Only these, with commas: small,medium,large.")
    group.addoption("--prefer", default="", help="Try this kind of kernel first: flashinfer, sglang or torch.")
    group.addoption("--records", default="", help="Write what was measured to this JSON file.")


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = session.config.getoption("--records")
    if target:
        Path(target).write_text(json.dumps(RECORDS, indent=1), encoding="utf-8")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" or report.outcome != "passed":
        if report.when == "teardown" and report.outcome == "passed":
            return
        record = dict(getattr(item, "fib_record", {}))
        text = str(call.excinfo.value) if call.excinfo else ""
        record.update(
            definition=getattr(item.module, "DEFINITION", item.name),  # type: ignore[attr-defined]
            test=item.name.partition("[")[0],
            size=getattr(item, "callspec", None) and item.callspec.params.get("size"),  # type: ignore[attr-defined]
            outcome=report.outcome,
            reason=text.removeprefix("Skipped: ")[:4000],
            seconds=round(report.duration, 3),
        )
        if report.outcome == "failed" and call.excinfo and not isinstance(call.excinfo.value, AssertionError):
            record["trace"] = str(report.longrepr)[-6000:]
        RECORDS.append(record)


class Draw:
    """Makes inputs: seeded, on the device, and structurally valid."""

    def __init__(self, device: str, seed: int = 0) -> None:
        self.device = device
        self.host = torch.Generator().manual_seed(seed)
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        return self._fill(shape, dtype, lambda count: torch.randn(count, generator=self.host) * scale, scale)

    def uniform(
        self, shape: tuple[int, ...], low: float, high: float, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return self._fill(shape, dtype, lambda count: torch.rand(count, generator=self.host) * (high - low) + low)

    def _fill(
        self, shape: tuple[int, ...], dtype: torch.dtype, draw: Callable[[int], torch.Tensor], scale: float = 0.0
    ) -> torch.Tensor:
        """Draw a block and repeat it; normal values on a GPU are all drawn, a large tensor on a CPU repeats a slice."""
        if self.device != "cpu" and scale:
            return (torch.randn(shape, generator=self.generator, device=self.device) * scale).to(dtype)
        stored = list(shape)
        for axis in range(len(stored) - 1):
            if self.device != "cpu" or math.prod(stored) * dtype.itemsize <= SHARED_BYTES:
                break
            stored[axis] = 1
        count = math.prod(stored)
        block = draw(min(count, BLOCK)).to(dtype).to(self.device).view(torch.uint8).view(-1, dtype.itemsize)
        values = block.repeat(-(-count // max(len(block), 1)), 1)[:count].reshape(-1).view(dtype)
        return values.reshape(stored).expand(shape)

    def integers(self, shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.host).to(dtype).to(self.device)

    def rows_of_many_sizes(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Draw rows from 1e-4 to 10 in size, so that a wrong eps shows."""
        sizes = torch.logspace(-4, 1, shape[0], device=self.device).unsqueeze(-1)
        return (self.normal(shape, torch.float32) * sizes).to(dtype)

    def distribution(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.softmax(self.normal(shape, torch.float32, scale=2.0), dim=-1)

    def split(self, total: int, parts: int, least: list[int]) -> list[int]:
        """Cut a total into whole numbers, each at least its `least`."""
        rest = total - sum(least)
        assert rest >= 0, f"{total} is less than the {sum(least)} that is needed"
        cuts = sorted(torch.randint(0, rest + 1, (parts - 1,), generator=self.host).tolist())
        return [low + end - start for low, start, end in zip(least, [0, *cuts], [*cuts, rest], strict=True)]

    def offsets(
        self,
        total: int,
        parts: int,
        dtype: torch.dtype = torch.int32,
        least: torch.Tensor | None = None,
        per: int = 1,
    ) -> torch.Tensor:
        """Make an indptr of `total`; sequence b holds at least the queries of `least`, an indptr too, in pages of `per`."""
        lows = [1 if total >= parts else 0] * parts
        if least is not None and len(least) == parts + 1:
            lows = [max(1, -(-length // per)) for length in least.diff().tolist()]
        lengths = self.split(total, parts, lows)
        return torch.tensor([0, *lengths]).cumsum(0).to(dtype).to(self.device)

    def distinct(self, count: int, total: int) -> torch.Tensor:
        """Choose distinct pages."""
        return torch.randperm(total, generator=self.host)[:count].to(torch.int32).to(self.device)

    def last_page_lengths(
        self, kv_indptr: torch.Tensor, page_size: int, queries: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fill each last page with 1 to page_size tokens, enough for the sequence's queries."""
        lengths = []
        wanted = [1] * (len(kv_indptr) - 1) if queries is None else queries.diff().tolist()
        for pages, rows in zip(kv_indptr.diff().tolist(), wanted, strict=True):
            low = max(1, min(page_size, rows - (pages - 1) * page_size))
            lengths.append(int(torch.randint(low, page_size + 1, (), generator=self.host)) if pages else 0)
        return torch.tensor(lengths, dtype=torch.int32, device=self.device)

    def rotary_table(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Make cosines, then sines, of position * 10000^(-2i / width)."""
        length, width = shape
        frequency = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
        return torch.cat([angle.cos(), angle.sin()], dim=-1).float().to(self.device)

    def sequence_of_each(self, tokens: int, sequences: int) -> torch.Tensor:
        """Name the sequence of each token that is appended."""
        lengths = self.split(tokens, sequences, [1 if tokens >= sequences else 0] * sequences)
        rows = [sequence for sequence, length in enumerate(lengths) for _ in range(length)]
        return torch.tensor(rows, dtype=torch.int32, device=self.device)

    def append_positions(self, sequences: torch.Tensor, pages: int, page_size: int) -> torch.Tensor:
        """Put each sequence's new tokens at its end, all sequences together filling `pages` pages."""
        counts = [count for count in torch.bincount(sequences.cpu()).tolist() if count]
        held = self.split(pages, len(counts), [-(-count // page_size) for count in counts])
        rows: list[int] = []
        for count, own in zip(counts, held, strict=True):
            low = max(count, (own - 1) * page_size + 1)
            end = int(torch.randint(low, own * page_size + 1, (), generator=self.host))
            rows += range(end - count, end)
        return torch.tensor(rows, dtype=torch.int32, device=self.device)

    def page_offsets(
        self, sequences: torch.Tensor, positions: torch.Tensor, page_size: int, count: int
    ) -> torch.Tensor:
        pages = [-(-end // page_size) for end in _ends(sequences, positions, count)]
        return torch.tensor([0, *pages]).cumsum(0).to(torch.int32).to(self.device)

    def ends_in_page(
        self, sequences: torch.Tensor, positions: torch.Tensor, page_size: int, count: int
    ) -> torch.Tensor:
        ends = _ends(sequences, positions, count)
        lengths = [(end - 1) % page_size + 1 if end else 0 for end in ends]
        return torch.tensor(lengths, dtype=torch.int32, device=self.device)

    def local_offset(self, experts: int, local: int) -> int:
        """Choose the device in the middle."""
        return max(experts // local - 1, 0) // 2 * local

    def logits_for_local_experts(self, shape: tuple[int, ...], local: int, dtype: torch.dtype) -> torch.Tensor:
        """Pull every other token to an expert of this device; the scores of those chosen differ, so their weights show."""
        values = 2.5 * torch.randn(shape, generator=self.host) - 5.0
        first = self.local_offset(shape[1], local)
        for token in range(0, shape[0], 2):
            values[token, first + token % local] += 6.0
        return values.to(dtype).to(self.device)

    def experts(self, shape: tuple[int, ...], experts: int, local: int, dtype: torch.dtype) -> torch.Tensor:
        """Choose distinct experts for each token, every other token one of this device."""
        made = torch.stack([torch.randperm(experts, generator=self.host) for _ in range(shape[0])])
        first = self.local_offset(experts, local)
        for token in range(0, shape[0], 2):
            made[token] = (made[token] - made[token, 0] + first + token % local) % experts
        return made[:, : shape[1]].to(dtype).to(self.device)

    def weights(self, shape: tuple[int, ...], dtype: torch.dtype, features: int) -> torch.Tensor:
        """Make codes as they come, e4m3 of about one (scales bring them down), or values of 1 / sqrt(features)."""
        if not dtype.is_floating_point:
            return self._fill(shape, dtype, lambda n: torch.randint(-128, 128, (n,), generator=self.host))
        return self.normal(shape, dtype, scale=1.0 if dtype.itemsize == 1 else features**-0.5)

    def weight_scales(self, shape: tuple[int, ...], dtype: torch.dtype, features: int) -> torch.Tensor:
        """Bring products back to about one, whatever the format of the scales."""
        middle = features**-0.5
        if dtype is torch.int8:
            code = 127 + round(math.log2(middle / 2.93))
            return self._fill(shape, dtype, lambda n: torch.randint(code - 1, code + 2, (n,), generator=self.host))
        middle = {torch.float8_e4m3fn: 1.0, torch.bfloat16: middle / 4.64}.get(dtype, middle)
        return self.uniform(shape, 0.1 * middle, 1.9 * middle, dtype)


def _ends(sequences: torch.Tensor, positions: torch.Tensor, count: int) -> list[int]:
    ends = [0] * count
    for sequence, position in zip(sequences.tolist(), positions.tolist(), strict=True):
        ends[sequence] = max(ends[sequence], position + 1)
    return ends


class Case:
    """One Definition at one size: its reference, its inputs, and what is checked."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self.node = request.node
        self.module: Any = request.module
        self.config = request.config
        self.device = _choose_device(request.config.getoption("--device"))
        self.size: str = request.node.callspec.params["size"]
        wanted = request.config.getoption("--sizes")
        if self.size not in (
            wanted.split(",") if wanted else ("small",) if self.device == "cpu" else self.module.SIZES
        ):
            pytest.skip(f"the {self.size} size runs on a GPU, or with --sizes {self.size}")
        path = ROOT / "definitions" / self.module.OP_TYPE / f"{self.module.DEFINITION}.json"
        self.definition: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self.record: dict[str, Any] = {"device": self.device}
        if self.device == "cuda":
            self.record["gpu"] = torch.cuda.get_device_name()
        request.node.fib_record = self.record

    def inputs(self, *, contiguous: bool = True, seed: int = 0) -> list[Any]:
        made = self.module.make_inputs(Draw(self.device, seed), **self.module.SIZES[self.size])
        if self.device == "cpu" or not contiguous:
            return list(made)
        return [value.contiguous() if isinstance(value, torch.Tensor) else value for value in made]

    def reference(self, inputs: list[Any], *, double: bool = False) -> dict[str, Any]:
        """Run the reference; `double` in float64 wherever it says float32."""
        source: str = self.definition["reference"]
        if double:
            source = source.replace("torch.float32", "torch.float64").replace(".float()", ".double()")
            inputs = [v.double() if isinstance(v, torch.Tensor) and v.dtype == torch.float32 else v for v in inputs]
        namespace: dict[str, Any] = {"__name__": "reference"}
        exec(compile(source, f"{self.definition['name']}/reference.py", "exec"), namespace)
        torch.manual_seed(0)
        return self._named(namespace["run"](*inputs))

    def _named(self, result: Any) -> dict[str, Any]:
        values = list(result) if isinstance(result, (tuple, list)) else [result]
        assert len(values) == len(self.definition["outputs"]), f"{len(values)} values for {self.definition['outputs']}"
        return dict(zip(self.definition["outputs"], values, strict=True))

    @property
    def uses_chance(self) -> bool:
        return any(word in self.definition["reference"] for word in CHANCE)

    def check_declared(self) -> None:
        """Shapes and dtypes are the declared ones, two runs agree, no input is written to."""
        inputs = self.inputs()
        before = [value._version if isinstance(value, torch.Tensor) else None for value in inputs]
        axes: dict[str, int] = {n: a["value"] for n, a in self.definition["axes"].items() if "value" in a}
        self._bind("inputs", dict(zip(self.definition["inputs"], inputs, strict=True)), axes)
        first = self.reference(inputs)
        self._bind("outputs", first, axes)
        second = self.reference(inputs)
        for name, value in first.items():
            assert _same(value, second[name]), f"{name} differs between two runs with the same inputs and seed"
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize > 1:
                assert not value.isnan().any(), f"{name} holds NaN"
                assert any(w in name for w in INFINITE) or not value.isinf().any(), f"{name} holds infinities"
        after = [value._version if isinstance(value, torch.Tensor) else None for value in inputs]
        written = [n for n, old, new in zip(self.definition["inputs"], before, after, strict=True) if old != new]
        assert not written, f"the reference writes into {', '.join(written)}"

    def _bind(self, kind: str, values: Mapping[str, Any], axes: dict[str, int]) -> None:
        for name, spec in self.definition[kind].items():
            if spec["shape"] is None:
                continue
            value = values[name]
            assert str(value.dtype) == f"torch.{spec['dtype']}", f"{name} is {value.dtype}, declared {spec['dtype']}"
            assert len(spec["shape"]) == value.dim(), f"{name} has the shape {tuple(value.shape)}: {spec['shape']}"
            for axis, length in zip(spec["shape"], value.shape, strict=True):
                assert axes.setdefault(axis, length) == length, f"{name} has {axis} = {length}, elsewhere {axes[axis]}"

    def check_float64(self) -> None:
        """The reference in float32 is as near to itself in float64 as a kernel has to be to it."""
        if self.uses_chance:
            pytest.skip("the reference draws at random")
        inputs = self.inputs()
        want = self._double(inputs)
        if isinstance(want, str):
            pytest.skip(f"the reference does not run in float64: {want}")
        self._compare(self.reference(inputs), want, "reference in float32", "float64")

    def _double(self, inputs: list[Any]) -> dict[str, Any] | str:
        try:
            return self.reference(inputs, double=True)
        except (RuntimeError, TypeError, ValueError) as error:
            return str(error).partition("\n")[0][:200]

    def check_kernel(self) -> None:
        """The real kernel agrees with the reference.

        Its inputs are not those of the tests before, whose answers may still lie where it leaves memory unwritten.
        """
        kind, api, run = self._choose_kernel()
        self.record.update(kernel=api, kind=kind)
        inputs = self.inputs(seed=1)
        start = time.perf_counter()
        got = self._named(run(*inputs))
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.record["first_call_seconds"] = round(time.perf_counter() - start, 3)
        self._bind("outputs", got, {n: a["value"] for n, a in self.definition["axes"].items() if "value" in a})
        fresh = self.inputs(seed=1)
        written = [n for n, a, b in zip(self.definition["inputs"], inputs, fresh, strict=True) if not _same(a, b)]
        assert not written, f"the kernel wrote into {', '.join(written)}"
        if any(_how(self.module, name) == "samples" for name in got):
            self._check_samples(run, inputs)
            return
        want = self.reference(fresh)
        try:
            self._compare(got, want, api, "reference")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._judge(fresh, got, want)}") from None

    def _choose_kernel(self) -> tuple[str, str, Callable[..., Any]]:
        kernels: list[tuple[str, str, tuple[int, ...], Callable[[], Callable[..., Any]]]] = self.module.KERNELS
        if not kernels:
            pytest.skip(f"no ground truth: {self.module.WHY_NO_KERNEL}")
        if self.device != "cuda":
            kernels = [kernel for kernel in kernels if kernel[0] == "torch"] or pytest.skip(
                f"{kernels[0][1]} needs a GPU"
            )
        major, minor = torch.cuda.get_device_capability() if self.device == "cuda" else divmod(kernels[0][2][0], 10)
        prefer = self.config.getoption("--prefer")
        reasons = []
        for kind, api, capabilities, load in sorted(kernels, key=lambda kernel: kernel[0] != prefer):
            if 10 * major + minor not in capabilities:
                reasons.append(f"{api} does not run on sm_{major}{minor}")
                continue
            try:
                return kind, api, load()
            except ImportError as error:
                reasons.append(f"{api} cannot be imported: {error}")
        why = getattr(self.module, "WHY_NO_KERNEL", "")
        pytest.skip("; ".join([*reasons, *([why] if why else [])]))

    def _compare(self, got: dict[str, Any], want: dict[str, Any], left: str, right: str) -> None:
        if any(_how(self.module, name) == "choice" for name in got):
            got, want = _by_id(got), _by_id(want)
        lines, bad = [], []
        for name in want:
            rtol, atol, hit_ratio, _ = self.module.TOLERANCES[name]
            chosen = self.config.getoption("--tolerance")
            if chosen is not None and rtol:
                rtol = atol = chosen
            line, hits = _measure(name, got[name], want[name], rtol, atol)
            lines.append(line)
            if hits < hit_ratio:
                bad.append(f"{line}; at least {hit_ratio:.4%} must hit (rtol {rtol:.3g}, atol {atol:.3g} x row's rms)")
            bias, bound = _bias(got[name], want[name]), max(rtol / 4, 1 - hit_ratio)
            if rtol and abs(bias) > bound:
                bad.append(
                    f"{line}; all in all {bias:+.3%} too large, at most {bound:.3%}: roundings cancel, errors do not"
                )
        self.record["metrics"] = lines
        assert not bad, f"{left} against {right}:\n" + "\n".join(bad)

    def _judge(self, inputs: list[Any], got: dict[str, Any], want: dict[str, Any]) -> str:
        """Say which of the two is nearer to float64."""
        exact = self._double(inputs)
        if isinstance(exact, str):
            return f"(no float64 to judge by: {exact})"
        lines = []
        for name, value in exact.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                errors = [_worst(other[name], value) for other in (got, want)]
                lines.append(f"{name} against float64: kernel {errors[0]:.4g}, reference {errors[1]:.4g}")
        return "\n".join(lines)

    def _check_samples(self, run: Callable[..., Any], inputs: list[Any]) -> None:
        """Draw many times from a few rows: only what may be drawn, and as often as it should be."""
        rows = min(len(inputs[0]), 4)
        few = [value[:rows] if isinstance(value, torch.Tensor) else value for value in inputs]
        width = inputs[0][0].numel() * inputs[0].element_size()
        repeat = max(1, min(256, (1 << 30) // max(width * rows, 1)))
        many = [v.repeat_interleave(repeat, 0) if isinstance(v, torch.Tensor) else v for v in few]
        draws = [next(iter(self._named(run(*many)).values())) for _ in range(-(-DRAWS // repeat))]
        drawn = torch.cat([draw.reshape(rows, repeat, *draw.shape[1:]) for draw in draws], dim=1)
        weights = self._distribution(few) if drawn.dim() == 2 else None
        for row in range(rows):
            if weights is not None:
                message = _fits(drawn[row], weights[row].double())
            else:
                copies = [
                    v[row : row + 1].repeat_interleave(repeat, 0) if isinstance(v, torch.Tensor) else v for v in few
                ]
                source = [next(iter(self._draw_reference(copies, seed).values())) for seed in range(len(draws))]
                message = _alike(drawn[row], torch.cat(source), self._wanted_more(few, row))
            self.record.setdefault("metrics", []).append(f"row {row}: {message}")
            assert not message.startswith("!"), f"row {row} of {rows}, {drawn.shape[1]} draws: {message}"

    def _wanted_more(self, inputs: list[Any], row: int) -> torch.Tensor | None:
        """Tell the tokens that the target gives more than the draft did: none but they follow a refusal."""
        given = dict(zip(self.definition["inputs"], inputs, strict=True))
        if "draft_probs" not in given or "target_probs" not in given:
            return None
        draft, target = given["draft_probs"][row], given["target_probs"][row]
        wanted = torch.ones_like(target, dtype=torch.bool)
        wanted[: len(draft)] = target[: len(draft)] > draft
        return wanted

    def _draw_reference(self, inputs: list[Any], seed: int) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "reference"}
        exec(compile(self.definition["reference"], "reference.py", "exec"), namespace)
        torch.manual_seed(seed + 1)
        return self._named(namespace["run"](*inputs))

    def _distribution(self, inputs: list[Any]) -> torch.Tensor:
        """Catch the probabilities that the reference draws from."""
        caught: list[torch.Tensor] = []
        draw = torch.multinomial

        def watch(probs: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            caught.append(probs)
            return draw(probs, *args, **kwargs)

        with mock.patch.object(torch, "multinomial", watch):
            self.reference(inputs)
        return caught[0] / caught[0].sum(dim=-1, keepdim=True)


def _choose_device(wanted: str) -> str:
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        pytest.skip("torch sees no GPU")
    return ("cuda" if has_gpu else "cpu") if wanted == "auto" else wanted


def _how(module: Any, output: str) -> str:
    return str(module.TOLERANCES[output][3])


def _same(first: Any, second: Any) -> bool:
    if not isinstance(first, torch.Tensor):
        return bool(first == second)
    bits = [value.reshape(-1).contiguous().view(torch.uint8) for value in (first, second)]
    return torch.equal(*bits)


def _by_id(outputs: dict[str, Any]) -> dict[str, Any]:
    """Put each token's experts, and with them their weights, in the order of their ids."""
    ids = next(value for value in outputs.values() if not value.is_floating_point())
    order = ids.long().argsort(dim=-1)
    return {name: value.gather(-1, order) for name, value in outputs.items()}


def _worst(got: Any, want: torch.Tensor) -> float:
    difference = (got.double() - want.double()).abs()
    return float(difference[difference.isfinite()].max()) if difference.isfinite().any() else math.nan


def _measure(name: str, got: Any, want: Any, rtol: float, atol: float) -> tuple[str, float]:
    """Count hits: |got - want| <= atol * rms of the row + rtol * |want|, equal infinities, never NaN.

    Below the smallest normal number of a format its numbers are equally far apart: |want| counts as that at least.
    """
    if not isinstance(want, torch.Tensor) or want.numel() == 0:
        return f"{name}: {got!r}, want {want!r}", 1.0 if isinstance(want, torch.Tensor) or got == want else 0.0
    g, w = got.to(torch.float32).flatten(), want.to(torch.float32).flatten()
    finite = w.isfinite()
    rms = float(w[finite].square().mean().sqrt()) if finite.any() else 0.0
    error = (g - w).abs()
    least = torch.finfo(want.dtype).smallest_normal if want.is_floating_point() else 0.0
    bound = atol * _row_rms(w, finite, want.shape) + rtol * w.abs().clamp(min=least)
    hit = torch.where(finite, error <= bound, g == w)
    error = torch.where(hit & ~finite, 0.0, error.nan_to_num(math.inf, math.inf))
    excess = torch.where(finite, error - bound, error)
    worst = torch.topk(excess, min(3, len(error))).indices.tolist()
    places = ", ".join(
        f"{[int(i) for i in torch.unravel_index(torch.tensor(place), want.shape or (1,))]} got {float(g[place]):.6g} "
        f"want {float(w[place]):.6g}"
        for place in worst
    )
    both = finite & g.isfinite()
    cosine = (
        float(torch.nn.functional.cosine_similarity(g[both].double(), w[both].double(), dim=0)) if both.any() else 1
    )
    misses = len(g) - int(hit.sum())
    line = (
        f"{name}: max {float(error.max()):.4g}, mean {float(error[both].mean()) if both.any() else 0:.4g}, rms {rms:.4g}, "
        f"cosine {cosine:.7f}, misses {misses} of {len(g)}, worst at {places}"
    )
    return line, (len(g) - misses) / len(g)


def _bias(got: Any, want: Any) -> float:
    """Give the factor, less one, that fits best between the two: a wrong scale that single values' bounds would hide."""
    if not isinstance(want, torch.Tensor) or not want.is_floating_point() or want.numel() == 0:
        return 0.0
    g, w = got.to(torch.float32).flatten(), want.to(torch.float32).flatten()
    both = w.isfinite() & g.isfinite()
    g, w = torch.where(both, g, 0.0), torch.where(both, w, 0.0)
    size = float(w.square().sum(dtype=torch.float64))
    return float(((g - w) * w).sum(dtype=torch.float64)) / size if size else 0.0


def _row_rms(flat: torch.Tensor, finite: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Give each value the root mean square of its row, the last axis: what its error is in proportion to."""
    width = shape[-1] if len(shape) > 1 else len(flat)
    square = torch.where(finite, flat, 0.0).square().view(-1, width).sum(dim=-1, keepdim=True)
    count = finite.view(-1, width).sum(dim=-1, keepdim=True).clamp(min=1)
    return (square / count).sqrt().expand(-1, width).reshape(-1)


def _fits(samples: torch.Tensor, weights: torch.Tensor) -> str:
    """Compare counts with probabilities: chi-squared over at most 32 bins of about equal weight."""
    allowed = weights[samples.long()] > 0
    share = float(allowed.double().mean())
    if share < 0.999:
        return f"! {1 - share:.3%} of the draws have probability 0, such as {samples[~allowed][:3].tolist()}"
    order = weights.argsort(descending=True)
    bins = torch.empty_like(order)
    bins[order] = (weights[order].cumsum(0) * 32).long().clamp(max=31)
    expected = torch.zeros(32, dtype=torch.float64, device=weights.device).index_add_(0, bins, weights) * len(samples)
    counted = torch.bincount(bins[samples.long()], minlength=32).double()
    return _judge_chi(counted, expected, torch.zeros_like(expected))


def _alike(first: torch.Tensor, second: torch.Tensor, wanted: torch.Tensor | None = None) -> str:
    """Compare two samples of token chains: how many were accepted, and the last token, by its remainder of 8.

    `wanted` parts the tokens of each position in two, which are told apart as well.
    """
    counts = []
    for chains in (first, second):
        length = (chains >= 0).sum(dim=-1)
        last = chains.gather(-1, (length - 1).clamp(min=0)[:, None].long()).squeeze(-1).long()
        kind = torch.zeros_like(last) if wanted is None else wanted[(length - 1).clamp(min=0), last.clamp(min=0)].long()
        bins = (length * 2 + kind) * 8 + last % 8
        counts.append(torch.bincount(bins, minlength=16 * (chains.shape[-1] + 1)).double())
    total = [count.sum() for count in counts]
    ratio = total[0] / total[1]
    return _judge_chi(counts[0], counts[1] * ratio, counts[1] * ratio**2)


def _judge_chi(counted: torch.Tensor, expected: torch.Tensor, spread: torch.Tensor) -> str:
    """Sum squared differences over their variance; `spread` is that of the expectation itself."""
    used = expected >= 5
    degrees = max(int(used.sum()) - 1, 1)
    value = float(((counted - expected)[used].square() / (expected + spread)[used]).sum())
    bound = degrees + 6 * math.sqrt(2 * degrees) + 12
    mark = "! " if value > bound else ""
    return f"{mark}chi-squared {value:.1f} with {degrees} degrees of freedom, at most {bound:.1f}"


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The Definition of this file at the size of this test."""
    assert "size" in inspect.signature(request.function).parameters
    return Case(request)
