"""The model, its runtimes, loading and tokenizing."""
