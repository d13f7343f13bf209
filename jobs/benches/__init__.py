"""Measurements that carry their own yardstick: what is reported is a ratio, taken in one process, round by round."""
