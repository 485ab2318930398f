"""What holds for all tests: gRPC is set up as the commands set it up (rexec/cli.py)."""

from __future__ import annotations

import os

# Before gRPC is imported: else what it does around a fork starts its threads anew from whichever thread forks, and a thread
# that has given up its rights hands its restrictions to them.
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
