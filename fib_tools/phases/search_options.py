"""How kernels are searched for: by whom, in what language, with which strategy, on what device."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fib_tools.errors import RequestError
from fib_tools.llm.prices import DEFAULT_MODEL, Price, get_price, parse_price
from fib_tools.model.base import Model

__all__ = ["SEARCH_DEFAULTS", "SearchOptions"]

_ANTHROPIC = "anthropic"


class SearchOptions(Model):
    """What does not depend on the kernel."""

    workloads: Annotated[int | None, Field(ge=1)] = None
    """At most so many of a Definition's Workloads, the first ones; all if left out."""
    language: Literal["triton", "cuda", "python", "tilelang"] = "triton"
    """What Solutions are written in."""
    strategy: Literal["refine", "beam", "evolve"] = "refine"
    """refine: one after the other; beam: several, then from the best; evolve: islands of techniques."""
    width: Annotated[int, Field(ge=2, le=64)] = 4
    """How many drafts a beam asks for at once, or islands there are."""
    provider: Literal["anthropic", "openai"] = "anthropic"
    """Who drafts; openai: any service that speaks chat completions, by OPENAI_BASE_URL."""
    batch: bool = False
    """Ask for whole generations as Message Batches: half the price, minutes to hours."""
    model: str | None = None
    """The model that drafts; the newest known one of Anthropic's if left out."""
    usd_per_mtok: str | None = None
    """Price of a model that is not in the table: USD for a million tokens in, out: 3,15."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Where to run; a CPU is good for learning, with --language python."""
    gpus: Annotated[int, Field(ge=1, le=64)] = 1
    """How many GPUs evaluate."""
    time_limit: Annotated[float, Field(ge=1, le=3600)] = 30
    """Seconds for a Solution's calls on one Workload; four times that for the first."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the strategy's own choices."""

    def choose_model(self) -> str:
        """Name the model that drafts.

        Raises:
            RequestError: the provider needs one to be named, or takes no batches.
        """
        if self.batch and self.provider != _ANTHROPIC:
            raise RequestError(
                f"the provider {self.provider} takes no batches here", where="--batch", todo="leave it out"
            )
        if self.model is None and self.provider != _ANTHROPIC:
            todo = "name one that it serves"
            raise RequestError(f"no model for the provider {self.provider}", where="--model", todo=todo)
        return self.model or DEFAULT_MODEL

    def find_price(self) -> Price:
        """Find what tokens of that model cost.

        Raises:
            RequestError: nobody knows, and it was not said.
        """
        chosen = self.choose_model()
        price = parse_price(self.usd_per_mtok) if self.usd_per_mtok else get_price(chosen)
        return price.halve() if self.batch else price


SEARCH_DEFAULTS = SearchOptions()
