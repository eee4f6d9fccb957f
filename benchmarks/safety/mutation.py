"""Mutation check: take away one guard at a time; at least one of its named tests must turn red.

    python benchmarks/safety/mutation.py [--only NAME ...] [--list] [--report benchmarks/safety/mutation.md]

Each guard is one exact piece of text and what stands there without it. The edit is made in a temporary copy of the
package. Prints JSON; exit code 1 when a guard could be taken away unnoticed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("vla_ros", "test", "config", "resource", "docs", "msg", "pyproject.toml")
LIMIT_S = 1800.0  # for one test
LIBRARIES = ("numpy", "pinocchio", "ruckig", "mujoco", "hypothesis", "pytest", "yaml", "PIL.Image")


@dataclass(frozen=True)
class Guard:
    name: str
    file: str  # below vla_ros/
    text: str  # occurs exactly once
    without: str
    tests: tuple[str, ...]  # below test/, as pytest takes them; the first is the likeliest to turn red


SUPERVISOR, ARM, REARM = "core/test_supervisor.py", "core/test_arm_controller.py", "core/test_rearm.py"
SIM = "safety/test_simulation.py::test_fault"
MOTION, CHUNKS, LIMITS = "safety/test_c_motion.py", "core/test_chunks.py", "core/test_limits.py"
A1 = "test_one_camera_that_is_silent_for_its_timeout_is_told_while_the_other_goes_on"
C2 = "test_C2_a_tool_driven_out_of_the_workspace_is_held_at_the_face_and_may_come_back"
C3 = "test_C3_an_arm_that_folds_into_itself_is_slowed_and_held_and_may_unfold"
C4 = "test_C4_a_way_through_a_singularity_is_slowed_and_held_and_may_turn_back"
C7 = "test_C7_tool_and_elbow_slow_down_within_the_ramp_when_reduced_speed_is_asked_or_nobody_allows_more"
PUT = "test_a_stopped_arm_that_somebody_puts_elsewhere_is_held_there_and_not_pulled_back"
BOUNDS = "test_no_request_from_any_feasible_state_breaks_a_bound_whatever_the_tick"
WRONG = "test_a_chunk_that_is_not_what_the_contract_says_is_rejected_with_a_reason"

GUARDS = (
    Guard("finite gate", "core/types.py", "    if not finite:\n", "    if False:\n",
          (f"{SUPERVISOR}::test_a_chunk_with_a_nan_is_dropped_whole_and_the_third_within_ten_seconds_stops",
           "core/test_observation.py::test_a_joint_state_that_is_not_whole_counts_as_missing")),
    Guard("image age", "core/observation.py", "stale = any(not age_s <= self._contract.timeouts.image_s",
          "stale = any(False",
          (f"core/test_observation.py::{A1}",)),
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
          "stale = ended or not executor.age_s(now_s) <= self._contract.timeouts.chunk_s",
          "stale = False", (f"{SIM}[B7]",)),
    Guard("end of the chunk", "core/supervisor.py", "ended = following and not executor.left_s(now_s) > 0.0",
          "ended = False", (f"{SUPERVISOR}::test_a_last_chunk_is_left_at_rest_on_its_last_row_and_then_held",)),
    Guard("running out along the chunk", "core/motion.py", "min(by_speed, by_lag, by_end, self.outlook.scale",
          "min(by_speed, by_lag, self.outlook.scale",
          (f"{SUPERVISOR}::test_chunks_may_be_executed_whole_the_arm_slows_down_where_each_ends_and_goes_on_with_the_next",)),
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
    Guard("retries of the gripper", "core/supervisor.py", "if watch.stuck and watch.failures > RETRIES_MAX:",
          "if False:",
          ("core/test_gripper.py::test_C8_fingers_that_do_not_move_get_two_more_tries_then_the_instruction_ends",)),
    Guard("another instruction after a drop", "core/rules.py",
          "if not (instruction_open and RULES[reason].clear is Clear.INSTRUCTION):", "if True:",
          ("core/test_gripper.py::test_C9_after_a_drop_nothing_moves_before_another_instruction",)),
    Guard("interrupt", "core/operator.py", "bad[Reason.INTERRUPT] = True", "bad[Reason.INTERRUPT] = False",
          (f"{SUPERVISOR}::test_an_interrupt_brakes_in_the_same_update_and_stays_stopped",)),
    Guard("operator heartbeat", "core/operator.py",
          "bad[Reason.OPERATOR_HEARTBEAT] = armed_or_stopped_by_it and self.heartbeat(now_s) == HEARTBEAT_LOST",
          "bad[Reason.OPERATOR_HEARTBEAT] = False",
          (f"{REARM}::test_a_lost_heartbeat_stops_where_the_contract_asks_for_one",)),
    Guard("one source", "core/intake.py", "if chunk.source is not self._source:", "if False:",
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
    # What the look-ahead sees at the predicted stop pose: C2, C3, C4.
    Guard("predicted stop pose", "core/lookahead.py",
          "q_stop = following.q + stop_displacement(following, self._limits)", "q_stop = following.q",
          (f"{MOTION}::{C2}[x+]",)),
    Guard("workspace at the stop pose", "core/supervisor.py",
          "self._bad[Reason.WORKSPACE] = outlook.leaves_workspace", "self._bad[Reason.WORKSPACE] = False",
          (f"{MOTION}::{C2}[x+]",)),
    Guard("elbow above the table", "core/lookahead.py", "leaves_workspace=tool or elbow,", "leaves_workspace=tool,",
          (f"{MOTION}::test_C2_an_elbow_that_sinks_to_the_table_is_held_above_it_and_may_rise_again",)),
    Guard("self-collision at the stop pose", "core/supervisor.py",
          "self._bad[Reason.SELF_COLLISION] = outlook.self_collision", "self._bad[Reason.SELF_COLLISION] = False",
          (f"{MOTION}::{C3}[hand on forearm]",)),
    Guard("slowing before a self-collision", "core/lookahead.py",
          "collision_scale=_collision_scale(near_stop) if near_stop < near else 1.0,", "collision_scale=1.0,",
          (f"{MOTION}::{C3}[hand on forearm]",)),
    Guard("singularity at the stop pose", "core/supervisor.py",
          "self._bad[Reason.SINGULARITY] = outlook.singular\n", "self._bad[Reason.SINGULARITY] = False\n",
          (f"{MOTION}::{C4}[outstretched]",)),
    Guard("slowing before a singularity", "core/lookahead.py",
          "singular_scale=_singular_scale(condition_stop, approaching=condition_stop > condition),",
          "singular_scale=1.0,", (f"{MOTION}::{C4}[outstretched]",)),
    Guard("what is outside may only come back", "core/lookahead.py",
          "self._allowed = back if at_rest else min(self._allowed, back)", "self._allowed = back",
          ("core/test_lookahead.py::test_an_arm_that_creeps_towards_itself_is_held_like_a_fast_one",)),
    Guard("slack that shrinks with every rest outside", "core/lookahead.py", "self._left /= 4.0", "pass",
          ("core/test_lookahead.py::test_an_arm_that_rests_again_and_again_does_not_get_out_by_the_slack_each_time",)),
    # The limiter, bound by bound, and the seam of two chunks.
    Guard("cross-fade of chunks", "core/chunks.py", "self._fade(*fade_from, curve)", "pass",
          (f"{CHUNKS}::test_the_reference_has_no_step_in_position_or_speed_at_a_seam",)),
    Guard("velocity limiter", "core/limits.py", "1e12 * np.maximum(fast, 0.0)", "0.0 * np.maximum(fast, 0.0)",
          (f"{LIMITS}::{BOUNDS}",)),
    Guard("acceleration limiter", "core/limits.py", "j_lo = np.maximum(-J, (-A - a) / dt)", "j_lo = -J + 0.0 * a",
          (f"{LIMITS}::{BOUNDS}",)),
    Guard("jerk limiter", "core/limits.py", "np.minimum(J, (A - a) / dt)", "(A - a) / dt", (f"{LIMITS}::{BOUNDS}",)),
    Guard("braking envelope", "core/limits.py", "1e8 * np.maximum(outside, 0.0)", "0.0 * np.maximum(outside, 0.0)",
          (f"{MOTION}::test_C1_from_any_state_inside_the_envelope_every_sequence_of_requests_and_stops_stays_inside",)),
    Guard("longest stop", "core/limits.py",
          "room = np.minimum(V, self._stoppable - self._stoppable_loss_s * rate)", "room = V + 0.0 * rate",
          (f"{LIMITS}::test_no_reference_takes_the_arm_farther_from_rest_than_the_longest_stop",)),
    Guard("rows before they are read", "core/chunks.py", "count = min(max(rows, missing), len(rest))",
          "count = min(rows, len(rest))",
          (f"{CHUNKS}::"
           "test_what_is_read_of_a_chunk_converted_bit_by_bit_is_what_is_read_of_one_converted_at_once",)),
    Guard("end before a row that is missed", "core/chunks.py", "if missed is None:", "if True:",
          (f"{CHUNKS}::"
           "test_a_chunk_ends_before_the_row_that_cannot_be_reached_and_one_that_begins_so_is_rejected",)),
    Guard("stopping short of the target", "core/limits.py", "1e4 * np.maximum(past, 0.0)",
          "0.0 * np.maximum(past, 0.0)", (f"{LIMITS}::test_a_step_settles_fast_and_does_not_overshoot",)),
    Guard("late tick as two periods", "core/limits.py", "return min(dt_s, self._dt_max_s)", "return dt_s",
          (f"{SUPERVISOR}::test_a_late_tick_is_no_leap_and_a_very_late_one_holds",)),
    Guard("finite reference", "core/limits.py", 'require_finite("q_ref", q_ref)', "pass",
          (f"{LIMITS}::test_a_reference_that_is_not_finite_is_refused",)),
    Guard("brake above the speed cap", "core/motion.py",
          "if not self._stays_below_cap(following, J):", "if False:",
          (f"{SUPERVISOR}::test_the_tool_never_exceeds_its_speed_cap_however_fast_the_chunks_are",)),
    Guard("reduced speed", "core/operator.py", "bad[Reason.REDUCED_SPEED] = self._reduced(now_s)",
          "bad[Reason.REDUCED_SPEED] = False", (f"{MOTION}::{C7}[tool-asked]",)),
    # What a chunk must be.
    Guard("chunk of another contract", "core/chunks.py", "if chunk.contract_hash != contract.hash:", "if False:",
          (f"{CHUNKS}::{WRONG}",)),
    Guard("chunk of another instruction", "core/chunks.py", "if chunk.instruction_id != instruction_id:", "if False:",
          (f"{CHUNKS}::{WRONG}",)),
    Guard("chunk too late", "core/chunks.py", "if not age_s <= AGE_MAX_S:", "if False:", (f"{CHUNKS}::{WRONG}",)),
    Guard("chunk from the future", "core/chunks.py", "if not age_s >= -FUTURE_MAX_S:", "if False:",
          (f"{CHUNKS}::{WRONG}",)),
    Guard("chunk that starts elsewhere", "core/chunks.py", "if not np.abs(first).max() <= START_MAX_RAD:", "if False:",
          (f"{CHUNKS}::test_a_first_target_far_from_the_command_is_a_start_mismatch",)),
    Guard("chunk far outside the workspace", "core/chunks.py", "if not beyond <= WORKSPACE_REJECT_M:", "if False:",
          (f"{CHUNKS}::test_rows_a_little_outside_the_workspace_are_clamped_to_it_and_rows_far_outside_reject_the_chunk",)),
    Guard("three bad chunks", "core/intake.py", "bad[Reason.BAD_CHUNKS] = True", "pass",
          (f"{SUPERVISOR}::test_a_chunk_with_a_nan_is_dropped_whole_and_the_third_within_ten_seconds_stops",)),
    Guard("flood of chunks", "core/intake.py", "for chunk in chunks[-MAX_CHUNKS:]:", "for chunk in chunks:",
          (f"{SUPERVISOR}::test_a_flood_of_chunks_costs_no_more_than_two_and_the_newest_counts",)),
    # What is left of the supervisor.
    Guard("joint states lost", "core/supervisor.py",
          "self._bad[Reason.STATE_LOST] = newest is not None and not age_s <= STATE_LOST_S",
          "self._bad[Reason.STATE_LOST] = False",
          (f"{SUPERVISOR}::test_joint_states_that_stop_hold_after_50_ms_and_stop_after_500_ms",)),
    Guard("clock", "core/supervisor.py", "= not dt_s > 0.0 or not inputs.clock_runs", "= False",
          (f"{SUPERVISOR}::test_a_clock_that_stands_or_goes_back_holds_and_repeats_the_command",)),
    Guard("late tick", "core/supervisor.py", "self._bad[Reason.LATE_TICK] = dt_s > LATE_TICK_S",
          "self._bad[Reason.LATE_TICK] = False",
          (f"{SUPERVISOR}::test_a_late_tick_is_no_leap_and_a_very_late_one_holds",)),
    Guard("stop that ended in silence", "core/supervisor.py",
          "if dt_s > self._contract.timeouts.safe_command_s and self._mover is not None:", "if False:",
          (f"{SUPERVISOR}::test_a_stop_that_the_arm_has_made_alone_meanwhile_is_not_made_again",)),
    Guard("last finite gate", "core/supervisor.py",
          "command.validate(self._contract.n_joints)  # the last finite gate: nothing else may leave", "pass",
          ("safety/test_units.py::test_a_number_that_is_not_finite_never_leaves_the_supervisor",)),
    Guard("hold forgets its chunk", "core/supervisor.py",
          "self._executor.flush(now_s)  # what was computed before the fault is never executed", "pass",
          ("safety/test_units.py::test_what_was_observed_before_a_hold_is_dropped",)),
    Guard("anchor of a rearm", "core/supervisor.py", "self._mover.anchor(newest.q_rad)", "pass",
          (f"{REARM}::test_an_arm_that_was_moved_by_hand_while_stopped_is_held_where_it_is",)),
    Guard("retreat of a stopped arm", "core/supervisor.py",
          "if self._monitor.latched or self._bad.get(Reason.INTERRUPT, False):", "if False:",
          ("core/test_retreat.py::test_a_retreat_is_refused_with_the_reason_where_there_is_no_way_back_or_the_arm_must_not_move",)),
    Guard("arm controller that latched alone", "core/arm_watch.py", "bad[Reason.ARM_LATCHED] = True", "pass",
          ("safety/test_units.py::test_an_arm_controller_that_stops_or_falls_silent_stops_the_supervisor",)),
    Guard("arm controller that falls silent", "core/arm_watch.py",
          "bad[Reason.ARM_LOST] = silent and not self._monitor.is_active(Reason.START_UP)",
          "bad[Reason.ARM_LOST] = False",
          ("safety/test_units.py::test_an_arm_controller_that_stops_or_falls_silent_stops_the_supervisor",)),
    Guard("oversized text", "core/instructions.py", "if not len(text) <= TEXT_MAX:", "if False:",
          ("core/test_instructions.py::test_text_is_refused_whole_with_the_reason",)),
    # Perception and the arm controller.
    Guard("stamp of an image", "core/observation.py", "if not abs(age_s) <= limit_s:", "if False:",
          ("core/test_observation.py::test_a_stamp_that_is_old_or_ahead_or_does_not_grow_is_refused",)),
    Guard("range at the arm controller", "arm/controller.py",
          "if not ((command.q_rad >= low - 1e-6) & (command.q_rad <= high + 1e-6)).all():", "if False:",
          (f"{ARM}::test_a_bad_command_is_never_passed_on_and_latches_a_stop",)),
    Guard("new writer at the arm controller", "arm/controller.py", 'self._latch("new_writer")', "pass",
          (f"{ARM}::test_a_new_writer_that_comes_before_the_silence_of_the_old_one_was_noticed_is_not_followed",)),
    Guard("order at the arm controller", "arm/controller.py",
          "if self._last is not None and not command.sequence > self._last.sequence:", "if False:",
          (f"{ARM}::test_repeated_and_reordered_commands_are_ignored",)),
    Guard("joint states at the arm controller", "arm/controller.py",
          "if self._joints is None or not now_s - self._joints.measured_at_s <= STATE_LOST_S:", "if False:",
          ("safety/test_units.py::test_the_arm_controller_stops_when_it_alone_loses_the_joint_states",)),
    Guard("an arm put elsewhere", "arm/controller.py", "elif self._was_put_elsewhere(now_s) and", "elif False and",
          (f"safety/test_units.py::{PUT}",)),
    Guard("an arm being moved", "arm/controller.py",
          "if not (standing and still and joints is not None", "if not (standing and joints is not None",
          (f"safety/test_units.py::{PUT}",)),
    # What a process asks of itself and of its files.
    Guard("memory", "core/process_health.py", "if not 0.0 < rss_mb <= limit_mb:", "if False:",
          ("safety/test_units.py::test_a_process_judges_its_own_memory",)),
    Guard("matching QoS", "core/process_health.py", "self._found.setdefault(topic, policy)", "pass",
          ("safety/test_units.py::test_endpoints_that_do_not_match_are_named",)),
)  # fmt: skip


class Workshop:
    """A copy of the package in which one guard at a time is missing. Tests run in a fork of this process, which has
    the large libraries already: three quarters of the time of a small test is their import."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for part in COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            elif source.exists():
                shutil.copy(source, folder / part)
        for library in LIBRARIES:
            importlib.import_module(library)

    def try_without(self, guard: Guard) -> dict[str, object]:
        path = self.folder / "vla_ros" / guard.file
        source = path.read_text(encoding="utf-8")
        if source.count(guard.text) != 1:
            raise SystemExit(
                f"{guard.name}: its text occurs {source.count(guard.text)} times in {guard.file}, not once"
            )
        started_s = time.monotonic()
        path.write_text(source.replace(guard.text, guard.without), encoding="utf-8")
        try:
            red = next((test for test in guard.tests if self._is_red(guard, test)), None)
        finally:
            path.write_text(source, encoding="utf-8")
        return {
            "guard": guard.name,
            "file": guard.file,
            "red": [red] if red is not None else [],
            "s": round(time.monotonic() - started_s, 1),
        }

    def _is_red(self, guard: Guard, test: str) -> bool:
        output = self.folder / "output.txt"
        process = multiprocessing.get_context("fork").Process(target=run_test, args=(self.folder, test, output))
        process.start()
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
            raise SystemExit(f"{guard.name}: {test} takes longer than {LIMIT_S:g} s")
        if process.exitcode not in (0, 1):  # 4 or 5 would be a test that is not there
            raise SystemExit(f"{guard.name}: {test} does not run:\n{output.read_text(encoding='utf-8')[-3000:]}")
        return process.exitcode == 1


def run_test(folder: Path, test: str, output: Path) -> None:
    """In a process of its own, from which nothing of the package was imported yet."""
    assert not any(name.partition(".")[0] == "vla_ros" for name in sys.modules)
    with output.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        sys.dont_write_bytecode = True  # a changed file of the same size and second would not be read again
        import pytest
        from hypothesis import Phase, settings

        settings.register_profile("first", phases=(Phase.explicit, Phase.generate), database=None)  # red is enough
        settings.load_profile("first")
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--rootdir", str(folder), f"test/{test}"])
        sys.stdout.flush()
    os._exit(int(code))


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
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        workshop = Workshop(Path(name))
        for guard in guards:
            results.append(workshop.try_without(guard))
            print(f"{len(results)}/{len(guards)} {guard.name}: {results[-1]['red'] or 'NOT NOTICED'}", file=sys.stderr)
    unnoticed = [result["guard"] for result in results if not result["red"]]
    print(json.dumps({"guards": len(results), "unnoticed": unnoticed, "results": results}, indent=1))
    if options.report is not None:
        options.report.write_text(report(results), encoding="utf-8")
    return 1 if unnoticed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
