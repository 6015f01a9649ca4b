"""Import the stages for the jobs in this folder, or exit with the command that fixes a failed import."""

import sys

try:
    from degla_ray.commands import main as main
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {error.name} is not installed for {sys.executable}; "
        "run `source .venv/bin/activate` first (`make install` makes .venv)"
    )
