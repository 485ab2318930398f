"""The user's file with a PodTemplateSpec, read and checked as far as our part of the pod goes on top of it.

What else stands in it the API server judges when the first pod is made, and its words are shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

MAX_BYTES: Final = 1 << 20

_KINDS: Final = ("PodTemplate", "PodTemplateSpec", "Pod", None)


class TemplateUnusable(Exception):
    """The file cannot be used; the text names it, the field and what was expected."""


def read_template(path: Path) -> dict[str, Any]:
    """The `metadata` and `spec` of the file. Raises TemplateUnusable."""
    # Comes with the extra 'kubernetes', without which no template is read.
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise TemplateUnusable(f"{path} is larger than {MAX_BYTES} bytes")
        found = yaml.safe_load(text)
    except OSError as error:
        raise TemplateUnusable(f"cannot read the pod template {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise TemplateUnusable(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return checked(found, str(path))


def checked(found: Any, source: str) -> dict[str, Any]:
    """The same of what was parsed; `source` is named in what is raised."""
    top = _table(found, source, "the file")
    if top.get("kind") not in _KINDS:
        raise TemplateUnusable(f"{source}: kind is {top['kind']!r}, expected a PodTemplateSpec: metadata and spec")
    if top.get("kind") == "PodTemplate":
        top = _table(top.get("template"), source, "template")
    unknown = sorted(map(str, set(top) - {"apiVersion", "kind", "metadata", "spec"}))
    if unknown:
        raise TemplateUnusable(f"{source}: has {unknown[0]!r}, expected metadata and spec only")
    metadata = _table(top.get("metadata") or {}, source, "metadata")
    for name in ("labels", "annotations"):
        for key, value in _table(metadata.get(name) or {}, source, f"metadata.{name}").items():
            if not isinstance(key, str) or not isinstance(value, str):
                raise TemplateUnusable(f"{source}: metadata.{name}.{key} is {value!r}, expected a text (in quotes)")
    spec = _table(top.get("spec") or {}, source, "spec")
    if spec.get("restartPolicy", "Never") != "Never":
        raise TemplateUnusable(
            f"{source}: spec.restartPolicy is {spec['restartPolicy']!r}, expected Never or nothing: "
            "the autoscaler replaces what ends"
        )
    for name in ("containers", "initContainers", "volumes"):
        for number, item in enumerate(_list(spec.get(name) or [], source, f"spec.{name}")):
            where = f"spec.{name}[{number}]"
            if not isinstance(_table(item, source, where).get("name"), str):
                raise TemplateUnusable(f"{source}: {where} has no name")
            for part in ("env", "volumeMounts", "ports"):
                for place, entry in enumerate(_list(item.get(part) or [], source, f"{where}.{part}")):
                    _table(entry, source, f"{where}.{part}[{place}]")
            for part in ("command", "args"):
                for word in _list(item.get(part) or [], source, f"{where}.{part}"):
                    if not isinstance(word, str):
                        raise TemplateUnusable(f"{source}: {where}.{part} has {word!r}, expected texts (in quotes)")
            resources = _table(item.get("resources") or {}, source, f"{where}.resources")
            for part in ("requests", "limits"):
                _table(resources.get(part) or {}, source, f"{where}.resources.{part}")
    return {"metadata": metadata, "spec": spec}


def _table(value: Any, source: str, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise TemplateUnusable(f"{source}: {where} is {_short(value)}, expected a mapping")
    return value


def _list(value: Any, source: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise TemplateUnusable(f"{source}: {where} is {_short(value)}, expected a list")
    return value


def _short(value: Any) -> str:
    return repr(value)[:80]
