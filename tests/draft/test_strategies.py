from __future__ import annotations

from bench_run import norm
from fib_tools.draft.attempt import Ask, AskKind, Attempt, ShapeResult, find_best
from fib_tools.draft.strategies import Beam, Evolve, Refine
from fib_tools.model.solution import BuildSpec, Language, Solution, SourceFile
from fib_tools.model.trace import EvaluationStatus

SPEC = BuildSpec(language=Language.PYTHON, target_hardware=["cpu"], entry_point="main.py::run")


def attempt(  # noqa: PLR0913  # each says one thing about it
    number: int,
    speedup: float = 0.0,
    *,
    kind: AskKind = AskKind.FIRST,
    technique: str = "plain",
    island: int = 0,
    has_code: bool = True,
    half: float = 0.0,
) -> Attempt:
    """An attempt that is right and so fast, or wrong where the speed-up is 0; `half` of its time's interval is a share of it."""
    source = [SourceFile(path="main.py", content=f"def run(): return {number}")]
    solution = Solution(name=f"s{number}", definition=norm().name, author="a", spec=SPEC, sources=source)
    status = EvaluationStatus.PASSED if speedup else EvaluationStatus.INCORRECT_NUMERICAL
    time = 1 / speedup if speedup else None
    interval = {} if time is None else {"milliseconds": time, "low": time * (1 - half), "high": time * (1 + half)}
    result = ShapeResult(workload="w", axes={}, status=status, speedup=speedup or None, **interval)
    return Attempt(
        number=number,
        ask=Ask(kind=kind, island=island),
        technique=technique,
        digest=str(number),
        solution=solution if has_code else None,
        results=(result,) if has_code else (),
    )


def wishes(asks: tuple[Ask, ...]) -> list[tuple[str, tuple[int, ...]]]:
    return [(ask.kind.value, ask.parents) for ask in asks]


def test_the_best_is_the_fastest_that_is_right_and_of_two_the_earlier() -> None:
    attempts = [attempt(0), attempt(1, 2.0), attempt(2, 3.0), attempt(3, 3.0)]
    assert find_best(attempts) == attempts[2]
    assert find_best(attempts[:1]) is None


def test_what_cannot_be_told_apart_from_the_best_does_not_take_its_place() -> None:
    best, near = attempt(0, 2.0, half=0.05), attempt(1, 2.1, half=0.05)
    assert find_best([best, near]) == best
    assert find_best([best, near, attempt(2, 2.3, half=0.05)]) == attempt(2, 2.3, half=0.05)
    assert find_best([attempt(0, 2.0, half=0.01), attempt(1, 2.1, half=0.01)]) == attempt(1, 2.1, half=0.01)


def test_the_best_is_the_fastest_by_its_own_time_where_what_it_is_compared_with_was_timed_anew() -> None:
    fast, slow = attempt(0, 2.0, half=0.05), attempt(1, 1.2, half=0.05)
    beside_a_slow_reference = slow.results[0].model_copy(update={"speedup": 3.0})
    assert find_best([fast, slow.model_copy(update={"results": (beside_a_slow_reference,)})]) == fast


def test_a_size_that_occurs_often_decides_which_is_the_best() -> None:
    def mixed(number: int, often: float, seldom: float) -> Attempt:
        results = [
            ShapeResult(workload=name, axes={}, status=EvaluationStatus.PASSED, speedup=speedup, weight=weight)
            for name, speedup, weight in (("often", often, 0.75), ("seldom", seldom, 0.25))
        ]
        return attempt(number).model_copy(update={"results": tuple(results)})

    attempts = [mixed(0, 2.0, 1.0), mixed(1, 1.0, 4.0)]
    assert [round(each.score, 6) for each in attempts] == [round(2**0.75, 6), round(4**0.25, 6)]
    assert find_best(attempts) == attempts[0]


def test_refine_repairs_what_failed_then_improves_what_is_best() -> None:
    refine = Refine(repairs=2)
    assert wishes(refine.propose([])) == [("first", ())]
    attempts = [attempt(0)]
    assert wishes(refine.propose(attempts)) == [("repair", (0,))]
    attempts.append(attempt(1, 1.5, kind=AskKind.REPAIR))
    assert wishes(refine.propose(attempts)) == [("improve", (1,))]
    attempts.append(attempt(2, kind=AskKind.IMPROVE))
    assert wishes(refine.propose(attempts)) == [("repair", (2,))]
    attempts.append(attempt(3, kind=AskKind.REPAIR))
    assert wishes(refine.propose(attempts)) == [("repair", (3,))]
    attempts.append(attempt(4, kind=AskKind.REPAIR))
    assert wishes(refine.propose(attempts)) == [("improve", (1,))], "two repairs did not help"


def test_refine_begins_anew_where_nothing_is_right_and_repairs_do_not_help() -> None:
    attempts = [attempt(0), *(attempt(number, kind=AskKind.REPAIR) for number in (1, 2))]
    assert wishes(Refine(repairs=2).propose(attempts)) == [("first", ())]
    assert wishes(Refine().propose([attempt(0, has_code=False)])) == [("first", ())]


def test_a_beam_goes_on_from_the_best_half() -> None:
    beam = Beam(width=4)
    assert wishes(beam.propose([])) == [("first", ())] * 4
    attempts = [attempt(0, 1.2), attempt(1), attempt(2, 2.0), attempt(3, has_code=False)]
    assert wishes(beam.propose(attempts)) == [("improve", (2,)), ("improve", (0,))] * 2
    assert wishes(beam.propose([attempt(0), attempt(1)])) == [("repair", (1,)), ("repair", (0,))] * 2


def test_islands_see_their_own_and_choices_can_be_repeated() -> None:
    evolve = Evolve(seed=7, islands=2, migrate_every=100)
    assert [(ask.kind.value, ask.island) for ask in evolve.propose([])] == [("first", 0), ("first", 1)]
    attempts = [attempt(0, 2.0, island=0), attempt(1, island=1)]
    assert wishes(evolve.propose(attempts)) == [("improve", (0,)), ("repair", (1,))]
    assert evolve.propose(attempts) == Evolve(seed=7, islands=2, migrate_every=100).propose(attempts)


def test_an_archive_keeps_the_best_of_each_technique_and_crosses_two_of_them() -> None:
    attempts = [
        attempt(0, 2.0, technique="one"),
        attempt(1, 3.0, technique="one"),
        attempt(2, 1.1, technique="two"),
    ]
    seen = {
        wish for seed in range(40) for wish in wishes(Evolve(seed=seed, islands=1, migrate_every=100).propose(attempts))
    }
    assert {("improve", (1,)), ("improve", (2,)), ("cross", (1, 2)), ("cross", (2, 1))} == seen


def test_now_and_then_an_island_looks_at_all() -> None:
    attempts = [attempt(0, 2.0, island=0), attempt(1, island=1)] * 2
    wished = Evolve(islands=2, migrate_every=2).propose(attempts)
    assert wishes(wished) == [("improve", (0,)), ("improve", (0,))]
