"""The stateful gate by looking back over everything a channel has said since its asset last started again."""

from __future__ import annotations

from pipeline.values import Continuity, Quality


def naive_gate(rows, spec):
    """Return (x, observed, quality) as nested lists."""
    x, observed, quality = rows.x.tolist(), rows.observed.tolist(), rows.quality.tolist()
    for c in range(rows.channels):
        past = {}  # asset -> [(reading or None, quality as it came, did it jump)], since it last started again
        for i in range(len(rows)):
            said = past.setdefault(int(rows.asset[i]), [])
            if rows.continuity[i] != Continuity.CONTINUES:
                said.clear()
            reading = float(rows.x[i, c]) if rows.observed[i, c] else None
            came = int(rows.quality[i, c])
            jump = reading is not None and jumps(reading, said, spec.max_step[c])
            said.append((reading, came, jump))
            if jump:
                fault = Quality.JUMP
            elif reading is not None and is_stuck(said, spec.stuck_frames[c]):
                fault = Quality.STUCK
            elif is_missing(said, spec.missing_frames):
                fault = Quality.MISSING
            else:
                continue
            x[i][c], observed[i][c], quality[i][c] = 0.0, False, int(fault)
    return x, observed, quality


def jumps(reading, said, max_step):
    back = [(k, value, jumped) for k, (value, _, jumped) in enumerate(reversed(said), start=1) if value is not None]
    if not back:
        return False
    references = [back[0], next(b for b in back if not b[2])]
    return all(abs(reading - value) > max_step * k for k, value, _ in references)


def is_stuck(said, frames):
    readings = [value for value, _, _ in said if value is not None]
    return frames > 0 and len(readings) >= frames and len(set(readings[-frames:])) == 1


def is_missing(said, frames):
    counted = [came for _, came, _ in said if came != Quality.GAP]
    ends_absent = said[-1][1] == Quality.ABSENT
    return 0 < frames < len(counted) and ends_absent and set(counted[-frames - 1 :]) == {int(Quality.ABSENT)}
