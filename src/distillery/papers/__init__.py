"""Published results beside ours: what a study compares, what its runs gave, and whether the claim holds."""
