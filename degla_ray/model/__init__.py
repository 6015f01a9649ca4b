"""open_clip models: build, load, encode, average, export."""

from degla_ray.model.build import LoadedModel, build, load
from degla_ray.model.encode import encode_image, encode_text
from degla_ray.model.export import export
from degla_ray.model.teacher import Teacher

__all__ = ["LoadedModel", "Teacher", "build", "encode_image", "encode_text", "export", "load"]
