"""Processes that torchrun starts anew do not take addresses of processes that are gone."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist

from engine import rendezvous
from engine.rendezvous import store_of_this_start

COUNT = 3


def start(store: dist.Store, order: tuple[int, ...]) -> list[dist.Store]:
    """The stores of all ranks, in the order of ranks, who come in the given one."""
    with ThreadPoolExecutor(COUNT) as pool:
        coming = {rank: pool.submit(store_of_this_start, store, rank, COUNT, 60.0) for rank in order}
        return [coming[rank].result() for rank in range(COUNT)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(COUNT))))
def test_each_start_has_a_store_of_its_own(order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks share it, and nothing of the starts before is in it, whoever comes first."""
    monkeypatch.setattr(rendezvous, "ASK_AGAIN", timedelta(milliseconds=20))
    torchrun = dist.HashStore()
    for number in range(3):
        stores = start(torchrun, order)
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(number))
        assert [store.get("address") for store in stores] == [str(number).encode()] * COUNT


def test_a_first_rank_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """One does not wait for the other for ever."""
    monkeypatch.setattr(rendezvous, "ASK_AGAIN", timedelta(milliseconds=20))
    store = dist.HashStore()
    start(store, (0, 1, 2))
    with pytest.raises(RuntimeError, match="no answer from rank 0"):
        store_of_this_start(store, 1, COUNT, 0.1)
