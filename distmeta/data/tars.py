"""Strict reading of tar files. Truncation and damage raise an error with the position. Names are labels, never paths to write to."""

import tarfile
from collections.abc import Iterator
from typing import IO, Literal, Self

from distmeta.errors import DataError

AGAIN = "copy or download the archive again; it must be a plain tar that `tar tf` lists without a complaint"


class _Header(tarfile.TarInfo):
    """A header that raises if it is missing, truncated or damaged. tarfile alone would treat this as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(tarfile.BLOCKSIZE):  # the zeros that end a complete tar
                raise
            raise tarfile.ReadError(str(error)) from error


def members(file: IO[bytes], mode: Literal["r:", "r|"], origin: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of a tar. Mode "r:" seeks over files that are not read; mode "r|" reads strictly forward. `origin` names the tar in errors.
    Raises DataError naming the last complete member if the tar is truncated or damaged.
    """
    last = "its start"
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content:
                    yield member, content
                last = member.name
    except (tarfile.TarError, ValueError, OverflowError) as error:  # ValueError: a header with an impossible size
        raise DataError(f"{origin} is not a whole, uncompressed tar; reading stopped after {last}: {error}", AGAIN) from error


def content_of(member: tarfile.TarInfo, content: IO[bytes], origin: str) -> bytes:
    """A member's bytes. Raises DataError if the tar ends within them."""
    try:
        return content.read()
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{origin} is cut inside {member.name}, which should have {member.size} bytes", AGAIN) from error
