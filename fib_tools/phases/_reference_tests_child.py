"""What runs in the sandbox: one test file under pytest, on the CPU."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["configure", "run"]

_TAIL = 4000


def configure(folder: Path, tests: Path) -> list[str]:
    """Give pytest an empty configuration: it would take the one of whatever project the dataset lies in."""
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\n", encoding="utf-8")
    return ["-c", str(settings), "--rootdir", str(folder), "--confcutdir", str(tests)]


def run(payload: dict[str, Any]) -> dict[str, Any]:
    """Run one file; the answer holds the records that its conftest wrote, and what pytest printed."""
    import pytest

    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder) / "records.json"
        arguments = configure(Path(folder), Path(payload["folder"]))
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status = pytest.main([*arguments, *payload["arguments"], "--records", str(records), payload["file"]])
        found = json.loads(records.read_text(encoding="utf-8")) if records.exists() else []
    return {"status": int(status), "records": found, "tail": printed.getvalue()[-_TAIL:]}
