"""Tile sizes, warps and stages of each kernel, with the reason for each choice.

A reason that begins with "tuned" was measured by `python -m bench.tune` on an NVIDIA H200, at the shapes of a training
step of 32 pictures of 320×320 in bfloat16. The others follow from the access width, registers and occupancy that
`python -m kernels.compile` shows.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Launch:
    """One row of a kernel's table.

    Attributes:
        blocks: the kernel's tile sizes by the names of its constants.
        warps, stages: of a program.
        reason: why these.
    """

    blocks: dict[str, int]
    warps: int
    stages: int
    reason: str

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.warps, "num_stages": self.stages}


RESIDUAL_ADD_RELU = Launch(
    {"BLOCK": 1024}, 4, 1, "eight 16-bit elements, one 128-bit access, for each of the 128 threads; nothing to pipeline"
)
SIGMOID_BCE = Launch(
    {"BLOCK": 2048}, 4, 1, "a batch of 32 x 64 logits is one program, whose sum is the loss: no second launch"
)
ASYMMETRIC_LOSS = Launch(
    {"BLOCK": 1024}, 8, 1, "bound by its exponentials: four elements a thread spill no register, and 64 bits will do"
)
NORMALIZE = Launch(
    {"BLOCK": 2048}, 4, 1, "sixteen bytes, one 128-bit load, for each of the 128 threads, and two 128-bit stores"
)

BATCH_NORM = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 64},
    4,
    1,
    "tuned: 32 elements a thread, four 128-bit accesses of half precision and tensor in flight; a row of 64 is one "
    "128-byte line, where 128 channels leave half of the stem's programs idle",
)
BATCH_NORM_NARROW = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 32}, 4, 1, "tuned: for maps of 32 channels or fewer, no thread idle"
)
BATCH_NORM_SUMS = Launch(
    {"BLOCK_ROWS": 128, "BLOCK_CHANNELS": 32, "STAGES": 3},
    4,
    1,
    "tuned, 0.71 times the time of 32 x 64 without stages: more rows a step, and three steps under way, since each "
    "waits for its loads; narrow, so that maps of few rows have programs for every multiprocessor",
)
BATCH_NORM_COMBINE = Launch({"BLOCK_CHANNELS": 16}, 4, 1, "up to 512 partial results of 16 channels, 64 a thread")
BATCH_NORM_PROGRAMS = 512  # that share a map's rows and channels; tuned: 1024 and 2048 take as long or longer
MAX_POOL = Launch(
    {"BLOCK_ROWS": 32, "BLOCK_CHANNELS": 64},
    4,
    1,
    "tuned: sixteen 16-bit elements, two 128-bit accesses, a thread and tap; a row of 64 channels is 128 bytes, and "
    "the nine taps of neighbours overlap in the cache",
)
CONV1X1_SHALLOW = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 128, "BLOCK_DEPTH": 32},
    4,
    3,
    "block A, bound by memory: a depth of 96 is three steps of 32, all in flight at once; three programs of 37 kB and "
    "at most 168 registers on sm_90 share a multiprocessor, one loading while another multiplies (elsewhere the mask "
    "takes up to 192, and two do); 1370 programs, 10 for each of 132; tuned: within 3 % of the best",
)
CONV1X1_DEEP = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 128, "BLOCK_DEPTH": 64},
    4,
    3,
    "blocks B and C, depths of 256 and 384: steps of 64 fill the 128 bytes of a shared-memory row, 74 kB in three "
    "stages, three programs a multiprocessor on sm_90, as there; 128 channels a tile give wgmma its full rate; 1134 "
    "and 448 programs, 8.6 and 3.4 for each of 132, where tiles of 128 x 128 take too many registers for two at once; "
    "tuned: the best of 48",
)
CONV1X1_FLOAT32 = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 128, "BLOCK_DEPTH": 16},
    8,
    3,
    "bound by its multiplications, 32 sums a thread: steps of 16 keep two programs of 8 warps a multiprocessor at 128 "
    "registers, one on sm_100 where TF32 with a mask takes 148; 25 kB of shared memory, 37 kB for TF32",
)
CONV1X1_MASK = Launch(
    {"BLOCK_ROWS": 64, "BLOCK_CHANNELS": 64},
    4,
    1,
    "four 128-bit accesses of 16-bit elements a thread and tensor; 2740, 2268 and 896 programs for blocks A, B and C; "
    "the sums of 64 rows are 1/32 of the bytes of g or less",
)
