"""One camera of a data set as MP4: encoded per episode, joined without decoding, read back frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream

from vla_ros.core.errors import Invalid
from vla_ros.core.types import ByteArray

CODEC = "libx264"  # six times as fast as SVT-AV1 here, and decoded everywhere
# Colour is what the words name, so it is not subsampled: at 112 px 4:2:0 costs 2.1 levels of 255 in the mean, up to
# 121; this costs 1.0 and 40, at a quarter of the size of PNG (docs/decisions.md). Every second frame stands alone, as
# in LeRobot's own recordings, so that single frames are found fast; one thread, no B-frames: the same bytes every time.
PIXELS = "yuv444p"
OPTIONS = {"crf": "12", "preset": "veryfast", "g": "2", "bf": "0"}


class VideoWriter:
    """Frames of one camera, in order. Use as a context manager; the file is whole only after it."""

    def __init__(self, path: Path, fps: int, height_px: int, width_px: int) -> None:
        if height_px % 2 or width_px % 2:
            raise Invalid("video size [px]", (height_px, width_px), "even numbers", "use --lossless")
        self._container: OutputContainer = av.open(str(path), "w", format="mp4")
        self._stream: VideoStream = self._container.add_stream(CODEC, rate=fps, options=dict(OPTIONS))
        self._stream.height, self._stream.width, self._stream.pix_fmt = height_px, width_px, PIXELS
        self._stream.codec_context.thread_count = 1
        self._tick, self._count = Fraction(1, fps), 0

    def add(self, rgb: ByteArray) -> None:
        """(H, W, 3) uint8."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts, frame.time_base = self._count, self._tick
        self._count += 1
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()


def join(parts: Sequence[tuple[Path, int]], path: Path, fps: int) -> None:
    """One file of several (path, frames), each beginning where the one before ends. Packets are copied."""
    with av.open(str(path), "w", format="mp4") as out:
        stream: VideoStream | None = None
        begin = 0
        for part, frames in parts:
            with av.open(str(part)) as source:
                template = source.streams.video[0]
                if stream is None:
                    stream = out.add_stream_from_template(template)
                shift = round(Fraction(begin, fps) / template.time_base)
                for packet in source.demux(template):
                    if packet.pts is None or packet.dts is None:  # the packet that ends the stream
                        continue
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    out.mux(packet)
            begin += frames


def frames(path: Path, fps: int, first: int, count: int) -> Iterator[ByteArray]:
    """(H, W, 3) uint8 of frames first..first + count - 1. Raises Invalid for a file that does not hold them."""
    found = 0
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            container.seek(int(Fraction(first, fps) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                index = round(frame.pts * stream.time_base * fps)
                if index >= first + count:
                    break
                if index >= first:
                    found += 1
                    yield frame.to_ndarray(format="rgb24")
    except (av.FFmpegError, IndexError, OSError) as error:
        raise Invalid(f"{path}", str(error), "a readable MP4 file; export the data set again") from error
    if found != count:
        raise Invalid(f"{path}: frames from {first} on", found, f"{count}; export the data set again")


def facts(fps: int, height_px: int, width_px: int) -> dict[str, object]:
    """`info` of a video feature in meta/info.json."""
    return {
        "video.height": height_px,
        "video.width": width_px,
        "video.codec": "h264",
        "video.pix_fmt": PIXELS,
        "video.is_depth_map": False,
        "video.fps": fps,
        "video.channels": 3,
        "has_audio": False,
    }
