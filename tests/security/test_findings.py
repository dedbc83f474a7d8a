"""Past findings, most severe first, and the tests that keep each closed.

A new finding gets a row: what it was, and tests that failed before it was mended.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = {
    'a .pt2 or TorchScript file runs code when it is loaded': [
        'security/test_programs.py::test_a_program_is_refused_by_default_and_does_not_run',
    ],
    'a pickle behind an http address runs code': [
        'security/test_loaders.py::test_nothing_behind_an_address_runs',
    ],
    'a local checkpoint runs code on torch 2.5 and older': [
        'security/test_loaders.py::test_nothing_in_a_file_runs',
    ],
    'forged dtypes and sparse matrices of a pickle corrupt memory': [
        'security/test_forged_files.py::test_forged_arrays_are_refused',
        'security/test_forged_files.py::test_forged_checkpoints_are_refused',
        'security/test_forged_files.py::test_mutated_files_never_end_the_process_nor_raise_anything_else',
    ],
    'a kill while a checkpoint is written loses all progress': [
        'security/test_kills.py::test_a_training_killed_while_it_writes_resumes_and_ends_the_same',
    ],
    'the kernel mix_groups writes outside of its scratch': [
        'security/test_kernels.py::test_kernels_stay_within_their_arrays_and_every_kernel_has_a_row',
    ],
    'two processes that download one file damage it': [
        'security/test_downloads.py::test_two_processes_that_want_the_same_file_both_get_it',
    ],
    'a part of another version is continued': [
        'security/test_downloads.py::test_a_file_that_changed_on_the_server_is_not_continued',
        'security/test_downloads.py::test_a_server_that_continues_at_byte_0_is_noticed',
    ],
    'one bad input ends a whole prediction': [
        'security/test_predict_inputs.py::test_bad_inputs_are_skipped_and_named_and_the_others_are_done',
    ],
    'one broken record ends training instead of being counted': [
        'security/test_broken_data.py::test_a_broken_annotation_is_a_bad_record',
        'security/test_broken_data.py::test_a_mutated_shard_raises_nothing_but_bad_records',
    ],
    'faces of a body file outside of its vertices crash the renderer': [
        'models/mesh/test_body.py::test_a_file_of_another_layout_is_an_error',
    ],
    'a damaged video that is closed early hangs the process': [
        'security/test_predict_inputs.py::test_damaged_videos_that_are_closed_early_never_wait_for_ever',
    ],
    'JPEG 2000 crashes OpenCV': [
        'files/test_images.py::test_jpeg_2000_is_refused_whatever_the_file_is_called',
    ],
    'a damaged shard counts as one record': [
        'security/test_broken_data.py::test_people_that_a_cut_shard_has_lost_are_counted',
    ],
    'the viewer answers any origin': [
        'security/test_viewer_origin.py::test_a_websocket_opens_for_the_page_alone',
    ],
    'a damaged index of shards ends training': [
        'security/test_broken_data.py::test_a_mutated_index_is_made_anew',
    ],
    'an inferencer used from several threads confuses its calls': [
        'inference/test_shared_inferencers.py::test_threads_get_what_one_thread_gets',
    ],
    'two runs in one folder damage the results of both': [
        'security/test_predict_processes.py::test_a_second_run_is_refused_and_the_first_can_be_terminated_and_resumed',
    ],
    'a small file unfolds to gigabytes': [
        'security/test_forged_files.py::test_memory_is_bounded',
        'security/test_predict_inputs.py::test_no_memory_is_allocated_for_a_declared_size',
    ],
    'workers outlive a terminated parent': [
        'security/test_stopped_tools.py::test_a_signal_ends_the_workers_and_leaves_nothing',
        'security/test_workers.py::test_no_worker_outlives_a_training_that_a_signal_ends',
    ],
    'a stopped worker hangs training': [
        'security/test_workers.py::test_a_stopped_worker_ends_the_training_with_an_error_that_says_so',
    ],
    'boxes of 1e38 reach the crop': [
        'security/test_predict_fuzz.py::test_boxes_that_no_crop_can_be_computed_of_are_not_used',
    ],
    'a chunk length of a PNG allocates gigabytes in OpenCV': [
        'files/test_images.py::test_a_png_whose_chunks_exceed_the_file_is_refused_before_they_are_allocated',
    ],
}


@pytest.mark.parametrize('finding', FINDINGS)
def test_every_finding_has_tests_that_exist(finding):
    for test in FINDINGS[finding]:
        path, name = test.split('::')
        source = (ROOT / 'tests' / path).read_text()
        assert re.search(rf'^def {name}\(', source, re.M), test
