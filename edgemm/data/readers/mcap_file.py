"""MCAP files through the `mcap` package: CDR messages of ROS 2, JSON and Protobuf."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgemm._optional import require
from edgemm.data.readers.recording import Topic
from edgemm.errors import DataError

_WHY = "read MCAP recordings"


class McapFile:
    """One MCAP file. Messages are found by its chunk index; a file without one is read through each time."""

    def __init__(self, path: Path) -> None:
        """Reads the summary.

        Raises:
            DataError: No MCAP file, or a damaged one.
            MissingExtraError: The `robotics` extra is not installed.
        """
        reader = require("mcap.reader", extra="robotics", why=_WHY)
        self._errors = (require("mcap.exceptions", extra="robotics", why=_WHY).McapError, ValueError, OSError)
        self._path = path
        self._decoders: dict[int, Callable[[bytes], Any]] = {}
        try:
            file = path.open("rb")
            weakref.finalize(self, file.close)
            self._reader = reader.make_reader(file)
            summary = self._reader.get_summary()
            schemas: dict[int, Any] = {}
            channels: dict[int, Any] = {}
            counts: dict[int, int] = {}
            if summary is not None and summary.channels:
                schemas, channels = summary.schemas, summary.channels
                counts = summary.statistics.channel_message_counts if summary.statistics else {}
            else:
                for schema, channel, _ in self._reader.iter_messages(log_time_order=False):
                    channels[channel.id] = channel
                    counts[channel.id] = counts.get(channel.id, 0) + 1
                    if schema is not None:
                        schemas[schema.id] = schema
        except self._errors as error:
            raise self._damaged(error) from error
        self.topics: dict[str, Topic] = {}
        for key, channel in sorted(channels.items(), key=lambda item: str(item[1].topic)):
            schema = schemas.get(channel.schema_id)
            known = self.topics.get(channel.topic)
            self.topics[channel.topic] = Topic(
                schema.name if schema else channel.message_encoding,
                _begins_with_header(channel.message_encoding, schema) and (known is None or known.has_header),
                counts.get(key, 0) + (known.count if known else 0),
            )

    def _damaged(self, error: Exception) -> DataError:
        what = str(error) or type(error).__name__
        return DataError(
            f"{self._path}: the recording cannot be read: {what}.", hint="try `mcap recover`, or record it again"
        )

    def messages(self, topics: set[str], start: int, stop: int) -> Iterator[tuple[str, int, Any]]:
        """Yields topic, time of recording and the undecoded message.

        Raises:
            DataError: The file is damaged.
        """
        found = self._reader.iter_messages(sorted(topics), starting_at=start, ending_before=stop)
        while True:
            try:
                schema, channel, message = next(found)
            except StopIteration:
                return
            except self._errors as error:
                raise self._damaged(error) from error
            yield channel.topic, message.log_time, (schema, channel, message.data)

    def raw(self, packed: Any) -> bytes:
        """Returns the bytes of an undecoded message."""
        data: bytes = packed[2]
        return data

    def decode(self, packed: Any) -> Any:
        """Returns the message.

        Raises:
            DataError: Its encoding is not read, or it is damaged.
        """
        schema, channel, data = packed
        if channel.id not in self._decoders:
            self._decoders[channel.id] = self._decoder(schema, channel)
        try:
            return self._decoders[channel.id](data)
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"{self._path}: a message of topic '{channel.topic}' cannot be decoded: {error}.",
                hint="its definition in the file may be of another version",
            ) from error

    def _decoder(self, schema: Any, channel: Any) -> Callable[[bytes], Any]:
        encoding = channel.message_encoding
        if encoding == "json":
            return json.loads
        packages = {"cdr": "mcap_ros2.decoder", "protobuf": "mcap_protobuf.decoder"}
        if encoding in packages:
            module = require(packages[encoding], extra="robotics", why=f"decode {encoding} messages")
            decoder: Callable[[bytes], Any] | None = module.DecoderFactory().decoder_for(encoding, schema)
            if decoder is not None:
                return decoder
        named = f" with a schema in {schema.encoding}" if schema is not None else ""
        raise DataError(
            f"{self._path}: messages of topic '{channel.topic}' are in '{encoding}'{named}, which is not read.",
            hint="known are cdr (ROS 2, ros2msg), json and protobuf; convert the recording",
        )


def _begins_with_header(encoding: str, schema: Any) -> bool:
    if encoding != "cdr" or schema is None or schema.encoding != "ros2msg":
        return False
    return begins_with_header(schema.data.decode("utf-8", "replace"))


def begins_with_header(definition: str) -> bool:
    """Returns whether the first field of a ROS message definition is a std_msgs/Header."""
    for line in definition.splitlines():
        words = line.partition("#")[0].split()
        if words:
            return words[0] in ("std_msgs/Header", "std_msgs/msg/Header", "Header")
    return False
