"""Configuration: which options there are, where values come from, and what the program's parts are given."""
