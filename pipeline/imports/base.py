"""What an import is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from prelabel.schemas.categories import CategorySet
from prelabel.schemas.rle import Rle


@dataclass(frozen=True)
class ImportedObject:
    """An object as somebody left it.

    Attributes:
        category: its name
        bbox: x, y, width, height, in pixels of the upright image; None: that of the mask
        segmentation: its mask, of the image's size
        keypoints: x, y, visibility of each
        score: 1 where a person drew it
        annotation_id: what the document calls it, where it does: to name it when something is wrong
    """

    category: str
    bbox: tuple[float, float, float, float] | None = None
    segmentation: Rle | None = None
    keypoints: list[float] | None = None
    score: float = 1.0
    iscrowd: bool = False
    annotation_id: int | None = None


@dataclass(frozen=True)
class ImportedImage:
    """An image and all of its objects.

    Attributes:
        key: of the image, or what the document calls it
        image_id: of the job that it was exported from, where the document still says so; it counts only together with
            the key, for tools number images anew
    """

    key: str
    height: int
    width: int
    image_id: int | None = None
    objects: list[ImportedObject] = field(default_factory=list)


class Importer(ABC):
    """Reads one document of a labeling tool; a subclass handles one format, its name goes into the registry.

    Attributes:
        name: in the registry
        url: of the document
    """

    name: ClassVar[str]

    @abstractmethod
    def __init__(self, url: str) -> None:
        """Opens the document.

        Raises:
            UserError: it can't be read, or is of another format.
        """
        self.url = url

    @property
    @abstractmethod
    def digest(self) -> str:
        """SHA-256 of the document, hexadecimal."""

    @abstractmethod
    def categories(self) -> CategorySet:
        """What its objects may be called; ids are the document's where it has any."""

    @abstractmethod
    def images(self) -> Iterator[ImportedImage]:
        """Its images, in the document's order.

        Raises:
            UserError: one can't be understood; says which.
        """
