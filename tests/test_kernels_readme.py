"""The example op in `kernels/README.md` works exactly as printed."""

import importlib.util
import re
from pathlib import Path

import torch
from kernel_compiler import compile_for, record
from repository import ROOT

README = ROOT / "kernels" / "README.md"


def test_the_example_is_a_complete_op(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "half_square.py").write_text(code)
    spec = importlib.util.spec_from_file_location("half_square", tmp_path / "half_square.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    x = torch.randn(5, 3).T.detach().requires_grad_()
    assert set(torch.library.opcheck(module.half_square_op.registered, (x,)).values()) == {"SUCCESS"}
    torch.testing.assert_close(torch.autograd.grad(module.half_square_op(x).sum(), x), (x.detach(),))
    (launch,) = record(lambda: module.launch_half_square(x.detach()))
    assert compile_for(launch, 90).spilled_bytes == 0
