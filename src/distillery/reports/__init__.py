"""What people look at: figures, tables and one page, made from plain data."""
