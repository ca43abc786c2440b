"""One call of a Solution: fresh inputs, the call itself, and its outputs in the slot where the judge looks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from fib_tools.evaluate._runner.build import Built
from fib_tools.evaluate._runner.refusals import RuleError, WrongOutputError
from fib_tools.model.definition import Definition

__all__ = ["Caller"]


class Caller:
    """Calls a Solution as its style says, or a reference, which returns."""

    def __init__(self, definition: Definition, built: Built, *, destination_passing: bool, device: str) -> None:
        self._definition = definition
        self._built = built
        self.passes_outputs = destination_passing
        """Outputs are its last arguments."""
        self._device = torch.device(device)

    @property
    def run(self) -> Callable[..., Any]:
        """The function itself."""
        return self._built.run

    @property
    def has_setup(self) -> bool:
        """Tell whether the Solution plans apart from its run."""
        return self._built.setup is not None

    def plan(self, inputs: Mapping[str, Any], values: Collection[str]) -> dict[str, Any]:
        """Run the declared setup, which sees structure and scalars, and of `values` only shape and type."""
        if self._built.setup is None:
            return {}
        return {"state": self._built.setup(*(_hide(value, name in values) for name, value in inputs.items()))}

    def call(self, inputs: Mapping[str, Any], outputs: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> Any:
        """Call it; what it returns still has to be delivered, unless outputs were passed in."""
        if self.passes_outputs:
            return self._built.run(*inputs.values(), *outputs.values(), **state)
        return self._built.run(*inputs.values(), **state)

    def deliver(
        self,
        result: Any,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, torch.Tensor],
        places: Mapping[str, torch.Tensor],
    ) -> None:
        """Check what a call returned or wrote to `outputs`, and copy it to the `places` where the judge looks.

        Raises:
            RuleError: too few or too many outputs, or one that is no plain tensor of its own.
            WrongOutputError: another shape or element type than declared.
        """
        _check_attributes(inputs, "inputs-changed")
        _check_attributes(outputs, "output-kind")
        if self.passes_outputs:
            for name, target in places.items():
                target.copy_(outputs[name])
            return
        values = self._arrange(result)
        _check_attributes(dict(zip(places, values, strict=True)), "output-kind")
        self._check_kinds(values, inputs)
        for (name, target), value in zip(places.items(), values, strict=True):
            target.copy_(self._check_form(name, value, target))

    def _arrange(self, result: Any) -> list[Any]:
        names = list(self._definition.outputs)
        if type(result) is dict:
            if any(type(key) is not str for key in result):
                raise RuleError("output-kind", "it returned a dict whose keys are not plain strings")
            if list(result) != names and set(result) != set(names):
                raise RuleError("output-count", f"it returned {sorted(map(str, result))}, declared are {names}")
            return [result[name] for name in names]
        values = list(result) if type(result) in {tuple, list} else [result]
        if len(values) != len(names):
            raise RuleError("output-count", f"it returned {len(values)} values for the {len(names)} outputs {names}")
        return values

    def _check_kinds(self, values: list[Any], inputs: Mapping[str, Any]) -> None:
        taken = {
            _storage(value): name for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.numel()
        }
        for name, value in zip(self._definition.outputs, values, strict=True):
            if type(value) in {int, float, bool}:
                continue
            if type(value) is not torch.Tensor:
                raise RuleError(
                    "output-kind",
                    f"{name} is a {type(value).__module__}.{type(value).__qualname__}, not a torch.Tensor",
                )
            if value.layout is not torch.strided or value.device.type != self._device.type:
                raise RuleError(
                    "output-kind", f"{name} is a {value.layout} tensor on {value.device}, not one on {self._device}"
                )
            if value.numel() == 0:
                continue
            if any(stride == 0 and length > 1 for stride, length in zip(value.stride(), value.shape, strict=True)):
                raise RuleError(
                    "output-kind", f"{name} has the strides {value.stride()}: some of its values share memory"
                )
            other = taken.setdefault(_storage(value), name)
            if other != name:
                raise RuleError("output-kind", f"{name} shares its memory with {other}")

    def _check_form(self, name: str, value: Any, target: torch.Tensor) -> torch.Tensor:
        made = (
            value.detach()
            if isinstance(value, torch.Tensor)
            else torch.tensor(value, dtype=target.dtype, device=self._device)
        )
        if made.dtype != target.dtype:
            raise WrongOutputError("INCORRECT_DTYPE", f"{name} is {made.dtype}, declared {target.dtype}")
        if made.shape != target.shape:
            raise WrongOutputError(
                "INCORRECT_SHAPE", f"{name} has the shape {tuple(made.shape)}, declared {tuple(target.shape)}"
            )
        return made


def _check_attributes(values: Mapping[str, Any], rule: str) -> None:
    """Refuse tensors that carry something of the Solution's, which a look at them could call."""
    for name, value in values.items():
        if isinstance(value, torch.Tensor):
            carried = [each for each in vars(value) if not each.startswith("_dynamo")]
            if carried:
                raise RuleError(rule, f"{name} carries the attributes {carried[:3]}")


def _hide(value: Any, is_value: bool) -> Any:  # noqa: FBT001  # whether it is one of the inputs with free contents
    if is_value and isinstance(value, torch.Tensor):
        return torch.zeros((), dtype=value.dtype, device=value.device).expand(value.shape)
    return value


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage().data_ptr()
