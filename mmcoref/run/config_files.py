"""Config files as users write them, checked before the parser reads them: what it would skip, mistake or crash on."""

from __future__ import annotations

import codecs
import difflib
import errno
import locale
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from mmcoref.errors import UserError
from mmcoref.paths import user_path

_MOST_VALUES = 100_000  # aliases of aliases unfold into billions from ten lines
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL, _TEXT, _MERGE = (f"tag:yaml.org,2002:{name}" for name in ("null", "str", "merge"))
_TOO_DEEP = "it is nested too deeply"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # UTF-32's marks begin with the first of them
_ELSEWHERE = ("config", "$schema")  # another config, which the parser reads; what an editor reads


@dataclass(frozen=True)
class Names:
    """What can be set.

    Attributes:
        settings: dotted names, such as `model.lr`.
        sections: names that settings begin with, such as `model`.
    """

    settings: frozenset[str]
    sections: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether a name is a setting, or belongs to a class that a setting names, which the parser checks."""
        parts = name.removesuffix("+").split(".")
        return any(".".join(parts[:length]) in self.settings for length in range(1, len(parts) + 1))


def suggestion(name: str, names: Collection[str], prefix: str = "") -> str:
    """Suggest the name that is most like an unknown one, or that ends in the same word.

    Args:
        name: the unknown one.
        names: the known ones.
        prefix: what the user would write before the suggestion.

    Returns:
        `; did you mean …?`, or a period if none is like it.
    """
    last = name.rpartition(".")[2]
    same = sorted(one for one in names if one.rpartition(".")[2] == last)
    near = same or difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)
    return f"; did you mean {prefix}{near[0]}?" if near else "."


def check_config(value: str, names: Names, section: str | None = None) -> str:
    """Check what `--config`, or a section's option such as `--model`, is given: a file, or YAML itself.

    Args:
        value: as the user gave it.
        names: what can be set.
        section: the section that the settings belong to; None for a config of all sections.

    Returns:
        What the parser is to be given: the same, or the text of a file that the parser would read in the encoding of this
        machine's locale, which is another, or of a pipe, which can be read once only.

    Raises:
        UserError: what is wrong with it, and in which line.
    """
    if value == "-":  # standard input, which is the parser's to read
        return value
    source = _read(value, f"--{section or 'config'}")
    root = _compose(source)
    if not isinstance(root, MappingNode):
        if not source.is_file:
            raise UserError(f"{source.name}: no such file.{_near_file(value)}")
        got = "nothing" if root is None else "a list" if isinstance(root, SequenceNode) else "a single value"
        expected = "settings, one a line" if section else "sections such as `model:` or `data:`"
        raise UserError(f"{source.name}: expected {expected}, got {got}.")
    size = _size(source, root)
    if size > _MOST_VALUES:
        raise UserError(f"{source.name}: its aliases (*name) unfold into {size:,} values; at most {_MOST_VALUES:,} are read.")
    for key, node in _entries(source, root):
        name = _name(source, key)
        if section:
            _check_setting(source, f"{section}.{name}", key, names)
        elif name in names.sections:
            _check_section(source, name, key, node, names)
        elif name not in _ELSEWHERE:
            _check_setting(source, name, key, names)
    same_encoding = source.text.isascii() or codecs.lookup(locale.getencoding()).name == "utf-8"
    return value if source.again and same_encoding else source.text


def _check_section(source: _Source, name: str, key: Node, node: Node, names: Names) -> None:
    if isinstance(node, MappingNode):
        for inner, _ in _entries(source, node):
            _check_setting(source, f"{name}.{_name(source, inner)}", inner, names)
    elif not isinstance(node, ScalarNode) or node.tag == _NULL:  # another scalar is a file's name
        got = "nothing" if isinstance(node, ScalarNode) else "a list"
        raise UserError(f"{_line(source, key)}: {name}: expected settings, got {got}; leave the section out, or give it some.")


def _check_setting(source: _Source, name: str, key: Node, names: Names) -> None:
    if not names.has(name):
        known = names.settings if "." in name else names.settings | names.sections
        raise UserError(f"{_line(source, key)}: {name}: no such setting{suggestion(name, known)}")


# ---------------------------------------------------------------------- text


class _Source(NamedTuple):
    name: str  # as messages call it
    text: str
    is_file: bool
    again: bool = True  # whether it can be read again; a pipe cannot


def _read(value: str, option: str) -> _Source:
    first = value.strip().split("\n")[0]
    inline = _Source(f"{option} {first if len(first) <= 60 else first[:60] + '…'}", value, is_file=False)
    if not first:
        raise UserError(f"{option}: expected a file, got an empty text.")
    file = user_path(value)
    try:
        if file.is_dir():
            raise UserError(f"{option} {value}: expected a file, got a folder; name the file in it.")
        if file.is_file() or file.is_fifo():
            return _Source(value, _decode(value, file.read_bytes()), is_file=True, again=file.is_file())
        if file.exists():
            raise UserError(f"{option} {value}: expected a file, got a device.")
        return inline
    except ValueError:  # with a NUL: not a file's name
        return inline
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return inline
        raise UserError(f"{option} {value}: cannot be read: {error.strerror}.") from None


def _decode(name: str, raw: bytes) -> str:
    if raw.startswith(_UTF16):
        raise UserError(f"{name}: expected UTF-8, got UTF-16; save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        korean = " (the file can be read as CP949, as Korean Windows writes it)" if _is_cp949(raw) else ""
        raise UserError(f"{name}, line {line}: expected UTF-8, got byte 0x{raw[error.start]:02x}{korean}; save it as UTF-8.") from None


def _is_cp949(raw: bytes) -> bool:
    try:
        return re.search("[가-힣]", raw.decode("cp949")) is not None
    except UnicodeDecodeError:
        return False


def _near_file(value: str) -> str:
    file = user_path(value)
    try:
        names = [path.name for path in file.parent.iterdir() if path.is_file()]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.75)
    return f" Did you mean {file.with_name(near[0])}?" if near else ""


# ---------------------------------------------------------------------- YAML


def _compose(source: _Source) -> Node | None:
    try:
        root: Node | None = yaml.compose(source.text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        if not source.is_file and error.problem_mark is not None and "\n" not in source.text and ":" not in source.text:
            return None
        raise UserError(_broken(source, error)) from None
    except RecursionError:
        raise UserError(f"{source.name}: {_TOO_DEEP}.") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source.name}: not valid YAML: {' '.join(str(error).split())}.") from None
    return root


def _broken(source: _Source, error: yaml.MarkedYAMLError) -> str:
    mark, problem = error.problem_mark or error.context_mark, str(error.problem).removeprefix("but ")
    if mark is None:
        return f"{source.name}: not valid YAML: {problem}."
    where = f"{source.name}, line {mark.line + 1}"
    lines = source.text.split("\n")
    line = lines[mark.line] if mark.line < len(lines) else ""
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return f"{where}: it is indented with a tab, and YAML takes spaces only."
    return f"{where}: not valid YAML: {problem}."


def _size(source: _Source, root: Node) -> int:
    try:
        return _count(source, root, {}, frozenset())
    except RecursionError:
        raise UserError(f"{source.name}: {_TOO_DEEP}.") from None


def _count(source: _Source, node: Node, counted: dict[int, int], above: frozenset[int]) -> int:
    """Count the values of a node, each as often as it is used; every mapping's keys are checked on the way."""
    if id(node) in above:
        raise UserError(f"{_line(source, node)}: a value contains itself, by its alias.")
    if isinstance(node, ScalarNode):
        return 1
    if id(node) not in counted:
        children = [value for _, value in _entries(source, node)] if isinstance(node, MappingNode) else node.value
        counted[id(node)] = 1 + sum(_count(source, child, counted, above | {id(node)}) for child in children)
    return counted[id(node)]


def _entries(source: _Source, node: MappingNode) -> Iterator[tuple[Node, Node]]:
    """Give a mapping's entries, with those of the mappings that `<<` merges into it.

    Raises:
        UserError: a key is there twice, so that one of the values would be lost.
    """
    lines: dict[str, int] = {}
    for key, value in node.value:
        if key.tag == _MERGE:
            for merged in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(merged, MappingNode):
                    yield from _entries(source, merged)
            continue
        if isinstance(key, ScalarNode):
            if key.value in lines:
                raise UserError(f"{_line(source, key)}: {key.value} is given twice, first in line {lines[key.value]}; keep one.")
            lines[key.value] = key.start_mark.line + 1
        yield key, value


def _name(source: _Source, key: Node) -> str:
    if not isinstance(key, ScalarNode) or key.tag != _TEXT:
        raise UserError(f"{_line(source, key)}: expected the name of a setting, got {str(key.value)[:40]}.")
    return str(key.value)


def _line(source: _Source, node: Node) -> str:
    return f"{source.name}, line {node.start_mark.line + 1}"
