"""What the three protocols share on the wire: frames led by their length, fixed fields, texts. No I/O.

Every length that comes in is checked before anything is cut or kept: a frame that lies about itself is a WireError, and
never a wait for bytes that will not come or room for bytes that are not there.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

LARGEST_FRAME = 4096
"""No message of these protocols comes near it: one number, 140 bytes of text, a few tags."""
BEIJING = timezone(timedelta(hours=8))

ASCII, BINARY, UCS2, GBK = 0, 4, 8, 15
"""Message coding, the same in all three."""


class WireError(ValueError):
    """Bytes that are no message of the protocol, or a field that does not fit; says which, never its value."""


class Frames:
    """Cut a stream into frames, each led by its own total length as a big-endian uint32.

    header   bytes of the shortest frame
    """

    def __init__(self, header: int, largest: int = LARGEST_FRAME) -> None:
        self._header = header
        self._largest = largest
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are whole by now. After a WireError the stream cannot be read any more."""
        data = self._rest + data if self._rest else data
        frames, begin, end = [], 0, len(data)
        while end - begin >= 4:
            length = int.from_bytes(data[begin : begin + 4], "big")
            if not self._header <= length <= self._largest:
                self._rest = b""
                raise WireError(f"a frame of {length} bytes, expected {self._header} to {self._largest}")
            if end - begin < length:
                break
            frames.append(data[begin : begin + length])
            begin += length
        self._rest = data[begin:]
        return frames

    @property
    def waiting(self) -> int:
        """How many bytes of an unfinished frame are kept."""
        return len(self._rest)


def fixed(text: str, size: int, field: str) -> bytes:
    """Encode a text field: ASCII, filled with zero bytes."""
    try:
        encoded = text.encode("ascii")
    except UnicodeEncodeError:
        raise WireError(f"{field} must be ASCII") from None
    if len(encoded) > size or b"\0" in encoded:
        raise WireError(f"{field} must be at most {size} characters without zero bytes")
    return encoded.ljust(size, b"\0")


def unfixed(field: bytes) -> str:
    """Decode a text field up to its first zero byte; peers put anything into the reserved ones."""
    return field.split(b"\0", 1)[0].decode("latin-1")


def number_within(value: int, most: int, field: str) -> int:
    if not 0 <= value <= most:
        raise WireError(f"{field} must be from 0 to {most}")
    return value


def expect_length(frame: bytes, length: int, name: str) -> None:
    """Refuse a frame that is shorter than its fields; some peers append to messages, which is let pass."""
    if len(frame) < length:
        raise WireError(f"{name} of {len(frame)} bytes, expected {length}")


def month_stamp(at_ms: int) -> int:
    """Return MMDDHHMMSS in Beijing time as a number, as logins and sequences want it."""
    return int(datetime.fromtimestamp(at_ms / 1000, BEIJING).strftime("%m%d%H%M%S"))


def validity(at_ms: int) -> str:
    """Return an absolute instant as the 16 characters of SMPP: yymmddhhmmss, 0, 32 quarters ahead of UTC, +."""
    return datetime.fromtimestamp(at_ms / 1000, BEIJING).strftime("%y%m%d%H%M%S") + "032+"


def instant_ms(text: str, form: str, default_ms: int) -> int:
    """Read a Beijing time such as YYMMDDHHMM; what cannot be read is `default_ms`."""
    try:
        return int(datetime.strptime(text, form).replace(tzinfo=BEIJING).astimezone(UTC).timestamp() * 1000)
    except ValueError:
        return default_ms
