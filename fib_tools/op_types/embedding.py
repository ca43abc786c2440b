"""embedding: look up one row of a table for each token."""

from __future__ import annotations

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, OpType, Parameters, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.rules import row_ids
from fib_tools.op_types.tolerance import exact
from fib_tools.op_types.work_request import Work, WorkRequest

__all__ = ["OP_TYPE", "EmbeddingParameters"]


class EmbeddingParameters(Parameters):
    """The size of one table; under tensor parallelism the rows of one rank."""

    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    dtype: str = "bfloat16"


_REFERENCE = """
    @torch.no_grad()
    def run(input_ids, weight):
        return weight[input_ids]
"""


def _define(parameters: EmbeddingParameters) -> Definition:
    return Definition(
        name=format_name("embedding", ("v", parameters.vocab_size), ("d", parameters.hidden_size)),
        description="Token embedding: output[i] = weight[input_ids[i]].",
        op_type="embedding",
        axes={
            "num_tokens": var("Tokens of all sequences together."),
            "vocab_size": const(parameters.vocab_size, "Rows of the table."),
            "hidden_size": const(parameters.hidden_size, "Elements of one row."),
        },
        inputs={
            "input_ids": tensor("int64", "num_tokens", "Token ids, each in [0, vocab_size)."),
            "weight": tensor(parameters.dtype, "vocab_size hidden_size", "The table."),
        },
        outputs={"output": tensor(parameters.dtype, "num_tokens hidden_size", "One row for each token.")},
        reference=source(_REFERENCE),
    )


_KERNEL = """
    @torch.no_grad()
    def run(input_ids, weight):
        return torch.nn.functional.embedding(input_ids, weight)
"""


def _ground_truth(parameters: EmbeddingParameters) -> GroundTruth:
    del parameters
    return GroundTruth(wrappers=(Wrapper(kind="torch", api="torch.nn.functional.embedding", body=_KERNEL),))


def _work(request: WorkRequest) -> Work | None:
    """Count the rows that some token names."""
    if not request.has("input_ids", "weight"):
        return None
    return Work(read=request.read_rows("weight", request.count_distinct("input_ids")), written=request.written())


OP_TYPE = OpType(
    name="embedding",
    kernels=(
        KernelType(
            id="embedding",
            op_type="embedding",
            summary="output[i] = weight[input_ids[i]]",
            parameters=EmbeddingParameters,
            define=_define,
            sglang_symbols=("sglang.srt.layers.vocab_parallel_embedding.VocabParallelEmbedding",),
            ground_truth=_ground_truth,
            policy=exact,
        ),
    ),
    input_rules={"input_ids": row_ids("vocab_size")},
    input_code={"input_ids": "draw.integers({shape}, 0, {vocab_size}, {dtype})"},
    work=_work,
)
