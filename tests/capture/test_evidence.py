from __future__ import annotations

import json
from pathlib import Path

from fib_tools.capture.evidence import OtherCall, read_other_calls
from fib_tools.capture.kernel_log import KernelCall, read_kernel_logs

_RULE = "=" * 80
_LOG = f"""{_RULE}
[2026-11-21 10:00:00] SGLang Kernel API Call: elementwise.silu_and_mul
Positional input arguments:
  arg[0]=Tensor(
      shape=(409, 16384)
      dtype=torch.bfloat16
      device=cuda:0
    )
Keyword input arguments:
  enable_pdl=False
Output:
  return=Tensor(
      shape=(409, 8192)
      dtype=torch.bfloat16
    )
{_RULE}
[2026-11-21 10:00:01] SGLang Kernel API Call: elementwise.silu_and_mul
Positional input arguments:
  arg[0]=Tensor(
      shape=(4, 16384)
      dtype=torch.bfloat16
    )
Keyword input arguments:
  enable_pdl=False
{_RULE}
[2026-11-21 10:00:02] SGLang Kernel API Call: moe.topk_softmax
Positional input arguments:
  arg[0]=Tensor(
      shape=(4, 8)
"""
_SILU = KernelCall(
    name="elementwise.silu_and_mul", tensors={"arg[0]": "bfloat16[*, 16384]"}, values={"enable_pdl": "False"}
)


def test_calls_that_differ_in_their_rows_are_one_and_outputs_are_no_arguments(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    path.write_text(_LOG, encoding="utf-8")
    first, cut_off = read_kernel_logs([path])
    assert first == _SILU
    assert (cut_off.name, cut_off.tensors) == ("moe.topk_softmax", {})


def test_a_log_that_begins_in_the_middle_is_read_from_its_first_call(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    path.write_text("      dtype=torch.float32\n    )\n" + _LOG, encoding="utf-8")
    assert read_kernel_logs([path])[0] == _SILU


def test_what_the_hook_watched_and_what_sglang_logged_come_together(tmp_path: Path) -> None:
    (tmp_path / "calls").mkdir()
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "1.log").write_text(_LOG, encoding="utf-8")
    entries = [
        {"kernel": "torch.linear", "weight": [128, 64], "bias": True, "count": 3},
        {"definition": "rmsnorm_h64", "axes": {}, "count": 2},
        {"kernel": "torch.linear", "weight": "none"},
    ]
    text = "\n".join(json.dumps(entry) for entry in entries) + '\n{"kernel": "cut'
    (tmp_path / "calls" / "rank0-1.jsonl").write_text(text, encoding="utf-8")
    found = read_other_calls(tmp_path, run="tp1")
    assert found[0] == OtherCall(kernel="torch.linear", run="tp1", weight=(128, 64), bias=True, count=3)
    assert [call.kernel for call in found[1:]] == ["elementwise.silu_and_mul", "moe.topk_softmax"]
    assert found[0].describe() == "weight [128, 64]"
    assert found[1].describe() == "arg[0]: bfloat16[*, 16384]"


def test_a_run_without_logs_shows_nothing(tmp_path: Path) -> None:
    assert read_other_calls(tmp_path, run="tp1") == ()
