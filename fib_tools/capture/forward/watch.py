"""Counting calls while a model runs: what is the same in kind and size is described once, and then only counted.

A model makes thousands of calls a second, so that the way of a call that is known is short: a key, a dictionary, a count.
What can wait until the run is over waits: a description that has to read a tensor would wait for the device.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from threading import get_ident
from types import BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import TYPE_CHECKING, Any
from weakref import ref

from fib_tools.capture.forward.call import Call, Described, Unmapped
from fib_tools.capture.forward.ledger import Ledger, Seen
from fib_tools.capture.forward.padding import Counted, leave_padding_out, tell_starts

if TYPE_CHECKING:
    import torch

__all__ = ["Counts", "Described", "Noted", "Operator", "Tally", "Watch", "Widths", "settle"]

_OF_C = (BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType)
Counts = Mapping[int, int]
"""How often calls were made, by the number of their kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operator:
    """Functions that compute one thing, and how their calls are told apart."""

    name: str
    key: Callable[..., Hashable]
    """Of the arguments: all that decides what is computed, and how much of it. It runs at each call, and calls nothing watched."""
    describe: Callable[..., Described]
    """Of a key, the result and the arguments, when the key comes for the first time."""
    is_whole: bool = True
    """Whether it stands for all that it calls; else that is looked at too."""
    is_growing: bool = False
    """Whether it takes all that is cached, so that its calls differ from pass to pass; it stands for all that it calls."""
    tell_caller: Callable[[Any], Hashable] | None = None
    """Of one that grows, and whose first argument is the module that calls it: all that sets that module apart from others
    of its kind. What is cached grows alike for modules that are alike and made equal calls before."""


@dataclass(slots=True)
class Tally:
    """One kind of call, and how often it was made."""

    call: Call | Unmapped
    count: int = 0


@dataclass(slots=True)
class Noted:
    """What was counted meanwhile."""

    counts: Counts = field(default_factory=dict)
    """Of operators that do not grow."""
    rows: frozenset[int] = frozenset()
    """Of products with a weight, how many rows they took."""
    growing: int = 0
    """Calls of operators that grow."""
    has_others: bool = False
    """Whether anything but a module made one of those, or one module made two."""
    has_hidden: bool = False
    """Whether one was made inside of another operator, and not counted."""
    shared: Mapping[Any, int] = field(default_factory=dict)
    """For how many of those one of a module stands: the first of modules that are alike for all of them."""
    alike: dict[Any, Hashable] = field(default_factory=dict)
    """Meanwhile: of each module that made one, what it is like and what it called."""

    def add_growing(self, kind: Hashable, module: Any, caller: int | None) -> None:
        """Note a call of an operator that grows, and what the module that made it is like, if one did."""
        self.growing += 1
        if caller is None or module in self.alike:
            self.has_others = True
        else:
            self.alike[module] = kind, caller

    def finish(self) -> None:
        """Have one module stand for those that are alike, and let go of what was kept for that."""
        if not self.has_others:
            groups = Counter(self.alike.values())
            self.shared = {module: groups.pop(kind, 0) for module, kind in self.alike.items()}
        self.alike = {}


@dataclass(slots=True)
class _Callers:
    """What the modules that call an operator are like, as numbers, since to tell it takes longer than all else of a call."""

    tell: Callable[[Any], Hashable] | None
    known: dict[Any, int] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)

    def find(self, module: Any) -> int | None:
        """Give the number of what a module is like; None where no modules call."""
        if self.tell is not None and module not in self.known:
            self.known[module] = self.numbers.setdefault(self.tell(module), len(self.numbers))
        return self.known.get(module)


@dataclass(slots=True)
class Widths:
    """Sizes by which a hidden axis is told from one of time."""

    products: set[int] = field(default_factory=set)
    """Rows that weights of projections take and give."""
    channels: set[int] = field(default_factory=set)
    """That convolutions give, in the axis before the last."""


