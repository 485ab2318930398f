"""Opens the bucket that [store.objects] names. The library for it (obstore) is an extra, imported only here and in Bucket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cas.bucket import Bucket, BucketUnusable
from cas.extras import how_to_install
from cas.objects_config import ObjectSettings

KEY_SECONDS: Final = 60.0
"""How long the access key of a file is used before the file is read again."""
SPARE_SECONDS: Final = 60.0
"""A request may take so much longer than what is set aside for repeating it."""


@asynccontextmanager
async def open_bucket(settings: ObjectSettings) -> AsyncIterator[Bucket]:
    """The bucket, checked. Raises BucketUnusable."""
    try:
        from obstore.store import S3Store
    except ImportError as missing:
        raise BucketUnusable(
            f'a store of kind "objects" needs the library obstore: {how_to_install("objects")}'
        ) from missing
    options: dict[str, Any] = {"region": settings.region or os.environ.get("AWS_REGION") or "us-east-1"}
    if settings.endpoint:
        options["endpoint"] = settings.endpoint
    try:
        name, prefix = settings.place
        if settings.access_key_file:
            options["credential_provider"] = access_key_of(settings.access_key_file)
            options["credential_provider"]()
        objects = S3Store(
            name,
            client_options={
                "allow_http": settings.endpoint.startswith("http://"),
                "connect_timeout": timedelta(seconds=5),
                "read_timeout": timedelta(seconds=30),
                # Of a whole answer: a large blob may take an hour, each piece of it half a minute.
                "timeout": timedelta(hours=1),
            },
            retry_config={
                "max_retries": 100 if settings.retry_seconds else 0,
                "retry_timeout": timedelta(seconds=settings.retry_seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
            **options,
        )
    except (ValueError, OSError) as reason:
        raise BucketUnusable(f"[store.objects] cannot be used: {reason}") from reason
    bucket = Bucket(
        objects,
        f"s3://{name}",
        prefix,
        max_requests=settings.max_requests,
        request_seconds=settings.retry_seconds + SPARE_SECONDS,
    )
    async with bucket:
        await bucket.check()
        yield bucket


def access_key_of(file: str) -> Callable[[], dict[str, Any]]:
    """What reads the access key in a file of two lines, each time the library asks. That raises OSError and ValueError."""
    path = Path(file).expanduser()

    def read() -> dict[str, Any]:
        lines = path.read_text("ascii").split()
        if len(lines) != 2:
            raise ValueError(f"{path} has {len(lines)} words; expected the id of an access key and its secret")
        expires = datetime.now(UTC) + timedelta(seconds=KEY_SECONDS)
        return {"access_key_id": lines[0], "secret_access_key": lines[1], "token": None, "expires_at": expires}

    return read
