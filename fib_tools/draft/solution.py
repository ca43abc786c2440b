"""From a draft to a Solution that says where it comes from."""

from __future__ import annotations

import re

from pydantic import ValidationError

from fib_tools.draft.attempt import Draft
from fib_tools.draft.run_folder import SearchPlan
from fib_tools.errors import FormatError
from fib_tools.model.solution import Binding, BuildSpec, Language, Solution, SourceFile

__all__ = ["make_solution"]

_FILES = {Language.CUDA: "main.cu"}
_DEPENDENCIES = {Language.TRITON: ["torch", "triton"], Language.TILELANG: ["torch", "tilelang"]}
_HASH_LENGTH = 6


def make_solution(draft: Draft, plan: SearchPlan) -> Solution:
    """Make the Solution of a draft: its author is who drafted it, its name ends in a hash of what runs.

    Raises:
        FormatError: it cannot be one; the message is written for the model.
    """
    target = plan.target
    file = _FILES.get(target.language, "main.py")
    spec = BuildSpec(
        language=target.language,
        target_hardware=[f"sm{target.capability}"] if target.capability else ["cpu"],
        entry_point=f"{file}::run",
        dependencies=_DEPENDENCIES.get(target.language, ["torch"]),
        destination_passing_style=target.language is not Language.PYTHON,
        binding=Binding.TORCH if target.language is Language.CUDA else None,
    )
    author = draft.author or plan.model
    parents = ", ".join(map(str, draft.ask.parents))
    description = (
        f"{draft.technique}. Drafted by {author} in the run {plan.run} of fib optimize, attempt {draft.number}"
        f"{f' after {parents}' if parents else ''}."
    )
    try:
        made = Solution(
            name="draft",
            definition=target.definition.name,
            author=_name_author(author),
            description=description,
            spec=spec,
            sources=[SourceFile(path=file, content=draft.source)],
        )
    except ValidationError as error:
        raise FormatError(f"it makes no Solution: {error.errors()[0]['msg']}") from error
    return made.model_copy(update={"name": f"{target.language.value}_{made.hash[:_HASH_LENGTH]}"})


def _name_author(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"
