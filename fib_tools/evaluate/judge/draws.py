"""Samplers: their draws agree with the reference's in distribution only, so many draws of a few rows are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fib_tools.evaluate.judge.arena import Arena
from fib_tools.evaluate.judge.refusal import RefusedError, blame_reference
from fib_tools.evaluate.judge.runner import Runner
from fib_tools.evaluate.judge.sampling import (
    DrawVerdict,
    choose_sample_rows,
    find_batched_inputs,
    gather_draws,
    judge_chains,
    judge_tokens,
    judge_tokens_alike,
)
from fib_tools.evaluate.judge.scene import Scene, derive_seed
from fib_tools.evaluate.judge.slots import SlotLayout
from fib_tools.model.definition import Definition
from fib_tools.model.trace import EvaluationStatus

if TYPE_CHECKING:
    import torch

__all__ = ["DRAW_BYTES", "Draws"]

DRAW_BYTES = 64 << 20
"""What an arena must hold at least: draws, or the probabilities of a few rows in float64."""
_SECONDS = 300.0
_FEWEST_CALLS = 2
"""With one, draws that never change would look random."""


class Draws:
    """The draws of one workload: a few rows, each repeated thousands of times."""

    def __init__(self, definition: Definition, scene: Scene, inputs: Mapping[str, Any]) -> None:
        """Choose the rows; `inputs` are those of the first timed call."""
        self._scene, self._inputs = scene, inputs
        self._batched = find_batched_inputs(definition)
        axes = scene.typical.message["axes"]
        axis = (next(iter(definition.outputs.values())).shape or [""])[0]
        row_bytes = sum(inputs[name][:1].numel() * inputs[name].element_size() for name in self._batched)
        plan = choose_sample_rows(axes.get(axis, 1), row_bytes, seed=scene.timed.seeds[0])
        calls = max(plan.calls, _FEWEST_CALLS)
        self._plan = replace(plan, calls=calls, repeat=-(-plan.repeat * plan.calls // calls))
        self._axes = {**axes, axis: self._plan.batch}
        self._layout = SlotLayout.of(definition, self._axes)

    def judge(self, reference: Runner, runner: Runner, want: Arena, got: Arena) -> None:
        """Compare a Solution's draws with the probabilities that the reference draws from, or with its draws.

        Raises:
            RefusedError: they do not agree (`wrong-values`).
            ReferenceFailedError: the reference has none.
        """
        kept = want.copy(DRAW_BYTES)
        try:
            with blame_reference():
                shape = reference.ask(self._message(catches=True), _SECONDS)["shape"]
            reference.stop()
            runner.ask(self._message(catches=False), _SECONDS)
            draws = self._read(got)
            verdict = self._compare(draws, want, shape)
        finally:
            want.restore(kept)
        if bool((draws[:, : self._plan.repeat] == draws[:, -self._plan.repeat :]).all()):
            detail = "two calls with different seeds drew the same tokens"
            raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, detail, rule="wrong-values")
        if not verdict.is_right:
            raise RefusedError(EvaluationStatus.INCORRECT_NUMERICAL, verdict.message, rule="wrong-values")

    def _message(self, *, catches: bool) -> dict[str, Any]:
        seed = self._scene.timed.seeds[0]
        return {
            "do": "draw",
            "name": self._scene.typical.name,
            "seed": seed,
            "seeds": [derive_seed(seed, "draw", call) for call in range(self._plan.calls)],
            "rows": self._plan.rows,
            "repeat": self._plan.repeat,
            "batched": self._batched,
            "axes": self._axes,
            "catches": catches,
        }

    def _read(self, arena: Arena) -> torch.Tensor:
        """Give the draws as `[rows, n]` or, for chains, `[rows, n, length]`."""
        value = next(iter(self._layout.stack(arena.memory, self._plan.calls).values()))
        return gather_draws(value, self._plan)

    def _compare(self, draws: torch.Tensor, want: Arena, shape: list[int] | None) -> DrawVerdict:
        import torch

        if shape is not None:
            probabilities = want.memory[: math.prod(shape) * 8].view(torch.float64).view(shape)
            return judge_tokens(draws, probabilities)
        theirs = self._read(want)
        if draws.dim() == 3:
            return judge_chains(draws, theirs, wanted=self._find_wanted(), drafted=self._choose("draft_token_ids"))
        size = max(self._inputs[name].shape[-1] for name in self._batched if self._inputs[name].dim() > 1)
        return judge_tokens_alike(draws, theirs, size)

    def _choose(self, name: str) -> torch.Tensor | None:
        """Take the chosen rows of an input."""
        value = self._inputs.get(name)
        return None if value is None else value[list(self._plan.rows)]

    def _find_wanted(self) -> torch.Tensor | None:
        """Tell the tokens that the target gives more than the draft did, `[rows, length, tokens]`."""
        import torch

        draft, target = self._choose("draft_probs"), self._choose("target_probs")
        if draft is None or target is None:
            return None
        wanted = torch.ones_like(target, dtype=torch.bool)
        wanted[:, : draft.shape[1]] = target[:, : draft.shape[1]] > draft
        return wanted
