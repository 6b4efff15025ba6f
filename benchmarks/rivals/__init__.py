"""What our side is held against, one file each. A file imports its library at the top, and is imported when needed."""
