"""Errors a user can act on. Each names the setting or file, what was found and what would be right."""

from __future__ import annotations

from typing import Any

from degla_ray.masking import masked


class DeglaError(Exception):
    """Base of every error that a job prints as one line (no traceback)."""

    def __init__(self, message: str) -> None:
        super().__init__(masked(message))

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is unpickled by calling it with its message; those below take more than that, and
        # have to come home from Ray's workers.
        return _restore, (type(self), self.args, vars(self))


def _restore(
    error_class: type[DeglaError], args: tuple[object, ...], attributes: dict[str, object]
) -> DeglaError:
    error = error_class.__new__(error_class)
    error.args = args
    vars(error).update(attributes)
    return error


class SettingError(DeglaError):
    """A setting whose value cannot work.

    Attributes:
        setting: dotted name as on the command line, e.g. `model.checkpoint`.
        found: what was found there.
        expected: what would be right.
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
    """A file or dataset that cannot be used.

    Attributes:
        where: file, folder or dataset, with a line or row number where there is one.
        found: what was found there.
        expected: what would be right.
    """

    def __init__(self, where: str, found: object, expected: str) -> None:
        self.where, self.found, self.expected = where, found, expected
        super().__init__(f"{where}: found {found}; expected {expected}")


class FingerprintMismatch(DataError):
    """An output folder that another configuration made.

    Attributes:
        fields: dotted setting -> (value in the folder, value asked for).
    """

    def __init__(self, where: str, fields: dict[str, tuple[object, object]]) -> None:
        self.fields = fields
        diff = "; ".join(f"{name}: {old!r} there, {new!r} asked" for name, (old, new) in fields.items())
        super().__init__(
            where, f"the output of another configuration ({diff})", "the same settings, or another folder"
        )


class TooManyRejects(DataError):
    """More rows were rejected than `max_reject_fraction` allows."""
