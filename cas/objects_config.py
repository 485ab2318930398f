"""[store.objects]: the object store that a store of kind "objects" keeps everything in. Data only."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_BUCKET: Final = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,62})((?:/[A-Za-z0-9._=-]+)*)/?", re.ASCII)


class ObjectSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """[store.objects]: where a store of kind "objects" keeps blobs and action results. Its directory and max_bytes are those of
    the cache on this machine's disk that is kept before it."""

    bucket: str = ""
    """s3://BUCKET or s3://BUCKET/PREFIX. Servers that are given the same one share everything in it; nothing else belongs
    below the prefix."""

    endpoint: str = ""
    """https://HOST:PORT, or http://, of a server that speaks the protocol of S3. Empty: Amazon's of the region."""

    region: str = ""
    """The bucket's region. Empty: as $AWS_REGION says, else us-east-1."""

    access_key_file: str = ""
    """File of two lines, the id of an access key and its secret, read again when it expires or changes. Empty: as the
    environment (AWS_ACCESS_KEY_ID, AWS_WEB_IDENTITY_TOKEN_FILE, ...) or the machine's own role says."""

    expires_days: float = 0.0
    """After how many days the bucket's lifecycle rule deletes objects below the prefix. What is used is written anew before
    half of it has passed. 0: there is no such rule, and the bucket grows for ever."""

    trusted_seconds: float = 3600.0
    """How long a blob counts as present once it was seen in the bucket. 0: the bucket is asked each time."""

    retry_seconds: float = 30.0
    """How long a request that fails, for want of a connection or on the other side, is tried again."""

    max_requests: int = 64
    """Requests under way at once."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, naming them."""
        if self.bucket and _BUCKET.fullmatch(self.bucket) is None:
            raise ValueError(f"bucket is {self.bucket!r}; expected s3://BUCKET or s3://BUCKET/PREFIX")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"endpoint is {self.endpoint!r}; expected https://HOST:PORT or http://HOST:PORT")
        if self.expires_days != 0 and not 1 <= self.expires_days <= 36500:
            raise ValueError(f"expires_days is {self.expires_days}; expected 0 or 1 to 36500")
        # Whoever is told of a blob gets at least the second half of its time to use it.
        if not 0 <= self.trusted_seconds <= 86400:
            raise ValueError(f"trusted_seconds is {self.trusted_seconds}; expected 0 to 86400")
        if not 0 <= self.retry_seconds <= 240:
            raise ValueError(f"retry_seconds is {self.retry_seconds}; expected 0 to 240")
        if not 1 <= self.max_requests <= 1024:
            raise ValueError(f"max_requests is {self.max_requests}; expected 1 to 1024")

    @property
    def place(self) -> tuple[str, str]:
        """The bucket's name and the prefix in it, which ends in a slash unless it is empty."""
        found = _BUCKET.fullmatch(self.bucket)
        if found is None:
            raise ValueError("bucket is not set; expected s3://BUCKET or s3://BUCKET/PREFIX")
        return found[1], f"{found[2][1:]}/" if found[2] else ""
