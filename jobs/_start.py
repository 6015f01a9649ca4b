"""Import the stages for the jobs beside this file, or say how to make that work."""

import sys

try:
    from degla_ray.commands import main as main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {error.name} is not installed for {sys.executable}; "
        "run `source .venv/bin/activate` first (`make install` makes .venv)"
    )
