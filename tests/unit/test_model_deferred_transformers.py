"""Building and running a CLIP does not import transformers; a Hugging Face text tower does, and works."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import degla_ray.model.build, degla_ray.model.encode
assert not {"transformers", "sklearn"} & set(sys.modules), "imported with open_clip"
from open_clip.hf_model import HFTextEncoder
from transformers import BertConfig
size = dict(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
config = BertConfig(**size)
assert "transformers" in sys.modules
import torch
for pooler in ("mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"):
    tower = HFTextEncoder("unused", 8, config=config, pooler_type=pooler, proj_type="linear")
    assert tower(torch.tensor([[5, 6, 0]])).shape == (1, 8)
"""


def test_open_clip_import_leaves_transformers_to_the_towers_that_need_it() -> None:
    """In a process of its own, since this one may have imported both."""
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
