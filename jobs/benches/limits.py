"""For benches that may stand below their goal: what the profile says limits them, and what was tried."""

from __future__ import annotations

from collections.abc import Mapping

LIMITS: Mapping[str, str] = {
    "decode.binary": (
        "memory: 140 bytes are read and 217 written, since every reading gets a mask and a quality code beside it. Of "
        "some 0.35 ms a poll (copy: 0.055 ms) readings take 0.12 to 0.17, of which 0.08 were nothing judged at all; "
        "times, offsets and row numbers 0.05 to 0.09, codes of the assets 0.03. Arrow stands at 0.01 of its copy: "
        "pyarrow takes 0.1 ms and more to open, validate and hand out the 34 columns of a message, whatever is in it. "
        "Tried: branches for what is not good (three to five times slower than judging eight at a time), one kernel "
        "for a whole poll over joined bytes (a copy more), numpy column by column, `RecordBatch.to_tensor`."
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
    "score.dense.fp32": (
        "at 64 rows the matrix product itself: MKL packs the weights (4.3 MB) anew for each one, and the bare chain of "
        "products stands at 0.72 there (0.80 at 128 rows, 0.95 from 256 on); some 0.4 ms of a push is spent around "
        "it. Tried: weights packed beforehand by MKL and by oneDNN (0.66), weights transposed (as it is), OpenBLAS "
        "(5 to 20 % faster here, but its threads are nobody's to set without another dependency)."
    ),
    "score.dense.int8": (
        "without VNNI two instructions multiply 32 products of 8 bits and add them in pairs, where float32 takes four: "
        "at most 2.0 of the float32 rate, and oneDNN's product alone reaches 1.9 to 2.0 (131 against 65 G a second), "
        "so 2.2 is out of reach on such a CPU. Windows out of memory, codes and the comparison are the rest. Not yet "
        "measured on a CPU with VNNI."
    ),
    "score.conv.bf16": "CPUs without bfloat16 instructions emulate them: meant for those that have them.",
    "score.conv.fp32": (
        "the products of the layers are three quarters of a push and reach 0.7 of the rate of a large one (32 outputs "
        "at 224 inputs, 64 at 128; an eighth of the last are zeros), laying out rows a tenth, windows from memory a "
        "tenth; at 64 rows some 0.4 ms of calls. The network alone stands at 0.55. Tried: oneDNN's convolutions over "
        "channels-last rows (0.45 in the same turns for 64 windows, 0.15 for 8), with packed weights and ReLU fused "
        "(nothing gained), strides turned into channels (better for the transposed 5-tap layer only), oneDNN's packed "
        "linear layers (slower), other numbers of windows (4: 0.42, 8: 0.50, 32: as 16)."
    ),
    "stream.conv": (
        "memory: a row of one of 8,192 assets touches a dozen lines that no cache holds (raw ring, mask, scaled ring, "
        "what is recalled of them, kept activations, errors), and takes what it does as long as the products it saves: "
        "taking rows 0.36 of a push, products 0.17, handing out results 0.11, joining activations 0.03, the rest is "
        "calls for chunks of 256 hops. The recompute it is held against has itself become faster (engine_conv)."
    ),
    "e2e.stream": (
        "decoding JSON is a third, the streaming engine two fifths (see stream.conv), alignment, gate and alerts a "
        "quarter, each row in memory of its own (see e2e.overhead)."
    ),
    "group.conv": (
        "groups are scored one after the other, each in a batch of its own whose calls cost a third of it. Tried: "
        "oneDNN's convolutions, which take three times as long for 4 windows."
    ),
    "scale.shards": "both shards share the memory bus and the last cache; it needs two cores that nothing else uses.",
    "cold.start": (
        "CPU seconds of a start: torch 3.1 of 5.1; numba, and scipy where it looks for BLAS, 0.7; kernels from disk "
        "0.3, pydantic and the command line 0.3, pyarrow 0.15. Tried: looking for garbage less often (kept: 1.79 to "
        "1.64 in the same turns), not at all while importing (no better)."
    ),
    "e2e.json.dense": "the matrix products themselves (share_engine); see e2e.overhead for the rest.",
}
