"""Parse the command line of a job into its config dataclass, and run the job.

`--config FILE.yaml`, dotted overrides, `--help` and `--print_config` come from jsonargparse. An invalid
setting, a missing file or bad data ends the job with one line on stderr and exit status 2, even if a Ray
worker found it; an interrupt (Ctrl-C) ends it with 130. Any other exception is a bug and keeps its traceback.
Importing torch, Ray and MLflow takes 10 s. Jobs therefore import only this module and `config`, and the rest
inside the function that they pass, so that `--help` answers in 0.5 s.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import itertools
import re
import signal
import sys
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import register_type

from degla_ray import cli_words, ray_setup
from degla_ray.cli_help import HelpAction, settings
from degla_ray.config import JOBS
from degla_ray.config.renamed import OVERLAYS, REPLACED
from degla_ray.config.sections import group_class, is_labelled, is_optional
from degla_ray.config.shared import TrackingConfig
from degla_ray.errors import DeglaError, SettingError
from degla_ray.masking import MaskedStream
from degla_ray.schema import Kind, RejectReason

ConfigT = TypeVar("ConfigT")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def _member(choices: type[StrEnum]) -> Callable[[str], StrEnum]:
    """Return a function that finds an enum member by its value, as in data files, not by its name."""

    def read(value: str) -> StrEnum:
        if value not in list(choices):
            raise ValueError(f"expected one of {', '.join(choices)}. Got value: {value}")
        return choices(value)

    return read


for _choices in (Kind, RejectReason):
    register_type(_choices, serializer=str, deserializer=_member(_choices))


class _Parser(ArgumentParser):
    """A parser with one-line errors, which suggest the setting that was probably meant."""

    sections: Sequence[str] = ()
    """Labelled sections as the user named them; options have _ for - in them."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        message = _with_suggestion(_plain(message), list(settings(self)))
        for section in self.sections:
            message = message.replace(f"{section.replace('-', '_')}.", f"{section}.")
        raise DeglaError(message) from ex


def build_parser(
    config_class: type,
    description: str,
    first: Sequence[str] = (),
    sections: Sequence[str] | None = None,
) -> ArgumentParser:
    """Build a parser with `--config` and one dotted option for each setting of `config_class`.

    Args:
        config_class: dataclass of the job's settings.
        description: what the job does, for `--help`.
        first: settings that `--help` explains; the others are listed by group.
        sections: optional and labelled sections that have options (`pretrain`, `fine_tune.degla`); None for
            all, with LABEL for labels.
    """
    parser = _Parser(
        description=description,
        add_help=False,
        allow_abbrev=False,  # a shortened or mistyped name is an unknown setting, not a guess
        usage="%(prog)s [--config FILE.yaml] [--SETTING VALUE ...] [--print_config]",
    )
    parser.add_argument("-h", "--help", action=HelpAction, first=first)
    parser.add_argument("--config", action="config", help="YAML file of settings; later options override it")
    hints = typing.get_type_hints(config_class)
    apart = {name: hint for name, hint in hints.items() if is_labelled(hint) or is_optional(hint)}
    parser.add_class_arguments(config_class, None, skip=set(apart))
    if sections is None:
        sections = [f"{name}.LABEL" if is_labelled(hint) else name for name, hint in apart.items()]
    parser.sections = sections
    for section in sections:
        parser.add_class_arguments(group_class(hints[section.partition(".")[0]]), section)
    return parser


