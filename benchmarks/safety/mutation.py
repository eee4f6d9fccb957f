"""Mutation check: take away one guard at a time; at least one of its named tests must turn red.

    python benchmarks/safety/mutation.py [--only NAME ...] [--list] [--report benchmarks/safety/mutation.md]

Each guard is one exact piece of text and what stands there without it. The edit is made in a temporary copy of the
package. Prints JSON; exit code 1 when a guard could be taken away unnoticed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("vla_ros", "test", "config", "resource", "docs", "msg", "pyproject.toml")
LIMIT_S = 600.0  # for the tests of one guard


@dataclass(frozen=True)
class Guard:
    name: str
    file: str  # below vla_ros/
    text: str  # occurs exactly once
    without: str
    tests: tuple[str, ...]  # below test/, as pytest takes them; the first is the likeliest to turn red


SUPERVISOR, ARM, REARM = "core/test_supervisor.py", "core/test_arm_controller.py", "core/test_rearm.py"
SIM = "safety/test_simulation.py::test_fault"

GUARDS = (
    Guard("finite gate", "core/types.py", "    if not finite:\n", "    if False:\n",
          (f"{SUPERVISOR}::test_a_chunk_with_a_nan_is_dropped_whole_and_the_third_within_ten_seconds_stops",
           "core/test_observation.py::test_a_joint_state_that_is_not_whole_counts_as_missing")),
    Guard("image age", "core/observation.py", "stale = any(not age_s <= self._contract.timeouts.image_s",
          "stale = any(False",
          (f"{SIM}[A1]",)),
    Guard("perception silent", "core/perception_watch.py",
          "if not now_s - status.reported_at_s <= contract.timeouts.image_s:", "if False:",
          ("safety/test_units.py::test_a_perception_that_falls_silent_holds_and_one_that_is_not_understood_too",)),
    Guard("joint state age", "core/supervisor.py",
          "self._bad[Reason.STATE_STALE] = not age_s <= self._contract.timeouts.joint_state_s",
          "self._bad[Reason.STATE_STALE] = False", (f"{SIM}[A7]",)),
    Guard("frozen camera", "core/image_checks.py", "if self._same >= BAD_FRAMES", "if False", (f"{SIM}[A2]",)),
    Guard("blind camera", "core/image_checks.py", "if self._blind >= BAD_FRAMES:", "if False:", (f"{SIM}[A5]",)),
    Guard("encoder jump", "core/supervisor.py", "self._bad[Reason.STATE_JUMP] = self._joints.jumped",
          "self._bad[Reason.STATE_JUMP] = False", (f"{SIM}[A9]",)),
    Guard("chunk age", "core/supervisor.py",
          "stale = executor.exhausted(look_s) or not executor.age_s(now_s) <= self._contract.timeouts.chunk_s",
          "stale = False", (f"{SIM}[B6]", f"{SIM}[B7]")),
    Guard("shaking", "core/progress.py", "self.shaking = reversals(chunk) >= SHAKE_COUNT", "self.shaking = False",
          (f"{SIM}[B9]",)),
    Guard("no progress", "core/progress.py", "now_s - self._here_s >= STILL_FOR_S", "False",

                  ("safety/test_units.py::test_a_policy_that_keeps_the_arm_where_it_is_for_ten_seconds_waits_for_the_operator",)),
    Guard("writer and sequence of a chunk", "core/chunks.py",
          "if not (chunk.sequence > self._sequence and chunk.observed_at_s > self._observed_at_s):", "if False:",
          ("core/test_chunks.py::test_order_is_kept_repeats_replays_and_older_observations_are_dropped",)),
    Guard("second writer of chunks", "core/chunks.py",
          "elif now_s - self._accepted_at_s <= contract.timeouts.chunk_s:", "elif False:",

                  ("core/test_chunks.py::test_a_second_writer_is_ignored_while_the_first_is_alive_and_adopted_when_it_is_silent",)),
    Guard("observation-stamp flush", "core/chunks.py", "if not chunk.observed_at_s > self._flushed_at_s:", "if False:",
          ("core/test_chunks.py::test_nothing_observed_before_a_flush_is_taken_after_it",)),
    Guard("tracking", "core/supervisor.py", "self._bad[Reason.TRACKING] = self._lost_track(now_s)",
          "self._bad[Reason.TRACKING] = False", (f"{SIM}[C5]",)),
    Guard("contact", "core/supervisor.py", "self._bad[Reason.CONTACT] = self._torque.contact",
          "self._bad[Reason.CONTACT] = False", (f"{SIM}[C6]",)),
    Guard("gripper stuck", "core/supervisor.py", "self._bad[Reason.GRIPPER_STUCK] = watch.stuck",
          "self._bad[Reason.GRIPPER_STUCK] = False", (f"{SIM}[C8]",)),
    Guard("object dropped", "core/supervisor.py", "self._bad[Reason.OBJECT_DROPPED] = watch.dropped",
          "self._bad[Reason.OBJECT_DROPPED] = False", (f"{SIM}[C9]",)),
    Guard("interrupt", "core/operator.py", "bad[Reason.INTERRUPT] = True", "bad[Reason.INTERRUPT] = False",
          (f"{SUPERVISOR}::test_an_interrupt_brakes_in_the_same_update_and_stays_stopped",)),
    Guard("operator heartbeat", "core/operator.py",
          "bad[Reason.OPERATOR_HEARTBEAT] = armed_or_stopped_by_it and self.heartbeat(now_s) == HEARTBEAT_LOST",
          "bad[Reason.OPERATOR_HEARTBEAT] = False",
          (f"{REARM}::test_a_lost_heartbeat_stops_where_the_contract_asks_for_one",)),
    Guard("one source", "core/intake.py", "if chunk.source is not self.source:", "if False:",
          ("safety/test_units.py::test_D10_exactly_one_source_is_listened_to",)),
    Guard("rearm guard", "core/supervisor.py", "refusal = self._rearm_refusal(now_s)", "refusal = None",
          (f"{REARM}::test_rearm_is_accepted_only_when_nothing_is_wrong",)),
    Guard("0.5 s of health", "core/rules.py", "now_s - condition.last_bad_s >= HEALTHY_AFTER_S", "True",
          (f"{SUPERVISOR}::test_each_condition_clears_by_its_declared_rule_and_by_nothing_less",)),
    Guard("flap guard", "core/rules.py", "if RULES[reason].flaps and flapping and", "if False and",
          (f"{SUPERVISOR}::test_three_holds_with_one_reason_within_ten_seconds_become_a_stop",)),
    Guard("unchecked is unhealthy", "core/rules.py", "bad.get(reason, not RULES[reason].event)",
          "bad.get(reason, False)",
          (f"{SUPERVISOR}::test_a_check_that_did_not_run_is_unhealthy",)),
    Guard("operator must act", "core/rules.py", "(condition.acknowledged or RULES[reason].clear is Clear.AUTO)", "True",
          (f"{SUPERVISOR}::test_each_condition_clears_by_its_declared_rule_and_by_nothing_less",)),
    Guard("timeout of the arm controller", "arm/controller.py",
          "if not age_s <= self._contract.timeouts.safe_command_s:", "if False:", (f"{SIM}[E1]",)),
    Guard("interrupt at the arm controller", "arm/controller.py", "        if interrupts > 0:\n", "        if False:\n",
          (f"{ARM}::test_an_interrupt_stops_the_arm_even_when_the_supervisor_hangs",)),
    Guard("writer at the arm controller", "arm/controller.py",
          "if self._writer_id not in (0, command.writer_id) and alive:", "if False:",
          (f"{ARM}::test_a_second_writer_is_ignored_while_the_first_is_alive",)),
    Guard("step at the arm controller", "arm/controller.py",
          "if previous is None or not self._step_is_possible(previous, command):", "if False:",
          (f"{ARM}::test_a_bad_command_is_never_passed_on_and_latches_a_stop",)),
    Guard("first command near the hold", "arm/controller.py", "if not (fresh and still and near and slow):",
          "if False:",
          (f"{ARM}::test_it_leaves_the_stop_only_for_a_higher_counter_and_a_command_near_its_hold_position",)),
    Guard("measured anchor at the arm controller", "arm/controller.py",
          "if self._stop_begins and self._joints is not None and self._is_elsewhere(now_s, self._joints):", "if False:",
          ("safety/test_units.py::test_the_arm_controller_holds_an_arm_that_is_elsewhere_where_it_is",)),
)  # fmt: skip


def mutate(folder: Path, guard: Guard) -> None:
    path = folder / "vla_ros" / guard.file
    source = path.read_text(encoding="utf-8")
    if source.count(guard.text) != 1:
        raise SystemExit(f"{guard.name}: its text occurs {source.count(guard.text)} times in {guard.file}, not once")
    path.write_text(source.replace(guard.text, guard.without), encoding="utf-8")


def try_without(guard: Guard) -> dict[str, object]:
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / part)
        mutate(folder, guard)
        red: list[str] = []
        for test in guard.tests:
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"test/{test}"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(folder)},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
            if done.returncode == 1:  # tests ran, and failed; 4 or 5 would be a test that is not there
                red.append(test)
                break
            if done.returncode != 0:
                raise SystemExit(f"{guard.name}: {test} does not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"guard": guard.name, "file": guard.file, "red": red, "s": round(time.monotonic() - started_s, 1)}


def report(results: list[dict[str, object]]) -> str:
    lines = [
        "# Mutation check",
        "",
        "Each guard taken away once, in a copy of the package; the test that noticed. "
        "Made by `python benchmarks/safety/mutation.py`.",
        "",
        "| guard | file | test that turned red |",
        "|---|---|---|",
    ]
    for result in results:
        red = ", ".join(f"`{test}`" for test in result["red"]) or "**none**"  # type: ignore[union-attr, attr-defined]
        lines.append(f"| {result['guard']} | `{result['file']}` | {red} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="names of guards")
    parser.add_argument("--list", action="store_true", help="print the guards and leave")
    parser.add_argument("--report", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    guards = [guard for guard in GUARDS if not options.only or guard.name in options.only]
    if options.list:
        print(json.dumps([asdict(guard) for guard in guards], indent=1))
        return 0
    results = [try_without(guard) for guard in guards]
    unnoticed = [result["guard"] for result in results if not result["red"]]
    print(json.dumps({"guards": len(results), "unnoticed": unnoticed, "results": results}, indent=1))
    if options.report is not None:
        options.report.write_text(report(results), encoding="utf-8")
    return 1 if unnoticed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
