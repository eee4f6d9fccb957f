"""An MP4 of both cameras side by side, encoded while the graph runs by one low-priority ffmpeg process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vla_ros.core.types import ByteArray
from vla_ros.nodes.loop import yield_this_thread

CAPTION_PX = 28
QUALITY = ("-crf", "27", "-preset", "veryfast", "-threads", "1")  # about 0.5 Mbit/s for 448 px: a minute in 2 MB
QUEUE_FRAMES = 60  # a slow encoder loses frames, never the caller's time


class Video:
    """`add` from any thread; `close` writes the end of the file. Without a frame no file is made."""

    def __init__(self, path: Path, cameras: Sequence[str], fps: float) -> None:
        self.path = path
        self.caption = ""
        self.frames = 0
        self.dropped = 0
        self._cameras = tuple(cameras)
        self._newest: dict[str, ByteArray] = {}
        self._fps = fps
        self._queue: queue.Queue[ByteArray | None] = queue.Queue(QUEUE_FRAMES)
        self._thread = threading.Thread(target=self._encode, name="video", daemon=True)
        self._thread.start()

    def add(self, camera: str, pixels: ByteArray) -> None:
        """(H, W, 3) uint8. A picture is made when the last camera of a round has delivered."""
        self._newest[camera] = pixels
        if camera == self._cameras[-1] and len(self._newest) == len(self._cameras):
            try:
                self._queue.put_nowait(self._compose())
            except queue.Full:
                self.dropped += 1

    def close(self) -> Path | None:
        self._queue.put(None)
        self._thread.join(timeout=30.0)
        return self.path if self.frames else None

    def _compose(self) -> ByteArray:
        pictures = [self._newest[name] for name in self._cameras]
        strip = np.hstack(pictures)  # (H, cameras * W, 3)
        caption = Image.new("RGB", (strip.shape[1], CAPTION_PX), (20, 22, 26))
        draw = ImageDraw.Draw(caption)
        draw.text(
            (8, CAPTION_PX // 2), self.caption, fill=(235, 235, 235), font=ImageFont.load_default(14), anchor="lm"
        )
        return np.ascontiguousarray(np.vstack([strip, np.asarray(caption)]))  # (H + caption, cameras * W, 3)

    def _encode(self) -> None:
        yield_this_thread(10)  # inherited by ffmpeg
        writer = None
        try:
            while (frame := self._queue.get()) is not None:
                if writer is None:
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    writer = imageio_ffmpeg.write_frames(
                        str(self.path),
                        (frame.shape[1], frame.shape[0]),
                        fps=self._fps,
                        codec="libx264",
                        macro_block_size=2,
                        ffmpeg_log_level="error",
                        output_params=list(QUALITY),
                        quality=None,
                    )
                    writer.send(None)
                writer.send(frame)
                self.frames += 1
        finally:
            if writer is not None:
                writer.close()
