from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fib_tools.capture.forward import masks, passes
from fib_tools.capture.forward.observe import observe
from fib_tools.capture.forward.patches import Patches
from fib_tools.capture.forward.watch import Watch
from tiny_forward import ARCHITECTURES, OTHERS, make_model, make_prompt


def generate(model: Any, prompt: dict[str, torch.Tensor], tokens: int, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        result: torch.Tensor = model.generate(**prompt, max_new_tokens=tokens, min_new_tokens=tokens, **options)
    return result


believe = itertools.count().__next__
"""A witness to whom all passes are the same."""


def count(watch: Watch) -> dict[str, int]:
    return {repr(tally.call): tally.count for tally in watch.tallies}


@pytest.mark.parametrize("kind", [*ARCHITECTURES, *OTHERS])
@pytest.mark.parametrize("lengths", [(12, 8, 5), (7,)])
def test_passes_that_are_alike_count_as_if_each_were_watched(kind: str, lengths: tuple[int, ...]) -> None:
    model, prompt = make_model(kind), make_prompt(lengths)
    how = {"do_sample": True, "top_k": 5, "top_p": 0.9}
    plain = generate(model, prompt, 9, **how)
    with observe(model) as each:
        generate(model, prompt, 9, **how)
    with observe(model, witness=believe) as watch:
        assert torch.equal(generate(model, prompt, 9, **how), plain)
    assert count(watch) == count(each)


def test_of_passes_that_are_alike_only_attention_is_looked_at() -> None:
    model, prompt = make_model("llama"), make_prompt((7,))
    watched: list[bool] = []
    plain = torch.nn.functional.linear
    model.model.norm.register_forward_pre_hook(lambda *_: watched.append(torch.nn.functional.linear is not plain))
    with observe(model, witness=believe):
        generate(model, prompt, 6)
        generate(model, prompt, 6)
    assert watched == [True, True, True, False, False, False, True, False, False, False, False, False]
    assert torch.nn.functional.linear is plain


def test_passes_are_watched_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_EVERY", 2)
    model, prompt = make_model("llama"), make_prompt((7,))
    watched: list[bool] = []
    plain = torch.nn.functional.linear
    model.model.norm.register_forward_pre_hook(lambda *_: watched.append(torch.nn.functional.linear is not plain))
    with observe(model, witness=believe) as watch:
        generate(model, prompt, 10)
    assert watched == [True, True, True, False, False, True, False, False, True, False]
    assert watch.doubtful == 0


class Unsteady(torch.nn.Module):
    """Does something else at one pass."""

    def __init__(self, odd: int, more: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(8, 8)
        self.odd, self.more, self.passes = odd, more, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        y: torch.Tensor = self.projection(x)
        return self.more(y) if self.passes == self.odd else y


def test_a_kind_of_pass_that_turns_out_to_differ_is_watched_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "_EVERY", 3)
    model = Unsteady(6, torch.nn.SiLU())
    with observe(model, witness=believe) as watch, torch.no_grad():
        for _ in range(10):
            model(torch.ones(2, 8))
    assert list(count(watch).values()) == [10, 1]
    assert watch.doubtful == 3


def test_attention_inside_of_another_operator_is_not_counted_by_itself() -> None:
    class Norm(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = x.view(1, 1, *x.shape)
            return torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)[0, 0] * 0 + x

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.projection = Norm(), torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.projection(self.norm(x))
            return y

    model = Block()
    found = []
    for witness in (None, believe):
        with observe(model, witness=witness) as watch, torch.no_grad():
            for _ in range(5):
                model(torch.ones(2, 8))
        found.append(count(watch))
    assert found[0] == found[1]
    assert set(found[0].values()) == {5}


def test_a_pass_that_fails_is_not_counted_like_others() -> None:
    def fail(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no room")

    model = Unsteady(4, fail)
    with observe(model, witness=believe) as watch, torch.no_grad():
        for _ in range(3):
            model(torch.ones(2, 8))
        with pytest.raises(RuntimeError, match="no room"):
            model(torch.ones(2, 8))
        model(torch.ones(2, 8))
        assert not watch.is_inside
    assert list(count(watch).values()) == [4]


@pytest.mark.parametrize(("kind", "leaders"), [("llama", 1), ("gpt_oss", 2), ("gemma3_text", 2)])
def test_one_layer_stands_for_those_that_are_alike(kind: str, leaders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[torch.Tensor] = []
    note = masks.Masks.note

    def look(self: masks.Masks, mask: torch.Tensor, *sizes: int, **how: bool) -> masks.Mask:
        looked.append(mask)
        return note(self, mask, *sizes, **how)

    monkeypatch.setattr(masks.Masks, "note", look)
    model = make_model(kind, num_hidden_layers=12)  # gemma3 has one layer in six without a window
    at: list[int] = []
    model.model.norm.register_forward_hook(lambda *_: at.append(len(looked)))
    with observe(model, witness=believe):
        generate(model, make_prompt((7, 3)), 5)
    assert [after - before for before, after in zip([0, *at], at, strict=False)] == [12, 12, 12, leaders, leaders]


def test_attention_that_is_not_met_in_its_modules_forward_is_missed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    kind = type(model.model.layers[0].self_attn)
    monkeypatch.setattr(kind, "__call__", kind.forward)
    watched: list[bool] = []
    plain = torch.nn.functional.linear
    model.model.norm.register_forward_pre_hook(lambda *_: watched.append(torch.nn.functional.linear is not plain))
    with observe(model, witness=believe) as watch:
        generate(model, make_prompt((7,)), 6)
    assert watched == [True, True, True, False, True, True]
    assert watch.doubtful == 1


class Working(Unsteady):
    """Tells how much it did."""

    work = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.work += 1 + (self.passes + 1 == self.odd)
        return super().forward(x)


def test_a_pass_that_did_more_is_doubtful_and_its_kind_is_watched_from_then_on() -> None:
    model = Working(4, torch.nn.SiLU())
    with observe(model, witness=lambda: model.work) as watch, torch.no_grad():
        for _ in range(4):
            model(torch.ones(2, 8))
        assert (list(count(watch).values()), watch.doubtful) == ([4], 1)
        model.odd = 6
        for _ in range(2):
            model(torch.ones(2, 8))
    assert (list(count(watch).values()), watch.doubtful) == ([6, 1], 1)


def test_a_pass_that_needs_more_from_then_on_is_not_doubtful() -> None:
    model = Working(0, torch.nn.SiLU())
    looked: list[int] = []
    plain = torch.nn.functional.linear
    model.projection.register_forward_pre_hook(lambda *_: looked.append(torch.nn.functional.linear is not plain))
    with observe(model, witness=lambda: model.work + max(0, model.passes - 3)) as watch, torch.no_grad():
        for _ in range(8):
            model(torch.ones(2, 8))
    assert looked == [True, True, False, False, True, False, False, False]
    assert (list(count(watch).values()), watch.doubtful) == ([8], 0)


def test_products_of_some_of_the_tokens_may_be_of_others_next_time() -> None:
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.chosen = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8), 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.first(x[: self.chosen]), self.second(x[self.chosen :])])

    model = Experts()
    with observe(model, witness=believe) as watch, torch.no_grad():
        for chosen in (1, 1, 2, 2, 2):
            model.chosen = chosen
            model(torch.ones(5, 8))
    assert sorted(count(watch).values()) == [2, 2, 3, 3]


