"""The shipped checkpoint and its card."""
