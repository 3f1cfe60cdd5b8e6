"""The pictures of a request: multipart/form-data, read under the limits and kept in memory, never on a disk."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from pipeline.serving.limits import Limits, ReceivedBytes, Refusal, too_large

FIELD = "pictures"
LONGEST_NAME = 255
HOW = f"send pictures as files of multipart/form-data in the field `{FIELD}`"


@dataclass(frozen=True)
class Upload:
    """A file as it was sent."""

    name: str
    """what its sender calls it: nothing is opened by it"""
    content: bytes


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # bytes until a file would go to a disk


async def read(request: Request, limits: Limits, body: ReceivedBytes) -> list[Upload]:
    """The files of a request.

    Raises:
        Refusal: it has another form, no file, too many, or too many bytes.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise Refusal(415, HOW)
    if int(request.headers.get("content-length", 0)) > limits.request_bytes:
        raise too_large(limits)
    parser = _InMemory(
        request.headers, _counted(request, body), max_files=limits.files, max_fields=0, max_part_size=0
    )
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise Refusal(400, "the connection ended before the request was complete") from None
    except MultiPartException as error:
        raise _refusal(error.message, limits) from None
    except UnicodeError:  # of a charset that is none
        raise Refusal(400, f"the field names of the form cannot be read; {HOW}") from None
    uploads = [
        Upload(_shown(file.filename or ""), await file.read())
        for field, file in form.multi_items()
        if isinstance(file, UploadFile) and field == FIELD
    ]
    others = len(form.multi_items()) - len(uploads)
    await form.close()
    if others or not uploads:
        raise Refusal(422, HOW)
    return uploads


def _shown(name: str) -> str:
    """A name as an answer repeats it: some charsets give lone surrogates, which JSON cannot hold."""
    return name[:LONGEST_NAME].encode("utf-8", "replace").decode("utf-8")


def _refusal(message: str, limits: Limits) -> Refusal:
    """What a parser's message becomes."""
    if message.startswith("Too many files"):
        return Refusal(422, f"a request may have {limits.files} files")
    if message.startswith("Too many fields"):
        return Refusal(422, HOW)
    return Refusal(400, f"the form is damaged; {HOW}")


async def _counted(request: Request, body: ReceivedBytes) -> AsyncGenerator[bytes, None]:
    """The body as it comes, counted before it is kept."""
    async for chunk in request.stream():
        body.add(len(chunk))
        yield chunk
