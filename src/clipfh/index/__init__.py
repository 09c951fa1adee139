"""From any folder, table or bucket of photos to saved features, and from these to an index that is searched."""
