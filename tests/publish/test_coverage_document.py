"""The coverage document: what is written, what is left alone, and what people wrote that cannot be."""

from __future__ import annotations

import pytest

from fib_tools.errors import FormatError
from fib_tools.publish.coverage_document import (
    CoverageStatus,
    CoveredKernel,
    CoveredModel,
    CoveredWay,
    Discovered,
    DiscoveredModel,
    find_stem,
    find_wrong_names,
    list_hand_written,
    list_parts,
    update_document,
)


def cover(
    slug: str, *kernels: CoveredKernel, title: str = "", unmapped: tuple[tuple[str, str], ...] = ()
) -> CoveredModel:
    return CoveredModel(
        model=slug, title=title or f"org/{slug}", serving=("tp1 on H200 (x.yaml)",), kernels=kernels, unmapped=unmapped
    )


def kernel(
    name: str, status: CoverageStatus = "missing", *, tp: tuple[int, ...] = (1,), workloads: int = 0
) -> CoveredKernel:
    return CoveredKernel(name=name, op_type="gemm", tp=tp, ep=(1,), page_sizes=(), status=status, workloads=workloads)


def test_a_new_document_has_an_overview_and_a_part_for_each_model() -> None:
    text = update_document("", [cover("b", kernel("gemm_n1_k2", "workloads", workloads=3)), cover("a")])
    assert "| [org/b](#b) | 1 | 1 | 0 | 0 | 0 |" in text
    assert text.index("[org/a](#a)") < text.index("[org/b](#b)")
    assert "| `gemm_n1_k2` | gemm | 1 | 1 |  | Definition and Workloads (3) |" in text
    assert "## org/a\n\n<!-- coverage:a -->" in text


def test_the_same_again_changes_nothing_and_hand_written_parts_stay_to_the_byte() -> None:
    models = [cover("a", kernel("gemm_n1_k2"))]
    written = (
        "Mine.\r\n\n" + update_document("", models).replace("## org/a", "## My heading  \nMy words |x|\n") + "\nEnd."
    )
    assert update_document(written, models) == written
    changed = update_document(written, [cover("a", kernel("gemm_n1_k2", "definition"))])
    assert changed != written
    assert list(list_hand_written(changed)) != []
    assert [text for *_, text in list_hand_written(changed)] == [text for *_, text in list_hand_written(written)]


def test_models_that_are_not_asked_for_keep_their_parts_and_their_rows() -> None:
    first = update_document("", [cover("a", kernel("gemm_n1_k2")), cover("b", kernel("gemm_n3_k4"))])
    second = update_document(first, [cover("b", kernel("gemm_n3_k4", "definition")), cover("c")])
    assert "| [org/a](#a) | 1 | 0 | 0 | 1 | 0 |" in second
    assert "| [org/b](#b) | 1 | 0 | 1 | 0 | 0 |" in second
    assert "`gemm_n1_k2`" in second
    assert second.index("coverage:c") > second.index("/coverage:b")


def test_each_way_of_serving_is_counted_for_itself() -> None:
    both = cover("a", kernel("gemm_n1_k2", tp=(1, 8)), kernel("gemm_n3_k4", "definition", tp=(8,)))
    ways = (
        CoveredWay(title="tp1 on H200", kernels=("gemm_n1_k2",)),
        CoveredWay(title="tp8 ep4 on B|00", kernels=("gemm_n1_k2", "gemm_n3_k4")),
    )
    text = update_document("", [both.model_copy(update={"ways": ways})])
    assert "| tp1 on H200 | 1 | 0 | 0 | 1 |" in text
    assert "| tp8 ep4 on B\\|00 | 2 | 0 | 1 | 1 |" in text


def test_a_kernel_has_its_statuses_and_the_versions_they_are_by() -> None:
    one = kernel("gemm_n1_k2").model_copy(update={"flashinfer": "template", "sglang": "sgl_missing"})
    text = update_document("", [cover("a", one).model_copy(update={"sources": ("flashinfer 1", "sglang 2")})])
    assert "| `gemm_n1_k2` | gemm | 1 | 1 |  | missing | template | sgl_missing |" in text
    assert "\nBy flashinfer 1, sglang 2.\n" in text


def test_new_models_have_a_part_of_their_own_that_stays_until_it_is_asked_for_again() -> None:
    found = DiscoveredModel(model="org/n|w", source="hub", evidence="<b>", config_bundled=False, onboarded=False)
    news = Discovered(models=(found,), basis=("hub: 50 looked at",))
    text = update_document("", [cover("a")], news)
    assert "| org/n\\|w | hub | \\<b\\> | on the Hub | no |" in text
    assert "- hub: 50 looked at" in text
    assert list_parts(text) == ("a",)
    assert update_document(text, [cover("a")]) == text
    changed = update_document(text, [], Discovered(models=(), basis=("hub: offline",)))
    assert "- hub: offline" in changed
    assert "org/n" not in changed
    assert "## org/a" in changed


def test_text_of_others_is_no_markup() -> None:
    text = update_document("", [cover("a", unmapped=(("x | y", "<b>`no`</b>\nnext"),))])
    assert "| x \\| y | \\<b\\>\\`no\\`\\</b\\> next |" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- coverage:a -->\n", "coverage:a has no end"),
        ("<!-- /coverage:a -->\n", "ends and has not begun"),
        ("<!-- coverage:a -->\n<!-- coverage:b -->\n", "begins inside of coverage:a"),
        ("<!-- coverage:a -->\n<!-- /coverage:a -->\n" * 2, "begins a second time"),
    ],
)
def test_broken_marks_are_named_and_nothing_is_guessed(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        update_document(text, [cover("a")])


def test_hand_written_lines_come_with_their_heading() -> None:
    text = "one\n# First #\ntwo\n<!-- coverage:a -->\n`gemm_n1_k2`\n<!-- /coverage:a -->\nthree\n## Second\nfour\n"
    assert [(number, heading, line.strip()) for number, heading, line in list_hand_written(text)] == [
        (1, "", "one"),
        (3, "First", "two"),
        (7, "First", "three"),
        (9, "Second", "four"),
    ]


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("gqa_paged_decode_h32_kv8_d128_ps64", "gqa_paged_decode"),
        ("rmsnorm_h4096", "rmsnorm"),
        ("moe_fp8_block_scale_ds_routing_topk8_ng8_kg4_e32_h7168_i2048", "moe_fp8_block_scale_ds_routing"),
        ("top_k_sampling_from_probs_v128256", "top_k_sampling_from_probs"),
    ],
)
def test_a_stem_is_a_name_without_its_sizes(name: str, stem: str) -> None:
    assert find_stem(name) == stem


def test_names_that_contradict_the_config_are_found_with_what_it_says() -> None:
    possible = {"rmsnorm_h4096", "gemm_n6144_k4096", "gemm_n4096_k4096"}
    lines = [
        (3, "| `rmsnorm_h4096` | `gemm_n6144_k4097`, gemm_n6144_k4097 | done |"),
        (4, "our_own_kernel_h3 and snake_case and rmsnorm_h4096_fp8x are not judged; path/rmsnorm_h1.json neither"),
        (5, "gelu_and_mul_i512"),
    ]
    stems = {"rmsnorm", "gemm", "gelu_and_mul", "silu_and_mul"}
    found = list(find_wrong_names("m", lines, possible=possible, stems=stems))
    assert [(item.line, item.name, item.reason) for item in found] == [
        (3, "gemm_n6144_k4097", "by its config it is gemm_n6144_k4096"),
        (5, "gelu_and_mul_i512", "the model has no gelu_and_mul by its config"),
    ]
