"""Where the processes of a run find each other's addresses, when torchrun has started them anew.

torchrun keeps its store from one start to the next, and with it the addresses of processes that are gone: who is
quicker than another would connect to its predecessor (pytorch issues 135712 and 167288). So all that is written there
gets a prefix that belongs to the processes that are alive. Counting starts would not do: each machine counts its own.
"""

import time
import uuid
from datetime import timedelta

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed import DistStoreError

ASK_AGAIN = timedelta(seconds=1)
NONCE = "manylabel/start"


def store_of_this_start(store: Store, rank: int, count: int, seconds: float) -> Store:
    """The store under a prefix that the first rank has chosen and all others have confirmed to be of now.

    Args:
        store: that of torchrun, with whatever is left in it.
        rank, count: of this process, and of processes.
        seconds: that one waits for another.

    Raises:
        RuntimeError: another rank did not come.
    """
    own = uuid.uuid4().hex
    if rank == 0:
        store.set(NONCE, own)
        for other in range(1, count):
            token = store.get(f"{NONCE}/{own}/{other}").decode()
            store.set(f"{NONCE}/{own}/{other}/{token}", "")
        return PrefixStore(own, store)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        chosen = store.get(NONCE).decode()
        store.set(f"{NONCE}/{chosen}/{rank}", own)
        try:
            store.wait([f"{NONCE}/{chosen}/{rank}/{own}"], ASK_AGAIN)
        except DistStoreError:
            continue  # a first rank that is gone had chosen it
        return PrefixStore(chosen, store)
    raise RuntimeError(f"no answer from rank 0 in {seconds:.0f} seconds")