def test_layers_of_two_kinds_do_not_stand_for_each_other() -> None:
    layers = {"layer_types": ["chunked_attention", "full_attention"], "no_rope_layers": [1, 1]}
    model = make_model("llama4_text", **layers, attention_chunk_size=8, intermediate_size_mlp=128)
    found = []
    for witness in (None, believe):
        with observe(model, witness=witness) as watch:
            generate(model, make_prompt((3,)), 14)
        found.append(count(watch))
    assert found[0] == found[1]


def test_a_witness_that_sees_nothing_is_not_believed() -> None:
    model = make_model("llama")
    watched: list[bool] = []
    plain = torch.nn.functional.linear
    model.model.norm.register_forward_pre_hook(lambda *_: watched.append(torch.nn.functional.linear is not plain))
    with observe(model, witness=lambda: 7):
        generate(model, make_prompt((7,)), 6)
    assert watched == [True] * 6


def test_without_a_gpu_there_is_no_witness() -> None:
    assert passes.find_witness(make_model("llama")) is None


def test_what_is_wrapped_while_the_others_are_out_is_put_back_with_them() -> None:
    class Owner:
        first, second = "a", "b"

    with Patches() as patches:
        patches.wrap(Owner, "first", str.upper)
        patches.take_out()
        assert Owner.first == "a"
        patches.wrap(Owner, "second", str.upper)
        assert (Owner.first, Owner.second) == ("A", "B")
    assert (Owner.first, Owner.second) == ("a", "b")
