from __future__ import annotations

from fib_tools.capture.collection.candidates import Candidate, Tally, choose_diverse
from fib_tools.capture.collection.matching import Match, Target
from fib_tools.op_types.registry import get_kernel_type

KERNEL = get_kernel_type("rmsnorm")
TARGET = Target(definition=KERNEL.build({"hidden_size": 8}), kernel="rmsnorm", parameters={"hidden_size": 8})


def candidate(place: float, count: int = 1) -> Candidate:
    return Candidate(axes={}, tensors={}, scalars={}, scales={}, features=(place,), count=count)


def test_those_that_lie_farthest_apart_are_chosen_and_stand_for_the_rest() -> None:
    given = {"a": candidate(0.0, 5), "b": candidate(0.1, 2), "c": candidate(9.0), "d": candidate(8.5, 3)}
    chosen = choose_diverse(given, 2)
    assert {key: item.count for key, item in chosen.items()} == {"a": 7, "c": 4}
    assert given["a"].count == 5, "choosing changes nothing"


def test_equal_places_are_chosen_once_each() -> None:
    given = {name: candidate(1.0) for name in "abc"}
    assert sorted(item.count for item in choose_diverse(given, 2).values()) == [1, 2]


def test_a_long_run_holds_a_bounded_number_and_counts_every_call() -> None:
    tally = Tally(target=TARGET, limit=3)
    for rows in [*range(1, 200), 7, 7]:
        tally.add(Match(target=TARGET, axes={"batch_size": rows}))
    assert len(tally.held) <= 12
    chosen = tally.choose()
    assert len(chosen) == 3
    assert sum(item.count for item in chosen) == tally.calls == 201
    assert sum(tally.lengths["batch_size"].values()) == 201
