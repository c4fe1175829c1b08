"""An object store below one URL: bytes under keys, each object whole or absent.

s3:// and gs:// go through pyarrow, other schemes through fsspec where its package is installed. Credentials come from
the environment, the machine's role or its configuration files alone, never from the URL. Knows nothing of stages.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from engine.errors import StorageError, UserError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

BLOCK = 8 * 2**20  # bytes moved at a time
ATTEMPTS = 8  # of one request, with exponential backoff
REASONS = {  # what an S3 error means to its reader
    "NO_SUCH_BUCKET": "there is no such bucket; create it or name another",
    "NETWORK_CONNECTION": "it does not answer; check the network and AWS_ENDPOINT_URL",
    "INVALID_ACCESS_KEY_ID": "it does not know this access key; check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SIGNATURE_DOES_NOT_MATCH": "it refuses the secret key; check AWS_SECRET_ACCESS_KEY",
    "ACCESS_DENIED": "no credentials, or none that may do this; check AWS_ACCESS_KEY_ID, AWS_PROFILE or the "
    "machine's role",
}


def is_url(text: str) -> bool:
    """Whether `text` names an object store and no folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


class Remote:
    """Objects below `url`. Keys are relative, with / between their parts.

    Raises UserError for a URL that cannot be used, StorageError where the store fails or refuses.
    """

    def __init__(self, url: str) -> None:
        self.url = checked(url)
        self.filesystem, self.base = _filesystem(self.url)

    def check_writable(self) -> None:
        """UserError unless objects can be written and deleted here."""
        key = f".writable-{secrets.token_hex(4)}"
        try:
            self.put(key, b"")
            self.delete(key)
        except StorageError as error:
            raise UserError(str(error)) from error

    def path(self, key: str) -> str:
        """`key` as the file system names it."""
        return f"{self.base}/{key}" if key else self.base

    def get(self, key: str) -> bytes | None:
        """The object's bytes, None where there is none."""
        with self._explained("read"):
            try:
                with self.filesystem.open_input_stream(self.path(key), compression=None) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def put(self, key: str, data: bytes) -> None:
        """Write an object in one request; what stood there is replaced."""
        with (
            self._explained("write"),
            self.filesystem.open_output_stream(self.path(key), compression=None) as stream,
        ):
            stream.write(data)

    def upload(self, path: Path, key: str) -> None:
        """Write the file as an object, which appears when all of it is there."""
        with path.open("rb") as source:
            first = source.read(BLOCK)
            if len(first) < BLOCK:  # nothing is left to read that could fail and leave a cut object
                return self.put(key, first)
            with (
                self._explained("write"),
                self.filesystem.open_output_stream(self.path(key), compression=None) as stream,
            ):
                stream.write(first)
                shutil.copyfileobj(source, stream, BLOCK)
        return None

    def download(self, key: str, path: Path) -> None:
        """Write the object to `path` and to disk. FileNotFoundError where there is none."""
        with (
            self._explained("read"),
            self.filesystem.open_input_stream(self.path(key), compression=None) as stream,
            path.open("wb") as target,
        ):
            shutil.copyfileobj(stream, target, BLOCK)
            target.flush()
            os.fsync(target.fileno())

    def sizes(self, prefix: str) -> dict[str, int]:
        """The objects below `prefix/`: bytes by the rest of their keys."""
        from pyarrow import fs

        below = self.path(prefix)
        with self._explained("list"):
            found = self.filesystem.get_file_info(fs.FileSelector(below, recursive=True, allow_not_found=True))
        return {each.path.removeprefix(f"{below}/"): each.size for each in found if each.type == fs.FileType.File}

    def folders(self, prefix: str) -> list[str]:
        """The names of what stands right below `prefix/` and has objects below it."""
        from pyarrow import fs

        with self._explained("list"):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path(prefix), allow_not_found=True))
        return sorted(each.base_name for each in found if each.type == fs.FileType.Directory)

    def delete(self, key: str) -> None:
        """Delete one object, if it is there."""
        with self._explained("delete"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(key))

    def delete_below(self, prefix: str) -> None:
        """Delete every object below `prefix/`."""
        with self._explained("delete"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(prefix))

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """What the store answers as one line, without the request."""
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            if error.errno is not None:  # of the local disk
                raise
            raise StorageError(f"store {self.url}: cannot {doing}: {_reason(str(error))}") from error


def checked(url: str) -> str:
    """The URL without a slash at its end. UserError where it names no bucket, or holds credentials or options."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UserError(
            f"store {parts.scheme}://...: give the URL without user, password or options; credentials are read from "
            "the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE), the server's address from AWS_ENDPOINT_URL"
        )
    if not parts.netloc or ".." in parts.path.split("/"):
        raise UserError(f"store {url}: name a bucket and a prefix, such as s3://bucket/leakatk")
    return url.rstrip("/")


@functools.lru_cache
def remote(url: str) -> Remote:
    """The object store at `url`, opened once a process."""
    return Remote(url)


def _filesystem(url: str) -> tuple[FileSystem, str]:
    """(pyarrow's file system, bucket and prefix in it)."""
    from pyarrow import fs

    parts = urlsplit(url)
    base = (parts.netloc + parts.path).rstrip("/")
    if parts.scheme == "s3":
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if region is None and endpoint is None:
            with contextlib.suppress(OSError):  # no network, no such bucket: the first request will say so
                region = fs.resolve_s3_region(parts.netloc)
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
        return (
            fs.S3FileSystem(
                region=region,
                endpoint_override=endpoint,
                allow_delayed_open=True,  # a small object is one request
                request_timeout=60,
                connect_timeout=10,
                retry_strategy=retries,
            ),
            base,
        )
    if parts.scheme in ("gs", "gcs"):
        return fs.GcsFileSystem(), base
    return _by_fsspec(parts.scheme), base


def _by_fsspec(scheme: str) -> FileSystem:
    import fsspec
    from pyarrow import fs

    try:
        return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))
    except ImportError as error:
        missing = str(error).splitlines()[0]
        raise UserError(f"store {scheme}://...: fsspec needs another package for it: {missing}") from error
    except ValueError as error:
        raise UserError(f"store {scheme}://...: no such kind of store; give a folder or s3://BUCKET/PREFIX") from error


def _reason(text: str) -> str:
    found = re.search(r"AWS Error (\w+)", text)
    if found is None:
        return text.splitlines()[0][:200]
    if found[1] not in REASONS and "PermanentRedirect" in text:
        return "the bucket is in another region; set AWS_REGION"
    return REASONS.get(found[1], REASONS["ACCESS_DENIED"] if "403" in text else found[1])
