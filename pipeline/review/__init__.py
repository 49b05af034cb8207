"""A page to look through a job's labels, and to say what one thinks of them."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from types import FrameType

import uvicorn

from prelabel.pipeline.dataset import LabelDataset
from prelabel.pipeline.review.app import Review, app_of
from prelabel.pipeline.review.beside import OtherJob, TruthBeside
from prelabel.pipeline.review.database import Database
from prelabel.pipeline.review.images import Pictures
from prelabel.pipeline.review.index import Index
from prelabel.pipeline.review.units import Units
from prelabel.pipeline.review.verdicts import Verdicts
from prelabel.schemas.errors import PrelabelError, UserError

__all__ = ["Place", "open_review", "serve"]

FIRST_PORT = 8000
PORTS = 100
"""As many are tried where none is asked for."""
SECONDS_BETWEEN_LOOKS = 5.0


@dataclass(frozen=True)
class Place:
    """Where to serve.

    Attributes:
        host: a name or address of this machine
        port: None: the first from 8000 on that is free
    """

    host: str = "127.0.0.1"
    port: int | None = None


def open_review(dataset: LabelDataset, reviewer: str, truth: str | None = None, other: str | None = None) -> Review:
    """All that the page asks for.

    Args:
        dataset: whose committed units are shown
        reviewer: whose verdicts are written
        truth: URL of a COCO instances document
        other: URL of another job over the same images

    Raises:
        PrelabelError: something can't be read, or makes no sense.
    """
    units = Units(dataset)
    beside = TruthBeside(truth, dataset) if truth else None
    compared = OtherJob(other) if other else None
    database = Database(dataset)
    verdicts = Verdicts(dataset, units, database)
    index, pictures = Index(units, verdicts, database), Pictures(dataset, units)
    return Review(dataset, units, index, verdicts, pictures, database.stop, reviewer, beside, compared)


def serve(review: Review, place: Place, ready: Callable[[str], object]) -> None:
    """Answers until Ctrl-C; `ready` is told the URL when it is listening.

    Raises:
        UserError: the port is taken, or the host is not this machine.
    """
    listening = _listen(place)
    address = ip_address(listening.getsockname()[0].partition("%")[0])
    token = None if address.is_loopback else secrets.token_urlsafe(24)
    host = socket.gethostname() if address.is_unspecified else place.host
    config = uvicorn.Config(
        app_of(review, token, host),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    stopped = threading.Event()
    threading.Thread(target=_keep_up, args=[review, stopped], daemon=True).start()
    try:
        ready(_url(host, listening.getsockname()[1], token))
        _Server(config, review).run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        stopped.set()
        listening.close()


class _Server(uvicorn.Server):
    """Stops at once, and says nothing of answers that this cuts short."""

    def __init__(self, config: uvicorn.Config, review: Review) -> None:
        super().__init__(config)
        self._review = review

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._review.stop()
        super().handle_exit(sig, frame)


def _keep_up(review: Review, stopped: threading.Event) -> None:
    """Builds the index, then looks for what other reviewers have written."""
    review.index.build()
    while not stopped.wait(SECONDS_BETWEEN_LOOKS):
        with suppress(PrelabelError):  # a storage that fails for now
            review.verdicts.refresh()


def _listen(place: Place) -> socket.socket:
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if place.port is None else [place.port]
    for port in ports:
        try:
            family, _, _, _, address = socket.getaddrinfo(place.host, port, type=socket.SOCK_STREAM)[0]
            return socket.create_server(address, family=family, backlog=128)
        except socket.gaierror as error:
            raise UserError(f"--host {place.host} is no name or address of this machine: {error.strerror}") from error
        except OSError as error:
            reason = str(error.strerror).partition(" (while ")[0]
    raise UserError(f"can't listen on {place.host} port {ports[-1]}: {reason}; choose another --port or --host")


def _url(host: str, port: int, token: str | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{f'?token={token}' if token else ''}"
