#!/usr/bin/env python
"""Writes a model in the form of open_clip, Hugging Face's CLIPModel or an MLflow pyfunc.

python jobs/export.py --model.name runs/train/RUN/export_student --format huggingface --output clip-hf
"""

from degla_ray.cli import run
from degla_ray.config import ExportConfig


def main(config: ExportConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.model.build import build_with_weights
    from degla_ray.model.export import export, export_huggingface, said_besides
    from degla_ray.model.pyfunc import save_pyfunc
    from degla_ray.model_source import Kind, find_model

    write = {"open_clip": export, "huggingface": export_huggingface, "mlflow": save_pyfunc}[config.format]
    loaded = build_with_weights(config.model)
    own = config.model.pretrained is None and not loaded.is_random
    source = find_model(config.model.name)
    write(loaded, config.output, said_besides(source.where) if own and source.kind is Kind.FOLDER else None)
    print(f"{config.format}{' of RANDOM WEIGHTS' if loaded.is_random else ''}: {config.output}")


if __name__ == "__main__":
    run(ExportConfig, main, "Writes a model in another program's form.")
