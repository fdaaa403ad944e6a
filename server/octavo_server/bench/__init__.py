"""What `octavo bench` measures: the engine in this process, without HTTP and text; and the start of real processes."""
