"""On the path of processes that one with `install()` starts: there they find `pydensecrf`."""
