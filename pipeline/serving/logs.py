"""A line of JSON an event, to standard error: what was asked and how it was answered, and no picture, name or token."""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("plumage.serving")


class JsonLines(logging.Formatter):
    """A record as a line of JSON; an exception's traceback is a field of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage().strip(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def start() -> None:
    """Write the lines of the server, and the warnings of the library that speaks HTTP, from here on."""
    handler = logging.StreamHandler(sys.__stderr__)  # a thread may write while a program exchanges sys.stderr
    handler.setFormatter(JsonLines())
    for name, level in ((logger.name, logging.INFO), ("uvicorn.error", logging.WARNING)):
        one = logging.getLogger(name)
        one.handlers, one.propagate = [handler], False
        one.setLevel(level)


def event(name: str, **fields: Any) -> None:
    """Write a line."""
    logger.info(name, extra={"fields": fields})
