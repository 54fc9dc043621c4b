"""What all benchmarks share: cases, settings, processes, figures, tables, kept reports."""
