"""The 63 rows of the fault table: level, what must happen and how soon, and the one test that shows it.

`level` and times are the safety specification's (section 5); `test` is `file::function` under `test/`.
"""

from __future__ import annotations

from dataclasses import dataclass

from vla_ros.core.types import Severity

RUN, LIMIT, HOLD, STOP = Severity.RUN, Severity.LIMIT, Severity.HOLD, Severity.STOP


@dataclass(frozen=True)
class Fault:
    id: str
    level: str  # U pure objects, S simulation in fake time, P real processes
    severity: Severity | None  # None: something is refused or dropped, and the motion does not change
    reason: str  # of the supervisor or of the arm controller, or the rule of the refusal
    react_ms: float | None
    rest_ms: float | None
    test: str


SIM = "safety/test_simulation.py::test_fault"
OBSERVATION, CHUNKS = "core/test_observation.py::", "core/test_chunks.py::"
SUPERVISOR, REARM, ARM = "core/test_supervisor.py::", "core/test_rearm.py::", "core/test_arm_controller.py::"
MOTION, UNIT, LIVE = "safety/test_c_motion.py::", "safety/test_units.py::", "process/test_live_graph.py::"
LOADING = "policy/test_loading.py::"
LIVE_FAULTS, OPERATOR = "process/test_faults.py::", "safety/test_d_operator.py::"

