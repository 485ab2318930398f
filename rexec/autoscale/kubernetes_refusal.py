"""What a refusal of the API server means for whoever wanted a pod."""

from __future__ import annotations

from typing import Final

from rexec.autoscale.kubernetes_api import ApiRefusal, Unreachable
from rexec.autoscale.provider import Refused

QUOTA_SECONDS: Final = 30.0
"""Before a pod is tried again that a quota did not let in: somebody else's pods have to end first."""

CONFLICT_SECONDS: Final = 1.0
THROTTLED_SECONDS: Final = 5.0
"""If the server does not say when to come back."""


def refused(error: ApiRefusal | Unreachable, doing: str) -> Refused:
    """The refusal of `doing`, such as "start a pod in namespace ci"."""
    if isinstance(error, Unreachable):
        return Refused(f"cannot {doing}: {error}")
    after = error.retry_after_seconds
    match error.code:
        case 401:
            return Refused(f"cannot {doing}: the API server does not accept the credentials ({error})", lasting=True)
        case 403 if "exceeded quota" in str(error):
            # There is no code of its own for it (k8s.io/apiserver, admission plugin ResourceQuota).
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after or QUOTA_SECONDS)
        case 409:
            # With AlreadyExists nobody comes here; else two have changed the same (a quota's count) at once.
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after or CONFLICT_SECONDS)
        case 429:
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after or THROTTLED_SECONDS)
        case 408:
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after)
        case code if code >= 500:
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after)
        case _:
            # 403: a right is missing, or a policy of the namespace; 400, 413, 422: the template; 404: the namespace.
            return Refused(f"cannot {doing}: {error}", retry_after_seconds=after, lasting=True)
