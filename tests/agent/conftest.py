from __future__ import annotations

from pathlib import Path

import pytest

from agent_bench import KEY, Bench
from fib_tools import skills

SKILL = """\
---
name: {name}
description: Use when {name} is wanted.
argument-hint: MODEL
---
How to {name}: $ARGUMENTS, with care.
"""

FOREIGN = ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "ANTHROPIC_CUSTOM_HEADERS", "ALL_PROXY", "HTTP_PROXY")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*FOREIGN, *map(str.lower, FOREIGN)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    return tmp_path / "work" / "jobs"


@pytest.fixture
def bench(jobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A bench with two skills of its own."""
    folder = tmp_path / "skills"
    for name in ("onboard-model", "validate-dataset"):
        (folder / name).mkdir(parents=True)
        (folder / name / "SKILL.md").write_text(SKILL.format(name=name), encoding="utf-8")
    monkeypatch.setattr(skills, "skills_folder", lambda: folder)
    return Bench(jobs, monkeypatch)
