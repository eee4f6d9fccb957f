"""From bags to a LeRobot data set and back: the pixels that were seen live, labels of what happened, or a clear no."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import bags
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vla_ros.core.joints import JointStateReader
from vla_ros.core.kinematics import Kinematics
from vla_ros.core.observation import ObservationBuilder
from vla_ros.core.types import Observation
from vla_ros.data import images
from vla_ros.data.bag_writer import BagWriter, Topic
from vla_ros.data.export import Options, Selection, export
from vla_ros.data.judge import Verdict
from vla_ros.data.lerobot_format import DatasetError
from vla_ros.data.lerobot_reader import TrainingEpisode, read_episodes

pytestmark = pytest.mark.unit
SECONDS, PNG = 2.0, images.Coding("png")
TEXTS = ("pick up the red cube", "lift the red block")
# What compression may change, of 255. Measured on these pictures, whose noise compresses badly: 1.1 in the mean, 48 at
# most (video); JPEG of quality 90 before the 2 x 2 mean: see the test.
VIDEO_MEAN, VIDEO_MAX, JPEG_MEAN = 2.0, 80, 2.0
INDEX = "vla_ros/msg/Observation"


def seen_live(content: list[bags.Made]) -> list[Observation]:
    """What perception makes of the same messages: fed one by one with the driver's pixels, as its callbacks are."""
    f = bags.fabric()
    builder, reader, found = ObservationBuilder(f.contract), JointStateReader(f.contract), []
    cameras = {f"/vla/{camera.topic}/compressed": camera.name for camera in f.contract.cameras}
    for made in content:
        m, now_s = made.message, made.log_ns / bags.NS
        if made.topic in cameras:
            rgb = images.decode(memoryview(m.data))
            builder.add_image(cameras[made.topic], rgb, stamp_ns(m.header.stamp), made.log_ns, now_s)
            observation = builder.take(now_s)
            if observation is not None:
                found.append(observation)
        elif made.topic == "/vla/joint_states" and builder.wants_joints(stamp_ns(m.header.stamp)):
            builder.add_joints(reader.read(m.name, m.position, m.velocity, now_s), stamp_ns(m.header.stamp))
    return found


def stamp_ns(stamp) -> int:
    return stamp.sec * bags.NS + stamp.nanosec


def with_text(text: str) -> bags.Change:
    """The instruction that the arm heard."""

    def change(made: bags.Made) -> Iterator[bags.Made]:
        own = made.topic == "/vla/instruction" and made.message.text
        yield made._replace(message=dataclasses.replace(made.message, text=text)) if own else made

    return change


@pytest.fixture(scope="module")
def content() -> list[list[bags.Made]]:
    return [bags.messages(SECONDS, seed, coding=PNG) for seed in range(2)]


@pytest.fixture(scope="module")
def recorded(content, tmp_path_factory) -> Path:
    """Two good episodes, losslessly recorded."""
    folder = tmp_path_factory.mktemp("bags")
    for name, text, messages in zip(("one", "two"), TEXTS, content, strict=True):
        bags.make(folder, name, content=messages, change=with_text(text), images="png", text=text)
    return folder


