"""Building and running a CLIP imports neither transformers nor the compiler; what needs them still works."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import degla_ray.model.build, degla_ray.model.encode
assert not {"transformers", "sklearn", "torch._dynamo"} & set(sys.modules), "imported with open_clip"
degla_ray.model.build.load("scenes-base")
assert not {"transformers.models.auto", "torch._dynamo"} & set(sys.modules), "imported with a tokenizer"
from open_clip.hf_model import HFTextEncoder
from transformers import BertConfig
size = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
config = BertConfig(**size)
assert "transformers" in sys.modules
import torch
for pooler in ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"):
    tower = HFTextEncoder("unused", 8, config=config, pooler_type=pooler, proj_type="linear")
    assert tower(torch.tensor([[5, 6, 0]])).shape == (1, 8)

import timm.models.naflexvit, torchvision.ops, torchvision.ops.roi_align
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu")
rope = timm.models.naflexvit.NaFlexRopeIterator.__next__
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))
try:
    rope(None)
except AttributeError as error:
    assert "_depth_idx" in str(error), error
"""


def test_open_clip_import_leaves_transformers_and_the_compiler_to_what_needs_them() -> None:
    """In a process of its own, since this one may have imported both."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
