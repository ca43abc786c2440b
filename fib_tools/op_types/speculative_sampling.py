"""The sampler that checks drafted tokens against the target model; part of the op_type `sampling`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from fib_tools.model.definition import Definition
from fib_tools.model.naming import format_name
from fib_tools.op_types.base import KernelType, MetaTensor, Parameters, TemplateCall, const, source, tensor, var
from fib_tools.op_types.ground_truth import GroundTruth, Wrapper
from fib_tools.op_types.tolerance import sampled

__all__ = ["CHAIN_SPECULATIVE_SAMPLING", "ChainSpeculativeSamplingParameters"]

_FI_API = "flashinfer.sampling.chain_speculative_sampling"


class ChainSpeculativeSamplingParameters(Parameters):
    """The vocabulary; the number of drafted tokens is a var axis, so it is not part of the kernel."""

    vocab_size: int = Field(gt=0)
    num_speculative_tokens: int = Field(default=3, gt=0)


_REFERENCE = """
    @torch.no_grad()
    def run(draft_probs, draft_token_ids, target_probs):
        num_drafted = draft_token_ids.shape[1]
        drafted = draft_token_ids.to(torch.int64).unsqueeze(-1)
        proposed = draft_probs.gather(-1, drafted).squeeze(-1)
        wanted = target_probs[:, :num_drafted].gather(-1, drafted).squeeze(-1)
        accepted = torch.rand_like(proposed) * proposed < wanted
        length = accepted.to(torch.int64).cumprod(dim=-1).sum(dim=-1)

        rows = torch.arange(len(length), device=length.device)
        target = target_probs[rows, length]
        draft = draft_probs[rows, length.clamp(max=num_drafted - 1)]
        draft = torch.where((length < num_drafted)[:, None], draft, 0.0)
        residual = (target - draft).clamp(min=0.0)
        residual = torch.where(residual.sum(dim=-1, keepdim=True) > 0, residual, target)

        output = F.pad(draft_token_ids, (0, 1))
        output[rows, length] = torch.multinomial(residual, 1).squeeze(-1).to(output.dtype)
        position = torch.arange(num_drafted + 1, device=length.device)
        return torch.where(position <= length[:, None], output, -1)
"""


def _define(parameters: ChainSpeculativeSamplingParameters) -> Definition:
    return Definition(
        name=format_name("chain_speculative_sampling", ("v", parameters.vocab_size)),
        description=(
            "Speculative sampling of a chain (Chen et al., 2023): accept each drafted token with probability "
            "min(1, target / draft) up to the first rejection, then draw one token from the positive part of target - "
            "draft, or from the target itself after the last; the reference draws from torch's global generator."
        ),
        op_type="sampling",
        axes={
            "batch_size": var("Rows: sequences that want tokens."),
            "num_speculative": var("Drafted tokens of each sequence."),
            "num_speculative_plus_1": var("Tokens that one step can give."),
            "vocab_size": const(parameters.vocab_size, "Tokens of the vocabulary."),
        },
        constraints=["num_speculative_plus_1 == num_speculative + 1", "num_speculative >= 1"],
        inputs={
            "draft_probs": tensor(
                "float32", "batch_size num_speculative vocab_size", "The distributions that the tokens were drawn from."
            ),
            "draft_token_ids": tensor("int32", "batch_size num_speculative", "The drafted tokens."),
            "target_probs": tensor(
                "float32", "batch_size num_speculative_plus_1 vocab_size", "The target model's distributions."
            ),
        },
        outputs={
            "accepted_token_ids": tensor(
                "int32", "batch_size num_speculative_plus_1", "The tokens to go on with; -1 after the last of them."
            ),
        },
        reference=source(_REFERENCE),
    )


def _template(parameters: ChainSpeculativeSamplingParameters) -> TemplateCall:
    drafted, vocab_size = parameters.num_speculative_tokens, parameters.vocab_size
    arguments: dict[str, Any] = {
        "draft_probs": MetaTensor(shape=(4, drafted, vocab_size), dtype="float32"),
        "draft_token_ids": MetaTensor(shape=(4, drafted), dtype="int32"),
        "target_probs": MetaTensor(shape=(4, drafted + 1, vocab_size), dtype="float32"),
    }
    return TemplateCall(fi_api=_FI_API, arguments=arguments)


_KERNEL = """
    @torch.no_grad()
    def run(draft_probs, draft_token_ids, target_probs):
        tokens, _, _ = flashinfer.sampling.chain_speculative_sampling(draft_probs, draft_token_ids, target_probs)
        return tokens
"""


def _ground_truth(parameters: ChainSpeculativeSamplingParameters) -> GroundTruth:
    del parameters
    return GroundTruth(
        wrappers=(Wrapper(kind="flashinfer", api=_FI_API, imports=("import flashinfer",), body=_KERNEL),)
    )


CHAIN_SPECULATIVE_SAMPLING = KernelType(
    id="chain_speculative_sampling",
    op_type="sampling",
    summary="accept drafted tokens as the target model would have drawn them, and draw one more",
    parameters=ChainSpeculativeSamplingParameters,
    define=_define,
    fi_api=_FI_API,
    template=_template,
    sglang_symbols=("sglang.kernels.ops.speculative.reject_sampling.chain_speculative_sampling_triton",),
    ground_truth=_ground_truth,
    policies={"accepted_token_ids": sampled},
)
