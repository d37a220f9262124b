"""Small captures from real kernels; README.md beside this file tells how each was made."""
