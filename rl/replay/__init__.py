"""Experience replay, and the sum tree for sampling it by priority."""
