"""Images to an EMB folder: one row of features each, in shards that any process may make."""
