"""YAML as configs use it: mappings, lists, strings, numbers, true, false and null, and nothing else.

As in YAML 1.2 and JSON, 1e-3 is a number; unlike in YAML, a repeated key is an error. Dates stay strings.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from jhsae.errors import UserError
from jhsae.files.bounded import check_yaml, read_yaml

FLOAT = re.compile(
    r"""^(?:[-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
    |[-+]?[0-9]+(?:_[0-9]+)*[eE][-+]?[0-9]+
    |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
    |[-+]?\.(?:inf|Inf|INF)
    |\.(?:nan|NaN|NAN))$""",
    re.X,
)
PLAIN = ("map", "seq", "str", "int", "float", "bool", "null")
TAG = "tag:yaml.org,2002:"


def parse(text: str, where: str | Path) -> Any:
    """The value of a YAML text.

    Raises:
        UserError: Invalid YAML, a text that is too large or nested too deeply, a value of another type, a repeated key.
    """
    check_yaml(text, where)
    try:
        return yaml.load(text, Loader=_Loader)
    except LookupError as error:  # of !!bool x, say
        raise UserError(f"{where}: not valid YAML: a value does not fit the type that its tag names") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).replace('"<unicode string>", ', "").split()).partition("; use sys.")[0]
        raise UserError(f"{where}: not valid YAML: {reason[:300]}") from error


def read(path: Path) -> Any:
    """The value in a YAML file."""
    return parse(read_yaml(path), path)


def text(value: Any) -> str:
    """Plain data as YAML; `parse` is its inverse."""
    return yaml.dump(value, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if key.tag == f"{TAG}str" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if not isinstance(value, str):
            return value
        return value.encode("utf-16", "surrogatepass").decode(
            "utf-16"
        )  # JSON escapes other characters as surrogate pairs


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag in {f"{TAG}{name}" for name in PLAIN}
} | {None: yaml.SafeLoader.yaml_constructors[None]}
for _kind in (_Loader, _Dumper):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in (f"{TAG}timestamp", f"{TAG}float")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    _kind.add_implicit_resolver(f"{TAG}float", FLOAT, list("-+0123456789."))
