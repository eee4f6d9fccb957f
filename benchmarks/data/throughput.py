"""How fast MCAP is written and read here, beside the rosbags library in the same run.

    python benchmarks/data/throughput.py --seconds 60 [--bag EPISODE]

The messages are those of an episode as the recorder writes it (two cameras as JPEG, joint states at 500 Hz, commands at
100 Hz), or of `--bag`. MB and messages per second of CPU time, the best of `--repeat` runs.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "test" / "data"))

import bags  # noqa: E402

from vla_ros.data.bag_reader import Bag  # noqa: E402
from vla_ros.data.bag_writer import BagWriter, Topic  # noqa: E402
from vla_ros.data.episode import Episode  # noqa: E402
from vla_ros.data.ros_schema import schema  # noqa: E402


class Throughput:
    """The messages of one bag, in memory, written and read by both libraries."""

    def __init__(self, bag, folder, repeat):
        self.folder, self.repeat, self.rows = folder, repeat, {}
        self.messages = list(bag.messages())
        self.size_mb = sum(len(m.data) for m in self.messages) / 1e6
        self.topics = [Topic(t.name, t.kind) for t in bag.topics.values()]
        self.index = {topic.name: i for i, topic in enumerate(self.topics)}
        self.store = get_typestore(Stores.ROS2_KILTED)
        for topic in self.topics:
            new = get_types_from_msg(schema(topic.kind).text, topic.kind)
            self.store.register({name: fields for name, fields in new.items() if name not in self.store.types})

    def row(self, name, work):
        """The run with the least CPU time."""
        runs = []
        for _ in range(self.repeat):
            begin_s, spent_s = time.perf_counter(), time.process_time()
            result = work()
            runs.append((time.process_time() - spent_s, time.perf_counter() - begin_s))
        cpu_s, wall_s = min(runs)
        self.rows[name] = {
            "cpu_s": round(cpu_s, 3), "wall_s": round(wall_s, 3), "mb_per_cpu_s": round(self.size_mb / cpu_s),
            "messages_per_cpu_s": round(len(self.messages) / cpu_s),
        }  # fmt: skip
        return result

    def ours(self, compression):
        path = self.fresh(f"vla_ros_{compression}")
        writer = BagWriter(path.parent, path.name, self.topics, Episode(), compression)
        for m in self.messages:
            writer.write(self.index[m.topic], m.data, m.log_ns)
        writer.close(Episode())
        return writer.keep(Episode())

    def theirs(self):
        path = self.fresh("rosbags")
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            links = [writer.add_connection(t.name, t.kind, typestore=self.store) for t in self.topics]
            for m in self.messages:
                writer.write(links[self.index[m.topic]], m.log_ns, m.data)
        return path

    def fresh(self, name):
        path = self.folder / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def read_ours(self, path):
        return sum(1 for _ in Bag.open(path).messages())

    def read_theirs(self, path):
        with AnyReader([path]) as reader:
            return sum(1 for _ in reader.messages())

    def run(self):
        made = {
            "vla_ros bag": self.row("write, vla_ros", lambda: self.ours("none")),
            "vla_ros bag, zstd": self.row("write, vla_ros, zstd", lambda: self.ours("zstd")),
            "rosbags bag": self.row("write, rosbags", self.theirs),
        }
        for name, path in made.items():
            counts = {
                self.row(f"read {name} by vla_ros", lambda path=path: self.read_ours(path)),
                self.row(f"read {name} by rosbags", lambda path=path: self.read_theirs(path)),
            }
            assert counts == {len(self.messages)}, counts
        sizes = {name: round(sum(f.stat().st_size for f in path.iterdir()) / 1e6, 2) for name, path in made.items()}
        return {
            "messages": len(self.messages), "size_mb": round(self.size_mb, 2), "files_mb": sizes,
            "load": os.getloadavg()[0], "rows": self.rows,
        }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bag", type=Path, help="an episode; without it one is made")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the episode that is made")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = options.bag or bags.make(Path(name), "made", seconds=options.seconds)
        print(json.dumps(Throughput(Bag.open(path), Path(name), options.repeat).run(), indent=2))


if __name__ == "__main__":
    main()
