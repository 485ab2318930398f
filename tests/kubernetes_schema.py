"""Objects held against the models of the Kubernetes API that the Python client was generated with.

Stricter than an API server, which drops fields that it does not know: here they are errors, as are values of another type and
fields that have to be there and are not.
"""

from __future__ import annotations

import re
from typing import Any

from kubernetes import client

_NOT_OF_THE_API = {"ScaledObject", "ServiceMonitor"}
"""Kinds of custom resources, for which the client has no models."""


def problems(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with an object, each with its place."""
    kind, version = manifest.get("kind", ""), manifest.get("apiVersion", "")
    if kind in _NOT_OF_THE_API:
        return []
    name = version.rpartition("/")[2].capitalize() + kind
    if not hasattr(client, name):
        return [f"{version} {kind} is not known"]
    return list(_of_model(manifest, name, kind))


def _of_model(value: Any, name: str, place: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{place} is {value!r}, expected an object"]
    model = getattr(client, name)
    attributes = {key: attribute for attribute, key in model.attribute_map.items()}
    found = []
    for key, item in value.items():
        if key not in attributes:
            found.append(f"{place}.{key} is not a field of {name}")
        else:
            found += _of(item, model.openapi_types[attributes[key]], f"{place}.{key}")
    for attribute, field in model.model_fields.items():
        key = model.attribute_map.get(attribute, attribute)
        if field.is_required() and key not in value:
            found.append(f"{place}.{key} is missing")
    return found


def _of(value: Any, kind: str, place: str) -> list[str]:
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{place} is {value!r}, expected a list"]
        return [one for number, item in enumerate(value) for one in _of(item, match[1], f"{place}[{number}]")]
    if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return [f"{place} is {value!r}, expected a mapping of texts"]
        return [one for key, item in value.items() for one in _of(item, match[1], f"{place}.{key}")]
    if hasattr(client, kind):
        return _of_model(value, kind, place)
    types: dict[str, tuple[type, ...]] = {
        "str": (str,),
        "int": (int,),
        "float": (int, float),
        "bool": (bool,),
        "datetime": (str,),
        "object": (str, int),  # IntOrString
        "bytearray": (str,),
        "bytes": (str,),
    }
    expected = types.get(kind)
    if expected is None:
        return [f"{place} has the type {kind}, which is not known here"]
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        return [f"{place} is {value!r}, expected {kind}"]
    return []
