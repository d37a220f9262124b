"""One filter language, compiled for columns and for the kernel."""
