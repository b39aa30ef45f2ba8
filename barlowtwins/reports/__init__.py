"""Pages, maps and sheets: what people would rather look at than read."""
