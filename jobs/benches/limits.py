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
        "memory: two places of a random asset, five lines that no cache holds, and its head before them. Tried: masks "
        "left alone while nothing is missing, one scaled ring for two, rows asked for eight ahead, no reference counts "
        "(kept: from 0.45 of four writes to 2.2 of three)."
    ),
    "ring.window": (
        "the row is scaled and stored in the same pass, and each window starts at a random address: the copy of one "
        "large block that it is held against lets memory run ahead. Tried: each page of the next window asked for "
        "ahead (kept: 0.37 to 0.52)."
    ),
    "e2e.overhead": (
        "memory, not arithmetic: a row of a random asset out of 10,000 touches 8 KiB of its window that no "
        "cache holds. JSON is two fifths of it, the windows most of the rest. Tried: state asked for ahead, one byte "
        "an asset that says which life cycles rest, rows that are due at once not kept in between, readings that are "
        "all good judged together (kept: alignment, gate, smoother and alerts from 5 us a row to 1.5; 0.25 to 0.18)."
    ),
    "score.dense.fp32": (
        "at 64 windows the weights (4.3 MB) are read for few rows, and a tenth goes into residuals and calls; from "
        "rows, the windows come out of memory. Products are ONNX Runtime's, whose weights are packed once (0.99 of "
        "the rate of a large product at 64 rows). Tried: MKL (0.68), weights packed beforehand by MKL and by oneDNN "
        "(0.66), OpenBLAS (5 to 20 % faster than MKL)."
    ),
    "score.dense.int8": (
        "without VNNI two instructions multiply 32 products of 8 bits and add them in pairs, where float32 takes four: "
        "at most 2.0 of the float32 rate, and oneDNN's product alone reaches 1.9 to 2.0 (131 against 65 G a second), "
        "so 2.2 is out of reach on such a CPU. Windows out of memory, codes and the comparison are the rest. With VNNI "
        "products take 5 to 7 of some 11 us a window (up to four times the float32 rate), codes 2, what is made of "
        "sums 1. Tried there: batches of at most 64 and 256 (no difference from rows beyond noise)."
    ),
    "score.conv.bf16": "CPUs without bfloat16 instructions emulate them: meant for those that have them.",
    "score.conv.fp32": (
        "the network takes 1.05 to 1.1 of the floor (16 outputs run at 0.6 of its rate: each multiply-add loads an "
        "input, where 32 outputs share one; the time grows with the rows of a tile, so it is not what sums wait for), "
        "residuals 0.06, calls 0.02; from rows, windows from memory and the push around the network, a tenth each for "
        "64. Layers are multiplied where they lie (vector_tiles): 0.78 to 0.88 where it was 0.38 to 0.40. Tried "
        "before: ONNX Runtime's products over laid-out rows (products 1.27 of the floor, laying out 0.18, calls 0.2), "
        "MKL for these (0.7 of their rate), oneDNN's convolutions over channels-last rows (0.45 in the same turns for "
        "64 windows, 0.15 for 8), strides turned into channels. Tried now: batches of 256 (0.81 where 64 gave 0.91 at "
        "1,024: results leave the second cache), 8 to 48 windows at once (no difference beyond noise), asking for the "
        "next windows ahead (kept: 0.03 to 0.06 at 1,024 and 8,192), residuals by two and four rows at a time and "
        "without reference counts (no difference)."
    ),
    "score.dense.b1": (
        "the calls around the network: its product takes as long as ONNX Runtime's run (0.12 ms each with the weights "
        "in the cache), taking the row, residuals, shares and the result in Python objects take as long again. Tried: "
        "ONNX Runtime for the products (0.20 ms: four calls)."
    ),
    "e2e.latency": (
        "some 650 calls of Python and numpy for a poll of whatever size, of which half are in the engine: decoding, "
        "alignment, gate, smoother and life cycle each hand columns on."
    ),
    "stream.conv": (
        "a row of one of 8,192 assets is written to three rings, recalled from two and told in three columns: taking "
        "rows is a quarter of a push, handing out results another, the network a third, errors a tenth. The recompute "
        "that it is held against has become four times as fast since must and goal were set (engine_conv, "
        "vector_tiles). Tried: the slots of one row side by side (kept: from 2.7 to 2.1 us a row, since memory is then"
        " gone through in order); the tiles of vector_tiles for ONNX Runtime's products (kept: the encoder alone takes"
        " 0.7 to 0.8 of the time, a push 0.9 to 0.95); no reference counts, rows asked for ahead, results written once"
        " (kept: from 0.44 to 1.0 million rows a second)."
    ),
    "e2e.stream": (
        "decoding JSON is half, the streaming engine a third (see stream.conv), alignment, gate and alerts the rest "
        "(see e2e.overhead)."
    ),
    "group.conv": (
        "groups are scored one after the other, each in a batch of its own, and calls are more than half of it. Tried: "
        "oneDNN's convolutions, which took three times as long for 4 windows as products over laid-out rows; tiles of "
        "vector registers (kept: 9 where it was 4.2 to 5)."
    ),
    "scale.shards": "both shards share the memory bus and the last cache; it needs two cores that nothing else uses.",
    "cold.start": (
        "CPU seconds of a start: numba, and scipy where it looks for BLAS, ONNX Runtime, kernels from disk, pydantic, "
        "pyarrow. Tried: serving without torch (kept: 1.7 to 0.9), looking for garbage less often "
        "(kept), not at all while importing (no better)."
    ),
    "e2e.json.dense": "the matrix products themselves (share_engine); see e2e.overhead for the rest.",
}
