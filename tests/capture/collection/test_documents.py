from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fib_tools.capture.collection.candidates import Candidate
from fib_tools.capture.collection.documents import make_draft, write_drafts
from fib_tools.dataset.store import Dataset, Written
from fib_tools.errors import StorageError
from fib_tools.model.workload import Origin, RandomInput, SafetensorsInput, ScalarInput
from fib_tools.op_types.registry import get_kernel_type

DEFINITION = get_kernel_type("gqa_paged_decode").build(
    {"num_qo_heads": 4, "num_kv_heads": 2, "head_dim": 8, "page_size": 1}
)


def candidate(*pages: int, count: int = 1) -> Candidate:
    return Candidate(
        axes={"batch_size": 1, "num_pages": 9, "len_indptr": 2, "num_kv_indices": len(pages)},
        tensors={
            "kv_indptr": torch.tensor([0, len(pages)], dtype=torch.int32),
            "kv_indices": torch.tensor(pages, dtype=torch.int32),
        },
        scalars={"sm_scale": 0.5},
        scales={"q": 0.25},
        features=(),
        count=count,
    )


def test_a_draft_keeps_structure_in_one_blob_and_leaves_values_to_chance() -> None:
    draft = make_draft(DEFINITION, candidate(1, 2), "dummy")
    assert draft.at is not None
    blob = str(draft.at)
    assert blob.startswith("blob/workloads/gqa_paged/gqa_paged_decode_h4_kv2_d8_ps1/")
    assert draft.workload.inputs == {
        "q": RandomInput(),
        "k_cache": RandomInput(),
        "v_cache": RandomInput(),
        "kv_indptr": SafetensorsInput(path=blob, tensor_key="kv_indptr"),
        "kv_indices": SafetensorsInput(path=blob, tensor_key="kv_indices"),
        "sm_scale": ScalarInput(value=0.5),
    }
    assert (draft.workload.count, draft.workload.origin, draft.workload.scales) == (1, "dummy", {"q": 0.25})


def test_the_uuid_and_the_blob_follow_from_the_content_alone() -> None:
    first, again = (make_draft(DEFINITION, candidate(1, 2, count=count), "real") for count in (1, 7))
    other = make_draft(DEFINITION, candidate(2, 1), "real")
    assert (first.workload.uuid, first.at, first.blob) == (again.workload.uuid, again.at, again.blob)
    assert first.workload.uuid != other.workload.uuid
    assert first.at != other.at


def test_a_blob_keeps_its_name_from_version_to_version() -> None:
    at = make_draft(DEFINITION, candidate(1, 2), "real").at
    assert at is not None
    assert at.file == "e6bdcc0c6e472da0d143f183400509c1.safetensors"


def test_workloads_are_written_beside_those_that_stand_and_counted_anew(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)
    first = [make_draft(DEFINITION, candidate(1, 2, count=3), "dummy")]
    second = [make_draft(DEFINITION, candidate(1, 2, count=5), "dummy"), make_draft(DEFINITION, candidate(4), "dummy")]
    assert write_drafts(dataset, DEFINITION, first)[0] is Written.CREATED
    written, blobs = write_drafts(dataset, DEFINITION, second)
    assert (written, len(blobs)) == (Written.UPDATED, 1)
    assert write_drafts(dataset, DEFINITION, second) == (Written.UNCHANGED, [])
    standing = dataset.load_workloads("gqa_paged", DEFINITION.name)
    assert sorted(item.count or 0 for item in standing) == [1, 5]


def test_counts_of_other_calls_of_the_same_origin_add_up(tmp_path: Path) -> None:
    dataset = Dataset(tmp_path)

    def count(calls: int, origin: Origin) -> int | None:
        write_drafts(dataset, DEFINITION, [make_draft(DEFINITION, candidate(1, 2, count=calls), origin)], adds=True)
        (standing,) = dataset.load_workloads("gqa_paged", DEFINITION.name)
        return standing.count

    assert [count(3, "dummy"), count(5, "dummy"), count(2, "real"), count(4, "real")] == [3, 8, 2, 6]


def test_a_write_that_fails_leaves_no_blob(tmp_path: Path) -> None:
    (tmp_path / "workloads").write_text("in the way", encoding="utf-8")
    with pytest.raises(StorageError):
        write_drafts(Dataset(tmp_path), DEFINITION, [make_draft(DEFINITION, candidate(1, 2), "dummy")])
    assert list((tmp_path / "blob").rglob("*.safetensors")) == []
