"""Other libraries at the same work. Each module runs in an environment of its own and imports no other of ours."""
