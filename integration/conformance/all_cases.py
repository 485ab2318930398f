"""Imports every module with cases, which registers them."""

from integration.conformance.case import CASES
from integration.conformance.cases import (
    action_cache,
    bytestream_read,
    bytestream_write,
    caching,
    capabilities,
    cas,
    chunking,
    keepalive_pings,
    layout,
    limits,
    missing_inputs,
    operations,
    outputs,
    platform,
    processes,
    resource_names,
    streams,
)

MODULES = (
    missing_inputs, streams, keepalive_pings, operations, limits, caching, platform, processes, layout, outputs, cas,
    resource_names, bytestream_write, bytestream_read, action_cache, capabilities, chunking,
)  # fmt: skip
"""In the order of the behaviours."""

__all__ = ["CASES", "MODULES"]
