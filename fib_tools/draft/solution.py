"""From a draft to a Solution that says where it comes from."""

from __future__ import annotations

import re

from pydantic import ValidationError

from fib_tools.draft.attempt import Draft
from fib_tools.draft.run_folder import SearchPlan
from fib_tools.errors import FormatError, RequestError
from fib_tools.model.solution import BASELINE, Binding, BuildSpec, Language, Solution, SourceFile

__all__ = ["make_solution", "name_author"]

_FILES = {Language.CUDA: "main.cu"}
_DEPENDENCIES = {Language.TRITON: ["torch", "triton"], Language.TILELANG: ["torch", "tilelang"]}
_HASH_LENGTH = 6


def make_solution(draft: Draft, plan: SearchPlan) -> Solution:
    """Make the Solution of a draft: its author is who drafted it, its name ends in a hash of what runs.

    Raises:
        FormatError: it cannot be one; the message is written for the model.
        RequestError: its author has a name that is taken.
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
            author=name_author(author),
            description=description,
            spec=spec,
            sources=[SourceFile(path=file, content=draft.source)],
        )
    except ValidationError as error:
        raise FormatError(f"it makes no Solution: {error.errors()[0]['msg']}") from error
    return made.model_copy(update={"name": f"{target.language.value}_{made.hash[:_HASH_LENGTH]}"})


def name_author(drafter: str) -> str:
    """Name who drafts as the dataset does, where it is a folder.

    Raises:
        RequestError: it is the author to whom other rules apply, however it is spelled.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", drafter).strip("-.") or "model"
    if name.casefold() == BASELINE:
        what = (
            f"{drafter!r} cannot draft: the author {BASELINE} may call the libraries that drafts are measured against"
        )
        raise RequestError(what, where="author", todo="take another name")
    return name
