"""The dataset: learning histories on disk, guarded by a schema, and the contexts cut from them."""
