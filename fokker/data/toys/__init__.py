"""The embedded data sets, one file each: `build(n, seed, split, ...)` returns a Source; the file's name is the set's."""
