"""The one reader of YAML that people write: configurations, values of a command line, sweeps, cluster profiles.

OmegaConf parses and gives the types: 1e-4, 64. and 1_000 are numbers, yes and off truth values. Refused in one line,
with its line: tags, `${...}`, keys that are given twice or are no words, and what different versions of YAML
read differently (010, 0o10, 5_3, 1:30, a date): quoted it is text, and a number can be written plainly.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from iqrl.errors import InputError

_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map")}
_PLAIN_NUMBER = re.compile(
    r"[-+]?(0|[1-9]\d*|[1-9]\d{0,2}(_\d{3})+)(\.\d*)?([eE][-+]?\d+)?|\.\d+([eE][-+]\d+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_LIKE_A_NUMBER = re.compile(  # to some version of YAML
    r"[-+]?(0[oO][\d_]+|0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*(:\d+)+(\.\d*)?|(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?)"
    r"|\d{4}-\d\d?-\d\d?([Tt\s].*)?"
)


def load(path: Path, where: str, as_written: Collection[str] = ()) -> dict[str, Any]:
    """The mapping that a file holds.

    Args:
        where: the file, as messages name it.
        as_written: keys whose values are text, or lists of text, whatever they look like (0042, yes, ${HOME}).
    Raises:
        InputError: if the file cannot be read, or is no mapping of plain data.
    """
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {' '.join(str(error).split())}") from error
    content = parse(text, where, as_written)
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected a mapping of keys to values")
    return content


def parse(text: str, where: str, as_written: Collection[str] = ()) -> Any:
    """The value of a text; arguments and errors as of `load`."""
    try:
        node = yaml.compose(text, yaml.SafeLoader)  # not the one in C, which a deep nesting crashes
        if node is None:
            return None
        written = _take_out(node, as_written) if isinstance(node, yaml.MappingNode) else {}
        _check(node, set())
        # A list of its own: OmegaConf takes no scalar alone.
        rest = OmegaConf.create(yaml.serialize(yaml.SequenceNode(f"{_TAG}seq", [node])))
        content: Any = OmegaConf.to_container(rest)[0]  # type: ignore[index]
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except Exception as error:  # omegaconf raises yaml's errors and several of its own
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark and "\n" in text.strip() else ""
        said = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise InputError(f"{where}: {line}{' '.join(str(said).split())}") from error
    return {**content, **written} if written else content


def _take_out(node: yaml.MappingNode, keys: Collection[str]) -> dict[str, Any]:
    """The values of `keys` as they are written; in the mapping, null takes their place."""
    written = {key.value: _written(value) for key, value in node.value if str(key.value) in keys}
    written = {key: text for key, text in written.items() if text is not None}
    null = yaml.ScalarNode(f"{_TAG}null", "null")
    node.value = [(key, null if str(key.value) in written else value) for key, value in node.value]
    return written


def _written(node: yaml.Node) -> str | list[str] | None:
    """A node's text or list of texts; None if it is anything else."""
    if isinstance(node, yaml.ScalarNode):
        return "" if node.tag == f"{_TAG}null" else str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(n.tag == f"{_TAG}str" for n in node.value):
        return [n.value for n in node.value]
    return None


def _check(node: yaml.Node, checked: set[int]) -> None:
    """Raises MarkedYAMLError unless a node and all below it are plain data."""
    if id(node) in checked:  # by an alias
        return
    checked.add(id(node))

    def refuse(problem: str, place: yaml.Node = node) -> None:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)

    if isinstance(node, yaml.ScalarNode):
        if "${" in node.value:
            refuse(f"{node.value}: interpolation is not supported; expected a plain value")
        unquoted = node.style not in ("'", '"', "|", ">")
        if unquoted and _LIKE_A_NUMBER.fullmatch(node.value) and not _PLAIN_NUMBER.fullmatch(node.value):
            refuse(f"{node.value}: may be read as different numbers; quote it if it is text, or write a plain number")
    if node.tag not in _PLAIN_TAGS:
        refuse(f"{node.tag.replace(_TAG, '!!')}: expected plain text, numbers, lists and mappings, without tags")
    for value in node.value if isinstance(node, yaml.SequenceNode) else ():
        _check(value, checked)
    keys = set[str]()
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        problem = "expected a word; quote it" if key.tag != f"{_TAG}str" else "given twice" if key.value in keys else ""
        if problem:
            refuse(f"key {key.value}: {problem}", key)
        keys.add(key.value)
        _check(key, checked)
        _check(value, checked)
