from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_worlds import World
from fib_tools.evaluate.engines.crew import Crew, ProtocolError
from fib_tools.evaluate.engines.engine import Place


def place(name: str) -> Place:
    return Place(name=name, device="cpu", hardware="H200")


def crew(world: World, *names: str, **limits: float) -> Crew:
    """Make a crew whose workers have started and are ready."""
    made = Crew(world.plan("H200", **limits), world.items, world.load)
    for name in names:
        made.start(place(name), now=0.0)
        made.hear(name, {"type": "ready"}, now=0.0)
    return made


def told(made: Crew) -> dict[str, list[str]]:
    """Give what each worker is told, in short."""
    said: dict[str, list[str]] = {}
    for name, messages in made.assign(now=0.0):
        said.setdefault(name, []).extend(map(short, messages))
    return said


def short(message: dict[str, Any]) -> str:
    if message["type"] == "bundle":
        return f"bundle {message['bundle']['definition']['name']}"
    if message["type"] == "forget":
        return f"forget {message['definition']}"
    item = message["item"]
    return f"{message['type']} {item['definition']} {item['workload']}"


def test_a_worker_is_told_documents_before_items_and_holds_two_and_hears_of_the_next_definition(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x", "y"], "b": ["x"]}, workloads=4), "one")
    assert told(made) == {"one": ["bundle a", "item a w0", "bundle b", "prepare b w0", "item a w1"]}
    assert told(made) == {}
    made.hear("one", {"type": "done", "number": 1}, now=0.0)
    assert told(made) == {"one": ["item a w2"]}
    later = []
    for number in range(2, 9):
        made.hear("one", {"type": "done", "number": number}, now=0.0)
        later += told(made).get("one", [])
    assert later == ["item a w3", "item b w0", "item b w1", "forget a", "item b w2", "item b w3"]
    assert made.is_done


def test_what_still_compiles_comes_again_after_others_and_is_then_waited_for(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x", "y"], "b": ["x"]}, workloads=1), "one")

    def items() -> list[tuple[str, float]]:
        said = [message for _, messages in made.assign(now=0.0) for message in messages if message["type"] == "item"]
        return [(message["item"]["definition"], message["patience"]) for message in said]

    assert items() == [("a", 0.0), ("b", 2.0)]
    made.hear("one", {"type": "later", "number": 1}, now=0.0)
    assert items() == [("a", 2.0)]
    made.hear("one", {"type": "done", "number": 2}, now=0.0)
    made.hear("one", {"type": "later", "number": 3}, now=0.0)
    assert made.find_deadline() is None
    assert items() == [("a", 2.0)]
    made.hear("one", {"type": "done", "number": 4}, now=0.0)
    assert made.is_done


def test_what_a_worker_that_still_starts_can_open_is_prepared_by_no_other(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x", "y"], "b": ["x"]}, workloads=4), "one")
    made.start(place("two"), now=0.0)
    assert told(made) == {"one": ["bundle a", "item a w0", "item a w1"]}
    made.hear("two", {"type": "ready"}, now=0.0)
    assert told(made)["two"][:2] == ["bundle b", "item b w0"]


def test_near_the_end_nobody_holds_what_another_could_begin(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x"]}, workloads=3), "one", "two")
    assert told(made) == {"one": ["bundle a", "item a w0"], "two": ["bundle a", "item a w1"]}


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        ({"type": "evidence", "number": 7}, "belongs to no item"),
        ({"type": "ready"}, "belongs to no item"),
        ({"type": "song", "number": 1}, "unknown type 'song'"),
        ({"type": "evidence", "number": 1, "evidence": {"status": "GOOD"}}, "is none"),
        ({}, "belongs to no item"),
    ],
)
def test_what_no_worker_may_say_is_refused(tmp_path: Path, message: dict[str, Any], problem: str) -> None:
    made = crew(World.make(tmp_path, {"a": ["x"]}), "one")
    told(made)
    with pytest.raises(ProtocolError, match=problem):
        made.hear("one", message, now=0.0)


def test_silence_is_counted_from_the_last_word_and_only_while_something_is_owed(tmp_path: Path) -> None:
    made = Crew(World.make(tmp_path, {"a": ["x"]}, workloads=1).plan("H200", silence_seconds=5.0, start_seconds=9.0),
                World.make(tmp_path, {"a": ["x"]}, workloads=1).items, World.make(tmp_path, {"a": ["x"]}).load)  # fmt: skip
    made.start(place("one"), now=0.0)
    assert (made.find_deadline(), made.find_overdue(now=9.5)) == (9.0, ["one"])
    made.hear("one", {"type": "ready"}, now=1.0)
    assert (made.find_deadline(), made.find_overdue(now=99.0)) == (None, [])
    list(made.assign(now=2.0))
    assert made.find_deadline() == 7.0
    made.hear("one", {"type": "alive", "number": 1}, now=6.0)
    assert (made.find_overdue(now=7.5), made.find_overdue(now=11.5)) == ([], ["one"])


def test_a_lost_machine_is_not_the_items_fault_until_it_happens_again_and_again(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x", "y"]}, workloads=1))
    outcomes = []
    deaths = 0
    while not made.is_done:
        name = f"node{deaths}"
        made.start(place(name), now=0.0)
        made.hear(name, {"type": "ready"}, now=0.0)
        told(made)
        outcomes += made.lose(name, "gone", is_machine=True)
        deaths += 1
    assert deaths > 4
    assert [(each.solution.name, each.failure, each.attempts) for each in outcomes] == [
        ("a_s0", "gone", 2),
        ("a_s1", "gone", 2),
    ]


def test_a_place_whose_workers_die_before_they_are_ready_is_given_up(tmp_path: Path) -> None:
    made = crew(World.make(tmp_path, {"a": ["x"]}))
    for wanted in (True, False):
        made.start(place("one"), now=0.0)
        made.lose("one", "no GPU")
        assert made.needs("one") is wanted
    assert made.needs("two")
