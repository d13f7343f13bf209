"""The fold: columnar values in, alerts out. Pure: no I/O, no clock, no broker, no torch."""
