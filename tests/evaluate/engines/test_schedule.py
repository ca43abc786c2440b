from __future__ import annotations

from pathlib import Path

from engine_worlds import World
from fib_tools.evaluate.engines.schedule import Schedule


def schedule(root: Path, sizes: dict[str, int], workloads: int) -> Schedule:
    return Schedule(
        World.make(
            root,
            {name: [f"x{number}" for number in range(count)] for name, count in sizes.items()},
            workloads=workloads,
        ).items
    )


def taken(work: Schedule, worker: str) -> str | None:
    job = work.take(worker)
    return f"{job.item.definition}{job.item.workload}" if job else None


def test_a_worker_opens_the_definition_with_the_most_work_and_stays_with_it(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 1, "b": 3, "c": 2}, workloads=2)
    assert [taken(work, "one") for _ in range(7)] == ["bw0", "bw1", "cw0", "cw1", "aw0", "aw1", None]


def test_two_workers_open_two_definitions_and_then_share_the_last(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 2, "b": 1}, workloads=3)
    assert [taken(work, name) for name in ("one", "two")] == ["aw0", "bw0"]
    assert [taken(work, "two") for _ in range(3)] == ["bw1", "bw2", "aw1"]
    assert [taken(work, "one"), taken(work, "one")] == ["aw2", None]


def test_a_worker_hears_of_its_next_definitions_and_nobody_else_opens_them(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 4, "b": 3, "c": 2, "d": 1}, workloads=3)
    assert work.find_next("one") is None
    taken(work, "one")
    upcoming = [work.find_next("one", workers=2) for _ in range(3)]
    assert [job and job.item.definition for job in upcoming] == ["b", "c", None]
    assert taken(work, "two") == "dw0"
    assert [taken(work, "one") for _ in range(3)] == ["aw1", "aw2", "bw0"]
    assert work.is_wanted("one", "b")
    assert work.is_wanted("one", "c")
    assert not work.is_wanted("one", "a")


def test_a_worker_alone_hears_of_four_definitions_at_most(tmp_path: Path) -> None:
    work = schedule(tmp_path, dict.fromkeys("abcdefg", 1), workloads=1)
    taken(work, "one")
    assert [bool(work.find_next("one")) for _ in range(5)] == [True, True, True, True, False]


def test_what_compiles_is_tried_again_before_each_new_definition(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 3, "b": 2, "c": 1}, workloads=2)
    job = work.take("one")
    assert job
    assert work.has_others("one", job.item.group)
    work.defer("one", job)
    assert [taken(work, "one") for _ in range(2)] == ["bw0", "bw1"]
    job = work.take("one")
    assert job
    assert (job.item.definition, job.item.workload) == ("a", "w0")
    assert work.is_wanted("one", "a")
    work.defer("one", job)
    assert [taken(work, "one") for _ in range(2)] == ["cw0", "cw1"]
    assert not work.has_others("one", ("a", 0)), "now it is waited for"
    assert [taken(work, "one") for _ in range(3)] == ["aw0", "aw1", None]


def test_what_compiles_at_one_worker_is_opened_by_another_only_at_the_end(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 3, "b": 2}, workloads=2)
    job = work.take("one")
    assert job
    work.defer("one", job)
    assert [taken(work, "two") for _ in range(2)] == ["bw0", "bw1"]
    assert taken(work, "two") == "aw0"


def test_no_more_than_six_definitions_compile_at_one_worker(tmp_path: Path) -> None:
    work = schedule(tmp_path, dict.fromkeys("abcdefgh", 1), workloads=1)
    seen = []
    for _ in range(9):
        job = work.take("one")
        assert job
        seen.append((job.item.definition, work.has_others("one", job.item.group)))
        work.defer("one", job)
    assert [name for name, _ in seen] == list("abcdefabc")
    assert [has_others for _, has_others in seen] == 5 * [True] + 4 * [False]
    work.dismiss("one")
    assert taken(work, "one") == "aw0"


def test_nothing_is_reserved_that_a_worker_without_work_could_open(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 3, "b": 2}, workloads=2)
    taken(work, "one")
    assert work.find_next("one", idle=1) is None
    assert taken(work, "two") == "bw0"


def test_what_others_took_of_a_prepared_definition_is_not_waited_for(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 3, "b": 1, "c": 1}, workloads=2)
    taken(work, "one")
    assert [bool(work.find_next("one")) for _ in range(2)] == [True, True]
    assert [taken(work, "two") for _ in range(3)] == ["aw1", "bw0", "bw1"]
    assert taken(work, "one") == "cw0"


def test_a_worker_ends_a_heat_before_it_opens_the_next_and_hears_of_it(tmp_path: Path) -> None:
    items = World.make(tmp_path, {"a": [str(number) for number in range(10)]}).items
    work = Schedule(items)
    heats = []
    for _ in items:
        job = work.take("one")
        assert job is not None
        heats.append(job.item.heat)
        upcoming = work.find_next("one")
        if len(heats) == 1:
            assert upcoming is not None
            assert upcoming.item.group == ("a", 1)
    assert heats == [0, 0, 1, 1]


def test_what_is_put_back_comes_first_and_a_dismissed_workers_definitions_are_free(tmp_path: Path) -> None:
    work = schedule(tmp_path, {"a": 2, "b": 1}, workloads=2)
    jobs = [work.take("one"), work.take("one")]
    assert work.waiting == 2
    work.dismiss("one")
    work.put_back([job for job in jobs if job])
    assert [taken(work, "two") for _ in range(3)] == ["aw0", "aw1", "bw0"]
