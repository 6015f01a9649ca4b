#!/usr/bin/env python
"""Writes a model in the form of open_clip, Hugging Face's CLIPModel or an MLflow pyfunc.

python jobs/export.py --model.name runs/train/RUN/export_student --format huggingface --output clip-hf
"""

from degla_ray.cli import run
from degla_ray.config import ExportConfig


def main(config: ExportConfig) -> None:
    """Imported here, so that `--help` answers at once."""
    from degla_ray.model.build import build
    from degla_ray.model.export import export, export_huggingface, said_besides
    from degla_ray.model.pyfunc import save_pyfunc

    write = {"open_clip": export, "huggingface": export_huggingface, "mlflow": save_pyfunc}[config.format]
    write(build(config.model), config.output, said_besides(config.model.name))
    print(f"{config.format}: {config.output}")


if __name__ == "__main__":
    run(ExportConfig, main, "Writes a model in another program's form.")
