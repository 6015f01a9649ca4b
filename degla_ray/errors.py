"""Errors that a user can correct: each names the setting or file, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from degla_ray.masking import masked

_TRACEBACK, _OURS = "Traceback (most recent call last)", f"{__name__}."
_SHOWN = 200  # characters of a foreign error's message


class DeglaError(Exception):
    """Base class of the errors that a job prints as one line, without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # Python unpickles an exception by calling its class with the message alone. The subclasses take other
        # arguments, so they would not survive the way from a Ray worker to the driver.
        return _restore, (type(self), self.args, vars(self))


def _restore(
    error_class: type[DeglaError], args: tuple[object, ...], attributes: dict[str, object]
) -> DeglaError:
    error = error_class.__new__(error_class)
    error.args = args
    vars(error).update(attributes)
    return error


@contextmanager
def without_ray_wrapper() -> Iterator[None]:
    """Raise the DeglaError of a Ray task or actor itself instead of Ray's wrapper around it."""
    try:
        yield
    except Exception as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, DeglaError):
            raise cause from error
        raise


def one_line(error: BaseException) -> str:
    """Return one line that describes an error: our own errors' message, otherwise its type and message.

    Ray wraps the error of a task: as `cause`, or as text that ends with the task's traceback. The line then
    describes the wrapped error.
    """
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, BaseException) else error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith(_TRACEBACK) for line in lines):
        ours = [line.partition(_OURS)[2] for line in lines if _OURS in line]
        return masked(ours[-1].partition(": ")[2] if ours else lines[-1])
    text = masked(" ".join(" ".join(lines).split()))
    if isinstance(error, DeglaError):
        return text
    return f"{type(error).__name__}: {text[:_SHOWN]}" if text else type(error).__name__


class SettingError(DeglaError):
    """A setting with an unusable value.

    Attributes:
        setting: dotted name as on the command line, e.g. `model.checkpoint`.
        found: the value found.
        expected: description of a valid value.
    """

    def __init__(self, setting: str, found: object, expected: str) -> None:
        self.setting, self.found, self.expected = setting, found, expected
        super().__init__(f"{setting}: found {found!r}; expected {expected}")

    def below(self, path: str, raised_by: type) -> SettingError:
        """Return this error with the setting named from the root of a config.

        Args:
            path: dotted name of the group whose class raised the error; empty for the root.
            raised_by: that class. It may name a setting with its usual group (`objective.name`) or without.
        """
        group, dot, rest = self.setting.partition(".")
        own = rest if dot and group not in getattr(raised_by, "__dataclass_fields__", ()) else self.setting
        return SettingError(f"{path}.{own}" if path else self.setting, self.found, self.expected)


class DataError(DeglaError):
    """An unusable file or dataset.

    Attributes:
        where: file, folder or dataset, with a line or row number if known.
        found: description of what was found.
        expected: description of what would be valid.
    """

    def __init__(self, where: str, found: object, expected: str) -> None:
        self.where, self.found, self.expected = where, found, expected
        super().__init__(f"{where}: found {found}; expected {expected}")


class FingerprintMismatch(DataError):
    """An output folder created with another configuration.

    Attributes:
        fields: dotted setting -> (value in the folder, requested value).
    """

    def __init__(self, where: str, fields: dict[str, tuple[object, object]]) -> None:
        self.fields = fields
        diff = "; ".join(f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in fields.items())
        super().__init__(
            where, f"the output of another configuration ({diff})", "the same settings, or another folder"
        )


class TooManyRejects(DataError):
    """A run that rejected more rows than `max_reject_fraction` allows."""
