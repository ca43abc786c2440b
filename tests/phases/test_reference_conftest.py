from __future__ import annotations

import torch

from fib_tools.phases import _reference_conftest as shared


def test_a_measure_counts_hits_and_names_the_worst_places() -> None:
    want = torch.ones(4, 5)
    got = want.clone()
    got[2, 3] = 1.5
    line, hits = shared._measure("output", got, want, 0.01, 0.01)
    assert hits == 19 / 20
    assert "max 0.5" in line
    assert "[2, 3] got 1.5 want 1" in line


def test_equal_infinities_are_hits_and_nan_never_is() -> None:
    want = torch.tensor([-torch.inf, 1.0, 2.0])
    assert shared._measure("lse", want.clone(), want, 0.0, 0.0)[1] == 1
    assert shared._measure("lse", torch.tensor([0.0, 1.0, 2.0]), want, 0.1, 0.1)[1] == 2 / 3
    assert shared._measure("lse", torch.tensor([-torch.inf, torch.nan, 2.0]), want, 0.1, 0.1)[1] == 2 / 3


def test_a_number_without_axes_is_compared_too() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert shared._same(one, one.clone())
    assert not shared._same(one, two)
    assert shared._measure("scale", one, two, 0.1, 0.1)[1] == 0


def test_a_tolerance_is_in_units_of_the_outputs_size() -> None:
    want = torch.full((100,), 1000.0)
    want[0] = 0.0
    got = want.clone()
    got[0] = 5.0
    assert shared._measure("output", got, want, 0.0, 0.01)[1] == 1
    assert shared._measure("output", got, want, 0.0, 0.001)[1] == 0.99


def test_a_tolerance_is_in_units_of_the_row() -> None:
    want = torch.full((2, 100), 1.0)
    want[1] *= 1000.0
    want[:, 0] = 0.0
    got = want.clone()
    got[:, 0] = 5.0
    line, hits = shared._measure("output", got, want, 0.0, 0.01)
    assert hits == 199 / 200
    assert "misses 1 of 200, worst at [0, 0] got 5 want 0" in line


def test_the_worst_places_are_those_farthest_over_their_bound() -> None:
    want = torch.tensor([1.0, 100.0, 1.0, 1.0])
    line, _ = shared._measure("output", want + torch.tensor([0.5, 1.0, 0.0, 0.0]), want, 0.1, 0.0)
    assert "worst at [0] got 1.5" in line


def test_a_wrong_scale_within_every_values_bound_is_a_bias() -> None:
    want = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    assert shared._measure("output", 1.01 * want, want, 2**-6, 2**-6)[1] == 1
    assert abs(shared._bias(1.01 * want, want) - 0.01) < 1e-6
    assert abs(shared._bias(want.bfloat16(), want)) < 2**-12
    assert shared._bias(torch.tensor([torch.nan, 1.0]), torch.tensor([1.0, 1.0])) == 0


def test_samples_are_held_to_their_distribution() -> None:
    weights = torch.softmax(torch.randn(100, generator=torch.Generator().manual_seed(0)), dim=0).double()
    weights[50:] = 0
    weights /= weights.sum()
    torch.manual_seed(1)
    honest = torch.multinomial(weights, 4096, replacement=True)
    assert not shared._fits(honest, weights).startswith("!")
    assert shared._fits(torch.randint(0, 50, (4096,)), weights).startswith("!")
    assert "probability 0" in shared._fits(torch.randint(0, 100, (4096,)), weights)


def test_chains_are_compared_by_length_and_last_token() -> None:
    torch.manual_seed(0)

    def chains(stop: float) -> torch.Tensor:
        tokens = torch.randint(0, 64, (4096, 4))
        ended = (torch.rand(4096, 3) > stop).long().cumprod(dim=-1)
        return torch.where(torch.cat([torch.ones(4096, 1).long(), ended], dim=-1) > 0, tokens, -1)

    assert not shared._alike(chains(0.5), chains(0.5)).startswith("!")
    assert shared._alike(chains(0.5), chains(0.6)).startswith("!")
    wanted = torch.arange(64).expand(4, 64) >= 48
    short = torch.where(chains(0.5) >= 0, torch.randint(0, 48, (4096, 4)), -1)
    assert shared._alike(chains(0.5), short, wanted).startswith("!")
    assert not shared._alike(chains(0.5), chains(0.5), wanted).startswith("!")


def test_experts_are_compared_in_the_order_of_their_ids() -> None:
    first = {"weights": torch.tensor([[0.7, 0.3]]), "ids": torch.tensor([[5, 2]], dtype=torch.int32)}
    other = {"weights": torch.tensor([[0.3, 0.7]]), "ids": torch.tensor([[2, 5]], dtype=torch.int32)}
    ours, theirs = shared._by_id(first), shared._by_id(other)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sequences_hold_their_queries() -> None:
    draw = shared.Draw("cpu")
    queries = draw.offsets(30, 4)
    pages = draw.offsets(40, 4, least=queries, per=2)
    lengths = draw.last_page_lengths(pages, 2, queries)
    held = (pages.diff() - 1) * 2 + lengths
    assert queries.tolist()[-1] == 30
    assert pages.tolist()[-1] == 40
    assert bool((held >= queries.diff()).all())
    assert bool(((lengths >= 1) & (lengths <= 2)).all())


def test_a_cut_is_whole_and_respects_the_least() -> None:
    draw = shared.Draw("cpu")
    parts = draw.split(20, 3, [5, 0, 7])
    assert sum(parts) == 20
    assert parts[0] >= 5
    assert parts[2] >= 7


def test_large_tensors_share_storage_on_a_cpu() -> None:
    made = shared.Draw("cpu").normal((1024, 1024, 1024), torch.bfloat16)
    assert made.shape == (1024, 1024, 1024)
    assert made.untyped_storage().nbytes() <= shared.SHARED_BYTES
