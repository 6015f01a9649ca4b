"""Every call that could run code from a model's files says that it must not; ruff's S rules hold the rest."""

from __future__ import annotations

import ast
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
FILES = [path for top in ("degla_ray", "jobs", "benchmarks") for path in sorted((REPO / top).rglob("*.py"))]


def demanded(call: ast.Call) -> tuple[str, bool] | None:
    """The argument that a call must give, and its value; None if any form is safe."""
    called = ast.unparse(call.func)
    if called == "torch.load":
        return "weights_only", True
    owner, _, method = called.rpartition(".")
    if (method == "from_pretrained" and owner.startswith("Auto")) or called == "HFTokenizer":
        return "trust_remote_code", False
    return None


def faults(source: str) -> list[int]:
    """The lines of calls that lack the argument, or give another value."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (wanted := demanded(call)) is not None
        and wanted not in [(k.arg, k.value.value) for k in call.keywords if isinstance(k.value, ast.Constant)]
    ]


def test_calls_that_read_models_run_no_code_from_them() -> None:
    assert faults("torch.load(p)\nAutoModel.from_pretrained(p, trust_remote_code=True)\nHFTokenizer(p)") == [
        1,
        2,
        3,
    ]
    found = {path.name: lines for path in FILES if (lines := faults(path.read_text(encoding="utf-8")))}
    assert found == {}