@pytest.fixture(scope="module")
def datasets(recorded, tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("datasets")
    for name in ("lossless", "video"):
        export([recorded], out / name, Options(lossless=name == "lossless"), quiet=True)
    return {name: out / name for name in ("lossless", "video")}


def read(folder: Path) -> list[TrainingEpisode]:
    return list(read_episodes(folder, bags.fabric().contract))


def frames(folder: Path) -> dict[str, np.ndarray]:
    table = pq.read_table(folder / "data/chunk-000/file-000.parquet")
    wanted = ("stamp_ns", "timestamp", "frame_index", "episode_index", "index", "task_index", "action")
    return {key: np.array(table[key].to_pylist()) for key in wanted}


# ------------------------------------------------------------------------------------------------- parity


def test_lossless_frames_are_the_live_observations_bit_for_bit(content, datasets) -> None:
    table, names = frames(datasets["lossless"]), [camera.name for camera in bags.fabric().contract.cameras]
    for e, (messages, episode) in enumerate(zip(content, read(datasets["lossless"]), strict=True)):
        live = {o.stamp_ns: o for o in seen_live(messages)}
        stamps = table["stamp_ns"][table["episode_index"] == e]
        assert len(stamps) == len(episode.images) >= 20
        for k, stamp in enumerate(stamps):
            for c, name in enumerate(names):
                assert np.array_equal(episode.images[k, c], live[stamp].images[name]), (e, k, name)
            state = np.append(live[stamp].q_rad, live[stamp].gripper_width_m).astype(np.float32)
            assert np.array_equal(episode.state[k], state), (e, k)


def test_video_frames_are_the_live_observations_within_bounds_and_numbers_are_equal(datasets) -> None:
    for exact, video in zip(read(datasets["lossless"]), read(datasets["video"]), strict=True):
        error = np.abs(exact.images.astype(int) - video.images)
        assert 0.0 < error.mean() <= VIDEO_MEAN and error.max() <= VIDEO_MAX
        for name in ("state", "chunk", "done"):
            assert np.array_equal(getattr(exact, name), getattr(video, name))


def test_frames_in_which_a_person_drove_are_labelled(recorded, content, tmp_path) -> None:
    bags.make(tmp_path, "corrected", content=content[0], change=bags.by_hand(0.8, 1.2))
    report = export([recorded / "one", tmp_path / "corrected"], tmp_path / "out", Options(), quiet=True)
    assert report["episodes"] == 2
    without, corrected = read(tmp_path / "out")
    assert not without.human.any()
    stamps = frames(tmp_path / "out")["stamp_ns"][len(without.human) :]
    seconds = (stamps - bags.START_NS) / bags.NS
    # The supervisor speaks ten times a second.
    clear = np.abs(np.subtract.outer(seconds, [0.8, 1.2])).min(axis=1) > 0.15
    assert np.array_equal(corrected.human[clear], ((seconds >= 0.8) & (seconds < 1.2))[clear])
    assert 3 <= corrected.human.sum() <= 9
    share = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")["human_share"].to_pylist()
    assert share == [0.0, pytest.approx(corrected.human.mean(), abs=1e-6)]


def test_jpeg_recordings_stay_within_bounds(datasets, tmp_path) -> None:
    bags.make(tmp_path, "jpeg", content=bags.messages(SECONDS, 0))
    export([tmp_path / "jpeg"], tmp_path / "out", Options(lossless=True), quiet=True)
    exact, jpeg = read(datasets["lossless"])[0].images, read(tmp_path / "out")[0].images
    error = np.abs(exact.astype(int) - jpeg)
    assert 0.0 < error.mean() <= JPEG_MEAN


def test_indices_of_live_observations_in_the_bag_are_compared(content, tmp_path) -> None:
    """One of them says that it was made of another joint state."""
    f = bags.fabric()
    wanted = {m.topic for m in content[0]} - {"/vla/observation"}
    topics = [*(t for t in bags.topics() if t.name in wanted), Topic("/vla/observation", INDEX)]
    types = bags.get_types_from_msg(bags.schema(INDEX).text, INDEX)
    f.store.register({k: v for k, v in types.items() if k not in f.store.fielddefs})
    index = {topic.name: k for k, topic in enumerate(topics)}
    writer = BagWriter(tmp_path, "indexed", topics, bags.episode())
    for made in content[0]:
        writer.write(
            index[made.topic], bytes(f.store.serialize_cdr(made.message, made.message.__msgtype__)), made.log_ns
        )
    live = seen_live(content[0])
    for k, o in enumerate(live):
        pictures = [f.filled("vla_ros/msg/CameraImage", name=n, stamp=f.time(o.stamp_ns)) for n in o.images]
        q = o.q_rad + (1e-9 if k == len(live) - 3 else 0.0)
        m = f.filled(INDEX, stamp=f.time(o.stamp_ns), sequence=o.sequence, images=pictures, position=q,
                     velocity=o.qd_rad_s, gripper_width=o.gripper_width_m)  # fmt: skip
        writer.write(index["/vla/observation"], bytes(f.store.serialize_cdr(m, INDEX)), content[0][-1].log_ns)
    writer.close(bags.episode())
    writer.keep(bags.episode())
    done = export([tmp_path / "indexed"], tmp_path / "out", Options(), quiet=True)
    assert done["live"] == done["frames"] >= 20
    assert done["equal"] == done["live"] - 1


# ------------------------------------------------------------------------------------------------- labels


def test_chunks_lead_from_the_tool_at_the_frame_to_where_it_was_when_each_row_is_due(datasets) -> None:
    contract = bags.fabric().contract
    kinematics, table = Kinematics(contract), frames(datasets["lossless"])
    episode, stamps = read(datasets["lossless"])[0], table["stamp_ns"]
    for k in (0, 7, 11):
        at_s = (stamps[k] - bags.START_NS) * 1e-9
        R0, p0 = kinematics.tool_pose(bags.joints_at(at_s)[0])
        for row in (0, 5):
            R, p = kinematics.tool_pose(bags.joints_at(at_s + (row + 1) * contract.action.dt_s)[0])
            assert episode.chunk[k, row, :3] == pytest.approx(p - p0, abs=1e-3)
            turned = episode.chunk[k, row, 3:6]
            angle = np.arccos((np.trace(R @ R0.T) - 1.0) / 2.0)
            assert np.linalg.norm(turned) == pytest.approx(angle, abs=3e-3)
        assert (episode.chunk[k, :, 6] == 1.0).all()  # told to be open


def test_action_is_the_setpoint_with_which_the_step_ends(datasets) -> None:
    table = frames(datasets["lossless"])
    for k in (0, 9):
        until_s = (table["stamp_ns"][k + 1] - bags.START_NS) * 1e-9
        assert table["action"][k, :7] == pytest.approx(bags.joints_at(np.floor(until_s * 100) / 100)[0], abs=3e-3)
        assert table["action"][k, 7] == pytest.approx(0.08)


def test_a_data_set_without_chunks_gets_them_from_its_frames(datasets, tmp_path) -> None:
    shutil.copytree(datasets["lossless"], tmp_path / "foreign")
    path = tmp_path / "foreign/data/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["chunk", "done"]), path)
    (tmp_path / "foreign/meta/vla_ros.json").unlink()
    for ours, foreign in zip(read(datasets["lossless"]), read(tmp_path / "foreign"), strict=True):
        n = len(ours.chunk) - 13  # nothing is known of what follows the last frame
        # A frame's state is that of the nearest 10 ms; the export's base is the pose at the picture's own time.
        assert foreign.chunk[:n, :, :3] == pytest.approx(ours.chunk[:n, :, :3], abs=5e-3)
        assert foreign.chunk[:n, :, 3:6] == pytest.approx(ours.chunk[:n, :, 3:6], abs=2e-2)
        assert np.array_equal(foreign.chunk[:n, :, 6], ours.chunk[:n, :, 6])
        assert foreign.done.tolist() == [0] * (len(foreign.done) - 1) + [1]


# ------------------------------------------------------------------------------------------------- format


def test_files_and_counters_are_those_of_format_3(datasets) -> None:
    folder = datasets["video"]
    info = json.loads((folder / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["fps"] == 15 and info["total_episodes"] == 2
    assert set(info["features"]) >= {"observation.images.scene", "observation.state", "action", "timestamp", "index"}
    table = frames(folder)
    assert (table["index"] == np.arange(info["total_frames"])).all()
    assert table["timestamp"] == pytest.approx(table["frame_index"] / 15)
    assert sorted(set(table["task_index"])) == [0, 1]
    tasks = pq.read_table(folder / "meta/tasks.parquet")
    assert dict(zip(tasks["task"].to_pylist(), tasks["task_index"].to_pylist(), strict=True)) == {
        TEXTS[0]: 0,
        TEXTS[1]: 1,
    }
    assert b'"index_columns": ["task"]' in tasks.schema.metadata[b"pandas"]
    first, second = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    key = "videos/observation.images.scene"
    assert first[f"{key}/to_timestamp"] == second[f"{key}/from_timestamp"] == first["length"] / 15
    assert (first["dataset_from_index"], second["dataset_to_index"]) == (0, info["total_frames"])
    assert second["tasks"] == [TEXTS[1]] and second["success"] is True and second["bag"] == "two"
    with av.open(str(folder / "videos/observation.images.scene/chunk-000/file-000.mp4")) as video:
        times = [float(frame.time) for frame in video.decode(video=0)]
    assert times == pytest.approx(np.arange(info["total_frames"]) / 15, abs=1e-4)


def test_statistics_are_exact_and_the_same_when_run_twice(recorded, datasets, tmp_path) -> None:
    export([recorded], tmp_path / "again", Options(lossless=True), workers=1, quiet=True)
    for name in ("meta/stats.json", "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"):
        assert (datasets["lossless"] / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    found = json.loads((datasets["lossless"] / "meta/stats.json").read_text())
    episodes = read(datasets["lossless"])
    state = np.concatenate([e.state for e in episodes]).astype(np.float64)
    assert found["observation.state"]["mean"] == pytest.approx(state.mean(axis=0))
    assert found["observation.state"]["q90"] == pytest.approx(np.quantile(state, 0.9, axis=0))
    pixels = np.concatenate([e.images[:, 0] for e in episodes]) / 255.0  # (f, P, P, 3)
    scene = {name: np.array(values).ravel() for name, values in found["observation.images.scene"].items()}
    assert scene["mean"] == pytest.approx(pixels.mean(axis=(0, 1, 2)))
    assert scene["std"] == pytest.approx(pixels.std(axis=(0, 1, 2)))
    assert scene["q10"] == pytest.approx(np.quantile(pixels, 0.1, axis=(0, 1, 2)), abs=1 / 255)
    assert scene["count"] == [len(pixels)]


# ------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        (Selection(success=False), "success is True"),
        (Selection(outcomes=("timeout",)), "outcome is done"),
    ],
)
def test_what_the_selection_leaves_out_is_named(recorded, tmp_path, selection, reason) -> None:
    with pytest.raises(DatasetError, match=reason):
        export([recorded], tmp_path / "out", Options(selection=selection), quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_episodes_are_left_out_by_safety_events_and_by_the_judge(content, recorded, tmp_path) -> None:
    f = bags.fabric()
    event = f.filled(bags.KINDS["safety_event"], stamp=f.time(bags.START_NS), rule="contact", text="bump")
    eventful = [*content[0], bags.Made("/vla/safety_event", content[0][-1].log_ns, event)]
    bags.make(tmp_path / "more", "eventful", content=eventful)
    bags.make(tmp_path / "more", "mislabelled", content=content[0], text="pick up the blue ball")
    chosen = Selection(without=("contact",), judged=Verdict.FITS)
    done = export([recorded / "one", tmp_path / "more"], tmp_path / "out", Options(selection=chosen), quiet=True)
    assert done["episodes"] == 1
    reasons = {Path(bag).name: why for bag, why in done["left_out"].items()}
    assert reasons["eventful"] == "SafetyEvent contact, 1 times"
    assert "the arm was told 'pick up the red cube'" in reasons["mislabelled"]
    left_out = json.loads((tmp_path / "out/meta/vla_ros.json").read_text())["left_out"]
    assert left_out == done["left_out"]


@pytest.mark.parametrize(
    ("rule", "taken"), [("speed_limit", 2), ("instruction_changed", 2), ("contact", 1), ("shape", 1)]
)
def test_only_what_was_refused_or_stopped_counts_as_a_veto(content, recorded, tmp_path, rule, taken) -> None:
    f = bags.fabric()
    event = f.filled(bags.KINDS["safety_event"], stamp=f.time(bags.START_NS), rule=rule, text="x")
    eventful = [*content[0], bags.Made("/vla/safety_event", content[0][-1].log_ns, event)]
    bags.make(tmp_path / "more", "eventful", content=eventful)
    options = Options(selection=Selection(events_max=0))
    assert export([recorded / "one", tmp_path / "more"], tmp_path / "out", options, quiet=True)["episodes"] == taken


# ------------------------------------------------------------------------------------------------- bad input


def test_bags_of_another_contract_are_refused_with_the_field_that_differs(content, recorded, tmp_path) -> None:
    text = Path(bags.fabric().contract.source).read_text().replace("rate_hz: 15.0", "rate_hz: 30.0")
    bags.make(tmp_path, "other", content=content[0], contract_hash="12" * 32, contract_text=text)
    with pytest.raises(DatasetError, match=r"cameras\[0\].rate_hz is 30.0 in the bag, 15.0 here"):
        export([recorded, tmp_path / "other"], tmp_path / "out", Options(), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_an_existing_folder_is_never_written_to(recorded, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("x")
    with pytest.raises(DatasetError, match="exists already"):
        export([recorded], tmp_path / "out", Options(), quiet=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def lost(kind: str, at_s: float) -> bool:
    """Whether a picture that came so long after the start is missing."""
    if kind == "no frames":
        return at_s > 0.5
    if kind == "half the rate":
        return round(at_s * 15 - 0.2) % 2 == 1
    return kind == "gap" and 1.0 < at_s < 1.4


def broken(kind: str) -> bags.Change:
    """A change that plants one defect."""

    def change(made: bags.Made) -> Iterator[bags.Made]:
        at_s, camera = (made.log_ns - bags.START_NS) / bags.NS, "/compressed" in made.topic
        late = made.log_ns > bags.START_NS + int(1.2 * bags.NS)
        if kind == "NaN" and made.topic == "/vla/safe_command" and late:
            q = made.message.position.copy()
            q[2] = np.nan
            yield made._replace(message=dataclasses.replace(made.message, position=q))
        elif camera and lost(kind, at_s):
            return
        else:
            yield made

    return change


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("NaN", "safe_command.position"),
        ("no frames", "frames is .*allowed: >= 2"),
        ("half the rate", "frames per second is .*allowed: 15"),
        ("gap", r"longest gap between frames \[s\] is 0.4"),
    ],
)
def test_a_defect_is_named_and_nothing_is_left_behind(content, tmp_path, kind, message) -> None:
    bags.make(tmp_path, "bad", content=content[0], change=broken(kind))
    with pytest.raises(DatasetError, match=message):
        export([tmp_path / "bad"], tmp_path / "out", Options(), quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["bad"]


def test_a_data_set_with_nan_actions_is_refused_at_the_frame(datasets, tmp_path) -> None:
    shutil.copytree(datasets["lossless"], tmp_path / "nan")
    path = tmp_path / "nan/data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    actions[4][2] = float("nan")
    column = table.schema.get_field_index("action")
    pq.write_table(table.set_column(column, "action", pa.array(actions, table.schema.field(column).type)), path)
    with pytest.raises(DatasetError, match="action of frame 4"):
        read(tmp_path / "nan")
