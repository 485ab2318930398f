"""GetCapabilities (behaviours 51 and 53)."""

from __future__ import annotations

import pytest

from cas.context import Identity, RequestContext
from cas.errors import MalformedRequest
from cas.services.capabilities import Capabilities, Execution
from cas.services.cas import MAX_BATCH_TOTAL_SIZE_BYTES
from protos.build.bazel.remote.execution.v2 import remote_execution_pb2 as re_pb2

from .cache import Cache


def executing(_context: RequestContext) -> re_pb2.ExecutionCapabilities:
    return re_pb2.ExecutionCapabilities(exec_enabled=True, supported_node_properties=["mtime"])


async def ask(
    cache: Cache,
    execution: Execution | None = None,
    identity: Identity | None = None,
    instance_name: str = "main",
    max_blob_bytes: int = 0,
) -> re_pb2.ServerCapabilities:
    service = Capabilities(cache.instances, execution, max_blob_bytes)
    request = re_pb2.GetCapabilitiesRequest(instance_name=instance_name)
    return await service.GetCapabilities(request, RequestContext(identity=identity or Identity()))


async def test_53_versions_from_2_0_on_are_spoken(cache: Cache) -> None:
    answer = await ask(cache)
    assert (answer.low_api_version.major, answer.low_api_version.minor, answer.low_api_version.patch) == (2, 0, 0)
    assert (answer.high_api_version.major, answer.high_api_version.minor) == (2, 12)
    assert not answer.HasField("deprecated_api_version")


async def test_53_a_server_without_execution_is_a_cache(cache: Cache) -> None:
    answer = await ask(cache)
    assert not answer.HasField("execution_capabilities")
    part = answer.cache_capabilities
    assert part.digest_functions[0] == re_pb2.DigestFunction.SHA256
    assert re_pb2.DigestFunction.BLAKE3 in part.digest_functions
    assert re_pb2.DigestFunction.MURMUR3 not in part.digest_functions
    assert re_pb2.DigestFunction.MD5 not in part.digest_functions  # understood, but nothing to start with
    assert part.max_batch_total_size_bytes == MAX_BATCH_TOTAL_SIZE_BYTES
    assert part.symlink_absolute_path_strategy == re_pb2.SymlinkAbsolutePathStrategy.ALLOWED
    assert set(part.supported_compressors) == {1, 2, 3}
    assert set(part.supported_batch_update_compressors) == {1, 2, 3}


async def test_54_blobs_are_split_and_spliced_with_the_parameters_that_are_recommended(cache: Cache) -> None:
    part = (await ask(cache)).cache_capabilities
    assert (part.split_blob_support, part.splice_blob_support) == (True, True)
    assert part.fast_cdc_2020_params == re_pb2.FastCdc2020Params(avg_chunk_size_bytes=512 << 10, seed=0)
    assert part.rep_max_cdc_params == re_pb2.RepMaxCdcParams(
        min_chunk_size_bytes=256 << 10, horizon_size_bytes=2048 << 10
    )


async def test_53_both_parts_come_together(cache: Cache) -> None:
    answer = await ask(cache, executing)
    part = answer.execution_capabilities
    assert part.exec_enabled
    assert part.digest_function == re_pb2.DigestFunction.SHA256
    assert list(part.digest_functions) == list(answer.cache_capabilities.digest_functions)
    assert list(part.supported_node_properties) == ["mtime"]


@pytest.mark.parametrize("priority", [-(2**31), -100, 0, 1, 2**31 - 1])
async def test_any_priority_is_within_an_advertised_range(cache: Cache, priority: int) -> None:
    """Bazel refuses to send one that is not."""
    answer = await ask(cache, executing)
    for part in (
        answer.cache_capabilities.cache_priority_capabilities,
        answer.execution_capabilities.execution_priority_capabilities,
    ):
        assert any(known.min_priority <= priority <= known.max_priority for known in part.priorities)


async def test_the_ranges_of_the_executing_part_are_its_own(cache: Cache) -> None:
    narrow = re_pb2.PriorityCapabilities.PriorityRange(min_priority=-5, max_priority=5)

    def execution(_context: RequestContext) -> re_pb2.ExecutionCapabilities:
        priorities = re_pb2.PriorityCapabilities(priorities=[narrow])
        return re_pb2.ExecutionCapabilities(exec_enabled=True, execution_priority_capabilities=priorities)

    answer = await ask(cache, execution)
    assert list(answer.execution_capabilities.execution_priority_capabilities.priorities) == [narrow]


@pytest.mark.parametrize("allowed", [True, False])
async def test_51_updates_are_enabled_for_those_who_may(cache: Cache, allowed: bool) -> None:
    answer = await ask(cache, identity=Identity(may_update_action_cache=allowed))
    assert answer.cache_capabilities.action_cache_update_capabilities.update_enabled is allowed


async def test_execution_is_not_enabled_for_those_who_may_not(cache: Cache) -> None:
    answer = await ask(cache, executing, Identity(may_execute=False))
    assert answer.HasField("execution_capabilities")
    assert not answer.execution_capabilities.exec_enabled


async def test_the_largest_blob_is_told(cache: Cache) -> None:
    assert (await ask(cache, max_blob_bytes=5 << 30)).cache_capabilities.max_cas_blob_size_bytes == 5 << 30


async def test_an_unknown_instance_is_refused(cache: Cache) -> None:
    with pytest.raises(MalformedRequest, match="'nobody'"):
        await ask(cache, instance_name="nobody")


async def test_the_shared_messages_do_not_leak_from_one_answer_into_the_next(cache: Cache) -> None:
    answer = await ask(cache)
    answer.low_api_version.major = 9
    answer.cache_capabilities.cache_priority_capabilities.priorities[0].min_priority = 7
    assert (await ask(cache)).low_api_version.major == 2
    assert (await ask(cache)).cache_capabilities.cache_priority_capabilities.priorities[0].min_priority == -(2**31)
