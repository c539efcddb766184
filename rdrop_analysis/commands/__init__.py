"""The commands of `rdrop-analyze`, one file each. They validate and wire; what is slow to import waits inside."""
