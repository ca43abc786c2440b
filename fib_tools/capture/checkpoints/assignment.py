"""Which stored tensors become which parameters: every parameter of the cut model from the file, once, in its shape.

How a release's names and layouts differ from the model's own (experts one by one there, stacked here) is what
transformers knows: its weight conversions are run twice, first on the meta device with the stored shapes,
so that all errors come before the first value is read, then on the values.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fib_tools.capture.checkpoints.configs import REFUSALS, count_layers
from fib_tools.capture.checkpoints.misfit import describe_misfit
from fib_tools.capture.checkpoints.stored import Checkpoint, StoredTensor
from fib_tools.errors import ConfigError, FormatError

if TYPE_CHECKING:
    import torch

__all__ = ["Assignment", "AssignmentPlan", "plan_assignments"]

_NAMED = 5
"""How many tensors an error names."""
_COMPUTED = (r"rotary_emb\.inv_freq$", r"^rope\.freqs$", r"inner_attention\.rope\.freqs$")
"""Rotary frequencies that old releases hold; models compute them."""


@dataclass(kw_only=True, slots=True)
class Assignment:
    """One or more parameters, and the stored tensors they are made of."""

    target: str
    """The parameter, or the first of them."""
    sources: list[tuple[str, StoredTensor]] = field(default_factory=list)
    """Each with the pattern of the conversion that takes it."""
    converter: Any = None
    """transformers' WeightConverter; none for a tensor that is taken as it is."""
    targets: tuple[str, ...] = ()

    def convert(self, model: Any, read: Callable[[StoredTensor], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make the parameters from what `read` gives for each source."""
        if self.converter is None:
            return {self.target: read(self.sources[0][1])}
        converter = copy.deepcopy(self.converter)
        for pattern, stored in self.sources:
            converter.add_tensor(self.target, stored.name, pattern, read(stored))
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignmentPlan:
    """Everything that will be set."""

    assignments: tuple[Assignment, ...]
    tied: frozenset[str]
    """Parameters that the checkpoint leaves out because they are another one."""


def plan_assignments(checkpoint: Checkpoint, *, model: Any, whole: Any) -> AssignmentPlan:
    """Compare a checkpoint with the cut model and with the whole one, both on the meta device.

    Raises:
        ConfigError: the cut model is not the beginning of the whole.
        FormatError: a tensor is missing, left over, there twice, or of another shape.
    """
    _check_prefix(model, whole, checkpoint.origin)
    assignments = _collect(checkpoint, model=model, whole=whole)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    given: set[str] = set()
    for assignment in assignments:
        assignment.targets = _rehearse(assignment, model, shapes)
        if twice := sorted(given & set(assignment.targets)):
            names = [stored.name for _, stored in assignment.sources]
            _refuse(
                f"become {twice[0]!r}, which others become as well", names, checkpoint, "fetch the checkpoint again"
            )
        given |= set(assignment.targets)
    tied = _find_tied(model, shapes.keys() - given, given)
    missing = shapes.keys() - given - tied
    if missing:
        _refuse("missing from the files", sorted(missing), checkpoint, "fetch the whole checkpoint")
    return AssignmentPlan(assignments=assignments, tied=tied)


def _check_prefix(model: Any, whole: Any, where: str) -> None:
    """A model whose first layers change with their number cannot be cut."""
    kinds = {name: type(module) for name, module in whole.named_modules()}
    shapes = {name: value.shape for name, value in whole.state_dict().items()}
    odd = [name for name, module in model.named_modules() if kinds.get(name) is not type(module)]
    odd += [name for name, value in model.state_dict().items() if shapes.get(name) != value.shape]
    if odd:
        raise ConfigError(
            f"{odd[0]!r} is another in the cut model than in the whole", where=where, todo="load all of its layers"
        )


def _collect(checkpoint: Checkpoint, *, model: Any, whole: Any) -> tuple[Assignment, ...]:
    """Sort the stored tensors to the parameters; pass over what belongs to layers beyond the cut."""
    from transformers.core_model_loading import dot_natural_key

    rename = _make_renamer(whole)
    wanted, known = model.state_dict().keys(), whole.state_dict().keys()
    found: dict[str, Assignment] = {}
    left_over = []
    for name in sorted(checkpoint.tensors, key=dot_natural_key):
        target, pattern, converter = rename(name)
        if target in wanted:
            assignment = found.setdefault(target, Assignment(target=target, converter=converter))
            _check_single(assignment, checkpoint.tensors[name], converter)
            assignment.sources.append((pattern, checkpoint.tensors[name]))
        elif target not in known:
            left_over.append(name)
    ignored = _ignored_patterns(whole)
    left_over = [name for name in left_over if not any(pattern.search(name) for pattern in ignored)]
    if left_over:
        _refuse(
            "left over: the model has no place for it", left_over, checkpoint, "check that the config belongs to it"
        )
    return tuple(found.values())


def _make_renamer(whole: Any) -> Callable[[str], tuple[str, str, Any]]:
    """Make the function from a stored name to the parameter, the pattern that matched, and its converter."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    conversions = get_model_conversion_mapping(whole)
    renamings = [item for item in conversions if isinstance(item, WeightRenaming)]
    converters = [item for item in conversions if isinstance(item, WeightConverter)]
    by_pattern = {pattern: item for item in converters for pattern in item.source_patterns}
    known = whole.state_dict()

    def rename(name: str) -> tuple[str, str, Any]:
        target, pattern = rename_source_key(name, renamings, converters, whole.base_model_prefix, known)
        if target not in known and name in known:  # a name that is the model's own already
            target, pattern = name, None
        return target, pattern or name, by_pattern[pattern] if pattern else None

    return rename


def _check_single(assignment: Assignment, stored: StoredTensor, converter: Any) -> None:
    if assignment.sources and (converter is None or assignment.converter is None):
        other = assignment.sources[0][1]
        raise FormatError(
            f"{other.name!r} and {stored.name!r} are both {assignment.target!r} of the model",
            where=stored.where,
            todo="take a checkpoint that holds each tensor once",
        )


def _ignored_patterns(whole: Any) -> list[re.Pattern[str]]:
    """What releases hold and the model does not want: by its own list, and layers for multi-token prediction."""
    patterns = [*(whole._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED]  # noqa: SLF001  # a class's declaration
    text = whole.config.get_text_config()
    extra = getattr(text, "num_nextn_predict_layers", None)
    if isinstance(extra, int) and 0 < extra < 16:
        first = count_layers(text)
        patterns += [rf"(^|\.)layers\.{index}\." for index in range(first, first + extra)]
    return [re.compile(pattern) for pattern in patterns]


def _rehearse(assignment: Assignment, model: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Convert the stored shapes on the meta device, and compare what comes out with the model."""
    import torch

    try:
        made = assignment.convert(model, lambda stored: torch.empty(stored.shape, device="meta"))
    except REFUSALS as error:
        raise _misshapen(assignment, model, str(error)[:200]) from error
    if assignment.target not in made:
        raise _misshapen(assignment, model, f"they become {', '.join(made) or 'nothing'}")
    for name, value in made.items():
        if tuple(value.shape) != shapes.get(name):
            raise _misshapen(assignment, model, f"{name!r} would be {tuple(value.shape)}, not {shapes.get(name)}")
    return tuple(made)


def _misshapen(assignment: Assignment, model: Any, reason: str) -> FormatError:
    sources = {stored.name: stored for _, stored in assignment.sources}
    return FormatError(
        f"{describe_misfit(assignment.target, sources, model)}: {assignment.target!r} cannot be made; {reason}",
        where=assignment.sources[0][1].where,
        todo="check that config and weights belong together and that every shard is there",
    )


def _find_tied(model: Any, absent: set[str], given: set[str]) -> frozenset[str]:
    """Which absent parameters are another one that is there, whichever of the two the release has kept."""
    pairs = model.all_tied_weights_keys.items()
    return frozenset(
        name
        for name in absent
        for one, other in pairs
        if (name == one and other in given) or (name == other and one in given)
    )


def _refuse(what: str, names: list[str], checkpoint: Checkpoint, todo: str) -> None:
    named = ", ".join(repr(name) for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    raise FormatError(f"{named}{more}: {what}", where=checkpoint.origin, todo=todo)