FAULTS = (
    Fault("A1", "S", HOLD, "image_stale", 230, 550, SIM),
    Fault("A2", "S", HOLD, "image_frozen", 363, 700, SIM),
    Fault("A3", "U", None, "image_stamp", 230, 550,
          OBSERVATION + "test_a_stamp_that_is_old_or_ahead_or_does_not_grow_is_refused"),
    Fault("A4", "U", None, "image_invalid", None, None,
          OBSERVATION + "test_no_malformed_image_is_taken_and_none_raises_anything_but_invalid"),
    Fault("A5", "S", HOLD, "image_blind", 363, 700, SIM),
    Fault("A6", "S", HOLD, "image_stale", 230, 550, SIM),
    Fault("A7", "S", HOLD, "state_stale", 80, 400, SIM),
    Fault("A8", "U", None, "state_invalid", 80, 400,
          OBSERVATION + "test_a_joint_state_that_is_not_whole_counts_as_missing"),
    Fault("A9", "S", STOP, "state_jump", 30, 350, SIM),
    Fault("A10", "U", STOP, "contract_mismatch", None, None,
          UNIT + "test_A10_perception_of_another_contract_refuses_the_rearm"),
    Fault("B1", "U", STOP, "bad_chunks", 30, 350,
          SUPERVISOR + "test_a_chunk_with_a_nan_is_dropped_whole_and_the_third_within_ten_seconds_stops"),
    Fault("B2", "U", LIMIT, "clamped", None, None,
          CHUNKS + "test_rows_a_little_outside_the_workspace_are_clamped_to_it_and_rows_far_outside_reject_the_chunk"),
    Fault("B3", "U", STOP, "contract_mismatch", None, None,
          CHUNKS + "test_a_chunk_that_is_not_what_the_contract_says_is_rejected_with_a_reason"),
    Fault("B4", "S", RUN, "", None, None, "safety/test_simulation.py::test_B4_two_policies_that_disagree_make_no_step"),
    Fault("B5", "P", HOLD, "chunk_stale", 530, 900,
          LIVE + "test_arm_holds_when_the_policy_is_killed_and_goes_on_with_a_new_one"),
    Fault("B6", "P", HOLD, "chunk_stale", 530, 900,
          LIVE_FAULTS + "test_B6_policy_that_hangs_holds_the_arm_which_goes_on_when_it_wakes"),
    Fault("B7", "S", HOLD, "chunk_stale", 530, 900, SIM),
    Fault("B8", "U", None, "chunk_order", None, None,
          CHUNKS + "test_order_is_kept_repeats_replays_and_older_observations_are_dropped"),
    Fault("B9", "S", HOLD, "no_progress", 1000, 1400, SIM),
    Fault("B10", "U", None, "", None, None,
          LOADING + "test_a_graph_that_answers_differently_than_when_it_was_exported_is_refused"),
    Fault("B11", "P", HOLD, "chunk_stale", 530, 900,
          LIVE + "test_policy_that_raises_once_in_a_while_loses_chunks_only"),
    Fault("B12", "U", None, "start_mismatch", None, None,
          CHUNKS + "test_a_unit_mix_up_is_rejected_and_never_crept_towards"),
    Fault("C1", "U", LIMIT, "tracking_lag", 10, None,
          MOTION + "test_C1_from_any_state_inside_the_envelope_every_sequence_of_requests_and_stops_stays_inside"),
    Fault("C2", "S", HOLD, "workspace", 20, 350,
          MOTION + "test_C2_a_tool_driven_out_of_the_workspace_is_held_at_the_face_and_may_come_back"),
    Fault("C3", "S", HOLD, "self_collision", 20, 350,
          MOTION + "test_C3_an_arm_that_folds_into_itself_is_slowed_and_held_and_may_unfold"),
    Fault("C4", "S", HOLD, "singularity", 10, None,
          MOTION + "test_C4_a_way_through_a_singularity_is_slowed_and_held_and_may_turn_back"),
    Fault("C5", "S", STOP, "tracking", 60, 400, SIM),
    # The table's 300 ms to rest are less than its section 4 allows: react + 300 ms ramp + 20 ms.
    Fault("C6", "S", STOP, "contact", 40, 360, SIM),
    Fault("C7", "S", LIMIT, "reduced_speed", 30, None,
          MOTION
          + "test_C7_tool_and_elbow_slow_down_within_the_ramp_when_reduced_speed_is_asked_or_nobody_allows_more"),
    Fault("C8", "S", HOLD, "gripper_stuck", 1050, 1400, SIM),
    Fault("C9", "S", HOLD, "object_dropped", 100, 450, SIM),
    Fault("C10", "U", None, "", None, None,
          "core/test_contract.py::test_zero_or_a_negative_number_is_refused_where_it_would_switch_a_bound_off"),
    Fault("D1", "S", STOP, "interrupt", 30, 350, SIM),
    Fault("D2", "S", STOP, "interrupt", 30, 350,
          OPERATOR + "test_D2_an_interrupt_in_any_phase_of_a_grasp_stops_the_arm_and_never_opens_the_hand"),
    Fault("D3", "P", STOP, "interrupt", 30, 350,
          LIVE_FAULTS + "test_D3_interrupt_during_a_long_inference_stops_at_once_and_the_late_chunk_is_dropped"),
    Fault("D4", "P", STOP, "operator_heartbeat", 550, 900,
          LIVE_FAULTS + "test_D4_interrupt_on_a_bad_line_is_repeated_and_a_dead_line_stops_the_arm"),
    Fault("D5", "P", STOP, "interrupt", None, None,
          LIVE_FAULTS + "test_D5_stuck_button_keeps_the_arm_stopped_and_costs_little"),
    Fault("D6", "U", None, "", None, None, REARM + "test_rearm_is_accepted_only_when_nothing_is_wrong"),
    Fault("D7", "S", HOLD, "instruction_changed", 50, 400, SIM),
    Fault("D8", "U", None, "", None, None,
          "core/test_instructions.py::test_what_is_taken_is_one_printable_line_in_nfc_and_taking_it_again_changes_nothing"),
    Fault("D9", "S", RUN, "", None, None, OPERATOR + "test_D9_words_change_what_is_proposed_and_no_bound"),
    Fault("D10", "U", None, "other_source", None, None, UNIT + "test_D10_exactly_one_source_is_listened_to"),
    Fault("E1", "S", STOP, "command_timeout", 80, 400, SIM),
    Fault("E2", "P", STOP, "command_timeout", 80, 400,
          LIVE + "test_arm_brakes_by_itself_when_the_supervisor_is_killed"),
    Fault("E3", "P", STOP, "", 60, None, LIVE + "test_sim_arm_stands_when_the_arm_controller_is_killed"),
    Fault("E4", "P", STOP, "new_writer", None, None,
          LIVE_FAULTS
          + "test_E4_what_restarts_in_motion_moves_nothing_before_a_rearm_and_then_from_where_the_arm_is_held"),
    Fault("E5", "P", STOP, "command_step", 30, 350,
          LIVE_FAULTS + "test_E5_second_supervisor_is_ignored_and_one_that_claims_to_be_the_first_stops_the_arm"),
    Fault("E6", "P", STOP, "state_lost", 80, 400,
          "process/test_partition.py::test_E6_supervisor_that_is_cut_off_holds_then_stops_and_the_arm_brakes_by_itself"),
    Fault("E7", "P", None, "qos_incompatible", None, None,
          LIVE_FAULTS + "test_E7_node_whose_publisher_offers_less_than_it_asks_for_does_not_work"),
    Fault("E8", "U", None, "", None, None,
          "nodes/test_conversions.py::test_jitter_between_the_clocks_is_ignored_and_a_step_is_followed"),
    Fault("E9", "S", HOLD, "clock", 230, None, SIM),
    Fault("E10", "P", HOLD, "late_tick", 110, 450,
          LIVE_FAULTS + "test_E10_supervisor_that_stalls_is_braked_for_and_makes_no_leap_afterwards"),
    Fault("E11", "P", None, "", None, None,
          LIVE_FAULTS + "test_E11_interrupt_still_stops_the_arm_while_every_input_is_flooded"),
    Fault("E12", "P", None, "memory", None, None,
          LIVE_FAULTS + "test_E12_process_that_needs_too_much_memory_ends_itself_and_the_arm_holds"),
    Fault("E13", "P", None, "", None, None, LIVE + "test_parameter_that_bounds_motion_cannot_be_set_at_run_time"),
    Fault("E14", "U", HOLD, "internal", 30, 350,
          SUPERVISOR + "test_an_exception_inside_the_executor_is_caught_and_holds"),
    Fault("E15", "P", STOP, "interrupt", 30, 350, LIVE + "test_supervisor_that_is_told_to_leave_brakes_first"),
    Fault("F1", "P", None, "", None, None,
          LIVE_FAULTS + "test_F1_disk_that_is_full_ends_the_episode_as_a_whole_bag_and_the_arm_moves_on"),
    Fault("F2", "P", None, "", None, None,
          LIVE_FAULTS + "test_F2_recorder_that_hangs_changes_no_motion_and_no_interrupt"),
    Fault("F3", "U", None, "", None, None,
          "data/test_bag_recover.py::test_cut_at_random_bytes_every_whole_chunk_is_kept_and_rosbags_reads_it"),
    Fault("F4", "U", None, "", None, None,
          "data/test_bag_reader.py::test_a_bag_of_another_contract_is_refused_with_the_differing_fields"),
    Fault("F5", "U", None, "", None, None,
          LOADING + "test_a_pickle_is_refused_by_name_and_by_content_and_never_opened"),
    Fault("F6", "S", None, "", None, None,
          "data/test_export.py::test_lossless_frames_are_the_live_observations_bit_for_bit"),
)  # fmt: skip
