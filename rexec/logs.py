"""Logging: short events with values beside them, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

from rexec.config import ServerSettings


def configure(settings: ServerSettings) -> None:
    """Log as the settings say; once, at the start of a process."""
    human = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor
    renderer = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if human else structlog.processors.JSONRenderer()
    )
    tracebacks: list[structlog.typing.Processor] = [] if human else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # gRPC logs through the standard library; what matters of it is an answer to a call already.
    logging.getLogger("grpc").setLevel(logging.ERROR)
