"""The model of many GPUs: what it must say whatever its numbers are."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.scale import H200, all_reduce, simulate, table
from engine.model import InceptionResNetV1


def test_a_sum_over_one_process_costs_nothing_and_grows_with_their_number() -> None:
    seconds = [all_reduce(H200, count) for count in (1, 2, 8, 16, 1024)]
    assert seconds[0] == 0
    assert seconds == sorted(seconds)
    assert seconds[1] == pytest.approx(H200.weights / H200.inner + 2 * H200.inner_wait)  # half of it, both ways


def test_one_process_without_jitter_takes_its_step_and_its_checkpoints() -> None:
    """Nothing is summed or waited for; two checkpoints are copied, and the second's write is long done."""
    machine = replace(H200, jitter=0.0)
    found = simulate(machine, 1, 32, overlapped=False)
    step = machine.fixed + 32 * machine.picture
    assert (found.summing, found.step) == (0, pytest.approx(step + 3 * machine.weights / machine.copy / 500))


def test_many_processes_wait_for_the_slowest_and_overlap_hides_part_of_the_sum() -> None:
    alone, many, over = (simulate(H200, n, 32, overlap) for n, overlap in ((1, False), (64, False), (64, True)))
    assert alone.step < over.step < many.step
    assert many.waiting > alone.waiting


def test_slow_storage_is_what_is_waited_for() -> None:
    slow = replace(H200, storage=1e9)
    read = simulate(slow, 64, 32, overlapped=False, decoded=False)
    assert read.step == pytest.approx(64 * 32 * slow.stored / slow.storage, rel=0.02)


def test_the_network_that_is_modelled_is_ours() -> None:
    """Weights of the study's network, and the page's table is what the model says now."""
    weights = sum(p.numel() for p in InceptionResNetV1(20).parameters())
    assert H200.weights == pytest.approx(4 * weights, rel=0.005)
    assert table(H200) in (Path(__file__).parents[2] / "docs" / "scale.md").read_text()


def test_table_has_a_row_a_count() -> None:
    rows = table(H200).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]][::5] == ["1", "32", "1,024"]
    assert rows[2].count("100%") == 3
