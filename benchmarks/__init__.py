"""How fast each stage is, beside what people use today: `python -m benchmarks`. See README.md in this folder."""
