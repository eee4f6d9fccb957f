"""Camera images as a bag holds them: the bytes of a sensor_msgs/CompressedImage."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from vla_ros.core.errors import Invalid
from vla_ros.core.types import ByteArray

QUALITY_DEFAULT = 90  # our choice: mean error of a rendered scene 1 to 2 of 255
JPEG, PNG = "jpeg", "png"
PNG_LEVEL = 1  # of zlib: higher levels take several times as long for a few percent


@dataclass(frozen=True, slots=True)
class Coding:
    """`quality` 1 to 100 for jpeg; png is lossless, and takes ten times as long: for small or slow cameras."""

    kind: str = JPEG
    quality: int = QUALITY_DEFAULT

    def __post_init__(self) -> None:
        if self.kind not in (JPEG, PNG):
            raise Invalid("images", self.kind, f"{JPEG} or {PNG}")
        if not 1 <= self.quality <= 100:
            raise Invalid("jpeg quality", self.quality, "1 to 100")

    def __str__(self) -> str:
        return f"{JPEG} {self.quality}" if self.kind == JPEG else PNG

    @classmethod
    def parse(cls, text: str) -> Coding:
        """The inverse of str()."""
        match = re.fullmatch(rf"{PNG}|{JPEG}(?: (\d{{1,3}}))?", text)
        if match is None:
            raise Invalid("images", text, f"{PNG}, {JPEG}, or {JPEG} with a quality, as in '{JPEG} 90'")
        return cls(PNG) if text == PNG else cls(JPEG, int(match.group(1) or QUALITY_DEFAULT))

    @property
    def format(self) -> str:
        """Field `format` of the message, as image_transport's compressed transport writes it for colour images."""
        return f"rgb8; {self.kind} compressed bgr8"

    def encode(self, rgb: ByteArray) -> bytes:
        """(H, W, 3) uint8 -> file bytes. Releases the interpreter while it compresses."""
        rgb = np.ascontiguousarray(rgb)
        if self.kind == JPEG:
            data: bytes = simplejpeg.encode_jpeg(rgb, self.quality, "RGB", "420", fastdct=False)
            return data
        out = io.BytesIO()
        Image.fromarray(rgb).save(out, "PNG", compress_level=PNG_LEVEL)
        return out.getvalue()


def decode(data: bytes | bytearray | memoryview) -> ByteArray:
    """File bytes -> (H, W, 3) uint8 rgb. Raises Invalid for what is no whole JPEG or PNG image."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise Invalid("compressed image", f"{len(data)} bytes", f"a whole JPEG or PNG image ({error})") from None
