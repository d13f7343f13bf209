"""For benches that may stand below their goal: what the profile says limits them, and what was tried."""

from __future__ import annotations

from collections.abc import Mapping

LIMITS: Mapping[str, str] = {
    "decode.binary": (
        "an Arrow message is opened and validated in full (what a sender says about its own buffers is not believed), "
        "asset names become codes through a hash, and every reading gets a mask and a quality code: 230 bytes are "
        "written for 150 that are read. A fixed 140-byte record with a number for its asset would need none of the "
        "first three. Tried: one pass from columns to rows (kept: four times faster than column by column), "
        "`RecordBatch.to_tensor` (slower than our own pass)."
    ),
    "ring.scatter": (
        "the row is scaled with a logarithm beyond the soft clip, its mask counted, and four places are written, which "
        "for a random asset are eight lines that no cache holds. One fancy index writes two."
    ),
    "ring.window": (
        "the row is scaled and stored in the same pass, and each window starts at a random address: the copy of one "
        "large block that it is held against lets memory run ahead."
    ),
    "e2e.overhead": (
        "memory, not arithmetic: a row of a random asset out of 10,000 touches 8 KiB of its window and some 2.5 KiB of "
        "state (alignment, gate, smoother, alerts) that no cache holds. JSON itself is about a quarter of it."
    ),
    "group.conv": (
        "each group is padded to a batch of 8 so that a row's bits do not depend on its neighbours, and groups are "
        "scored one after the other."
    ),
    "scale.shards": "both shards share the memory bus and the last cache; it needs two cores that nothing else uses.",
    "cold.start": "the import of torch is the larger part; kernels are read from disk, not compiled.",
    "e2e.json.dense": "the matrix products themselves (share_engine); see e2e.overhead for the rest.",
}
