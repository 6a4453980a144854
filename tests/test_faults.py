"""The faults that hubq promises to stand: each with the promise, and the tests that prove it or the reason why none can.

The numbers are those of the project's list of faults; every one from 1 to 48 has its row.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
LATER = "not written yet"


class Row(NamedTuple):
    """A fault; `tests` are written file::function, `reason` says why there are none."""

    number: int
    fault: str
    promise: str
    tests: tuple[str, ...] = ()
    reason: str = ""


HUB, FAULTS, PUT, ASK = "test_hub.py::", "test_hub_faults.py::", "test_deliver.py::", "test_hub_requests.py::"
RELEASE, STORE, READ = "test_release.py::", "test_store.py::", "test_checkpoint.py::"
KILLED = "test_killed.py::"
WRITE, ARCH, VOCAB = "formats/gguf/test_write.py::", "formats/gguf/test_arch.py::", "formats/gguf/test_vocab.py::"

ROWS = (
    Row(1, "the connection drops in the middle of a download", "it is resumed, and the hash is right",
        (FAULTS + "test_a_connection_that_drops_twice_is_resumed",
         FAULTS + "test_a_connection_that_always_drops_is_given_up")),
    Row(2, "a byte of a download is flipped", "it is fetched again once, then refused by name",
        (HUB + "test_a_damaged_download_is_fetched_again",
         HUB + "test_a_file_that_stays_damaged_is_refused_and_not_kept")),
    Row(3, "an .incomplete file of zeros, of garbage, or too long", "it is not used",
        (FAULTS + "test_what_an_older_download_left_is_not_used",)),
    Row(4, "a damaged file in the cache", "it is found before it is used, and fetched again",
        (HUB + "test_a_damaged_file_in_the_cache_heals",)),
    Row(5, "a server that ignores Range", "the file starts over, and no byte comes twice",
        (FAULTS + "test_a_server_that_ignores_range_starts_over",)),
    Row(6, "weights cut short, a pointer of git-lfs or a web page in their place", "a clear error, and nothing is written",
        (READ + "test_a_damaged_file_is_refused", READ + "test_a_pointer_of_git_lfs_gets_the_command_that_helps",
         READ + "test_a_file_too_short_for_a_header_is_not_read")),
    Row(7, "429 with Retry-After, with RateLimit, or with neither", "the stated time is waited, 300 s at most, then it goes on",
        (FAULTS + "test_a_pull_waits_as_long_as_it_is_asked_to", FAULTS + "test_a_push_waits_as_long_as_it_is_asked_to",
         FAULTS + "test_no_server_makes_anybody_wait_for_ever")),
    Row(8, "500, 502, 503 and 504, for a while or for ever", "waits grow and end, and the hint says how to go on",
        (FAULTS + "test_a_server_that_stays_broken_is_given_up_soon", HUB + "test_a_passing_failure_is_waited_out")),
    Row(9, "a token that expires in the middle", "no further try; the work is kept; the hint says how to go on",
        (FAULTS + "test_a_refusal_in_the_middle_is_final_and_says_how_to_go_on",
         "test_secrets.py::test_a_run_that_fails_shows_its_token_nowhere_keeps_its_work_and_goes_on")),
    Row(10, "a token of GitHub's OIDC that expires within an upload", "a new one is made",
        reason="huggingface_hub exchanges and renews it by itself for each request, and hubq never holds it: "
               "HuggingFace gives the client no token, so get_token() decides; a test would test the client"),
    Row(11, "a gated, private, missing, disabled or renamed repository", "a message of its own, and no further try",
        (FAULTS + "test_every_closed_door_has_a_message_of_its_own", HUB + "test_missing_private_and_gated_repositories")),
    Row(12, "the network is lost before the commit", "nothing shows on the Hub; the next run sends no file twice",
        (FAULTS + "test_an_upload_that_breaks_off_shows_nothing_and_is_not_sent_twice",
         HUB + "test_giving_up_leaves_the_repository_as_it_was")),
    Row(13, "a commit that lands but is never answered", "it counts, and is the only one",
        (HUB + "test_a_commit_that_is_never_answered_counts",)),
    Row(14, "a commit that lands but is answered with 500", "it counts, and is the only one",
        (HUB + "test_a_commit_that_was_answered_with_500_counts", ASK + "test_a_deletion_whose_answer_was_lost_counts",
         ASK + "test_a_pull_request_whose_answer_was_lost_is_not_opened_twice")),
    Row(15, "412: somebody else committed", "the card is merged and pushed again, the others' files stay",
        (PUT + "test_a_release_that_came_first_is_merged_in", PUT + "test_a_foreign_commit_elsewhere_is_taken_in",
         PUT + "test_the_same_file_with_other_content_stops_the_run")),
    Row(16, "two runs at once with one target", "the union of their levels, and one card",
        (PUT + "test_two_processes_at_once_on_the_hub_end_in_the_union",
         PUT + "test_two_processes_at_once_in_a_folder_end_in_the_union",
         PUT + "test_the_card_does_not_depend_on_who_was_first")),
    Row(17, "two runs at once in one work folder", "the second one says where the first one works",
        (STORE + "test_a_second_run_is_told_where_the_first_one_works", RELEASE + "test_one_run_at_a_time_in_a_store")),
    Row(18, "the source moves on between pull and push", "all files are of one commit; it is told, or refused on request",
        (RELEASE + "test_a_source_that_moved_on_is_told_and_may_be_refused",
         RELEASE + "test_a_release_stays_with_the_commit_that_it_began_with")),
    Row(19, "the source's history is rewritten", "work that has its files goes on; a fresh run fails clearly",
        (RELEASE + "test_a_source_that_moved_on_is_told_and_may_be_refused",
         RELEASE + "test_a_source_that_vanished_does_not_cost_the_work",
         FAULTS + "test_a_commit_that_is_gone_is_never_replaced_by_another")),
    Row(20, "somebody else takes over the source's name", "a pinned commit is that commit or an error",
        (FAULTS + "test_a_commit_that_is_gone_is_never_replaced_by_another",)),
    Row(21, "an earlier publish left files without a record", "the next run repairs it, and foreign files stay",
        (ASK + "test_a_release_without_a_record_is_repaired_and_foreign_files_stay", HUB + "test_foreign_files_stay")),
    Row(22, "kill -9 at every write", "no half-written file has its final name; the next run gives the same bytes",
        (KILLED + "test_a_fault_at_any_write_loses_nothing",
         RELEASE + "test_killed_while_building_it_finishes_later_with_the_same_bytes",
         HUB + "test_folder_push_killed_around_a_rename")),
    Row(23, "Ctrl-C and SIGTERM", "it cleans up, leaves with 130 or 143, and can go on",
        (RELEASE + "test_interrupted_it_leaves_with_130_and_cleans_up",)),
    Row(24, "the disk is full at any write", "no further try, nothing half-written stays, the message says how much it takes",
        (KILLED + "test_a_fault_at_any_write_loses_nothing", KILLED + "test_a_file_may_not_grow_further",
         RELEASE + "test_too_small_a_disk_is_told_before_anything_is_written",
         STORE + "test_a_record_is_replaced_in_one_step")),
    Row(25, "the disk is full under the cache", "the same, and the cache stays sound",
        (FAULTS + "test_a_full_disk_under_the_cache_is_no_passing_fault",)),
    Row(26, "fsync or rename fails", "the error is told, nothing half-written stays, and the next run goes on",
        (KILLED + "test_a_fault_at_any_write_loses_nothing", STORE + "test_a_file_that_cannot_be_made_leaves_nothing")),
    Row(27, "memory runs out", "no more memory than a bound, whatever the size of the model",
        (KILLED + "test_memory_depends_on_slabs_and_not_on_tensors",)),
    Row(28, "a file changes between hash and upload", "the upload stops",
        (HUB + "test_a_file_that_changes_during_the_upload", HUB + "test_what_is_read_back_must_be_what_was_pushed")),
    Row(29, "weights that are not finite", "they are refused by name and row",
        (WRITE + "test_weights_that_are_not_finite_are_refused_by_name",)),
    Row(30, "weights beyond the range of a type", "they are refused by name",
        (WRITE + "test_weights_too_large_for_a_type_are_refused_by_name",)),
    Row(31, "tensors without elements or without dimensions", "they are read as what they are",
        (READ + "test_odd_shapes_and_places_are_read",)),
    Row(32, "a shard or a tensor that is missing or there twice", "refused, with a list",
        (READ + "test_a_shard_that_the_index_names_and_nobody_has", READ + "test_a_tensor_in_two_shards",
         READ + "test_an_index_that_promises_what_the_shards_lack")),
    Row(33, "tensors that no index and no family knows", "refused: nothing is left out silently",
        (READ + "test_an_index_that_does_not_name_what_the_shards_hold",
         ARCH + "test_tensors_that_do_not_fit_the_config")),
    Row(34, "tied embeddings", "one matrix, with the type that llama.cpp gives it",
        (ARCH + "test_a_stored_head_of_a_tied_model_is_left_out",
         "formats/gguf/test_families.py::test_a_level_equals_that_of_llama_cpp_and_loads")),
    Row(35, "an unknown architecture, or code in the repository", "refused early, and no code of it runs",
        (RELEASE + "test_code_in_a_repository_is_refused_before_weights_are_fetched",
         "test_source.py::test_keys_that_could_load_code_are_dropped_at_any_depth")),
    Row(36, "rows that 256 does not divide, or 32", "llama.cpp's own fallbacks, counted on the card",
        (WRITE + "test_every_level_equals_llama_cpp",)),
    Row(37, "a vocabulary larger or smaller than the tokenizer", "padded, or refused",
        (VOCAB + "test_a_tokenizer_larger_than_the_model", VOCAB + "test_a_vocabulary_without_room_to_spare")),
    Row(38, "a tokenizer without merges or of an unknown kind", "refused, never guessed",
        (VOCAB + "test_no_merges", VOCAB + "test_an_algorithm_that_llama_cpp_lacks")),
    Row(39, "a source that is quantized already", "refused, unless it can be read exactly",
        ("test_source.py::test_a_quantized_model_is_refused",)),
    Row(40, "a file that llama.cpp cannot read", "llama.cpp loads every file and computes with it",
        (WRITE + "test_llama_cpp_loads_it_and_computes",)),
    Row(41, "ONNX files whose data is in another file", "both are there, or the missing one is named",
        ("formats/onnx/test_quantize.py::test_large_levels_have_external_data_of_their_own",
         "formats/onnx/test_engine.py::test_missing_data_is_named")),
    Row(42, "a text that is too short, missing or out of reach", "no numbers without a text, and the card says so",
        ("test_text.py::test_texts_that_do_not_do", "test_text.py::test_offline_says_what_to_do",
         RELEASE + "test_without_measuring_the_card_says_so")),
    Row(43, "logits that make no sense", "nothing is pushed",
        ("formats/gguf/test_gate.py::test_logits_have_bounds",
         "test_score.py::test_numbers_that_are_none_are_refused_by_level_and_window")),
    Row(44, "a work folder that was moved or copied", "hashes decide, not times or places",
        (KILLED + "test_hashes_decide_and_not_clocks_or_places", STORE + "test_a_store_may_move",
         RELEASE + "test_a_damaged_file_in_the_store_is_built_again")),
    Row(45, "file names that are none on some system", "refused before anything is written",
        (HUB + "test_hostile_names_are_refused_everywhere", HUB + "test_a_hostile_listing_writes_nothing")),
    Row(46, "a lock that a dead process left, a cache that cannot be written", "the lock is nobody's; the cache is named",
        (FAULTS + "test_a_lock_that_a_dead_process_left_is_nobodys",
         FAULTS + "test_a_cache_that_cannot_be_written_is_named", STORE + "test_a_killed_run_lets_go_of_the_lock")),
    Row(47, "a listing without end, or with names that lead elsewhere", "refused",
        (FAULTS + "test_a_listing_without_end_is_refused", HUB + "test_a_hostile_listing_writes_nothing")),
    Row(48, "another number of threads, another processor", "the same bytes",
        (KILLED + "test_other_processors_and_threads_make_the_same_bytes", WRITE + "test_threads_and_slabs_change_no_byte",
         "formats/gguf/test_encode.py::test_slices_of_rows_in_threads_give_the_same_bytes")),
)  # fmt: skip


def functions_of(file: str) -> set[str]:
    """The test functions of a file."""
    tree = ast.parse((HERE / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_every_fault_has_its_row() -> None:
    assert [row.number for row in ROWS] == list(range(1, 49))


@pytest.mark.parametrize("row", ROWS, ids=[str(row.number) for row in ROWS])
def test_every_row_names_tests_that_exist_or_a_reason(row: Row) -> None:
    assert bool(row.tests) != bool(row.reason) and row.fault and row.promise
    for name in row.tests:
        file, _, function = name.partition("::")
        assert function in functions_of(file), name


def test_the_hubs_rows_are_all_written() -> None:
    open_rows = {row.number for row in ROWS if row.reason == LATER}
    assert not open_rows