def parse(
    config_class: type[ConfigT],
    description: str,
    argv: Sequence[str] | None = None,
    first: Sequence[str] = (),
) -> ConfigT:
    """Return the config that a command line (default: sys.argv) and its YAML files describe.

    Raises:
        DeglaError: a setting is unknown or of the wrong type, settings contradict each other, or a file is
            missing or malformed.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    given = cli_words.read(words, config_class)
    sections = None if {"-h", "--help"} & set(words) else cli_words.sections(given, config_class)
    parser = build_parser(config_class, description, first, sections)
    known = settings(parser)
    try:
        given = cli_words.renamed(given, known.keys())
        hints = {name: getattr(action, "_typehint", None) for name, action in known.items()}
        parsed = parser.parse_args(cli_words.joined(given, hints))
        del parsed["config"]
        return _built(config_class, parsed, sections or ())
    except yaml.YAMLError as error:
        raise DeglaError(_plain(str(error))) from error
    except DeglaError as error:
        _require_own_config(config_class, words, error)
        raise


def from_settings(config_class: type[ConfigT], values: Mapping[str, Any], section: str) -> ConfigT:
    """Return the config that a mapping of settings describes, under the same rules as a command line.

    Args:
        config_class: what to build.
        values: settings, nested as in a YAML file; what is left out keeps its default.
        section: path of the mapping in the user's file, for messages.

    Raises:
        DeglaError: as `parse`, the setting named with `section` before it.
    """
    try:
        own = cli_words.settings_only(values, config_class)
        sections = cli_words.sections([own], config_class)
        parser = build_parser(config_class, "", sections=sections)
        parser.prog = section
        [given] = cli_words.renamed([own], settings(parser).keys())
        parsed = parser.parse_object(given)
        parsed.pop("config", None)
        return _built(config_class, parsed, sections)
    except DeglaError as error:
        raise DeglaError(f"{section}.{error}") from None


def _built(
    config_class: type[ConfigT], values: Namespace, sections: Sequence[str], path: str = ""
) -> ConfigT:
    """Make a config of parsed values; an error names the setting from the root.

    Args:
        config_class: what to make.
        values: of its fields.
        sections: labelled sections as the user named them; the parser has _ for - in them.
        path: dotted name of the config.
    """
    hints = typing.get_type_hints(config_class)
    fields: dict[str, Any] = dict(vars(values))
    for name, hint in hints.items():
        inner, here = group_class(hint), f"{path}.{name}".removeprefix(".")
        if inner is None or fields.get(name) is None:
            continue
        if is_labelled(hint):
            labels = [section.partition(".")[2] for section in sections if section.startswith(f"{name}.")]
            of_label = {label: fields[name][label.replace("-", "_")] for label in labels}
            fields[name] = {
                label: _built(inner, found, (), f"{here}.{label}")
                for label, found in of_label.items()
                if found is not None
            }
        else:
            fields[name] = _built(inner, fields[name], (), here)
    try:
        return config_class(**fields)
    except SettingError as error:
        raise error.below(path, config_class) from None


def _require_own_config(config_class: type, words: Sequence[str], error: DeglaError) -> None:
    """Raise an error that names the right job if a refused `--config` file belongs to another job.

    Raises:
        DeglaError: every setting in the file belongs to another job, and not all belong to this one.
    """
    files = [b for a, b in itertools.pairwise(words) if a == "--config"]
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            return  # `error` already reports an unreadable file
        if not isinstance(content, dict) or content.keys() <= _fields(config_class):
            continue
        for job, other in JOBS.items():
            if other is not config_class and content.keys() <= _fields(other):
                raise DeglaError(
                    f"--config: {file} holds the settings of another job: "
                    f"python jobs/{job}.py --config {file}"
                ) from None


def _fields(config_class: type) -> set[str]:
    return {field.name for field in dataclasses.fields(config_class)}


def run(
    config_class: type[ConfigT],
    job: Callable[[ConfigT], object],
    description: str,
    argv: Sequence[str] | None = None,
    first: Sequence[str] = (),
) -> None:
    """Parse the command line and call `job(config)`; a DeglaError becomes one line and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # so that pipes and job logs show progress at once
    if not isinstance(sys.stdout, MaskedStream):
        sys.stdout, sys.stderr = MaskedStream(sys.stdout), MaskedStream(sys.stderr)
    ray_setup.set_environment()
    received: list[int] = []

    def end(signum: int, frame: object) -> NoReturn:
        del frame
        received.append(signum)
        sys.exit(128 + signum)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, end)  # so that leases are released and MLflow runs ended
    try:
        config = parse(config_class, description, argv, first)
        if ray_setup.in_submitted_job():
            refuse_temporary(config)
        job(config)
    except SystemExit:
        if received:  # in `ray.get`, Ray turns the status into 1
            sys.exit(128 + received[0])
        raise
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except Exception as error:
        cause = user_error(error)
        if cause is None:
            raise
        # Ray Data appends advice on retries to a worker's message.
        print(f"error: {str(cause).splitlines()[0]}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def refuse_temporary(config: object, prefix: str = "") -> None:
    """Refuse relative output paths: a submitted job runs in a temporary copy of the repository.

    Args:
        config: a config, or a section of one.
        prefix: dotted name of the section, with a dot at the end.

    Raises:
        SettingError: an output's path is relative; names the first.
    """
    entries = config if isinstance(config, Mapping) else vars(config)
    for name, value in entries.items():
        setting = f"{prefix}{name}"
        if dataclasses.is_dataclass(value) or isinstance(value, Mapping):
            refuse_temporary(value, f"{setting}.")
        elif name in _OUTPUTS and isinstance(value, str) and not _lasting(value):
            expected = "an absolute path or a URI such as s3://BUCKET/FOLDER: a submitted job runs in a"
            raise SettingError(setting, value, f"{expected} temporary copy of the repository")
    if isinstance(config, TrackingConfig) and config.enabled and not _store_lasts(config.uri):
        expected = "a store outside the submitted job's temporary copy of the repository, such as"
        expected += " http://HOST:5000 or sqlite:////SHARED/mlflow.db, with four slashes"
        raise SettingError(f"{prefix}uri", config.uri, expected)


_OUTPUTS = ("output", "export", "cache")
"""Names of settings that hold output folders."""


def _lasting(path: str) -> bool:
    return "://" in path or Path(path).expanduser().is_absolute()


def _store_lasts(uri: str) -> bool:
    """Return whether an MLflow URI names the same store in every working directory."""
    scheme, colon, rest = uri.partition(":")
    if not colon or uri.startswith("databricks"):
        return uri.startswith("databricks") or _lasting(uri)
    if scheme == "sqlite":
        return rest.startswith("////") or rest.startswith("///~")
    return scheme != "file" or rest.startswith("/")


def user_error(error: BaseException) -> DeglaError | None:
    """Return the DeglaError behind an exception, unwrapping Ray's errors; None if there is no such error.

    Ray wraps an exception of a task (`RayTaskError.cause`). Ray Data and Ray Train wrap it again
    (`__cause__`; Train also in `worker_failures`, one exception per rank). A wrapper may be an instance of
    DeglaError too, but its message is the worker's traceback, so the innermost DeglaError is returned.
    """
    waiting: list[BaseException] = [error]
    seen: list[BaseException] = []
    while waiting:
        current = waiting.pop(0)
        if any(current is earlier for earlier in seen):
            continue
        seen.append(current)
        failures = getattr(current, "worker_failures", None)
        inner = [
            getattr(current, "cause", None),
            current.__cause__,
            *(failures.values() if isinstance(failures, dict) else ()),
        ]
        waiting.extend(cause for cause in inner if isinstance(cause, BaseException))
    found = [candidate for candidate in seen if isinstance(candidate, DeglaError)]
    return found[-1] if found else None


def _with_suggestion(message: str, names: Sequence[str]) -> str:
    """Add the setting that was probably meant to a message about an unknown setting."""
    if value := re.search(r"expected one of (.*)\. Got value: (.*)", message):
        if value[2] in OVERLAYS:
            return f"{message}; write degla and add --config {OVERLAYS[value[2]]} after your own settings"
        near = difflib.get_close_matches(value[2], value[1].split(", "), n=1)
        return f"{message}; did you mean {near[0]}?" if near else message
    unknown = re.match(r"(?:--)?([\w.-]+): no such setting", message)
    if unknown is None:
        return message
    last = unknown[1].rpartition(".")[2]
    if last in REPLACED:
        return f"{message}; expected {REPLACED[last]}"
    near = [name for name in names if name.rpartition(".")[2] == last]
    near = difflib.get_close_matches(unknown[1], near or names, cutoff=0.0 if near else 0.75)
    return f"{message}; did you mean {' or '.join(f'--{name}' for name in near[:3])}?" if near else message


def _plain(message: str) -> str:
    """Return the message as one line, in the user's terms rather than the parser's."""
    message = " ".join(message.split())
    for pattern, replacement in _REWORDED:
        message = re.sub(pattern, replacement, message)
    return message


_REWORDED = (
    (r'^Parser key "([^"]*)": ?', r"\1: "),
    (r"<class '(?:\w+\.)*(\w+)'>", r"\1"),
    (r"Not of type \w+: expected", "expected"),
    (r"Expected a typing\.Literal\[([^\]]*)\]", r"expected one of \1"),
    (r"Does not validate against any .*? Errors: - (expected one of .*?) - .*", r"\1"),
    (
        r"Does not validate against any .*? Subtypes: \[([^\]]*)\] .* Given value: (.*)",
        r"expected one of \1. Got value: \2",
    ),
    (r"Expected an? (\w+)", r"expected type \1"),
    (r"typing\.", ""),
    (r"NoneType", "null"),
    (r"Group '([\w.-]+)' does not accept option '([\w.-]+)'", r"\1.\2: no such setting"),
    (r"Option '([\w.]+)' is not accepted", r"\1: no such setting"),
    (r"^the following arguments are required: (.*)", r"\1: required, but not set"),
    (r"^unrecognized arguments: (--[\w.-]+)(.*)", r"\1: no such setting (in: \1\2)"),
    (r"^Unexpected config:.*", "config: the file holds no settings; expected lines such as `seed: 42`"),
    (r'in "<unicode string>", ', ""),
    (
        r"^((?:\w+\.)*(?:base_)?model)(\.name)?: required, but not set$",
        r"\1\2: required, but not set; expected a CLIP, such as ViT-B-32-quickgelu with "
        r"\1.pretrained openai, or scenes-base for the demo's rendered scenes",
    ),
)
"""(pattern, replacement) pairs that reword the messages of jsonargparse 4.53."""
