"""Options of a command from a YAML file, and the file that repeats a command."""

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from gae.cli.terminal import fail
from gae.studies.repeat import keep_options, repeatable

OWN = ("config", "print_config", "resume")  # parameters that a file neither gives nor repeats


def configured(command: Callable[..., Path | None]) -> Callable[..., None]:
    """Decorator of commands: adds ``--config`` and ``--print-config``, and writes the options into its folder.

    The command returns its folder, if it has one.
    """

    @wraps(command)
    def run(context: Any, config: Path | None, print_config: bool, **options: Any) -> None:
        for name, value in (context.default_map or {}).items():
            if isinstance(value, list) and not context.params[name]:  # typer 0.26 prefers an empty command line
                context.params[name] = options[name] = value
        text = as_yaml(values(context))
        if print_config:
            typer.echo(text, nl=False)
            return
        with repeatable(text):
            folder = command(**options)
            if folder is None:
                return
            try:
                keep_options(folder)
            except OSError as error:
                fail(str(error), 2)

    signature = inspect.signature(command)
    more = {"config": (None, ConfigFile), "print_config": (False, PrintConfig)}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        *(each.replace(kind=keyword) for each in signature.parameters.values()),
        *(inspect.Parameter(name, keyword, default=d, annotation=kind) for name, (d, kind) in more.items()),
    ]
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no YAML, holds no mapping, or gives a key twice.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML, so it cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold lines KEY: VALUE, got {content!r}.")
    twice = next(_repeated(node), None)
    if twice is not None:
        raise ValueError(f"{path} gives {twice!r} twice. Give each key once.")
    return content


def refuse_unknown(keys: Collection[Any], valid: Collection[str], where: str) -> None:
    """Raises ValueError for a key that is not valid, with the nearest valid one."""
    for key in keys:
        if key not in valid:
            nearest = get_close_matches(str(key), valid, 1, 0.0)
            hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
            raise ValueError(f"Unknown key {key!r} in {where}. {hint}Valid keys: {', '.join(valid)}.")


def values(context: Any) -> dict[str, Any]:
    """The values of a command's arguments and options that are set, by their keys in a file."""
    given = {key: _plain(context.params[name]) for key, name in _names(context).items()}
    return {key: value for key, value in given.items() if not (value is None or value is False or value == [])}


def as_yaml(content: Mapping[str, Any]) -> str:
    """A mapping as YAML.

    >>> as_yaml({"system": "vae", "option": ["latent=2"]})
    'system: vae\\noption:\\n- latent=2\\n'
    """
    import yaml

    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)


def _read(context: Any, path: Path | None) -> Path | None:
    """Makes the values in a file the defaults of the command."""
    if path is None or context.resilient_parsing:
        return path
    try:
        content, names = read_yaml(path), _names(context)
        refuse_unknown(content, names, str(path))
        text = {names[key]: _text(key, value, path) for key, value in content.items()}
    except (ValueError, OSError) as error:
        fail(str(error), 2)
    several = {each.name for each in context.command.params if each.nargs == -1 or getattr(each, "multiple", False)}
    context.default_map = {
        name: [value] if name in several and isinstance(value, str) else value
        for name, value in text.items()
        if value is not None
    }
    return path


ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_read,
        is_eager=True,
        help="A YAML file with values of these arguments and options; those on the command line win.",
    ),
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the YAML file that repeats this command, and do nothing else.")
]


def _names(context: Any) -> dict[str, str]:
    """The key in a file of each parameter of a command: its long option, or the argument as the usage names it."""
    names = {}
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in (*OWN, "help"):
            is_argument = parameter.param_type_name == "argument"
            shown = (parameter.metavar or name) if is_argument else max(parameter.opts, key=len).lstrip("-")
            names[shown.lower()] = name
    return names


def _text(key: str, value: Any, path: Path) -> str | list[str] | None:
    """A value as the command line has it, so that it is read and checked in the same way."""
    match value:
        case None | str():
            return value
        case bool():
            return str(value).lower()
        case int() | float():
            return str(value)
        case list() if all(isinstance(item, (str, int, float)) for item in value):
            return [str(item) for item in value]
    raise ValueError(f"{key} in {path} must be a value as on the command line, or a list of them, got {value!r}.")


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
    return str(value)


def _repeated(node: Any) -> Iterator[str]:
    """Keys that a mapping in a YAML document gives more than once."""
    if node.id == "mapping":
        counts = Counter(key.value for key, _ in node.value if key.id == "scalar")
        yield from (key for key, count in counts.items() if count > 1)
        for _, value in node.value:
            yield from _repeated(value)
    elif node.id == "sequence":
        for item in node.value:
            yield from _repeated(item)
