"""Reports, maps and image sheets."""
