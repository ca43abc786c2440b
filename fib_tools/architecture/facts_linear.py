"""Linear attention: gated delta net, KDA, Mamba2 and lightning attention."""

from __future__ import annotations

from fib_tools.architecture.facts_reader import LIMITS, FieldReader
from fib_tools.architecture.facts_schema import LinearFacts, MixerKind

__all__ = ["read_linear"]


def read_linear(reader: FieldReader, kind: MixerKind, *, hidden_size: int) -> LinearFacts:
    """Read the linear attention of a kind.

    Raises:
        ConfigError: naming the field that is missing or does not fit the others.
    """
    if kind is MixerKind.GDN:
        return _read_gdn(reader)
    if kind is MixerKind.KDA:
        return _read_kda(reader)
    if kind is MixerKind.MAMBA2:
        return _read_mamba2(reader)
    return _read_lightning(reader, hidden_size)


def _read_gdn(reader: FieldReader) -> LinearFacts:
    fact = "linears.gdn"
    key_heads = reader.get_int("linear_num_key_heads", fact=f"{fact}.num_key_heads", limit=LIMITS["heads"])
    value_heads = reader.get_int("linear_num_value_heads", fact=f"{fact}.num_value_heads", limit=LIMITS["heads"])
    if value_heads % key_heads:
        raise reader.fail("linear_num_value_heads", f"{value_heads} is no multiple of linear_num_key_heads={key_heads}")
    value_dim = reader.get_int("linear_value_head_dim", fact=f"{fact}.value_head_dim", limit=LIMITS["head_dim"])
    return LinearFacts(
        kind=MixerKind.GDN,
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_head_dim=reader.get_int("linear_key_head_dim", fact=f"{fact}.key_head_dim", limit=LIMITS["head_dim"]),
        value_head_dim=value_dim,
        conv_width=reader.get_int("linear_conv_kernel_dim", fact=f"{fact}.conv_width", limit=LIMITS["small"]),
        norm_group_size=value_dim,
    )


def _read_kda(reader: FieldReader) -> LinearFacts:
    linear = reader.find_object("linear_attn_config", fact="linears.kda")
    if linear is None:
        raise reader.fail("linear_attn_config", "the field is missing")
    heads = linear.get_int("num_heads", fact="num_key_heads", limit=LIMITS["heads"])
    head_dim = linear.get_int("head_dim", fact="key_head_dim", limit=LIMITS["head_dim"])
    conv_width = linear.get_int("short_conv_kernel_size", fact="conv_width", limit=LIMITS["small"])
    for fact, field in linear.provenance.items():
        reader.explain(f"linears.kda.{fact}", f"linear_attn_config.{field}")
    return LinearFacts(
        kind=MixerKind.KDA,
        num_key_heads=heads,
        num_value_heads=heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        conv_width=conv_width,
        norm_group_size=head_dim,
    )


def _read_mamba2(reader: FieldReader) -> LinearFacts:
    fact = "linears.mamba2"
    heads = reader.get_int("mamba_num_heads", "mamba_n_heads", fact=f"{fact}.num_value_heads", limit=LIMITS["heads"])
    head_dim = reader.get_int("mamba_head_dim", "mamba_d_head", fact=f"{fact}.value_head_dim", limit=LIMITS["head_dim"])
    groups = reader.get_int("n_groups", "mamba_n_groups", fact=f"{fact}.num_key_heads", limit=LIMITS["heads"])
    if heads % groups:
        raise reader.fail("n_groups", f"{groups} does not divide {heads} heads")
    return LinearFacts(
        kind=MixerKind.MAMBA2,
        num_key_heads=groups,
        num_value_heads=heads,
        key_head_dim=reader.get_int(
            "ssm_state_size", "mamba_d_state", fact=f"{fact}.key_head_dim", limit=LIMITS["head_dim"]
        ),
        value_head_dim=head_dim,
        conv_width=reader.get_int("conv_kernel", "mamba_d_conv", fact=f"{fact}.conv_width", limit=LIMITS["small"]),
        conv_bias=reader.find_bool("use_conv_bias", "mamba_conv_bias", fact=f"{fact}.conv_bias") is not False,
        conv_activation=reader.find_text("mamba_hidden_act", fact=f"{fact}.conv_activation") or "silu",
        chunk_size=reader.find_int("chunk_size", "mamba_chunk_size", fact=f"{fact}.chunk_size", limit=LIMITS["small"]),
        use_qk_l2norm=False,
        has_projection_bias=reader.find_bool("mamba_proj_bias", "use_bias", fact=f"{fact}.projection_bias") or False,
        norm_group_size=heads * head_dim // groups,
        norm_before_gate=False,
    )


def _read_lightning(reader: FieldReader, hidden_size: int) -> LinearFacts:
    fact = "linears.lightning"
    heads = reader.get_int("num_attention_heads", fact=f"{fact}.num_value_heads", limit=LIMITS["heads"])
    head_dim = reader.find_int("head_dim", fact=f"{fact}.value_head_dim", limit=LIMITS["head_dim"])
    head_dim = head_dim or max(1, hidden_size // heads)
    return LinearFacts(
        kind=MixerKind.LIGHTNING,
        num_key_heads=heads,
        num_value_heads=heads,
        key_head_dim=head_dim,
        value_head_dim=head_dim,
        chunk_size=reader.find_int("block_size", fact=f"{fact}.chunk_size", limit=LIMITS["small"]),
        use_qk_l2norm=False,
    )