class Watch:
    """What was seen of one run; of code that torch compiles, nothing is."""

    def __init__(self) -> None:
        import torch

        self.widths = Widths()
        self.is_plain = False
        """No tensor of what is watched has methods of its own, so that none of torch's C functions calls another function."""
        self.doubtful = 0
        """Passes that were counted like others, and may have made other calls."""
        self._ledger = Ledger()
        self._inside: set[int] = set()
        """Threads that are in a call which stands for all that it makes; it takes half the time of a `threading.local`."""
        self._sums: dict[int, ref[torch.Tensor]] = {}
        """By thread: the result of the last addition."""
        self._growing: set[int] = set()
        """Threads that are in a call which grows."""
        self._known: set[int] = set()
        """Threads that are in a pass whose other calls are known."""
        self.grown = 0
        """Calls that grow, since `call_known` began last."""
        self._noted: Noted | None = None
        self._shared: Mapping[Any, int] = {}
        self._learning = threading.Lock()
        self._is_compiling = torch.compiler.is_dynamo_compiling
        """It returns a constant, which dynamo replaces: `is_compiling` took half the time of a call that is cold."""
        self._no_grad = torch.no_grad

    @property
    def is_inside(self) -> bool:
        """Tell whether a call is under way that stands for all that it makes."""
        return get_ident() in self._inside

    @property
    def is_compiling(self) -> bool:
        """Tell whether torch is tracing the code that asks."""
        return bool(self._is_compiling())

    @property
    def is_blind(self) -> bool:
        """Tell whether a call is not to be looked at."""
        return self.is_compiling or self.is_inside

    def wrap(self, operator: Operator, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have every call of a function counted, and nothing of what it calls itself."""
        if operator.is_growing:
            return self._wrap_growing(operator, original)
        inside, key, is_compiling = self._inside, operator.key, self._is_compiling
        is_whole = operator.is_whole and not (self.is_plain and isinstance(original, _OF_C))
        enter, leave = inside.add, inside.discard
        known: dict[Hashable, Seen] = {}
        find, note = known.get, self._ledger.open.append

        @wraps(original)  # torch's compiler tells functions apart by their names
        def watched(*inputs: Any, **options: Any) -> Any:
            if is_compiling() or (inside and get_ident() in inside):
                return original(*inputs, **options)
            if is_whole:
                thread = get_ident()
                enter(thread)
                try:
                    result = original(*inputs, **options)
                finally:
                    leave(thread)
            else:
                result = original(*inputs, **options)
            kind = key(*inputs, **options)
            seen = find(kind)
            if seen is None:
                seen = self._learn(known, kind, partial(_describe, operator, kind, result, inputs, options), operator)
            seen.count += 1
            if seen.count == 1:
                note(seen)
            return result

        return watched

    def _wrap_growing(self, operator: Operator, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have every call counted, also in passes whose other calls are known."""
        inside, growing, known_passes, key = self._inside, self._growing, self._known, operator.key
        is_compiling = self._is_compiling
        known: dict[Hashable, Seen] = {}
        find = known.get
        callers = _Callers(operator.tell_caller)

        @wraps(original)  # torch's compiler tells functions apart by their names
        def watched(*inputs: Any, **options: Any) -> Any:
            times = self._shared.get(inputs[0], 1) if self._shared else 1
            if times == 0 or is_compiling():
                return original(*inputs, **options)
            thread = get_ident()
            if thread in growing:
                return original(*inputs, **options)
            is_inside = thread in inside
            if is_inside and thread not in known_passes:
                if self._noted is not None:
                    self._noted.has_hidden = True
                return original(*inputs, **options)
            growing.add(thread)
            inside.add(thread)
            try:
                result = original(*inputs, **options)
            finally:
                growing.discard(thread)
                if not is_inside:
                    inside.discard(thread)
            kind = key(*inputs, **options)
            seen = find(kind)
            if seen is None:
                seen = self._learn(known, kind, partial(_describe, operator, kind, result, inputs, options), operator)
            self._ledger.add(seen, times)
            self.grown += times
            if self._noted is not None:
                self._noted.add_growing(kind, inputs[0], callers.find(inputs[0]))
            return result

        return watched

    def wrap_pass(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have what a model's forward calls kept apart from what others call: it may have padding of its own."""
        ledger, is_compiling = self._ledger, self._is_compiling

        @wraps(original)  # generate() asks for its parameters
        def forward(*inputs: Any, **options: Any) -> Any:
            if is_compiling():
                return original(*inputs, **options)
            ledger.begin_pass()
            try:
                return original(*inputs, **options)
            finally:
                ledger.end_pass()

        return forward

    @contextmanager
    def note_counts(self) -> Iterator[Noted]:
        """Note what is counted meanwhile."""
        kinds, noted = self._ledger.seen, Noted()
        before = [seen.count for seen in kinds]
        self._noted = noted
        try:
            yield noted
        finally:
            self._noted = None
        before += [0] * (len(kinds) - len(before))
        made = [
            (place, seen, seen.count - count)
            for place, (count, seen) in enumerate(zip(before, kinds, strict=True))
            if seen.count != count and not seen.is_growing
        ]
        noted.counts = {place: count for place, _, count in made}
        calls = [seen.what for _, seen, _ in made if isinstance(seen.what, Call)]
        noted.rows = frozenset(call.axes["M"] for call in calls if call.kernel == "gemm")
        noted.finish()

    def call_known(self, before: Noted, original: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        """Make a pass; look at calls that grow, of one module for all that are alike, and count the others as before."""
        thread = get_ident()
        self._known.add(thread)
        self._inside.add(thread)
        self._shared, self.grown = before.shared, 0
        try:
            result = original(*inputs, **options)
        finally:
            self._shared = {}
            self._inside.discard(thread)
            self._known.discard(thread)
        for place, count in before.counts.items():
            self._ledger.add(self._ledger.seen[place], count)
        return result

    def _learn(
        self, known: dict[Hashable, Seen], kind: Hashable, describe: Callable[[], Described], operator: Operator
    ) -> Seen:
        """Describe a kind of call, unless another thread was first; what is computed for that is no part of a gradient."""
        with self._learning, self._no_grad():
            if kind not in known:
                known[kind] = self._ledger.learn(self.call_inside(describe), is_growing=operator.is_growing)
            return known[kind]

    def wrap_sum(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Have the result of the last addition of two tensors remembered: a norm of it may be fused with it."""
        import torch

        inside, sums, is_compiling, tensor = self._inside, self._sums, self._is_compiling, torch.Tensor

        @wraps(original)
        def add(self: torch.Tensor, other: Any) -> Any:
            total = original(self, other)
            if isinstance(other, tensor) and not is_compiling() and not (inside and get_ident() in inside):
                size = other.numel()
                if self.numel() == size and total.numel() == size:  # neither was spread over the other
                    sums[get_ident()] = ref(total)
            return total

        return add

    def note_sum(self, tensor: torch.Tensor) -> None:
        """Take a tensor for the result of the last addition: it is a copy of that."""
        self._sums[get_ident()] = ref(tensor)

    def is_sum(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor is the result of the last addition."""
        last = self._sums.get(get_ident())
        return last is not None and last() is tensor

    def call_inside(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function and count nothing of what it calls."""
        if self.is_inside:
            return function(*arguments, **options)
        self._inside.add(get_ident())
        try:
            return function(*arguments, **options)
        finally:
            self._inside.discard(get_ident())

    @property
    def tallies(self) -> tuple[Tally, ...]:
        """Every kind of call, in the order in which they came first; the same ones under several keys once, and no padding."""
        for seen in tuple(self._ledger.seen):
            seen.what = self.call_inside(settle, seen.what)
        found: dict[str, Tally] = {}
        for calls in self._gather():
            for call, count in leave_padding_out(calls):
                found.setdefault(repr(call), Tally(call)).count += count
        return tuple(found.values())

    def _gather(self) -> Iterator[list[Counted]]:
        """Put stretches together that made the same calls with the same padding."""
        for others, growing in self._ledger.list_stretches():
            alike: dict[Hashable, tuple[Counter[Seen], int]] = {}
            for stretch, times in growing.items():
                kind = tell_starts(_list_calls(stretch))
                seen, total = alike.get(kind, (Counter[Seen](), 0))
                seen.update({each: count * times for each, count in stretch})
                alike[kind] = seen, total + times
            for seen, total in alike.values():
                made = [*((each, count * total) for each, count in others), *seen.items()]
                yield _list_calls(sorted(made, key=lambda each: each[0].place))


def _list_calls(stretch: Iterable[tuple[Seen, int]]) -> list[Counted]:
    """List the calls of what is settled."""
    return [(seen.what, count) for seen, count in stretch if isinstance(seen.what, (Call, Unmapped))]


def settle(what: Described) -> Call | Unmapped | None:
    """Find out what a call is."""
    return what() if callable(what) else what


def _describe(operator: Operator, key: Hashable, result: Any, inputs: Any, options: Any) -> Described:
    found = operator.describe(key, result, *inputs, **options)
    if not isinstance(found, Unmapped) or found.shapes:
        return found
    shapes = [tuple(each.shape) for each in (*inputs, *options.values()) if hasattr(each, "untyped_storage")]
    return replace(found, shapes=tuple(shapes))
