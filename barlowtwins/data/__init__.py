"""Where images come from: files, lists, tar archives, remote folders, named data sets, arrays."""
