from __future__ import annotations

import json
import shutil
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from fib_tools.errors import FibError, GatedError, OfflineError, SourceError, StorageError, UnknownModelError
from fib_tools.sources.huggingface import Hub
from fib_tools.sources.weights import fetch_weights, find_weights, name_repository
from hosted_weights import COMMIT, HostedWeights
from loopback import Answer, Fault, serve

REPO = "acme/Tiny-1B"
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": b"1" * 3_000_000,
    "model-00002-of-00002.safetensors": b"2" * 2_000_000,
    "model.safetensors.index.json": INDEX.encode(),
    "tokenizer.json": b"{}",
}
OTHERS = {
    "README.md": b"",
    "consolidated.safetensors": b"3",
    "modeling_tiny.py": b"raise SystemExit",
    "original/consolidated.00.pth": b"4",
    "onnx/model.safetensors": b"5",
    "pytorch_model.bin": b"6",
}


@pytest.fixture
def hosted(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostedWeights]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    hosted = HostedWeights(**{REPO: FILES | OTHERS})
    with serve(hosted):
        yield hosted


@pytest.fixture
def hub(hosted: HostedWeights, tmp_path: Path) -> Hub:
    return Hub(endpoint=hosted.url, cache_dir=tmp_path / "cache")


def fetch(hub: Hub, said: list[tuple[str, int, int]] | None = None) -> Path:
    return fetch_weights(REPO, report=lambda *each: None if said is None else said.append(each), hub=hub)


def test_weights_and_what_goes_with_them_are_fetched_and_nothing_else(hosted: HostedWeights, hub: Hub) -> None:
    assert find_weights(REPO, hub=hub) is None
    said: list[tuple[str, int, int]] = []
    folder = fetch(hub, said)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert folder.name == COMMIT
    assert hosted.list_fetched() == sorted(FILES)
    assert said[0] == (f"downloading 5.0 MB of {REPO} in 5 files", 0, 4)
    assert said[-1] == (f"downloading {REPO}: MB", 4, 4)
    assert find_weights(REPO, hub=hub) == folder


def test_a_download_that_was_stopped_goes_on_with_what_is_missing(hosted: HostedWeights, hub: Hub) -> None:
    hosted.faults += [Fault(words=("GET", "model-00002"), answer=Answer(status=403)) for _ in range(9)]
    with pytest.raises(GatedError, match="accept its licence"):
        fetch(hub)
    hosted.faults.clear()
    hosted.asked.clear()
    assert find_weights(REPO, hub=hub) is None, "an index is there, and one of its files is not"
    fetch(hub)
    assert "model-00002-of-00002.safetensors" in hosted.list_fetched()
    assert "model-00001-of-00002.safetensors" not in hosted.list_fetched()


def test_one_copy_is_taken_where_all_files_have_other_names(hosted: HostedWeights, hub: Hub) -> None:
    hosted.repositories[REPO] = {"config.json": b"{}", "consolidated.safetensors": b"3"}
    assert sorted(path.name for path in fetch(hub).iterdir()) == ["config.json", "consolidated.safetensors"]


def test_a_disk_without_room_is_told_before_anything_is_fetched(
    hosted: HostedWeights, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=4_000_000))
    with pytest.raises(StorageError, match=r"needs 5.0 MB, and the disk has 4.0 MB free.*HF_HOME"):
        fetch(hub)
    assert hosted.list_fetched() == []


@pytest.mark.parametrize("lacking", ["config.json", "safetensors"])
def test_a_repository_without_weights_is_refused(hosted: HostedWeights, hub: Hub, lacking: str) -> None:
    hosted.repositories[REPO] = {name: content for name, content in FILES.items() if not name.endswith(lacking)}
    with pytest.raises(SourceError, match=f"the repository has no {lacking}"):
        fetch(hub)


def test_an_index_that_names_more_than_there_is_is_refused(hosted: HostedWeights, hub: Hub) -> None:
    hosted.repositories[REPO] = {name: content for name, content in FILES.items() if "00002-of" not in name}
    with pytest.raises(SourceError, match="its index names files that it lacks"):
        fetch(hub)


def test_a_repository_that_is_not_there_is_unknown(hub: Hub) -> None:
    with pytest.raises(UnknownModelError, match="unknown model 'acme/Other'"):
        fetch_weights("acme/Other", report=lambda *_: None, hub=hub)


def test_a_hub_that_cannot_be_reached_is_an_offline_error(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub = Hub(endpoint=f"http://127.0.0.1:{unused.getsockname()[1]}", cache_dir=tmp_path)
        with pytest.raises(OfflineError, match="goes on with the files that are missing"):
            fetch(hub)


def test_the_token_goes_to_the_hub_and_into_no_text(hosted: HostedWeights, hub: Hub) -> None:
    secret = hub.model_copy(update={"token": "hf_secret"})
    hosted.faults.append(Fault(words=("GET", "api/models"), answer=Answer(status=403)))
    with pytest.raises(FibError) as caught:
        fetch(secret)
    said: list[tuple[str, int, int]] = []
    fetch(secret, said)
    assert {each.headers.get("authorization") for each in hosted.asked} == {"Bearer hf_secret"}
    assert "hf_secret" not in f"{caught.value} {said}"


def test_a_damaged_index_in_the_cache_is_told(hosted: HostedWeights, hub: Hub) -> None:
    hosted.repositories[REPO] = FILES | {"model.safetensors.index.json": b"{"}
    with pytest.raises(FibError, match="not JSON"):
        fetch(hub)


@pytest.mark.parametrize(
    ("name", "repo_id"),
    [
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("acme/Tiny-1B", "acme/Tiny-1B"),
    ],
)
def test_weights_are_those_of_the_repository_that_is_named(name: str, repo_id: str) -> None:
    assert name_repository(name) == repo_id


def test_a_name_without_a_repository_is_unknown() -> None:
    with pytest.raises(UnknownModelError, match="did you mean"):
        name_repository("qwen3-30b-a3c")


def test_an_interrupt_ends_the_files_that_are_under_way(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def never_ends(_repo: str, name: str, *, tqdm_class: Any, **_: Any) -> None:
        try:
            bar = tqdm_class()
            if name == "config.json":
                signal.raise_signal(signal.SIGINT)
            while True:
                bar.update(1)
        finally:
            ended.set()

    monkeypatch.setattr("huggingface_hub.hf_hub_download", never_ends)
    with pytest.raises(KeyboardInterrupt):
        fetch(hub)
    assert ended.wait(20)  # a pool does not join a thread whose start was interrupted


def test_a_hub_that_does_not_answer_is_no_fault_of_the_disk(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise LocalEntryNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(OfflineError, match="cannot be downloaded"):
        fetch(hub)
